package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/agentpb"
)

// An agent that fails at one event after the other gets one now and then; the others do not wait for it.
func TestBreaker(t *testing.T) {
	t.Parallel()
	o, out := options(t, "")
	changes := make(chan struct{}, 100)
	o.OnChange = func() { changes <- struct{}{} }
	a := launch(t, o)
	for i := range breakAfter {
		c := event(fmt.Sprint("late", i), "never")
		c.Timeout = 20 * time.Millisecond
		if f := mustFail(t, a, c, Late); f.Detail != "no answer within 20ms" {
			t.Errorf("detail %q", f.Detail)
		}
	}
	f := mustFail(t, a, event("kept away", ""), Broken)
	if !strings.Contains(f.Detail, "5 events of this kind failed one after the other, the last: late: no answer within 20ms") {
		t.Errorf("detail %q", f.Detail)
	}
	if b := a.Status().Breakers; len(b) != 1 || b[0].Failures != breakAfter || b[0].Next.IsZero() {
		t.Errorf("breakers %+v", b)
	}
	out.waitFor(t, "agent keeps failing")
	for len(changes) > 0 {
		<-changes
	}
	eventually(t, "an event to be let through", func() bool {
		_, err := a.Call(context.Background(), event("probe", ""))
		return err == nil
	})
	mustCall(t, a, event("closed", ""))
	if b := a.Status().Breakers; len(b) != 0 {
		t.Errorf("breakers %+v", b)
	}
	<-changes // what waits for the agent is told
	out.waitFor(t, "agent answers again")
}

// A probe that fails keeps the breaker open for longer, and a caller that goes proves nothing about the agent.
func TestBreakerStaysOpen(t *testing.T) {
	t.Parallel()
	o, _ := options(t, "")
	a := launch(t, o)
	for range breakAfter + 3 {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
		if _, err := a.Call(ctx, event("unwanted", "never")); err == nil {
			t.Error("an answer to never")
		}
		cancel()
	}
	mustCall(t, a, event("still", ""))
	for range breakAfter {
		mustFail(t, a, event("fault", "fault"), Faulty)
	}
	first := a.Status().Breakers[0].Next
	eventually(t, "a probe that fails", func() bool {
		_, _ = a.Call(context.Background(), event("fault", "fault"))
		return a.Status().Breakers[0].Failures > breakAfter
	})
	if next := a.Status().Breakers[0].Next; !next.After(first.Add(firstPause / 2)) {
		t.Errorf("the next probe is at %s, the first was at %s", next, first)
	}
}

// What waits is bounded in bytes, whatever the number of events.
func TestBytesAreBounded(t *testing.T) {
	t.Parallel()
	o, _ := options(t, "")
	a := launch(t, o)
	const each = 3 << 20
	var calls sync.WaitGroup
	large := func(id, text string) *Call {
		c := event(id, text)
		c.Own = appendHeader(c.Own, each)
		return c
	}
	for i := range maxBytes / (each + 4096) {
		calls.Go(func() { mustCall(t, a, large(fmt.Sprint(i), "gate")) })
	}
	eventually(t, "as many as there is room for", func() bool { return a.bytes.Load() > maxBytes-each })
	f := mustFail(t, a, large("one too many", ""), Busy)
	if !strings.Contains(f.Detail, "MiB") {
		t.Errorf("detail %q", f.Detail)
	}
	mustCall(t, a, event("opens", "open")) // what is small has room
	calls.Wait()
	if a.bytes.Load() != 0 {
		t.Errorf("%d bytes are still counted", a.bytes.Load())
	}
	mustCall(t, a, large("again", ""))
}

// A body that stands in the event counts before it is read.
func TestBoundCountsBodies(t *testing.T) {
	body := envelope.MemoryBody(make([]byte, 3<<20))
	for _, test := range []struct {
		prefix int64
		want   int
	}{{0, 0}, {1000, 1000}, {2 << 20, maxInlinePrefix}} {
		c := &Call{Body: body, Prefix: test.prefix}
		if got := c.bound() - headBound; got != test.want {
			t.Errorf("prefix %d: %d bytes, want %d", test.prefix, got, test.want)
		}
		f, err := newFlight(c)
		if err != nil || f.size != c.bound() {
			t.Errorf("prefix %d: the event has %d bytes, bound %d, %v", test.prefix, f.size, c.bound(), err)
		}
	}
}

// The log hears of failures, but not of each.
func TestComplaints(t *testing.T) {
	t.Parallel()
	o, out := options(t, "")
	a := launch(t, o)
	for range 4 {
		mustFail(t, a, event("e", "fault"), Faulty)
		mustCall(t, a, event("e", ""))
	}
	out.waitFor(t, "agent failed at an event")
	if n := strings.Count(out.String(), "agent failed at an event"); n != 1 {
		t.Errorf("%d lines for 4 failures", n)
	}
	a.complainAgain(Faulty) // the minute is over
	out.waitFor(t, "agent failed at more events: agent=tester how=fault")
	if !strings.Contains(out.String(), "events=3") {
		t.Errorf("the log has\n%s", out)
	}
}

// gated is options of an agent that cannot start while a file is there.
func gated(t *testing.T) (o Options, away string) {
	t.Helper()
	o, _ = options(t, "gated")
	return o, filepath.Join(o.StateDir, "away")
}

// An agent that ends again and again is failed, with what it said last, until it is ordered to start, which tells
// whether it did.
func TestFailed(t *testing.T) {
	t.Parallel()
	o, away := gated(t)
	o.Backoff.Attempts, o.Backoff.Retry = 3, -1
	a := launch(t, o)
	if err := os.WriteFile(away, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fact := event("kill", "die")
	fact.Fact = true
	mustFail(t, a, fact, Died)
	failed := func() bool { return a.Status().Instances[0].State == Failed }
	eventually(t, "the failed state", failed)
	i := a.Status().Instances[0]
	if !i.Next.IsZero() || !strings.Contains(i.LastExit, "exit status 9") || !strings.Contains(strings.Join(i.Stderr, "\n"), "cannot read the model") {
		t.Errorf("status %+v", i)
	}
	if f := mustFail(t, a, event("e", ""), Down); !strings.Contains(f.Detail, "exit status 9") {
		t.Errorf("detail %q", f.Detail)
	}
	if err := a.Restart(context.Background()); err == nil || !strings.Contains(err.Error(), "cannot read the model") {
		t.Errorf("a restart that fails answers %v", err)
	}
	if err := os.Remove(away); err != nil {
		t.Fatal(err)
	}
	if err := a.Restart(context.Background()); err != nil {
		t.Error(err)
	}
	mustCall(t, a, event("back", ""))
}

// A failed agent is started when it is told that things have changed.
func TestRevive(t *testing.T) {
	t.Parallel()
	o, away := gated(t)
	o.Backoff.Attempts, o.Backoff.Retry = 2, -1
	a := launch(t, o)
	pid := a.Status().Instances[0].PID
	a.Revive()
	mustCall(t, a, event("untouched", ""))
	if now := a.Status().Instances[0]; now.PID != pid || now.Restarts != 0 {
		t.Errorf("an agent that is well was started anew: %+v", now)
	}
	if err := os.WriteFile(away, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fact := event("kill", "die")
	fact.Fact = true
	mustFail(t, a, fact, Died)
	eventually(t, "the failed state", func() bool { return a.Status().Instances[0].State == Failed })
	if err := os.Remove(away); err != nil {
		t.Fatal(err)
	}
	a.Revive()
	eventually(t, "the agent", a.Ready)
}

// An agent that could not be started is known by what ran last, and comes up when it can; an order tells why it cannot.
func TestAbsent(t *testing.T) {
	t.Parallel()
	o, away := gated(t)
	before, err := Launch(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	before.Close(context.Background())
	if err := os.WriteFile(away, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, why := Launch(context.Background(), o)
	if why == nil {
		t.Fatal("it was started")
	}
	a := Absent(o, before.Manifest(), before.Subscriptions(), why)
	t.Cleanup(func() { a.Close(context.Background()); nothingLeft(t, o) })
	if a.Ready() || a.Manifest().GetName() != "test" || len(a.Subscriptions()) != 1 {
		t.Errorf("%v %v", a.Manifest(), a.Subscriptions())
	}
	c := event("in vain", "")
	c.Timeout = time.Millisecond
	if f := mustFail(t, a, c, Down); !strings.Contains(f.Detail, "exit status 9") {
		t.Errorf("detail %q", f.Detail)
	}
	if i := a.Status().Instances[0]; i.PID != 0 || !strings.Contains(strings.Join(i.Stderr, "\n"), "cannot read the model") {
		t.Errorf("%+v", i)
	}
	if err := a.Restart(context.Background()); err == nil || !strings.Contains(err.Error(), "cannot read the model") {
		t.Errorf("an order answers %v", err)
	}
	if err := os.Remove(away); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent", a.Ready)
	mustCall(t, a, event("back", ""))
}

// With nothing said a failed agent is tried again by itself.
func TestFailedIsTriedAgain(t *testing.T) {
	t.Parallel()
	o, away := gated(t)
	o.Backoff.Attempts, o.Backoff.Retry = 2, 200*time.Millisecond
	a := launch(t, o)
	if err := os.WriteFile(away, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fact := event("kill", "die")
	fact.Fact = true
	mustFail(t, a, fact, Died)
	eventually(t, "the failed state", func() bool { return a.Status().Instances[0].State == Failed })
	if err := os.Remove(away); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent", a.Ready)
	mustCall(t, a, event("back", ""))
}

// Whatever happens to events, each place is given back: the self-check of Status agrees with it at every moment.
func TestNoPlaceLeaks(t *testing.T) {
	t.Parallel()
	o, _ := options(t, "")
	o.Spec.Instances, o.Spec.MaxInFlight = 2, 4
	a := launch(t, o)
	texts := []string{"", "never", "die-once", "fault", "twice", "sleep 5ms", "hang-up", "never"}
	var calls sync.WaitGroup
	for i := range 120 {
		calls.Go(func() {
			c := event(fmt.Sprint("e", i), texts[i%len(texts)])
			c.Timeout, c.Fact = 300*time.Millisecond, i%3 == 0
			_, _ = a.Call(context.Background(), c)
		})
		if s := a.Status(); s.Leaked != 0 {
			t.Fatalf("%d places leaked: %+v", s.Leaked, s)
		}
	}
	calls.Wait()
	eventually(t, "the agent", a.Ready)
	if s := a.Status(); s.Leaked != 0 || s.InFlight != 0 || s.Queued != 0 || s.Suspects != 0 || a.bytes.Load() != 0 {
		t.Errorf("left: %+v, %d bytes", s, a.bytes.Load())
	}
	a.mu.Lock()
	a.inFlight++ // a mistake
	a.mu.Unlock()
	if s := a.Status(); s.Leaked != 1 {
		t.Errorf("a place that was never given back is not found: %+v", s)
	}
	a.mu.Lock()
	a.inFlight--
	a.mu.Unlock()
}

// Uploads that nobody asks for are kept for a while, and not in the host's memory.
func TestUploadsTakeLittleMemory(t *testing.T) {
	b := newBodies(&process{o: Options{RunDir: t.TempDir()}})
	defer b.close()
	for i := range maxOpenUploads {
		b.store(strconv.Itoa(i), &agentpb.Chunk{Data: make([]byte, 100<<10)})
	}
	held := 0
	for _, u := range b.uploads {
		held += len(u.mem)
		if u.file != nil {
			defer u.file.Close()
		}
	}
	if len(b.uploads) != maxOpenUploads || held > maxOpenUploads*uploadInMemory || held > 16<<20 {
		t.Errorf("%d uploads have %d octets of memory", len(b.uploads), held)
	}
}
