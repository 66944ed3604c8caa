package host

import (
	"fmt"
	"slices"

	"github.com/posternmail/postern/host/internal/delivery"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/agentpb"
)

// This file is what becomes of mail that must not vanish when a next hop refuses it, or its time is over: agents may send
// it elsewhere, once, and otherwise it is parked for an operator.

// Why mail that must not vanish is not delivered.
const (
	whyRefused = "a next hop refuses it: "
	whyExpired = "expired: "
)

// keepFailed keeps what a next hop has refused of an item after an attempt. The others' results are in the ledger.
func (t *transport) keepFailed(item *queue.Item, results []delivery.Result) error {
	t.tellFailed(item)
	results = slices.DeleteFunc(results, func(r delivery.Result) bool { return r.State == envelope.Pending || r.State == envelope.Failed })
	if t.maySendElsewhere(item) {
		if err := t.sendElsewhere(item, whyRefused); err != nil {
			return err
		}
	} else if err := t.park(item, whyRefused); err != nil {
		return err
	}
	t.track(item, results, nil)
	return nil
}

// keepExpired keeps an item whose time is over.
func (t *transport) keepExpired(item *queue.Item) error {
	t.tellFailed(item)
	if !t.maySendElsewhere(item) {
		return t.park(item, whyExpired)
	}
	t.giveUp(item)
	return t.sendElsewhere(item, whyExpired)
}

// maySendElsewhere reports whether agents are asked what to do with what failed of an item. They are asked once.
func (t *transport) maySendElsewhere(item *queue.Item) bool {
	return item.Routed && item.Origin != queue.OriginRefused && t.pipeline.Plan().Subscribed(agentpb.EventKind_EVENT_KIND_ROUTED)
}

// sendElsewhere puts what failed of an item into one of its own, which goes to OnRouted again. Both are one commit, and
// the attempt made again after a crash makes the same item.
func (t *transport) sendElsewhere(item *queue.Item, why string) error {
	child := t.refused(item, why)
	settle(item)
	if err := t.queue.Record(item, child); err != nil {
		return fmt.Errorf("recording what failed: %w", err)
	}
	rec := t.line(tracking.Defer, child)
	rec.Reason, rec.Next = child.LastError, &child.Next
	for _, r := range child.Mail.Recipients {
		rec.Recipients = append(rec.Recipients, status(r, "deferred"))
	}
	t.ledger.Write(rec)
	return nil
}

// refused is the item of what has failed of item, whose recipients need no notification then. It has the full time again.
func (t *transport) refused(item *queue.Item, why string) *queue.Item {
	now := t.now()
	m := *item.Mail
	m.Stamps, m.Recipients = m.Stamps.Clone(), nil
	child := *item
	for _, r := range item.Mail.Recipients {
		if r.State != envelope.Failed || r.Reported {
			continue
		}
		again := *r
		again.Stamps, again.State, again.NextHop = r.Stamps.Clone(), envelope.Pending, ""
		m.Recipients = append(m.Recipients, &again)
		child.LastError = why + r.Reply.String()
		r.Reported = true
	}
	child.ID, child.Parent = queue.ChildID(item, "refused", item.Attempts), item.ID
	child.Origin, child.Mail = queue.OriginRefused, &m
	child.State, child.Routed, child.Hop, child.Attempts = queue.Ready, false, "", 0
	child.Next, child.Expires = now, now.Add(t.routes.Load().config.Queue.ExpireAfter)
	return &child
}

// tellFailed raises OnFailed for recipients of what is kept. The ledger does not have it as failed.
func (t *transport) tellFailed(item *queue.Item) {
	args := &agentpb.DeliveryArguments{}
	args.Connector, _ = delivery.SplitHop(item.Hop)
	for _, r := range item.Mail.Recipients {
		if r.State == envelope.Failed && !r.Reported || r.State == envelope.Pending && t.expired(item) {
			args.Results = append(args.Results, &agentpb.DeliveryResult{Index: uint32(r.Index), Reply: protoReply(r.Reply)})
		}
	}
	t.tell(item, agentpb.EventKind_EVENT_KIND_FAILED, args)
}

func failed(item *queue.Item) bool {
	return slices.ContainsFunc(item.Mail.Recipients, func(r *envelope.Recipient) bool {
		return r.State == envelope.Failed && !r.Reported
	})
}

// park keeps what must not vanish for an operator.
func (t *transport) park(item *queue.Item, why string, children ...*queue.Item) error {
	for _, r := range item.Mail.Recipients {
		if r.State == envelope.Failed && !r.Reported {
			r.State = envelope.Pending // it is tried again when the operator resumes it
			item.LastError = r.Reply.String()
		}
	}
	item.State, item.Reason = queue.Parked, why+item.LastError
	if err := t.queue.Record(item, children...); err != nil {
		return fmt.Errorf("parking: %w", err)
	}
	t.ledger.Write(t.line(tracking.Poison, item))
	return nil
}
