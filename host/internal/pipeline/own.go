package pipeline

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// use is a TableUse ready for use.
type use struct {
	index     uint32
	table     string // name in the store
	alias     string // the agent's name for it
	key       []*agentpb.KeyPart
	prefix    bool // longest prefix
	recipient bool // the key holds a fact of the recipient
}

func newUse(agent string, index int, t *agentpb.TableUse) use {
	u := use{
		index: uint32(index), table: TableName(agent, t.GetTable()), alias: t.GetTable(), key: t.GetKey(), prefix: t.GetLongestPrefix(),
	}
	for _, part := range u.key {
		switch part.GetFact() {
		case agentpb.Fact_FACT_RECIPIENT, agentpb.Fact_FACT_RECIPIENT_DOMAIN:
			u.recipient = true
		}
	}
	return u
}

// keyFacts are what keys are made of.
type keyFacts struct {
	session   *envelope.Session
	mail      *envelope.Mail
	from      func() (mailbox, domain string) // of the header
	recipient *envelope.Recipient
}

// makeKey joins the facts. ok is false when one of them is not there.
func (u *use) makeKey(f *keyFacts) (key string, ok bool) {
	if len(u.key) == 1 {
		return f.text(u.key[0])
	}
	texts := make([]string, len(u.key))
	for i, part := range u.key {
		if texts[i], ok = f.text(part); !ok {
			return "", false
		}
	}
	return strings.Join(texts, "|"), len(u.key) > 0
}

func (f *keyFacts) text(part *agentpb.KeyPart) (text string, ok bool) {
	switch part.GetFact() {
	case agentpb.Fact_FACT_LITERAL:
		return part.GetLiteral(), true
	case agentpb.Fact_FACT_CLIENT, agentpb.Fact_FACT_HELO, agentpb.Fact_FACT_IDENTITY:
		return f.sessionText(part)
	case agentpb.Fact_FACT_RECIPIENT, agentpb.Fact_FACT_RECIPIENT_DOMAIN:
		if f.recipient == nil {
			return "", false
		}
		if part.GetFact() == agentpb.Fact_FACT_RECIPIENT {
			return f.recipient.Address.Key(), true
		}
		return address.ASCIIDomain(f.recipient.Address.Domain), true
	}
	return f.mailText(part.GetFact())
}

func (f *keyFacts) sessionText(part *agentpb.KeyPart) (text string, ok bool) {
	if f.session == nil {
		return "", false
	}
	switch part.GetFact() {
	case agentpb.Fact_FACT_HELO:
		return strings.ToLower(f.session.Helo), true
	case agentpb.Fact_FACT_IDENTITY:
		if f.session.Auth == nil {
			return "", true
		}
		return f.session.Auth.Identity, true
	}
	return maskedAddress(f.session.Client.Addr(), part)
}

// maskedAddress writes the leading bits of an address as an address: 192.0.2.7 with 24 bits is "192.0.2.0".
func maskedAddress(a netip.Addr, part *agentpb.KeyPart) (text string, ok bool) {
	a = a.Unmap().WithZone("")
	if !a.IsValid() {
		return "", false
	}
	bits := part.GetIpv4Bits()
	if a.Is6() {
		bits = part.GetIpv6Bits()
	}
	if bits == 0 || int(bits) >= a.BitLen() {
		return a.String(), true
	}
	p, err := a.Prefix(int(bits))
	return p.Addr().String(), err == nil
}

func (f *keyFacts) mailText(fact agentpb.Fact) (text string, ok bool) {
	if f.mail == nil {
		return "", false
	}
	switch fact {
	case agentpb.Fact_FACT_SENDER:
		return f.mail.Sender.Address.Key(), true
	case agentpb.Fact_FACT_SENDER_DOMAIN:
		return address.ASCIIDomain(f.mail.Sender.Address.Domain), true
	case agentpb.Fact_FACT_HEADER_FROM:
		mailbox, _ := f.from()
		return mailbox, true
	case agentpb.Fact_FACT_HEADER_FROM_DOMAIN:
		_, domain := f.from()
		return domain, true
	}
	return "", false
}

// lookup reads the row of a key as agents get it, found or not.
func (u *use) lookup(store tables.Store, key string) *agentpb.Row {
	row := &agentpb.Row{Table: u.alias, Key: []byte(key), Use: u.index}
	var found tables.Row
	switch {
	case store == nil:
	case u.prefix:
		if a, err := netip.ParseAddr(key); err == nil {
			found, row.Found = store.Match(u.table, a.Unmap())
		}
	default:
		found, row.Found = store.Get(u.table, key)
	}
	if !row.Found {
		return row
	}
	fillRow(row, &found)
	if found.Key != key {
		row.Matched = []byte(found.Key)
	}
	return row
}

func fillRow(row *agentpb.Row, from *tables.Row) {
	row.Value, row.CreatedUnixNanos = from.Value, from.Created.UnixNano()
	if !from.Expires.IsZero() {
		row.ExpiresUnixNanos = from.Expires.UnixNano()
	}
}

// rows are what the subscription's table uses give at this event: one row for each, one a recipient where the key
// holds a recipient.
func (a *ask) rows(store tables.Store, f keyFacts, recipients []*envelope.Recipient) (rows []*agentpb.Row) {
	for i := range a.uses {
		u := &a.uses[i]
		if len(u.key) == 0 {
			continue
		}
		if !u.recipient {
			recipients := [...]*envelope.Recipient{nil}
			rows = u.rowsFor(rows, store, f, recipients[:])
			continue
		}
		rows = u.rowsFor(rows, store, f, recipients)
	}
	return rows
}

func (u *use) rowsFor(rows []*agentpb.Row, store tables.Store, f keyFacts, recipients []*envelope.Recipient) []*agentpb.Row {
	for _, r := range recipients {
		f.recipient = r
		key, ok := u.makeKey(&f)
		if !ok {
			continue
		}
		row := u.lookup(store, key)
		if r != nil {
			row.Recipient = uint32(r.Index)
		}
		rows = append(rows, row)
	}
	return rows
}

// stamps collects the stamps that the subscription reads.
func (a *ask) stamps(session envelope.Stamps, m *envelope.Mail, recipients []*envelope.Recipient) (list []*agentpb.Stamp) {
	if len(a.reads) == 0 {
		return nil
	}
	list = a.pick(list, session, agentpb.Scope_SCOPE_SESSION, 0)
	if m != nil {
		list = a.pick(list, m.Stamps, agentpb.Scope_SCOPE_MESSAGE, 0)
	}
	for _, r := range recipients {
		list = a.pick(list, r.Stamps, agentpb.Scope_SCOPE_RECIPIENT, uint32(r.Index))
	}
	return list
}

func (a *ask) pick(list []*agentpb.Stamp, from envelope.Stamps, scope agentpb.Scope, recipient uint32) []*agentpb.Stamp {
	start := len(list)
	for name, value := range from {
		if a.reads.has(name) {
			list = append(list, &agentpb.Stamp{Name: name, Scope: scope, Recipient: recipient, Value: value})
		}
	}
	slices.SortFunc(list[start:], func(a, b *agentpb.Stamp) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// neededRows answers Answer.need: the rows as a marshalled Event, to be put behind the agent's own part.
func (a *ask) neededRows(store tables.Store, need *agentpb.Need) ([]byte, error) {
	e := &agentpb.Event{Needed: true}
	for _, t := range need.GetTables() {
		u := a.use(t.GetTable())
		for _, key := range t.GetKeys() {
			e.Rows = append(e.Rows, u.lookup(store, string(key)))
		}
	}
	return proto.Marshal(e)
}

// use finds the first use of a table by the agent's name for it; nil when it is not declared.
func (a *ask) use(alias string) *use {
	for i := range a.uses {
		if a.uses[i].alias == alias {
			return &a.uses[i]
		}
	}
	return nil
}

// milliseconds turns a number of the protocol into a duration, at most a hundred years.
func milliseconds(n uint64) time.Duration {
	const most = 100 * 365 * 24 * time.Hour
	return time.Duration(min(n, uint64(most/time.Millisecond))) * time.Millisecond
}
