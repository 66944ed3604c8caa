package sdk

import (
	"encoding/json"
	"fmt"
	"iter"
	"reflect"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk/agentpb"
)

// Table is a table of rows that the host keeps, shared by all processes of the agent. T is the row, a struct
// written as JSON of up to 4 KiB. Rows of the keys that UseTable names come with each event.
type Table[T any] struct{ use *tableUse }

// tableUse is a table as the subscriptions mention it.
type tableUse struct {
	name    string
	key     []*agentpb.KeyPart
	longest bool
	maxRows uint64
	only    []EventKind
	index   [kinds]int // in the subscription of that kind, plus 1; 0: not there
}

// Row of a table.
type Row[T any] struct {
	// Value is the zero T if the row does not exist.
	Value T
	// Key that was looked up.
	Key string
	// Matched is the key of the row found, where LongestPrefix made it differ.
	Matched string
	// Created is when the row was first put.
	Created time.Time
	// Expires is when it leaves; zero: never.
	Expires time.Time
}

// TableOption of UseTable.
type TableOption func(*tableUse)

// LongestPrefix: the keys of the table are IP prefixes, and the row of the longest one that holds the address
// is sent.
func LongestPrefix() TableOption { return func(u *tableUse) { u.longest = true } }

// MaxRows bounds an own table; the oldest rows leave when more are written. The default is 1,000,000.
func MaxRows(n int) TableOption { return func(u *tableUse) { u.maxRows = uint64(n) } }

// OnlyAt sends the row with these events alone. Without it each event of the agent that knows the facts of the
// key brings its row.
func OnlyAt(kinds ...EventKind) TableOption { return func(u *tableUse) { u.only = kinds } }

// UseTable makes a table known: "recipients", "groups", "safelist", "ip-block", "reputation", or one of the
// agent's own, which it may write too.
func UseTable[T any](r *Registrar, name string, key TableKey, options ...TableOption) Table[T] {
	u := &tableUse{name: name, key: key.parts}
	for _, o := range options {
		o(u)
	}
	r.tables = append(r.tables, u)
	return Table[T]{u}
}

// TableKey says which facts of an event make the key of a table.
type TableKey struct{ parts []*agentpb.KeyPart }

// Key joins facts with "|". Without any no row is sent, but Needs may ask for keys.
func Key(parts ...KeyPart) TableKey {
	var k TableKey
	for _, p := range parts {
		k.parts = append(k.parts, p.part())
	}
	return k
}

// KeyPart is a fact of the event as text; addresses and names in lower case.
type KeyPart interface{ part() *agentpb.KeyPart }

// Fact is a KeyPart that is used as it is.
type Fact agentpb.Fact

// Facts that keys are made of.
const (
	Client           = Fact(agentpb.Fact_FACT_CLIENT)             // the source address
	Helo             = Fact(agentpb.Fact_FACT_HELO)               // the name given with HELO or EHLO
	Sender           = Fact(agentpb.Fact_FACT_SENDER)             // the envelope sender; empty for the null sender
	SenderDomain     = Fact(agentpb.Fact_FACT_SENDER_DOMAIN)      // its domain
	Recipient        = Fact(agentpb.Fact_FACT_RECIPIENT)          // of this RCPT; later a row for each recipient
	RecipientDomain  = Fact(agentpb.Fact_FACT_RECIPIENT_DOMAIN)   // its domain
	HeaderFrom       = Fact(agentpb.Fact_FACT_HEADER_FROM)        // the first address in From
	HeaderFromDomain = Fact(agentpb.Fact_FACT_HEADER_FROM_DOMAIN) // its domain
	Identity         = Fact(agentpb.Fact_FACT_IDENTITY)           // the authenticated user
)

func (f Fact) part() *agentpb.KeyPart { return &agentpb.KeyPart{Fact: agentpb.Fact(f)} }

type keyPart struct{ p *agentpb.KeyPart }

func (k keyPart) part() *agentpb.KeyPart { return k.p }

// ClientNet is the network of the source address: so many leading bits of an IPv4 and of an IPv6 address.
func ClientNet(ipv4Bits, ipv6Bits int) KeyPart {
	return keyPart{&agentpb.KeyPart{
		Fact: agentpb.Fact_FACT_CLIENT, Ipv4Bits: uint32(ipv4Bits), Ipv6Bits: uint32(ipv6Bits),
	}}
}

// Literal text in a key.
func Literal(text string) KeyPart {
	return keyPart{&agentpb.KeyPart{Fact: agentpb.Fact_FACT_LITERAL, Literal: text}}
}

// available reports whether the facts of the key are known at an event.
func (u *tableUse) available(kind EventKind) bool {
	if len(u.only) > 0 {
		for _, k := range u.only {
			if k == kind {
				return true
			}
		}
		return false
	}
	for _, p := range u.key {
		if !factKnown(p.GetFact(), kind) {
			return false
		}
	}
	return true
}

// factKnown says from which event on a fact is known.
func factKnown(fact agentpb.Fact, kind EventKind) bool {
	if kind == OnSchedule {
		return true // all rows come, in pages
	}
	switch fact {
	case agentpb.Fact_FACT_SENDER, agentpb.Fact_FACT_SENDER_DOMAIN:
		return hasEnvelope(kind)
	case agentpb.Fact_FACT_RECIPIENT, agentpb.Fact_FACT_RECIPIENT_DOMAIN:
		return hasEnvelope(kind) && kind != OnMail
	case agentpb.Fact_FACT_HEADER_FROM, agentpb.Fact_FACT_HEADER_FROM_DOMAIN:
		return hasMessage(kind)
	}
	return true
}

func hasEnvelope(kind EventKind) bool {
	return kind >= OnMail && kind <= OnEndOfData || kind >= OnSubmitted && kind != OnSchedule
}

func hasMessage(kind EventKind) bool {
	return kind == OnEndOfHeaders || kind == OnEndOfData || kind >= OnSubmitted && kind != OnSchedule
}

func (u *tableUse) proto() *agentpb.TableUse {
	return &agentpb.TableUse{Table: u.name, Key: u.key, LongestPrefix: u.longest, MaxRows: u.maxRows}
}

// row of this use that satisfies the condition, in an event.
func (u *tableUse) row(e *Event, matches func(*agentpb.Row) bool) *agentpb.Row {
	index := u.index[e.Kind]
	if index == 0 || e.context == nil {
		return nil
	}
	for _, r := range e.context.own().GetRows() {
		if int(r.GetUse()) == index-1 && r.GetTable() == u.name && matches(r) {
			return r
		}
	}
	return nil
}

// Row that came with the event. Not known: it does not exist; its Key is there all the same.
func (t Table[T]) Row(e Subject) (row Row[T], known bool) {
	return rowOf[T](t.use.row(e.Common(), func(*agentpb.Row) bool { return true }))
}

// RowFor is the row of one recipient, where the key holds Recipient.
func (t Table[T]) RowFor(e Subject, r EnvelopeRecipient) (row Row[T], known bool) {
	return rowOf[T](t.use.row(e.Common(), func(p *agentpb.Row) bool { return int(p.GetRecipient()) == r.Index }))
}

// RowOf is the row that came for a key of Needs.
func (t Table[T]) RowOf(e Subject, key string) (row Row[T], known bool) {
	return rowOf[T](t.use.row(e.Common(), func(p *agentpb.Row) bool { return string(p.GetKey()) == key }))
}

// Rows of the page, at OnSchedule.
func (t Table[T]) Rows(e *ScheduleEvent) iter.Seq[Row[T]] {
	return func(yield func(Row[T]) bool) {
		for _, p := range e.Proto().GetArguments().GetSchedule().GetRows() {
			if row, known := rowOf[T](p); p.GetTable() == t.use.name && known && !yield(row) {
				return
			}
		}
	}
}

// rowOf decodes a row. One that does not decode into T was written by another version: it is not known.
func rowOf[T any](p *agentpb.Row) (row Row[T], known bool) {
	if p == nil {
		return row, false
	}
	row.Key, row.Matched = string(p.GetKey()), string(p.GetMatched())
	if !p.GetFound() {
		return row, false
	}
	if err := json.Unmarshal(p.GetValue(), &row.Value); err != nil {
		return Row[T]{Key: row.Key}, false
	}
	row.Created, row.Expires = timeOf(p.GetCreatedUnixNanos()), timeOf(p.GetExpiresUnixNanos())
	return row, true
}

// Keys of a table to ask for with Needs.
type Keys struct {
	table string
	keys  []string
}

// Keys to ask for with Needs, up to 256 in all.
func (t Table[T]) Keys(keys ...string) Keys { return Keys{t.use.name, keys} }

func needOf(list []Keys) *agentpb.Need {
	need := new(agentpb.Need)
	for _, k := range list {
		p := &agentpb.NeedKeys{Table: k.table}
		for _, key := range k.keys {
			p.Keys = append(p.Keys, []byte(key))
		}
		need.Tables = append(need.Tables, p)
	}
	return need
}

// Write changes a row when the event closes: the one that came with the event, unless Key or For names another.
type Write struct {
	use       *tableUse
	op        agentpb.TableOp
	value     any
	field     string
	amount    int64
	ttl       time.Duration
	key       string
	hasKey    bool
	recipient int // index plus 1; 0: none
	err       error
}

// Put writes the row. It leaves after keep; 0: never.
func (t Table[T]) Put(value T, keep time.Duration) Write {
	return Write{use: t.use, op: agentpb.TableOp_TABLE_OP_PUT, value: value, ttl: keep}
}

// PutIfAbsent writes the row unless it exists.
func (t Table[T]) PutIfAbsent(value T, keep time.Duration) Write {
	return Write{use: t.use, op: agentpb.TableOp_TABLE_OP_PUT_IF_ABSENT, value: value, ttl: keep}
}

// Add adds to a number in the row: field is the name of a field of T, or a key if T is a map. A row that is absent counts as 0.
func (t Table[T]) Add(field string, amount int64, keep time.Duration) Write {
	name, err := jsonName[T](field)
	return Write{use: t.use, op: agentpb.TableOp_TABLE_OP_ADD, field: name, amount: amount, ttl: keep, err: err}
}

// Delete the row.
func (t Table[T]) Delete() Write {
	return Write{use: t.use, op: agentpb.TableOp_TABLE_OP_DELETE}
}

// At another key than that of the event.
func (w Write) At(key string) Write {
	w.key, w.hasKey = key, true
	return w
}

// For the row of one recipient, where the key holds Recipient.
func (w Write) For(r EnvelopeRecipient) Write {
	w.recipient = r.Index + 1
	return w
}

// jsonName of a field of T, which must be an integer.
func jsonName[T any](field string) (string, error) {
	t := reflect.TypeFor[T]()
	if t.Kind() == reflect.Map {
		return field, nil
	}
	var f reflect.StructField
	var ok bool
	if t.Kind() == reflect.Struct {
		f, ok = t.FieldByName(field)
	}
	if !ok || !f.Type.ConvertibleTo(reflect.TypeFor[int64]()) {
		return "", fmt.Errorf("%s has no number %q to add to", t, field)
	}
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	if name == "" {
		name = f.Name
	}
	return name, nil
}

func (w Write) proto(e *Event) (*agentpb.TableWrite, error) {
	if w.err != nil {
		return nil, fmt.Errorf("table %q: %w", w.use.name, w.err)
	}
	key, err := w.keyFor(e)
	if err != nil {
		return nil, err
	}
	p := &agentpb.TableWrite{
		Table: w.use.name, Key: key, Op: w.op, Field: w.field, Amount: w.amount, TtlMillis: uint64(w.ttl.Milliseconds()),
	}
	if w.value != nil {
		if p.Value, err = json.Marshal(w.value); err != nil {
			return nil, fmt.Errorf("table %q: %w", w.use.name, err)
		}
	}
	return p, nil
}

// keyFor finds the key in the row that came with the event.
func (w Write) keyFor(e *Event) ([]byte, error) {
	if w.hasKey {
		return []byte(w.key), nil
	}
	row := w.use.row(e, func(r *agentpb.Row) bool { return w.recipient == 0 || int(r.GetRecipient()) == w.recipient-1 })
	if row == nil {
		return nil, fmt.Errorf("table %q: %s brings no row, so the write needs a key (Write.At)", w.use.name, EventName(e.Kind))
	}
	return row.GetKey(), nil
}
