package host

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/agentpb"
)

// This file raises the events that come with no session: OnSchedule and OnReleased.

// scheduleTable holds when each agent's schedule last ran to its end, by label.
const scheduleTable = "schedule"

// schedulePage is how many rows an OnSchedule event shows at once.
const schedulePage = 500

// runSchedules raises OnSchedule for every agent that asks for it, until ctx ends.
func (f *fleet) runSchedules(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for _, m := range f.all() {
				f.runSchedule(ctx, m, now)
			}
		}
	}
}

func (f *fleet) runSchedule(ctx context.Context, m *member, now time.Time) {
	spec := &m.spec
	if m.line == nil || !m.line.Agent().Ready() {
		return
	}
	sub := subscription(m.line, agentpb.EventKind_EVENT_KIND_SCHEDULE)
	if sub == nil {
		return
	}
	every, err := time.ParseDuration(sub.Every)
	if err != nil || every <= 0 {
		return // Configure has refused it; see the agent's diagnostics
	}
	last := f.lastRun(spec.Name)
	if now.Sub(last) < every {
		return
	}
	if err := f.raiseSchedule(ctx, m, sub, last); err != nil {
		f.host.Logger.Error("schedule goes on at its next turn", "agent", spec.Name, "error", err)
	}
	f.host.tables.Apply([]tables.Write{{Table: scheduleTable, Key: spec.Name, Op: tables.Put,
		Value: fmt.Appendf(nil, `{"last":%d}`, now.UnixNano())}})
}

func (f *fleet) lastRun(label string) time.Time {
	row, ok := f.host.tables.Get(scheduleTable, label)
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
func (f *fleet) raiseSchedule(ctx context.Context, m *member, sub *agentpb.Subscription, last time.Time) error {
	spec := &m.spec
	rows := f.rows(spec.Name, sub)
	id := "schedule " + spec.Name + " " + strconv.FormatInt(time.Now().UnixMilli(), 36)
	for page := 0; page == 0 || page*schedulePage < len(rows); page++ {
		from, to := page*schedulePage, min((page+1)*schedulePage, len(rows))
		args := &agentpb.ScheduleArguments{Page: uint32(page), Rows: rows[from:to], More: to < len(rows)}
		if !last.IsZero() {
			args.LastUnixNanos = last.UnixNano()
		}
		err := f.raise(ctx, m, &pipeline.Event{
			Kind: agentpb.EventKind_EVENT_KIND_SCHEDULE, ID: fmt.Sprintf("%s %d", id, page),
			Arguments: &agentpb.Arguments{Event: &agentpb.Arguments_Schedule{Schedule: args}},
		}, nil)
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *fleet) rows(label string, sub *agentpb.Subscription) (out []*agentpb.Row) {
	for i, use := range sub.Tables {
		f.host.tables.List(pipeline.TableName(label, use.Table), "", func(r tables.Row) bool {
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
func (f *fleet) raise(ctx context.Context, m *member, ev *pipeline.Event, parent *queue.Item) error {
	spec := m.spec
	if parent == nil { // `when` says which mail an agent judges, and there is none
		spec.When = config.When{}
	}
	plan, err := pipeline.NewPlan([]pipeline.Member{{Caller: f.host.metrics.Caller(m.line), Spec: &spec}})
	if err != nil {
		return err
	}
	alone := pipeline.New(f.host.pipelineOptions())
	alone.SetPlan(plan)
	if parent == nil {
		parent = &queue.Item{ID: queue.NewID(), Origin: queue.OriginSpawn, Session: envelope.Session{Trust: envelope.OwnServer}}
	}
	session := parent.Session
	conv := alone.Open(&session, parent.Stamps)
	defer conv.Close(ctx)
	out := conv.Raise(ctx, ev)
	if out.WaitFor != "" || out.Decision != pipeline.Continue {
		return fmt.Errorf("%s answered %s %s", m.spec.Name, out.Decision, out.Reason)
	}
	var items []*queue.Item
	for _, s := range out.Spawns {
		if item := f.host.routes.Load().categorizer.Spawned(parent, s); item != nil {
			items = append(items, item)
		}
	}
	if len(items) == 0 {
		return nil
	}
	return f.host.front.Commit(items...)
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
	agents *fleet
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
		go r.agents.released(context.Background(), item)
	}
	return nil
}

// released raises OnReleased at every agent that asks for it. The message goes on whatever they answer.
func (f *fleet) released(ctx context.Context, item *queue.Item) {
	for _, m := range f.all() {
		if m.line == nil || subscription(m.line, agentpb.EventKind_EVENT_KIND_RELEASED) == nil {
			continue
		}
		err := f.raise(ctx, m, &pipeline.Event{
			Kind: agentpb.EventKind_EVENT_KIND_RELEASED, ID: item.ID + " OnReleased", Mail: item.Mail,
			Arguments: &agentpb.Arguments{Event: &agentpb.Arguments_Released{Released: &agentpb.ReleasedArguments{
				Agent: item.Agent, Reason: item.Reason, By: "operator", Verdict: "wanted",
			}}},
		}, item)
		if err != nil {
			f.host.Logger.Warn("agent did not learn of a release", "agent", m.spec.Name, "item", item.ID, "error", err)
		}
	}
}
