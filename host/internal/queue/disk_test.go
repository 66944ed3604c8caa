package queue_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/queue/storetest"
	"github.com/posternmail/postern/internal/logtest"
)

// TestMain lets the test binary be the other host that has a store open.
func TestMain(m *testing.M) {
	if dir := os.Getenv("QUEUE_TEST_HOLD"); dir != "" {
		_, err := queue.OpenStore(dir, queue.StoreOptions{})
		fmt.Println("open:", err)
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	other := exec.Command(os.Args[0])
	other.Env = append(os.Environ(), "QUEUE_TEST_HOLD="+dir)
	in, err := other.StdinPipe()
	must(t, err)
	out, err := other.StdoutPipe()
	must(t, err)
	must(t, other.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	if line != "open: <nil>\n" {
		t.Fatalf("the other host says %q", line)
	}
	_, err = queue.OpenStore(dir, queue.StoreOptions{})
	if !errors.Is(err, queue.ErrLocked) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "data_dir") {
		t.Fatalf("error %v", err)
	}
	must(t, in.Close())
	must(t, other.Wait())
	must(t, opener(queue.StoreOptions{})(t, dir).Close())
}

func TestUnknownVersion(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "VERSION"), []byte("postern queue 2\n"), 0o600))
	_, err := queue.OpenStore(dir, queue.StoreOptions{})
	if !errors.Is(err, queue.ErrVersion) || !strings.Contains(err.Error(), "postern queue 2") {
		t.Fatalf("error %v", err)
	}
}

func TestFullDiskRefusesNewMail(t *testing.T) {
	dir := t.TempDir()
	store := opener(queue.StoreOptions{})(t, dir)
	item := small("old", 1)
	must(t, store.Commit(item))
	must(t, store.Close())
	store = opener(queue.StoreOptions{ReserveBytes: 1 << 60})(t, dir)
	defer store.Close()
	if err := store.Commit(small("new", 2)); !errors.Is(err, queue.ErrFull) {
		t.Fatalf("error %v", err)
	}
	item, err := store.Load("old")
	must(t, err)
	must(t, store.Replace(item, child(item, "still possible")))
	q, err := queue.New(store, queue.Options{})
	must(t, err)
	defer q.Close()
	if err := q.Room(); !errors.Is(err, queue.ErrFull) {
		t.Errorf("the queue has room: %v", err)
	}
}

// filling is a disk of which a test says how much is free.
type filling struct {
	vfs.FS
	free atomic.Uint64
}

// GetDiskUsage implements vfs.FS.
func (f *filling) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: f.free.Load()}, nil
}

// eventually waits for what the next look at the disk shows.
func eventually(t *testing.T, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come")
		}
	}
}

// TestFullDiskIsToldOnce fills a disk and makes room again: the log has a line of each, whatever comes in meanwhile.
func TestFullDiskIsToldOnce(t *testing.T) {
	const mib = 1 << 20
	files, said := &filling{FS: vfs.Default}, &logtest.Output{}
	files.free.Store(300 * mib)
	logger := hclog.New(&hclog.LoggerOptions{Output: said})
	store := opener(queue.StoreOptions{Files: files, Logger: logger})(t, t.TempDir())
	q, err := queue.New(store, queue.Options{})
	must(t, err)
	defer q.Close()
	must(t, q.RoomFor(44*mib))
	if err := q.RoomFor(45 * mib); !errors.Is(err, queue.ErrFull) {
		t.Errorf("a message that would use up the reserve: %v", err)
	}
	if said.String() != "" {
		t.Errorf("a large message is no full disk: %s", said)
	}
	files.free.Store(200 * mib)
	eventually(t, func() bool { return q.Room() != nil })
	for range 1000 {
		if err := q.RoomFor(0); !errors.Is(err, queue.ErrFull) {
			t.Fatalf("error %v", err)
		}
		_ = q.Room() // as status asks
	}
	files.free.Store(300 * mib)
	eventually(t, func() bool { return q.RoomFor(0) == nil })
	lines := strings.Split(strings.TrimSpace(said.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "[ERROR] no new mail is taken (452)") || !strings.Contains(lines[0], "free_mib=200 reserve_mib=256") ||
		!regexp.MustCompile(`\[WARN\] +new mail is taken again: .* refused=1\d{3} after=`).MatchString(lines[1]) {
		t.Errorf("log:\n%s", said)
	}
}

// TestBrokenIsTold sees to it that the host learns of a failure, so that it can end.
func TestBrokenIsTold(t *testing.T) {
	root := t.TempDir()
	files, told := newRecorder(root), make(chan error, 2)
	store, err := queue.OpenStore(filepath.Join(root, storeDir), queue.StoreOptions{Files: files, OnBroken: func(err error) { told <- err }})
	must(t, err)
	defer store.Close()
	files.mu.Lock()
	files.fail = func(op) error { return errors.New("bad sector") }
	files.mu.Unlock()
	for range 2 {
		if err := store.Commit(small("x", 1)); !errors.Is(err, queue.ErrBroken) {
			t.Fatalf("error %v", err)
		}
	}
	if err := <-told; !errors.Is(err, queue.ErrBroken) || !strings.Contains(err.Error(), "bad sector") {
		t.Fatalf("told %v", err)
	}
}

// TestUnreadableIsParked damages records behind the store's back: the rest goes on, and what is damaged can be seen
// and removed.
func TestUnreadableIsParked(t *testing.T) {
	dir := t.TempDir()
	store := opener(queue.StoreOptions{})(t, dir)
	for i, id := range []string{"good", "newer version", "cut short", "entry", "no content", "no file"} {
		body := envelope.MemoryBody(storetest.Octets(uint64(i), 100))
		if id == "no file" {
			var err error
			body, err = spool(store, 9, 100_000)
			must(t, err)
		}
		item := storetest.Item(id, header(id), body)
		must(t, store.Commit(item))
	}
	must(t, store.Close())
	damage(t, dir)
	b := &bench{t: t, clock: newFakeClock(), dir: dir, config: edge}
	b.restart()
	t.Cleanup(func() { _ = b.Close() })
	b.clock.advance(1000 * time.Hour)
	item := b.due()
	if item.ID != "good" {
		t.Fatalf("due: %s", item.ID)
	}
	item.Expires = b.clock.Now().Add(48 * time.Hour)
	b.finish(item, b.clock.Now().Add(time.Hour))
	want := map[string]string{"good": "ready", "newer version": "parked", "cut short": "parked", "entry": "parked",
		"no content": "parked", "no file": "parked"}
	for range 2 {
		for range want { // those of which only the item is damaged are found when they are due
			b.TryDue()
		}
		b.wantStates(want)
		for _, e := range b.Entries(nil) {
			if e.State == queue.Parked && !strings.Contains(e.Reason, "unreadable") {
				t.Errorf("%s: reason %q", e.ID, e.Reason)
			}
		}
		b.restart()
	}
	for range want {
		b.TryDue()
	}
	for id, state := range want {
		if state == "parked" && id != "entry" {
			if err := b.Resume(id); !errors.Is(err, queue.ErrUnreadable) {
				t.Errorf("resuming %s: %v", id, err)
			}
		}
		b.must(b.Remove(id))
	}
	b.restart()
	b.wantStates(map[string]string{})
}

func damage(t *testing.T, dir string) {
	t.Helper()
	db, err := pebble.Open(filepath.Join(dir, "records"), &pebble.Options{})
	must(t, err)
	get := func(key string) []byte {
		value, closer, err := db.Get([]byte(key))
		must(t, err)
		defer closer.Close()
		return append([]byte(nil), value...)
	}
	newer := get("inewer version")
	newer[0] = 99
	must(t, db.Set([]byte("inewer version"), newer, pebble.Sync))
	short := get("icut short")
	must(t, db.Set([]byte("icut short"), short[:len(short)/2], pebble.Sync))
	it, err := db.NewIter(nil)
	must(t, err)
	contents := 0
	for ok := it.First(); ok; ok = it.Next() {
		switch key := string(it.Key()); {
		case key[0] == 'e' && strings.HasSuffix(key, "entry"):
			must(t, db.Set([]byte(key), []byte("\x01\xff\xff\xff"), pebble.Sync))
		case key[0] == 'c':
			if contents++; contents == 9 { // header and body of each
				must(t, db.Delete([]byte(key), pebble.Sync))
			}
		}
	}
	must(t, it.Close())
	must(t, db.Close())
	files, err := filepath.Glob(filepath.Join(dir, "bodies", "*"))
	must(t, err)
	for _, file := range files {
		must(t, os.Truncate(file, 10))
	}
}

// TestBodyFilesGo looks at the directory of bodies: no file stays of what was not committed or is done.
func TestBodyFilesGo(t *testing.T) {
	dir := t.TempDir()
	store := opener(queue.StoreOptions{CacheBytes: 1})(t, dir)
	wantFiles := func(want int) {
		t.Helper()
		got := -1
		for range 200 { // the cleanup of forgotten bodies is the garbage collector's
			files, err := filepath.Glob(filepath.Join(dir, "bodies", "*"))
			must(t, err)
			if got = len(files); got == want {
				return
			}
			runtime.GC()
		}
		t.Fatalf("%d files, want %d", got, want)
	}
	w, err := store.NewBody()
	must(t, err)
	_, err = w.Write(make([]byte, 100_000))
	must(t, err)
	wantFiles(1)
	w.Abort()
	wantFiles(0)
	body, err := spool(store, 1, 100_000)
	must(t, err)
	wantFiles(1)
	runtime.KeepAlive(body)
	body = nil
	wantFiles(0)
	body, err = spool(store, 1, 100_000)
	must(t, err)
	must(t, store.Commit(storetest.Item("a", nil, body)))
	must(t, store.Commit(storetest.Item("a", nil, envelope.MemoryBody(storetest.Octets(2, 100_000)))))
	body = nil
	wantFiles(1)
	item, err := store.Load("a")
	must(t, err)
	item.State = queue.Done
	must(t, store.Record(item))
	wantFiles(0)
	storetest.Same(t, "a body outlives its file", item, nil, storetest.Octets(1, 100_000))
	must(t, store.Close())
	must(t, os.WriteFile(filepath.Join(dir, "bodies", "00000000000000ff"), []byte("left by a crash"), 0o600))
	must(t, opener(queue.StoreOptions{Files: vfs.Default})(t, dir).Close())
	wantFiles(0)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestDescriptorsRunOut: what cannot be read for want of descriptors is not taken for damaged, but tried again soon.
func TestDescriptorsRunOut(t *testing.T) {
	b := newBench(t, edge)
	b.commitLarge("m")
	b.restart()
	b.clock.advance(time.Second)
	release := noDescriptors(t)
	b.TryDue()
	release()
	b.wantStates(map[string]string{"m": "ready"})
	b.wantNone()
	b.clock.advance(2 * time.Minute)
	if item := b.due(); item.ID != "m" {
		t.Fatalf("due: %s", item.ID)
	}
}

// TestResumeOfWhatCanBeReadAgain: an operator has put a missing body file back.
func TestResumeOfWhatCanBeReadAgain(t *testing.T) {
	b := newBench(t, edge)
	b.commitLarge("m")
	b.restart()
	files, err := filepath.Glob(filepath.Join(b.dir, "bodies", "*"))
	must(t, err)
	must(t, os.Rename(files[0], files[0]+".away"))
	b.clock.advance(time.Second)
	b.TryDue()
	b.wantStates(map[string]string{"m": "parked"})
	must(t, os.Rename(files[0]+".away", files[0]))
	b.must(b.Resume("m"))
	if item := b.due(); item.ID != "m" || item.Mail.Body.Size() != 100_000 {
		t.Fatalf("due: %s", item.ID)
	}
}

// commitLarge adds an item with a body in a file.
func (b *bench) commitLarge(id string) {
	b.t.Helper()
	w, err := b.NewBody()
	b.must(err)
	_, err = w.Write(storetest.Octets(1, 100_000))
	b.must(err)
	body, err := w.Finish()
	b.must(err)
	item := storetest.Item(id, header(id), body)
	item.Received, item.Next, item.Expires = time.Time{}, time.Time{}, time.Time{}
	b.must(b.Commit(item))
}

// noDescriptors keeps the process from opening anything until release is called.
func noDescriptors(t *testing.T) (release func()) {
	t.Helper()
	var before unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &before))
	next, err := os.Open(os.DevNull)
	must(t, err)
	low := unix.Rlimit{Cur: uint64(next.Fd()), Max: before.Max}
	must(t, next.Close())
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	return func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &before)) }
}
