package pipeline

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/agentpb"
)

// apply does what an answer says, or what follows when there is none that can be used.
func (r *run) apply(q *question) {
	r.noteAttempts(q)
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
		r.out.Tarpit = max(r.out.Tarpit, min(milliseconds(v.GetDelayMillis()), r.rule.group.budget(r.conv.pipeline.options.Host.EventBudget)))
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

// undetermined follows the operator's on_failure: the agent lives, but could not judge.
func (r *run) undetermined(q *question, v *agentpb.Verdict) {
	why := "undetermined"
	if v.GetReason() != "" {
		why += ": " + cut(v.GetReason(), maxReason)
	}
	if r.rule.routing && q.onFailure == "defer" {
		// It need not be waited for: it is there. The item is tried again.
		d := Verdict{Decision: Defer, Agent: q.name, Version: q.runs(), Event: q.kind, Reason: why, Data: cut(v.GetData(), maxData)}
		d.Reply = r.reply(Defer, nil)
		r.noteFailed(q, "defer", why)
		r.decide(q, v.GetRecipients(), d)
		return
	}
	r.fail(q, why)
}

// fail follows on_failure of an agent that has not given an answer that can be used.
func (r *run) fail(q *question, why string) {
	v := Verdict{Decision: Defer, Agent: q.name, Version: q.runs(), Event: q.kind, Reason: cut(why, maxReason)}
	poisoned := q.failure != nil && q.failure.Kind == agent.Poison
	switch {
	case poisoned && (r.rule.routing || q.kind == agentpb.EventKind_EVENT_KIND_END_OF_DATA):
		r.out.Poison = q.failure
		r.noteFailed(q, "poison", why)
	case poisoned:
		r.noteFailed(q, "defer", why)
	case q.onFailure == "skip":
		r.noteFailed(q, "skipped", why)
		r.skipped(q)
		return
	case r.rule.routing:
		r.out.WaitFor = q.name
		r.noteFailed(q, "waiting", why)
	case q.onFailure == "hold" && q.kind == agentpb.EventKind_EVENT_KIND_END_OF_DATA:
		if !slices.Contains(r.out.Hold, q.name) {
			r.out.Hold = append(r.out.Hold, q.name)
		}
		r.noteFailed(q, "hold", why)
		return
	case q.onFailure == "reject" && r.rule.verdicts.has(agentpb.VerdictKind_VERDICT_KIND_REJECT):
		v.Decision = Reject
		r.noteFailed(q, "reject", why)
	case q.kind == agentpb.EventKind_EVENT_KIND_RSET:
		r.noteFailed(q, "skipped", why) // RSET is always 250
		return
	default:
		r.noteFailed(q, "defer", why)
	}
	v.Reply = r.failureReply(v.Decision)
	r.end(v)
}

// skipped stamps the message, or the session before there is one, with the agent that did not see it.
func (r *run) skipped(q *question) {
	with := func(old []byte) []byte {
		names := strings.Split(string(old), ",")
		if len(old) == 0 {
			names = nil
		}
		if slices.Contains(names, q.name) {
			return old
		}
		return []byte(strings.Join(append(names, q.name), ","))
	}
	if d := q.draft; d.mail != nil {
		setStamp(&d.mail.Stamps, stampSkipped, with(d.mail.Stamps[stampSkipped]))
		return
	}
	r.conv.setSession(q.kind, stampSkipped, with(r.conv.stamps[stampSkipped]))
}

// close makes the outcome of what the stages left.
func (r *run) close() {
	if r.out.Mails != nil {
		if r.ev.Kind == agentpb.EventKind_EVENT_KIND_END_OF_HEADERS {
			r.keepDecided()
		}
		r.combine()
		r.gather()
	}
	if r.ev.Recipient != nil {
		r.reflect()
	}
	if store := r.conv.pipeline.options.Tables; store != nil && len(r.writes) > 0 && (!r.ev.DryRun || r.conv.pipeline.options.DryRun) {
		store.Apply(r.writes)
	}
}

// reflect shows a rewritten recipient in the arguments, for a caller that reads those.
func (r *run) reflect() {
	if rcpt := r.ev.Arguments.GetRcpt().GetRecipient(); rcpt != nil {
		rcpt.Address = []byte(r.ev.Recipient.Address.String())
		rcpt.Original = []byte(r.ev.Recipient.Original)
	}
}

// combine makes one verdict of those for recipients, where they have become one.
func (r *run) combine() {
	if len(r.settled) == 0 || r.out.Decision != Continue || r.out.WaitFor != "" {
		return
	}
	first := r.settled[r.order[0]]
	// Copies that are kept, each with its own content, are told recipient by recipient.
	one := r.copies() == 1 || !r.rule.routing && first.Decision >= Defer
	if one && r.allSettled() && r.agree(first) {
		r.out.Verdict = first
		return
	}
	r.out.Recipients = maps.Clone(r.settled)
}

// copies counts those that have recipients.
func (r *run) copies() (n int) {
	for _, d := range r.drafts {
		if len(d.mail.Recipients) > 0 {
			n++
		}
	}
	return n
}

// agree reports whether all recipients got the decision of first; right of the line the same verdict, since each
// has a notification of its own.
func (r *run) agree(first Verdict) bool {
	for _, v := range r.settled {
		if v.Decision != first.Decision || r.rule.routing && v != first {
			return false
		}
	}
	return true
}

// gather lists the copies that have recipients, the event's mail first. Where none has, all were removed: the message
// is discarded. A verdict for the whole message finds all recipients in the event's mail.
func (r *run) gather() {
	had := false
	r.out.Mails = r.out.Mails[:0]
	for _, d := range r.drafts {
		if len(d.mail.Recipients) > 0 {
			r.out.Mails = append(r.out.Mails, d.mail)
		}
		had = had || d.epoch > 0
	}
	main := r.ev.Mail
	if len(r.out.Mails) == 0 {
		r.out.Mails = append(r.out.Mails, main)
		if had && r.rule.perRecipient && r.out.Decision == Continue && r.out.WaitFor == "" {
			r.out.Verdict = Verdict{Decision: Discard, Agent: r.removedBy, Event: r.ev.Kind, Reason: "all recipients removed"}
		}
		return
	}
	if first := r.out.Mails[0]; first != main {
		*main = *first
		r.out.Mails[0] = main
	}
	switch {
	case len(r.out.Mails) == 1:
	case r.out.Decision != Continue:
		r.join()
	case r.ev.Kind == agentpb.EventKind_EVENT_KIND_END_OF_HEADERS:
		r.wait()
	}
}

// waitingCopy is a copy that edits for some recipients made at OnEndOfHeaders, when there was no body yet.
type waitingCopy struct {
	mail       *envelope.Mail
	recipients []int
}

// wait keeps the copies until OnEndOfData, and puts all recipients back into the event's mail.
func (r *run) wait() {
	r.conv.waiting = nil
	for _, m := range r.out.Mails[1:] {
		w := waitingCopy{mail: m}
		for _, rcpt := range m.Recipients {
			w.recipients = append(w.recipients, rcpt.Index)
		}
		r.conv.waiting = append(r.conv.waiting, w)
	}
	r.join()
}

// join puts the recipients of all copies into the event's mail.
func (r *run) join() {
	var all []*envelope.Recipient
	for _, m := range r.out.Mails {
		all = append(all, m.Recipients...)
	}
	slices.SortFunc(all, func(a, b *envelope.Recipient) int { return a.Index - b.Index })
	r.ev.Mail.Recipients = all
	r.out.Mails = r.out.Mails[:1]
}

// decided is the verdict of OnEndOfHeaders on a recipient: agents at OnEndOfData are not shown it any more.
type decided struct {
	index   int
	verdict Verdict
}

// keepDecided remembers what OnEndOfHeaders has settled.
func (r *run) keepDecided() {
	r.conv.decided = nil
	for _, index := range r.order {
		r.conv.decided = append(r.conv.decided, decided{index, r.settled[index]})
	}
}

// takeDecided settles it again at OnEndOfData.
func (r *run) takeDecided() {
	for _, d := range r.conv.decided {
		if rcpt := r.ev.Mail.Recipient(d.index); rcpt != nil {
			r.settle(rcpt, d.verdict)
		}
	}
	r.conv.decided = nil
}

// splitWaiting makes the copies of OnEndOfHeaders again, now with the body.
func (r *run) splitWaiting() {
	main := r.drafts[0]
	for _, w := range r.conv.waiting {
		var in []*envelope.Recipient
		for _, rcpt := range main.mail.Recipients {
			if slices.Contains(w.recipients, rcpt.Index) {
				in = append(in, rcpt)
			}
		}
		switch len(in) {
		case 0:
			continue
		case len(main.mail.Recipients):
			main.mail.Header, main.mail.Sender, main.mail.Stamps = w.mail.Header, w.mail.Sender, w.mail.Stamps
			continue
		}
		m := main.mail.Split(in)
		m.Header, m.Sender, m.Stamps = w.mail.Header, w.mail.Sender, w.mail.Stamps
		r.drafts = append(r.drafts, &draft{mail: m})
	}
	r.conv.waiting = nil
}

// reply fills in what a reply of an agent leaves open. Only ASCII goes to a client that has not asked for more
// (RFC 6531 section 3.7.4.2).
func (r *run) reply(d Decision, given *agentpb.Reply) envelope.Reply {
	reply := envelope.Reply{Code: int(given.GetCode()), Enhanced: given.GetEnhanced(), Text: given.GetText()}
	usual := r.usualReply(d)
	if usual.IsZero() {
		return usual
	}
	if reply.Code == 0 {
		reply.Code = usual.Code
		if reply.Enhanced != "" && int(reply.Enhanced[0]-'0') != reply.Code/100 { // only of disconnect
			reply.Code += 100 * (int(reply.Enhanced[0]-'0') - reply.Code/100)
		}
	}
	if reply.Enhanced == "" {
		reply.Enhanced = strconv.Itoa(reply.Code/100) + usual.Enhanced[1:]
	}
	if strings.TrimSpace(reply.Text) == "" {
		reply.Text = usual.Text
	}
	if m := r.ev.Mail; m == nil || !m.Sender.SMTPUTF8 {
		reply.Text = asciiText(reply.Text)
	}
	return reply
}

// usualReply is the host's own neutral reply. OnConnect is answered by a banner: RFC 5321 section 3.1 has 554 for
// a server that takes no mail, section 3.8 has 421 for one that closes.
func (r *run) usualReply(d Decision) envelope.Reply {
	connect := r.ev.Kind == agentpb.EventKind_EVENT_KIND_CONNECT
	switch d {
	case Reject:
		return envelope.Reply{Code: pick(connect, 554, 550), Enhanced: "5.7.1", Text: r.refused()}
	case Defer:
		return envelope.Reply{Code: pick(connect, 421, 451), Enhanced: "4.7.1", Text: "Please try again later"}
	case Disconnect:
		return envelope.Reply{Code: 421, Enhanced: "4.7.0", Text: "Closing connection"}
	}
	return envelope.Reply{}
}

func pick(yes bool, a, b int) int {
	if yes {
		return a
	}
	return b
}

// refused is the text of a refusal that says no more than what was refused.
func (r *run) refused() string {
	switch r.ev.Kind {
	case agentpb.EventKind_EVENT_KIND_CONNECT:
		return "Connection refused"
	case agentpb.EventKind_EVENT_KIND_MAIL:
		return "Sender refused"
	case agentpb.EventKind_EVENT_KIND_RCPT:
		return "Recipient refused"
	}
	if r.rule.perRecipient {
		return "Message refused"
	}
	return "Command refused"
}

// failureReply is what a client reads when an agent has failed. It tells nothing of that.
func (r *run) failureReply(d Decision) envelope.Reply {
	reply := r.usualReply(d)
	if d == Defer {
		reply.Enhanced, reply.Text = "4.3.2", "Service temporarily unavailable, please try again later"
	}
	return reply
}

// asciiText writes a question mark for every character beyond ASCII.
func asciiText(s string) string {
	return strings.Map(func(c rune) rune {
		if c >= 0x80 {
			return '?'
		}
		return c
	}, s)
}

// Steps for the ledger.

// note adds a step of an agent that was not asked, or whose answer was thrown away.
func (r *run) note(q *question, verdict string) {
	r.out.Steps = append(r.out.Steps, tracking.Verdict{
		Agent: q.name, Version: q.version(), Event: eventNames[q.kind], Verdict: verdict, Recipients: r.only(q, nil),
	})
}

// only lists the recipients a step is about, when they are not all of the event.
func (r *run) only(q *question, indexes []uint32) (list []string) {
	if len(indexes) == 0 && !q.partial && len(r.drafts) == 1 && len(r.settled) == 0 || r.ev.Recipient != nil {
		return nil
	}
	for _, rcpt := range q.targets(indexes) {
		list = append(list, rcpt.Address.String())
	}
	return list
}

// noteAttempts adds a step for each attempt that failed before the one that answered.
func (r *run) noteAttempts(q *question) {
	for i, a := range q.attempts {
		if a.Failure == nil {
			continue
		}
		r.out.Steps = append(r.out.Steps, tracking.Verdict{
			Agent: q.name, Version: a.Version, Event: eventNames[q.kind], Verdict: "failed", Micros: a.Took.Microseconds(),
			Attempt: attemptNumber(i), Failure: a.Instance + ": " + a.Failure.Error(),
		})
	}
}

// attemptNumber is what the ledger shows: nothing for the first.
func attemptNumber(i int) int {
	if i == 0 {
		return 0
	}
	return i + 1
}

// noteFailed adds the step that tells what followed a failure.
func (r *run) noteFailed(q *question, verdict, why string) {
	r.out.Steps = append(r.out.Steps, tracking.Verdict{
		Agent: q.name, Version: q.runs(), Event: eventNames[q.kind], Verdict: verdict, Micros: q.took.Microseconds(),
		Recipients: r.only(q, nil), Failure: why,
	})
}

// noteAnswer adds a step for each verdict of an answer, the first with its edits and stamps, and answers with the
// place of the first.
func (r *run) noteAnswer(p *proposal) int {
	first := len(r.out.Steps)
	for _, v := range p.verdicts {
		r.out.Steps = append(r.out.Steps, tracking.Verdict{
			Agent: p.name, Version: p.runs(), Event: eventNames[p.kind], Verdict: verdictWord(v.GetKind()),
			Reply: given(v.GetReply()), Reason: cut(v.GetReason(), maxReason), Data: cut(v.GetData(), maxData),
			Recipients: r.only(p.question, v.GetRecipients()), Micros: p.took.Microseconds(),
			Attempt: attemptNumber(len(p.attempts) - 1),
		})
	}
	s := &r.out.Steps[first]
	s.Edits, s.Stamps = p.editsInWords(), p.stampsInWords()
	return first
}

func (p *proposal) editsInWords() (words []string) {
	for i := range p.changes {
		w := p.changes[i].words
		for n, index := range p.changes[i].recipients {
			rcpt := p.recipient(index)
			if rcpt == nil {
				continue
			}
			w += pickText(n == 0, " for ", ", ") + rcpt.Address.String()
		}
		words = append(words, w)
	}
	for _, w := range p.answer.GetWrites() {
		words = append(words, writeInWords(w))
	}
	for i := range p.spawns {
		words = append(words, "spawn for "+strings.Join(p.spawns[i].Recipients, ", "))
	}
	for _, k := range p.answer.GetCopies() {
		words = append(words, strings.TrimSpace("keep copy "+cut(k.GetReason(), maxReason)))
	}
	return words
}

func pickText(yes bool, a, b string) string {
	if yes {
		return a
	}
	return b
}

func writeInWords(w *agentpb.TableWrite) string {
	op := strings.ToLower(strings.TrimPrefix(w.GetOp().String(), "TABLE_OP_"))
	return op + " " + w.GetTable() + " " + cut(strings.ToValidUTF8(string(w.GetKey()), "?"), 120)
}

func (p *proposal) stampsInWords() (words []string) {
	for _, s := range p.stamps {
		w := s.name + "=" + cut(strings.ToValidUTF8(string(s.value), "?"), 60)
		if s.recipient != nil {
			w += " for " + s.recipient.Address.String()
		}
		words = append(words, w)
	}
	return words
}

// verdictWord is a kind as the ledger writes it: "reject".
func verdictWord(k agentpb.VerdictKind) string {
	if k >= 0 && int(k) < len(verdictWords) {
		return verdictWords[k]
	}
	return "unknown verdict " + strconv.Itoa(int(k))
}

// verdictWords never change.
var verdictWords = [...]string{
	agentpb.VerdictKind_VERDICT_KIND_UNSPECIFIED:  "unspecified",
	agentpb.VerdictKind_VERDICT_KIND_CONTINUE:     "continue",
	agentpb.VerdictKind_VERDICT_KIND_DONE:         "done",
	agentpb.VerdictKind_VERDICT_KIND_REJECT:       "reject",
	agentpb.VerdictKind_VERDICT_KIND_DEFER:        "defer",
	agentpb.VerdictKind_VERDICT_KIND_DISCONNECT:   "disconnect",
	agentpb.VerdictKind_VERDICT_KIND_DISCARD:      "discard",
	agentpb.VerdictKind_VERDICT_KIND_QUARANTINE:   "quarantine",
	agentpb.VerdictKind_VERDICT_KIND_TARPIT:       "tarpit",
	agentpb.VerdictKind_VERDICT_KIND_BYPASS:       "bypass",
	agentpb.VerdictKind_VERDICT_KIND_FAIL:         "fail",
	agentpb.VerdictKind_VERDICT_KIND_UNDETERMINED: "undetermined",
}

// replyText is the complete reply for the ledger, where there is one.
func replyText(complete envelope.Reply, otherwise string) string {
	if complete.IsZero() {
		return otherwise
	}
	return complete.String()
}

func given(reply *agentpb.Reply) string {
	if reply.GetText() == "" && reply.GetCode() == 0 {
		return ""
	}
	return strings.TrimSpace(strconv.Itoa(int(reply.GetCode())) + " " + reply.GetEnhanced() + " " + reply.GetText())
}
