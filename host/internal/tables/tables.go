// Package tables keeps shared rows with a time to live. Agents read the rows they declared and write through
// their answers; only the host touches the store.
package tables

import (
	"net/netip"
	"time"
)

// Row of a table.
type Row struct {
	Key     string
	Value   []byte // a JSON object
	Created time.Time
	Expires time.Time // zero: never
}

// Op of a Write.
type Op uint8

// Ops of a Write; see TableOp of the protocol.
const (
	Put Op = iota + 1
	PutIfAbsent
	Add
	Delete
)

// Write changes one row.
type Write struct {
	Table   string
	Key     string
	Op      Op
	Value   []byte
	Field   string
	Amount  int64
	TTL     time.Duration // 0: for ever
	MaxRows int           // bound of the table, 0: 1,000,000
	EventID string        // a write of an event that was applied already is a no-op (kept for 10 minutes)
}

// Store is the shared store of all tables. Safe for concurrent use.
type Store interface {
	// Get reads a row that has not expired.
	Get(table, key string) (Row, bool)
	// Match reads the row whose key is the longest IP prefix that holds addr.
	Match(table string, addr netip.Addr) (Row, bool)
	// Apply does the writes in order. They are on disk within a second.
	Apply(writes []Write)
	// List calls fn for rows of a table in the order of their keys, from after on, until fn answers false.
	List(table, after string, fn func(Row) bool)
	// Names of the tables that have rows, with their number of rows.
	Names() map[string]int
	// Replace swaps the whole content of a table, for tables filled by the host (recipients, groups, safelist).
	Replace(table string, rows []Row)
	// Close writes what is not on disk yet.
	Close() error
}
