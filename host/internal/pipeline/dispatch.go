package pipeline

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// run is one event on its way through the stages. Everything but ask.call happens in the goroutine of Raise.
type run struct {
	ctx      context.Context
	conv     *Conversation
	ev       *Event
	out      *Outcome
	rule     *rule
	now      time.Time
	deadline time.Time
	traffic  envelope.Traffic
	classes  classes

	header  []byte // as the event began
	began   *block
	head    []byte // facts but for the envelope
	drafts  []*draft
	stopped bool
	writes  []tables.Write
	settled map[int]Verdict // recipients that do not go on
	order   []int           // of settled
	stages  []stage
	spawned map[string]int // spawns, copies and writes by agent, for their ordinals

	removedBy string // the last agent that removed a recipient
}

// draft is one copy of the event's mail while its agents work on it. mail is nil where no message is concerned.
type draft struct {
	mail     *envelope.Mail
	facts    []byte // head and envelope, shared by all agents until the envelope changes
	epoch    int    // counts changes of what every agent is shown: the envelope and who is settled
	current  *block
	original *block
	from     *draft // while an answer is applied: the copy that it split this one off
}

func newRun(ctx context.Context, c *Conversation, ev *Event, o *Outcome) *run {
	r := &run{ctx: ctx, conv: c, ev: ev, out: o, rule: &rules[ev.Kind], now: time.Now(), drafts: []*draft{{mail: ev.Mail}}}
	if ev.Mail != nil {
		r.header = ev.Mail.Header
	}
	r.deadline = r.now.Add(r.rule.group.budget(c.pipeline.budget()))
	if ev.ID == "" && c.pipeline.options.NewID != nil {
		ev.ID = c.pipeline.options.NewID()
	}
	ev.DryRun = ev.DryRun || c.pipeline.options.DryRun
	ev.fillRecipient()
	r.traffic, r.classes = c.pipeline.trafficOf(c.session, ev)
	if ev.Kind == agentpb.EventKind_EVENT_KIND_END_OF_DATA && ev.Mail != nil {
		r.takeDecided()
		r.splitWaiting()
	}
	return r
}

// fillRecipient finds the recipient of OnRcpt where the caller gave only arguments.
func (ev *Event) fillRecipient() {
	rcpt := ev.Arguments.GetRcpt().GetRecipient()
	if ev.Kind != agentpb.EventKind_EVENT_KIND_RCPT || ev.Recipient != nil || rcpt == nil {
		return
	}
	if ev.Mail != nil {
		ev.Recipient = ev.Mail.Recipient(int(rcpt.Index))
	}
	if ev.Recipient == nil {
		ev.Recipient = &envelope.Recipient{Index: int(rcpt.Index), Address: lenientAddress(rcpt.Address)}
	}
}

// all runs the stages until one agent ends the event.
func (r *run) all(stages []stage) {
	r.stages = stages
	asks := 0
	for i := range stages {
		asks += len(stages[i].asks)
	}
	r.out.Steps = make([]tracking.Verdict, 0, asks)
	for i := range stages {
		if r.stopped {
			return
		}
		if asks := stages[i].asks; len(asks) == 1 {
			r.one(asks[0])
		} else {
			r.stage(asks)
		}
	}
}

// one asks an agent about each copy of the mail, one copy after the other.
func (r *run) one(a *ask) {
	for _, d := range slices.Clip(r.drafts) {
		if r.stopped {
			return
		}
		r.ask(a, d)
	}
}

// ask asks one agent about one copy and applies what it answers. A copy of too many recipients is parted, and the agent
// asked about each part.
func (r *run) ask(a *ask, d *draft) {
	q := r.prepare(a, d)
	if half := r.halve(q); half != nil {
		r.ask(a, d)
		if !r.stopped {
			r.ask(a, half)
		}
		return
	}
	if q.skip {
		r.excuse(q)
		return
	}
	q.call(r.ctx)
	r.apply(q)
}

// excuse notes why an agent that is subscribed was not asked.
func (r *run) excuse(q *question) {
	if q.excuse != "" {
		r.note(q, q.excuse)
	}
}

// stage asks several agents at once and applies their answers in the order of priority. What an answer makes of the
// mail (a copy more, another envelope, a recipient less) an agent behind it in the stage has not seen: it is asked
// again then, so that the outcome equals one by one.
func (r *run) stage(asks []*ask) {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	questions := make([][]*question, len(asks))
	for i, a := range asks {
		questions[i] = r.start(ctx, a)
	}
	for i, a := range asks {
		if r.stopped {
			r.thrownAway(questions[i])
			continue
		}
		r.collect(a, questions[i])
	}
}

// start asks an agent about each copy, without waiting for answers. One that reads what it writes is asked about the
// first copy only: what it says there it is shown with the next.
func (r *run) start(ctx context.Context, a *ask) (list []*question) {
	for i, d := range r.drafts {
		if i > 0 && a.readsItself {
			break
		}
		q := r.prepare(a, d)
		if q.tooLarge() {
			continue // collect asks it, in parts if need be
		}
		list = append(list, q)
		if q.skip {
			continue
		}
		q.answered = make(chan struct{})
		go func() {
			defer close(q.answered)
			defer func() {
				if v := recover(); v != nil {
					q.crash = fmt.Sprintf("%v\n%s", v, debug.Stack())
				}
			}()
			q.call(ctx)
		}()
	}
	return list
}

// collect applies the answers of one agent of a stage.
func (r *run) collect(a *ask, list []*question) {
	for _, d := range slices.Clip(r.drafts) {
		if r.stopped {
			return
		}
		q := questionAbout(d, list)
		switch {
		case q == nil || q.epoch != d.epoch:
			r.ask(a, d)
		case q.skip:
			r.excuse(q)
		default:
			<-q.answered
			if q.crash != "" {
				panic(q.crash) // here it costs one session or parks one message
			}
			r.apply(q)
		}
	}
}

func questionAbout(d *draft, list []*question) *question {
	for _, q := range list {
		if q.draft == d {
			return q
		}
	}
	return nil
}

// thrownAway notes agents that were asked beside one that ended the event.
func (r *run) thrownAway(list []*question) {
	for _, q := range list {
		if !q.skip {
			r.note(q, "not-needed")
		}
	}
}

// question is one agent asked about one copy.
type question struct {
	*ask
	draft    *draft
	epoch    int
	audience []*envelope.Recipient // the recipients that the agent is shown
	partial  bool                  // a bypass keeps other recipients from it
	skip     bool                  // it is not to be asked
	excuse   string                // with skip: for the ledger, "done" or "bypassed"
	dry      bool                  // of a fact: its table writes are not done
	answered chan struct{}         // closed when call has returned, in a stage
	crash    string                // the panic and stack that call ended with, in a stage

	conv    *Conversation
	copied  *copied // for the generation that it is compared with; nil: none
	request agent.Call
	by      time.Time // budget of the event

	// What call found.
	answer   *agentpb.Answer
	uploads  map[string]*envelope.Body
	attempts []agent.Attempt
	ranAs    string // version
	failure  *agent.Failure
	breach   string // what is wrong with the answer
	broke    string // in which part of it
	took     time.Duration
}

// prepare builds what the agent is sent about d, or says that it is not to be asked.
func (r *run) prepare(a *ask, d *draft) *question {
	q := &question{ask: a, draft: d, epoch: d.epoch, conv: r.conv, by: r.deadline}
	if r.ev.Only != "" && r.ev.Only != a.name || !r.wants(a, d.mail) {
		q.skip = true
		return q
	}
	q.excuse = r.excused(q)
	settled := r.rule.perRecipient && d.mail != nil && len(d.mail.Recipients) > 0 && len(q.audience) == 0
	if q.skip = settled || q.excuse != ""; q.skip {
		return q
	}
	if err := r.fill(q); err != nil { // an invalid string in a fact: the agent cannot be told
		q.failure = &agent.Failure{Agent: a.name, Kind: agent.Faulty, Detail: fmt.Sprintf("building the event: %v", err)}
		return q
	}
	q.copied = r.copyFor(q)
	return q
}

// fill builds the request of q.
func (r *run) fill(q *question) error {
	facts, err := r.facts(q)
	if err != nil {
		return err
	}
	own, err := r.own(q)
	if err != nil {
		return err
	}
	q.request = agent.Call{Kind: q.kind, Event: eventNames[q.kind], EventID: r.ev.ID, Facts: facts, Own: own, Fact: q.rule.fact}
	if r.conv.session != nil {
		q.request.Session = r.conv.session.ID
	}
	if m := q.draft.mail; m != nil {
		q.request.Message = m.ID
		q.request.Body, q.request.Prefix = q.body(m)
	}
	return nil
}

// excused says why an agent that is subscribed is not asked: "done" or "bypassed"; "" when it is. It finds the
// audience on the way.
func (r *run) excused(q *question) string {
	session, m := r.conv.stamps, q.draft.mail
	if len(session) > 0 {
		if _, done := session[q.done]; done {
			return "done"
		}
		if q.isBypassed(session) {
			return "bypassed"
		}
	}
	if m == nil {
		return ""
	}
	if len(m.Stamps) > 0 {
		if _, done := m.Stamps[q.done]; done {
			return "done"
		}
		if q.isBypassed(m.Stamps) {
			return "bypassed"
		}
	}
	switch {
	case r.ev.Recipient != nil:
		if q.isBypassed(r.ev.Recipient.Stamps) {
			return "bypassed"
		}
		q.audience = []*envelope.Recipient{r.ev.Recipient}
	case r.rule.perRecipient:
		q.audience, q.partial = r.audience(q.ask, m)
		if q.partial && len(q.audience) == 0 {
			return "bypassed"
		}
	case listsRecipients(q.kind):
		q.audience = m.Recipients
	}
	return ""
}

// isBypassed reports whether another agent's verdict skips this one.
func (m *member) isBypassed(stamps envelope.Stamps) bool {
	by, ok := stamps[m.bypassed]
	return ok && string(by) != m.name
}

// audience is the recipients of m that are not settled and not bypassed; partial tells that some are bypassed.
func (r *run) audience(a *ask, m *envelope.Mail) (list []*envelope.Recipient, partial bool) {
	for i, rcpt := range m.Recipients {
		_, settled := r.settled[rcpt.Index]
		bypassed := !settled && a.isBypassed(rcpt.Stamps)
		partial = partial || bypassed
		switch in := !settled && !bypassed; {
		case in && list != nil:
			list = append(list, rcpt)
		case !in && list == nil:
			list = append(make([]*envelope.Recipient, 0, len(m.Recipients)), m.Recipients[:i]...)
		}
	}
	if list == nil {
		list = m.Recipients
	}
	return list, partial
}

// open is the recipients of m that are not settled.
func (r *run) open(m *envelope.Mail) (list []*envelope.Recipient) {
	for _, rcpt := range m.Recipients {
		if _, settled := r.settled[rcpt.Index]; !settled {
			list = append(list, rcpt)
		}
	}
	return list
}

// facts are those all agents get, and for a part of the recipients an envelope of their own.
func (r *run) facts(q *question) ([]byte, error) {
	d := q.draft
	if d.facts != nil && !q.partial {
		return d.facts, nil
	}
	head, err := r.makeHead()
	if err != nil || d.mail == nil {
		d.facts = head
		return head, err
	}
	recipients := q.audience
	if !listsRecipients(q.kind) {
		recipients = r.accepted(d.mail)
	}
	e := &agentpb.Event{Envelope: envelopeFacts(q.kind, d.mail, recipients)}
	if q.kind == agentpb.EventKind_EVENT_KIND_RCPT {
		e.Arguments = arguments(r.ev)
	}
	facts, err := proto.MarshalOptions{}.MarshalAppend(slices.Clip(head), e)
	if !q.partial && err == nil {
		d.facts = facts
	}
	return facts, err
}

// accepted is the recipients before the one that is asked for.
func (r *run) accepted(m *envelope.Mail) []*envelope.Recipient {
	n := len(m.Recipients)
	if n > 0 && r.ev.Recipient != nil && m.Recipients[n-1].Index == r.ev.Recipient.Index {
		return m.Recipients[:n-1]
	}
	return m.Recipients
}

// makeHead marshals the facts but for the envelope, once an event.
func (r *run) makeHead() ([]byte, error) {
	if r.head != nil {
		return r.head, nil
	}
	head := headFacts(r.ev, r.conv.session, r.traffic, r.now)
	if r.ev.Kind != agentpb.EventKind_EVENT_KIND_RCPT { // there they stand with the envelope: an agent may rewrite them
		head.Arguments = arguments(r.ev)
	}
	if r.ev.Mail != nil && hasMessage(r.ev.Kind, r.ev.Mail) {
		head.Message = messageFacts(r.ev.Kind, r.ev.Mail, r.beganWith())
	}
	wire := make([]byte, 0, 1024)
	var err error
	if r.conv.session != nil {
		if wire, err = r.conv.wire.append(wire, r.conv.session); err != nil {
			return nil, fmt.Errorf("session facts: %w", err)
		}
	}
	if wire, err = (proto.MarshalOptions{}).MarshalAppend(wire, head); err != nil {
		return nil, fmt.Errorf("facts: %w", err)
	}
	r.head = wire
	return wire, nil
}

// view is the header block that a subscription sees.
func (d *draft) view(v agentpb.View) *block {
	if v == agentpb.View_VIEW_ORIGINAL && d.mail.OriginalHeader != nil && !sameBytes(d.mail.OriginalHeader, d.mail.Header) {
		if d.original == nil {
			d.original = parseBlock(d.mail.OriginalHeader)
		}
		return d.original
	}
	if d.current == nil || !sameBytes(d.current.raw, d.mail.Header) {
		d.current = parseBlock(d.mail.Header)
	}
	return d.current
}

// sameBytes reports whether a and b are the same octets in memory.
func sameBytes(a, b []byte) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// own is the agent's own part: headers, stamps and rows.
func (r *run) own(q *question) (own []byte, err error) {
	d := q.draft
	if d.mail != nil && q.header.any() && hasMessage(q.kind, d.mail) {
		own = d.view(q.sub.GetView()).appendWire(nil, q.header)
	}
	e := &agentpb.Event{
		Stamps: q.stamps(r.conv.stamps, d.mail, q.audience),
		Rows:   q.rows(r.conv.pipeline.options.Tables, r.keyFacts(d), q.audience),
		Body:   q.skipped(d.mail),
	}
	if len(e.Stamps) == 0 && len(e.Rows) == 0 && e.Body == nil {
		return own, nil
	}
	own, err = proto.MarshalOptions{}.MarshalAppend(slices.Clip(own), e)
	if err != nil {
		return nil, fmt.Errorf("stamps and rows: %w", err)
	}
	return own, nil
}

func (r *run) keyFacts(d *draft) keyFacts {
	return keyFacts{session: r.conv.session, mail: d.mail, from: func() (string, string) {
		if !hasMessage(r.ev.Kind, r.ev.Mail) {
			return "", ""
		}
		from := r.beganWith().headerFrom()
		return from.Key(), address.ASCIIDomain(from.Domain)
	}}
}

// beganWith is the header block as it was when the event began. Message facts and keys are made of it, so that all
// agents of the event get the same.
func (r *run) beganWith() *block {
	if r.began == nil {
		r.began = parseBlock(r.header)
	}
	return r.began
}

// viewBody is the body that the subscription sees; nil while it is not there.
func (a *ask) viewBody(m *envelope.Mail) *envelope.Body {
	if a.sub.GetView() == agentpb.View_VIEW_ORIGINAL && m.OriginalBody != nil {
		return m.OriginalBody
	}
	return m.Body
}

// body is what the agent is to be sent of the body; prefix 0 is all of it.
func (a *ask) body(m *envelope.Mail) (body *envelope.Body, prefix int64) {
	if a.skipped(m) != nil {
		return nil, 0
	}
	switch a.sub.GetBody().GetMode() {
	case agentpb.BodyMode_BODY_MODE_WHOLE:
		return a.viewBody(m), 0
	case agentpb.BodyMode_BODY_MODE_PREFIX:
		const most = 1 << 20
		if n := min(a.sub.GetBody().GetPrefixBytes(), most); n > 0 {
			return a.viewBody(m), int64(n)
		}
	}
	return nil, 0
}

// skipped is what the agent is told of a body that is larger than it wants; nil when it is not.
func (a *ask) skipped(m *envelope.Mail) *agentpb.Body {
	over := a.sub.GetBody().GetSkipOver()
	if m == nil || over == 0 || a.sub.GetBody().GetMode() == agentpb.BodyMode_BODY_MODE_UNSPECIFIED {
		return nil
	}
	body := a.viewBody(m)
	if body == nil || uint64(body.Size()) <= over {
		return nil
	}
	return &agentpb.Body{Size: uint64(body.Size()), Skipped: true}
}

// call asks the agent, and once more with rows when it needs them. It runs in any goroutine and changes only q.
func (q *question) call(ctx context.Context) {
	if q.failure != nil {
		return
	}
	start := time.Now()
	defer func() { q.took = time.Since(start) }()
	by := start.Add(q.timeout)
	if q.by.Before(by) {
		by = q.by
	}
	if !q.conv.facts.wait(ctx, q.name, by) {
		q.late("an earlier event of the session is not answered yet")
		return
	}
	if !q.send(ctx, by) || q.answer.GetNeed() == nil {
		return
	}
	q.broke = breachNeed
	if q.breach = q.checkNeed(); q.breach != "" {
		return
	}
	rows, err := q.neededRows(q.conv.pipeline.options.Tables, q.answer.Need)
	if err != nil {
		q.breach = fmt.Sprintf("need: %v", err)
		return
	}
	q.request.Own = append(slices.Clip(q.request.Own), rows...)
	if q.send(ctx, by) && q.answer.GetNeed() != nil {
		q.breach = "need a second time"
	}
}

// fetch opens the uploads that the answer names.
func (q *question) fetch(ctx context.Context, result *agent.Result) {
	for _, e := range q.answer.GetEdits() {
		for _, s := range e.GetBody().GetSegments() {
			ticket := s.GetUploaded().GetTicket()
			if ticket == "" || q.uploads[ticket] != nil {
				continue
			}
			body, err := result.Upload(ctx, ticket)
			if err != nil {
				q.breach, q.broke = fmt.Sprintf("edit body: %v", err), breachEdit
				return
			}
			if q.uploads == nil {
				q.uploads = map[string]*envelope.Body{}
			}
			q.uploads[ticket] = body
		}
	}
}

// send does one Call and reports whether there is an answer.
func (q *question) send(ctx context.Context, by time.Time) bool {
	q.request.Timeout = time.Until(by)
	if q.request.Timeout <= 0 {
		q.late("the time for this event is used up")
		return false
	}
	q.request.Extend = min(q.spec.Timeout.Max, time.Until(q.by))
	result, err := q.caller.Call(ctx, &q.request)
	q.ranAs, q.answer = result.Version, result.Answer
	q.attempts = append(q.attempts, result.Attempts...)
	var failure *agent.Failure
	switch {
	case errors.As(err, &failure):
		q.failure = failure
	case err != nil:
		q.failure = &agent.Failure{Agent: q.name, Kind: agent.Died, Detail: err.Error()}
	case q.answer == nil:
		q.failure = &agent.Failure{Agent: q.name, Kind: agent.Faulty, Detail: "no answer"}
	case q.answer.Fault != "":
		q.failure = &agent.Failure{Agent: q.name, Kind: agent.Faulty, Detail: q.answer.Fault}
	}
	if q.failure != nil {
		return false
	}
	q.fetch(ctx, &result)
	return true
}

func (q *question) late(detail string) {
	q.failure = &agent.Failure{Agent: q.name, Kind: agent.Late, Detail: detail}
}
