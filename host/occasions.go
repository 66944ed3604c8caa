package host

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/fleet"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/agentpb"
)

// This file is what agents are asked apart from mail on its way: OnSchedule and OnReleased.

// occasions raises the events that come with no session.
type occasions struct {
	host *Host // whose agents are asked
	asks

	held []heldMail // that agents made at OnSchedule
}

// asks puts one event to one agent, and keeps what the answer says: first the mail, then the table writes.
type asks struct {
	options func() pipeline.Options
	spawned func(parent *queue.Item, s pipeline.Spawn) *queue.Item // nil for mail to nobody
	commit  func(...*queue.Item) error
	rows    tables.Store
}

// newOccasions asks the agents of a host.
func newOccasions(h *Host) *occasions {
	return &occasions{host: h, asks: asks{
		options: h.asking,
		spawned: func(parent *queue.Item, s pipeline.Spawn) *queue.Item {
			return h.routes.Load().categorizer.Spawned(parent, s)
		},
		commit: func(items ...*queue.Item) error { return h.front.Commit(items...) },
		rows:   h.tables,
	}}
}

// heldMail is not due before the table writes that go with it are on disk: a turn that a crash cuts off is made again, and
// finds its mail in the queue.
type heldMail struct {
	ids   []string
	until time.Time
}

// How long mail of OnSchedule is held: until its table writes are on disk; after a crash until its time comes, which leaves
// the next start enough of it to make the turn again.
const (
	heldFor    = 2 * time.Second
	heldAtMost = 10 * time.Minute
)

// scheduleTable holds when each agent's schedule last ran to its end, by label.
const scheduleTable = "schedule"

// schedulePage is how many rows an OnSchedule event shows at once.
const schedulePage = 500

// run raises OnSchedule for every agent that asks for it, until ctx ends.
func (o *occasions) run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			o.letGo(now)
			for _, m := range o.host.agents.Members() {
				o.runSchedule(ctx, m, now)
			}
		}
	}
}

func (o *occasions) runSchedule(ctx context.Context, m *fleet.Member, now time.Time) {
	spec := &m.Spec
	if m.Line == nil || !m.Line.Agent().Ready() {
		return
	}
	sub := subscription(m.Line, agentpb.EventKind_EVENT_KIND_SCHEDULE)
	if sub == nil {
		return
	}
	every, err := time.ParseDuration(sub.Every)
	if err != nil || every <= 0 {
		return // Configure has refused it; see the agent's diagnostics
	}
	last := o.lastRun(spec.Name)
	if now.Sub(last) < every {
		return
	}
	if err := o.raiseSchedule(ctx, m, sub, last); err != nil {
		o.host.Logger.Error("schedule goes on at its next turn", "agent", spec.Name, "error", err)
	}
	o.rows.Apply([]tables.Write{{Table: scheduleTable, Key: spec.Name, Op: tables.Put,
		Value: fmt.Appendf(nil, `{"last":%d}`, now.UnixNano())}})
}

func (o *occasions) lastRun(label string) time.Time {
	row, ok := o.rows.Get(scheduleTable, label)
	if !ok {
		return time.Time{}
	}
	var nanos int64
	if _, err := fmt.Sscanf(string(row.Value), `{"last":%d}`, &nanos); err != nil {
		return time.Time{}
	}
	return time.Unix(0, nanos)
}

// letGo makes mail due whose table writes are on disk.
func (o *occasions) letGo(now time.Time) {
	o.held = slices.DeleteFunc(o.held, func(h heldMail) bool {
		if now.Before(h.until) {
			return false
		}
		if q := o.host.queue.Load(); q != nil {
			if err := q.Retry(h.ids...); err != nil { // an operator was faster; otherwise it comes due by itself
				o.host.Logger.Debug("mail of a schedule", "error", err)
			}
		}
		return true
	})
}

// raiseSchedule shows the agent the rows of its tables, a page an event.
func (o *occasions) raiseSchedule(ctx context.Context, m *fleet.Member, sub *agentpb.Subscription, last time.Time) error {
	spec := &m.Spec
	rows := o.shown(spec.Name, sub)
	for page := 0; page == 0 || page*schedulePage < len(rows); page++ {
		from, to := page*schedulePage, min((page+1)*schedulePage, len(rows))
		args := &agentpb.ScheduleArguments{Page: uint32(page), Rows: rows[from:to], More: to < len(rows)}
		if !last.IsZero() {
			args.LastUnixNanos = last.UnixNano()
		}
		turn := turnID(spec.Name, last, args)
		items, err := o.raise(ctx, m, &pipeline.Event{
			Kind: agentpb.EventKind_EVENT_KIND_SCHEDULE, ID: fmt.Sprintf("schedule %s %s %d", spec.Name, turn, page),
			Arguments: &agentpb.Arguments{Event: &agentpb.Arguments_Schedule{Schedule: args}},
		}, &queue.Item{ID: turn, Origin: queue.OriginSpawn, Session: envelope.Session{Trust: envelope.OwnServer}})
		if err != nil {
			return err
		}
		if len(items) > 0 {
			o.held = append(o.held, heldMail{idsOf(items), time.Now().Add(heldFor)})
		}
	}
	return nil
}

func idsOf(items []*queue.Item) (ids []string) {
	for _, item := range items {
		ids = append(ids, item.ID)
	}
	return ids
}

// turnID names a turn of a schedule by when the last one was and by what the agent is shown: a turn that a crash has cut
// off, and that is made again, is the same, and so is the mail that comes of it.
func turnID(label string, last time.Time, shown *agentpb.ScheduleArguments) string {
	at, sum := last, sha256.New()
	fmt.Fprintf(sum, "%s\x00%d\x00", label, shown.Page)
	for _, row := range shown.Rows {
		fmt.Fprintf(sum, "%q %q %q %d\n", row.Table, row.Key, row.Value, row.CreatedUnixNanos)
		if created := time.Unix(0, row.CreatedUnixNanos); last.IsZero() && created.After(at) {
			at = created
		}
	}
	if at.IsZero() {
		return queue.NewID() // the first turn, and nothing to go by
	}
	return queue.DerivedID(at, string(sum.Sum(nil)))
}

// shown are the rows of the agent's tables.
func (o *occasions) shown(label string, sub *agentpb.Subscription) (out []*agentpb.Row) {
	for i, use := range sub.Tables {
		o.rows.List(pipeline.TableName(label, use.Table), "", func(r tables.Row) bool {
			row := &agentpb.Row{Table: use.Table, Key: []byte(r.Key), Found: true, Value: r.Value, CreatedUnixNanos: r.Created.UnixNano(), Use: uint32(i)}
			if !r.Expires.IsZero() {
				row.ExpiresUnixNanos = r.Expires.UnixNano()
			}
			out = append(out, row)
			return true
		})
	}
	return out
}

// raise asks an agent of the host, and answers with the messages that it made. parent is the item concerned, or the turn of
// a schedule.
func (o *occasions) raise(ctx context.Context, m *fleet.Member, ev *pipeline.Event, parent *queue.Item) ([]*queue.Item, error) {
	spec := m.Spec
	if ev.Mail == nil { // `when` says which mail an agent judges, and there is none
		spec.When = config.When{}
	}
	return o.ask(ctx, pipeline.Member{Caller: o.host.metrics.Caller(m.Line), Spec: &spec}, ev, parent)
}

// ask one agent alone, queue the messages it spawns, and then write to the tables what it says: of mail that is not queued
// the tables know nothing. A crash in between costs the writes.
func (a *asks) ask(ctx context.Context, m pipeline.Member, ev *pipeline.Event, parent *queue.Item) ([]*queue.Item, error) {
	plan, err := pipeline.NewPlan([]pipeline.Member{m})
	if err != nil {
		return nil, err
	}
	alone := pipeline.New(a.options())
	alone.SetPlan(plan)
	session := parent.Session
	conv := alone.Open(&session, parent.Stamps)
	defer conv.Close(ctx)
	ev.HoldWrites = true
	out := conv.Raise(ctx, ev)
	if out.WaitFor != "" || out.Decision != pipeline.Continue {
		return nil, fmt.Errorf("%s answered %s %s", m.Spec.Name, out.Decision, out.Reason)
	}
	var items []*queue.Item
	for _, s := range out.Spawns {
		if item := a.spawned(parent, s); item != nil {
			if ev.Kind == agentpb.EventKind_EVENT_KIND_SCHEDULE {
				item.Next = item.Next.Add(heldAtMost)
			}
			items = append(items, item)
		}
	}
	if len(items) > 0 {
		if err := a.commit(items...); err != nil {
			return nil, fmt.Errorf("queueing what %s made: %w", m.Spec.Name, err)
		}
	}
	a.rows.Apply(out.Writes)
	return items, nil
}

func subscription(a pipeline.Caller, kind agentpb.EventKind) *agentpb.Subscription {
	for _, s := range a.Subscriptions() {
		if s.Event == kind {
			return s
		}
	}
	return nil
}

// releasing is the queue as the control socket drives it: a release from quarantine is told to the agents.
type releasing struct {
	*queue.Queue
	occasions *occasions
}

// Release implements admin.QueueControl.
func (r releasing) Release(id string) error {
	item, err := r.Queue.Load(id)
	if err != nil {
		return err
	}
	if err := r.Queue.Release(id); err != nil {
		return err
	}
	if item.State == queue.Quarantined {
		go r.occasions.released(context.Background(), item)
	}
	return nil
}

// released raises OnReleased at every agent that asks for it. The message goes on whatever they answer.
func (o *occasions) released(ctx context.Context, item *queue.Item) {
	for _, m := range o.host.agents.Members() {
		if m.Line == nil || subscription(m.Line, agentpb.EventKind_EVENT_KIND_RELEASED) == nil {
			continue
		}
		_, err := o.raise(ctx, m, &pipeline.Event{
			Kind: agentpb.EventKind_EVENT_KIND_RELEASED, ID: item.ID + " OnReleased", Mail: item.Mail,
			Arguments: &agentpb.Arguments{Event: &agentpb.Arguments_Released{Released: &agentpb.ReleasedArguments{
				Agent: item.Agent, Reason: item.Reason, By: "operator", Verdict: "wanted",
			}}},
		}, item)
		if err != nil {
			o.host.Logger.Warn("agent did not learn of a release", "agent", m.Spec.Name, "item", item.ID, "error", err)
		}
	}
}
