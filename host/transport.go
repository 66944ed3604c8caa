package host

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/categorizer"
	"github.com/posternmail/postern/host/internal/delivery"
	"github.com/posternmail/postern/host/internal/dsn"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/agentpb"
)

// transport is the path of a message right of the 250 line. It may only deliver, wait, quarantine, drop or
// report. Whatever ends it, the item is in the queue as it was before, and is worked on again.
type transport struct {
	routes   *atomic.Pointer[routes] // exchanged by reloads
	queue    *queue.Queue
	pipeline *pipeline.Pipeline
	ledger   tracking.Ledger
	log      hclog.Logger
	now      func() time.Time
	away     func(agent string) bool // whether a configured agent does not run now; nil: never

	calendar calendar
	working  sync.WaitGroup
}

// start works on what is due until the function it returns is called. That takes nothing more on and lets deliveries
// under way finish, so that none is in doubt, but not longer than its context; then they are cut off.
func (t *transport) start() (stop func(context.Context)) {
	taking, noMore := context.WithCancel(context.Background())
	delivering, cut := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.run(taking, delivering)
	}()
	return func(ctx context.Context) {
		defer cut()
		noMore()
		select {
		case <-done:
		case <-ctx.Done():
			cut()
			<-done
		}
	}
}

// run works on what is due until taking ends, then waits for the work under way.
func (t *transport) run(taking, delivering context.Context) {
	defer t.working.Wait()
	for {
		item, err := t.queue.Due(taking)
		if err != nil {
			return // taking has ended
		}
		t.working.Go(func() { t.work(taking, delivering, item) })
	}
}

// work processes one item. What the host cannot process it keeps, and goes on with the others.
func (t *transport) work(taking, delivering context.Context, item *queue.Item) {
	defer func() {
		if v := recover(); v != nil {
			t.crashed(item, v, debug.Stack())
		}
	}()
	err := t.process(taking, delivering, item)
	switch {
	case err == nil:
		return
	case taking.Err() != nil: // the host ends, or another process takes over
		t.log.Debug("message goes back to the queue", "item", item.ID, "error", err)
	default:
		t.log.Error("message goes back to the queue", "item", item.ID, "error", err)
	}
	t.queue.Return(item)
}

// crashed parks an item at which the host has panicked, as the store has it, with the evidence. One that has left
// the store by then needs nothing more.
func (t *transport) crashed(leased *queue.Item, cause any, stack []byte) {
	t.log.Error("the host failed at a message", "item", leased.ID, "panic", cause, "stack", string(stack))
	item, err := t.queue.Load(leased.ID)
	if errors.Is(err, queue.ErrNotFound) {
		return
	}
	if err == nil {
		item.State, item.Reason, item.Evidence = queue.Parked, fmt.Sprintf("the host failed: %v", cause), string(stack)
		err = t.queue.Record(item)
	}
	if err != nil {
		t.log.Error("message goes back to the queue, since it cannot be parked", "item", leased.ID, "error", err)
		t.queue.Return(leased)
		return
	}
	t.ledger.Write(t.line(tracking.Poison, item))
}

// process takes one item as far as it goes now. This is the whole path.
func (t *transport) process(taking, delivering context.Context, item *queue.Item) error {
	if t.expired(item) {
		return t.expire(item)
	}
	way, plan := t.routes.Load(), t.pipeline.Plan()
	if item.Routed && way.delivery.Knows(item) {
		return t.deliver(delivering, item)
	}
	result, err := way.categorizer.Process(taking, item)
	switch {
	case err != nil:
		return fmt.Errorf("categorizing: %w", err)
	case result.Item == nil:
		return t.queue.Replace(item, result.Children...)
	case item.Origin == queue.OriginRefused && !item.Routed && result.Item.Routed: // no agent has sent it elsewhere
		return t.park(result.Item, "", result.Children...)
	case straight(result) && t.queue.Advance(item.ID, result.Item.Hop):
		return t.deliver(delivering, result.Item)
	}
	err = t.queue.Record(result.Item, result.Children...)
	if result.Wait != "" && t.pipeline.Plan() != plan {
		t.queue.Wake(result.Wait) // the agent was changed while the item was on its way to wait for it
	}
	return err
}

// straight reports whether the item may be delivered without being recorded first: categorizing it again after
// a crash comes to the same.
func straight(r categorizer.Result) bool {
	return r.Item.Routed && r.Item.State == queue.Ready && len(r.Children) == 0
}

// deliver makes one attempt and records what has become of each recipient, with the notifications owed.
func (t *transport) deliver(ctx context.Context, item *queue.Item) error {
	results := t.routes.Load().delivery.Deliver(ctx, item)
	if ctx.Err() != nil && !anyFinal(results) {
		t.queue.Return(item) // the host ends; nothing has happened
		return nil
	}
	now := t.now()
	delivery.Apply(item, results)
	item.Attempts++
	item.Next = t.queue.NextAttempt(item, now)
	if item.Next.Add(-t.calendar.look(now)).After(item.Expires) {
		t.giveUp(item)
	}
	if item.Durable && failed(item) {
		return t.keepFailed(item, results)
	}
	reports := t.reports(item, now)
	settle(item)
	if err := t.queue.Record(item, reports...); err != nil {
		return fmt.Errorf("recording the delivery: %w", err)
	}
	t.track(item, results, reports)
	return nil
}

func anyFinal(results []delivery.Result) bool {
	for _, r := range results {
		if r.State != envelope.Pending || r.InDoubt {
			return true
		}
	}
	return false
}

// settle ends an item of which no recipient is left to be delivered.
func settle(item *queue.Item) {
	item.LastError = ""
	item.State = queue.Done
	for _, r := range item.Mail.Recipients {
		if r.State == envelope.Pending {
			item.State = queue.Ready
			item.LastError = r.Reply.String()
		}
	}
}

// expired reports whether the time of an item is over, by a clock that is believed. One that has waited since before the
// start is tried first.
func (t *transport) expired(item *queue.Item) bool {
	now := t.now()
	return item.Expires.Before(now.Add(-t.calendar.look(now))) && !t.calendar.untried(item.Next)
}

// expire ends an item whose time is over: its pending recipients have failed. What must not vanish is kept.
func (t *transport) expire(item *queue.Item) error {
	now := t.now()
	if item.Durable {
		return t.keepExpired(item)
	}
	before := pending(item)
	t.giveUp(item)
	reports := t.reports(item, now)
	settle(item)
	if err := t.queue.Record(item, reports...); err != nil {
		return fmt.Errorf("recording the expiry: %w", err)
	}
	rec := t.line(tracking.Fail, item)
	rec.Reason = "expired"
	for _, r := range before {
		rec.Recipients = append(rec.Recipients, status(r, "failed"))
	}
	t.ledger.Write(rec)
	t.trackReports(item, reports)
	return nil
}

// giveUp fails the pending recipients (RFC 3463: X.4.7, delivery time expired).
func (t *transport) giveUp(item *queue.Item) {
	for _, r := range pending(item) {
		last := ""
		if r.Remote != "" && !r.Reply.IsZero() { // a next hop's words, not the host's own
			last = "; last: " + r.Reply.String()
		}
		r.State = envelope.Failed
		r.Reply = envelope.Reply{Code: 550, Enhanced: "5.4.7", Text: "Delivery time expired" + last}
	}
}

func pending(item *queue.Item) (out []*envelope.Recipient) {
	for _, r := range item.Mail.Recipients {
		if r.State == envelope.Pending {
			out = append(out, r)
		}
	}
	return out
}

// reports composes the notifications owed after an attempt and marks the recipients they are about.
func (t *transport) reports(item *queue.Item, now time.Time) (out []*queue.Item) {
	way := t.routes.Load()
	late := now.Add(-t.calendar.look(now)).Sub(item.Received) >= way.config.Queue.DelayNotice
	groups := map[dsn.Kind][]*envelope.Recipient{}
	for _, r := range item.Mail.Recipients {
		if kind := news(r, late); kind != "" {
			groups[kind] = append(groups[kind], r)
		}
	}
	for i, kind := range []dsn.Kind{dsn.Failure, dsn.Delay, dsn.Success, dsn.Relayed} {
		if len(groups[kind]) == 0 {
			continue
		}
		var report *queue.Item
		if way.categorizer.ReportsTo(item.Mail.Sender.Address.Domain, kind) {
			report = dsn.Compose(dsn.Request{
				Item: item, Kind: kind, Recipients: groups[kind], Ordinal: i,
				Host: way.config.Host.Name, Postmaster: way.config.Host.Postmaster,
				Now: now, RetryUntil: item.Expires, Expires: now.Add(way.config.Queue.ExpireAfter),
			})
		}
		for _, r := range groups[kind] {
			if kind == dsn.Delay {
				r.Delayed = true
			} else {
				r.Reported = true
			}
		}
		if report != nil {
			out = append(out, report)
		}
	}
	return out
}

// news is what the sender may be told about a recipient that it has not been told yet; "" is nothing.
func news(r *envelope.Recipient, late bool) dsn.Kind {
	switch {
	case r.State == envelope.Pending && late && !r.Delayed:
		return dsn.Delay
	case r.State == envelope.Failed && !r.Reported:
		return dsn.Failure
	case r.State == envelope.Delivered && !r.Reported:
		return dsn.Success
	case r.State == envelope.Relayed && !r.Reported:
		return dsn.Relayed
	}
	return ""
}

// track writes the ledger lines of an attempt and tells the agents that asked for them.
func (t *transport) track(item *queue.Item, results []delivery.Result, reports []*queue.Item) {
	for _, group := range []struct {
		event, status string
		kind          agentpb.EventKind
		is            func(delivery.Result, *envelope.Recipient) bool
	}{
		{tracking.Send, "delivered", agentpb.EventKind_EVENT_KIND_DELIVERED, func(_ delivery.Result, r *envelope.Recipient) bool {
			return r.State == envelope.Delivered || r.State == envelope.Relayed
		}},
		{tracking.Defer, "deferred", agentpb.EventKind_EVENT_KIND_DEFERRED, func(_ delivery.Result, r *envelope.Recipient) bool {
			return r.State == envelope.Pending
		}},
		{tracking.Fail, "failed", agentpb.EventKind_EVENT_KIND_FAILED, func(_ delivery.Result, r *envelope.Recipient) bool {
			return r.State == envelope.Failed
		}},
	} {
		rec := t.line(group.event, item)
		args := &agentpb.DeliveryArguments{Connector: rec.Connector}
		for _, res := range results {
			r := item.Mail.Recipient(res.Index)
			if r == nil || !group.is(res, r) {
				continue
			}
			rec.Recipients = append(rec.Recipients, status(r, group.status))
			rec.Reply, rec.Remote, rec.TLS, rec.Attempt = r.Reply.String(), res.Remote, res.TLS, item.Attempts
			if res.InDoubt {
				rec.Reason = "in doubt: the reply to the final dot was lost, the next hop may have it already"
			}
			args.Remote, args.Tls = res.Remote, res.TLS
			args.Results = append(args.Results, &agentpb.DeliveryResult{Index: uint32(res.Index), Reply: protoReply(r.Reply)})
		}
		if len(rec.Recipients) == 0 {
			continue
		}
		if group.event == tracking.Defer {
			rec.Next = &item.Next
		}
		t.ledger.Write(rec)
		t.tell(item, group.kind, args)
	}
	t.trackReports(item, reports)
}

func (t *transport) trackReports(item *queue.Item, reports []*queue.Item) {
	for _, report := range reports {
		rec := t.line(tracking.DSN, report)
		rec.Parent = item.ID
		rec.Recipients = []tracking.Recipient{{Address: report.Mail.Recipients[0].Address.String()}}
		t.ledger.Write(rec)
		t.tell(item, agentpb.EventKind_EVENT_KIND_REPORTED, &agentpb.DeliveryArguments{ReportId: report.ID})
	}
}

// tell raises a delivery fact.
func (t *transport) tell(item *queue.Item, kind agentpb.EventKind, args *agentpb.DeliveryArguments) {
	if !t.pipeline.Plan().Subscribed(kind) {
		return
	}
	session := item.Session
	conv := t.pipeline.Open(&session, item.Stamps)
	conv.Tell(&pipeline.Event{
		Kind: kind, Mail: item.Mail,
		ID:        fmt.Sprintf("%s %s %d %s", item.ID, pipeline.EventName(kind), item.Attempts, args.ReportId),
		Arguments: &agentpb.Arguments{Event: &agentpb.Arguments_Delivery{Delivery: args}},
	})
	conv.Close(context.Background())
}

// line starts a ledger line about an item.
func (t *transport) line(event string, item *queue.Item) *tracking.Record {
	connector, _ := delivery.SplitHop(item.Hop)
	sender := item.Mail.Sender.Address.String()
	return &tracking.Record{
		Event: event, Session: item.Session.ID, Message: item.Message, Item: item.ID, Parent: item.Parent,
		Connector: connector, Sender: &sender, Size: item.Mail.Size(), Agent: item.Agent, Reason: item.Reason,
	}
}

func status(r *envelope.Recipient, word string) tracking.Recipient {
	return tracking.Recipient{Address: r.Address.String(), Status: word, Reply: r.Reply.String()}
}

func protoReply(r envelope.Reply) *agentpb.Reply {
	return &agentpb.Reply{Code: uint32(r.Code), Enhanced: r.Enhanced, Text: r.Text}
}
