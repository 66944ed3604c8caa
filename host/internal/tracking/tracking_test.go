package tracking

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/config"
)

// filled gives every field of v a value that is not zero, so that one added later is in the tests too.
func filled(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d \"\\\n\x7f é 漢", *n))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		filled(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		filled(v.Index(0), n)
		filled(v.Index(1), n)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Date(2031, 2, 3, 4, 5, 6, *n*1000, time.UTC)))
			return
		}
		for i := range v.NumField() {
			filled(v.Field(i), n)
		}
	default:
		panic("a kind of field the test does not know: " + v.Kind().String())
	}
}

func TestRecordIsWrittenAsEncodingJSONDoes(t *testing.T) {
	var full Record
	n := 0
	filled(reflect.ValueOf(&full).Elem(), &n)
	null := ""
	for name, r := range map[string]Record{
		"full":        full,
		"zero":        {},
		"null sender": {Event: Receive, Sender: &null},
		"zero counts": {Event: Session, Counts: &Counts{}},
		"octets":      {Subject: "a\xff\xfeb\x00\x1b[31m\u0085\u2028"},
	} {
		t.Run(name, func(t *testing.T) {
			line := appendRecord(nil, &r)
			standard, err := json.Marshal(&r)
			if err != nil {
				t.Fatal(err)
			}
			var got, want Record
			if err := json.Unmarshal(line, &got); err != nil {
				t.Fatalf("%v in %s", err, line)
			}
			if err := json.Unmarshal(standard, &want); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			if strings.ContainsAny(string(line[:len(line)-1]), "\x00\x1b\n\x7f") {
				t.Errorf("control characters in %q", line)
			}
		})
	}
}

func FuzzString(f *testing.F) {
	for _, s := range []string{"", "plain", "\"\\", "\x00\x1f\x7f\u0080\u009f\u00a0", "\xc3", "\xed\xa0\x80", "\u2028", "\ufffd", "😀"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var got, want string
		if err := json.Unmarshal(appendString(nil, s), &got); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		standard, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(standard, &want); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%q became %q, encoding/json makes %q of it", s, got, want)
		}
	})
}

// clock is a time that tests set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = t
}

var day = time.Date(2031, 5, 6, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, dir string, bounds config.Ledger, c *clock) *File {
	t.Helper()
	o := Options{Config: bounds}
	if c != nil {
		o.Now = c.Now
	}
	f, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func find(t *testing.T, f *File, q Query) []Record {
	t.Helper()
	records, _, err := f.Search(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	return records
}

func TestRecordsComeBackInOrder(t *testing.T) {
	f := open(t, t.TempDir(), config.Ledger{}, nil)
	for i := range 100 {
		f.Write(&Record{Event: Receive, Message: fmt.Sprintf("s.%d", i)})
	}
	records := find(t, f, Query{})
	if len(records) != 100 || records[0].Message != "s.0" || records[99].Message != "s.99" {
		t.Fatalf("%d records, from %q to %q", len(records), records[0].Message, records[len(records)-1].Message)
	}
	if records[0].Time.IsZero() {
		t.Error("Write did not set the time")
	}
}

func TestARecordIsOnDiskWithoutBeingAskedFor(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir, config.Ledger{}, nil)
	f.Write(&Record{Event: Reject})
	for deadline := time.Now().Add(10 * time.Second); f.Written() == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing was written in ten seconds")
		}
	}
	records, _, err := Search(context.Background(), dir, Query{})
	if err != nil || len(records) != 1 {
		t.Fatalf("%d records, %v", len(records), err)
	}
}

func TestManyWritersLoseNothing(t *testing.T) {
	f := open(t, t.TempDir(), config.Ledger{MaxBytes: 64 << 20}, nil)
	var group sync.WaitGroup
	for w := range 8 {
		group.Go(func() {
			for i := range 500 {
				f.Write(&Record{Event: Receive, Session: fmt.Sprintf("w%d", w), Size: int64(i + 1)})
			}
		})
	}
	group.Wait()
	if n := len(find(t, f, Query{})); n != 4000 || f.Dropped() != 0 {
		t.Fatalf("%d records of 4000, %d dropped", n, f.Dropped())
	}
	for w := range 8 {
		for i, r := range find(t, f, Query{Session: fmt.Sprintf("w%d", w)}) {
			if r.Size != int64(i+1) {
				t.Fatalf("writer %d: record %d is %d", w, i, r.Size)
			}
		}
	}
}

func TestClosedLedgerCountsWhatItDrops(t *testing.T) {
	f := open(t, t.TempDir(), config.Ledger{}, nil)
	f.Write(&Record{Event: Receive})
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f.Write(&Record{Event: Receive})
	if f.Written() != 1 || f.Dropped() != 1 {
		t.Errorf("written %d, dropped %d", f.Written(), f.Dropped())
	}
	if err := f.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestADiskThatFailsLosesRecordsAndIsFoundAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ledger")
	c := &clock{now: day}
	f := open(t, dir, config.Ledger{}, c)
	f.Write(&Record{Event: Receive, Message: "before"})
	find(t, f, Query{})
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	c.set(day.AddDate(0, 0, 1)) // a new day needs a new file
	f.Write(&Record{Event: Receive, Message: "lost"})
	if err := f.Flush(); err == nil {
		t.Error("the flush into a missing folder succeeded")
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	f.Write(&Record{Event: Receive, Message: "after"})
	records := find(t, f, Query{})
	if len(records) != 2 || records[1].Message != "after" || f.Dropped() != 1 {
		t.Errorf("%d records, dropped %d", len(records), f.Dropped())
	}
}

// An operator looks into the ledger just when the disk is full.
func TestLedgerThatCannotBeWrittenCanBeRead(t *testing.T) {
	f := open(t, t.TempDir(), config.Ledger{}, nil)
	f.Write(&Record{Event: Receive, Message: "before"})
	find(t, f, Query{})
	if err := f.out.file.Close(); err != nil { // what is written now fails, as on a full disk
		t.Fatal(err)
	}
	f.Write(&Record{Event: Receive, Message: "lost"})
	if records := find(t, f, Query{}); len(records) != 1 || records[0].Message != "before" || f.Dropped() != 1 {
		t.Errorf("%d records, dropped %d", len(records), f.Dropped())
	}
}

func TestFilesByDayAndSizeWithinBounds(t *testing.T) {
	dir := t.TempDir()
	c := &clock{now: day}
	f := open(t, dir, config.Ledger{MaxBytes: 64 << 10, MaxAge: 3 * 24 * time.Hour}, c)
	write := func(n int) {
		for range n {
			f.Write(&Record{Event: Receive, Subject: strings.Repeat("x", 900)})
			if err := f.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(20) // 20 KB in files of 4 KiB
	names, err := files(dir)
	if err != nil || len(names) < 5 || names[0] != "ledger-20310506-000001.jsonl" {
		t.Fatalf("%v %v", names, err)
	}
	write(200)
	names, _ = files(dir)
	_, total, err := fileSizes(dir, names)
	if err != nil || total > 64<<10+4<<10 || total < 48<<10 {
		t.Errorf("%d bytes in %d files, %v", total, len(names), err)
	}
	c.set(day.AddDate(0, 0, 10))
	write(1)
	names, _ = files(dir)
	if len(names) != 1 || dayOf(names[0]) != "20310516" {
		t.Errorf("old files stay: %v", names)
	}
}

func TestANewProcessGoesOnAfterATornLine(t *testing.T) {
	dir := t.TempDir()
	c := &clock{now: day}
	f := open(t, dir, config.Ledger{}, c)
	f.Write(&Record{Event: Receive, Message: "one"})
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	names, _ := files(dir)
	path := filepath.Join(dir, names[0])
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(content, `{"time":"2031`...), 0o600); err != nil {
		t.Fatal(err)
	}
	f = open(t, dir, config.Ledger{}, c)
	f.Write(&Record{Event: Receive, Message: "two"})
	records := find(t, f, Query{})
	if len(records) != 2 || records[1].Message != "two" {
		t.Fatalf("%+v", records)
	}
	if names, _ := files(dir); len(names) != 1 {
		t.Errorf("%v", names)
	}
}

func TestAClockSetBackKeepsTheOrderOfFiles(t *testing.T) {
	dir := t.TempDir()
	c := &clock{now: day}
	f := open(t, dir, config.Ledger{}, c)
	f.Write(&Record{Event: Receive, Message: "first"})
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	c.set(day.AddDate(0, 0, -2))
	f = open(t, dir, config.Ledger{}, c)
	f.Write(&Record{Event: Receive, Message: "second"})
	records := find(t, f, Query{})
	if len(records) != 2 || records[1].Message != "second" {
		t.Fatalf("%+v", records)
	}
}

func text(s string) *string { return &s }

func TestSearch(t *testing.T) {
	c := &clock{now: day}
	f := open(t, t.TempDir(), config.Ledger{}, c)
	const session = "06azv5q8e0aaaaaa"
	at := func(minute int) time.Time { return day.Add(time.Duration(minute) * time.Minute) }
	for _, r := range []Record{
		{Time: at(0), Event: Reject, Session: session, Command: "RCPT", Sender: text("Ann@A.example"), Recipients: []Recipient{{Address: "no@b.example"}}, Agent: "connfilter"},
		{Time: at(1), Event: Receive, Session: session, Message: session + ".1", MessageID: "<m1@a.example>", Sender: text("Ann@A.example"),
			Recipients: []Recipient{{Address: "bob@b.example"}}, Verdicts: []Verdict{{Agent: "contentfilter", Verdict: "continue"}}},
		{Time: at(2), Event: Send, Message: session + ".1", Item: session + ".1-x", Sender: text("Ann@A.example"), Recipients: []Recipient{{Address: "bob@b.example"}}},
		{Time: at(3), Event: Receive, Session: session, Message: session + ".11", Sender: text(""), Recipients: []Recipient{{Address: "cid@sub.b.example"}}},
		{Time: at(4), Event: DSN, Item: session + ".1-y", Parent: session + ".1"},
		{Time: at(5), Event: Session, Session: session},
		{Time: at(6), Event: Session, Session: "06azv5q8e0aaaaab"},
	} {
		f.Write(&r)
	}
	for _, test := range []struct {
		name  string
		query Query
		want  []int // minutes
	}{
		{"all", Query{}, []int{0, 1, 2, 3, 4, 5, 6}},
		{"by session", Query{ID: session}, []int{0, 1, 2, 3, 4, 5}},
		{"by message, not its longer neighbour", Query{ID: session + ".1"}, []int{1, 2, 4}},
		{"by item: all of its message", Query{ID: session + ".1-x"}, []int{1, 2, 4}},
		{"by Message-ID as id", Query{ID: "<m1@a.example>"}, []int{1}},
		{"by Message-ID", Query{Message: "<m1@a.example>"}, []int{1}},
		{"by message only", Query{Message: session + ".1"}, []int{1, 2}},
		{"by sender without case", Query{Sender: "ann@a.EXAMPLE"}, []int{0, 1, 2}},
		{"by null sender", Query{Sender: "<>"}, []int{3}},
		{"by sender's domain", Query{Sender: "a.example"}, []int{0, 1, 2}},
		{"by recipient", Query{Recipient: "bob@b.example"}, []int{1, 2}},
		{"by recipient's domain, not below it", Query{Recipient: "@b.example"}, []int{0, 1, 2}},
		{"by event", Query{Event: "receive"}, []int{1, 3}},
		{"by agent", Query{Agent: "contentfilter"}, []int{1}},
		{"by deciding agent", Query{Agent: "connfilter"}, []int{0}},
		{"from", Query{From: at(4)}, []int{4, 5, 6}},
		{"to", Query{To: at(2)}, []int{0, 1}},
		{"the newest", Query{Limit: 2}, []int{5, 6}},
		{"the newest of those that match", Query{Session: session, Limit: 2}, []int{3, 5}},
		{"nothing", Query{Sender: "nobody@a.example"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []int
			for _, r := range find(t, f, test.query) {
				got = append(got, int(r.Time.Sub(day)/time.Minute))
			}
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestLimitOverManyFiles(t *testing.T) {
	f := open(t, t.TempDir(), config.Ledger{MaxBytes: 64 << 10}, nil)
	for i := range 60 {
		f.Write(&Record{Event: Receive, Size: int64(i + 1), Subject: strings.Repeat("y", 400)})
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	records, more, err := f.Search(context.Background(), Query{Limit: 25})
	if err != nil || !more || len(records) != 25 || records[0].Size != 36 || records[24].Size != 60 {
		t.Fatalf("%d records, more %v, %v", len(records), more, err)
	}
}

func TestFollowSeesNewRecordsOnly(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir, config.Ledger{MaxBytes: 64 << 10}, nil)
	f.Write(&Record{Event: Receive, Message: "old"})
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	seen := make(chan Record, 100)
	done := make(chan error, 1)
	followed := &tail{dir: dir, m: newMatcher(Query{Event: Receive}), fn: func(r Record) error { seen <- r; return nil }}
	if err := followed.toEnd(); err != nil {
		t.Fatal(err)
	}
	go func() { done <- followed.run(ctx) }()
	for i := range 30 { // several files
		f.Write(&Record{Event: Receive, Size: int64(i + 1), Subject: strings.Repeat("z", 900)})
		f.Write(&Record{Event: Reject})
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 30 {
		select {
		case r := <-seen:
			if r.Size != int64(i+1) {
				t.Fatalf("record %d is %+v", i, r)
			}
		case <-ctx.Done():
			t.Fatalf("only %d records were seen", i)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLongLines(t *testing.T) {
	f := open(t, t.TempDir(), config.Ledger{}, nil)
	f.Write(&Record{Event: Receive, Subject: strings.Repeat("long ", 200_000), Session: "x"})
	f.Write(&Record{Event: Receive, Session: "x"})
	if n := len(find(t, f, Query{Session: "x"})); n != 2 {
		t.Errorf("%d records", n)
	}
}

func typical() *Record {
	sender := "newsletter@mail.example.com"
	return &Record{
		Time: day, Event: Receive, Session: "06azv5q8e0aaaaaa", Message: "06azv5q8e0aaaaaa.1", Connector: "internet", Client: "192.0.2.17:51234",
		Helo: "mail.example.com", TLS: "TLS 1.3 TLS_AES_128_GCM_SHA256", Trust: "anonymous", Traffic: "external", Sender: &sender,
		Recipients: []Recipient{{Address: "user@adventureworks.example"}}, MessageID: "<20310506120000.1234@mail.example.com>",
		Subject: "A subject of the usual length", Size: 4321, Reply: "250 2.6.0 <20310506120000.1234@mail.example.com> [06azv5q8e0aaaaaa.1] Queued mail for delivery",
		Verdicts: []Verdict{
			{Agent: "contentfilter", Version: "1.0.0", Event: "OnEndOfData", Verdict: "continue", Stamps: []string{"scl=2"}, Micros: 180, Edits: []string{"add header X-SCL"}},
			{Agent: "connfilter", Version: "1.0.0", Event: "OnRcpt", Verdict: "done", Micros: 60},
		},
	}
}

func BenchmarkWrite(b *testing.B) {
	f, err := Open(b.TempDir(), Options{Config: config.Ledger{MaxBytes: 256 << 20}})
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	r := typical()
	b.ReportAllocs()
	for b.Loop() {
		f.Write(r)
	}
	b.ReportMetric(float64(f.Dropped())/float64(b.N), "dropped/op")
}

func BenchmarkAppend(b *testing.B) {
	r := typical()
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = appendRecord(buf[:0], r)
	}
}

func BenchmarkEncodingJSON(b *testing.B) {
	r := typical()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := json.Marshal(r); err != nil {
			b.Fatal(err)
		}
	}
}
