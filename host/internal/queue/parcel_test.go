package queue_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/queue/storetest"
)

// looseBody is a body as a process without a store has it.
func looseBody(t testing.TB, dir, text string) *envelope.Body {
	t.Helper()
	w := queue.NewLooseBody(dir)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	b, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func octets(t testing.TB, b *envelope.Body) string {
	t.Helper()
	text, err := io.ReadAll(b.Reader())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// parcel is two items that share a large body, and one with its originals.
func parcel(t testing.TB) (octets []byte, large string) {
	large = strings.Repeat("0123456789", 20_000)
	body := looseBody(t, t.TempDir(), large)
	one := storetest.Item("one", []byte("A: b\r\n"), body)
	two := storetest.Item("two", []byte("A: c\r\n"), body)
	three := storetest.Item("three", []byte("A: b\r\n"), envelope.MemoryBody([]byte("small")))
	three.Mail.OriginalHeader, three.Mail.OriginalBody = []byte("A: before\r\n"), body
	for _, item := range []*queue.Item{one, two, three} { // as a session leaves it to the queue
		item.Received, item.Next, item.Expires = time.Time{}, time.Time{}, time.Time{}
	}
	var out bytes.Buffer
	if err := queue.WriteParcel(&out, one, two, three); err != nil {
		t.Fatal(err)
	}
	if out.Len() > len(large)+4000 {
		t.Fatalf("%d octets: what items share is written more than once", out.Len())
	}
	return out.Bytes(), large
}

func TestAdopt(t *testing.T) {
	octetsOf, large := parcel(t)
	b := newBench(t, edge)
	file := filepath.Join(t.TempDir(), "parcel")
	adopt := func() {
		t.Helper()
		b.must(os.WriteFile(file, octetsOf, 0o600))
		b.must(b.Adopt(bytes.NewReader(octetsOf), func() error { return os.Remove(file) }))
		if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
			t.Error("the parcel is still there")
		}
	}
	adopt()
	adopt() // as after a crash between the commit and the removal
	seen := map[string]*queue.Item{}
	for range 3 {
		item := b.due()
		seen[item.ID] = item
	}
	b.wantNone()
	for id, want := range map[string][2]string{"one": {"A: b\r\n", large}, "two": {"A: c\r\n", large}, "three": {"A: b\r\n", "small"}} {
		item := seen[id]
		if item == nil {
			t.Fatalf("%s is not due", id)
		}
		if string(item.Mail.Header) != want[0] || octets(t, item.Mail.Body) != want[1] {
			t.Errorf("%s has another content", id)
		}
	}
	if m := seen["three"].Mail; string(m.OriginalHeader) != "A: before\r\n" || octets(t, m.OriginalBody) != large {
		t.Error("the originals are others")
	}
}

// TestAdoptNotTaken: what cannot be removed is not scheduled, since it could leave the store and come again.
func TestAdoptNotTaken(t *testing.T) {
	octetsOf, _ := parcel(t)
	b := newBench(t, edge)
	stuck := errors.New("read-only file system")
	if err := b.Adopt(bytes.NewReader(octetsOf), func() error { return stuck }); !errors.Is(err, stuck) {
		t.Fatalf("got %v", err)
	}
	b.wantNone()
	b.must(b.Adopt(bytes.NewReader(octetsOf), func() error { return nil }))
	for range 3 {
		b.due()
	}
}

// TestParcelDamaged: every shorter parcel, and one with any octet changed, is told from a whole one.
func TestParcelDamaged(t *testing.T) {
	var out bytes.Buffer
	item := storetest.Item("one", []byte("A: b\r\n"), envelope.MemoryBody([]byte("body")))
	if err := queue.WriteParcel(&out, item); err != nil {
		t.Fatal(err)
	}
	whole := out.Bytes()
	read := func(octets []byte) error {
		_, err := queue.ReadParcel(bytes.NewReader(octets), loose(t.TempDir()))
		return err
	}
	if err := read(whole); err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		if err := read(whole[:i]); !errors.Is(err, queue.ErrUnreadable) {
			t.Fatalf("cut after %d octets: %v", i, err)
		}
		changed := bytes.Clone(whole)
		changed[i] ^= 0x10
		if err := read(changed); !errors.Is(err, queue.ErrUnreadable) {
			t.Fatalf("octet %d changed: %v", i, err)
		}
	}
}

func loose(dir string) func() (queue.BodyWriter, error) {
	return func() (queue.BodyWriter, error) { return queue.NewLooseBody(dir), nil }
}

// FuzzParcel feeds arbitrary octets: no panic, and what is read can be written and read again.
func FuzzParcel(f *testing.F) {
	var out bytes.Buffer
	if err := queue.WriteParcel(&out, storetest.Item("one", []byte("A: b\r\n"), envelope.MemoryBody([]byte("body")))); err != nil {
		f.Fatal(err)
	}
	f.Add(out.Bytes())
	f.Add([]byte("postern parcel 1\nb\x7f\xff\xff\xff\xff\xff\xff\xff"))
	f.Add([]byte("postern parcel 1\ni\x00\x00\x00\x00\x00\x00\x00\x02x\x00"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, octets []byte) {
		items, err := queue.ReadParcel(bytes.NewReader(octets), loose(dir))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := queue.WriteParcel(&again, items...); err != nil {
			t.Fatal(err)
		}
		if _, err := queue.ReadParcel(&again, loose(dir)); err != nil {
			t.Fatal(err)
		}
	})
}

// TestBodyAcrossClose: a body that was begun before the store was closed can be finished, and be written to another
// one, although whoever opens the directory next removes its file and may give its name to another body.
func TestBodyAcrossClose(t *testing.T) {
	for _, before := range []int{10, 100_000} {
		dir := t.TempDir()
		open := func() queue.Store {
			s, err := queue.OpenStore(dir, queue.StoreOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		old := open()
		w, err := old.NewBody()
		if err != nil {
			t.Fatal(err)
		}
		write := func(n int, c string) {
			if _, err := io.WriteString(w, strings.Repeat(c, n)); err != nil {
				t.Fatal(err)
			}
		}
		write(before, "a")
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
		next := open()
		other := storetest.Item("other", nil, looseBody(t, dir, strings.Repeat("z", 200_000)))
		if err := next.Commit(other); err != nil {
			t.Fatal(err)
		}
		write(100_000, "b")
		body, err := w.Finish()
		if err != nil {
			t.Fatal(err)
		}
		if err := next.Commit(storetest.Item("late", nil, body)); err != nil {
			t.Fatal(err)
		}
		if err := next.Close(); err != nil {
			t.Fatal(err)
		}
		last := open()
		for id, want := range map[string]string{"late": strings.Repeat("a", before) + strings.Repeat("b", 100_000), "other": strings.Repeat("z", 200_000)} {
			item, err := last.Load(id)
			if err != nil {
				t.Fatal(err)
			}
			if octets(t, item.Mail.Body) != want {
				t.Errorf("%s has another body", id)
			}
		}
		if err := last.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
