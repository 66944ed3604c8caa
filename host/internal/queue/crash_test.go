package queue_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/queue/storetest"
)

// state is what a store holds: a line per item with all that matters of it.
type state map[string]string

func describe(item *queue.Item) (string, error) {
	body, err := io.ReadAll(item.Mail.Body.Reader())
	if err != nil {
		return "", err
	}
	original := []byte(nil)
	if item.Mail.OriginalBody != nil {
		if original, err = io.ReadAll(item.Mail.OriginalBody.Reader()); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%v %d %q %q %x %x %q", item.State, item.Attempts, item.LastError, item.Mail.Header, sum(body), sum(original),
		item.Mail.OriginalHeader), nil
}

// read takes down the state of a store.
func read(s queue.Store) (state, error) {
	got := state{}
	err := s.Scan(func(e queue.Entry) error {
		item, err := s.Load(e.ID)
		if err != nil {
			return err
		}
		got[e.ID], err = describe(item)
		return err
	})
	return got, err
}

// script is a workload on a recorder: after each step the state is known.
type script struct {
	t      *testing.T
	files  *recorder
	dir    string
	store  queue.Store
	states []state // before the first step, after the first, ...
	acks   []int   // length of the log after each step
	free   []bool  // whether the parts of the step are separate changes
}

const storeDir = "data/queue"

func record(t *testing.T) *script {
	root := t.TempDir()
	s := &script{t: t, files: newRecorder(root), dir: filepath.Join(root, storeDir), states: []state{{}}}
	s.open()
	s.run()
	return s
}

func (s *script) open() {
	s.t.Helper()
	var err error
	if s.store, err = queue.OpenStore(s.dir, queue.StoreOptions{Files: s.files}); err != nil {
		s.t.Fatal(err)
	}
}

// step does one atomic change, after which the store has the given items and lacks those that are Done.
func (s *script) step(do func() error, items ...*queue.Item) {
	s.t.Helper()
	next := state{}
	for id, line := range s.states[len(s.states)-1] {
		next[id] = line
	}
	for _, item := range items {
		if item.State == queue.Done {
			delete(next, item.ID)
			continue
		}
		line, err := describe(item)
		if err != nil {
			s.t.Fatal(err)
		}
		next[item.ID] = line
	}
	if err := do(); err != nil {
		s.t.Fatal(err)
	}
	s.states = append(s.states, next)
	s.acks = append(s.acks, s.files.length())
	s.free = append(s.free, false)
}

func (s *script) commit(items ...*queue.Item) {
	s.t.Helper()
	s.step(func() error { return s.store.Commit(items...) }, items...)
}

func (s *script) replace(parent *queue.Item, children ...*queue.Item) {
	s.t.Helper()
	gone := *parent
	gone.State = queue.Done
	s.step(func() error { return s.store.Replace(parent, children...) }, append([]*queue.Item{&gone}, children...)...)
}

func (s *script) record(item *queue.Item, children ...*queue.Item) {
	s.t.Helper()
	s.step(func() error { return s.store.Record(item, children...) }, append([]*queue.Item{item}, children...)...)
}

func (s *script) load(id string) *queue.Item {
	s.t.Helper()
	item, err := s.store.Load(id)
	if err != nil {
		s.t.Fatal(err)
	}
	return item
}

func (s *script) spooled(seed uint64, n int) *envelope.Body {
	s.t.Helper()
	body, err := spool(s.store, seed, n)
	if err != nil {
		s.t.Fatal(err)
	}
	return body
}

func spool(store queue.Store, seed uint64, n int) (*envelope.Body, error) {
	w, err := store.NewBody()
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(storetest.Octets(seed, n)); err != nil {
		w.Abort()
		return nil, err
	}
	return w.Finish()
}

func header(id string) []byte { return []byte("X-Item: " + id + "\r\n") }

func small(id string, seed uint64) *queue.Item {
	return storetest.Item(id, header(id), envelope.MemoryBody(storetest.Octets(seed, 2000)))
}

func child(parent *queue.Item, id string) *queue.Item {
	item, mail := *parent, *parent.Mail
	item.ID, item.Parent, item.Mail = id, parent.ID, &mail
	return &item
}

// run is the workload: each kind of change with small and large content, before and after the engine has moved what
// it holds from its log to tables.
func (s *script) run() {
	s.commit(small("a", 1))
	s.commit(small("b", 2), small("c", 3))
	s.commit(storetest.Item("large", header("large"), s.spooled(4, 90_000)))
	s.commit(storetest.Item("memory", header("memory"), envelope.MemoryBody(storetest.Octets(5, 70_000))))
	a := s.load("a")
	s.replace(a, child(a, "a1"), child(a, "a2"), child(a, "a3"))
	large := s.load("large")
	s.replace(large, child(large, "l1"), child(large, "l2"))
	s.defer_("a1")
	s.done("a2", small("dsn", 6))
	s.together(10)
	s.reopen()
	edited := s.load("l1")
	edited.Mail.OriginalHeader, edited.Mail.OriginalBody = edited.Mail.Header, edited.Mail.Body
	edited.Mail.Header, edited.Mail.Body = header("edited"), s.spooled(7, 80_000)
	s.record(edited)
	s.done("l2")
	s.done("memory")
	s.reopen()
	s.defer_("a1")
	s.done("l1")
	s.commit(storetest.Item("long header", storetest.Octets(8, 66_000), envelope.MemoryBody(nil)))
	s.done("a3")
	s.done("a1", storetest.Item("last", header("last"), s.spooled(9, 66_000)))
	if err := s.store.Close(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *script) defer_(id string) {
	s.t.Helper()
	item := s.load(id)
	item.Attempts++
	item.Next, item.LastError = item.Next.Add(time.Hour), "451 later"
	s.record(item)
}

func (s *script) done(id string, children ...*queue.Item) {
	s.t.Helper()
	item := s.load(id)
	item.State = queue.Done
	s.record(item, children...)
}

// together commits n items at once, which share syncs.
func (s *script) together(n int) {
	s.t.Helper()
	var items []*queue.Item
	for i := range n {
		items = append(items, small(fmt.Sprint("t", i), uint64(20+i)))
	}
	s.step(func() error {
		errs := make([]error, n)
		var group sync.WaitGroup
		for i, item := range items {
			group.Go(func() { errs[i] = s.store.Commit(item) })
		}
		group.Wait()
		return errors.Join(errs...)
	}, items...)
	s.free[len(s.free)-1] = true
}

func (s *script) reopen() {
	s.t.Helper()
	s.step(func() error { return s.store.Close() })
	s.open()
}

// after is how many steps had been acknowledged when the log had n ops.
func (s *script) after(n int) int {
	steps, _ := slices.BinarySearch(s.acks, n+1)
	return steps
}

// check opens what a cut after n ops has left and tells what is wrong with it: there must be the state after the last
// step that was acknowledged, or the one after the step under way.
func (s *script) check(d *disk, n int, l loss) error {
	root, err := os.MkdirTemp(s.t.TempDir(), "cut")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	if err := d.leave(root, l); err != nil {
		return err
	}
	store, err := queue.OpenStore(filepath.Join(root, storeDir), queue.StoreOptions{Files: unsyncedFiles{vfs.Default}})
	if err != nil {
		return err
	}
	got, err := read(store)
	if err := errors.Join(err, store.Close()); err != nil {
		return err
	}
	steps := s.after(n)
	before := s.states[steps]
	if steps == len(s.states)-1 {
		return differ(got, before)
	}
	next := s.states[steps+1]
	if s.free[steps] {
		return between(got, before, next)
	}
	if differ(got, before) != nil && differ(got, next) != nil {
		return fmt.Errorf("after step %d: %w; and not the next state either: %w", steps, differ(got, before), differ(got, next))
	}
	return nil
}

func differ(got, want state) error { return between(got, want, want) }

// between tells whether an item is neither as in a nor as in b.
func between(got, a, b state) error {
	for _, ids := range []state{a, b, got} {
		for id := range ids {
			if got[id] != a[id] && got[id] != b[id] {
				return fmt.Errorf("item %q is %.80q, should be %.80q or %.80q", id, got[id], a[id], b[id])
			}
		}
	}
	return nil
}

// TestPowerCut cuts the power at every step of the workload.
func TestPowerCut(t *testing.T) {
	s := record(t)
	t.Logf("%d steps, %d operations on files", len(s.acks), len(s.files.log))
	d := newDisk()
	for n := range len(s.files.log) + 1 {
		for l, name := range []string{"all", "octets", "half"} {
			if err := s.check(d, n, loss(l)); err != nil {
				t.Errorf("cut after %d ops (last: %v), losing %s: %v", n, s.files.log[max(n-1, 0)], name, err)
			}
		}
		if n < len(s.files.log) {
			d.apply(s.files.log[n])
		}
	}
}

// engineSyncs are syncs of the engine that the workload can do without, and why.
var engineSyncs = map[string]string{
	"sync queue/records/temporary.N.dbtmp": "becomes OPTIONS, which only documents the options of a run",
}

// TestEverySyncIsNeeded takes away the syncs of each place one after another. Some cut must then lose something.
func TestEverySyncIsNeeded(t *testing.T) {
	s := record(t)
	places := map[string]bool{}
	for _, o := range s.files.log {
		if o.kind == "sync" {
			places[o.String()] = true
		}
	}
	for _, ours := range []string{"sync .", "sync data", "sync queue", "sync queue/VERSION.new", "sync queue/bodies", "sync queue/bodies/N"} {
		if !places[ours] {
			t.Errorf("no %q in the workload", ours)
		}
	}
	for place := range places {
		cut, err := s.without(func(_ int, o op) bool { return o.String() == place })
		why, ours := engineSyncs[place], !strings.HasPrefix(place, "sync queue/records")
		switch {
		case err != nil:
			t.Logf("without %q: cut at %d: %.150v", place, cut, err)
		case ours || why == "":
			t.Errorf("without %q nothing is lost", place)
		}
	}
}

// TestEveryBodySyncIsNeeded takes away single syncs of body files and of their directory.
func TestEveryBodySyncIsNeeded(t *testing.T) {
	s := record(t)
	tried := 0
	for i, o := range s.files.log {
		if o.kind != "sync" || !strings.HasPrefix(o.path, storeDir+"/bodies") {
			continue
		}
		tried++
		if _, err := s.without(func(n int, _ op) bool { return n == i }); err == nil {
			t.Errorf("without op %d (%v %s) nothing is lost", i, o, o.path)
		}
	}
	if tried < 8 {
		t.Errorf("only %d syncs of bodies in the workload", tried)
	}
}

// without replays the log without some of its syncs, and tells at which cut something is lost.
func (s *script) without(dropped func(int, op) bool) (cut int, err error) {
	d := newDisk()
	acked := 0
	for n := range len(s.files.log) + 1 {
		if s.after(n) > acked {
			acked = s.after(n)
			if err := s.check(d, n, loseAll); err != nil {
				return n, err
			}
		}
		if n < len(s.files.log) && !dropped(n, s.files.log[n]) {
			d.apply(s.files.log[n])
		}
	}
	return 0, nil
}

// TestDiskErrors lets each operation of a workload fail, alone or with all that follow. A change that was refused may or may not
// be there after a restart, what was acknowledged must be; the store goes on, or says that it is broken.
func TestDiskErrors(t *testing.T) {
	var ops []op
	if broken, err := runFaulty(t, func(o op) error { ops = append(ops, o); return nil }); broken || err != nil {
		t.Fatalf("without faults: broken %v, %v", broken, err)
	}
	t.Logf("%d operations", len(ops))
	faults := []struct {
		err   error
		count int
	}{{syscall.EIO, 1}, {syscall.ENOSPC, len(ops)}}
	for n := range ops {
		fault := faults[n%2] // each kind of operation occurs more than once
		i, hit := -1, op{}
		broken, err := runFaulty(t, func(o op) error {
			i++
			if i < n || i >= n+fault.count || o.kind == "remove" {
				return nil
			}
			if i == n {
				hit = o
			}
			return fault.err
		})
		if err != nil {
			t.Errorf("%v, %d times from op %d (%v) on: %v", fault.err, fault.count, n, hit, err)
		}
		if broken && fault.count == 1 && strings.Contains(hit.path, "/bodies") {
			t.Errorf("%v at op %d (%v) broke the store", fault.err, n, hit)
		}
	}
}

// faulty is a workload that goes on after errors.
type faulty struct {
	store queue.Store
	want  map[string]string // what was acknowledged
	maybe map[string]bool   // what was refused
	errs  []error
}

// runFaulty runs the workload with faults, then opens the store without them and tells what is wrong,
// and whether the store has said that it is broken.
func runFaulty(t *testing.T, fail func(op) error) (broken bool, err error) {
	root, err := os.MkdirTemp(t.TempDir(), "f")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(root)
	files := newRecorder(root)
	files.fail = fail
	dir := filepath.Join(root, storeDir)
	f := &faulty{want: map[string]string{}, maybe: map[string]bool{}}
	for round := range 2 { // in the second the engine moves what its log holds to tables
		if f.store, err = queue.OpenStore(dir, queue.StoreOptions{Files: files}); err != nil {
			continue
		}
		f.errs = nil
		f.run(round)
		again, err := f.consistent()
		if broken = broken || again; err != nil {
			return broken, err
		}
		_ = f.store.Close()
	}
	store, err := queue.OpenStore(dir, queue.StoreOptions{Files: unsyncedFiles{vfs.Default}})
	if err != nil {
		return broken, fmt.Errorf("opening again: %w", err)
	}
	got, err := read(store)
	if err := errors.Join(err, store.Close()); err != nil {
		return broken, fmt.Errorf("reading after a restart: %w", err)
	}
	for id, want := range f.want {
		if got[id] != want && !f.maybe[id] {
			return broken, fmt.Errorf("item %q is %.100q, should be %.100q", id, got[id], want)
		}
	}
	for id := range got {
		if _, ok := f.want[id]; !ok && !f.maybe[id] {
			return broken, fmt.Errorf("item %q should not be there", id)
		}
	}
	return broken, nil
}

func (f *faulty) run(round int) {
	for i := round * 3; i < round*3+3; i++ {
		s, l := small(fmt.Sprint("s", i), uint64(i)), fmt.Sprint("l", i)
		f.commit(s)
		if body, err := spool(f.store, uint64(i), 70_000); err == nil {
			f.commit(storetest.Item(l, header(l), body))
		} else {
			f.errs = append(f.errs, err)
		}
		f.split(s, l)
	}
}

func (f *faulty) commit(item *queue.Item) { f.note(f.store.Commit(item), item) }

// split replaces the small item by two, of which one is done at once, and defers the large one.
func (f *faulty) split(s *queue.Item, l string) {
	gone := *s
	gone.State = queue.Done
	a, b := child(s, s.ID+"-a"), child(s, s.ID+"-b")
	if f.maybe[s.ID] {
		return
	}
	f.note(f.store.Replace(s, a, b), &gone, a, b)
	if !f.maybe[a.ID] {
		a.State = queue.Done
		f.note(f.store.Record(a), a)
	}
	if item, err := f.store.Load(l); err == nil {
		item.Attempts++
		f.note(f.store.Record(item), item)
	}
}

// note keeps what a change has come to.
func (f *faulty) note(err error, items ...*queue.Item) {
	f.errs = append(f.errs, err)
	for _, item := range items {
		line, _ := describe(item)
		switch {
		case err != nil:
			f.maybe[item.ID] = true
		case item.State == queue.Done:
			delete(f.want, item.ID)
		default:
			f.want[item.ID] = line
		}
	}
}

// consistent tells whether the store has said that it is broken, and fails if it worked again afterwards.
func (f *faulty) consistent() (broken bool, err error) {
	for _, err := range f.errs {
		if broken && !errors.Is(err, queue.ErrBroken) {
			return true, fmt.Errorf("broken and then %v", err)
		}
		broken = broken || errors.Is(err, queue.ErrBroken)
	}
	return broken, nil
}

func sum(b []byte) [32]byte { return sha256.Sum256(b) }
