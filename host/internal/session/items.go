package session

import (
	"slices"
	"time"

	"github.com/posternmail/postern/host/internal/dsn"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
)

// builder makes the items of one message.
type builder struct {
	s       *Session
	v       *verdictOn
	base    *queue.Item // what ids and facts of all items come from
	prefix  []byte
	items   []*queue.Item
	parts   int
	records []*tracking.Record
	rcpts   []tracking.Recipient
}

// items makes everything that is stored with a message, and what the ledger says of it, first of the message itself.
func (s *Session) items(v *verdictOn) ([]*queue.Item, []*tracking.Record) {
	b := &builder{s: s, v: v, prefix: s.received(v.now)}
	b.base = &queue.Item{
		ID: s.tx.mail.ID, Message: s.tx.mail.ID, Origin: queue.OriginSMTP, Session: s.env,
		Stamps: s.conv.SessionStamps().Clone(), Received: v.now, Next: v.now,
	}
	switch {
	case s.tx.nobody():
	case v.poison != nil:
		b.park()
	default:
		for _, m := range v.mails {
			b.mail(m)
		}
		b.copies()
		b.spawns()
	}
	b.discarded()
	b.records = append([]*tracking.Record{s.receiveRecord(v, b.rcpts)}, b.records...)
	return b.items, b.records
}

// fate of recipients that share a copy.
type fate struct {
	decision pipeline.Decision
	agent    string
	reason   string
}

// mail makes the items of one copy: its recipients are parted by what becomes of them.
func (b *builder) mail(m *envelope.Mail) {
	if len(b.v.fates) == 0 {
		b.part(m, fate{})
		return
	}
	groups := map[fate][]*envelope.Recipient{}
	var order []fate
	for _, r := range m.Recipients {
		verdict := b.v.fates[r.Index]
		f := fate{verdict.Decision, verdict.Agent, verdict.Reason}
		if _, ok := groups[f]; !ok {
			order = append(order, f)
		}
		groups[f] = append(groups[f], r)
	}
	// What is delivered keeps the id of the message.
	slices.SortStableFunc(order, func(x, y fate) int { return int(x.decision) - int(y.decision) })
	for _, f := range order {
		part := m
		if len(order) > 1 {
			part = m.Split(groups[f])
		}
		b.part(part, f)
	}
}

// part makes the item of recipients with one fate.
func (b *builder) part(m *envelope.Mail, f fate) {
	switch f.decision {
	case pipeline.Continue:
		b.note(m, "", "")
		b.add(m)
	case pipeline.Quarantine:
		b.quarantine(m, f, "quarantined")
	case pipeline.Discard:
		b.note(m, "discarded", "")
		b.record(tracking.Drop, m, f)
	case pipeline.Reject:
		b.refused(m, f)
	}
}

// refused deals with recipients that were refused while others were accepted.
func (b *builder) refused(m *envelope.Mail, f fate) {
	for _, r := range m.Recipients {
		r.Reply = b.v.fates[r.Index].Reply
	}
	switch b.s.partial() {
	case "report":
		b.report(m)
	case "discard":
		b.note(m, "rejected", m.Recipients[0].Reply.String())
		b.record(tracking.Drop, m, f)
	default:
		b.quarantine(m, f, "quarantined")
	}
}

// report tells an authenticated client by notification what it cannot be told by reply.
func (b *builder) report(m *envelope.Mail) {
	for _, r := range m.Recipients {
		r.State = envelope.Failed
	}
	b.note(m, "failed", m.Recipients[0].Reply.String())
	c := b.s.deps.Config
	item := *b.base
	item.Mail, item.Prefix = m, b.prefix
	report := dsn.Compose(dsn.Request{
		Item: &item, Kind: dsn.Failure, Recipients: m.Recipients, Ordinal: b.parts,
		Host: c.Host.Name, Postmaster: c.Host.Postmaster, Now: b.v.now, Expires: b.v.now.Add(c.Queue.ExpireAfter),
	})
	if report != nil {
		b.items = append(b.items, report)
	}
}

func (b *builder) quarantine(m *envelope.Mail, f fate, status string) {
	b.note(m, status, "")
	item := b.add(m)
	item.State, item.Agent, item.Reason = queue.Quarantined, f.agent, f.reason
	item.Expires = b.v.now.Add(b.s.deps.Config.Quarantine.ExpireAfter)
	b.record(tracking.Quarantine, m, f)
}

// add makes an item of m: the first one has the id of the message.
func (b *builder) add(m *envelope.Mail) *queue.Item {
	item := *b.base
	item.Mail, item.Prefix = m, b.prefix
	item.Missed = b.v.hold
	item.Expires = b.v.now.Add(b.s.deps.Config.Queue.ExpireAfter)
	if b.parts > 0 {
		item.ID, item.Parent = queue.ChildID(b.base, "split", b.parts), b.base.ID
	}
	b.parts++
	b.items = append(b.items, &item)
	return &item
}

// copies that agents want kept beside the delivery.
func (b *builder) copies() {
	for _, c := range b.v.copies {
		if c.Mail == nil {
			continue
		}
		item := *b.base
		item.ID, item.Parent = queue.ChildID(b.base, "copy "+c.Agent, c.Ordinal), b.base.ID
		item.Mail, item.Prefix = c.Mail, b.prefix
		item.State, item.Agent, item.Reason = queue.Quarantined, c.Agent, c.Reason
		item.Expires = b.v.now.Add(b.s.deps.Config.Quarantine.ExpireAfter)
		b.items = append(b.items, &item)
		b.record(tracking.Quarantine, c.Mail, fate{agent: c.Agent, reason: c.Reason})
		recipients := b.records[len(b.records)-1].Recipients
		for i := range recipients {
			recipients[i].Status = tracking.Copied
		}
	}
}

// park keeps a message that kills an agent for the operator, with the evidence.
func (b *builder) park() {
	for _, m := range b.v.mails {
		b.note(m, "parked", "")
		item := b.add(m)
		f := b.v.poison
		item.State, item.Agent, item.Reason, item.Evidence = queue.Parked, f.Agent, f.Error(), f.Evidence
		b.record(tracking.Poison, m, fate{agent: f.Agent, reason: f.Error()})
	}
}

// spawns are messages that agents made.
func (b *builder) spawns() {
	for _, sp := range b.v.spawns {
		m := sp.Mail(b.s.accepts)
		if m == nil {
			continue
		}
		item := *b.base
		item.ID, item.Parent = queue.ChildID(b.base, sp.Cause, sp.Ordinal), b.base.ID
		m.ID, item.Message = item.ID, item.ID
		item.Origin, item.Stamps, item.Agent = queue.OriginSpawn, nil, sp.Agent
		item.Mail, item.Durable, item.Depth = m, sp.Durable, 1
		item.Session = envelope.Session{ID: b.s.env.ID, Trust: envelope.OwnServer, Started: b.v.now}
		item.Expires = b.v.now.Add(b.s.deps.Config.Queue.ExpireAfter)
		b.items = append(b.items, &item)
		b.record(tracking.Spawn, m, fate{agent: sp.Agent, reason: sp.Cause})
	}
}

// discarded recipients of OnMail and OnRcpt are in the ledger like all others.
func (b *builder) discarded() {
	t := b.s.tx
	if t.discard != nil {
		b.note(t.mail, "discarded", "")
		b.record(tracking.Drop, t.mail, fate{agent: t.discard.Agent, reason: t.discard.Reason})
	}
	for _, l := range t.gone {
		b.rcpts = append(b.rcpts, tracking.Recipient{Address: l.recipient.Address.String(), Status: "discarded"})
	}
	if len(t.gone) > 0 && t.discard == nil {
		m := *t.mail
		m.Recipients = nil
		for _, l := range t.gone {
			m.Recipients = append(m.Recipients, l.recipient)
		}
		b.record(tracking.Drop, &m, fate{agent: t.gone[0].verdict.Agent, reason: t.gone[0].verdict.Reason})
	}
}

// note writes recipients into the record of the message.
func (b *builder) note(m *envelope.Mail, status, reply string) {
	for _, r := range m.Recipients {
		b.rcpts = append(b.rcpts, tracking.Recipient{Address: r.Address.String(), Status: status, Reply: reply})
	}
}

// record adds a line for what became of some recipients.
func (b *builder) record(event string, m *envelope.Mail, f fate) {
	sender := m.Sender.Address.String()
	r := &tracking.Record{
		Time: time.Time{}, Event: event, Message: m.ID, Session: b.s.env.ID, Connector: b.s.env.Connector,
		Sender: &sender, Agent: f.agent, Reason: f.reason, Size: m.Size(),
	}
	if n := len(b.items); n > 0 && event != tracking.Drop {
		r.Item = b.items[n-1].ID
	}
	for _, rcpt := range m.Recipients {
		r.Recipients = append(r.Recipients, tracking.Recipient{Address: rcpt.Address.String()})
	}
	b.records = append(b.records, r)
}
