package categorizer

import (
	"strconv"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
)

// maxDepth of messages that agents made of messages that agents made. Exchange's
// MaxAllowedAgentGeneratedMessageDepth, which here is always on.
const maxDepth = 3

// spawn makes items of the messages that agents sent when they saw the nth part.
func (p *pass) spawn(nth int, spawns []pipeline.Spawn) {
	for _, s := range spawns {
		if nth > 0 {
			s.Cause += " " + strconv.Itoa(nth)
		}
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

// spawned is the item of a message that an agent made at this pass.
func (p *pass) spawned(s pipeline.Spawn) *queue.Item { return p.Spawned(p.item, s) }

// Spawned is the item of a message that an agent made of parent. It is nil when no recipient is an address,
// which the pipeline has checked.
func (c *Categorizer) Spawned(parent *queue.Item, s pipeline.Spawn) *queue.Item {
	m := s.Mail(func(domain string) bool { return c.accepted.find(domain) != nil })
	if m == nil {
		return nil
	}
	now := c.now()
	item := &queue.Item{
		ID: queue.ChildID(parent, s.Cause, s.Ordinal), Parent: parent.ID, Origin: queue.OriginSpawn, Mail: m,
		Depth: parent.Depth + 1, Durable: s.Durable, Agent: s.Agent,
		Session:  envelope.Session{ID: parent.Session.ID, Trust: envelope.OwnServer, Started: now},
		Received: now, Next: now, Expires: now.Add(c.config.Queue.ExpireAfter),
	}
	m.ID, item.Message = item.ID, item.ID
	return item
}
