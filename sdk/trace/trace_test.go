package trace

import (
	"net/netip"
	"testing"
)

func TestSource(t *testing.T) {
	ours := func(ip netip.Addr) bool { return netip.MustParsePrefix("10.0.0.0/8").Contains(ip) }
	for _, c := range []struct {
		what     string
		received []string
		addr     string
		helo     string
	}{
		{"ours wrote it", []string{" from mx.x.example (mx.x.example [192.0.2.7]) by hub.example"}, "192.0.2.7", "mx.x.example"},
		{"through two of ours", []string{
			" from hub (hub [10.1.1.1])\r\n\tby edge", " from localhost ([127.0.0.1]) by hub", " from a (b [IPv6:2001:db8::7]) by hub",
		}, "2001:db8::7", "a"},
		{"a claim in brackets", []string{" from [9.9.9.9] (helo=[8.8.8.8] [192.0.2.7]) by hub"}, "192.0.2.7", "[9.9.9.9]"},
		{"began here", []string{" by hub with LMTP id 7", " from a ([192.0.2.7]) by hub"}, "", ""},
		{"nothing", nil, "", ""},
		{"all ours", []string{" from a ([10.0.0.1]) by b"}, "", ""},
	} {
		got, ok := Source(c.received, ours)
		if want := c.addr != ""; ok != want || ok && (got.Addr.String() != c.addr || got.Helo != c.helo) {
			t.Errorf("%s: %v %v", c.what, got, ok)
		}
	}
}

func FuzzClientOf(f *testing.F) {
	f.Add(" from a (b [192.0.2.1] helo=c) by d")
	f.Fuzz(func(t *testing.T, value string) {
		if c, ok := ClientOf(value); ok && !c.Addr.IsValid() {
			t.Errorf("%q: a client without an address", value)
		}
	})
}
