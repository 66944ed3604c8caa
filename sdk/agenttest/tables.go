package agenttest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// tables of a host, in memory.
type tables struct{ rows map[string]map[string]Row }

func newTables() *tables { return &tables{map[string]map[string]Row{}} }

func (t *tables) get(table, key string, now time.Time) (Row, bool) {
	row, ok := t.rows[table][key]
	if !ok || !row.Expires.IsZero() && !now.Before(row.Expires) {
		return Row{}, false
	}
	return row, true
}

// match the row with the longest prefix that holds the address.
func (t *tables) match(table, key string, now time.Time) (Row, bool) {
	addr, err := netip.ParseAddr(key)
	if err != nil {
		return Row{}, false
	}
	var best Row
	bits := -1
	for k := range t.rows[table] {
		prefix, err := netip.ParsePrefix(k)
		if row, ok := t.get(table, k, now); ok && err == nil && prefix.Contains(addr) && prefix.Bits() > bits {
			best, bits = row, prefix.Bits()
		}
	}
	return best, bits >= 0
}

func (t *tables) list(table string, now time.Time) []Row {
	var all []Row
	for _, key := range slices.Sorted(maps.Keys(t.rows[table])) {
		if row, ok := t.get(table, key, now); ok {
			all = append(all, row)
		}
	}
	return all
}

// put keeps the time at which the row was first put.
func (t *tables) put(table, key, value string, now time.Time, keep time.Duration) {
	row := Row{Key: key, Value: value, Created: now}
	if old, ok := t.get(table, key, now); ok {
		row.Created = old.Created
	}
	if keep > 0 {
		row.Expires = now.Add(keep)
	}
	if t.rows[table] == nil {
		t.rows[table] = map[string]Row{}
	}
	t.rows[table][key] = row
}

func (t *tables) write(w *agentpb.TableWrite, now time.Time) error {
	key, keep := string(w.GetKey()), time.Duration(w.GetTtlMillis())*time.Millisecond
	old, exists := t.get(w.GetTable(), key, now)
	switch w.GetOp() {
	case agentpb.TableOp_TABLE_OP_PUT:
		t.put(w.GetTable(), key, string(w.GetValue()), now, keep)
	case agentpb.TableOp_TABLE_OP_PUT_IF_ABSENT:
		if !exists {
			t.put(w.GetTable(), key, string(w.GetValue()), now, keep)
		}
	case agentpb.TableOp_TABLE_OP_ADD:
		value, err := added(old.Value, w.GetField(), w.GetAmount())
		if err != nil {
			return fmt.Errorf("table %q: %w", w.GetTable(), err)
		}
		t.put(w.GetTable(), key, value, now, keep)
	case agentpb.TableOp_TABLE_OP_DELETE:
		delete(t.rows[w.GetTable()], key)
	default:
		return fmt.Errorf("table %q: unknown op %v", w.GetTable(), w.GetOp())
	}
	return nil
}

// added is the row with amount added to one of its numbers.
func added(row, field string, amount int64) (string, error) {
	values := map[string]any{}
	if row != "" {
		if err := json.Unmarshal([]byte(row), &values); err != nil {
			return "", err
		}
	}
	n, _ := values[field].(float64)
	values[field] = int64(n) + amount
	text, err := json.Marshal(values)
	return string(text), err
}

// rows that a use of a table brings to an event.
func (w *world) rows(use *agentpb.TableUse, index uint32, event *agentpb.Event) []*agentpb.Row {
	if len(use.GetKey()) == 0 {
		return nil
	}
	if !slices.ContainsFunc(use.GetKey(), ofRecipient) {
		return []*agentpb.Row{w.row(use, index, keyOf(use, event, nil), 0)}
	}
	if r := event.GetArguments().GetRcpt().GetRecipient(); r != nil {
		return []*agentpb.Row{w.row(use, index, keyOf(use, event, r), r.GetIndex())}
	}
	var rows []*agentpb.Row
	for _, r := range event.GetEnvelope().GetRecipients() {
		rows = append(rows, w.row(use, index, keyOf(use, event, r), r.GetIndex()))
	}
	return rows
}

func ofRecipient(p *agentpb.KeyPart) bool {
	return p.GetFact() == agentpb.Fact_FACT_RECIPIENT || p.GetFact() == agentpb.Fact_FACT_RECIPIENT_DOMAIN
}

func (w *world) row(use *agentpb.TableUse, index uint32, key string, recipient uint32) *agentpb.Row {
	p := &agentpb.Row{Table: use.GetTable(), Key: []byte(key), Use: index, Recipient: recipient}
	get := w.tables.get
	if use.GetLongestPrefix() {
		get = w.tables.match
	}
	row, ok := get(use.GetTable(), key, w.agent.now)
	if !ok {
		return p
	}
	p.Found, p.Value, p.CreatedUnixNanos = true, []byte(row.Value), row.Created.UnixNano()
	if use.GetLongestPrefix() {
		p.Matched = []byte(row.Key)
	}
	if !row.Expires.IsZero() {
		p.ExpiresUnixNanos = row.Expires.UnixNano()
	}
	return p
}

// needed rows, under the index of the first use of their table.
func (w *world) needed(sub *agentpb.Subscription, need *agentpb.Need) []*agentpb.Row {
	var rows []*agentpb.Row
	for _, t := range need.GetTables() {
		index := slices.IndexFunc(sub.GetTables(), func(u *agentpb.TableUse) bool { return u.GetTable() == t.GetTable() })
		if index < 0 {
			continue
		}
		for _, key := range t.GetKeys() {
			rows = append(rows, w.row(sub.GetTables()[index], uint32(index), string(key), 0))
		}
	}
	return rows
}

// keyOf an event: the facts as the host writes them, joined by "|".
func keyOf(use *agentpb.TableUse, event *agentpb.Event, r *agentpb.Recipient) string {
	var parts []string
	for _, p := range use.GetKey() {
		parts = append(parts, factOf(p, event, r))
	}
	return strings.Join(parts, "|")
}

func factOf(p *agentpb.KeyPart, event *agentpb.Event, r *agentpb.Recipient) string {
	switch p.GetFact() {
	case agentpb.Fact_FACT_CLIENT:
		return masked(event.GetSession().GetClient(), p)
	case agentpb.Fact_FACT_HELO:
		return strings.ToLower(string(event.GetSession().GetHelo()))
	case agentpb.Fact_FACT_SENDER:
		return mailboxKey(event.GetEnvelope().GetSender().GetAddress())
	case agentpb.Fact_FACT_SENDER_DOMAIN:
		return domainOf(event.GetEnvelope().GetSender().GetAddress())
	case agentpb.Fact_FACT_RECIPIENT:
		return mailboxKey(r.GetAddress())
	case agentpb.Fact_FACT_RECIPIENT_DOMAIN:
		return domainOf(r.GetAddress())
	case agentpb.Fact_FACT_HEADER_FROM:
		return mailboxKey(event.GetMessage().GetHeaderFrom())
	case agentpb.Fact_FACT_HEADER_FROM_DOMAIN:
		return domainOf(event.GetMessage().GetHeaderFrom())
	case agentpb.Fact_FACT_IDENTITY:
		return event.GetSession().GetAuthentication().GetIdentity()
	}
	return p.GetLiteral()
}

func domainOf(mailbox []byte) string {
	s := string(mailbox)
	return address.ASCIIDomain(s[strings.LastIndexByte(s, '@')+1:])
}

// mailboxKey is an address in the one form that keys have.
func mailboxKey(mailbox []byte) string {
	m, err := address.Parse(string(mailbox))
	if err != nil {
		return strings.ToLower(string(mailbox))
	}
	return m.Key()
}

// masked address of the client.
func masked(client []byte, p *agentpb.KeyPart) string {
	addr, ok := netip.AddrFromSlice(client)
	if !ok {
		return ""
	}
	bits := int(p.GetIpv6Bits())
	if addr.Is4() {
		bits = int(p.GetIpv4Bits())
	}
	if bits == 0 || bits >= addr.BitLen() {
		return addr.String()
	}
	prefix, _ := addr.Prefix(bits)
	return prefix.Addr().String()
}

// stamps of a session and its message.
type stamps struct{ list []*agentpb.Stamp }

func (s *stamps) set(name string, stamp *agentpb.Stamp) {
	s.list = slices.DeleteFunc(s.list, func(old *agentpb.Stamp) bool {
		return old.GetName() == name && old.GetScope() == stamp.GetScope() && old.GetRecipient() == stamp.GetRecipient()
	})
	s.list = append(s.list, &agentpb.Stamp{
		Name: name, Scope: stamp.GetScope(), Recipient: stamp.GetRecipient(), Value: stamp.GetValue(),
	})
}

// named stamps; "agent.*" is all of an agent.
func (s *stamps) named(pattern string) []*agentpb.Stamp {
	prefix, wild := strings.CutSuffix(pattern, "*")
	var list []*agentpb.Stamp
	for _, stamp := range s.list {
		if stamp.GetName() == pattern || wild && strings.HasPrefix(stamp.GetName(), prefix) {
			list = append(list, stamp)
		}
	}
	return list
}

// endMail drops what lasts as long as a message.
func (s *stamps) endMail() {
	s.list = slices.DeleteFunc(s.list, func(stamp *agentpb.Stamp) bool {
		return stamp.GetScope() != agentpb.Scope_SCOPE_SESSION
	})
}
