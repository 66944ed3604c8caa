package categorizer

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/address"
)

// chipSize is how many recipients a copy has at most once groups are expanded (Exchange's ExpansionSizeLimit).
const chipSize = 1000

// router chooses send connectors: the most specific address space, then the lowest cost, then the lowest name.
type router struct {
	spaces map[string][]candidate // by pattern
}

type candidate struct {
	connector *config.SendConnector
	cost      int
}

func newRouter(connectors []config.SendConnector) router {
	r := router{spaces: map[string][]candidate{}}
	for i := range connectors {
		for _, s := range connectors[i].AddressSpaces {
			pattern := address.ASCIIDomain(s.Pattern)
			r.spaces[pattern] = append(r.spaces[pattern], candidate{&connectors[i], s.Cost})
		}
	}
	for _, list := range r.spaces {
		slices.SortFunc(list, func(a, b candidate) int {
			return cmp.Or(cmp.Compare(a.cost, b.cost), cmp.Compare(a.connector.Name, b.connector.Name))
		})
	}
	return r
}

// choose finds the connector for a message of size bytes to domain. Connectors that do not take the size are
// left out first, so a wider address space may get the message; tooSmall says that only those matched.
func (r *router) choose(domain string, size int64) (c *config.SendConnector, tooSmall bool) {
	for _, pattern := range patterns(address.ASCIIDomain(domain)) {
		for _, cand := range r.spaces[pattern] {
			if limit := cand.connector.MaxMessageSize; limit > 0 && size > limit {
				tooSmall = true
				continue
			}
			return cand.connector, false
		}
	}
	return nil, tooSmall
}

// patterns that match domain, the most specific first: itself, "*." and each parent, "*".
func patterns(domain string) []string {
	list := make([]string, 1, 8)
	list[0] = domain
	if !strings.HasPrefix(domain, "[") {
		for rest := domain; ; {
			_, parent, ok := strings.Cut(rest, ".")
			if !ok {
				break
			}
			list = append(list, "*."+parent)
			rest = parent
		}
	}
	return append(list, "*")
}

// hop is where a domain goes: name is empty when it goes nowhere, and then enhanced and reason say why.
type hop struct {
	name     string
	enhanced string
	reason   string
}

// hopOf routes one recipient by its domain, or the one an agent gave.
func (p *pass) hopOf(r *envelope.Recipient, size int64) hop {
	domain := r.Address.Domain
	if r.Route != "" {
		domain = r.Route
	}
	if h, ok := p.hops[domain]; ok {
		return h
	}
	c, tooSmall := p.router.choose(domain, size)
	h := hop{}
	switch {
	case c != nil:
		h.name = c.Hop(domain)
	case tooSmall:
		h.enhanced = "5.3.4"
		h.reason = fmt.Sprintf("message of %d bytes is too big for every send connector that matches", size)
	default:
		h.reason = fmt.Sprintf("unreachable: no send connector has an address space for %s", domain)
	}
	if p.hops == nil {
		p.hops = map[string]hop{}
	}
	p.hops[domain] = h
	return h
}

// route finds the hop of every recipient, and takes out those that have none.
func (p *pass) route(parts []part) []part {
	var out []part
	for _, c := range parts {
		size := c.mail.Size() + int64(len(p.item.Prefix))
		clear(p.hops)
		var lost []*envelope.Recipient
		c.mail.Recipients = slices.DeleteFunc(slices.Clone(c.mail.Recipients), func(r *envelope.Recipient) bool {
			h := p.hopOf(r, size)
			switch {
			case h.name != "":
				return false
			case h.enhanced != "":
				p.failWith(r, h.enhanced, h.reason)
			default:
				lost = append(lost, r)
			}
			return true
		})
		p.unreachable(lost)
		if len(c.mail.Recipients) > 0 {
			out = append(out, c)
		}
	}
	return out
}

// unreachable puts off recipients that no send connector is for, until an operator has added one or they expire.
func (p *pass) unreachable(lost []*envelope.Recipient) {
	for len(lost) > 0 {
		h := p.hopOf(lost[0], 0)
		same := lost[:0:0]
		rest := lost[:0:0]
		for _, r := range lost {
			if p.hopOf(r, 0).reason == h.reason {
				same = append(same, r)
			} else {
				rest = append(rest, r)
			}
		}
		p.later = append(p.later, postponed{same, p.started.Add(p.config.Queue.RetryInterval), h.reason})
		lost = rest
	}
}

// split makes one copy a hop. Recipients that agents added at OnRouted are resolved and routed here.
func (p *pass) split(parts []part) []part {
	return p.splitRouted(p.route(p.resolve(parts)))
}

func (p *pass) splitRouted(parts []part) []part {
	var out []part
	for _, c := range parts {
		out = append(out, p.splitOne(c.mail)...)
	}
	return out
}

func (p *pass) splitOne(m *envelope.Mail) []part {
	size := m.Size() + int64(len(p.item.Prefix))
	clear(p.hops)
	var order []string
	groups := map[string][]*envelope.Recipient{}
	for _, r := range m.Recipients {
		name := p.hopOf(r, size).name
		if len(groups[name]) == 0 {
			order = append(order, name)
		}
		groups[name] = append(groups[name], r)
	}
	var out []part
	for _, name := range order {
		for chip := range slices.Chunk(groups[name], chipSize) {
			out = append(out, part{mail: p.copyFor(m, chip), hop: name})
		}
	}
	return out
}

// copyFor is m itself while all its recipients are in the one copy.
func (p *pass) copyFor(m *envelope.Mail, recipients []*envelope.Recipient) *envelope.Mail {
	if len(recipients) == len(m.Recipients) {
		return m
	}
	return m.Split(recipients)
}
