package queue_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/queue/storetest"
)

// fakeClock stands still until it is moved.
type fakeClock struct {
	mu     sync.Mutex
	now    time.Time
	timers map[chan time.Time]time.Time
}

func newFakeClock() *fakeClock {
	return &fakeClock{now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC), timers: map[chan time.Time]time.Time{}}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) At(t time.Time) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan time.Time, 1)
	c.timers[ch] = t
	c.fire()
	return ch
}

func (c *fakeClock) fire() {
	for ch, at := range c.timers {
		if !at.After(c.now) {
			ch <- c.now
			delete(c.timers, ch)
		}
	}
}

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	c.fire()
}

var edge = config.Queue{
	ExpireAfter: 48 * time.Hour, DelayNotice: 4 * time.Hour, GlitchRetries: 4, GlitchInterval: time.Minute,
	TransientRetries: 6, TransientRetry: 10 * time.Minute, RetryInterval: 30 * time.Minute,
	MaxConnections: 1000, MaxPerHop: 20,
}

// bench is a queue on a disk store with a clock that the test moves.
type bench struct {
	*queue.Queue
	t      *testing.T
	clock  *fakeClock
	dir    string
	config config.Queue
}

func newBench(t *testing.T, c config.Queue) *bench {
	b := &bench{t: t, clock: newFakeClock(), dir: t.TempDir(), config: c}
	b.restart()
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func (b *bench) restart() {
	b.t.Helper()
	if b.Queue != nil {
		b.must(b.Close())
	}
	store, err := queue.OpenStore(b.dir, queue.StoreOptions{})
	b.must(err)
	b.Queue, err = queue.New(store, queue.Options{Config: b.config, MaxUnrouted: 3,
		Clock: queue.Clock{Now: b.clock.Now, At: b.clock.At}})
	b.must(err)
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// commit adds an item that is due now; with a hop it is routed.
func (b *bench) commit(id, hop string) *queue.Item {
	b.t.Helper()
	item := storetest.Item(id, []byte("A: b\r\n"), envelope.MemoryBody([]byte("x")))
	item.Received, item.Next, item.Expires = time.Time{}, time.Time{}, time.Time{}
	item.Hop, item.Routed = hop, hop != ""
	b.must(b.Commit(item))
	return item
}

// due gets the next item, which must be there.
func (b *bench) due() *queue.Item {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	item, err := b.Due(ctx)
	b.must(err)
	return item
}

func (b *bench) wantDue(ids ...string) {
	b.t.Helper()
	for _, id := range ids {
		if item := b.due(); item.ID != id {
			b.t.Fatalf("due: %s, want %s", item.ID, id)
		}
	}
	b.wantNone()
}

// wantNone fails if anything is due now.
func (b *bench) wantNone() {
	b.t.Helper()
	if item := b.TryDue(); item != nil {
		b.t.Fatalf("due: %s, want nothing", item.ID)
	}
}

func (b *bench) states() map[string]string {
	states := map[string]string{}
	for _, e := range b.Entries(nil) {
		states[e.ID] = e.State.String()
	}
	return states
}

func (b *bench) wantStates(want map[string]string) {
	b.t.Helper()
	if got := b.states(); fmt.Sprint(got) != fmt.Sprint(want) {
		b.t.Fatalf("states %v, want %v", got, want)
	}
}

// finish records an attempt: done, or deferred to next.
func (b *bench) finish(item *queue.Item, next time.Time) {
	b.t.Helper()
	item.State, item.Next = queue.Ready, next
	if next.IsZero() {
		item.State = queue.Done
	}
	b.must(b.Record(item))
}

func TestRetrySchedule(t *testing.T) {
	b := newBench(t, edge)
	b.commit("m", "h/x.example")
	var waits []time.Duration
	for attempt := 1; attempt <= 13; attempt++ {
		item := b.due()
		item.Attempts = attempt
		next := b.NextAttempt(item, b.clock.Now())
		waits = append(waits, next.Sub(b.clock.Now()))
		b.finish(item, next)
		b.clock.advance(next.Sub(b.clock.Now()) - time.Nanosecond)
		b.wantNone()
		b.clock.advance(time.Nanosecond)
	}
	for i, wait := range waits {
		want := 30 * time.Minute
		switch {
		case i < 4:
			want = time.Minute
		case i < 10:
			want = 10 * time.Minute
		}
		if wait < want*9/10 || wait > want*11/10 {
			t.Errorf("after attempt %d: %v, want about %v", i+1, wait, want)
		}
	}
	if slices.Compact(slices.Clone(waits))[0] == time.Minute && waits[1] == time.Minute {
		t.Error("no jitter")
	}
}

func TestRestartKeepsSchedule(t *testing.T) {
	b := newBench(t, edge)
	b.commit("later", "h/x")
	b.finish(b.due(), b.clock.Now().Add(time.Hour))
	b.commit("now", "h/x")
	b.restart()
	b.wantDue("now")
	b.clock.advance(time.Hour)
	b.wantDue("later")
}

func TestExpiryMakesDue(t *testing.T) {
	b := newBench(t, edge)
	b.commit("a", "h/x")
	b.finish(b.due(), b.clock.Now().Add(1000*time.Hour))
	b.commit("b", "")
	waiting := b.due()
	waiting.State, waiting.WaitingFor = queue.Waiting, "av"
	b.must(b.Record(waiting))
	b.clock.advance(48*time.Hour - time.Second)
	b.wantNone()
	if late := b.Overdue(b.clock.Now()); len(late) != 0 {
		t.Fatalf("overdue before expiry: %v", late)
	}
	b.clock.advance(time.Second)
	got := []*queue.Item{b.due(), b.due()}
	for _, item := range got {
		if item.State != queue.Ready || item.WaitingFor != "" {
			t.Errorf("%s is %v, waiting for %q", item.ID, item.State, item.WaitingFor)
		}
	}
	b.clock.advance(time.Second)
	if late := b.Overdue(b.clock.Now()); len(late) != 2 {
		t.Fatalf("overdue: %v, want both", late)
	}
}

func TestWake(t *testing.T) {
	b := newBench(t, edge)
	for _, agent := range []string{"av", "cf"} {
		b.commit(agent+" item", "")
		item := b.due()
		item.State, item.WaitingFor = queue.Waiting, agent
		b.must(b.Record(item))
	}
	b.restart()
	b.clock.advance(47 * time.Hour)
	b.wantNone()
	b.Wake("av")
	b.wantDue("av item")
	b.Wake("nobody")
	b.Wake("cf")
	b.wantDue("cf item")
}

func TestLimits(t *testing.T) {
	c := edge
	c.MaxPerHop, c.MaxConnections = 2, 5
	b := newBench(t, c)
	for hop := range 4 {
		for i := range 4 {
			b.commit(fmt.Sprintf("%d.%d", hop, i), fmt.Sprintf("h/%d", hop))
		}
	}
	for i := range 5 {
		b.commit(fmt.Sprintf("unrouted %d", i), "")
	}
	perHop := map[string]int{}
	var leased []*queue.Item
	for range 8 {
		item := b.due()
		perHop[item.Hop]++
		leased = append(leased, item)
	}
	b.wantNone()
	if perHop[""] != 3 {
		t.Errorf("%d unrouted at once, want 3", perHop[""])
	}
	for hop, n := range perHop {
		if hop != "" && n > 2 {
			t.Errorf("%d at once to %s, want 2", n, hop)
		}
	}
	for len(leased) > 0 {
		b.finish(leased[0], time.Time{})
		leased = leased[1:]
		if item := b.TryDue(); item != nil {
			leased = append(leased, item)
		}
		b.wantNone()
	}
	b.wantStates(map[string]string{})
}

func TestHopsTakeTurns(t *testing.T) {
	c := edge
	c.MaxPerHop = 1
	b := newBench(t, c)
	for i := range 20 {
		b.commit(fmt.Sprint("big", i), "h/big")
	}
	b.commit("small", "h/small")
	b.finish(b.due(), time.Time{})
	seen := []string{b.due().Hop, b.due().Hop}
	if !slices.Contains(seen, "h/small") {
		t.Fatalf("got %v before h/small", seen)
	}
}

func TestAdvance(t *testing.T) {
	c := edge
	c.MaxPerHop = 1
	b := newBench(t, c)
	for i := range 3 {
		b.commit(fmt.Sprint(i), "")
	}
	first, second := b.due(), b.due()
	if !b.Advance(first.ID, "h/x") {
		t.Fatal("an empty hop has no room")
	}
	if b.Advance(second.ID, "h/x") || b.Advance(first.ID, "h/y") || b.Advance("unknown", "h/z") {
		t.Fatal("advanced over a limit, twice, or an unknown item")
	}
	b.commit("routed", "h/x")
	b.wantDue("2")
	b.finish(first, time.Time{})
	b.wantDue("routed")
	if b.Advance(second.ID, "h/x") {
		t.Fatal("advanced to a hop that is full")
	}
}

func TestReturn(t *testing.T) {
	b := newBench(t, edge)
	b.commit("m", "h/x")
	item := b.due()
	b.Return(item)
	item = b.due()
	b.Return(item) // again: a pause
	b.wantNone()
	b.clock.advance(time.Second)
	item = b.due()
	item.Next = b.clock.Now().Add(time.Hour)
	b.Return(item)
	b.wantNone()
	b.clock.advance(time.Hour - 1)
	b.wantNone()
	b.clock.advance(1)
	b.wantDue("m")
}

func TestOperator(t *testing.T) {
	b := newBench(t, edge)
	b.commit("m", "h/x")
	b.finish(b.due(), b.clock.Now().Add(time.Hour))
	b.must(b.Suspend("m"))
	b.clock.advance(2 * time.Hour)
	b.wantNone()
	b.wantStates(map[string]string{"m": "suspended"})
	b.restart()
	b.wantStates(map[string]string{"m": "suspended"})
	for _, err := range []error{b.Suspend("m"), b.Retry("m"), b.Release("m")} {
		if !errors.Is(err, queue.ErrState) {
			t.Errorf("error %v, want ErrState", err)
		}
	}
	for _, err := range []error{b.Suspend("x"), b.Resume("x"), b.Retry("x"), b.Release("x"), b.Remove("x")} {
		if !errors.Is(err, queue.ErrNotFound) {
			t.Errorf("error %v, want ErrNotFound", err)
		}
	}
	b.must(b.Resume("m"))
	b.finish(b.due(), b.clock.Now().Add(time.Hour))
	b.wantNone()
	b.must(b.Retry("m"))
	item := b.due()
	if !errors.Is(b.Resume("m"), queue.ErrBusy) {
		t.Error("resumed an item that is being worked on")
	}
	b.must(b.Retry("m"))
	b.Return(item)
	b.wantDue("m")
	b.Return(item)
	b.must(b.Remove("m"))
	b.wantStates(map[string]string{})
	b.restart()
	b.wantStates(map[string]string{})
}

func TestOperatorWhileWorkedOn(t *testing.T) {
	for _, test := range []struct {
		name   string
		ask    func(*bench) error
		finish func(*bench, *queue.Item)
		want   map[string]string
	}{
		{"suspend, returned", func(b *bench) error { return b.Suspend("m") },
			func(b *bench, i *queue.Item) { b.Return(i) }, map[string]string{"m": "suspended"}},
		{"suspend, deferred", func(b *bench) error { return b.Suspend("m") },
			func(b *bench, i *queue.Item) { b.finish(i, b.clock.Now()) }, map[string]string{"m": "suspended"}},
		{"suspend, done", func(b *bench) error { return b.Suspend("m") },
			func(b *bench, i *queue.Item) { b.finish(i, time.Time{}) }, map[string]string{}},
		{"remove, deferred", func(b *bench) error { return b.Remove("m") },
			func(b *bench, i *queue.Item) { b.finish(i, b.clock.Now()) }, map[string]string{}},
		{"remove, split", func(b *bench) error { return b.Remove("m") }, split, map[string]string{"dsn": "suspended"}},
		{"suspend, split", func(b *bench) error { return b.Suspend("m") }, split,
			map[string]string{"dsn": "suspended", "a": "suspended", "b": "suspended"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t, edge)
			b.commit("m", "h/x")
			item := b.due()
			b.must(test.ask(b))
			test.finish(b, item)
			for range 2000 {
				if fmt.Sprint(b.states()) == fmt.Sprint(test.want) {
					break
				}
				time.Sleep(time.Millisecond)
			}
			b.wantStates(test.want)
			b.wantNone()
		})
	}
}

// split replaces an item by two copies and a report that is not meant by what an operator asks of the item.
func split(b *bench, item *queue.Item) {
	a, c := *item, *item
	a.ID, c.ID = "a", "b"
	dsn := storetest.Item("dsn", nil, envelope.MemoryBody([]byte("report")))
	dsn.Origin, dsn.State = queue.OriginDSN, queue.Suspended
	b.must(b.Replace(item, &a, &c, dsn))
}

// Expire removes a quarantined item, but not one that an operator was quicker to release.
func TestExpire(t *testing.T) {
	b := newBench(t, edge)
	for _, id := range []string{"kept", "released"} {
		item := storetest.Item(id, nil, envelope.MemoryBody([]byte("x")))
		item.State, item.Expires = queue.Quarantined, b.clock.Now().Add(time.Hour)
		b.must(b.Commit(item))
	}
	b.must(b.Release("released"))
	b.must(b.Expire("kept"))
	if err := b.Expire("released"); !errors.Is(err, queue.ErrState) && !errors.Is(err, queue.ErrBusy) {
		t.Errorf("error %v, want ErrState", err)
	}
	b.wantStates(map[string]string{"released": "ready"})
}

func TestRelease(t *testing.T) {
	b := newBench(t, edge)
	item := storetest.Item("q", nil, envelope.MemoryBody([]byte("x")))
	item.State, item.Agent = queue.Quarantined, "cf"
	item.Expires = b.clock.Now().Add(time.Hour)
	b.must(b.Commit(item))
	b.clock.advance(100 * time.Hour)
	b.wantNone()
	if late := b.Overdue(b.clock.Now()); len(late) != 1 || late[0].Agent != "cf" {
		t.Fatalf("overdue: %v", late)
	}
	b.must(b.Release("q"))
	got := b.due()
	if got.Origin != queue.OriginRelease || !got.Expires.Equal(b.clock.Now().Add(48*time.Hour)) {
		t.Fatalf("origin %q, expires %v", got.Origin, got.Expires)
	}
}

func TestSummary(t *testing.T) {
	b := newBench(t, edge)
	b.commit("a", "h/x")
	b.clock.advance(time.Minute)
	b.commit("b", "h/x")
	b.commit("c", "")
	leased := b.due()
	sum := b.Summary()
	if len(sum) != 2 || sum[0].Hop != "" || sum[1].Hop != "h/x" || sum[1].Counts["ready"] != 2 ||
		sum[0].Active+sum[1].Active != 1 || !sum[1].Oldest.Equal(b.clock.Now().Add(-time.Minute)) {
		t.Fatalf("summary %+v, leased %s", sum, leased.ID)
	}
}

func TestCommitAgainKeepsSchedule(t *testing.T) {
	b := newBench(t, edge)
	b.commit("m", "h/x")
	item := b.due()
	b.commit("m", "h/x")
	b.wantNone()
	b.finish(item, time.Time{})
	b.wantStates(map[string]string{})
}

func TestDueEnds(t *testing.T) {
	b := newBench(t, edge)
	errs := make(chan error, 10)
	for range 10 {
		go func() { _, err := b.Due(context.Background()); errs <- err }()
	}
	b.must(b.Close())
	for range 10 {
		if err := <-errs; !errors.Is(err, queue.ErrClosed) {
			t.Fatalf("error %v", err)
		}
	}
	if err := b.Retry("x"); !errors.Is(err, queue.ErrClosed) {
		t.Fatalf("error %v", err)
	}
}

// TestFlow takes messages through the queue as the host does, many at once, with operators in between.
func TestFlow(t *testing.T) {
	store, err := queue.OpenStore(t.TempDir(), queue.StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	q, err := queue.New(store, queue.Options{Config: edge})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	const messages, copies = 200, 3
	var delivered sync.Map
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() { flowWorker(t, ctx, q, &delivered, copies) })
	}
	var senders sync.WaitGroup
	for s := range 4 {
		senders.Go(func() {
			for i := s; i < messages; i += 4 {
				item := storetest.Item(fmt.Sprint(i), []byte("A: b\r\n"), envelope.MemoryBody(storetest.Octets(uint64(i), 4000)))
				item.Received, item.Next, item.Expires = time.Time{}, time.Time{}, time.Time{}
				if err := q.Commit(item); err != nil {
					t.Error(err)
				}
				_ = q.Suspend(item.ID)
				_ = q.Resume(item.ID)
				_ = q.Retry(item.ID)
			}
		})
	}
	senders.Wait()
	for count := 0; count < messages*copies; {
		count = 0
		delivered.Range(func(any, any) bool { count++; return true })
		for _, e := range q.Entries(func(e queue.Entry) bool { return e.State == queue.Suspended }) {
			_ = q.Resume(e.ID)
		}
		runtime.Gosched()
	}
	cancel()
	workers.Wait()
	if left := q.Entries(nil); len(left) != 0 {
		t.Fatalf("left: %v", left)
	}
}

func flowWorker(t *testing.T, ctx context.Context, q *queue.Queue, delivered *sync.Map, copies int) {
	for {
		item, err := q.Due(ctx)
		if err != nil {
			return
		}
		if item.Routed {
			if _, twice := delivered.LoadOrStore(item.ID, true); twice {
				t.Errorf("%s delivered twice", item.ID)
			}
			item.State = queue.Done
			err = q.Record(item)
		} else {
			var children []*queue.Item
			for i := range copies {
				child := *item
				child.ID, child.Routed, child.Hop = queue.ChildID(item, "split", i), true, fmt.Sprint("h/", i)
				children = append(children, &child)
			}
			err = q.Replace(item, children...)
		}
		if err != nil {
			t.Error(err)
		}
	}
}
