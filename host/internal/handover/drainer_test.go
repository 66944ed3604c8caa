package handover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/host/internal/tracking"
)

// scene is an owner's store, tables and ledger, and a drainer beside them.
type scene struct {
	t       *testing.T
	dir     string
	queue   *queue.Queue
	tables  tables.Store
	ledger  *tracking.File
	pickup  *Pickup
	drainer *Drainer
}

func newScene(t *testing.T) *scene {
	s := &scene{t: t, dir: t.TempDir()}
	s.open()
	t.Cleanup(s.close)
	s.tables.Apply([]tables.Write{{Table: "greylist", Key: "known", Op: tables.Put, Value: []byte(`{"n":1}`)}})
	s.startDrainer()
	return s
}

func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) path(name string) string { return filepath.Join(s.dir, name) }

func (s *scene) open() {
	s.t.Helper()
	store, err := queue.OpenStore(s.path("queue"), queue.StoreOptions{})
	s.must(err)
	s.queue, err = queue.New(store, queue.Options{Config: config.Queue{ExpireAfter: time.Hour}})
	s.must(err)
	s.tables, err = tables.Open(s.path("tables"), tables.Options{})
	s.must(err)
	s.ledger, err = tracking.Open(s.path("ledger"), tracking.Options{})
	s.must(err)
	s.pickup = &Pickup{Incoming: s.path("incoming"), Queue: s.queue, Tables: s.tables, Ledger: s.ledger, Logger: hclog.NewNullLogger()}
}

func (s *scene) close() {
	s.t.Helper()
	s.must(errors.Join(s.queue.Close(), s.tables.Close(), s.ledger.Close()))
}

func (s *scene) startDrainer() {
	var err error
	s.drainer, err = NewDrainer(DrainerOptions{Incoming: s.path("incoming"), Socket: s.path("control.sock"), Tables: s.tables, Logger: hclog.NewNullLogger()})
	s.must(err)
}

func mail(id string) *queue.Item {
	return &queue.Item{ID: id, Message: id, Origin: queue.OriginSMTP, Mail: &envelope.Mail{
		Header: []byte("A: b\r\n"), Body: envelope.MemoryBody([]byte("text\r\n")), Recipients: []*envelope.Recipient{{Index: 1}}}}
}

// lines are the messages of all lines of the ledger.
func (s *scene) lines() string {
	s.t.Helper()
	records, _, err := s.ledger.Search(context.Background(), tracking.Query{})
	s.must(err)
	var out []string
	for _, r := range records {
		out = append(out, r.Message)
	}
	return strings.Join(out, " ")
}

func (s *scene) items() string {
	var out []string
	for _, e := range s.queue.Entries(func(queue.Entry) bool { return true }) {
		out = append(out, e.ID)
	}
	return strings.Join(out, " ")
}

func (s *scene) row(key string) string {
	row, _ := s.tables.Get("greylist", key)
	return string(row.Value)
}

// flushed waits until the drainer has its lines in files.
func (s *scene) flushed() {
	for range 500 {
		s.drainer.mu.Lock()
		empty := len(s.drainer.lines) == 0
		s.drainer.mu.Unlock()
		if files, _ := filepath.Glob(filepath.Join(s.drainer.folder.Path, "*"+kindLedger)); empty && len(files) > 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Fatal("the lines are not written")
}

// TestDrainer: what a drainer accepts, writes and tells exists once, also when nobody is there to take it for a while
// and when the owner dies after taking it and before it could say so.
func TestDrainer(t *testing.T) {
	s := newScene(t)
	s.must(s.drainer.Commit(mail("m1")))
	s.drainer.Write(&tracking.Record{Event: tracking.Receive, Message: "m1"})
	rows := s.drainer.Tables()
	rows.Apply([]tables.Write{
		{Table: "greylist", Key: "count", Op: tables.Add, Field: "n", Amount: 3, EventID: "e1 agent 1"},
		{Table: "greylist", Key: "plain", Op: tables.Add, Field: "n", Amount: 4}, // without an id of its own
	})
	if row, ok := rows.Get("greylist", "count"); !ok || string(row.Value) != `{"n":3}` {
		t.Errorf("without an owner the drainer does not read what it has written: %s", row.Value)
	}
	if row, ok := rows.Get("greylist", "known"); !ok || string(row.Value) != `{"n":1}` {
		t.Errorf("without an owner the drainer does not know what was there before: %s", row.Value)
	}
	s.flushed()

	kept := s.copyFolder()
	s.pickup.Adopt()
	check := func(when string) {
		t.Helper()
		if got := s.items(); got != "m1" {
			t.Errorf("%s: items %q", when, got)
		}
		if got := s.lines(); got != "m1" {
			t.Errorf("%s: ledger %q", when, got)
		}
		if got := s.row("count") + s.row("plain"); got != `{"n":3}{"n":4}` {
			t.Errorf("%s: rows %s", when, got)
		}
		if files, _ := filepath.Glob(filepath.Join(s.drainer.folder.Path, "0*")); len(files) > 0 {
			t.Errorf("%s: %v are still there", when, files)
		}
	}
	check("picked up")

	s.close()
	kept() // the owner died before the files were gone
	s.open()
	s.pickup.Adopt()
	check("picked up again")
}

// copyFolder remembers the files of the drainer; what it returns puts them back.
func (s *scene) copyFolder() (restore func()) {
	files, err := filepath.Glob(filepath.Join(s.drainer.folder.Path, "0*"))
	s.must(err)
	content := map[string][]byte{}
	for _, f := range files {
		content[f], err = os.ReadFile(f)
		s.must(err)
	}
	if len(content) != 3 {
		s.t.Fatalf("the drainer has %v", files)
	}
	return func() {
		for f, b := range content {
			s.must(os.WriteFile(f, b, 0o600))
		}
	}
}

// TestPickupUnreadable: a file that cannot be read is put aside, the others are taken.
func TestPickupUnreadable(t *testing.T) {
	s := newScene(t)
	s.must(s.drainer.Commit(mail("m1")))
	s.must(os.WriteFile(filepath.Join(s.drainer.folder.Path, "0000000000000000.mail"), []byte("nonsense"), 0o600))
	s.must(os.WriteFile(filepath.Join(s.drainer.folder.Path, "0000000000000000.rows"), []byte("nonsense"), 0o600))
	s.must(s.drainer.Commit(mail("m2")))
	s.pickup.Adopt()
	if got := s.items(); got != "m1 m2" && got != "m2 m1" {
		t.Errorf("items %q", got)
	}
	if n := s.pickup.Unreadable(); n != 2 {
		t.Errorf("%d files were put aside", n)
	}
	s.must(s.drainer.Close())
	s.pickup.Adopt()
	if folders(s.path("incoming")) != nil || s.pickup.Unreadable() != 2 {
		t.Error("the folder of a drainer that has ended is still there, or what was put aside is not")
	}
}

// TestLeftovers: the folder of a process that was killed goes when nothing is left in it, that of a living one stays.
func TestLeftovers(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "run")
	living, err := NewFolder(parent)
	if err != nil {
		t.Fatal(err)
	}
	dead, err := NewFolder(parent)
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.Release(); err != nil { // as the kernel does it
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(parent, "of an older version"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := RemoveLeftovers(parent); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(folders(parent)); got != fmt.Sprint([]string{living.Path}) {
		t.Errorf("left: %s", got)
	}
	go func() {
		for !living.Stopped() {
			time.Sleep(time.Millisecond)
		}
		_ = living.Release()
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	StopAll(ctx, parent)
	if len(Living(parent)) > 0 {
		t.Error("it was not told to end")
	}
}

// TestFrontChanges: sessions notice nothing of what is behind the front, and nothing of theirs is lost in between.
func TestFrontChanges(t *testing.T) {
	s := newScene(t)
	var front Front
	if front.Commit(mail("x")) == nil {
		t.Error("mail was accepted by nobody")
	}
	owned := Owned{Queue: s.queue, Ledger: s.ledger, Rows: s.tables}
	s.must(front.Change(func() (Back, error) { return owned, nil }))
	var working sync.WaitGroup
	for i := range 4 {
		working.Go(func() {
			for n := range 50 {
				id := fmt.Sprintf("m%d.%d", i, n)
				if err := front.Commit(mail(id)); err != nil {
					t.Error(err)
				}
				front.Write(&tracking.Record{Event: tracking.Receive, Message: id})
				front.Tables().Apply([]tables.Write{{Table: "greylist", Key: "count", Op: tables.Add, Field: "n", Amount: 1, EventID: id}})
			}
		})
	}
	for range 10 {
		s.must(front.Change(func() (Back, error) { return s.drainer, nil }))
		time.Sleep(5 * time.Millisecond)
		s.must(front.Change(func() (Back, error) { return owned, nil }))
	}
	refused := errors.New("no")
	if err := front.Change(func() (Back, error) { return nil, refused }); !errors.Is(err, refused) {
		t.Error(err)
	}
	working.Wait()
	s.must(s.drainer.Close())
	s.pickup.Adopt()
	if n := len(strings.Fields(s.items())); n != 200 {
		t.Errorf("%d items", n)
	}
	if n := len(strings.Fields(s.lines())); n != 200 {
		t.Errorf("%d lines", n)
	}
	if got := s.row("count"); got != `{"n":200}` {
		t.Errorf("rows: %s", got)
	}
}
