package match

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/posternmail/postern/sdk/address"
)

func TestNames(t *testing.T) {
	n, err := NewNames([]string{"*.exe", "invoice?.PDF", "eicar.com"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"a.EXE": true, "a.exe.": true, "a.exe  ": true, "dir/a.exe": true, "invoice1.pdf": true,
		"invoice12.pdf": false, "eicar.com": true, "exe": false, "": false,
	} {
		if _, got := n.Match(name); got != want {
			t.Errorf("%q: got %v", name, got)
		}
	}
	if i, err := Check([]string{"*.a", "[a"}); err == nil || i != 1 {
		t.Errorf("got %d, %v; want the second pattern refused", i, err)
	}
}

func TestAddresses(t *testing.T) {
	a, _, err := NewAddresses([]string{"Joe@x.example", "y.example", "*.z.example"})
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]string{
		"joe@X.example": "joe@x.example", "ann@x.example": "", "ann@y.example": "y.example",
		"ann@sub.y.example": "", "ann@sub.z.example": "*.z.example", "ann@a.b.z.example": "*.z.example",
		"ann@z.example": "", "": "",
	} {
		m, err := address.Parse(addr)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := a.Match(m); ok != (want != "") || ok && got != want {
			t.Errorf("%q: got %q %v, want %q", addr, got, ok, want)
		}
	}
	if _, i, err := NewAddresses([]string{"ok.example", "a b@c"}); err == nil || i != 1 {
		t.Errorf("got %d, %v; want the second entry refused", i, err)
	}
}

func TestParseNetwork(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7":               "[192.0.2.7/32]",
		"192.0.2.7/24":            "[192.0.2.0/24]",
		"192.0.2.0-192.0.2.255":   "[192.0.2.0/24]",
		"192.0.2.1-192.0.2.6":     "[192.0.2.1/32 192.0.2.2/31 192.0.2.4/31 192.0.2.6/32]",
		"0.0.0.0-255.255.255.255": "[0.0.0.0/0]",
		"2001:db8::-2001:db8::1":  "[2001:db8::/127]",
		"192.0.2.9-192.0.2.1":     "",
		"192.0.2":                 "",
		"fe80::1%eth0":            "",
		"fe80::1%a-fe80::9%a":     "",
		"::ffff:192.0.2.7":        "[::ffff:192.0.2.7/128]",
	} {
		got, err := ParseNetwork(in)
		if (err != nil) != (want == "") || err == nil && fmt.Sprint(got) != want {
			t.Errorf("%s: got %v, %v; want %s", in, got, err, want)
		}
	}
}

func TestPrefixes(t *testing.T) {
	var p Prefixes[string]
	for _, s := range []string{"10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "2001:db8::/32", "::/0"} {
		p.Put(netip.MustParsePrefix(s), s)
	}
	for in, want := range map[string]string{
		"10.9.9.9": "10.0.0.0/8", "10.1.9.9": "10.1.0.0/16", "10.1.2.3": "10.1.2.3/32", "::ffff:10.1.2.3": "10.1.2.3/32",
		"11.0.0.1": "", "2001:db8::5": "2001:db8::/32", "2001:db9::5": "::/0",
	} {
		if got, _, ok := p.Get(netip.MustParseAddr(in)); got != want || ok != (want != "") {
			t.Errorf("%s: got %q %v, want %q", in, got, ok, want)
		}
	}
}

// A caller that does not want the longest prefix gets the next one.
func TestHolding(t *testing.T) {
	var p Prefixes[string]
	for _, s := range []string{"10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16", "0.0.0.0/0"} {
		p.Put(netip.MustParsePrefix(s), s)
	}
	var got []string
	for _, v := range p.Holding(netip.MustParseAddr("10.1.2.3")) {
		got = append(got, v)
	}
	if want := "[10.1.0.0/16 10.0.0.0/8 0.0.0.0/0]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	for range p.Holding(netip.Addr{}) {
		t.Error("something holds no address")
	}
	if v, ok := p.At(netip.MustParsePrefix("10.1.2.3/16")); !ok || v != "10.1.0.0/16" {
		t.Errorf("At: got %q %v", v, ok)
	}
	if _, ok := p.At(netip.MustParsePrefix("10.1.0.0/17")); ok {
		t.Error("At finds a prefix that was not put")
	}
}

func FuzzParseNetwork(f *testing.F) {
	for _, s := range []string{"192.0.2.7", "192.0.2.0/24", "192.0.2.1-192.0.2.9", "::-ffff::", "::ffff:0.0.0.1-::ffff:1.0.0.0", "fe80::1%a-fe80::9%a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		prefixes, err := ParseNetwork(s)
		if err != nil {
			return
		}
		if len(prefixes) == 0 || len(prefixes) > 256 {
			t.Errorf("%q comes to %d prefixes", s, len(prefixes))
		}
		var table Prefixes[bool]
		for _, p := range prefixes {
			table.Put(p, true)
			if _, _, ok := table.Get(p.Addr()); !ok {
				t.Errorf("%q: %s is not found", s, p.Addr())
			}
		}
	})
}

func BenchmarkPrefixes(b *testing.B) {
	var p Prefixes[bool]
	for i := range 10000 {
		p.Put(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), true)
	}
	ip := netip.MustParseAddr("10.20.30.40")
	for b.Loop() {
		p.Get(ip)
	}
}

func TestFold(t *testing.T) {
	for in, want := range map[string]string{
		"": "", " A \t\r\n B\u00a0": "a b", "fr\u200bee": "free", "\uff21\ufb01": "afi", "u\u0308": "\u00fc", "\u0130": "i", "a\x00b\x7f": "ab",
		"\u6f22\u3000\u5b57": "\u6f22 \u5b57", "\xff": "\ufffd",
	} {
		if got := Fold(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}
