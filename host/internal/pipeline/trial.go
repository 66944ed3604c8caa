package pipeline

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Trial is a candidate beside a member. For the sessions that it takes, a canary's candidate is asked in place of the
// member and the member is shown copies of the events; a shadow's candidate is shown the copies. Copies are dry runs:
// what is answered to them has no effect, and is compared.
type Trial struct {
	// Tag names the candidate in the stamps that a session leaves for the events right of the 250 line.
	Tag       string
	Candidate Caller
	// Current is the member without what counts its calls: a copy is not one of them.
	Current Caller
	Canary  bool
	// Takes reports whether a session is in the candidate's share. It answers the same each time.
	Takes func(session string) bool
	// Copies is the pipeline of the copies: all its events are dry runs, and its tables an overlay.
	Copies *Pipeline
	// Compared is told of every event that both have seen. It is called in any goroutine.
	Compared func(Comparison)
	// Missed is told of a copy that could not be sent: too many are on their way. It is called in any goroutine.
	Missed func()
}

// Comparison is one event that two generations of an agent have seen.
type Comparison struct {
	Event     string
	Session   string
	Message   string
	Current   Judgement
	Candidate Judgement
	// SameEdits tells that the effects beside the verdict were the same, too.
	SameEdits bool
}

// Judgement is what one generation made of an event.
type Judgement struct {
	Verdict string // in words; "" when it failed
	Failure string // "" when it answered
	Took    time.Duration
}

// stampTrial begins the session stamps that say which generation a session belongs to while an agent is on trial.
const stampTrial = "trial."

// notTaken is the value of such a stamp for sessions that are not in the candidate's share.
const notTaken = "-"

// maxCopies is how many copies of events may wait in one session for one agent. More are left out.
const maxCopies = 64

// choose is the plan of a session: p itself, or a variant with the candidates that take it. It stamps the session, so
// that the events of its messages right of the 250 line go to the same generations.
func (c *Conversation) choose(p *Plan) *Plan {
	if !p.trials {
		return p
	}
	var key strings.Builder
	for i := range p.members {
		if t := p.members[i].Trial; t != nil {
			key.WriteString(pickText(c.taken(p.members[i].Caller.Name(), t), "1", "0"))
		}
	}
	return p.variant(key.String())
}

// taken reports whether the session belongs to a candidate, as its stamp says or else by its id.
func (c *Conversation) taken(agent string, t *Trial) bool {
	name := stampTrial + agent
	if value, known := c.stamps[name]; known {
		return string(value) == t.Tag
	}
	if c.session == nil || c.session.ID == "" {
		return false
	}
	taken := t.Takes(c.session.ID)
	// The id of a session stays the same when it is encrypted: it may be stamped as at OnConnect.
	c.setSession(agentpb.EventKind_EVENT_KIND_CONNECT, name, []byte(pickText(taken, t.Tag, notTaken)))
	return taken
}

// variant is the plan with the candidates that key has a 1 for.
func (p *Plan) variant(key string) *Plan {
	if !strings.Contains(key, "1") {
		return p
	}
	if v, ok := p.variants.Load(key); ok {
		return v.(*Plan)
	}
	members, n := slices.Clone(p.members), 0
	for i := range members {
		t := members[i].Trial
		if t == nil {
			continue
		}
		if key[n] == '1' {
			members[i].copies = t.Candidate
			if t.Canary {
				members[i].Caller, members[i].copies = t.Candidate, t.Current
			}
		}
		n++
	}
	v, err := NewPlan(members)
	if err != nil { // the names and priorities are those of p
		return p
	}
	v.root, v.trials = p, false
	made, _ := p.variants.LoadOrStore(key, v)
	return made.(*Plan)
}

// top is the plan that a variant was made of; others are it themselves.
func (p *Plan) top() *Plan {
	if p.root != nil {
		return p.root
	}
	return p
}

// copyAsks gives the asks of a member those of the generation that is shown copies of its events.
func copyAsks(asks []*ask, m Member) {
	if m.copies == nil {
		return
	}
	other := newMember(Member{Caller: m.copies, Spec: m.Spec})
	for _, b := range other.asks(m.copies.Subscriptions()) {
		for _, a := range asks {
			if a.kind == b.kind && !a.rule.fact {
				a.copy, a.trial = b, m.Trial
			}
		}
	}
}

// copied is an event as the generation that is compared is to see it: nothing in it changes with the mail.
type copied struct {
	ask      *ask
	run      *run
	audience []int // indexes
	partial  bool
	live     *question
	stamps   envelope.Stamps // of the session
}

// copyFor takes what the compared generation is shown, before the answer to q changes the mail. nil: q is not compared.
func (r *run) copyFor(q *question) *copied {
	if q.copy == nil || r.ev.DryRun {
		return nil
	}
	ev := *r.ev
	ev.DryRun = true
	if ev.Arguments != nil {
		ev.Arguments = proto.Clone(ev.Arguments).(*agentpb.Arguments)
	}
	c := &copied{ask: q.copy, live: q, partial: q.partial, stamps: r.conv.stamps.Clone()}
	c.run = &run{ctx: context.Background(), ev: &ev, out: &Outcome{}, rule: r.rule, now: r.now, traffic: r.traffic, classes: r.classes, header: r.header}
	d := &draft{}
	if q.draft.mail != nil {
		d.mail = keep(q.draft.mail, false)
		ev.Mail = d.mail
	}
	c.run.drafts = []*draft{d}
	for _, rcpt := range q.audience {
		c.audience = append(c.audience, rcpt.Index)
	}
	if ev.Recipient != nil {
		rcpt := *ev.Recipient
		rcpt.Stamps = rcpt.Stamps.Clone()
		ev.Recipient = &rcpt
	}
	return c
}

// copyLanes are the copies of one session on their way, a lane for each agent.
type copyLanes struct {
	mu    sync.Mutex
	lanes map[string]*copyLane
}

// copyLane keeps what the compared generation has stamped in the session: it sees its own stamps, not those of the
// generation that counts.
type copyLane struct {
	queue   []*copied
	running bool
	conv    *Conversation
	message string
	session envelope.Stamps         // own ones of the session
	mail    envelope.Stamps         // own ones of the message
	rcpts   map[int]envelope.Stamps // own ones of its recipients
}

// compare sends a copy of the event whose answer has come.
func (c *Conversation) compare(cp *copied) {
	c.copies.mu.Lock()
	defer c.copies.mu.Unlock()
	name := cp.live.name
	l := c.copies.lanes[name]
	if l == nil {
		var session *envelope.Session
		if c.session != nil {
			s := *c.session
			session = &s
		}
		l = &copyLane{conv: &Conversation{pipeline: cp.live.trial.Copies, plan: &Plan{}, session: session}}
		if c.copies.lanes == nil {
			c.copies.lanes = map[string]*copyLane{}
		}
		c.copies.lanes[name] = l
	}
	if len(l.queue) >= maxCopies {
		cp.live.trial.Missed()
		return
	}
	if c.session != nil {
		s := *c.session
		cp.run.conv = &Conversation{pipeline: l.conv.pipeline, plan: l.conv.plan, session: &s}
	} else {
		cp.run.conv = l.conv
	}
	l.queue = append(l.queue, cp)
	if !l.running {
		l.running = true
		go c.copies.send(l)
	}
}

// send sends the copies of a lane one after the other.
func (f *copyLanes) send(l *copyLane) {
	for {
		f.mu.Lock()
		if len(l.queue) == 0 {
			l.running = false
			f.mu.Unlock()
			return
		}
		cp := l.queue[0]
		l.queue = l.queue[1:]
		f.mu.Unlock()
		l.show(cp)
	}
}

// show asks the compared generation and reports how its answer compares.
func (l *copyLane) show(cp *copied) {
	defer func() {
		if v := recover(); v != nil {
			cp.run.conv.pipeline.options.Logger.Error("comparing two generations failed", "agent", cp.live.name, "panic", v, "stack", string(debug.Stack()))
		}
	}()
	r := cp.run
	r.deadline = time.Now().Add(cp.ask.timeout)
	l.overlay(cp)
	q := &question{ask: cp.ask, draft: r.drafts[0], conv: r.conv, by: r.deadline, partial: cp.partial}
	for _, index := range cp.audience {
		if m := r.drafts[0].mail; m != nil && m.Recipient(index) != nil {
			q.audience = append(q.audience, m.Recipient(index))
		} else if r.ev.Recipient != nil && r.ev.Recipient.Index == index {
			q.audience = append(q.audience, r.ev.Recipient)
		}
	}
	if err := r.fill(q); err != nil {
		q.failure = &agent.Failure{Agent: q.name, Kind: agent.Faulty, Detail: err.Error()}
	}
	q.call(r.ctx)
	l.keep(r, q)
	report(cp.live, q, r)
}

// overlay puts the compared generation's own stamps in place of those that the other one has left.
func (l *copyLane) overlay(cp *copied) {
	r, own := cp.run, cp.ask.name+"."
	if m := r.ev.Mail; m != nil && m.ID != l.message {
		l.message, l.mail, l.rcpts = m.ID, nil, nil
	}
	r.conv.stamps = overlaid(cp.stamps, l.session, own)
	if m := r.ev.Mail; m != nil {
		m.Stamps = overlaid(m.Stamps, l.mail, own)
		for _, rcpt := range m.Recipients {
			rcpt.Stamps = overlaid(rcpt.Stamps, l.rcpts[rcpt.Index], own)
		}
	}
}

func overlaid(stamps, by envelope.Stamps, own string) envelope.Stamps {
	stamps = stamps.Clone()
	maps.DeleteFunc(stamps, func(name string, _ []byte) bool { return strings.HasPrefix(name, own) })
	if stamps == nil && len(by) > 0 {
		stamps = envelope.Stamps{}
	}
	maps.Copy(stamps, by)
	return stamps
}

// keep checks the answer to a copy, and keeps its stamps and rows for the copies behind it.
func (l *copyLane) keep(r *run, q *question) {
	if q.failure != nil || q.breach != "" {
		return
	}
	var p *proposal
	if p, q.breach = r.check(q); q.breach != "" {
		return
	}
	for _, s := range p.stamps {
		switch {
		case s.recipient != nil:
			if l.rcpts == nil {
				l.rcpts = map[int]envelope.Stamps{}
			}
			with := l.rcpts[s.recipient.Index]
			setStamp(&with, s.name, s.value)
			l.rcpts[s.recipient.Index] = with
		case s.scope == agentpb.Scope_SCOPE_SESSION:
			setStamp(&l.session, s.name, s.value)
		default:
			setStamp(&l.mail, s.name, s.value)
		}
	}
	r.applyWrites(p)
	if store := r.conv.pipeline.options.Tables; store != nil && len(r.writes) > 0 {
		store.Apply(r.writes)
	}
}

// report tells the trial how two generations compare at an event.
func report(live, copy *question, r *run) {
	c := Comparison{
		Event: eventNames[live.kind], Session: live.request.Session, Message: live.request.Message,
		Current: judgement(live), Candidate: judgement(copy),
		SameEdits: live.answer == nil || copy.answer == nil || bytes.Equal(effects(live.answer), effects(copy.answer)),
	}
	if live.trial.Canary {
		c.Current, c.Candidate = c.Candidate, c.Current
	}
	live.trial.Compared(c)
}

func judgement(q *question) Judgement {
	j := Judgement{Took: q.took}
	switch {
	case q.failure != nil:
		j.Failure = string(q.failure.Kind) + ": " + cut(q.failure.Detail, maxReason)
	case q.breach != "":
		j.Failure = "breach: " + cut(q.breach, maxReason)
	default:
		j.Verdict = verdictsInWords(q.answer)
	}
	return j
}

// verdictsInWords is what an answer decides, in an order of its own.
func verdictsInWords(a *agentpb.Answer) string {
	var words []string
	for _, v := range a.GetVerdicts() {
		w := verdictWord(v.GetKind())
		if code := v.GetReply().GetCode(); code != 0 {
			w += fmt.Sprintf(" %d %s", code, v.GetReply().GetEnhanced())
		}
		if v.GetKind() == agentpb.VerdictKind_VERDICT_KIND_BYPASS {
			w += " " + categoryName(v.GetCategory())
		}
		if len(v.GetRecipients()) > 0 {
			w += fmt.Sprintf(" for %v", v.GetRecipients())
		}
		words = append(words, strings.TrimSpace(w))
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}

// effects are what an answer does beside its verdicts, as octets that can be compared.
func effects(a *agentpb.Answer) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&agentpb.Answer{
		Edits: a.GetEdits(), Stamps: a.GetStamps(), Writes: a.GetWrites(), Spawns: a.GetSpawns(), Copies: a.GetCopies(),
	})
	if err != nil {
		return nil
	}
	return b
}
