package queue

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
)

var errSkeleton = errors.New("not implemented")

// ErrBusy refuses an operator's change of an item that is being worked on.
var ErrBusy = errors.New("item is being worked on")

// Clock tells the time. The zero value is the system's.
type Clock struct {
	// Now is the time; nil is time.Now.
	Now func() time.Time
	// After gives a channel on which something arrives once d has passed; nil is time.After.
	After func(d time.Duration) <-chan time.Time
}

// Options of a Queue.
type Options struct {
	Config config.Queue
	Logger hclog.Logger
	Clock  Clock
	// MaxUnrouted is how many items may be in the categorizer at once; 0 is 64.
	MaxUnrouted int
}

// Queue is a store with its schedule. All methods are safe for concurrent use.
type Queue struct{ Store }

// New makes a queue of what store holds, and owns store from then on.
func New(store Store, o Options) (*Queue, error) { return nil, errSkeleton }

// Due blocks until an item may be worked on and leases it to the caller until Replace, Record or Return.
func (q *Queue) Due(ctx context.Context) (*Item, error) { return nil, errSkeleton }

// Return gives a leased item back unchanged. It is due again at item.Next.
func (q *Queue) Return(item *Item) {}

// NextAttempt is when item, of whose attempts the last failed just now, is to be tried again.
func (q *Queue) NextAttempt(item *Item, now time.Time) time.Time { return now }

// Wake makes the items that wait for agent due. Call it whenever an agent becomes ready.
func (q *Queue) Wake(agent string) {}

// Entries lists the items for which filter answers true, in the order of ID; a nil filter is all.
func (q *Queue) Entries(filter func(Entry) bool) []Entry { return nil }

// HopSummary counts the items of one next hop; those not routed yet have hop "".
type HopSummary struct {
	Hop    string         `json:"hop"`
	Counts map[string]int `json:"counts"` // by name of state
	Active int            `json:"active"` // being worked on now
	Oldest time.Time      `json:"oldest"` // when the oldest was received
	Next   time.Time      `json:"next"`   // earliest time one is due
}

// Summary of the queue by next hop, in the order of hop.
func (q *Queue) Summary() []HopSummary { return nil }

// Retry makes items due now.
func (q *Queue) Retry(ids ...string) error { return errSkeleton }

// Suspend stops an item until Resume. One that is being worked on is stopped after that.
func (q *Queue) Suspend(id string) error { return errSkeleton }

// Resume makes a suspended or parked item due.
func (q *Queue) Resume(id string) error { return errSkeleton }

// Remove deletes an item without a report. One that is being worked on is removed after that.
func (q *Queue) Remove(id string) error { return errSkeleton }

// Release makes a quarantined item due, with OriginRelease.
func (q *Queue) Release(id string) error { return errSkeleton }

// Overdue lists the items that are past their expiry and still in the queue, but for parked and suspended ones.
func (q *Queue) Overdue(now time.Time) []Entry { return nil }
