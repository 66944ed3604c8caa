package host

import (
	"context"
	"errors"
	"time"

	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
)

// sweepEvery is how often the queue is looked over, outside of the path of delivery.
const sweepEvery = time.Minute

// sweep looks for what the path of delivery should never leave behind: messages older than their deadline. It
// also ends the time of what is quarantined.
func (t *transport) sweep(ctx context.Context) {
	t.calendar.look(t.now())
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			t.sweepOnce(t.now())
		}
	}
}

func (t *transport) sweepOnce(now time.Time) {
	wall := now
	now = now.Add(-t.calendar.look(now))
	if t.calendar.setBack() {
		t.hurry(wall)
	}
	for _, e := range t.queue.Overdue(now) {
		if e.State == queue.Quarantined {
			t.endQuarantine(e)
			continue
		}
		t.log.Error("message is older than its deadline allows and is tried at once", "item", e.ID, "hop", e.Hop, "received", e.Received)
		if err := t.queue.Retry(e.ID); err != nil {
			t.log.Error("overdue message cannot be tried", "item", e.ID, "error", err)
		}
	}
	t.wake()
}

// hurry has what is due later tried now: after the clock was set back, later may be years.
func (t *transport) hurry(now time.Time) {
	t.log.Warn("the clock was set back: messages that wait for a time are tried now")
	for _, e := range t.queue.Entries(func(e queue.Entry) bool { return e.State == queue.Ready && e.Next.After(now) }) {
		if err := t.queue.Retry(e.ID); err != nil && !errors.Is(err, queue.ErrState) && !errors.Is(err, queue.ErrNotFound) {
			t.log.Error("message cannot be tried", "item", e.ID, "error", err)
		}
	}
}

// endQuarantine drops a message that nobody has released in time.
func (t *transport) endQuarantine(e queue.Entry) {
	if err := t.queue.Expire(e.ID); err != nil {
		if !errors.Is(err, queue.ErrState) && !errors.Is(err, queue.ErrNotFound) { // an operator was there first
			t.log.Error("quarantined message cannot be removed at the end of its time", "item", e.ID, "error", err)
		}
		return
	}
	sender := e.Sender
	t.ledger.Write(&tracking.Record{Event: tracking.Drop, Message: e.Message, Item: e.ID, Sender: &sender, Size: e.Size,
		Agent: e.Agent, Reason: "quarantine expired: " + e.Reason})
}

// wake has messages tried again that wait for an agent which is not away: it was there and could not judge them, came
// back before they were put aside, or is not configured any more. Nobody else would wake them.
func (t *transport) wake() {
	woken := map[string]bool{}
	for _, e := range t.queue.Entries(func(e queue.Entry) bool { return e.State == queue.Waiting }) {
		if !woken[e.WaitingFor] && (t.away == nil || !t.away(e.WaitingFor)) {
			woken[e.WaitingFor] = true
			t.queue.Wake(e.WaitingFor)
		}
	}
}
