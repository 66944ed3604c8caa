package host

import (
	"context"
	"fmt"
	"strconv"
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
type occasions struct{ host *Host }

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
	o.host.tables.Apply([]tables.Write{{Table: scheduleTable, Key: spec.Name, Op: tables.Put,
		Value: fmt.Appendf(nil, `{"last":%d}`, now.UnixNano())}})
}

func (o *occasions) lastRun(label string) time.Time {
	row, ok := o.host.tables.Get(scheduleTable, label)
	if !ok {
		return time.Time{}
	}
	var nanos int64
	if _, err := fmt.Sscanf(string(row.Value), `{"last":%d}`, &nanos); err != nil {
		return time.Time{}
	}
	return time.Unix(0, nanos)
}

// raiseSchedule shows the agent the rows of its tables, a page an event.
func (o *occasions) raiseSchedule(ctx context.Context, m *fleet.Member, sub *agentpb.Subscription, last time.Time) error {
	spec := &m.Spec
	rows := o.rows(spec.Name, sub)
	id := "schedule " + spec.Name + " " + strconv.FormatInt(time.Now().UnixMilli(), 36)
	for page := 0; page == 0 || page*schedulePage < len(rows); page++ {
		from, to := page*schedulePage, min((page+1)*schedulePage, len(rows))
		args := &agentpb.ScheduleArguments{Page: uint32(page), Rows: rows[from:to], More: to < len(rows)}
		if !last.IsZero() {
			args.LastUnixNanos = last.UnixNano()
		}
		err := o.raise(ctx, m, &pipeline.Event{
			Kind: agentpb.EventKind_EVENT_KIND_SCHEDULE, ID: fmt.Sprintf("%s %d", id, page),
			Arguments: &agentpb.Arguments{Event: &agentpb.Arguments_Schedule{Schedule: args}},
		}, nil)
		if err != nil {
			return err
		}
	}
	return nil
}

func (o *occasions) rows(label string, sub *agentpb.Subscription) (out []*agentpb.Row) {
	for i, use := range sub.Tables {
		o.host.tables.List(pipeline.TableName(label, use.Table), "", func(r tables.Row) bool {
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

// raise asks one agent alone, and queues the messages it spawns. parent is the item concerned, if any.
func (o *occasions) raise(ctx context.Context, m *fleet.Member, ev *pipeline.Event, parent *queue.Item) error {
	spec := m.Spec
	if parent == nil { // `when` says which mail an agent judges, and there is none
		spec.When = config.When{}
	}
	plan, err := pipeline.NewPlan([]pipeline.Member{{Caller: o.host.metrics.Caller(m.Line), Spec: &spec}})
	if err != nil {
		return err
	}
	alone := pipeline.New(o.host.asking())
	alone.SetPlan(plan)
	if parent == nil {
		parent = &queue.Item{ID: queue.NewID(), Origin: queue.OriginSpawn, Session: envelope.Session{Trust: envelope.OwnServer}}
	}
	session := parent.Session
	conv := alone.Open(&session, parent.Stamps)
	defer conv.Close(ctx)
	out := conv.Raise(ctx, ev)
	if out.WaitFor != "" || out.Decision != pipeline.Continue {
		return fmt.Errorf("%s answered %s %s", m.Spec.Name, out.Decision, out.Reason)
	}
	var items []*queue.Item
	for _, s := range out.Spawns {
		if item := o.host.routes.Load().categorizer.Spawned(parent, s); item != nil {
			items = append(items, item)
		}
	}
	if len(items) == 0 {
		return nil
	}
	return o.host.front.Commit(items...)
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
		err := o.raise(ctx, m, &pipeline.Event{
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
