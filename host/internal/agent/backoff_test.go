package agent

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	b := Backoff{}.withDefaults()
	h := history{Backoff: b}
	limits := []time.Duration{0, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second}
	for i, limit := range limits {
		if got := h.next(0); got < limit/2 || got > limit {
			t.Errorf("failure %d: %s, want %s to %s", i+1, got, limit/2, limit)
		}
	}
	for range 20 {
		h.next(0)
	}
	if got := h.next(0); got < 30*time.Second || got > time.Minute {
		t.Errorf("after many failures: %s", got)
	}
	if got := h.next(5 * time.Minute); got < 16*time.Second || got > 32*time.Second {
		t.Errorf("after five healthy minutes: %s", got)
	}
	if got := h.next(10 * time.Minute); got != 0 {
		t.Errorf("after ten healthy minutes: %s", got)
	}
	for range 5 {
		if got := h.next(time.Second); got != 0 {
			t.Errorf("killed every second: %s", got)
		}
	}
}
