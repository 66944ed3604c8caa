// Package storetest is the conformance test of queue.Store. Every implementation runs it.
package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/sdk/address"
)

// Open opens the store under test in dir. Stores opened in the same directory one after another are the same store.
type Open func(t *testing.T, dir string) queue.Store

// Run runs all tests on stores that open opens.
func Run(t *testing.T, open Open) {
	tests := []struct {
		name string
		run  func(*testing.T, *suite)
	}{
		{"content comes back octet by octet", testFidelity},
		{"every field comes back", testFields},
		{"committing an id again changes nothing", testCommitTwice},
		{"children replace their parent", testReplace},
		{"replacing a parent that is gone does nothing", testReplaceGone},
		{"record stores the new state", testRecord},
		{"done items leave", testDone},
		{"shared content stays until its last item leaves", testShared},
		{"an edited item has its new content and its original", testEdit},
		{"scan is in the order of next", testScan},
		{"what is loaded may be changed", testOwnership},
		{"a body may be committed late, twice or never", testBodies},
		{"concurrent changes", testConcurrent},
		{"nothing works after close", testClosed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := &suite{open: open, dir: t.TempDir()}
			s.reopen(t)
			t.Cleanup(func() { _ = s.Close() })
			test.run(t, s)
		})
	}
}

type suite struct {
	queue.Store
	open Open
	dir  string
}

func (s *suite) reopen(t *testing.T) {
	t.Helper()
	if s.Store != nil {
		must(t, s.Close())
	}
	s.Store = s.open(t, s.dir)
}

// body sends octets through NewBody in uneven pieces.
func (s *suite) body(t *testing.T, octets []byte) *envelope.Body {
	t.Helper()
	w, err := s.NewBody()
	must(t, err)
	for rest := octets; len(rest) > 0; {
		n := min(len(rest), 1+len(rest)/3)
		_, err := w.Write(rest[:n])
		must(t, err)
		rest = rest[n:]
	}
	body, err := w.Finish()
	must(t, err)
	w.Abort() // does nothing after Finish
	return body
}

// Item makes an item with a body; header and body are as given.
func Item(id string, header []byte, body *envelope.Body) *queue.Item {
	received := time.Date(2026, 5, 4, 3, 2, 1, 987654321, time.UTC)
	return &queue.Item{
		ID: id, Message: id, Origin: queue.OriginSMTP,
		Received: received, Next: received, Expires: received.Add(48 * time.Hour),
		Session: envelope.Session{ID: "s", Client: netip.MustParseAddrPort("192.0.2.7:2525"), Trust: envelope.Anonymous},
		Mail: &envelope.Mail{
			ID:         id,
			Sender:     envelope.Sender{Address: address.Mailbox{Local: "sender", Domain: "a.example"}},
			Recipients: []*envelope.Recipient{{Index: 0, Address: address.Mailbox{Local: "rcpt", Domain: "b.example"}}},
			NextIndex:  1, Header: header, Body: body,
		},
	}
}

// Octets is a body of n octets that no compression makes small.
func Octets(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = r.Read(b)
	return b
}

func testFidelity(t *testing.T, s *suite) {
	header := []byte("Subject: x\r\n\tfolded\r\nX-8bit: \xff\xfe\x80\r\n")
	bodies := map[string][]byte{
		"empty": {}, "text": []byte("hello\r\n"), "no final newline": []byte("hello"), "nul": []byte("a\x00b\x00\r\n\x00"),
		"8-bit": []byte("\xff\xfe\x80\xc3\x28\r\n"), "dots": []byte(".\r\n..\r\n.x\r\n"), "lone": []byte("a\nb\rc"),
		"64 KiB less one": Octets(1, 64<<10-1), "64 KiB": Octets(2, 64<<10), "64 KiB and one": Octets(3, 64<<10+1),
		"2 MiB": Octets(4, 2<<20),
	}
	headers := map[string][]byte{"": header, " without header": nil, " with 100 KiB header": bytes.Repeat([]byte("X: y\r\n"), 17000)}
	for bodyName, body := range bodies {
		for headerName, header := range headers {
			must(t, s.Commit(Item(bodyName+headerName, header, s.body(t, body))))
		}
	}
	check := func(when string) {
		for bodyName, body := range bodies {
			for headerName, header := range headers {
				item, err := s.Load(bodyName + headerName)
				must(t, err)
				Same(t, when+": "+item.ID, item, header, body)
			}
		}
	}
	check("at once")
	s.reopen(t)
	check("after a restart")
}

// Same fails unless item has exactly this header and body.
func Same(t *testing.T, what string, item *queue.Item, header, body []byte) {
	t.Helper()
	if !bytes.Equal(item.Mail.Header, header) {
		t.Fatalf("%s: header differs: %d octets, want %d", what, len(item.Mail.Header), len(header))
	}
	if item.Mail.Body == nil {
		t.Fatalf("%s: no body", what)
	}
	got, err := io.ReadAll(item.Mail.Body.Reader())
	must(t, err)
	if !bytes.Equal(got, body) {
		t.Fatalf("%s: body differs: %d octets, want %d", what, len(got), len(body))
	}
}

func testFields(t *testing.T, s *suite) {
	want := fullItem()
	must(t, s.Commit(want))
	bare := &queue.Item{ID: "bare", Mail: &envelope.Mail{}}
	must(t, s.Commit(bare))
	for _, when := range []string{"at once", "after a restart"} {
		got, err := s.Load(want.ID)
		must(t, err)
		Equal(t, when, got, want)
		got, err = s.Load("bare")
		must(t, err)
		Equal(t, when, got, bare)
		s.reopen(t)
	}
}

// Equal fails unless two items agree in every exported field, content by its octets.
func Equal(t *testing.T, what string, got, want *queue.Item) {
	t.Helper()
	g, w := flat(t, got), flat(t, want)
	if g != w {
		t.Fatalf("%s: items differ\n got: %s\nwant: %s", what, g, w)
	}
}

// flat writes all exported fields of an item. The zero Body and slices of no length are like nil ones.
func flat(t *testing.T, item *queue.Item) string {
	t.Helper()
	var b strings.Builder
	write(t, &b, reflect.ValueOf(item))
	return b.String()
}

func write(t *testing.T, b *strings.Builder, v reflect.Value) {
	if body, ok := v.Interface().(*envelope.Body); ok {
		if body != nil {
			octets, err := io.ReadAll(body.Reader())
			must(t, err)
			fmt.Fprintf(b, "body %q", octets)
		}
		return
	}
	if s, ok := v.Interface().(fmt.Stringer); ok && v.Kind() != reflect.Pointer {
		fmt.Fprintf(b, "%s", s)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			write(t, b, v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				fmt.Fprintf(b, " %s{", f.Name)
				write(t, b, v.Field(i))
				b.WriteString("}")
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Pointer {
			for i := range v.Len() {
				write(t, b, v.Index(i))
			}
			return
		}
		fmt.Fprintf(b, "%q", v.Interface())
	default:
		fmt.Fprintf(b, "%q", fmt.Sprint(v.Interface()))
	}
}

func fullItem() *queue.Item {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	recipient := func(i int) *envelope.Recipient {
		return &envelope.Recipient{
			Index: i, Address: address.Mailbox{Local: "a \"b\xff", Domain: "x.example"}, ORCPT: "rfc822;\xffq@x.example",
			Notify: envelope.NotifyFailure | envelope.NotifyDelay, Original: "o@x.example", ExpandedFrom: "all@x.example",
			Route: "r.example", Stamps: envelope.Stamps{"auth.spf": []byte("\x00\xff"), "empty": {}}, State: envelope.Failed,
			Reply: envelope.Reply{Code: 550, Enhanced: "5.1.1", Text: "no \xe9"}, Remote: "mx[192.0.2.1]", Reported: true, Delayed: true,
		}
	}
	return &queue.Item{
		ID: "full.1-child", Message: "full.1", Parent: "full.1", Origin: queue.OriginSpawn,
		Session: envelope.Session{
			ID: "full", Connector: "internet", Client: netip.MustParseAddrPort("[2001:db8::1%eth0]:5"),
			Peer: netip.MustParseAddrPort("192.0.2.1:6"), Local: netip.MustParseAddrPort("127.0.0.1:25"), Helo: "h\xffelo",
			Extended: true, TLS: &envelope.TLS{Version: "1.3", CipherSuite: "c", ServerName: "n", ClientSubject: "s", ClientVerified: true},
			Auth: &envelope.Auth{Mechanism: "PLAIN", Identity: "u\x00"}, Trust: envelope.Partner, Started: at, EarlyTalk: true,
			Commands: 7, Rejects: 2, Unsynchronized: 1,
		},
		Stamps: envelope.Stamps{"s": []byte("v")}, Depth: 3,
		Mail: &envelope.Mail{
			ID: "full.1", Sender: envelope.Sender{Address: address.Mailbox{Local: "s", Domain: "d.example"}, Size: 1 << 40,
				BodyType: "8BITMIME", SMTPUTF8: true, RequireTLS: true, Ret: "HDRS", EnvID: "e\xff", Auth: "<>"},
			Recipients: []*envelope.Recipient{recipient(0), recipient(300)}, NextIndex: 301,
			Stamps: envelope.Stamps{"scl": []byte("9")}, Traffic: envelope.Outbound,
			Header: []byte("A: b\r\n"), OriginalHeader: []byte("A: original\r\n"),
			Body: envelope.MemoryBody([]byte("new\r\n")), OriginalBody: envelope.MemoryBody([]byte("original\r\n")),
		},
		Prefix: []byte("Received: x\r\n"), Durable: true, State: queue.Waiting, Routed: true, Hop: "internet/x.example", Attempts: 11,
		Received: at, Next: at.Add(time.Hour), Expires: at.Add(48 * time.Hour), WaitingFor: "av", Missed: []string{"av", "", "cf"},
		DoneAgents: []string{"cf OnSubmitted"}, Agent: "cf", Reason: "r\xff", Evidence: "stderr\n", LastError: "451 later",
	}
}

func testCommitTwice(t *testing.T, s *suite) {
	first := Item("one", []byte("A: 1\r\n"), envelope.MemoryBody([]byte("first")))
	must(t, s.Commit(first))
	must(t, s.Commit(Item("one", []byte("A: 2\r\n"), s.body(t, Octets(1, 100_000))), Item("two", nil, s.body(t, []byte("2")))))
	for range 2 {
		item, err := s.Load("one")
		must(t, err)
		Same(t, "one", item, []byte("A: 1\r\n"), []byte("first"))
		item, err = s.Load("two")
		must(t, err)
		Same(t, "two", item, nil, []byte("2"))
		s.reopen(t)
	}
}

func testReplace(t *testing.T, s *suite) {
	parent := Item("p", []byte("A: 1\r\n"), s.body(t, Octets(1, 100_000)))
	must(t, s.Commit(parent))
	parent, err := s.Load("p")
	must(t, err)
	for i := range 3 {
		child := *parent
		child.ID, child.Parent = fmt.Sprintf("p-%d", i), "p"
		must(t, s.Replace(parent, &child))
		parent, err = s.Load(child.ID)
		must(t, err)
	}
	s.reopen(t)
	wantIDs(t, s, "p-2")
	item, err := s.Load("p-2")
	must(t, err)
	Same(t, "child", item, []byte("A: 1\r\n"), Octets(1, 100_000))
	_, err = s.Load("p")
	wantError(t, err, queue.ErrNotFound)
}

func testReplaceGone(t *testing.T, s *suite) {
	gone := Item("gone", []byte("A: 1\r\n"), envelope.MemoryBody([]byte("x")))
	must(t, s.Replace(gone, Item("child", nil, envelope.MemoryBody([]byte("y")))))
	wantIDs(t, s)
	must(t, s.Commit(gone))
	must(t, s.Replace(gone))
	must(t, s.Replace(gone, Item("child", nil, envelope.MemoryBody([]byte("y")))))
	wantIDs(t, s)
	wantError(t, s.Record(gone), queue.ErrNotFound)
}

func testRecord(t *testing.T, s *suite) {
	must(t, s.Commit(Item("r", []byte("A: 1\r\n"), s.body(t, []byte("b")))))
	for attempt := 1; attempt <= 3; attempt++ {
		item, err := s.Load("r")
		must(t, err)
		item.Attempts, item.Next, item.LastError = attempt, item.Next.Add(time.Hour), "451 later"
		must(t, s.Record(item, Item(fmt.Sprintf("dsn %d", attempt), nil, envelope.MemoryBody([]byte("report")))))
		must(t, s.Record(item, Item(fmt.Sprintf("dsn %d", attempt), nil, envelope.MemoryBody([]byte("another")))))
	}
	s.reopen(t)
	wantIDs(t, s, "dsn 1", "dsn 2", "dsn 3", "r")
	item, err := s.Load("r")
	must(t, err)
	Same(t, "r", item, []byte("A: 1\r\n"), []byte("b"))
	if item.Attempts != 3 || item.LastError != "451 later" {
		t.Fatalf("attempts %d, last error %q", item.Attempts, item.LastError)
	}
	item, err = s.Load("dsn 2")
	must(t, err)
	Same(t, "dsn", item, nil, []byte("report"))
}

func testDone(t *testing.T, s *suite) {
	for _, size := range []int{0, 10, 100_000} {
		item := Item("d", []byte("A: 1\r\n"), s.body(t, Octets(1, size)))
		must(t, s.Commit(item))
		item.State = queue.Done
		must(t, s.Record(item, Item("dsn", nil, envelope.MemoryBody([]byte("report")))))
		wantIDs(t, s, "dsn")
		_, err := s.Load("d")
		wantError(t, err, queue.ErrNotFound)
		must(t, s.Replace(Item("dsn", nil, nil)))
		s.reopen(t)
		wantIDs(t, s)
	}
}

func testShared(t *testing.T, s *suite) {
	for _, size := range []int{5000, 200_000} {
		octets, header := Octets(9, size), []byte("Shared: yes\r\n")
		body := s.body(t, octets)
		parent := Item("p", header, body)
		parent.Mail.OriginalHeader, parent.Mail.OriginalBody = header, body
		must(t, s.Commit(parent))
		parent, err := s.Load("p")
		must(t, err)
		var children []*queue.Item
		for i := range 4 {
			child := *parent
			mail := *parent.Mail
			child.ID, child.Mail = fmt.Sprintf("c%d", i), &mail
			children = append(children, &child)
		}
		must(t, s.Replace(parent, children...))
		for i, child := range children {
			if i == 2 {
				s.reopen(t)
			}
			item, err := s.Load(child.ID)
			must(t, err)
			Same(t, child.ID, item, header, octets)
			item.State = queue.Done
			must(t, s.Record(item))
		}
		wantIDs(t, s)
	}
}

func testEdit(t *testing.T, s *suite) {
	header, octets := []byte("A: 1\r\n"), Octets(5, 70_000)
	body := s.body(t, octets)
	item := Item("e", header, body)
	item.Mail.OriginalHeader, item.Mail.OriginalBody = header, body
	must(t, s.Commit(item))
	for i := range 3 {
		item, err := s.Load("e")
		must(t, err)
		item.Mail.Header = fmt.Appendf(nil, "A: edit %d\r\n", i)
		item.Mail.Body = envelope.MemoryBody(Octets(uint64(i), 40_000*i))
		must(t, s.Record(item))
		if i == 1 {
			s.reopen(t)
		}
		got, err := s.Load("e")
		must(t, err)
		Same(t, "edited", got, item.Mail.Header, Octets(uint64(i), 40_000*i))
		got.Mail.Header, got.Mail.Body = got.Mail.OriginalHeader, got.Mail.OriginalBody
		Same(t, "original", got, header, octets)
	}
}

func testScan(t *testing.T, s *suite) {
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 50 {
		item := Item(fmt.Sprint(i), nil, envelope.MemoryBody(nil))
		item.Next = base.Add(time.Duration(i*37%50) * time.Minute)
		must(t, s.Commit(item))
	}
	zero := Item("never set", []byte("A: b\r\n"), envelope.MemoryBody([]byte("12345")))
	zero.Next = time.Time{}
	zero.Message, zero.Hop, zero.Routed, zero.State = "m", "h/x", true, queue.Quarantined
	must(t, s.Commit(zero))
	s.reopen(t)
	var entries []queue.Entry
	must(t, s.Scan(func(e queue.Entry) error { entries = append(entries, e); return nil }))
	if len(entries) != 51 {
		t.Fatalf("%d entries, want 51", len(entries))
	}
	for i := range entries[1:] {
		if entries[i+1].Next.Before(entries[i].Next) {
			t.Fatalf("entry %d before %d", i+1, i)
		}
	}
	e := entries[0]
	if e.ID != "never set" || e.Message != "m" || !e.Next.IsZero() || e.State != queue.Quarantined || e.Hop != "h/x" || !e.Routed ||
		e.Sender != "sender@a.example" || e.Recipients != 1 || e.Size != 13 || !e.Expires.Equal(zero.Expires) {
		t.Fatalf("entry %+v", e)
	}
	stop := errors.New("stop")
	wantError(t, s.Scan(func(queue.Entry) error { return stop }), stop)
}

func testOwnership(t *testing.T, s *suite) {
	item := Item("o", []byte("A: 1\r\n"), envelope.MemoryBody([]byte("b")))
	must(t, s.Commit(item))
	item.Mail.Sender.Address.Local, item.LastError = "changed", "changed"
	first, err := s.Load("o")
	must(t, err)
	first.Mail.Recipients[0].State, first.Mail.Recipients = envelope.Failed, nil
	second, err := s.Load("o")
	must(t, err)
	if second.LastError != "" || second.Mail.Sender.Address.Local != "sender" || len(second.Mail.Recipients) != 1 ||
		second.Mail.Recipients[0].State != envelope.Pending {
		t.Fatalf("a change without Record shows: %+v", second.Mail)
	}
}

func testBodies(t *testing.T, s *suite) {
	octets := Octets(7, 150_000)
	body := s.body(t, octets)
	w, err := s.NewBody()
	must(t, err)
	_, err = w.Write(octets)
	must(t, err)
	w.Abort()
	s.body(t, octets) // never committed
	for i := range 3 {
		item := Item(fmt.Sprint(i), nil, body)
		must(t, s.Commit(item))
		item, err := s.Load(item.ID)
		must(t, err)
		Same(t, item.ID, item, nil, octets)
		if i > 0 {
			item.State = queue.Done
			must(t, s.Record(item))
		}
	}
	must(t, s.Commit(Item("foreign", nil, envelope.MemoryBody(octets))))
	s.reopen(t)
	for _, id := range []string{"0", "foreign"} {
		item, err := s.Load(id)
		must(t, err)
		Same(t, id, item, nil, octets)
	}
}

func testConcurrent(t *testing.T, s *suite) {
	const workers, rounds = 8, 25
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for r := range rounds {
				if err := life(s, fmt.Sprintf("%d.%d", w, r), uint64(w*rounds+r)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	s.reopen(t)
	count := 0
	must(t, s.Scan(func(e queue.Entry) error {
		count++
		item, err := s.Load(e.ID)
		if err == nil && item.Mail.Body.Size() == 0 {
			err = errors.New("empty")
		}
		return err
	}))
	if count != workers*rounds {
		t.Fatalf("%d items, want %d", count, workers*rounds)
	}
}

// life takes a message from commit over a split to one copy that is delivered and one that is kept.
func life(s *suite, id string, seed uint64) error {
	item := Item(id, []byte("A: "+id+"\r\n"), envelope.MemoryBody(Octets(seed, 100+int(seed%10)*10_000)))
	if err := s.Commit(item); err != nil {
		return err
	}
	item, err := s.Load(id)
	if err != nil {
		return err
	}
	a, b := *item, *item
	a.ID, b.ID = id+"-a", id+"-b"
	if err := s.Replace(item, &a, &b); err != nil {
		return err
	}
	a.State = queue.Done
	b.Attempts++
	return errors.Join(s.Record(&a), s.Record(&b))
}

func testClosed(t *testing.T, s *suite) {
	item := Item("c", nil, envelope.MemoryBody([]byte("b")))
	must(t, s.Commit(item))
	must(t, s.Close())
	must(t, s.Close())
	_, loadErr := s.Load("c")
	_, bodyErr := s.NewBody()
	for i, err := range []error{s.Commit(item), s.Record(item), s.Replace(item), loadErr, bodyErr, s.Scan(nil)} {
		if err == nil {
			t.Errorf("operation %d worked after Close", i)
		}
	}
}

func wantIDs(t *testing.T, s *suite, want ...string) {
	t.Helper()
	got := map[string]bool{}
	must(t, s.Scan(func(e queue.Entry) error { got[e.ID] = true; return nil }))
	for _, id := range want {
		if !got[id] {
			t.Fatalf("no entry %q among %v", id, got)
		}
	}
	if len(got) != len(want) {
		t.Fatalf("entries %v, want %q", got, want)
	}
}

func wantError(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
