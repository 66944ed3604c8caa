package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// A file is read again once it has changed and stands still; a mistake or its absence leaves the list as it was.
func TestLook(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := &list{name: "block_list", paths: []string{path}}
	l.files.Store(new(networks))
	logger := hclog.NewNullLogger()
	has := func(ip string) bool {
		_, _, ok := l.find(netip.MustParseAddr(ip), time.Time{})
		return ok
	}
	write("192.0.2.1\n")
	l.look(logger)
	if has("192.0.2.1") {
		t.Error("a file that may still be written was read")
	}
	l.look(logger)
	if !has("192.0.2.1") {
		t.Error("the file was not read")
	}
	write("192.0.2.2\n192.0.2.3\nnonsense\n")
	l.look(logger)
	l.look(logger)
	if !has("192.0.2.1") || has("192.0.2.2") {
		t.Error("a file with a mistake has changed the list")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l.look(logger)
	l.look(logger)
	if !has("192.0.2.1") {
		t.Error("a file that is gone has changed the list")
	}
	write("192.0.2.2\n")
	l.look(logger)
	l.look(logger)
	if has("192.0.2.1") || !has("192.0.2.2") {
		t.Error("the new file is not in force")
	}
}

func TestSameNetworkTwice(t *testing.T) {
	var n networks
	if _, err := n.readLines(strings.NewReader("192.0.2.0/24 # for ever\n192.0.2.0/24 expires=2020-01-01\n" +
		"198.51.100.0/24 expires=2020-01-01\n198.51.100.1/24 expires=2021-01-01 # longer\n")); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2020, 6, 1, 0, 0, 0, 0, time.UTC)
	for ip, want := range map[string]string{"192.0.2.1": "for ever", "198.51.100.1": "longer"} {
		if _, e, ok := n.find(netip.MustParseAddr(ip), at); !ok || e.comment != want {
			t.Errorf("%s: got %v %q, want %q", ip, ok, e.comment, want)
		}
	}
}

func FuzzListFile(f *testing.F) {
	for _, s := range []string{"192.0.2.1", "192.0.2.0/24 expires=2026-12-31 # why", "::1-::ff;x", "\uFEFF1.2.3.4\r\n\r\n", "1.2.3.4 expires=", "#", "\x00",
		"0.0.0.1-255.255.255.254"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var n networks
		number, err := n.readLines(strings.NewReader(s))
		if lines := strings.Count(s, "\n") + 1; err != nil && (number < 1 || number > lines) {
			t.Errorf("%q: mistake in line %d of %d", s, number, lines)
		}
		if n.Len() > 256*(strings.Count(s, "\n")+1) {
			t.Errorf("%q comes to %d networks", s, n.Len())
		}
	})
}

func BenchmarkFind(b *testing.B) {
	var n networks
	for i := range 100_000 {
		n.Put(netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(i >> 16), byte(i >> 8), byte(i), 0}), 24), entry{})
	}
	ip, now := netip.MustParseAddr("203.0.113.9"), time.Now()
	for b.Loop() {
		n.find(ip, now)
	}
}
