package categorizer

import (
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
)

// record writes to the ledger what the pass came to.
func (p *pass) record() {
	p.recordStop()
	if len(p.result.Steps) > 0 || len(p.result.Children) > 0 || p.ledger.Full() {
		rec := p.line(tracking.Categorize)
		rec.Verdicts = p.result.Steps
		rec.Recipients = p.destinations()
		p.ledger.Write(rec)
	}
	p.recordRecipients(tracking.Fail, "failed", p.failed)
	p.recordRecipients(tracking.Fail, "failed", p.silent)
	for _, d := range p.dropped {
		rec := p.line(tracking.Drop)
		rec.Recipients = withStatus(d.recipients, "discarded")
		rec.Agent, rec.Version, rec.Reason = d.verdict.Agent, d.verdict.Version, d.verdict.Reason
		p.ledger.Write(rec)
	}
	for _, child := range p.result.Children {
		p.recordChild(child)
	}
	if p.result.Item == nil && len(p.result.Children) == 0 && len(p.dropped)+len(p.failed)+len(p.silent) == 0 {
		rec := p.line(tracking.Drop)
		rec.Reason = "no recipients left"
		p.ledger.Write(rec)
	}
}

// recordStop writes why the whole item does not go on.
func (p *pass) recordStop() {
	if !p.stopped {
		return
	}
	rec := p.line(tracking.Defer)
	rec.Reason = p.result.Item.LastError
	switch {
	case p.result.Poison != nil:
		rec.Event, rec.Agent, rec.Reason = tracking.Poison, p.result.Poison.Agent, p.result.Item.Reason
	case p.result.Wait != "":
		rec.Agent = p.result.Wait
	default:
		rec.Next = &p.result.Defer
	}
	rec.Recipients = withStatus(p.item.Mail.Recipients, "deferred")
	p.ledger.Write(rec)
}

// recordChild writes the lines of items that are no routed copies.
func (p *pass) recordChild(child *queue.Item) {
	rec := p.line("")
	rec.Item, rec.Parent = child.ID, p.item.ID
	rec.Agent, rec.Reason = child.Agent, child.Reason
	status := ""
	switch {
	case p.kept[child]:
		rec.Event, status = tracking.Quarantine, tracking.Copied
	case child.State == queue.Quarantined:
		rec.Event, status = tracking.Quarantine, "quarantined"
	case child.State == queue.Parked:
		rec.Event = tracking.Poison
	case child.Origin == queue.OriginDSN && p.item.Origin != queue.OriginDSN:
		rec.Event = tracking.DSN
	case child.Depth > p.item.Depth:
		rec.Event, rec.Message = tracking.Spawn, child.Message
	case !child.Routed:
		rec.Event, rec.Reason, rec.Next, status = tracking.Defer, child.LastError, &child.Next, "deferred"
	default:
		return
	}
	sender := child.Mail.Sender.Address.String()
	rec.Sender = &sender
	rec.Recipients = withStatus(child.Mail.Recipients, status)
	p.ledger.Write(rec)
}

func (p *pass) recordRecipients(event, status string, recipients []*envelope.Recipient) {
	if len(recipients) == 0 {
		return
	}
	rec := p.line(event)
	rec.Recipients = withStatus(recipients, status)
	rec.Reply = recipients[0].Reply.String()
	p.ledger.Write(rec)
}

// destinations lists where each recipient goes.
func (p *pass) destinations() []tracking.Recipient {
	var out []tracking.Recipient
	items := p.result.Children
	if p.result.Item != nil {
		items = append([]*queue.Item{p.result.Item}, items...)
	}
	for _, item := range items {
		if item.Routed {
			out = append(out, withStatus(item.Mail.Recipients, "to "+item.Hop)...)
		}
	}
	return out
}

func (p *pass) line(event string) *tracking.Record {
	sender := p.item.Mail.Sender.Address.String()
	return &tracking.Record{
		Event:   event,
		Session: p.item.Session.ID,
		Message: p.item.Message,
		Item:    p.item.ID,
		Parent:  p.item.Parent,
		Traffic: p.item.Mail.Traffic.String(),
		Sender:  &sender,
		Size:    p.item.Mail.Size() + int64(len(p.item.Prefix)),
	}
}

func withStatus(recipients []*envelope.Recipient, status string) []tracking.Recipient {
	out := make([]tracking.Recipient, 0, len(recipients))
	for _, r := range recipients {
		t := tracking.Recipient{Address: r.Address.String(), Status: status}
		if !r.Reply.IsZero() {
			t.Reply = r.Reply.String()
		}
		out = append(out, t)
	}
	return out
}
