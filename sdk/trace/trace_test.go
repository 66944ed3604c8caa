package trace

import (
	"net/netip"
	"strings"
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

// fields as servers write them, and the address of the client in each.
var fields = map[string]string{
	"from mail.x.example (mail.x.example [192.0.2.1]) by hub.example (Postfix) with ESMTPS id 4":          "192.0.2.1",
	"from helo.example (unknown [IPv6:2001:db8::1])\r\n\tby hub.example":                                  "2001:db8::1",
	"from mail.x.example (192.0.2.1) by hub.example (10.0.0.1) with Microsoft SMTP Server id 15.2":        "192.0.2.1",
	"from hub.example (2001:db8::1) by edge.example (2001:db8:1::2) with Microsoft SMTP Server":           "2001:db8::1",
	"from hub.example (fe80::1%11) by edge.example with mapi":                                             "fe80::1",
	"from x.example ([192.0.2.1]:4711 helo=helo.example) by hub.example with esmtp (Exim 4.97)":           "192.0.2.1",
	"from [192.0.2.1] (helo=helo.example) by hub.example with esmtp (Exim 4.97)":                          "192.0.2.1",
	"from helo.example (HELO helo.example) (192.0.2.1)\r\n  by hub.example with SMTP":                     "192.0.2.1",
	"from [192.0.2.1] (HELO helo.example) by hub.example (CommuniGate Pro SMTP 6.1)":                      "192.0.2.1",
	"from [192.0.2.1] (account a@x.example HELO helo.example) by hub.example":                             "192.0.2.1",
	"from helo.example (ident@mail.x.example [192.0.2.1] (may be forged))\r\n by hub.example (8.18/8.18)": "192.0.2.1",
	"from ::ffff:192.0.2.1 ([::ffff:192.0.2.1]) by hub.example":                                           "192.0.2.1",
	// What a client can say of itself does not count.
	"from [9.9.9.9] (unknown [192.0.2.1]) by hub.example":                            "192.0.2.1",
	"from [9.9.9.9] ([192.0.2.1]) by hub.example":                                    "192.0.2.1",
	"from x.example ([192.0.2.1] helo=[9.9.9.9]) by hub.example with esmtp (Exim 4)": "192.0.2.1",
	"from x.example ([192.0.2.1] ident=[9.9.9.9] helo=x) by hub.example":             "192.0.2.1",
	"from [192.0.2.1] (HELO [9.9.9.9]) by hub.example":                               "192.0.2.1",
	"from [192.0.2.1] (account a@x.example HELO [9.9.9.9]) by hub.example":           "192.0.2.1",
	"from unknown (HELO [9.9.9.9]) (192.0.2.1) by hub.example":                       "192.0.2.1",
	"from helo ([192.0.2.1]) by hub.example":                                         "192.0.2.1",
	"from x.helo (x.helo [192.0.2.1]) by hub.example":                                "192.0.2.1",
	"from =?utf-8?q?=5B9.9.9.9=5D?= ([192.0.2.1]) by hub.example":                    "192.0.2.1",
	// No client.
	"by hub.example (10.0.0.1) with SMTP id 4; Thu, 1 Jan 2026 12:00:00 +0000": "",
	"from userid 0 by hub.example (10.0.0.1)":                                  "",
	"from hub.example (HELO [9.9.9.9]) by edge.example":                        "",
	"from hub.example (999.1.1.1) by edge.example":                             "",
	"from":                   "",
	"":                       "",
	"fromage ( [192.0.2.1])": "",
}

func TestClientOf(t *testing.T) {
	for field, want := range fields {
		got := ""
		if c, ok := ClientOf(" " + field); ok {
			got = c.Addr.String()
		}
		if got != want {
			t.Errorf("%s\ngot %q, want %q", field, got, want)
		}
	}
}

// An address that is found stands in the field, in front of " by ".
func FuzzClientOf(f *testing.F) {
	for field := range fields {
		f.Add(field)
	}
	f.Fuzz(func(t *testing.T, field string) {
		c, ok := ClientOf(field)
		ip := c.Addr
		if ok != ip.IsValid() || ip.Is4In6() || ip.Zone() != "" {
			t.Fatalf("%q: got %v %v", field, ip, ok)
		}
		if ok && !strings.HasPrefix(strings.ToLower(strings.TrimSpace(field)), "from") {
			t.Errorf("%q: an address without a from clause", field)
		}
	})
}
