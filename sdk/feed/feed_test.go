package feed

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk"
)

// words are what these tests make of a bundle: its list, unless that says "bad".
func words(b *Bundle) (*string, error) {
	for name, content := range b.Files("list") {
		if bytes.Contains(content, []byte("bad")) {
			return nil, fmt.Errorf("%s: a bad word", name)
		}
		s := string(content)
		return &s, nil
	}
	return nil, errors.New("nothing for this agent")
}

// bench is one feed with its publisher.
type bench struct {
	publisher
	feed *one[string]
	now  time.Time
}

func newBench(t *testing.T, s Source) *bench {
	t.Helper()
	p := newPublisher(t)
	s.Name, s.Keys, s.Every, s.MaxSize = "lists", []Key{p.key}, time.Hour, size
	if s.Timeout == 0 {
		s.Timeout = 20 * time.Second
	}
	return &bench{p, &one[string]{source: s, keep: storeOf(t.TempDir(), s.Name), build: words}, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// publish into the folder of the source.
func (b *bench) publish(archive, signature []byte) {
	b.t.Helper()
	write(b.t, filepath.Join(b.feed.source.Directory, "lists.tar.gz"), archive)
	write(b.t, filepath.Join(b.feed.source.Directory, "lists.tar.gz.minisig"), signature)
}

// turn lets an interval pass: the source is looked at, and what came of it is loaded. It answers with what is in use.
func (b *bench) turn() (value string, unreachable, refused, load error) {
	b.t.Helper()
	b.now = b.now.Add(time.Hour)
	if err := b.feed.refresh(context.Background(), b.now); err != nil {
		b.t.Fatal(err)
	}
	_, load = b.feed.look()
	unreachable, refused, _ = b.feed.troubles()
	if v := b.feed.value.Load(); v != nil {
		value = *v.Value
	}
	return value, unreachable, refused, load
}

// want after a turn: the value in use, and part of what is wrong.
func (b *bench) want(value, unreachable, refused string) {
	b.t.Helper()
	got, u, r, load := b.turn()
	if got != value || !matches(u, unreachable) || !matches(r, refused) || load != nil {
		b.t.Errorf("in use %q, unreachable %v, refused %v, load %v; want %q, %q, %q", got, u, r, load, value, unreachable, refused)
	}
}

func matches(err error, want string) bool {
	return want == "" && err == nil || want != "" && err != nil && strings.Contains(err.Error(), want)
}

func TestDirectory(t *testing.T) {
	b := newBench(t, Source{Directory: t.TempDir()})
	b.want("", "no such file", "")
	b.publish(b.bundle(5, "five"))
	b.want("five", "", "")
	b.publish(b.bundle(6, "six"))
	b.want("six", "", "")
	b.want("six", "", "")

	b.publish(b.bundle(5, "five"))
	b.want("six", "", "serial 5 is not above 6")
	b.want("six", "", "serial 5 is not above 6")
	b.publish(b.bundle(6, "another six"))
	b.want("six", "", "serial 6 is not above 6")
	b.publish(b.bundle(7, "bad"))
	b.want("six", "", "serial 7: a.txt: a bad word")
	b.publish(newPublisher(t).bundle(8, "forged"))
	b.want("six", "", "which is none of this feed")
	archive, signature := b.bundle(9, "nine")
	b.publish(archive[:40], signature)
	b.want("six", "", "the bundle was changed")
	b.publish(archive, signature) // the rest arrives: the same signature, which was not remembered
	b.want("nine", "", "")
	b.publish(b.pack(Manifest{Name: "other", Serial: 10, Created: created}, Content{"a.txt", "list", []byte("ten")}))
	b.want("nine", "", `the bundle is of the feed "other"`)
	b.publish(make([]byte, size+1), b.sign(make([]byte, size+1)))
	b.want("nine", "more than 1048576 octets", `the bundle is of the feed "other"`)
	b.publish(b.bundle(10, "ten"))
	b.want("ten", "", "")

	kept, err := filepath.Glob(filepath.Join(b.feed.keep.dir, "*.tar.gz"))
	if err != nil || len(kept) != 2 {
		t.Errorf("kept are %q, %v", kept, err)
	}
}

// TestRestart loads what is on disk with the source gone; where that is damaged, the one before it.
func TestRestart(t *testing.T) {
	b := newBench(t, Source{Directory: t.TempDir()})
	for i, text := range []string{"one", "two"} {
		b.publish(b.bundle(uint64(i+1), text))
		b.want(text, "", "")
	}
	b.feed.source.Directory = "/nonexistent"
	restart := func() {
		b.feed = &one[string]{source: b.feed.source, keep: b.feed.keep, build: words}
	}
	restart()
	if loaded, err := b.feed.look(); err != nil || *loaded.Value != "two" {
		t.Fatalf("%+v, %v", loaded, err)
	}
	b.want("two", "no such file", "")

	path := b.feed.keep.archive(b.feed.state.Applied)
	write(t, path, []byte("damaged"))
	restart()
	value, _, _, load := b.turn()
	if value != "one" || load == nil {
		t.Errorf("in use %q, %v", value, load)
	}
	if _, err := b.feed.look(); err == nil {
		t.Error("the damage is forgotten at the second look")
	}

	b.feed.source.Keys = []Key{newPublisher(t).key} // the operator trusts the old key no more
	restart()
	if value, _, _, load := b.turn(); value != "" || load == nil {
		t.Errorf("in use %q, %v", value, load)
	}
}

// TestOtherProcess: what one process fetched another one finds.
func TestOtherProcess(t *testing.T) {
	b := newBench(t, Source{Directory: t.TempDir()})
	other := &one[string]{source: b.feed.source, keep: b.feed.keep, build: words}
	for i, text := range []string{"one", "two"} {
		b.publish(b.bundle(uint64(i+1), text))
		b.want(text, "", "")
		if loaded, err := other.look(); err != nil || loaded == nil || *loaded.Value != text {
			t.Errorf("the other process has %+v, %v", loaded, err)
		}
		if loaded, err := other.look(); err != nil || loaded != nil {
			t.Errorf("loaded again: %+v, %v", loaded, err)
		}
	}
	b.publish(b.bundle(1, "one"))
	b.turn()
	if _, _ = other.look(); other.state.Refused == "" {
		t.Error("the other process does not know of the refusal")
	}
}

// TestRollback goes back, does not take the same bundle again, and takes an older one once the operator says so.
func TestRollback(t *testing.T) {
	b := newBench(t, Source{Directory: t.TempDir()})
	change := func(how func(*state) error) {
		t.Helper()
		s, err := b.feed.keep.read()
		if err == nil {
			err = how(&s)
		}
		if err == nil {
			err = b.feed.keep.write(s)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, text := range []string{"one", "two"} {
		b.publish(b.bundle(uint64(i+1), text))
		b.want(text, "", "")
	}
	change(rollback)
	b.want("one", "", "")
	b.publish(b.bundle(2, "two, signed anew"))
	b.want("one", "", "serial 2 is not above 2")
	if s, _ := b.feed.keep.read(); rollback(&s) == nil {
		t.Error("there is nothing to go back to")
	}
	change(reset)
	b.want("two, signed anew", "", "")
}

// TestExpired: an expired bundle stays in use, which is said.
func TestExpired(t *testing.T) {
	b := newBench(t, Source{Directory: t.TempDir()})
	b.publish(b.pack(Manifest{Name: "lists", Serial: 1, Created: created, Expires: created.Add(time.Hour)}, Content{"a.txt", "list", []byte("old")}))
	b.want("old", "", "")
	if err := b.feed.expired(created.Add(30 * time.Minute)); err != nil {
		t.Error(err)
	}
	if err := b.feed.expired(created.Add(2 * time.Hour)); err == nil || !strings.Contains(err.Error(), "has expired on 2026-01-01T01:00:00Z and stays in use") {
		t.Error(err)
	}
}

// TestSignedAnew: the same bundle by a new key; with the old key gone it can still be loaded.
func TestSignedAnew(t *testing.T) {
	b := newBench(t, Source{Directory: t.TempDir()})
	archive, signature := b.bundle(1, "one")
	b.publish(archive, signature)
	b.want("one", "", "")
	successor := newPublisher(t)
	b.feed.source.Keys = append(b.feed.source.Keys, successor.key)
	b.publish(archive, successor.sign(archive))
	b.want("one", "", "")
	b.feed = &one[string]{source: b.feed.source, keep: b.feed.keep, build: words}
	b.feed.source.Keys = []Key{successor.key}
	b.want("one", "", "")
}

// server of bundles by HTTPS that can be told to misbehave.
type server struct {
	*httptest.Server
	mu       sync.Mutex
	files    map[string][]byte
	answer   http.HandlerFunc // instead of the files
	requests []string
}

func newServer(t *testing.T) *server {
	s := &server{files: map[string][]byte{}}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(s.serve))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(s.Close)
	return s
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	content, found := s.files[r.URL.Path]
	answer := s.answer
	s.requests = append(s.requests, r.URL.Path+" "+r.Header.Get("If-None-Match"))
	s.mu.Unlock()
	switch tag := fmt.Sprintf("%q", digestOf(content)[:8]); {
	case answer != nil:
		answer(w, r)
	case !found:
		http.NotFound(w, r)
	case r.Header.Get("If-None-Match") == tag:
		w.WriteHeader(http.StatusNotModified)
	default:
		w.Header().Set("ETag", tag)
		_, _ = w.Write(content)
	}
}

func (s *server) set(archive, signature []byte, answer http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files["/lists.tar.gz"], s.files["/lists.tar.gz.minisig"] = archive, signature
	s.answer, s.requests = answer, nil
}

func (s *server) asked() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.requests, "\n")
}

// ca writes the server's certificate.
func (s *server) ca(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "ca.pem")
	write(t, path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	return path
}

func TestHTTPS(t *testing.T) {
	s := newServer(t)
	b := newBench(t, Source{URL: s.URL + "/lists.tar.gz", CA: s.ca(t)})
	b.want("", "answers 404 Not Found", "")
	archive, signature := b.bundle(1, "one")
	s.set(archive, signature, nil)
	b.want("one", "", "")
	s.set(archive, signature, nil)
	b.want("one", "", "")
	if got, want := s.asked(), fmt.Sprintf("/lists.tar.gz.minisig %q", digestOf(signature)[:8]); got != want {
		t.Errorf("asked for %q, want %q", got, want)
	}

	for want, answer := range map[string]http.HandlerFunc{
		"500 Internal Server Error": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"redirected to http://": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://x.example/", http.StatusFound)
		},
		"after 5 redirects": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) },
		"no answer, or not all of it, within 1s": func(w http.ResponseWriter, r *http.Request) {
			for i := 0; ; i++ { // a few octets at a time, for ever
				_, _ = w.Write([]byte("x"))
				_ = http.NewResponseController(w).Flush()
				select {
				case <-r.Context().Done():
					return
				case <-time.After(50 * time.Millisecond):
				}
			}
		},
		"octets, more than 16384": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "1000000") },
		"has more than 16384 octets": func(w http.ResponseWriter, _ *http.Request) {
			for range 100 {
				_, _ = w.Write(make([]byte, 1000))
				_ = http.NewResponseController(w).Flush()
			}
		},
		"unexpected EOF": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("short"))
		},
	} {
		s.set(nil, nil, answer)
		b.feed.source.Timeout = 20 * time.Second
		if strings.HasSuffix(want, " 1s") {
			b.feed.source.Timeout = time.Second
		}
		b.want("one", want, "")
	}
	b.feed.source.Timeout = 20 * time.Second
	huge := make([]byte, size+1)
	s.set(huge, b.sign(huge), nil)
	b.want("one", "more than 1048576", "")
	s.setBundle(newPublisher(t).bundle(2, "forged"))
	b.want("one", "", "which is none of this feed")
	s.setBundle(b.bundle(2, "two"))
	b.want("two", "", "")

	b.feed.source.CA = newServer(t).ca(t) // its certificate is the same: httptest has one
	b.want("two", "", "")
	b.feed.source.CA = ""
	b.want("two", "certificate", "")
	s.Close()
	b.want("two", "refused", "")
}

// set as a pair of a bundle, for a call of one.
func (s *server) setBundle(archive, signature []byte) { s.set(archive, signature, nil) }

// TestDue: a source is looked at when its interval has passed, sooner where it was out of reach.
func TestDue(t *testing.T) {
	now := created
	for name, c := range map[string]struct {
		state
		want bool
	}{
		"never":               {state{}, true},
		"just now":            {state{Checked: now.Add(-time.Minute)}, false},
		"an hour ago":         {state{Checked: now.Add(-time.Hour)}, true},
		"down, just now":      {state{Checked: now.Add(-time.Minute), Unreachable: "down"}, false},
		"down":                {state{Checked: now.Add(-6 * time.Minute), Unreachable: "down"}, true},
		"the clock went back": {state{Checked: now.Add(time.Hour)}, true},
	} {
		if got := c.due(time.Hour, now); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestCommand publishes as a publisher does and looks at it as a user.
func TestCommand(t *testing.T) {
	dir := t.TempDir()
	run := func(args ...string) (string, error) {
		var out bytes.Buffer
		w := work{c: &sdk.Invocation{Out: &out, Err: &out, StateDir: filepath.Join(dir, "state")}, args: args[1:],
			judge:   func(b *Bundle) error { _, err := words(b); return err },
			sources: func() ([]Source, error) { return []Source{{Name: "lists"}}, nil }}
		err := w.run(args[0])
		return out.String(), err
	}
	must := func(want string, args ...string) {
		t.Helper()
		if out, err := run(args...); err != nil || !strings.Contains(out, want) {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	fails := func(want string, args ...string) {
		t.Helper()
		if out, err := run(args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
	key, list := filepath.Join(dir, "k"), filepath.Join(dir, "a.txt")
	must("RW", "keygen", key)
	fails("exists", "keygen", key)
	write(t, list, []byte("fine"))
	must("serial 3: ", "pack", "--name", "lists", "--key", key+".key", "--out", dir, "--serial", "3", "--expires", "30d", "list", list)
	archive := filepath.Join(dir, "lists.tar.gz")
	must("lists, serial 3, created", "verify", "--key", key+".pub", archive)
	must("to be signed with: minisign -Sm", "pack", "--name", "lists", "--out", dir, "list", list)
	fails("is wrong: the bundle was changed", "verify", "--key", key+".pub", archive)
	fails("behind its kind", "pack", "--name", "lists", list)
	fails("users would refuse this bundle: nothing for this agent", "pack", "--name", "lists", "--out", dir, "other", list)
	fails("there is no feed", "rollback", "x")
	fails("there is no bundle before", "rollback", "lists")
	must("", "reset", "lists")
	must("in use       none", "status")
	fails("there is no", "dance")
}
