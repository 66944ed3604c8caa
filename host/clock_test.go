package host

import (
	"sync"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
)

func TestCalendar(t *testing.T) {
	now, elapsed := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC), time.Duration(0)
	p := &calendar{elapsed: func() time.Duration { return elapsed }}
	for i, step := range []struct{ wall, mono, ahead time.Duration }{
		{0, 0, 0},
		{time.Minute, time.Minute, 0},
		{3 * time.Minute, time.Minute, 0}, // set by two minutes
		{240 * time.Hour, time.Minute, 240*time.Hour - time.Minute}, // a leap
		{30 * time.Minute, 30 * time.Minute, 240*time.Hour - time.Minute},
		{-240 * time.Hour, time.Minute, 0}, // taken back
		{240 * time.Hour, time.Minute, 240*time.Hour - time.Minute},
		{59 * time.Minute, 59 * time.Minute, 240*time.Hour - time.Minute},
		{time.Minute, time.Minute, 0}, // believed
		{-240 * time.Hour, time.Minute, 0},
	} {
		now, elapsed = now.Add(step.wall), elapsed+step.mono
		if got := p.look(now); got != step.ahead {
			t.Errorf("step %d: %s ahead, want %s", i, got, step.ahead)
		}
	}
}

// hands of a clock that a test moves.
type hands struct {
	mu      sync.Mutex
	wall    time.Time
	elapsed time.Duration
}

func (h *hands) now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wall
}

func (h *hands) mono() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.elapsed
}

func (h *hands) move(wall, elapsed time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wall, h.elapsed = h.wall.Add(wall), h.elapsed+elapsed
}

// clock gives r one before there is anything to do.
func (r *right) clock(wall time.Time) *hands {
	h := &hands{wall: wall}
	r.now, r.calendar.elapsed = h.now, h.mono
	r.sweepOnce(h.now())
	return h
}

// A leap of the clock expires nothing at once, neither a message nor what is in quarantine; when it has lasted it does.
func TestClockThatLeapsExpiresNothingAtOnce(t *testing.T) {
	r := newRight(t, nil, func(c *config.Config) { c.SendConnectors[0].DropDirectory = "/proc/nowhere" })
	h := r.clock(time.Now())
	item, kept := r.message("to@far.test"), r.message("kept@far.test")
	item.Expires, kept.Expires = h.now().Add(48*time.Hour), h.now().Add(24*time.Hour)
	kept.State = queue.Quarantined
	r.commit(item, kept)
	tries := func(n int) func() bool { return func() bool { return len(r.ledger.of(tracking.Defer)) >= n } }
	r.eventually("a first attempt", tries(1))
	h.move(10*365*24*time.Hour, 0)
	for n := range 2 {
		r.sweepOnce(h.now())
		_ = r.queue.Retry(item.ID) // the sweep may have done so
		r.eventually("another attempt", tries(2+n))
	}
	if len(r.queue.Entries(nil)) != 2 || len(r.ledger.of(tracking.Fail))+len(r.ledger.of(tracking.Drop)) > 0 {
		t.Fatalf("after the leap: %+v", r.ledger.list)
	}
	h.move(-10*365*24*time.Hour, time.Minute) // it was wrong: nothing waits for that time to come
	r.sweepOnce(h.now())
	r.eventually("another attempt", tries(4))
	h.move(10*365*24*time.Hour, time.Minute)
	r.sweepOnce(h.now())
	h.move(believedAfter, believedAfter)
	r.sweepOnce(h.now())
	_ = r.queue.Retry(item.ID)
	r.eventually("the end of both", func() bool { return len(r.ledger.of(tracking.Fail)) == 1 && len(r.ledger.of(tracking.Drop)) == 1 })
}

// A host that was not running for longer than messages may wait tries them once more.
func TestOldMessageIsTriedOnceAfterTheStart(t *testing.T) {
	for _, reachable := range []bool{true, false} {
		r := newRight(t, nil, func(c *config.Config) {
			if !reachable {
				c.SendConnectors[0].DropDirectory = "/proc/nowhere"
			}
		})
		h := r.clock(time.Now())
		item := r.message("to@far.test")
		item.Received, item.Next, item.Expires = h.now().Add(-72*time.Hour), h.now().Add(-71*time.Hour), h.now().Add(-24*time.Hour)
		r.commit(item)
		r.eventually("the end of it", func() bool { return len(r.queue.Entries(func(e queue.Entry) bool { return e.ID == item.ID })) == 0 })
		r.stop()
		if sent, failed := len(r.ledger.of(tracking.Send)), r.ledger.of(tracking.Fail); (sent == 1) != reachable || (len(failed) == 1) == reachable ||
			!reachable && failed[0].Attempt != 1 {
			t.Errorf("reachable %v: %+v", reachable, r.ledger.list)
		}
	}
}
