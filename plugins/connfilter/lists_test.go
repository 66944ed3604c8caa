package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk/match"
)

func TestSameNetworkTwice(t *testing.T) {
	var n networks
	if _, err := match.ReadLines(strings.NewReader("192.0.2.0/24 # for ever\n192.0.2.0/24 expires=2020-01-01\n"+
		"198.51.100.0/24 expires=2020-01-01\n198.51.100.1/24 expires=2021-01-01 # longer\n"), n.readLine); err != nil {
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
		number, err := match.ReadLines(strings.NewReader(s), n.readLine)
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
