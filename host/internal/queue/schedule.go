package queue

import (
	"container/heap"
	"math"
	"strings"
	"time"
	"unique"
)

// schedule knows when each item is due and who has it. One goroutine owns it, see loop.go. A million items are a
// normal state of it (a large next hop that is down for a day), so a slot is small.
//
// A slot is in one place: in timed until it is due, then among the ready ones of its hop until it is leased. Hops
// take turns, so that one with a million items does not keep others waiting, and each has a limit of leases. Items
// that wait for an agent are in timed by their expiry. Parked, quarantined and suspended ones are in slots only.
type schedule struct {
	maxPerHop, maxRouted int

	slots    map[string]*slot
	timed    slotHeap
	hops     map[string]*hop
	unrouted *hop   // its name is ""
	turns    []*hop // routed hops with something ready and room for it, in the order of their turns
	active   int    // leases of routed items to workers
	odd      bool   // whose turn it is: unrouted or routed ones
}

// slot is an item in the schedule. Times are nanoseconds since 1970, 0 is the zero time.
type slot struct {
	id                      string
	sender                  string
	hop                     *hop
	next, expires, received int64
	size                    int64
	details                 unique.Handle[details] // many items share theirs
	at                      int32                  // index in the heap it is in
	recipients              int32
	attempts                uint16
	place                   place
	lease                   lease
	asked                   request
	returns                 uint8 // how often it came back unchanged
	state                   State
	routed                  bool
}

// details are what few items have, or many have in common.
type details struct{ message, waitingFor, agent, reason, lastError string }

// place is where a slot is.
type place uint8

const (
	nowhere place = iota
	inTimed
	inReady
)

// lease is who has an item.
type lease uint8

const (
	free lease = iota
	byWorker
	byOperator
)

// request is what an operator wants of an item that is being worked on.
type request uint8

const (
	nothing request = iota
	suspend
	remove
)

// hop holds the items with one next hop.
type hop struct {
	name    string
	limit   int
	active  int // leases
	items   int
	ready   slotHeap
	waiting bool // for its turn
}

func newSchedule(maxPerHop, maxRouted, maxUnrouted int) *schedule {
	unrouted := &hop{limit: maxUnrouted, items: 1} // the 1 keeps it
	return &schedule{
		maxPerHop: maxPerHop, maxRouted: maxRouted, unrouted: unrouted,
		slots: map[string]*slot{}, hops: map[string]*hop{"": unrouted},
	}
}

// set makes the schedule know e, whatever it knew of that item. A lease of it ends.
func (s *schedule) set(e Entry) *slot {
	sl := s.slots[e.ID]
	if sl == nil {
		sl = &slot{id: e.ID}
		s.slots[e.ID] = sl
	} else {
		s.pull(sl)
		s.endLease(sl)
		s.leave(sl)
	}
	sl.fill(e)
	s.join(sl, e.Hop)
	s.place(sl)
	return sl
}

// delete forgets an item.
func (s *schedule) delete(id string) {
	if sl := s.slots[id]; sl != nil {
		s.pull(sl)
		s.endLease(sl)
		s.leave(sl)
		delete(s.slots, id)
	}
}

func (sl *slot) fill(e Entry) {
	sl.sender = e.Sender
	sl.next, sl.expires, sl.received = stamp(e.Next), stamp(e.Expires), stamp(e.Received)
	sl.size, sl.recipients = e.Size, int32(min(e.Recipients, math.MaxInt32))
	sl.attempts = uint16(min(e.Attempts, math.MaxUint16))
	sl.state, sl.routed, sl.returns = e.State, e.Routed, 0
	d := details{waitingFor: e.WaitingFor, agent: e.Agent, reason: e.Reason, lastError: e.LastError}
	if e.Message != messageOf(e.ID) {
		d.message = e.Message
	}
	sl.details = unique.Make(d)
}

// messageOf is the message that an item's id says it is of, see ChildID.
func messageOf(id string) string {
	message, _, _ := strings.Cut(id, "-")
	return message
}

func stamp(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func unstamp(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

func (sl *slot) entry() Entry {
	d := sl.details.Value()
	e := Entry{
		ID: sl.id, Message: d.message, State: sl.state, Hop: sl.hop.name, Routed: sl.routed, Attempts: int(sl.attempts),
		Received: unstamp(sl.received), Next: unstamp(sl.next), Expires: unstamp(sl.expires), WaitingFor: d.waitingFor,
		Sender: sl.sender, Recipients: int(sl.recipients), Size: sl.size, Agent: d.agent, Reason: d.reason,
		LastError: d.lastError,
	}
	if e.Message == "" {
		e.Message = messageOf(sl.id)
	}
	return e
}

// due is when a worker is to have the item: no later than its expiry, so that it expires in time.
func (sl *slot) due() int64 {
	switch {
	case sl.expires == 0:
		return sl.next
	case sl.state == Waiting:
		return sl.expires
	}
	return min(sl.next, sl.expires)
}

// join makes sl one of a hop's items.
func (s *schedule) join(sl *slot, name string) {
	if !sl.routed {
		name = ""
	}
	h := s.hops[name]
	if h == nil {
		h = &hop{name: name, limit: s.maxPerHop}
		s.hops[name] = h
	}
	h.items++
	sl.hop = h
}

func (s *schedule) leave(sl *slot) {
	sl.hop.items--
	if sl.hop.items == 0 {
		delete(s.hops, sl.hop.name)
	}
}

// place puts a slot that is nowhere into timed, if it ever gets due by itself.
func (s *schedule) place(sl *slot) {
	if sl.state == Ready || sl.state == Waiting && sl.expires != 0 {
		s.timed.push(sl, inTimed)
	}
}

// pull takes a slot from the place where it is.
func (s *schedule) pull(sl *slot) {
	switch sl.place {
	case inTimed:
		s.timed.remove(sl)
	case inReady:
		sl.hop.ready.remove(sl)
	}
}

// promote makes ready what is due at now.
func (s *schedule) promote(now int64) {
	for len(s.timed) > 0 && s.timed[0].due() <= now {
		sl := s.timed[0]
		s.timed.remove(sl)
		sl.state = Ready // it may have waited for an agent until its expiry
		sl.hop.ready.push(sl, inReady)
		s.queueUp(sl.hop)
	}
}

// wake makes an item ready to be worked on at once.
func (s *schedule) wake(sl *slot, now int64) {
	s.pull(sl)
	sl.state, sl.next = Ready, now
	s.place(sl)
}

// nextDue is when promote has something to do; ok is false if never.
func (s *schedule) nextDue() (due int64, ok bool) {
	if len(s.timed) == 0 {
		return 0, false
	}
	return s.timed[0].due(), true
}

// queueUp gives a hop a turn if it needs one.
func (s *schedule) queueUp(h *hop) {
	if h != s.unrouted && !h.waiting && h.hasWork() {
		h.waiting = true
		s.turns = append(s.turns, h)
	}
}

func (h *hop) hasWork() bool { return len(h.ready) > 0 && h.active < h.limit }

// take leases an item to a worker; nil if there is none to be had now.
func (s *schedule) take() *slot {
	s.odd = !s.odd
	first, second := s.takeUnrouted, s.takeRouted
	if s.odd {
		first, second = second, first
	}
	if sl := first(); sl != nil {
		return sl
	}
	return second()
}

func (s *schedule) takeUnrouted() *slot {
	if !s.unrouted.hasWork() {
		return nil
	}
	return s.takeFrom(s.unrouted)
}

func (s *schedule) takeRouted() *slot {
	for len(s.turns) > 0 && s.active < s.maxRouted {
		h := s.turns[0]
		s.turns[0] = nil
		s.turns = s.turns[1:]
		h.waiting = false
		if h.hasWork() {
			s.active++
			sl := s.takeFrom(h)
			s.queueUp(h)
			return sl
		}
	}
	return nil
}

func (s *schedule) takeFrom(h *hop) *slot {
	sl := h.ready[0]
	h.ready.remove(sl)
	h.active++
	sl.lease = byWorker
	return sl
}

// seize leases an item to an operator, which no limit counts.
func (s *schedule) seize(sl *slot) {
	s.pull(sl)
	sl.lease = byOperator
}

// endLease ends a lease, if there is one. The slot is nowhere then.
func (s *schedule) endLease(sl *slot) {
	if sl.lease == byWorker {
		s.unload(sl.hop)
	}
	sl.lease = free
}

func (s *schedule) unload(h *hop) {
	h.active--
	if h != s.unrouted {
		s.active--
	}
	s.queueUp(h)
}

// giveBack ends the lease of an item that is as it was. One that comes back again and again has to pause.
func (s *schedule) giveBack(sl *slot, next, now int64) {
	s.endLease(sl)
	pause := time.Duration(0)
	if sl.returns > 0 {
		pause = time.Second << min(sl.returns-1, 6)
	}
	sl.returns = min(sl.returns+1, math.MaxUint8-1)
	sl.next = max(next, now+int64(pause))
	s.place(sl)
}

// advance turns the lease of an unrouted item into one of hop name, if that has room and nothing that was first.
func (s *schedule) advance(sl *slot, name string) bool {
	if h := s.hops[name]; h != nil && (h.active >= h.limit || len(h.ready) > 0) {
		return false
	}
	if sl.lease != byWorker || sl.routed || s.active >= s.maxRouted {
		return false
	}
	s.unload(sl.hop)
	s.leave(sl)
	sl.routed = true
	s.join(sl, name)
	sl.hop.active++
	s.active++
	return true
}

// slotHeap has the slot that is due first at its top. A slot is in one heap at a time and knows its index there.
type slotHeap []*slot

func (h *slotHeap) push(sl *slot, p place) {
	sl.place = p
	heap.Push(h, sl)
}

func (h *slotHeap) remove(sl *slot) {
	heap.Remove(h, int(sl.at))
	sl.place = nowhere
}

// Len implements sort.Interface, as Less and Swap do.
func (h slotHeap) Len() int { return len(h) }

// Less implements sort.Interface.
func (h slotHeap) Less(i, j int) bool {
	a, b := h[i].due(), h[j].due()
	return a < b || a == b && h[i].id < h[j].id
}

// Swap implements sort.Interface.
func (h slotHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = int32(i), int32(j)
}

// Push implements heap.Interface.
func (h *slotHeap) Push(x any) {
	sl := x.(*slot)
	sl.at = int32(len(*h))
	*h = append(*h, sl)
}

// Pop implements heap.Interface.
func (h *slotHeap) Pop() any {
	old := *h
	last := len(old) - 1
	sl := old[last]
	old[last] = nil
	*h = old[:last]
	return sl
}
