package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk/agentpb"
)

// Generations exchange a line while events flow: every event is answered, once, whichever generation it was at.
func TestLineIsExchangedUnderEvents(t *testing.T) {
	o, _ := options(t, "")
	first := launch(t, o)
	line := NewLine(first)
	var over atomic.Bool
	var asking sync.WaitGroup
	var answered atomic.Int64
	for i := range 16 {
		asking.Go(func() {
			for n := 0; !over.Load(); n++ {
				text := []string{"", "sleep 20ms", "", "die-once"}[(i+n)%4]
				if i < 12 && text == "die-once" {
					text = ""
				}
				if _, err := line.Call(context.Background(), event(fmt.Sprint("e", i, "-", n), text)); err != nil {
					t.Errorf("event %d of %d: %v", n, i, err)
					return
				}
				answered.Add(1)
			}
		})
	}
	for range 6 {
		next := launch(t, o)
		old := line.Agent()
		line.Exchange(next)
		old.Close(context.Background())
	}
	line.Vacate()
	line.Agent().Close(context.Background())
	waiting := make(chan error, 1)
	go func() {
		_, err := line.Call(context.Background(), event("waits", ""))
		waiting <- err
	}()
	line.Exchange(launch(t, o))
	if err := <-waiting; err != nil {
		t.Errorf("an event that waited for the next generation: %v", err)
	}
	over.Store(true)
	asking.Wait()
	if answered.Load() == 0 {
		t.Error("no event was answered")
	}
}

// What comes to a line that was forwarded goes on; what comes to one that has ended passes; a vacant line that nobody
// takes fails in time.
func TestLineForwardsAndEnds(t *testing.T) {
	o, _ := options(t, "")
	p, _ := options(t, "")
	old, next := NewLine(launch(t, o)), NewLine(launch(t, p))
	old.Forward(next)
	if old.Agent() != next.Agent() {
		t.Error("the line does not lead on")
	}
	if _, err := old.Call(context.Background(), event("on", "")); err != nil {
		t.Error(err)
	}
	next.Vacate()
	short := event("short", "")
	short.Timeout = 50 * time.Millisecond
	if _, err := old.Call(context.Background(), short); err == nil || err.(*Failure).Kind != Down {
		t.Errorf("a vacant line: %v", err)
	}
	next.End()
	r, err := old.Call(context.Background(), event("over", ""))
	if err != nil || r.Answer.GetVerdicts()[0].GetKind() != agentpb.VerdictKind_VERDICT_KIND_CONTINUE {
		t.Errorf("a line that has ended: %v %v", r.Answer, err)
	}
}

// A stopped process does not keep its events: two unanswered pings, and another instance has them. One that stands still
// while it drains gives them back, too.
func TestStoppedProcessKeepsNoEvents(t *testing.T) {
	o, _ := options(t, "")
	o.Spec.Instances, o.HangAfter = 2, time.Second
	a := launch(t, o)
	started := time.Now()
	r := mustCall(t, a, event("stopped", "stop"))
	if len(r.Attempts) != 2 || r.Attempts[0].Failure.Kind != Hung {
		t.Errorf("%+v", r.Attempts)
	}
	t.Logf("answered elsewhere after %s", time.Since(started))

	// Where there is no other instance, a process is started beside it, long before it counts as hung.
	only, _ := options(t, "")
	only.HangAfter = 20 * time.Second
	alone := launch(t, only)
	pid := alone.Status().Instances[0].PID
	c := event("stopped", "stop")
	c.Timeout = 10 * time.Second
	r = mustCall(t, alone, c)
	if len(r.Attempts) != 2 || r.Attempts[0].Failure.Kind != Hung {
		t.Errorf("%+v", r.Attempts)
	}
	if now := alone.Status().Instances[0]; now.PID == pid || now.Restarts != 1 || !strings.Contains(now.LastExit, "neither a ping nor an event") {
		t.Errorf("%+v", now)
	}

	single, _ := options(t, "")
	single.HangAfter = o.HangAfter
	line := NewLine(launch(t, single))
	answer := make(chan error, 1)
	go func() {
		_, err := line.Call(context.Background(), event("stopped", "stop"))
		answer <- err
	}()
	eventually(t, "an event in flight", func() bool { return line.Agent().Status().InFlight == 1 })
	was := line.Agent()
	next, _ := options(t, "")
	line.Exchange(launch(t, next))
	was.Close(context.Background())
	if err := <-answer; err != nil {
		t.Error(err)
	}
}

// The process that was started beside a silent one is for its end; when that one only stood still for a moment, it goes on.
func TestSilenceEnds(t *testing.T) {
	for name, end := range map[string]syscall.Signal{"it goes on": syscall.SIGCONT, "it dies": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, out := options(t, "held")
			o.HangAfter = time.Minute / 2
			a := launch(t, o)
			hold := filepath.Join(o.StateDir, "hold")
			if err := os.WriteFile(hold, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			pid := a.Status().Instances[0].PID
			answer := make(chan Result, 1)
			go func() {
				r, err := a.Call(context.Background(), event("e", "sleep 2s"))
				if err != nil {
					t.Error(err)
				}
				answer <- r
			}()
			eventually(t, "the event in flight", func() bool { return a.Status().Instances[0].InFlight == 1 })
			signalled(t, pid, syscall.SIGSTOP)
			out.waitFor(t, "another process is started beside it")
			signalled(t, pid, end)
			if end == syscall.SIGKILL {
				out.waitFor(t, "agent is lost")
				if err := os.Remove(hold); err != nil {
					t.Fatal(err)
				}
			}
			r, now := <-answer, a.Status().Instances[0]
			if end == syscall.SIGCONT && (len(r.Attempts) != 1 || now.PID != pid || now.Restarts != 0) ||
				end == syscall.SIGKILL && (len(r.Attempts) != 2 || now.PID == pid || now.Restarts != 1) {
				t.Errorf("%+v, %+v", r.Attempts, now)
			}
		})
	}
}

func signalled(t *testing.T, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

// A configuration is taken by the processes that run, and by those that start later; one that is refused leaves all as
// they were.
func TestReconfigure(t *testing.T) {
	o, _ := options(t, "live")
	o.Spec.Instances = 2
	a := launch(t, o)
	pid := func() int { return a.Status().Instances[0].PID }
	before := pid()
	if err := a.Reconfigure(context.Background(), []byte("bad"), nil); err == nil {
		t.Error("a bad configuration was taken")
	}
	if err := a.Reconfigure(context.Background(), []byte("good"), nil); err != nil {
		t.Error(err)
	}
	if pid() != before || string(a.options().Spec.Config) != "good" {
		t.Errorf("process %d, then %d; the next one gets %q", before, pid(), a.options().Spec.Config)
	}
	other, _ := options(t, "")
	if err := launch(t, other).Reconfigure(context.Background(), []byte("good"), nil); err != ErrNotLive {
		t.Errorf("an agent that cannot: %v", err)
	}
}
