package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestDeathIsNotSeen(t *testing.T) {
	for _, instances := range []int{1, 2} {
		t.Run(fmt.Sprint(instances, " instances"), func(t *testing.T) {
			o, _ := options(t, "")
			o.Spec.Instances = instances
			a := launch(t, o)
			r := mustCall(t, a, event("e", "die-once"))
			if len(r.Attempts) != 2 || r.Attempts[0].Failure.Kind != Died || r.Attempts[1].Failure != nil ||
				!strings.Contains(r.Attempts[0].Failure.Detail, "exit status 3") {
				t.Errorf("attempts %+v, first failure %v", r.Attempts, r.Attempts[0].Failure)
			}
			if !strings.HasPrefix(data(r), "attempt 2") {
				t.Errorf("answer %q", data(r))
			}
			if instances == 2 && r.Attempts[0].Instance == r.Attempts[1].Instance {
				t.Error("the second attempt did not go to the other instance")
			}
			eventually(t, "the restart", func() bool { return a.Ready() && a.Status().Instances[0].State == Up })
		})
	}
}

func TestPoison(t *testing.T) {
	t.Parallel()
	for _, instances := range []int{1, 2} {
		t.Run(fmt.Sprint(instances, " instances"), func(t *testing.T) {
			o, _ := options(t, "")
			o.Spec.Instances = instances
			a := launch(t, o)
			var poisoned, succeeded, retried int
			var mu sync.Mutex
			var calls sync.WaitGroup
			for i := range 32 {
				text := "hold"
				if i == 7 {
					text = fmt.Sprint("die-among ", 32/instances)
				}
				calls.Go(func() {
					r, err := a.Call(context.Background(), event(fmt.Sprint("e", i), text))
					mu.Lock()
					defer mu.Unlock()
					var failure *Failure
					switch {
					case err == nil:
						succeeded++
						retried += len(r.Attempts) - 1
						if len(r.Attempts) > 2 {
							t.Errorf("event %d was in flight at %d deaths", i, len(r.Attempts)-1)
						}
					case errors.As(err, &failure) && failure.Kind == Poison && i == 7:
						poisoned++
						if !strings.Contains(failure.Evidence, "exit status 4") || strings.Count(failure.Evidence, "pid") < 2 {
							t.Errorf("evidence %q", failure.Evidence)
						}
					default:
						t.Errorf("event %d: %v", i, err)
					}
				})
			}
			calls.Wait()
			if poisoned != 1 || succeeded != 31 || retried != 32/instances-1 {
				t.Errorf("%d poisoned, %d succeeded, %d retried", poisoned, succeeded, retried)
			}
		})
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	o, _ := options(t, "")
	a := launch(t, o)
	t.Run("fault", func(t *testing.T) {
		if f := mustFail(t, a, event("e", "fault"), Faulty); f.Detail != "handler failedbadly" {
			t.Errorf("detail %q", f.Detail)
		}
	})
	t.Run("late", func(t *testing.T) {
		c := event("e", "sleep 500ms")
		c.Timeout = 50 * time.Millisecond
		mustFail(t, a, c, Late)
		eventually(t, "the dead letter", func() bool { return a.Status().DeadLetters.Late == 1 })
	})
	t.Run("second answer", func(t *testing.T) {
		mustCall(t, a, event("e", "twice"))
		eventually(t, "the dead letter", func() bool { return a.Status().DeadLetters.Second == 1 })
	})
	t.Run("caller goes", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(20*time.Millisecond, cancel)
		_, err := a.Call(ctx, event("e", "never"))
		var f *Failure
		if !errors.As(err, &f) || f.Kind != Late {
			t.Errorf("got %v", err)
		}
	})
	t.Run("progress", func(t *testing.T) {
		c := event("e", "progress")
		c.Timeout, c.Extend = 250*time.Millisecond, 20*time.Second
		mustCall(t, a, c)
	})
	t.Run("progress is bounded", func(t *testing.T) {
		c := event("e", "progress")
		c.Timeout, c.Extend = 150*time.Millisecond, 250*time.Millisecond
		mustFail(t, a, c, Late)
	})
	t.Run("fact", func(t *testing.T) {
		c := event("e", "die")
		c.Fact = true
		mustFail(t, a, c, Died)
		mustCall(t, a, event("after", ""))
	})
	t.Run("too large", func(t *testing.T) {
		c := event("e", "")
		c.Own = make([]byte, 5<<20)
		mustFail(t, a, c, Faulty)
	})
	t.Run("counts", func(t *testing.T) {
		a.CountBreach("no verdict")
		s := a.Status()
		if s.Failures[Late] != 3 || s.Failures[Faulty] != 2 || s.Failures[Died] != 1 || s.Breaches["no verdict"] != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// An event that was given up may be the one that kills: nobody else is guilty then.
func TestAbandonedEventIsASuspect(t *testing.T) {
	t.Parallel()
	o, _ := options(t, "")
	o.Backoff = Backoff{First: time.Hour, Max: time.Hour}
	a := launch(t, o)
	fact := event("warm", "die")
	fact.Fact = true
	mustFail(t, a, fact, Died) // the first restart is immediate, the next one will not be
	eventually(t, "the restart", a.Ready)
	killer := event("killer", "sleep-then-die 300ms")
	killer.Timeout = 20 * time.Millisecond
	mustFail(t, a, killer, Late)
	mustFail(t, a, event("innocent", "sleep 10s"), Died)
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.records) != 0 {
		t.Errorf("held against the innocent: %v", a.records)
	}
}

// An event that is never answered does not keep suspects waiting once the agent says that it works on nothing.
func TestSuspectAfterAbandonedEvent(t *testing.T) {
	o, _ := options(t, "")
	a := launch(t, o)
	never := event("never", "never")
	never.Timeout = 20 * time.Millisecond
	mustFail(t, a, never, Late)
	var calls sync.WaitGroup
	for i := range 2 {
		calls.Go(func() { mustCall(t, a, event(fmt.Sprint("e", i), "die-once")) })
	}
	calls.Wait()
	mustFail(t, a, never, Late)
	eventually(t, "the stream to be empty", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.slots[0].process != nil && a.slots[0].stream().load() == 0
	})
}

func TestHang(t *testing.T) {
	t.Parallel()
	o, _ := options(t, "")
	o.HangAfter = 400 * time.Millisecond
	a := launch(t, o)
	r := mustCall(t, a, event("e", "stop"))
	if len(r.Attempts) != 2 || r.Attempts[0].Failure.Kind != Hung {
		t.Errorf("attempts %+v", r.Attempts)
	}
	// An agent that works on an event for long, and answers pings meanwhile, does not hang.
	if r := mustCall(t, a, event("long", "sleep 1500ms")); len(r.Attempts) != 1 {
		t.Errorf("attempts %+v", r.Attempts)
	}
}

func TestSleepHoldsNobodyBack(t *testing.T) {
	o, _ := options(t, "")
	a := launch(t, o)
	var sleeper sync.WaitGroup
	sleeper.Go(func() { c := event("sleeper", "gate"); c.Timeout = time.Minute; mustCall(t, a, c) })
	eventually(t, "the sleeper to be in flight", func() bool { return a.Status().InFlight == 1 })
	for i := range 1000 {
		mustCall(t, a, event(fmt.Sprint(i), ""))
	}
	if a.Status().InFlight != 1 {
		t.Error("the sleeper finished first")
	}
	mustCall(t, a, event("waker", "open"))
	sleeper.Wait()
}

func TestBusy(t *testing.T) {
	t.Parallel()
	o, _ := options(t, "")
	o.Spec.MaxInFlight = 2
	a := launch(t, o)
	var calls sync.WaitGroup
	for i := range 2 + 2*queueShare {
		calls.Go(func() { mustCall(t, a, event(fmt.Sprint(i), "sleep 300ms")) })
	}
	eventually(t, "a full queue", func() bool { return a.Status().Queued == 2*queueShare })
	if s := a.Status(); s.InFlight != 2 {
		t.Errorf("%d in flight", s.InFlight)
	}
	mustFail(t, a, event("one too many", ""), Busy)
	calls.Wait()
}

func TestInstancesShare(t *testing.T) {
	t.Parallel()
	o, _ := options(t, "")
	o.Spec.Instances = 3
	a := launch(t, o)
	var calls sync.WaitGroup
	for i := range 30 {
		calls.Go(func() { mustCall(t, a, event(fmt.Sprint(i), "sleep 500ms")) })
	}
	eventually(t, "ten events each", func() bool {
		for _, i := range a.Status().Instances {
			if i.InFlight != 10 {
				return false
			}
		}
		return true
	})
	calls.Wait()
}

// An agent that cannot live fails its events at once, and comes back when it can.
func TestDown(t *testing.T) {
	o, out := options(t, "")
	o.Backoff = Backoff{First: time.Hour, Max: time.Hour}
	changes := make(chan struct{}, 100)
	o.OnChange = func() { changes <- struct{}{} }
	a := launch(t, o)
	c := event("e", "die")
	mustFail(t, a, c, Poison) // of two deaths; the restart after the second is an hour away
	eventually(t, "the backoff", func() bool { return a.Status().Instances[0].State == Waiting })
	f := mustFail(t, a, event("next", ""), Down)
	if !strings.Contains(f.Detail, "exit status 3") || a.Ready() {
		t.Errorf("%v, ready %t", f, a.Ready())
	}
	i := a.Status().Instances[0]
	if i.Next.IsZero() || i.Restarts == 0 || !strings.Contains(strings.Join(i.Stderr, "\n"), "killed by e") {
		t.Errorf("status %+v", i)
	}
	if err := a.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	mustCall(t, a, event("again", ""))
	if said := strings.Join(a.Status().Instances[0].Stderr, "\n"); !strings.Contains(said, "killed by e") || !strings.Contains(said, "that process ended") {
		t.Errorf("the next process hides how the one before ended: %q", said)
	}
	if len(changes) < 5 {
		t.Errorf("%d changes were told", len(changes))
	}
	out.waitFor(t, "agent is lost")
}

func TestRestart(t *testing.T) {
	for _, role := range []string{"", "exclusive", "exclusive state"} {
		t.Run(role, func(t *testing.T) {
			o, _ := options(t, strings.TrimSuffix(role, "exclusive state"))
			o.Spec.Instances = 2
			o.Spec.Sandbox.Exclusive = role == "exclusive state"
			a := launch(t, o)
			before := pids(a)
			stop := make(chan struct{})
			var calls sync.WaitGroup
			for range 8 {
				calls.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							mustCall(t, a, event("e", "sleep 5ms"))
						}
					}
				})
			}
			if err := a.Restart(context.Background()); err != nil {
				t.Error(err)
			}
			close(stop)
			calls.Wait()
			for i, pid := range pids(a) {
				if pid == 0 || pid == before[i] {
					t.Errorf("instance %d still has process %d", i+1, pid)
				}
				eventually(t, "the old process to end", func() bool { return syscall.Kill(before[i], 0) != nil })
			}
			if f := a.Status().Failures; len(f) != 0 {
				t.Errorf("failures %v", f)
			}
		})
	}
}

// An event that killed once and then had to wait for too long is known when it comes again.
func TestGuiltIsRemembered(t *testing.T) {
	t.Parallel()
	o, _ := options(t, "")
	o.Backoff = Backoff{First: time.Hour, Max: time.Hour}
	a := launch(t, o)
	fact := event("warm", "die")
	fact.Fact = true
	mustFail(t, a, fact, Died) // the first restart is immediate, the next one will not be
	mustFail(t, a, event("killer", "die"), Died)
	if err := a.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	f := mustFail(t, a, event("killer", "die"), Poison)
	if strings.Count(f.Evidence, "exit status 3") != 2 {
		t.Errorf("evidence %s", f.Evidence)
	}
}

func pids(a *Agent) []int {
	var all []int
	for _, i := range a.Status().Instances {
		all = append(all, i.PID)
	}
	return all
}

// A process that dies while its successor is being started does not keep its events.
func TestUnderFire(t *testing.T) {
	t.Parallel()
	o, _ := options(t, "")
	o.Spec.Instances = 2
	a := launch(t, o)
	stop := make(chan struct{})
	var calls sync.WaitGroup
	for range 16 {
		calls.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					mustCall(t, a, event("e", "sleep 2ms"))
				}
			}
		})
	}
	for i := range 12 {
		all := pids(a)
		if pid := all[i%2]; pid != 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if i%5 == 0 {
			_ = a.Restart(context.Background())
		}
		time.Sleep(100 * time.Millisecond)
	}
	close(stop)
	calls.Wait()
	if f := a.Status().Failures; len(f) != 0 {
		t.Errorf("failures %v", f)
	}
}

func TestUploads(t *testing.T) {
	t.Parallel()
	o, _ := options(t, "")
	a := launch(t, o)
	for _, n := range []int{0, 10, 1 << 20, 3 << 20} {
		r := mustCall(t, a, event("e", fmt.Sprint("upload ", n)))
		body, err := r.Upload(context.Background(), "u1")
		if err != nil {
			t.Fatal(err)
		}
		octets := make([]byte, n)
		_, _ = body.ReadAt(octets, 0)
		if want := strings.Repeat("abc", n/3+1)[:n]; body.Size() != int64(n) || string(octets) != want {
			t.Errorf("upload of %d octets: %d octets", n, body.Size())
		}
		a.slots[0].process.bodies.mu.Lock()
		clear(a.slots[0].process.bodies.uploads)
		a.slots[0].process.bodies.mu.Unlock()
	}
	large := event("e", fmt.Sprint("upload ", 65<<20))
	large.Timeout = 2 * time.Minute
	r := mustCall(t, a, large)
	if _, err := r.Upload(context.Background(), "u1"); err == nil {
		t.Error("an upload of 65 MiB was taken")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := r.Upload(ctx, "never"); err == nil {
		t.Error("an upload that never came was opened")
	}
}
