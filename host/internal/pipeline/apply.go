package pipeline

import (
	"strconv"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/agentpb"
)

// apply does what an answer says, or what follows when there is none that can be used.
func (r *run) apply(q *question) {
	r.noteAttempts(q)
	if q.copied != nil {
		defer r.conv.compare(q.copied) // when it is known whether the answer is a breach
	}
	if q.failure != nil {
		r.fail(q, q.failure.Error())
		return
	}
	var p *proposal
	if q.breach == "" {
		p, q.breach = r.check(q)
	}
	if q.breach != "" {
		r.conv.pipeline.breach(q)
		r.fail(q, "breach: "+q.breach)
		return
	}
	step := r.noteAnswer(p)
	r.applyCopies(p)
	r.applyEdits(p)
	r.applySpawns(p)
	r.applyStamps(p)
	r.applyWrites(p)
	for i, v := range p.verdicts {
		r.verdict(q, v, step+i)
	}
	for _, d := range r.drafts {
		d.from = nil
	}
}

// breach counts an answer that broke the protocol.
func (p *Pipeline) breach(q *question) {
	p.options.Logger.Warn("breach of the agent protocol", "agent", q.name, "version", q.runs(), "event", eventNames[q.kind],
		"session", q.request.Session, "message", q.request.Message, "reason", q.breach)
	if p.options.Breach != nil {
		p.options.Breach(q.name, q.broke)
	}
}

// runs is the version that answered, or that would have.
func (q *question) runs() string {
	if q.ranAs != "" {
		return q.ranAs
	}
	return q.version()
}

// applyCopies keeps copies of the mail as it was before the edits of p, or as it was received.
func (r *run) applyCopies(p *proposal) {
	for _, k := range p.answer.GetCopies() {
		r.out.Copies = append(r.out.Copies, Copy{
			Mail: keep(p.draft.mail, k.GetOriginal()), Agent: p.name, Ordinal: r.ordinal("copy " + p.name),
			Reason: cut(k.GetReason(), maxReason), Original: k.GetOriginal(),
		})
	}
}

func keep(m *envelope.Mail, original bool) *envelope.Mail {
	k := *m
	k.Stamps = m.Stamps.Clone()
	k.Recipients = make([]*envelope.Recipient, len(m.Recipients))
	for i, rcpt := range m.Recipients {
		c := *rcpt
		c.Stamps = rcpt.Stamps.Clone()
		k.Recipients[i] = &c
	}
	if original && m.OriginalHeader != nil {
		k.Header = m.OriginalHeader
	}
	if original && m.OriginalBody != nil {
		k.Body = m.OriginalBody
	}
	return &k
}

func (r *run) applySpawns(p *proposal) {
	for _, s := range p.spawns {
		s.Ordinal = r.ordinal("spawn " + p.name)
		r.out.Spawns = append(r.out.Spawns, s)
	}
}

// ordinal counts the things of one name in the event.
func (r *run) ordinal(of string) int {
	if r.spawned == nil {
		r.spawned = map[string]int{}
	}
	n := r.spawned[of]
	r.spawned[of]++
	return n
}

func (r *run) applyStamps(p *proposal) {
	for _, s := range p.stamps {
		switch {
		case s.scope == agentpb.Scope_SCOPE_SESSION:
			r.conv.setSession(p.kind, s.name, s.value)
		case s.recipient != nil:
			setStamp(&s.recipient.Stamps, s.name, s.value)
		default:
			r.stampMail(p.draft, s.name, s.value)
		}
	}
}

// stampMail writes a message stamp on the copy the agent saw and on those its own edits have just split off.
func (r *run) stampMail(d *draft, name string, value []byte) {
	for _, other := range r.drafts {
		if other == d || other.from == d {
			setStamp(&other.mail.Stamps, name, value)
		}
	}
}

func setStamp(s *envelope.Stamps, name string, value []byte) {
	if *s == nil {
		*s = envelope.Stamps{}
	}
	(*s)[name] = value
}

// applyWrites keeps the table writes until the event closes.
func (r *run) applyWrites(p *proposal) {
	for _, w := range p.answer.GetWrites() {
		r.writes = append(r.writes, p.write(w, writeID(r.ev.ID, p.name, r.ordinal("write "+p.name))))
	}
}

// writeID names a write, so that it is done once however often its event is raised.
func writeID(event, agent string, ordinal int) string {
	return event + " " + agent + " " + strconv.Itoa(ordinal)
}

func (q *question) write(w *agentpb.TableWrite, id string) tables.Write {
	table := TableName(q.name, w.GetTable())
	return tables.Write{
		Table: table, Key: string(w.GetKey()), Op: tables.Op(w.GetOp()), Value: w.GetValue(), Field: w.GetField(),
		Amount: w.GetAmount(), TTL: milliseconds(w.GetTtlMillis()), MaxRows: q.maxRows[table], EventID: id,
	}
}

// verdict does what one verdict says. step is its place in the ledger's steps.
func (r *run) verdict(q *question, v *agentpb.Verdict, step int) {
	switch v.GetKind() {
	case agentpb.VerdictKind_VERDICT_KIND_CONTINUE:
	case agentpb.VerdictKind_VERDICT_KIND_TARPIT:
		r.out.Tarpit = max(r.out.Tarpit, min(milliseconds(v.GetDelayMillis()), r.rule.group.budget(r.conv.pipeline.budget())))
	case agentpb.VerdictKind_VERDICT_KIND_DONE:
		r.mark(q, v, q.done, q.name)
	case agentpb.VerdictKind_VERDICT_KIND_BYPASS:
		r.mark(q, v, stampBypass+categoryName(v.GetCategory()), q.name)
	case agentpb.VerdictKind_VERDICT_KIND_UNDETERMINED:
		r.undetermined(q, v)
	default:
		decided := r.decided(q, v)
		r.out.Steps[step].Reply = replyText(decided.Reply, r.out.Steps[step].Reply)
		r.decide(q, v.GetRecipients(), decided)
	}
}

// mark writes a stamp of the host's own: done and bypass last as long as their scope, whatever process reads them.
// The first agent that says so stands in it.
func (r *run) mark(q *question, v *agentpb.Verdict, name, value string) {
	put := func(s *envelope.Stamps) {
		if (*s)[name] == nil {
			setStamp(s, name, []byte(value))
		}
	}
	switch {
	case v.GetScope() == agentpb.Scope_SCOPE_SESSION:
		if r.conv.stamps[name] == nil {
			r.conv.setSession(q.kind, name, []byte(value))
		}
	case v.GetScope() == agentpb.Scope_SCOPE_RECIPIENT, len(v.GetRecipients()) > 0, q.partial:
		for _, rcpt := range q.targets(v.GetRecipients()) {
			put(&rcpt.Stamps)
		}
	default:
		for _, d := range r.drafts {
			if d == q.draft || d.from == q.draft {
				put(&d.mail.Stamps)
			}
		}
	}
}

// targets are the recipients meant: those named, or all that the agent was shown.
func (q *question) targets(indexes []uint32) []*envelope.Recipient {
	if len(indexes) == 0 {
		return q.audience
	}
	list := make([]*envelope.Recipient, 0, len(indexes))
	for _, i := range indexes {
		if rcpt := q.recipient(i); rcpt != nil {
			list = append(list, rcpt)
		}
	}
	return list
}

// decided turns a verdict of the protocol into one of the host.
func (r *run) decided(q *question, v *agentpb.Verdict) Verdict {
	d := Verdict{
		Agent: q.name, Version: q.runs(), Event: q.kind, Reason: cut(v.GetReason(), maxReason), Data: cut(v.GetData(), maxData),
	}
	switch v.GetKind() {
	case agentpb.VerdictKind_VERDICT_KIND_REJECT, agentpb.VerdictKind_VERDICT_KIND_FAIL:
		d.Decision = Reject
	case agentpb.VerdictKind_VERDICT_KIND_DEFER:
		d.Decision, d.Delay = Defer, milliseconds(v.GetDelayMillis())
	case agentpb.VerdictKind_VERDICT_KIND_DISCONNECT:
		d.Decision = Disconnect
	case agentpb.VerdictKind_VERDICT_KIND_DISCARD:
		d.Decision = Discard
	case agentpb.VerdictKind_VERDICT_KIND_QUARANTINE:
		d.Decision = Quarantine
	}
	if !r.rule.routing {
		d.Delay = 0
	}
	d.Reply = r.reply(d.Decision, v.GetReply())
	return d
}

// decide ends the way of the recipients named, or of all that the agent was shown.
func (r *run) decide(q *question, indexes []uint32, v Verdict) {
	whole := !r.rule.perRecipient || q.draft.mail == nil || len(q.audience) == 0 || v.Decision == Disconnect
	// Any defer at the end of data is a 4xx for the whole message.
	if whole || v.Decision == Defer && !r.rule.routing {
		r.end(v)
		return
	}
	for _, rcpt := range q.targets(indexes) {
		r.settle(rcpt, v)
	}
}

// end ends the event for everybody.
func (r *run) end(v Verdict) {
	r.out.Verdict = v
	r.stopped = true
}

// settle ends the way of one recipient, and the event when it was the last one.
func (r *run) settle(rcpt *envelope.Recipient, v Verdict) {
	d := r.holder(rcpt)
	if _, already := r.settled[rcpt.Index]; already || d == nil {
		return
	}
	if r.settled == nil {
		r.settled = map[int]Verdict{}
	}
	r.settled[rcpt.Index] = v
	r.order = append(r.order, rcpt.Index)
	d.changed()
	r.stopped = r.allSettled()
}

func (r *run) allSettled() bool {
	for _, d := range r.drafts {
		if len(r.open(d.mail)) > 0 {
			return false
		}
	}
	return true
}
