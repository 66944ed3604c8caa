package pipeline

import (
	"fmt"
	"slices"
	"strings"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// change is an edit that has passed the checks.
type change struct {
	recipients []uint32 // it is for; empty: all the agent was shown
	whole      bool     // it changes what all recipients of a copy share, so that a copy is needed for some of them
	words      string   // for the ledger
	apply      func(w *working)
}

// working is a copy of the mail while an answer is applied to it.
type working struct {
	run    *run
	by     *question
	draft  *draft
	header headerEdits
}

// checkEdits tests the edits and copies of an answer and makes changes of them.
func (r *run) checkEdits(p *proposal) string {
	for _, e := range p.answer.GetEdits() {
		kind := editKind(e)
		if kind == editNone {
			return "an edit of a kind that is not known"
		}
		if why := p.refuses(kind); why != "" {
			return fmt.Sprintf("edit %s %s", editWord(e), why)
		}
		if what := p.checkIndexes(e.GetRecipients()); what != "" {
			return fmt.Sprintf("edit %s %s", editWord(e), what)
		}
		c, what := r.change(p, e)
		if what != "" {
			return what
		}
		c.recipients = e.GetRecipients()
		if e.GetAddRecipient() != nil { // once, not once a copy
			c.whole = len(c.recipients) > 0
		}
		p.changes = append(p.changes, c)
	}
	if len(p.answer.GetCopies()) > 0 {
		if why := p.refuses(editCopy); why != "" {
			return "keep_copy " + why
		}
	}
	if what := p.checkGrowth(); what != "" {
		return what
	}
	return checkBodyEdits(p.answer.GetEdits())
}

// editWord is the name of the edit's field: "add_header".
func editWord(e *agentpb.Edit) string {
	if o := e.ProtoReflect().WhichOneof(e.ProtoReflect().Descriptor().Oneofs().Get(0)); o != nil {
		return string(o.Name())
	}
	return "unknown"
}

// checkBodyEdits tests that no recipient gets two new bodies.
func checkBodyEdits(list []*agentpb.Edit) string {
	seen, all := map[uint32]bool{}, false
	for _, e := range list {
		if e.GetBody() == nil {
			continue
		}
		if all || len(e.Recipients) == 0 && len(seen) > 0 {
			return "two edits of one body"
		}
		all = len(e.Recipients) == 0
		for _, i := range e.Recipients {
			if seen[i] {
				return "two edits of one body"
			}
			seen[i] = true
		}
	}
	return ""
}

// change tests one edit.
func (r *run) change(p *proposal, e *agentpb.Edit) (change, string) {
	switch e := e.GetEdit().(type) {
	case *agentpb.Edit_AddHeader:
		return p.addHeader(e.AddHeader)
	case *agentpb.Edit_ReplaceHeader:
		return p.replaceHeader(e.ReplaceHeader)
	case *agentpb.Edit_RemoveHeader:
		return p.removeHeader(e.RemoveHeader)
	case *agentpb.Edit_Body:
		return r.replaceBody(p, e.Body)
	case *agentpb.Edit_RewriteSender:
		return p.rewriteSender(e.RewriteSender)
	case *agentpb.Edit_AddRecipient:
		return p.addRecipient(e.AddRecipient)
	}
	return p.recipientChange(e)
}

// recipientChange tests the edits of single recipients.
func (p *proposal) recipientChange(e *agentpb.Edit) (change, string) {
	recipients := e.GetRecipients()
	switch e := e.GetEdit().(type) {
	case *agentpb.Edit_RemoveRecipient:
		return p.removeRecipient(e.RemoveRecipient)
	case *agentpb.Edit_RewriteRecipient:
		return p.rewriteRecipient(e.RewriteRecipient)
	case *agentpb.Edit_Expand:
		return p.expand(e.Expand)
	case *agentpb.Edit_Route:
		return p.route(e.Route, recipients)
	}
	if len(recipients) == 0 { // Fork
		return change{}, "edit fork names no recipients"
	}
	return change{whole: true, words: "fork", apply: func(*working) {}}, ""
}

func (p *proposal) addHeader(e *agentpb.AddHeader) (change, string) {
	what := checkFieldName(e.GetName())
	if what == "" {
		what = checkFieldValue(e.GetName(), e.GetValue())
	}
	line := makeField(e.GetName(), e.GetValue())
	return change{whole: true, words: "add header " + string(e.GetName()), apply: func(w *working) {
		if e.GetLast() {
			w.header.last = append(w.header.last, line)
			return
		}
		w.header.first = append(w.header.first, line)
	}}, what
}

func (p *proposal) replaceHeader(e *agentpb.ReplaceHeader) (change, string) {
	index, what := p.field(e.GetIndex(), e.GetName())
	if what == "" {
		what = checkFieldValue(e.GetName(), e.GetValue())
	}
	if what != "" {
		return change{}, what
	}
	c := change{whole: true, words: "replace header " + string(e.GetName())}
	if index < 0 {
		return p.gone(c), ""
	}
	line := makeField(p.draft.view(agentpb.View_VIEW_CURRENT).name(index), e.GetValue())
	c.apply = func(w *working) { w.header.replace(index, line) }
	return c, ""
}

func (p *proposal) removeHeader(e *agentpb.RemoveHeader) (change, string) {
	c := change{whole: true, words: "remove header " + string(e.GetName())}
	if e.Index != nil {
		index, what := p.field(e.GetIndex(), e.GetName())
		if what != "" || index < 0 {
			return p.gone(c), what
		}
		c.apply = func(w *working) { w.header.replace(index, nil) }
		return c, ""
	}
	if what := checkFieldName(e.GetName()); what != "" {
		return change{}, what
	}
	b := p.draft.view(agentpb.View_VIEW_CURRENT)
	name := string(e.GetName())
	c.apply = func(w *working) {
		for i := range b.fields {
			if equalName(b.name(i), name) {
				w.header.replace(i, nil)
			}
		}
	}
	return c, ""
}

// gone is a change of a field that an earlier agent has changed or removed already: there is nothing to do.
func (p *proposal) gone(c change) change {
	c.words += " (not there any more)"
	c.whole = false
	c.apply = func(*working) {}
	return c
}

// field finds the field that the agent saw at index in the block as it is now: -1 when it is not there any more.
func (p *proposal) field(index uint32, name []byte) (int, string) {
	seen := p.draft.view(p.sub.GetView())
	if uint64(index) >= uint64(len(seen.fields)) {
		return 0, fmt.Sprintf("header index %d of %d", index, len(seen.fields))
	}
	if i := int(index); !equalName(seen.name(i), strings.TrimRight(string(name), " \t")) {
		return 0, fmt.Sprintf("header %d is %q, not %q", index, cut(string(seen.name(i)), 40), cut(string(name), 40))
	}
	current := p.draft.view(agentpb.View_VIEW_CURRENT)
	if seen == current {
		return int(index), ""
	}
	return sameField(seen, current, int(index)), ""
}

// sameField finds field i of from in to: the one with the same octets, and as many of the kind before it.
func sameField(from, to *block, i int) int {
	text := func(b *block, i int) string { return string(b.raw[b.fields[i].start:b.fields[i].end]) }
	want, before := text(from, i), 0
	for k := range i {
		if text(from, k) == want {
			before++
		}
	}
	for k := range to.fields {
		if text(to, k) != want {
			continue
		}
		if before == 0 {
			return k
		}
		before--
	}
	return -1
}

func (p *proposal) rewriteSender(e *agentpb.RewriteSender) (change, string) {
	m, err := address.Parse(string(e.GetAddress()))
	if err != nil || m.IsPostmaster() {
		return change{}, fmt.Sprintf("sender address %q", cut(string(e.GetAddress()), 80))
	}
	return change{whole: p.rule.perRecipient, words: fmt.Sprintf("rewrite sender to <%s>", m), apply: func(w *working) {
		w.draft.mail.Sender.Address = m
		w.draft.changed()
	}}, ""
}

func (p *proposal) addRecipient(e *agentpb.AddRecipient) (change, string) {
	m, what := parseAddress(e.GetAddress())
	notify, ok := parseNotify(e.GetNotify())
	if what == "" && !ok {
		what = fmt.Sprintf("notify %q of a recipient", cut(strings.Join(e.GetNotify(), ","), 80))
	}
	return change{whole: true, words: fmt.Sprintf("add recipient <%s>", m), apply: func(w *working) {
		w.add(&envelope.Recipient{Address: m, Notify: notify})
	}}, what
}

// add gives r an index that no copy of the mail has.
func (w *working) add(r *envelope.Recipient) {
	next := 0
	for _, d := range w.run.drafts {
		next = max(next, d.mail.NextIndex)
	}
	w.draft.mail.NextIndex = next
	w.draft.mail.AddRecipient(r)
	for _, d := range w.run.drafts {
		d.mail.NextIndex = next + 1
	}
	w.draft.changed()
}

func (p *proposal) removeRecipient(e *agentpb.RemoveRecipient) (change, string) {
	rcpt := p.recipient(e.GetIndex())
	if rcpt == nil {
		return change{}, fmt.Sprintf("edit remove_recipient names recipient %d, which does not exist", e.GetIndex())
	}
	if what := checkReplyClass(e.GetReport(), 5); what != "" {
		return change{}, "edit remove_recipient " + what
	}
	return change{words: fmt.Sprintf("remove recipient <%s>", rcpt.Address), apply: func(w *working) {
		w.run.removedBy = p.name
		if e.Report != nil {
			reply := w.run.reply(Reject, e.Report)
			w.run.report(w.by, rcpt, reply)
			return
		}
		w.run.remove(rcpt)
	}}, ""
}

// report takes out a recipient of which the sender is to hear: right of the line a failure, left of it a refusal.
func (r *run) report(by *question, rcpt *envelope.Recipient, reply envelope.Reply) {
	if !r.rule.routing {
		r.settle(rcpt, Verdict{
			Decision: Reject, Reply: reply, Agent: by.name, Version: by.runs(), Event: by.kind, Reason: "recipient removed",
		})
		return
	}
	rcpt.Reply = reply
	r.out.Fails = append(r.out.Fails, rcpt)
	r.remove(rcpt)
}

// remove takes a recipient out of the copy it is in.
func (r *run) remove(rcpt *envelope.Recipient) {
	d := r.holder(rcpt)
	if d == nil {
		return
	}
	// A new list, since agents beside this one were given the old one.
	d.mail.Recipients = slices.DeleteFunc(slices.Clone(d.mail.Recipients), func(x *envelope.Recipient) bool { return x == rcpt })
	d.changed()
}

// holder is the copy that a recipient is in; nil when it has been removed.
func (r *run) holder(rcpt *envelope.Recipient) *draft {
	for _, d := range r.drafts {
		if slices.Contains(d.mail.Recipients, rcpt) {
			return d
		}
	}
	return nil
}

func (p *proposal) rewriteRecipient(e *agentpb.RewriteRecipient) (change, string) {
	rcpt := p.recipient(e.GetIndex())
	if rcpt == nil {
		return change{}, fmt.Sprintf("edit rewrite_recipient names recipient %d, which does not exist", e.GetIndex())
	}
	m, what := parseAddress(e.GetAddress())
	return change{words: fmt.Sprintf("rewrite recipient <%s> to <%s>", rcpt.Address, m), apply: func(w *working) {
		if rcpt.Original == "" {
			rcpt.Original = rcpt.Address.String()
		}
		rcpt.Address = m
		if d := w.run.holder(rcpt); d != nil {
			d.changed()
		}
		w.draft.changed()
	}}, what
}

func (p *proposal) expand(e *agentpb.Expand) (change, string) {
	rcpt := p.recipient(e.GetIndex())
	if rcpt == nil {
		return change{}, fmt.Sprintf("edit expand names recipient %d, which does not exist", e.GetIndex())
	}
	if len(e.GetAddresses()) == 0 {
		return change{}, "edit expand names no addresses"
	}
	members := make([]address.Mailbox, len(e.GetAddresses()))
	for i, a := range e.GetAddresses() {
		m, what := parseAddress(a)
		if what != "" {
			return change{}, what
		}
		members[i] = m
	}
	words := fmt.Sprintf("expand <%s> to %d recipients", rcpt.Address, len(members))
	return change{words: words, apply: func(w *working) { w.expand(rcpt, members) }}, ""
}

// expand puts members in the place of rcpt. What the sender asked for the group and its stamps go to each of them.
func (w *working) expand(rcpt *envelope.Recipient, members []address.Mailbox) {
	d := w.run.holder(rcpt)
	if d == nil {
		return
	}
	top, original := rcpt.ExpandedFrom, rcpt.Original
	if top == "" {
		top = rcpt.Address.String()
	}
	if original == "" {
		original = rcpt.Address.String()
	}
	w.run.remove(rcpt)
	into := &working{run: w.run, by: w.by, draft: d}
	for _, m := range members {
		into.add(&envelope.Recipient{
			Address: m, ORCPT: rcpt.ORCPT, Notify: rcpt.Notify, Original: original, ExpandedFrom: top, Stamps: rcpt.Stamps.Clone(),
		})
	}
}

func (p *proposal) route(e *agentpb.Route, recipients []uint32) (change, string) {
	domain, err := address.ParseDomain(e.GetDomain())
	if err != nil {
		return change{}, fmt.Sprintf("route to domain %q", cut(e.GetDomain(), 80))
	}
	return change{words: "route by domain " + domain, apply: func(w *working) {
		for _, rcpt := range p.audience {
			if len(recipients) == 0 || slices.Contains(recipients, uint32(rcpt.Index)) {
				w.run.route(rcpt, domain)
			}
		}
	}}, ""
}

func (r *run) route(rcpt *envelope.Recipient, domain string) {
	if r.out.Routes == nil {
		r.out.Routes = map[int]string{}
	}
	r.out.Routes[rcpt.Index] = domain
	rcpt.Route = domain
}

// applyEdits does the changes of p. Those for some recipients get a copy of the mail.
func (r *run) applyEdits(p *proposal) {
	if len(p.changes) == 0 {
		return
	}
	works := []*working{{run: r, by: p.question, draft: p.draft}}
	for i := range p.changes {
		c := &p.changes[i]
		if !c.whole {
			c.apply(works[0])
			continue
		}
		for _, w := range slices.Clip(works) {
			target, isNew := r.workOn(w, p, c)
			if target == nil {
				continue
			}
			if isNew {
				works = append(works, target)
			}
			c.apply(target)
		}
	}
	for _, w := range works {
		if !w.header.empty() {
			w.draft.mail.Header = w.header.apply(w.draft.view(agentpb.View_VIEW_CURRENT))
		}
	}
}

// workOn is the copy for the recipients of c that are in w: w itself when it holds no others, a new one otherwise,
// nil when none of them is in w.
func (r *run) workOn(w *working, p *proposal, c *change) (target *working, isNew bool) {
	if len(c.recipients) == 0 && !p.partial {
		return w, false
	}
	var in []*envelope.Recipient
	open := r.open(w.draft.mail)
	for _, rcpt := range open {
		if c.isFor(p, rcpt) {
			in = append(in, rcpt)
		}
	}
	switch len(in) {
	case 0:
		return nil, false
	case len(open):
		return w, false
	}
	d := &draft{mail: w.draft.mail.Split(in), from: p.draft}
	w.draft.changed()
	r.drafts = append(r.drafts, d)
	return &working{run: r, by: w.by, draft: d, header: w.header.clone()}, true
}

func (c *change) isFor(p *proposal, rcpt *envelope.Recipient) bool {
	if len(c.recipients) == 0 {
		return p.recipient(uint32(rcpt.Index)) != nil
	}
	return slices.Contains(c.recipients, uint32(rcpt.Index))
}

// changed makes what agents were shown of the envelope worthless.
func (d *draft) changed() {
	d.epoch++
	d.facts = nil
}
