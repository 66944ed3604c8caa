package tables

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/hashicorp/go-hclog"
)

// Options of a Store on disk.
type Options struct {
	Logger hclog.Logger     // nil: no log
	Clock  func() time.Time // nil: time.Now
	Sync   time.Duration    // how long a write may be in memory only; 0: 500 ms
	// ReserveBytes of disk space must be free for rows to change; 0: 256 MiB.
	ReserveBytes uint64
}

const (
	defaultMaxRows = 1_000_000
	maxRow         = 4 << 10
	remembered     = 10 * time.Minute // event ids
	sweepEvery     = time.Minute
	sweepMost      = 10_000 // rows at a time, so that writers need not wait long
)

// disk is a Store in a Pebble database. Its write-ahead log is synced twice a second, and what a crash left
// unfinished at its end is dropped when it is opened.
//
// Keys: 'r' table 0 key -> row; 'a' table 0 created key: rows by age, for MaxRows; 'x' expires table 0 key: rows by
// expiry; 'e' expires id: events applied; 'i' id -> expires, to find them.
type disk struct {
	db      *pebble.DB
	options Options

	mu       sync.RWMutex // held for writing while rows change
	rows     map[string]int
	prefixes map[string]*prefixTree // of tables that Match was called for
	oldest   map[string][]byte      // age key of the row evicted last, by table
	dirty    bool
	closed   bool
	space    space

	stop chan struct{}
	done sync.WaitGroup
}

// Open opens the store in dir, which is made when it does not exist. A second process is refused.
func Open(dir string, o Options) (Store, error) {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.Sync <= 0 {
		o.Sync = 500 * time.Millisecond
	}
	if err := private(dir); err != nil {
		return nil, err
	}
	cache := pebble.NewCache(32 << 20)
	defer cache.Unref()
	settings := &pebble.Options{
		Cache: cache, MemTableSize: 4 << 20, Logger: quiet{o.Logger}, FormatMajorVersion: pebble.FormatNewest,
	}
	for i := range settings.Levels { // most lookups are of strangers: rows that are not there
		settings.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	db, err := pebble.Open(dir, settings)
	if err != nil {
		return nil, fmt.Errorf("opening the tables in %s: %w", dir, err)
	}
	d := &disk{db: db, options: o, rows: map[string]int{}, prefixes: map[string]*prefixTree{}, oldest: map[string][]byte{}, stop: make(chan struct{})}
	d.space = space{dir: dir, reserve: cmp.Or(o.ReserveBytes, defaultReserve)}
	if err := d.count(); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("reading the tables in %s: %w", dir, err)
	}
	d.done.Add(1)
	go d.keep()
	return d, nil
}

// private makes dir, or what is there of it, its owner's alone: rows name people.
func private(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the folder of the tables: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("closing the folder of the tables to others: %w", err)
	}
	return nil
}

// quiet passes what Pebble has to say to the log, where it does not drown the rest.
type quiet struct{ log hclog.Logger }

func (q quiet) Infof(format string, args ...any)  { q.log.Trace(fmt.Sprintf(format, args...)) }
func (q quiet) Errorf(format string, args ...any) { q.log.Error(fmt.Sprintf(format, args...)) }

// Fatalf is called when the disk fails under Pebble. What is in memory goes on being served.
func (q quiet) Fatalf(format string, args ...any) { q.log.Error(fmt.Sprintf(format, args...)) }

// count finds how many rows each table has.
func (d *disk) count() error {
	return d.scan([]byte{'r'}, func(key, _ []byte) bool {
		table, _ := splitRowKey(key)
		d.rows[table]++
		return true
	})
}

// keep syncs the log and drops what has expired, until Close.
func (d *disk) keep() {
	defer d.done.Done()
	syncing, sweeping := time.NewTicker(d.options.Sync), time.NewTicker(sweepEvery)
	defer syncing.Stop()
	defer sweeping.Stop()
	for {
		select {
		case <-d.stop:
			return
		case <-syncing.C:
			d.sync()
		case <-sweeping.C:
			d.sweep()
		}
	}
}

func (d *disk) sync() {
	d.mu.Lock()
	dirty := d.dirty
	d.dirty = false
	d.mu.Unlock()
	if !dirty {
		return
	}
	if err := d.db.LogData(nil, pebble.Sync); err != nil {
		d.options.Logger.Error("syncing the tables", "error", err)
	}
}

// Get implements Store.
func (d *disk) Get(table, key string) (Row, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed || d.rows[table] == 0 { // most tables of most hosts are empty, and asked for at every message
		return Row{}, false
	}
	return d.get(table, key, d.options.Clock())
}

func (d *disk) get(table, key string, now time.Time) (Row, bool) {
	value, closer, err := d.db.Get(rowKey(table, key))
	if err != nil {
		return Row{}, false
	}
	defer closer.Close()
	row, ok := decodeRow(key, value)
	return row, ok && !expired(row, now)
}

// Match implements Store.
func (d *disk) Match(table string, addr netip.Addr) (Row, bool) {
	tree := d.tree(table)
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed || tree == nil {
		return Row{}, false
	}
	now := d.options.Clock()
	for _, key := range tree.holding(addr.Unmap()) {
		if row, ok := d.get(table, key, now); ok {
			return row, true
		}
	}
	return Row{}, false
}

// tree is the prefix tree of a table, made when it is first asked for.
func (d *disk) tree(table string) *prefixTree {
	d.mu.RLock()
	tree := d.prefixes[table]
	d.mu.RUnlock()
	if tree != nil {
		return tree
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	return d.plant(table)
}

// plant makes the tree of a table. Under mu.
func (d *disk) plant(table string) *prefixTree {
	if tree := d.prefixes[table]; tree != nil {
		return tree
	}
	tree := newPrefixTree()
	err := d.scan(tablePrefix('r', table), func(key, _ []byte) bool {
		_, name := splitRowKey(key)
		tree.insert(name)
		return true
	})
	if err != nil {
		d.options.Logger.Error("reading a table", "table", table, "error", err)
		return nil
	}
	d.prefixes[table] = tree
	return tree
}

// Apply implements Store.
func (d *disk) Apply(writes []Write) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || !d.hasRoom() {
		return
	}
	now := d.options.Clock()
	for i := range writes {
		if err := d.apply(&writes[i], now); err != nil {
			d.options.Logger.Error("writing a row", "table", writes[i].Table, "error", err)
		}
	}
	d.dirty = true
}

// apply does one write with its event id in one batch, so that a crash leaves both or none.
func (d *disk) apply(w *Write, now time.Time) error {
	if w.EventID != "" && d.applied(w.EventID, now) {
		return nil
	}
	c := &changes{disk: d, batch: d.db.NewBatch(), rows: map[string]int{}}
	defer c.batch.Close()
	c.do(w, now)
	if w.EventID != "" {
		c.remember(w.EventID, now.Add(remembered))
	}
	return c.commit()
}

func (d *disk) applied(id string, now time.Time) bool {
	value, closer, err := d.db.Get(append([]byte{'i'}, id...))
	if err != nil {
		return false
	}
	defer closer.Close()
	return len(value) == 8 && readTime(value).After(now)
}

// changes are a batch on its way, with what it means for what is kept in memory.
type changes struct {
	disk    *disk
	batch   *pebble.Batch
	rows    map[string]int // by how many a table grows
	planted []Row          // Key is "table\x00key"; Value nil: removed
	err     error
}

func (c *changes) set(key, value []byte) {
	if err := c.batch.Set(key, value, nil); err != nil {
		c.err = err
	}
}

func (c *changes) delete(key []byte) {
	if err := c.batch.Delete(key, nil); err != nil {
		c.err = err
	}
}

// commit makes the batch true, without a sync.
func (c *changes) commit() error {
	if c.err == nil {
		c.err = c.batch.Commit(pebble.NoSync)
	}
	if c.err != nil {
		return fmt.Errorf("applying a batch: %w", c.err)
	}
	for table, n := range c.rows {
		if c.disk.rows[table] += n; c.disk.rows[table] <= 0 {
			delete(c.disk.rows, table)
		}
	}
	for _, p := range c.planted {
		table, key := splitRowKey([]byte("r" + p.Key))
		tree := c.disk.prefixes[table]
		switch {
		case tree == nil:
		case p.Value == nil:
			tree.remove(key)
		default:
			tree.insert(key)
		}
	}
	return nil
}

// do adds one write to the batch.
func (c *changes) do(w *Write, now time.Time) {
	old, exists := c.disk.stored(w.Table, w.Key)
	alive := exists && !expired(old, now)
	row := Row{Key: w.Key, Value: w.Value, Created: now}
	if alive {
		row.Created = old.Created
	}
	if w.TTL > 0 {
		row.Expires = now.Add(w.TTL)
	}
	switch w.Op {
	case Delete:
		if exists {
			c.remove(w.Table, old)
		}
		return
	case PutIfAbsent:
		if alive {
			return
		}
	case Add:
		row.Value = added(old, alive, w)
	case Put:
	default:
		return
	}
	if len(row.Value) > maxRow {
		c.disk.options.Logger.Warn("row too large", "table", w.Table, "bytes", len(row.Value))
		return
	}
	if exists {
		c.remove(w.Table, old)
	}
	c.put(w.Table, row)
	c.bound(w, exists)
}

// stored reads a row whether it has expired or not.
func (d *disk) stored(table, key string) (Row, bool) {
	value, closer, err := d.db.Get(rowKey(table, key))
	if err != nil {
		return Row{}, false
	}
	defer closer.Close()
	return decodeRow(key, value)
}

func (c *changes) put(table string, row Row) {
	c.set(rowKey(table, row.Key), encodeRow(row))
	c.set(ageKey(table, row), nil)
	if !row.Expires.IsZero() {
		c.set(expiryKey(table, row), nil)
	}
	c.rows[table]++
	c.planted = append(c.planted, Row{Key: table + "\x00" + row.Key, Value: row.Value})
}

func (c *changes) remove(table string, row Row) {
	c.delete(rowKey(table, row.Key))
	c.delete(ageKey(table, row))
	if !row.Expires.IsZero() {
		c.delete(expiryKey(table, row))
	}
	c.rows[table]--
	c.planted = append(c.planted, Row{Key: table + "\x00" + row.Key})
}

// bound removes the oldest row of a table that has grown beyond its bound.
func (c *changes) bound(w *Write, existed bool) {
	most := w.MaxRows
	if most <= 0 {
		most = defaultMaxRows
	}
	if existed || c.over(w.Table, most) <= 0 {
		return
	}
	c.evict(w, most, c.disk.oldest[w.Table])
	if c.over(w.Table, most) > 0 { // the clock went back, or the table shrank and grew
		c.evict(w, most, nil)
	}
}

func (c *changes) over(table string, most int) int { return c.disk.rows[table] + c.rows[table] - most }

// evict removes rows in the order of their age, from the place where the last eviction ended: before it there is
// nothing but what Pebble has not cleaned away yet.
func (c *changes) evict(w *Write, most int, from []byte) {
	prefix := tablePrefix('a', w.Table)
	if from == nil {
		from = prefix
	}
	err := c.disk.scanFrom(from, prefix, func(key, _ []byte) bool {
		if row, ok := c.disk.stored(w.Table, string(key[len(prefix)+8:])); ok && row.Key != w.Key {
			c.remove(w.Table, row)
		}
		c.disk.oldest[w.Table] = bytes.Clone(key)
		return c.over(w.Table, most) > 0
	})
	if err != nil {
		c.err = err
	}
}

// remember keeps an event id until the time given.
func (c *changes) remember(id string, until time.Time) {
	c.set(append([]byte{'i'}, id...), timeBytes(until))
	c.set(append(append([]byte{'e'}, timeBytes(until)...), id...), nil)
}

// added is the JSON object of a row with an amount added to one field. A row, field or number that is not there
// counts as 0; the sum stays inside int64.
func added(old Row, alive bool, w *Write) []byte {
	fields := map[string]json.RawMessage{}
	if alive && json.Unmarshal(old.Value, &fields) != nil {
		fields = map[string]json.RawMessage{}
	}
	var n int64
	if raw, ok := fields[w.Field]; ok && json.Unmarshal(raw, &n) != nil {
		n = 0
	}
	fields[w.Field] = fmt.Append(nil, saturated(n, w.Amount))
	value, err := json.Marshal(fields)
	if err != nil {
		return fmt.Appendf(nil, "{%q:%d}", w.Field, w.Amount)
	}
	return value
}

func saturated(a, b int64) int64 {
	switch {
	case b > 0 && a > math.MaxInt64-b:
		return math.MaxInt64
	case b < 0 && a < math.MinInt64-b:
		return math.MinInt64
	}
	return a + b
}

// listPage is how many rows List reads at once. In between others may write, and fn may use the store.
const listPage = 256

// List implements Store.
func (d *disk) List(table, after string, fn func(Row) bool) {
	for {
		page, more := d.page(table, after)
		for _, row := range page {
			after = row.Key
			if !fn(row) {
				return
			}
		}
		if !more {
			return
		}
	}
}

// page reads the next rows of a table; more tells that others may follow.
func (d *disk) page(table, after string) (rows []Row, more bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return nil, false
	}
	now := d.options.Clock()
	from := tablePrefix('r', table)
	if after != "" {
		from = append(rowKey(table, after), 0)
	}
	err := d.scanFrom(from, tablePrefix('r', table), func(key, value []byte) bool {
		_, name := splitRowKey(key)
		if row, ok := decodeRow(name, value); ok && !expired(row, now) {
			rows = append(rows, row)
		}
		more = len(rows) == listPage
		return !more
	})
	if err != nil {
		d.options.Logger.Error("listing a table", "table", table, "error", err)
	}
	return rows, more
}

// Names implements Store.
func (d *disk) Names() map[string]int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	names := make(map[string]int, len(d.rows))
	for table, n := range d.rows {
		names[table] = n
	}
	return names
}

// Replace implements Store.
func (d *disk) Replace(table string, rows []Row) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || !d.hasRoom() {
		return
	}
	now := d.options.Clock()
	c := &changes{disk: d, batch: d.db.NewBatch(), rows: map[string]int{}}
	defer c.batch.Close()
	c.clear(table)
	wanted := make(map[string]Row, len(rows))
	for _, row := range rows {
		if row.Created.IsZero() {
			row.Created = now
		}
		wanted[row.Key] = row
	}
	for _, row := range wanted {
		c.put(table, row)
	}
	delete(d.prefixes, table)
	if err := c.commit(); err != nil {
		d.options.Logger.Error("replacing a table", "table", table, "error", err)
	}
	d.dirty = true
}

// clear removes all rows of a table.
func (c *changes) clear(table string) {
	err := c.disk.scan(tablePrefix('r', table), func(key, value []byte) bool {
		_, name := splitRowKey(key)
		if row, ok := decodeRow(name, value); ok {
			c.remove(table, row)
		}
		return true
	})
	if err != nil {
		c.err = err
	}
}

// sweep drops rows and event ids whose time is over.
func (d *disk) sweep() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || !d.hasRoom() {
		return
	}
	now := d.options.Clock()
	c := &changes{disk: d, batch: d.db.NewBatch(), rows: map[string]int{}}
	defer c.batch.Close()
	c.sweepRows(now)
	c.sweepEvents(now)
	if err := c.commit(); err != nil {
		d.options.Logger.Error("dropping expired rows", "error", err)
	}
}

func (c *changes) sweepRows(now time.Time) {
	left := sweepMost
	err := c.disk.scan([]byte{'x'}, func(key, _ []byte) bool {
		if len(key) < 9 || readTime(key[1:9]).After(now) {
			return false
		}
		table, name := splitRowKey(append([]byte{'r'}, key[9:]...))
		if row, ok := c.disk.stored(table, name); ok && expired(row, now) {
			c.remove(table, row)
		}
		left--
		return left > 0
	})
	if err != nil {
		c.err = err
	}
}

func (c *changes) sweepEvents(now time.Time) {
	left := sweepMost
	err := c.disk.scan([]byte{'e'}, func(key, _ []byte) bool {
		if len(key) < 9 || readTime(key[1:9]).After(now) {
			return false
		}
		c.delete(bytes.Clone(key))
		c.delete(append([]byte{'i'}, key[9:]...))
		left--
		return left > 0
	})
	if err != nil {
		c.err = err
	}
}

// Close implements Store.
func (d *disk) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	d.mu.Unlock()
	close(d.stop)
	d.done.Wait()
	if err := d.db.LogData(nil, pebble.Sync); err != nil {
		return fmt.Errorf("writing the tables: %w", err)
	}
	if err := d.db.Close(); err != nil {
		return fmt.Errorf("closing the tables: %w", err)
	}
	return nil
}

// scan calls fn for the keys that begin with prefix, in their order, until it answers false.
func (d *disk) scan(prefix []byte, fn func(key, value []byte) bool) error {
	return d.scanFrom(prefix, prefix, fn)
}

func (d *disk) scanFrom(from, prefix []byte, fn func(key, value []byte) bool) error {
	end := bytes.Clone(prefix)
	end[len(end)-1]++ // prefixes end with a letter or a zero
	it, err := d.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: end})
	if err != nil {
		return fmt.Errorf("reading: %w", err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		if !fn(it.Key(), it.Value()) {
			break
		}
	}
	return it.Error()
}

func tablePrefix(kind byte, table string) []byte {
	return append(append([]byte{kind}, table...), 0)
}

func rowKey(table, key string) []byte { return append(tablePrefix('r', table), key...) }

func ageKey(table string, row Row) []byte {
	return append(append(tablePrefix('a', table), timeBytes(row.Created)...), row.Key...)
}

func expiryKey(table string, row Row) []byte {
	return append(append(append([]byte{'x'}, timeBytes(row.Expires)...), append([]byte(table), 0)...), row.Key...)
}

// splitRowKey takes a row key apart. Names of tables hold no zero.
func splitRowKey(key []byte) (table, name string) {
	t, n, _ := bytes.Cut(key[1:], []byte{0})
	return string(t), string(n)
}

func timeBytes(t time.Time) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(t.UnixNano()))
}

func readTime(b []byte) time.Time { return time.Unix(0, int64(binary.BigEndian.Uint64(b))) }

// encodeRow writes version 1: a version octet, created, expires (0: never), value.
func encodeRow(row Row) []byte {
	b := make([]byte, 0, 17+len(row.Value))
	b = append(b, 1)
	b = append(b, timeBytes(row.Created)...)
	if row.Expires.IsZero() {
		b = append(b, make([]byte, 8)...)
	} else {
		b = append(b, timeBytes(row.Expires)...)
	}
	return append(b, row.Value...)
}

func decodeRow(key string, b []byte) (Row, bool) {
	if len(b) < 17 || b[0] != 1 {
		return Row{}, false
	}
	row := Row{Key: key, Created: readTime(b[1:9]), Value: bytes.Clone(b[17:])}
	if binary.BigEndian.Uint64(b[9:17]) != 0 {
		row.Expires = readTime(b[9:17])
	}
	return row, true
}

func expired(row Row, now time.Time) bool {
	return !row.Expires.IsZero() && !now.Before(row.Expires)
}
