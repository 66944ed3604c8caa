package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
)

// Errors of a queue.
var (
	// ErrBusy refuses an operator's change of an item that is being worked on.
	ErrBusy = errors.New("item is being worked on")
	// ErrState refuses an operator's change that does not fit the state of the item.
	ErrState = errors.New("not possible in this state")
	// ErrClosed is what Due answers once the queue is closed.
	ErrClosed = errors.New("queue is closed")
)

// Clock tells the time. The zero value is the system's.
type Clock struct {
	// Now is the time; nil is time.Now.
	Now func() time.Time
	// At gives a channel on which something arrives at t, or at once if that has passed; nil is the system's.
	At func(t time.Time) <-chan time.Time
}

// Options of a Queue.
type Options struct {
	Config config.Queue
	Logger hclog.Logger // nil is silence
	Clock  Clock
	// MaxUnrouted is how many items may be in the categorizer at once; 0 is 64.
	MaxUnrouted int
}

// Defaults of limits that are not set.
const (
	defaultMaxUnrouted    = 64
	defaultMaxPerHop      = 20
	defaultMaxConnections = 1000
)

// loadRetry is how long an item rests that could not be loaded for another reason than being unreadable.
const loadRetry = time.Minute

// Queue is a store with its schedule. All methods are safe for concurrent use.
//
// The schedule belongs to one goroutine, run. Everybody else sends it orders, which it carries out one after another.
type Queue struct {
	store  Store
	config atomic.Pointer[config.Queue]
	log    hclog.Logger
	clock  Clock

	orders  chan func()
	quit    chan struct{}
	stopped sync.WaitGroup
	closing sync.Once

	// Owned by run.
	schedule *schedule
	waiters  []*waiter
	timer    <-chan time.Time
	armed    int64 // what timer is set to
}

// waiter is a call of Due.
type waiter struct{ got chan handout }

// handout is a leased item.
type handout struct {
	id   string
	next int64
}

// New makes a queue of what store holds, and owns store from then on.
func New(store Store, o Options) (*Queue, error) {
	q := &Queue{
		store: store, log: o.Logger, clock: o.Clock,
		orders: make(chan func(), 256), quit: make(chan struct{}),
		schedule: newSchedule(cmp.Or(o.Config.MaxPerHop, defaultMaxPerHop),
			cmp.Or(o.Config.MaxConnections, defaultMaxConnections), cmp.Or(o.MaxUnrouted, defaultMaxUnrouted)),
	}
	q.SetConfig(o.Config)
	if q.log == nil {
		q.log = hclog.NewNullLogger()
	}
	if q.clock.Now == nil {
		q.clock.Now = time.Now
	}
	if q.clock.At == nil {
		q.clock.At = func(t time.Time) <-chan time.Time { return time.After(time.Until(t)) }
	}
	if err := store.Scan(func(e Entry) error { q.schedule.set(e); return nil }); err != nil {
		return nil, fmt.Errorf("loading the queue: %w", err)
	}
	q.stopped.Go(q.run)
	return q, nil
}

// Room is an error that wraps ErrFull while the disk has too little room for new mail. Stores that have no bounds always
// have room.
func (q *Queue) Room() error {
	if s, bounded := q.store.(interface{ Room() error }); bounded {
		return s.Room()
	}
	return nil
}

// RoomFor is Room for a message that comes in now, of size octets or, with 0, of a size that is not known.
func (q *Queue) RoomFor(size int64) error {
	if s, bounded := q.store.(interface{ RoomFor(size int64) error }); bounded {
		return s.RoomFor(size)
	}
	return nil
}

// SetConfig replaces the times of the queue, for what is decided from now on. The limits of connections stay.
func (q *Queue) SetConfig(c config.Queue) { q.config.Store(&c) }

// Close ends the queue and its store. Items that are being worked on stay as they are in the store.
func (q *Queue) Close() error {
	q.closing.Do(func() { close(q.quit) })
	q.stopped.Wait()
	return q.store.Close()
}

// run is the loop that owns the schedule.
func (q *Queue) run() {
	for {
		q.schedule.promote(q.now())
		q.serve()
		q.arm()
		select {
		case order := <-q.orders:
			order()
			q.drain()
		case <-q.timer:
			q.timer = nil
		case <-q.quit:
			return
		}
	}
}

// drain carries out the orders that are there already, so that many cost one round.
func (q *Queue) drain() {
	for range len(q.orders) {
		order := <-q.orders
		order()
	}
}

// serve hands items to those who wait for one.
func (q *Queue) serve() {
	for len(q.waiters) > 0 {
		sl := q.schedule.take()
		if sl == nil {
			return
		}
		q.waiters[0].got <- handout{sl.id, sl.next}
		q.waiters[0] = nil
		q.waiters = q.waiters[1:]
	}
}

// arm sets the timer to when the next item gets due.
func (q *Queue) arm() {
	due, ok := q.schedule.nextDue()
	if !ok {
		q.timer = nil
		return
	}
	if q.timer == nil || due != q.armed {
		q.timer, q.armed = q.clock.At(time.Unix(0, due)), due
	}
}

func (q *Queue) now() int64 { return q.clock.Now().UnixNano() }

// tell has the loop carry out fn, some time soon but before all orders after it.
func (q *Queue) tell(fn func()) {
	select {
	case q.orders <- fn:
	case <-q.quit:
	}
}

// ask has the loop carry out fn and waits for it. It answers false if the queue is closed and fn was not called.
func (q *Queue) ask(fn func()) bool {
	done := make(chan struct{})
	q.tell(func() { fn(); close(done) })
	select {
	case <-done:
		return true
	case <-q.quit:
		q.stopped.Wait()
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
}

// NewBody starts the body of a message that is being received.
func (q *Queue) NewBody() (BodyWriter, error) { return q.store.NewBody() }

// Load reads an item with its content.
func (q *Queue) Load(id string) (*Item, error) { return q.store.Load(id) }

// Commit stores new items and schedules them. Received and Next are now if they are not set, and Expires follows from
// Received and the configuration.
func (q *Queue) Commit(items ...*Item) error {
	q.complete(items)
	if err := q.store.Commit(items...); err != nil {
		return err
	}
	added := entriesOf(items)
	q.tell(func() { q.add(added) })
	return nil
}

// Replace stores children in place of parent, whose lease ends. See Store.
func (q *Queue) Replace(parent *Item, children ...*Item) error {
	q.complete(children)
	if err := q.store.Replace(parent, children...); err != nil {
		return err
	}
	id, added, copies := parent.ID, entriesOf(children), copiesOf(parent, children)
	q.tell(func() { q.settle(id, nil, added, copies) })
	return nil
}

// copiesOf are the ids of those children that carry the message of parent on; others are reports and the like.
func copiesOf(parent *Item, children []*Item) (ids []string) {
	for _, child := range children {
		if child.Message == parent.Message && child.Origin == parent.Origin {
			ids = append(ids, child.ID)
		}
	}
	return ids
}

// Record stores the new state of item, whose lease ends, and adds children. See Store.
func (q *Queue) Record(item *Item, children ...*Item) error {
	q.complete(children)
	if err := q.store.Record(item, children...); err != nil {
		return err
	}
	var kept *Entry
	if item.State != Done {
		e := entryOf(item)
		kept = &e
	}
	id, added := item.ID, entriesOf(children)
	q.tell(func() { q.settle(id, kept, added, nil) })
	return nil
}

func (q *Queue) complete(items []*Item) {
	now := q.clock.Now()
	for _, item := range items {
		if item.Received.IsZero() {
			item.Received = now
		}
		if item.Next.IsZero() {
			item.Next = now
		}
		if item.Expires.IsZero() {
			item.Expires = item.Received.Add(q.config.Load().ExpireAfter)
		}
	}
}

func entriesOf(items []*Item) []Entry {
	entries := make([]Entry, 0, len(items))
	for _, item := range items {
		if item.State != Done {
			entries = append(entries, entryOf(item))
		}
	}
	return entries
}

// add schedules new items. One that is known was committed before and goes on as it is.
func (q *Queue) add(entries []Entry) {
	for _, e := range entries {
		if q.schedule.slots[e.ID] == nil {
			q.schedule.set(e)
		}
	}
}

// settle ends the lease of item id. kept is what has become of it; nil: it is gone. If an operator has asked for
// something meanwhile, that is done to it, or to its copies where it is gone.
func (q *Queue) settle(id string, kept *Entry, added []Entry, copies []string) {
	asked := nothing
	if sl := q.schedule.slots[id]; sl != nil {
		asked, sl.asked = sl.asked, nothing
	}
	q.add(added)
	if kept == nil {
		q.schedule.delete(id)
	} else {
		q.schedule.set(*kept)
		copies = []string{id}
	}
	for _, id := range copies {
		q.obey(asked, id)
	}
}

// obey does what an operator has asked for while the item was being worked on.
func (q *Queue) obey(asked request, id string) {
	sl := q.schedule.slots[id]
	if asked == nothing || sl == nil || sl.lease != free {
		return
	}
	change := toSuspended
	if asked == remove {
		change = toDone
	}
	q.schedule.seize(sl)
	q.stopped.Go(func() {
		if err := q.edit(id, change); err != nil {
			q.log.Error("what an operator asked for could not be done", "item", id, "error", err)
		}
	})
}

// Due blocks until an item may be worked on and leases it to the caller until Replace, Record or Return. It is in
// state Ready, even where it waited for an agent before. The error is ctx's or ErrClosed.
func (q *Queue) Due(ctx context.Context) (*Item, error) {
	for {
		h, err := q.await(ctx)
		if err != nil {
			return nil, err
		}
		item, err := q.store.Load(h.id)
		if err == nil {
			item.State, item.WaitingFor, item.Next = Ready, "", unstamp(h.next)
			return item, nil
		}
		q.unloadable(h.id, err)
	}
}

// await leases the next item.
func (q *Queue) await(ctx context.Context) (handout, error) {
	w := &waiter{got: make(chan handout, 1)}
	q.tell(func() { q.waiters = append(q.waiters, w) })
	select {
	case h := <-w.got:
		return h, nil
	case <-ctx.Done():
		q.tell(func() { q.dismiss(w) })
		return handout{}, ctx.Err()
	case <-q.quit:
		return handout{}, ErrClosed
	}
}

// dismiss ends a wait. What was handed out at the last moment is due again.
func (q *Queue) dismiss(w *waiter) {
	q.waiters = slices.DeleteFunc(q.waiters, func(other *waiter) bool { return other == w })
	select {
	case h := <-w.got:
		if sl := q.schedule.slots[h.id]; sl != nil {
			q.schedule.endLease(sl)
			q.schedule.place(sl)
		}
	default:
	}
}

// unloadable deals with a leased item that could not be loaded.
func (q *Queue) unloadable(id string, err error) {
	if !errors.Is(err, ErrNotFound) {
		q.log.Error("item cannot be loaded", "item", id, "error", err)
	}
	q.tell(func() {
		sl := q.schedule.slots[id]
		switch {
		case sl == nil:
		case errors.Is(err, ErrNotFound):
			q.schedule.delete(id)
		case errors.Is(err, ErrUnreadable):
			e := sl.entry()
			e.State, e.Reason = Parked, err.Error()
			q.schedule.set(e)
		default:
			q.schedule.giveBack(sl, q.now()+int64(loadRetry), q.now())
		}
	})
}

// Return gives a leased item back unchanged. It is due again at item.Next, at once if that has passed; one that
// comes back several times in a row has to pause, up to a minute.
func (q *Queue) Return(item *Item) {
	id, next := item.ID, stamp(item.Next)
	q.tell(func() {
		sl := q.schedule.slots[id]
		if sl == nil || sl.lease == free {
			return
		}
		asked := sl.asked
		sl.asked = nothing
		q.schedule.giveBack(sl, next, q.now())
		q.obey(asked, id)
	})
}

// Advance turns the lease of an item that is not routed yet into one of next hop, so that it can be delivered without
// being recorded first. It answers false if that hop has no room; the item must then be recorded.
func (q *Queue) Advance(id, hop string) (ok bool) {
	q.ask(func() {
		sl := q.schedule.slots[id]
		ok = sl != nil && hop != "" && q.schedule.advance(sl, hop)
	})
	return ok
}

// NextAttempt is when item, of whose Attempts the last has failed just now, is to be tried again: a few times soon, a
// few times less soon, then at the long interval, each 10 % more or less so that items do not march in step.
func (q *Queue) NextAttempt(item *Item, now time.Time) time.Time {
	c := q.config.Load()
	interval := c.RetryInterval
	switch {
	case item.Attempts <= c.GlitchRetries:
		interval = c.GlitchInterval
	case item.Attempts <= c.GlitchRetries+c.TransientRetries:
		interval = c.TransientRetry
	}
	return now.Add(time.Duration(float64(interval) * (0.9 + 0.2*rand.Float64())))
}

// Wake makes the items that wait for agent due. Call it whenever an agent gets ready, at start too: that an item has
// been woken is not stored.
func (q *Queue) Wake(agent string) {
	q.tell(func() {
		now := q.now()
		for _, sl := range q.schedule.slots {
			if sl.state == Waiting && sl.lease == free && sl.details.Value().waitingFor == agent {
				q.schedule.wake(sl, now)
			}
		}
	})
}

// Entries lists the items for which filter answers true, in the order of ID; a nil filter is all. The queue stands
// still meanwhile, so filter must be quick.
func (q *Queue) Entries(filter func(Entry) bool) (entries []Entry) {
	q.ask(func() {
		for _, sl := range q.schedule.slots {
			if e := sl.entry(); filter == nil || filter(e) {
				entries = append(entries, e)
			}
		}
	})
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Compare(a.ID, b.ID) })
	return entries
}

// Overdue lists the items that are past their expiry and still in the queue, but for parked and suspended ones, which
// never expire. A healthy queue has none but quarantined ones, some time after their expiry.
func (q *Queue) Overdue(now time.Time) []Entry {
	return q.Entries(func(e Entry) bool {
		expires := e.State == Ready || e.State == Waiting || e.State == Quarantined
		return expires && !e.Expires.IsZero() && e.Expires.Before(now)
	})
}

// HopSummary counts the items of one next hop; those not routed yet have hop "".
type HopSummary struct {
	Hop    string         `json:"hop"`
	Counts map[string]int `json:"counts"` // by name of state
	Active int            `json:"active"` // being worked on now
	Oldest time.Time      `json:"oldest"` // when the oldest was received
	Next   time.Time      `json:"next"`   // earliest time one is due
}

// Summary of the queue by next hop, in the order of hop.
func (q *Queue) Summary() []HopSummary {
	hops := map[*hop]*HopSummary{}
	q.ask(func() {
		for _, sl := range q.schedule.slots {
			sum := hops[sl.hop]
			if sum == nil {
				sum = &HopSummary{Hop: sl.hop.name, Counts: map[string]int{}, Active: sl.hop.active}
				hops[sl.hop] = sum
			}
			sum.count(sl)
		}
	})
	out := make([]HopSummary, 0, len(hops))
	for _, sum := range hops {
		out = append(out, *sum)
	}
	slices.SortFunc(out, func(a, b HopSummary) int { return cmp.Compare(a.Hop, b.Hop) })
	return out
}

func (h *HopSummary) count(sl *slot) {
	h.Counts[sl.state.String()]++
	if t := unstamp(sl.received); h.Oldest.IsZero() || t.Before(h.Oldest) {
		h.Oldest = t
	}
	if t := unstamp(sl.due()); sl.place != nowhere && (h.Next.IsZero() || t.Before(h.Next)) {
		h.Next = t
	}
}

// Retry makes items due now. Items being worked on are left alone; for items that an operator has to decide on it is
// an error, and the others are retried all the same.
func (q *Queue) Retry(ids ...string) error {
	failed := ErrClosed
	q.ask(func() {
		failed = nil
		for _, id := range ids {
			failed = errors.Join(failed, q.retry(id))
		}
	})
	return failed
}

func (q *Queue) retry(id string) error {
	sl := q.schedule.slots[id]
	switch {
	case sl == nil:
		return fmt.Errorf("retrying %s: %w", id, ErrNotFound)
	case sl.lease != free:
		return nil
	case sl.state != Ready && sl.state != Waiting:
		return fmt.Errorf("retrying %s, which is %s: %w", id, sl.state, ErrState)
	}
	q.schedule.wake(sl, q.now())
	return nil
}

// Suspend stops an item until Resume. One that is being worked on is stopped after that, or its copies are.
func (q *Queue) Suspend(id string) error {
	return q.operate("suspending", id, suspend, toSuspended)
}

// Resume makes a suspended or parked item due. One that could not be read is parked in the schedule alone.
func (q *Queue) Resume(id string) error {
	parked := false
	q.ask(func() {
		sl := q.schedule.slots[id]
		parked = sl != nil && sl.state == Parked
	})
	return q.operate("resuming", id, nothing, func(item *Item) error {
		if !parked && item.State != Suspended && item.State != Parked {
			return fmt.Errorf("it is %s: %w", item.State, ErrState)
		}
		q.restart(item)
		return nil
	})
}

// Remove deletes an item without a report. One that is being worked on is removed after that, or its copies are.
func (q *Queue) Remove(id string) error {
	return q.operate("removing", id, remove, toDone)
}

// Release makes a quarantined item due, with OriginRelease and a new time of expiry.
func (q *Queue) Release(id string) error {
	return q.operate("releasing", id, nothing, func(item *Item) error {
		if item.State != Quarantined {
			return fmt.Errorf("it is %s: %w", item.State, ErrState)
		}
		item.Origin = OriginRelease
		q.restart(item)
		return nil
	})
}

// Expire deletes a quarantined item at the end of its time. One that was released meanwhile stays: that is ErrState.
func (q *Queue) Expire(id string) error {
	return q.operate("expiring", id, nothing, func(item *Item) error {
		if item.State != Quarantined {
			return fmt.Errorf("it is %s: %w", item.State, ErrState)
		}
		return toDone(item)
	})
}

// restart makes an item due that an operator has decided on. It has the full time again, since it may have lain for
// long.
func (q *Queue) restart(item *Item) {
	now := q.clock.Now()
	item.State, item.Next, item.Expires = Ready, now, now.Add(q.config.Load().ExpireAfter)
}

func toSuspended(item *Item) error {
	if item.State != Ready && item.State != Waiting {
		return fmt.Errorf("it is %s: %w", item.State, ErrState)
	}
	item.State = Suspended
	return nil
}

func toDone(item *Item) error {
	item.State = Done
	return nil
}

// operate changes an item on behalf of an operator. later is noted where the item is being worked on.
func (q *Queue) operate(doing, id string, later request, change func(*Item) error) error {
	edit, err := false, ErrClosed
	q.ask(func() { edit, err = q.seize(id, later) })
	if edit {
		err = q.edit(id, change)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", doing, id, err)
	}
	return nil
}

// seize leases an item to an operator, or notes the request.
func (q *Queue) seize(id string, later request) (ok bool, err error) {
	sl := q.schedule.slots[id]
	switch {
	case sl == nil:
		return false, ErrNotFound
	case sl.lease == free:
		q.schedule.seize(sl)
		return true, nil
	case later == nothing || sl.lease == byOperator:
		return false, ErrBusy
	}
	sl.asked = later
	return false, nil
}

// edit changes an item that is leased to an operator.
func (q *Queue) edit(id string, change func(*Item) error) error {
	err := q.tryEdit(id, change)
	if err != nil {
		q.tell(func() { q.letGo(id) })
	}
	return err
}

// tryEdit changes a stored item. An unreadable one can only be removed.
func (q *Queue) tryEdit(id string, change func(*Item) error) error {
	item, unreadable := q.store.Load(id)
	if errors.Is(unreadable, ErrUnreadable) {
		item = &Item{ID: id, State: Parked, Mail: &envelope.Mail{}}
	} else if unreadable != nil {
		return unreadable
	}
	if err := change(item); err != nil {
		return err
	}
	if unreadable != nil && item.State != Done {
		return unreadable
	}
	return q.Record(item)
}

// letGo ends an operator's lease of an item that stays as it was.
func (q *Queue) letGo(id string) {
	if sl := q.schedule.slots[id]; sl != nil && sl.lease == byOperator {
		q.schedule.endLease(sl)
		q.schedule.place(sl)
	}
}
