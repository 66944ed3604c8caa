package categorizer

import (
	"slices"
	"strings"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/directory"
	"github.com/posternmail/postern/host/internal/dsn"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/address"
)

// maxExpansion bounds how many recipients one message may come to.
const maxExpansion = 100_000

// acceptedDomains by name, and by parent for "*.x".
type acceptedDomains struct {
	exact, below map[string]*config.AcceptedDomain
}

func newAcceptedDomains(list []config.AcceptedDomain) acceptedDomains {
	a := acceptedDomains{exact: map[string]*config.AcceptedDomain{}, below: map[string]*config.AcceptedDomain{}}
	for i := range list {
		name := address.ASCIIDomain(list[i].Name)
		if parent, ok := strings.CutPrefix(name, "*."); ok {
			a.below[parent] = &list[i]
		} else {
			a.exact[name] = &list[i]
		}
	}
	return a
}

// find is nil for a domain that is not accepted.
func (a *acceptedDomains) find(domain string) *config.AcceptedDomain {
	domain = address.ASCIIDomain(domain)
	if d := a.exact[domain]; d != nil {
		return d
	}
	for rest := domain; len(a.below) > 0; {
		_, parent, ok := strings.Cut(rest, ".")
		if !ok {
			break
		}
		if d := a.below[parent]; d != nil {
			return d
		}
		rest = parent
	}
	return nil
}

// ReportsTo reports whether the remote domain of a sender is to get notifications of this kind.
func (c *Categorizer) ReportsTo(domain string, kind dsn.Kind) bool {
	var best *config.RemoteDomain
	for i := range c.config.RemoteDomains {
		d := &c.config.RemoteDomains[i]
		if matches(address.ASCIIDomain(d.Name), address.ASCIIDomain(domain)) && (best == nil || len(d.Name) > len(best.Name)) {
			best = d
		}
	}
	switch {
	case best == nil, c.accepted.find(domain) != nil:
		return true
	case kind == dsn.Failure || kind == dsn.Delay:
		return best.NondeliveryReports
	}
	return best.DeliveryReports
}

func matches(pattern, domain string) bool {
	if below, ok := strings.CutPrefix(pattern, "*."); ok {
		return strings.HasSuffix(domain, "."+below)
	}
	return pattern == "*" || pattern == domain
}

// resolve replaces aliases by addresses and groups by their members, and fails those that are unknown in a
// domain of ours that a directory knows.
func (p *pass) resolve(parts []part) []part {
	var out []part
	for _, c := range parts {
		p.resolveMail(c.mail)
		out = append(out, chips(c)...)
	}
	return out
}

// chips parts a copy that a large group has made longer than agents are shown at once.
func chips(c part) (out []part) {
	for len(c.mail.Recipients) > chipSize {
		out = append(out, part{mail: c.mail.Split(slices.Clone(c.mail.Recipients[:chipSize])), hop: c.hop})
	}
	if len(c.mail.Recipients) > 0 {
		out = append(out, c)
	}
	return out
}

func (p *pass) resolveMail(m *envelope.Mail) {
	if !p.needsResolving(m) {
		return
	}
	x := expansion{pass: p, mail: m, seen: map[string]bool{}}
	for _, r := range m.Recipients {
		x.add(r)
	}
	m.Recipients = x.out
}

// needsResolving spares mail to foreign domains the work.
func (p *pass) needsResolving(m *envelope.Mail) bool {
	for _, r := range m.Recipients {
		if (r.Address.Domain == "" || p.accepted.find(r.Address.Domain) != nil) && !p.resolved[r.Address.Key()] {
			return true
		}
	}
	return false
}

// expansion collects the recipients that the recipients of a mail stand for, each address once.
type expansion struct {
	*pass
	mail *envelope.Mail
	out  []*envelope.Recipient
	seen map[string]bool
}

// add resolves one recipient of the envelope.
func (x *expansion) add(r *envelope.Recipient) {
	// RFC 5321 section 4.1.1.3: <postmaster> without a domain is our own.
	if r.Address.IsPostmaster() {
		if own, err := address.Parse(x.config.Host.Postmaster); err == nil && own.Domain != "" {
			rename(r, own)
		}
	}
	domain := x.accepted.find(r.Address.Domain)
	if domain == nil || x.resolved[r.Address.Key()] {
		x.keep(r)
		return
	}
	if members, ok := directory.Group(x.tables, r.Address); ok {
		x.expand(r, members)
		return
	}
	x.known(r, domain)
}

// known keeps r under its primary address, or fails it.
func (x *expansion) known(r *envelope.Recipient, domain *config.AcceptedDomain) {
	primary, ok := directory.Recipient(x.tables, r.Address)
	switch {
	case ok && primary.Key() != r.Address.Key():
		rename(r, primary)
		if members, group := directory.Group(x.tables, primary); group {
			x.expand(r, members)
			return
		}
	case ok, domain.Type != config.Authoritative, strings.EqualFold(r.Address.Local, "postmaster"):
		// RFC 5321 section 4.5.1: mail for postmaster is never refused for want of a mailbox.
	case directory.Covers(x.tables, r.Address.Domain):
		x.failWith(r, "5.1.1", "user unknown")
		return
	}
	x.keep(r)
}

// keep adds r unless its address is there already: someone named twice, or also a member, gets one copy.
func (x *expansion) keep(r *envelope.Recipient) {
	key := r.Address.Key()
	if x.seen[key] {
		return
	}
	x.seen[key] = true
	if x.pass.resolved == nil {
		x.pass.resolved = map[string]bool{}
	}
	x.pass.resolved[key] = true
	x.out = append(x.out, r)
}

// rename gives r another address, and remembers the one it had first.
func rename(r *envelope.Recipient, to address.Mailbox) {
	if r.Original == "" {
		r.Original = r.Address.String()
	}
	r.Address = to
}

// expand puts the members of a group, and of groups in it, in the place of r. A group that was met already is
// left out, so loops end.
func (x *expansion) expand(r *envelope.Recipient, members []address.Mailbox) {
	g := grouping{expansion: x, top: r, met: map[string]bool{r.Address.Key(): true}}
	g.members(members)
	switch {
	case g.full:
		x.failWith(r, "5.2.4", "group has too many members")
	case g.found == 0:
		x.failWith(r, "5.2.4", "group has no members")
	case r.Notify&envelope.NotifySuccess != 0:
		// RFC 3461 section 5.2.7.3: success of a list is its expansion.
		r.Reply = envelope.Reply{Code: 250, Enhanced: "2.1.5", Text: "expanded to the members of the group"}
		x.expanded = append(x.expanded, r)
	}
}

// grouping is the expansion of one group of the envelope.
type grouping struct {
	*expansion
	top   *envelope.Recipient
	met   map[string]bool
	found int
	full  bool
}

func (g *grouping) members(list []address.Mailbox) {
	for _, m := range list {
		if len(g.out) >= maxExpansion {
			g.full = true
			return
		}
		g.member(m)
	}
}

func (g *grouping) member(m address.Mailbox) {
	if primary, ok := directory.Recipient(g.tables, m); ok {
		m = primary
	}
	nested, group := directory.Group(g.tables, m)
	switch {
	case !group:
		g.found++
		g.deliver(m)
	case !g.met[m.Key()]:
		g.met[m.Key()] = true
		g.members(nested)
	}
}

// deliver adds a member as a recipient. SUCCESS was answered by the expansion (RFC 3461 section 5.2.7.3).
func (g *grouping) deliver(m address.Mailbox) {
	if g.seen[m.Key()] {
		return
	}
	r := cloneRecipient(g.top)
	r.Address = m
	r.ExpandedFrom = g.top.Address.String()
	rename(r, m)
	if g.top.Original == "" {
		r.Original = g.top.Address.String()
	}
	if r.Notify &^= envelope.NotifySuccess; r.Notify == 0 && g.top.Notify != 0 {
		r.Notify = envelope.NotifyNever
	}
	r.Index = g.mail.NextIndex
	g.mail.NextIndex++
	g.keep(r)
}
