package categorizer

import (
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/address"
)

// maxDepth of messages that agents made of messages that agents made. Exchange's
// MaxAllowedAgentGeneratedMessageDepth, which here is always on.
const maxDepth = 3

// spawn makes items of the messages that agents sent.
func (p *pass) spawn(spawns []pipeline.Spawn) {
	for _, s := range spawns {
		if p.item.Depth >= maxDepth {
			p.log.Warn("message of an agent stopped: a loop of agents", "agent", s.Agent, "item", p.item.ID)
			p.ledger.Write(&tracking.Record{Event: tracking.Drop, Message: p.item.Message, Item: p.item.ID,
				Agent: s.Agent, Reason: "agent loop: messages made of messages made by agents, 3 deep"})
			continue
		}
		if item := p.spawned(s); item != nil {
			p.extra = append(p.extra, item)
		}
	}
}

// spawned is nil when no recipient is an address; the pipeline has checked them.
func (p *pass) spawned(s pipeline.Spawn) *queue.Item {
	sender, err := address.Parse(s.Sender)
	if err != nil {
		return nil
	}
	m := &envelope.Mail{
		Sender: envelope.Sender{Address: sender},
		Header: s.Header, OriginalHeader: s.Header,
		Body: s.Body, OriginalBody: s.Body,
		Traffic: envelope.Internal,
	}
	for _, text := range s.Recipients {
		rcpt, err := address.Parse(text)
		if err != nil || rcpt.IsNull() {
			continue
		}
		m.AddRecipient(&envelope.Recipient{Address: rcpt})
		if p.accepted.find(rcpt.Domain) == nil {
			m.Traffic = envelope.Outbound
		}
	}
	if len(m.Recipients) == 0 {
		return nil
	}
	item := p.child(s.Cause, s.Ordinal, m)
	m.ID, item.Message = item.ID, item.ID
	item.Origin, item.Prefix, item.Stamps = queue.OriginSpawn, nil, nil
	item.Depth, item.Durable, item.Agent = p.item.Depth+1, s.Durable, s.Agent
	item.Session = envelope.Session{ID: p.item.Session.ID, Trust: envelope.OwnServer, Started: p.started}
	item.Received, item.Expires = p.started, p.started.Add(p.config.Queue.ExpireAfter)
	return &item
}
