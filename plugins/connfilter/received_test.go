package main

import (
	"strings"
	"testing"
)

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
		if ip, ok := clientOf(" " + field); ok {
			got = ip.String()
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
		ip, ok := clientOf(field)
		if ok != ip.IsValid() || ip.Is4In6() || ip.Zone() != "" {
			t.Fatalf("%q: got %v %v", field, ip, ok)
		}
		if ok && !strings.HasPrefix(strings.ToLower(strings.TrimSpace(field)), "from") {
			t.Errorf("%q: an address without a from clause", field)
		}
	})
}
