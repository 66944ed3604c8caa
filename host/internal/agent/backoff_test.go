package agent

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	b := Backoff{}.withDefaults()
	b.Attempts = 1000
	h := history{Backoff: b}
	next := func(uptime time.Duration) time.Duration { return h.next(uptime, false).delay }
	limits := []time.Duration{0, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second}
	for i, limit := range limits {
		if got := next(0); got < limit/2 || got > limit {
			t.Errorf("failure %d: %s, want %s to %s", i+1, got, limit/2, limit)
		}
	}
	for range 20 {
		next(0)
	}
	if got := next(0); got < 30*time.Second || got > time.Minute {
		t.Errorf("after many failures: %s", got)
	}
	if got := next(5 * time.Minute); got < 16*time.Second || got > 32*time.Second {
		t.Errorf("after five healthy minutes: %s", got)
	}
	if got := next(10 * time.Minute); got != 0 {
		t.Errorf("after ten healthy minutes: %s", got)
	}
	for range 5 {
		if got := next(time.Second); got != 0 {
			t.Errorf("killed every second: %s", got)
		}
	}
}

// An instance that fails again and again is tried now and then only, until it lives or somebody orders a start.
func TestAttempts(t *testing.T) {
	h := history{Backoff: Backoff{Attempts: 3, Retry: time.Minute}.withDefaults()}
	for i := range 5 {
		p := h.next(0, false)
		if failed := i >= 3; p.failed != failed || failed && (p.delay < 30*time.Second || p.delay > time.Minute) || p.forever {
			t.Errorf("failure %d: %+v", i+1, p)
		}
	}
	if p := h.next(5*time.Second, false); p.failed {
		t.Errorf("after a healthy life: %+v", p)
	}
	h.forgive()
	if p := h.next(0, false); p.failed || p.delay != 0 {
		t.Errorf("after an order: %+v", p)
	}
	h = history{Backoff: Backoff{Attempts: 1, Retry: -1}.withDefaults()}
	h.next(0, false)
	if p := h.next(0, false); !p.failed || !p.forever {
		t.Errorf("without retries: %+v", p)
	}
	h = history{Backoff: Backoff{Attempts: 3}.withDefaults()}
	for i := range 20 {
		if p := h.next(400*time.Millisecond, true); p.failed || p.delay != 0 {
			t.Errorf("kill %d from outside: %+v", i+1, p)
		}
	}
}
