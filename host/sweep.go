package host

import (
	"context"
	"time"

	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
)

// sweepEvery is how often the queue is looked over, outside of the path of delivery.
const sweepEvery = time.Minute

// sweep looks for what the path of delivery should never leave behind: messages older than their deadline. It
// also ends the time of what is quarantined.
func (t *transport) sweep(ctx context.Context) {
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
	for _, e := range t.queue.Overdue(now) {
		t.log.Error("message is older than its deadline allows and is tried at once", "item", e.ID, "hop", e.Hop, "received", e.Received)
		if err := t.queue.Retry(e.ID); err != nil {
			t.log.Error("overdue message cannot be tried", "item", e.ID, "error", err)
		}
	}
	keep := t.config.Quarantine.ExpireAfter
	old := t.queue.Entries(func(e queue.Entry) bool {
		return e.State == queue.Quarantined && now.Sub(e.Received) > keep
	})
	for _, e := range old {
		if err := t.queue.Remove(e.ID); err != nil {
			t.log.Error("quarantined message cannot be removed at the end of its time", "item", e.ID, "error", err)
			continue
		}
		sender := e.Sender
		t.ledger.Write(&tracking.Record{Event: tracking.Drop, Message: e.Message, Item: e.ID, Sender: &sender, Size: e.Size,
			Agent: e.Agent, Reason: "quarantine expired: " + e.Reason})
	}
}
