package replay

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/posternmail/postern/host/internal/tables"
)

// Rows are the tables that a dry run starts from. tables.Store has these methods.
type Rows interface {
	Get(table, key string) (tables.Row, bool)
	Match(table string, addr netip.Addr) (tables.Row, bool)
}

// NoRows is an empty Rows.
type NoRows struct{}

// Get implements Rows.
func (NoRows) Get(string, string) (tables.Row, bool) { return tables.Row{}, false }

// Match implements Rows.
func (NoRows) Match(string, netip.Addr) (tables.Row, bool) { return tables.Row{}, false }

// Overlay is a tables.Store whose writes stay in memory, above rows that are only read. What agents write during
// a dry run is seen by the events behind it and thrown away at the end.
type Overlay struct {
	below Rows
	now   func() time.Time

	mu     sync.Mutex
	tables map[string]map[string]change
	events map[string]bool // applied already
}

// change of a row.
type change struct {
	row     tables.Row
	deleted bool
}

var _ tables.Store = (*Overlay)(nil)

// NewOverlay makes an Overlay above rows.
func NewOverlay(below Rows) *Overlay {
	return &Overlay{below: below, now: time.Now, tables: map[string]map[string]change{}, events: map[string]bool{}}
}

// Get implements tables.Store.
func (o *Overlay) Get(table, key string) (tables.Row, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.get(table, key)
}

func (o *Overlay) get(table, key string) (tables.Row, bool) {
	if c, found := o.tables[table][key]; found {
		return c.row, o.valid(c)
	}
	return o.below.Get(table, key)
}

// valid reports whether the row of c can be read.
func (o *Overlay) valid(c change) bool {
	return !c.deleted && (c.row.Expires.IsZero() || o.now().Before(c.row.Expires))
}

// Match implements tables.Store. A row deleted in the overlay hides the one below it; a shorter prefix below that
// one is not found then.
func (o *Overlay) Match(table string, addr netip.Addr) (tables.Row, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	best, found := o.below.Match(table, addr)
	if _, changed := o.tables[table][best.Key]; changed {
		found = false
	}
	for _, c := range o.tables[table] {
		if o.valid(c) && holds(c.row.Key, addr) && (!found || prefixBits(c.row.Key) > prefixBits(best.Key)) {
			best, found = c.row, true
		}
	}
	return best, found
}

func holds(key string, addr netip.Addr) bool {
	prefix, err := parsePrefix(key)
	return err == nil && prefix.Contains(addr.Unmap())
}

func prefixBits(key string) int {
	prefix, err := parsePrefix(key)
	if err != nil {
		return -1
	}
	return prefix.Bits()
}

// parsePrefix takes an address for the prefix that holds it alone.
func parsePrefix(key string) (netip.Prefix, error) {
	if strings.Contains(key, "/") {
		return netip.ParsePrefix(key)
	}
	addr, err := netip.ParseAddr(key)
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(addr, addr.BitLen()), nil
}

// Apply implements tables.Store.
func (o *Overlay) Apply(writes []tables.Write) {
	o.mu.Lock()
	defer o.mu.Unlock()
	applied := map[string]bool{}
	for _, w := range writes {
		if w.EventID != "" && o.events[w.EventID] {
			continue
		}
		applied[w.EventID] = true
		o.apply(w)
	}
	delete(applied, "")
	maps.Copy(o.events, applied)
}

func (o *Overlay) apply(w tables.Write) {
	before, exists := o.get(w.Table, w.Key)
	c := change{row: tables.Row{Key: w.Key, Value: w.Value, Created: o.now()}}
	switch w.Op {
	case tables.PutIfAbsent:
		if exists {
			return
		}
	case tables.Add:
		c.row.Value = added(before.Value, w.Field, w.Amount)
	case tables.Delete:
		c.deleted = true
	}
	if exists {
		c.row.Created = before.Created
	}
	if w.TTL > 0 {
		c.row.Expires = o.now().Add(w.TTL)
	}
	if o.tables[w.Table] == nil {
		o.tables[w.Table] = map[string]change{}
	}
	o.tables[w.Table][w.Key] = c
}

// added adds to a number in a JSON object; what is not there counts as 0.
func added(value []byte, field string, amount int64) []byte {
	object := map[string]json.RawMessage{}
	if json.Unmarshal(value, &object) != nil || object == nil {
		object = map[string]json.RawMessage{}
	}
	var n int64
	if json.Unmarshal(object[field], &n) != nil {
		n = 0
	}
	sum, err := json.Marshal(n + amount)
	if err != nil {
		return value
	}
	object[field] = sum
	out, err := json.Marshal(object)
	if err != nil {
		return value
	}
	return out
}

// List implements tables.Store: the rows written in the dry run.
func (o *Overlay) List(table, after string, fn func(tables.Row) bool) {
	o.mu.Lock()
	rows := maps.Clone(o.tables[table])
	o.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(rows)) {
		if key > after && o.valid(rows[key]) && !fn(rows[key].row) {
			return
		}
	}
}

// Names implements tables.Store: the tables written in the dry run.
func (o *Overlay) Names() map[string]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	names := map[string]int{}
	for table, rows := range o.tables {
		names[table] = len(rows)
	}
	return names
}

// Replace implements tables.Store.
func (o *Overlay) Replace(table string, rows []tables.Row) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tables[table] = map[string]change{}
	for _, row := range rows {
		o.tables[table][row.Key] = change{row: row}
	}
}

// Close implements tables.Store. What was written is gone with it.
func (o *Overlay) Close() error { return nil }
