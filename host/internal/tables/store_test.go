package tables

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// clock of a test.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func open(t testing.TB, dir string, c *clock) *disk {
	t.Helper()
	s, err := Open(dir, Options{Clock: c.Now, Sync: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s.(*disk)
}

func newClock() *clock { return &clock{now: time.Unix(1_800_000_000, 0)} }

func value(s Store, table, key string) string {
	row, ok := s.Get(table, key)
	if !ok {
		return "-"
	}
	return string(row.Value)
}

func TestOperations(t *testing.T) {
	c := newClock()
	s := open(t, t.TempDir(), c)
	started := c.Now()
	s.Apply([]Write{{Table: "t", Key: "a", Op: Put, Value: []byte(`{"n":1}`), TTL: time.Hour}})
	c.advance(time.Minute)
	for _, step := range []struct {
		what string
		w    Write
		want string
	}{
		{"put if absent leaves a row", Write{Table: "t", Key: "a", Op: PutIfAbsent, Value: []byte(`{"n":9}`)}, `{"n":1}`},
		{"add", Write{Table: "t", Key: "a", Op: Add, Field: "n", Amount: 4, TTL: 2 * time.Hour}, `{"n":5}`},
		{"add to another field", Write{Table: "t", Key: "a", Op: Add, Field: "m", Amount: -1, TTL: 2 * time.Hour}, `{"m":-1,"n":5}`},
		{"add saturates", Write{Table: "t", Key: "a", Op: Add, Field: "n", Amount: 1<<63 - 1, TTL: time.Hour}, `{"m":-1,"n":9223372036854775807}`},
		{"put", Write{Table: "t", Key: "a", Op: Put, Value: []byte(`{"s":"x"}`), TTL: time.Hour}, `{"s":"x"}`},
		{"add over a text", Write{Table: "t", Key: "a", Op: Add, Field: "s", Amount: 2, TTL: time.Hour}, `{"s":2}`},
		{"too large is dropped", Write{Table: "t", Key: "a", Op: Put, Value: []byte(`{"s":"` + strings.Repeat("x", 5000) + `"}`)}, `{"s":2}`},
	} {
		s.Apply([]Write{step.w})
		if got := value(s, "t", "a"); got != step.want {
			t.Errorf("%s: %s, want %s", step.what, got, step.want)
		}
	}
	row, _ := s.Get("t", "a")
	if !row.Created.Equal(started) || !row.Expires.Equal(c.Now().Add(time.Hour)) {
		t.Errorf("created %v, expires %v", row.Created, row.Expires)
	}
	s.Apply([]Write{{Table: "t", Key: "a", Op: Delete}, {Table: "t", Key: "b", Op: Add, Field: "n", Amount: 3}})
	if value(s, "t", "a") != "-" || value(s, "t", "b") != `{"n":3}` {
		t.Error("delete, or add to a row that is not there")
	}
	if names := s.Names(); len(names) != 1 || names["t"] != 1 {
		t.Errorf("names %v", names)
	}
}

func TestExpiry(t *testing.T) {
	c := newClock()
	s := open(t, t.TempDir(), c)
	s.Apply([]Write{
		{Table: "t", Key: "short", Op: Put, Value: []byte("{}"), TTL: time.Minute},
		{Table: "t", Key: "long", Op: Put, Value: []byte("{}"), TTL: time.Hour},
		{Table: "t", Key: "ever", Op: Put, Value: []byte("{}")},
	})
	c.advance(time.Minute)
	if value(s, "t", "short") != "-" || value(s, "t", "long") != "{}" {
		t.Fatal("expiry is not by the clock")
	}
	s.Apply([]Write{{Table: "t", Key: "short", Op: PutIfAbsent, Value: []byte(`{"new":1}`), TTL: time.Minute}})
	if row, _ := s.Get("t", "short"); !row.Created.Equal(c.Now()) {
		t.Error("a row put after its expiry is not a new one")
	}
	c.advance(2 * time.Hour)
	s.sweep()
	if n := s.Names()["t"]; n != 1 {
		t.Errorf("%d rows after the sweep, want 1", n)
	}
}

func TestEventIDsApplyOnce(t *testing.T) {
	c := newClock()
	dir := t.TempDir()
	s := open(t, dir, c)
	w := []Write{{Table: "t", Key: "a", Op: Add, Field: "n", Amount: 1, EventID: "m1 OnRcpt greylist 0"}}
	s.Apply(w)
	s.Apply(w)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, c)
	s.Apply(w)
	if got := value(s, "t", "a"); got != `{"n":1}` {
		t.Errorf("%s after three times the same event", got)
	}
	c.advance(11 * time.Minute)
	s.sweep()
	s.Apply(w)
	if got := value(s, "t", "a"); got != `{"n":2}` {
		t.Errorf("%s: an event id is kept for ever", got)
	}
}

func TestMaxRowsDropsTheOldest(t *testing.T) {
	c := newClock()
	s := open(t, t.TempDir(), c)
	for i := range 100 {
		c.advance(time.Second)
		s.Apply([]Write{{Table: "t", Key: fmt.Sprint(i), Op: PutIfAbsent, Value: []byte("{}"), MaxRows: 10}})
	}
	var keys []string
	s.List("t", "", func(r Row) bool { keys = append(keys, r.Key); return true })
	if got := strings.Join(keys, " "); got != "90 91 92 93 94 95 96 97 98 99" {
		t.Errorf("rows left: %s", got)
	}
}

func TestLongestPrefix(t *testing.T) {
	c := newClock()
	s := open(t, t.TempDir(), c)
	put := func(key string, ttl time.Duration) {
		s.Apply([]Write{{Table: "ip-block", Key: key, Op: Put, Value: []byte("{}"), TTL: ttl}})
	}
	put("192.0.2.0/24", 0)
	match := func(addr string) string {
		row, ok := s.Match("ip-block", netip.MustParseAddr(addr))
		if !ok {
			return "-"
		}
		return row.Key
	}
	if got := match("192.0.2.7"); got != "192.0.2.0/24" {
		t.Fatalf("match %s", got)
	}
	put("192.0.2.7", time.Minute)
	put("0.0.0.0/0", 0)
	put("2001:db8::/32", 0)
	put("no prefix", 0)
	for addr, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "192.0.2.8": "192.0.2.0/24", "198.51.100.1": "0.0.0.0/0", "::ffff:192.0.2.7": "192.0.2.7",
		"2001:db8:1::1": "2001:db8::/32", "2001:db9::1": "-",
	} {
		if got := match(addr); got != want {
			t.Errorf("%s matches %s, want %s", addr, got, want)
		}
	}
	c.advance(time.Minute)
	if got := match("192.0.2.7"); got != "192.0.2.0/24" {
		t.Errorf("after the expiry of the longer prefix: %s", got)
	}
	s.Apply([]Write{{Table: "ip-block", Key: "192.0.2.0/24", Op: Delete}})
	if got := match("192.0.2.7"); got != "0.0.0.0/0" {
		t.Errorf("after the removal of the longer prefix: %s", got)
	}
	s.Replace("ip-block", []Row{{Key: "192.0.2.0/28", Value: []byte("{}")}})
	if match("192.0.2.7") != "192.0.2.0/28" || match("198.51.100.1") != "-" {
		t.Error("replaced table")
	}
}

func TestListInPages(t *testing.T) {
	s := open(t, t.TempDir(), newClock())
	var rows []Row
	for i := range 1000 {
		rows = append(rows, Row{Key: fmt.Sprintf("k%04d", i), Value: []byte("{}")})
	}
	s.Replace("t", rows)
	s.Apply([]Write{{Table: "ta", Key: "other table", Op: Put, Value: []byte("{}")}})
	n, last := 0, ""
	s.List("t", "k0099", func(r Row) bool {
		if r.Key <= last {
			t.Fatalf("%s after %s", r.Key, last)
		}
		n, last = n+1, r.Key
		s.Apply([]Write{{Table: "u", Key: r.Key, Op: Put, Value: []byte("{}")}}) // a callback may write
		return r.Key != "k0900"
	})
	if n != 801 || last != "k0900" {
		t.Errorf("%d rows to %s", n, last)
	}
}

// A copy of the files taken while the store is open is what a crash leaves.
func TestCrash(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"whole":    func(b []byte) []byte { return b },
		"cut":      func(b []byte) []byte { return b[:len(b)-7] },
		"rubbish":  func(b []byte) []byte { return append(b, "\x07rubbish behind the end"...) },
		"zeroes":   func(b []byte) []byte { return append(b, make([]byte, 5000)...) },
		"bit flip": func(b []byte) []byte { b[len(b)-3] ^= 1; return b },
	} {
		t.Run(name, func(t *testing.T) {
			dir, copied := t.TempDir(), t.TempDir()
			s := open(t, dir, newClock())
			for i := range 50 {
				s.Apply([]Write{{Table: "t", Key: fmt.Sprintf("%02d", i), Op: Put, Value: []byte("{}")}})
			}
			s.sync()
			s.sync() // the first may have found the other syncing
			copyFiles(t, dir, copied, damage)
			again := open(t, copied, newClock())
			if n := again.Names()["t"]; n < 49 {
				t.Errorf("%d of 50 rows", n)
			}
			again.Apply([]Write{{Table: "t", Key: "new", Op: Put, Value: []byte("{}")}})
			if value(again, "t", "new") != "{}" {
				t.Error("cannot be written to")
			}
		})
	}
}

func copyFiles(t *testing.T, from, to string, damageLog func([]byte) []byte) {
	t.Helper()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(e.Name(), ".log") && len(b) > 0 {
			b = damageLog(b)
		}
		if err := os.WriteFile(filepath.Join(to, e.Name()), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, newClock())
	if _, err := Open(dir, Options{}); err == nil {
		t.Fatal("two stores on one directory")
	}
}

func TestConcurrentUse(t *testing.T) {
	s := open(t, t.TempDir(), newClock())
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			for i := range 200 {
				s.Apply([]Write{{Table: "ip-block", Key: fmt.Sprintf("10.%d.%d.0/24", g, i), Op: Put, Value: []byte("{}")},
					{Table: "count", Key: "k", Op: Add, Field: "n", Amount: 1}})
				s.Match("ip-block", netip.AddrFrom4([4]byte{10, byte(g), byte(i), 1}))
				s.List("count", "", func(Row) bool { return true })
			}
		})
	}
	all.Wait()
	if got := value(s, "count", "k"); got != `{"n":800}` {
		t.Errorf("count %s", got)
	}
	if n := s.Names()["ip-block"]; n != 800 {
		t.Errorf("%d rows", n)
	}
}

func FuzzPrefixTree(f *testing.F) {
	f.Add("192.0.2.0/24", "10.0.0.0/8", "192.0.2.1")
	f.Add("::/0", "fe80::1%eth0", "::1")
	f.Fuzz(func(t *testing.T, a, b, addr string) {
		tree := newPrefixTree()
		tree.insert(a)
		tree.insert(b)
		if ip, err := netip.ParseAddr(addr); err == nil {
			for _, key := range tree.holding(ip.Unmap().WithZone("")) {
				if p, ok := parsePrefix(key); !ok || !p.Contains(ip.Unmap().WithZone("")) {
					t.Errorf("%s does not hold %s", key, ip)
				}
			}
		}
		tree.remove(a)
		tree.remove(b)
		if tree.v4.child != [2]*prefixNode{} || tree.v6.child != [2]*prefixNode{} {
			t.Error("nodes are left")
		}
	})
}

func BenchmarkGet(b *testing.B) {
	s := open(b, b.TempDir(), newClock())
	s.Apply([]Write{{Table: "t", Key: "192.0.2.0|a@b.example|c@d.example", Op: Put, Value: []byte(`{"Passed":1}`)}})
	b.ReportAllocs()
	for b.Loop() {
		s.Get("t", "192.0.2.0|a@b.example|c@d.example")
	}
}

func BenchmarkApply(b *testing.B) {
	s := open(b, b.TempDir(), newClock())
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		s.Apply([]Write{{Table: "t", Key: fmt.Sprint(n), Op: PutIfAbsent, Value: []byte(`{"Passed":1}`), TTL: time.Hour, MaxRows: 1000, EventID: fmt.Sprint(n)}})
	}
}

// With a disk that is nearly full nothing changes any more, and what is there is found.
func TestNoRoom(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	s := open(t, dir, c)
	s.Apply([]Write{{Table: "t", Key: "old", Op: Put, Value: []byte(`{"n":1}`)}})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	full, err := Open(dir, Options{Clock: c.Now, ReserveBytes: 1 << 62})
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	full.Apply([]Write{{Table: "t", Key: "new", Op: Put, Value: []byte(`{"n":2}`)}, {Table: "t", Key: "old", Op: Delete}})
	full.Replace("t", nil)
	if old, fresh := value(full, "t", "old"), value(full, "t", "new"); old != `{"n":1}` || fresh != "-" {
		t.Errorf("old %s, new %s", old, fresh)
	}
}

// Rows name people: nobody else reads them, whoever made the folder.
func TestFolderIsItsOwnersAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tables")
	for _, mode := range []os.FileMode{0, 0o755} {
		if mode != 0 {
			if err := os.Chmod(dir, mode); err != nil {
				t.Fatal(err)
			}
		}
		s, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	}
}
