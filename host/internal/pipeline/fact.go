package pipeline

import (
	"context"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Bounds of the facts that wait for one agent, over all sessions. More are dropped and counted.
const (
	maxFacts     = 4096
	maxFactBytes = 32 << 20
)

// factQueue counts the facts of one agent.
type factQueue struct {
	waiting atomic.Int64
	bytes   atomic.Int64
	dropped atomic.Uint64
}

// take makes room for a fact of that many bytes, or counts it as dropped.
func (q *factQueue) take(bytes int64) bool {
	n, held := q.waiting.Add(1), q.bytes.Add(bytes)
	if n <= maxFacts && (held <= maxFactBytes || n == 1) {
		return true
	}
	q.release(bytes)
	q.dropped.Add(1)
	return false
}

func (q *factQueue) release(bytes int64) {
	q.waiting.Add(-1)
	q.bytes.Add(-bytes)
}

// factBytes is what a fact that waits keeps in memory.
func (q *question) factBytes() int64 { return int64(len(q.request.Facts) + len(q.request.Own)) }

func (p *Pipeline) factQueue(agent string) *factQueue {
	if q, ok := p.queues.Load(agent); ok {
		return q.(*factQueue)
	}
	q, _ := p.queues.LoadOrStore(agent, &factQueue{})
	return q.(*factQueue)
}

// DroppedFacts counts, by agent, the facts that were dropped because its queue was full.
func (p *Pipeline) DroppedFacts() map[string]uint64 {
	counts := map[string]uint64{}
	p.queues.Range(func(agent, q any) bool {
		if n := q.(*factQueue).dropped.Load(); n > 0 {
			counts[agent.(string)] = n
		}
		return true
	})
	return counts
}

// factLanes are the facts of one session on their way: a lane for each agent, in which the next fact goes out when
// the last is answered. Decisions of the session wait for the lane of their agent.
type factLanes struct {
	mu         sync.Mutex
	lanes      map[string]*lane
	stamps     []lateStamp // of answers, to be taken over by the session's goroutine
	running    sync.WaitGroup
	disconnect atomic.Pointer[Verdict]
}

// lane is the facts of one agent; idle is closed when none is left.
type lane struct {
	queue []*question
	idle  chan struct{}
}

type lateStamp struct {
	kind  agentpb.EventKind
	name  string
	value []byte
}

// Tell hands a fact to the agents that want it and returns at once. What they need of the session and the mail is
// taken now.
func (c *Conversation) Tell(ev *Event) {
	if !c.plan.Subscribed(ev.Kind) {
		return
	}
	c.takeFacts()
	r := newRun(context.Background(), c, ev, &Outcome{})
	for _, s := range c.plan.events[ev.Kind] {
		for _, a := range s.asks {
			if q := r.prepare(a, r.drafts[0]); !q.skip && q.failure == nil {
				q.dry = ev.DryRun && !c.pipeline.options.DryRun
				c.enqueue(q)
			}
		}
	}
}

// enqueue puts a fact into its agent's lane, and starts the lane when it stands still.
func (c *Conversation) enqueue(q *question) {
	count := c.pipeline.factQueue(q.name)
	if !count.take(q.factBytes()) {
		return
	}
	f := &c.facts
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.lanes[q.name]; l != nil {
		l.queue = append(l.queue, q)
		return
	}
	if f.lanes == nil {
		f.lanes = map[string]*lane{}
	}
	l := &lane{queue: []*question{q}, idle: make(chan struct{})}
	f.lanes[q.name] = l
	f.running.Add(1)
	go c.runLane(q.name, l, count)
}

// runLane sends the facts of a lane one after the other.
func (c *Conversation) runLane(agent string, l *lane, count *factQueue) {
	defer c.facts.running.Done()
	for {
		q := c.facts.next(agent, l)
		if q == nil {
			return
		}
		bytes := q.factBytes()
		q.tell()
		count.release(bytes)
	}
}

// next takes the next fact of a lane, or ends the lane.
func (f *factLanes) next(agent string, l *lane) *question {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(l.queue) == 0 {
		delete(f.lanes, agent)
		close(l.idle)
		return nil
	}
	q := l.queue[0]
	l.queue = l.queue[1:]
	return q
}

// wait returns when the agent has answered the facts of the session, or false when it has not by then.
func (f *factLanes) wait(ctx context.Context, agent string, by time.Time) bool {
	f.mu.Lock()
	l := f.lanes[agent]
	f.mu.Unlock()
	if l == nil {
		return true
	}
	timer := time.NewTimer(time.Until(by))
	defer timer.Stop()
	select {
	case <-l.idle:
		return true
	case <-ctx.Done():
	case <-timer.C:
	}
	return false
}

// tell sends a fact and does what its answer says. Failures are the agent's own: a fact is not retried.
func (q *question) tell() {
	defer func() {
		if v := recover(); v != nil {
			q.conv.pipeline.options.Logger.Error("telling a fact failed", "agent", q.name, "event", eventNames[q.kind],
				"panic", v, "stack", string(debug.Stack()))
		}
	}()
	q.by = time.Now().Add(q.timeout)
	if !q.send(context.Background(), q.by) {
		return
	}
	if q.answer.GetNeed() != nil {
		q.breach, q.broke = "need, at a fact", breachNeed
	}
	var p *proposal
	if q.breach == "" {
		p, q.breach = q.checkFact()
	}
	if q.breach != "" {
		q.conv.pipeline.breach(q)
		return
	}
	q.conv.applyFact(p)
}

// checkFact tests the answer to a fact: verdicts, session stamps and table writes are all it may hold.
func (q *question) checkFact() (*proposal, string) {
	p := &proposal{question: q, verdicts: q.answer.GetVerdicts()}
	what := ""
	if what, q.broke = q.checkAmounts(); what != "" {
		return nil, what
	}
	q.broke = breachVerdict
	if what := q.checkVerdicts(); what != "" {
		return nil, what
	}
	q.broke = breachEdit
	if len(q.answer.GetEdits())+len(q.answer.GetSpawns())+len(q.answer.GetCopies()) > 0 {
		return nil, "edits at " + eventNames[q.kind]
	}
	q.broke = breachStamp
	for _, s := range q.answer.GetStamps() {
		if what := p.stamp(s); what != "" {
			return nil, what
		}
	}
	q.broke = breachWrite
	return p, q.checkWrites()
}

func (c *Conversation) applyFact(p *proposal) {
	if store := c.pipeline.options.Tables; store != nil && len(p.answer.GetWrites()) > 0 && !p.dry {
		var writes []tables.Write
		for i, w := range p.answer.GetWrites() {
			writes = append(writes, p.write(w, writeID(p.request.EventID, p.name, i)))
		}
		store.Apply(writes)
	}
	for _, s := range p.stamps {
		c.facts.stamp(lateStamp{p.kind, s.name, s.value})
	}
	for _, v := range p.verdicts {
		switch {
		case v.GetKind() == agentpb.VerdictKind_VERDICT_KIND_DISCONNECT:
			c.facts.disconnect.CompareAndSwap(nil, p.disconnects(v))
		case v.GetKind() == agentpb.VerdictKind_VERDICT_KIND_DONE && v.GetScope() == agentpb.Scope_SCOPE_SESSION:
			c.facts.stamp(lateStamp{p.kind, p.done, []byte(p.name)})
		}
	}
}

func (f *factLanes) stamp(s lateStamp) {
	f.mu.Lock()
	f.stamps = append(f.stamps, s)
	f.mu.Unlock()
}

// disconnects is the verdict for the next command.
func (p *proposal) disconnects(v *agentpb.Verdict) *Verdict {
	r := &run{ev: &Event{Kind: p.kind}, rule: p.rule}
	return &Verdict{
		Decision: Disconnect, Reply: r.reply(Disconnect, v.GetReply()), Agent: p.name, Version: p.runs(), Event: p.kind,
		Reason: cut(v.GetReason(), maxReason), Data: cut(v.GetData(), maxData),
	}
}

// takeFacts takes over the session stamps that answers to facts have brought.
func (c *Conversation) takeFacts() {
	c.facts.mu.Lock()
	late := c.facts.stamps
	c.facts.stamps = nil
	c.facts.mu.Unlock()
	for _, s := range late {
		if len(s.name)+len(s.value)+stampsSize(c.stamps) <= maxStamps {
			c.setSession(s.kind, s.name, s.value)
		}
	}
}

// Close waits until the facts told have been answered, or ctx ends.
func (c *Conversation) Close(ctx context.Context) {
	defer c.plan.top().pins.Add(-1)
	idle := make(chan struct{})
	go func() {
		c.facts.running.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}
