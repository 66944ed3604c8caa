package categorizer

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/dsn"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/sdk/agentpb"
)

// pass is one item on its way through the categorizer. Nothing leaves it before its end, so an item that must
// wait simply starts over.
type pass struct {
	*Categorizer
	ctx     context.Context
	item    *queue.Item
	conv    conversation
	started time.Time

	result   Result
	stopped  bool                  // result.Item is decided: the whole item waits, is put off or parked
	extra    []*queue.Item         // spawned, kept, quarantined
	kept     map[*queue.Item]bool  // of extra: copies beside the delivery
	later    []postponed           // recipients to be categorized again
	failed   []*envelope.Recipient // for good; Reply says why
	silent   []*envelope.Recipient // failed without a notification
	dropped  []discarded
	expanded []*envelope.Recipient // groups whose sender wants to hear of success
	resolved map[string]bool       // addresses that need not be resolved again
	hops     map[string]hop        // by domain
}

// part is a copy of the message; hop is empty until it is split.
type part struct {
	mail *envelope.Mail
	hop  string
}

type postponed struct {
	recipients []*envelope.Recipient
	until      time.Time
	reason     string
}

type discarded struct {
	recipients []*envelope.Recipient
	verdict    pipeline.Verdict
}

func (p *pass) run() {
	parts := []part{{mail: p.draft()}}
	for _, step := range p.steps() {
		parts = step(parts)
		if p.stopped {
			return
		}
	}
	p.finish(parts)
}

// steps from OnSubmitted to OnCategorized. An item that has been through them, and comes again because its send
// connector is gone, holds the agents' edits already: it only gets a new way. So does what was refused, about which
// agents are asked where else it may go.
func (p *pass) steps() []func([]part) []part {
	if p.item.Routed {
		return []func([]part) []part{p.route, p.splitRouted}
	}
	if p.item.Origin == queue.OriginRefused {
		return []func([]part) []part{p.resolve, p.route, p.event(agentpb.EventKind_EVENT_KIND_ROUTED), p.split}
	}
	return []func([]part) []part{
		p.missed,
		p.event(agentpb.EventKind_EVENT_KIND_SUBMITTED),
		p.resolve,
		p.event(agentpb.EventKind_EVENT_KIND_RESOLVED),
		p.route,
		p.event(agentpb.EventKind_EVENT_KIND_ROUTED),
		p.split,
		p.event(agentpb.EventKind_EVENT_KIND_CATEGORIZED),
	}
}

// draft is a copy of the item's mail that edits may change, with the recipients still to be delivered.
func (p *pass) draft() *envelope.Mail {
	m := *p.item.Mail
	m.Stamps = m.Stamps.Clone()
	m.Recipients = make([]*envelope.Recipient, 0, len(p.item.Mail.Recipients))
	for _, r := range p.item.Mail.Recipients {
		if r.State == envelope.Pending {
			m.Recipients = append(m.Recipients, cloneRecipient(r))
		}
	}
	return &m
}

func cloneRecipient(r *envelope.Recipient) *envelope.Recipient {
	c := *r
	c.Stamps = r.Stamps.Clone()
	return &c
}

// event is the step that raises kind for every part and applies what it comes to.
func (p *pass) event(kind agentpb.EventKind) func([]part) []part {
	return func(parts []part) []part {
		if !p.conv.Subscribed(kind) {
			return parts
		}
		var out []part
		for i, c := range parts {
			out = append(out, p.apply(kind, i, c, p.conv.Raise(p.ctx, p.newEvent(kind, c.mail, i, len(parts))))...)
			if p.stopped {
				return nil
			}
		}
		return slices.DeleteFunc(out, func(c part) bool { return len(c.mail.Recipients) == 0 })
	}
}

// missed shows the message to agents that have not seen it at the end of data: on_failure "hold" let it pass, or it was
// parked there for killing one of them.
func (p *pass) missed(parts []part) []part {
	const kind = agentpb.EventKind_EVENT_KIND_END_OF_DATA
	for _, agent := range p.item.Missed {
		var out []part
		for i, c := range parts {
			ev := &pipeline.Event{Kind: kind, ID: p.item.ID + " OnEndOfData " + agent + " " + strconv.Itoa(i+1), Mail: c.mail, Only: agent}
			o := p.conv.Raise(p.ctx, ev)
			if len(o.Hold) > 0 {
				p.result.Steps = append(p.result.Steps, o.Steps...)
				p.wait(agent)
				return nil
			}
			p.afterAcceptance(o)
			out = append(out, p.apply(kind, i, c, o)...)
			if p.stopped {
				return nil
			}
		}
		parts = slices.DeleteFunc(out, func(c part) bool { return len(c.mail.Recipients) == 0 })
	}
	return parts
}

// afterAcceptance turns refusals of a message that was accepted long ago into what is still possible. Only a sender
// that has authenticated is told: anything else would be backscatter.
func (p *pass) afterAcceptance(o *pipeline.Outcome) {
	if p.item.Session.Auth != nil {
		return
	}
	instead := pipeline.Quarantine
	if p.config.Host.OnPartialReject == "discard" {
		instead = pipeline.Discard
	}
	soften := func(v pipeline.Verdict) pipeline.Verdict {
		if v.Decision == pipeline.Reject || v.Decision == pipeline.Disconnect {
			v.Decision = instead
		}
		return v
	}
	o.Verdict = soften(o.Verdict)
	for i, v := range o.Recipients {
		o.Recipients[i] = soften(v)
	}
}

// newEvent has an id that is the same each time the item is processed.
func (p *pass) newEvent(kind agentpb.EventKind, m *envelope.Mail, i, n int) *pipeline.Event {
	return &pipeline.Event{
		Kind: kind,
		ID:   p.item.ID + " " + pipeline.EventName(kind) + " " + strconv.Itoa(i+1),
		Mail: m,
		Arguments: &agentpb.Arguments{Event: &agentpb.Arguments_Routing{Routing: &agentpb.RoutingArguments{
			Copy:    uint32(i + 1),
			Copies:  uint32(n),
			Attempt: uint32(p.item.Attempts + 1),
			Origin:  p.item.Origin,
			Item:    p.item.ID,
		}}},
	}
}

// apply does what the agents decided about a part, and answers with what goes on of it.
func (p *pass) apply(kind agentpb.EventKind, nth int, c part, o *pipeline.Outcome) []part {
	p.result.Steps = append(p.result.Steps, o.Steps...)
	switch {
	case o.Poison != nil:
		p.park(o.Poison, kind)
		return nil
	case o.WaitFor != "":
		p.wait(o.WaitFor)
		return nil
	}
	p.heedRelease(c.mail, o)
	p.keepCopies(kind, nth, o.Copies)
	p.spawn(nth, o.Spawns)
	p.fail(o.Fails, false)
	if o.Decision != pipeline.Continue {
		p.decide(kind, c.mail, c.mail.Recipients, o.Verdict)
		return nil
	}
	var out []part
	for _, m := range o.Mails {
		p.applyRecipients(kind, m, o.Recipients)
		for _, r := range m.Recipients {
			if domain, ok := o.Routes[r.Index]; ok {
				r.Route = domain
			}
		}
		out = append(out, part{mail: m, hop: c.hop})
	}
	return out
}

// heedRelease lets go on what an operator has released: the agent that had quarantined it does not do so again.
func (p *pass) heedRelease(m *envelope.Mail, o *pipeline.Outcome) {
	if p.item.Origin != queue.OriginRelease {
		return
	}
	again := func(v pipeline.Verdict) bool { return v.Decision == pipeline.Quarantine && v.Agent == p.item.Agent }
	maps.DeleteFunc(o.Recipients, func(_ int, v pipeline.Verdict) bool { return again(v) })
	if again(o.Verdict) {
		o.Decision = pipeline.Continue
		if len(o.Mails) == 0 {
			o.Mails = []*envelope.Mail{m}
		}
	}
}

// applyRecipients takes the recipients with a verdict of their own out of m, those of one verdict together.
func (p *pass) applyRecipients(kind agentpb.EventKind, m *envelope.Mail, verdicts map[int]pipeline.Verdict) {
	for {
		var group []*envelope.Recipient
		var verdict pipeline.Verdict
		for _, r := range m.Recipients {
			v, ok := verdicts[r.Index]
			if !ok || v.Decision == pipeline.Continue || len(group) > 0 && v != verdict {
				continue
			}
			verdict = v
			group = append(group, r)
		}
		if len(group) == 0 {
			return
		}
		p.decide(kind, m.Split(group), group, verdict)
	}
}

// decide does what verdict says about recipients, whose copy of the message is m.
func (p *pass) decide(kind agentpb.EventKind, m *envelope.Mail, recipients []*envelope.Recipient, v pipeline.Verdict) {
	switch v.Decision {
	case pipeline.Quarantine:
		p.quarantine(kind, m, v.Agent, v.Reason)
	case pipeline.Discard:
		p.dropped = append(p.dropped, discarded{recipients, v})
	case pipeline.Defer:
		p.later = append(p.later, postponed{recipients, p.started.Add(p.delay(v)), v.Agent + ": " + v.Reason})
	case pipeline.Reject, pipeline.Disconnect:
		for _, r := range recipients {
			r.Reply = v.Reply
		}
		p.fail(recipients, v.Silent)
	}
}

// delay of a verdict that puts mail off. An agent that names none gets the first interval of the queue.
func (p *pass) delay(v pipeline.Verdict) time.Duration {
	if v.Delay > 0 {
		return v.Delay
	}
	return max(p.config.Queue.GlitchInterval, time.Second)
}

func (p *pass) fail(recipients []*envelope.Recipient, silent bool) {
	for _, r := range recipients {
		r.State = envelope.Failed
	}
	if silent {
		p.silent = append(p.silent, recipients...)
		return
	}
	p.failed = append(p.failed, recipients...)
}

// failWith fails recipients by the host's own judgement.
func (p *pass) failWith(r *envelope.Recipient, enhanced, text string) {
	r.Reply = envelope.Reply{Code: 550, Enhanced: enhanced, Text: text}
	p.fail([]*envelope.Recipient{r}, false)
}

// wait puts the whole item aside until agent is back.
func (p *pass) wait(agent string) {
	item := *p.item
	item.State, item.WaitingFor = queue.Waiting, agent
	item.LastError = "waiting for agent " + agent
	p.stop(Result{Item: &item, Wait: agent})
}

// park puts the whole item aside for an operator: it kills the agents that look at it.
func (p *pass) park(f *agent.Failure, kind agentpb.EventKind) {
	item := *p.item
	item.State, item.Agent = queue.Parked, f.Agent
	item.Reason = fmt.Sprintf("poison: %s at %s", f.Detail, pipeline.EventName(kind))
	item.Evidence = f.Evidence
	p.stop(Result{Item: &item, Poison: f})
}

// putOff has the whole item categorized again at a later time.
func (p *pass) putOff(l postponed) {
	item := *p.item
	item.State, item.Next, item.LastError = queue.Ready, l.until, l.reason
	p.stop(Result{Item: &item, Defer: l.until})
}

// stop ends the pass: whatever was made is not stored, and is made again the next time.
func (p *pass) stop(r Result) {
	r.Steps = p.result.Steps
	p.result, p.stopped = r, true
	p.extra, p.later, p.failed, p.silent, p.dropped, p.expanded = nil, nil, nil, nil, nil, nil
}

// finish makes the items.
func (p *pass) finish(parts []part) {
	if len(parts) == 0 && len(p.later) == 1 && len(p.extra)+len(p.failed)+len(p.silent)+len(p.dropped) == 0 {
		p.putOff(p.later[0])
		return
	}
	if len(parts) == 1 && len(p.later) == 0 && p.unchanged(parts[0].mail) {
		p.result.Item = p.routed(*p.item, parts[0])
	} else {
		for i, c := range parts {
			p.result.Children = append(p.result.Children, p.routed(p.child("split", i, c.mail), c))
		}
	}
	for i, l := range p.later {
		p.result.Children = append(p.result.Children, p.again(i, l))
	}
	p.result.Children = append(p.result.Children, p.extra...)
	p.report()
}

// unchanged reports whether m has the content and the envelope of the item.
func (p *pass) unchanged(m *envelope.Mail) bool {
	was := p.item.Mail
	if m.Body != was.Body || m.Sender != was.Sender || !sameBytes(m.Header, was.Header) {
		return false
	}
	return slices.EqualFunc(m.Recipients, was.Recipients, func(a, b *envelope.Recipient) bool {
		return a.Index == b.Index && a.Address == b.Address && a.ORCPT == b.ORCPT && a.Notify == b.Notify
	})
}

// sameBytes is true for the same memory: edits make new header blocks.
func sameBytes(a, b []byte) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

func (p *pass) routed(item queue.Item, c part) *queue.Item {
	item.Mail, item.Routed, item.Hop, item.State, item.Missed = c.mail, true, c.hop, queue.Ready, nil
	return &item
}

// child is an item made of this one.
func (p *pass) child(cause string, ordinal int, m *envelope.Mail) queue.Item {
	item := *p.item
	item.ID = queue.ChildID(p.item, cause, ordinal)
	item.Parent = p.item.ID
	item.Mail = m
	item.State, item.Routed, item.Hop, item.Attempts, item.Next = queue.Ready, false, "", 0, p.started
	item.WaitingFor, item.LastError, item.Missed = "", "", nil
	return item
}

// again is the item of recipients that are to be categorized later, with the original content.
func (p *pass) again(ordinal int, l postponed) *queue.Item {
	m := p.draft()
	m.Recipients = l.recipients
	item := p.child("later", ordinal, m)
	item.Next, item.LastError = l.until, l.reason
	item.Attempts, item.Missed, item.Routed, item.Hop = p.item.Attempts, p.item.Missed, p.item.Routed, p.item.Hop
	return &item
}

// quarantine keeps m for an operator.
func (p *pass) quarantine(kind agentpb.EventKind, m *envelope.Mail, agent, reason string) {
	item := p.child("quarantine "+agent+" "+pipeline.EventName(kind), len(p.extra), m)
	item.State, item.Agent, item.Reason = queue.Quarantined, agent, reason
	item.Expires = p.started.Add(p.config.Quarantine.ExpireAfter)
	p.extra = append(p.extra, &item)
}

// keepCopies makes the quarantined copies that agents asked for beside the delivery of the nth part.
func (p *pass) keepCopies(kind agentpb.EventKind, nth int, copies []pipeline.Copy) {
	for _, k := range copies {
		cause := fmt.Sprintf("copy %s %s %d", k.Agent, pipeline.EventName(kind), nth)
		item := p.child(cause, k.Ordinal, k.Mail)
		item.State, item.Agent, item.Reason = queue.Quarantined, k.Agent, k.Reason
		item.Expires = p.started.Add(p.config.Quarantine.ExpireAfter)
		p.extra = append(p.extra, &item)
		if p.kept == nil {
			p.kept = map[*queue.Item]bool{}
		}
		p.kept[&item] = true
	}
}

// report makes the notifications that are owed for failed recipients and expanded groups.
func (p *pass) report() {
	if p.item.Durable && len(p.failed) > 0 {
		p.parkFailed()
		return
	}
	p.notify(dsn.Failure, 0, p.failed)
	p.notify(dsn.Expanded, 1, p.expanded)
}

func (p *pass) notify(kind dsn.Kind, ordinal int, recipients []*envelope.Recipient) {
	if len(recipients) == 0 || !p.ReportsTo(p.item.Mail.Sender.Address.Domain, kind) {
		return
	}
	item := dsn.Compose(dsn.Request{
		Item:       p.item,
		Kind:       kind,
		Recipients: recipients,
		Ordinal:    ordinal,
		Host:       p.config.Host.Name,
		Postmaster: p.config.Host.Postmaster,
		Now:        p.started,
		Expires:    p.started.Add(p.config.Queue.ExpireAfter),
	})
	if item != nil {
		p.result.Children = append(p.result.Children, item)
	}
}

// parkFailed keeps what failed of a message that must not vanish. Its recipients are tried again when the operator resumes
// it.
func (p *pass) parkFailed() {
	m := p.draft()
	m.Recipients = nil
	for _, r := range p.failed {
		again := cloneRecipient(r)
		again.State = envelope.Pending
		m.Recipients = append(m.Recipients, again)
	}
	item := p.child("failed", 0, m)
	item.State = queue.Parked
	item.Reason = "durable message failed: " + p.failed[0].Reply.String()
	p.result.Children = append(p.result.Children, &item)
}
