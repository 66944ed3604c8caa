package address

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/posternmail/postern/internal/corpora"
)

func TestParse(t *testing.T) {
	good := map[string]struct{ local, domain, written string }{
		"":                               {"", "", ""},
		"postmaster":                     {"postmaster", "", "postmaster"},
		"PostMaster":                     {"PostMaster", "", "PostMaster"},
		"a@B.Example":                    {"a", "b.example", "a@b.example"},
		`"a"@b`:                          {"a", "b", "a@b"},
		`"a b"@b`:                        {"a b", "b", `"a b"@b`},
		`"a\"b\\c"@b`:                    {`a"b\c`, "b", `"a\"b\\c"@b`},
		`"\a\@"@b`:                       {"a@", "b", `"a@"@b`},
		`""@b`:                           {"", "b", `""@b`},
		`"a..b"@b`:                       {"a..b", "b", `"a..b"@b`},
		`">"@b`:                          {">", "b", `">"@b`},
		"a@[192.0.2.1]":                  {"a", "[192.0.2.1]", "a@[192.0.2.1]"},
		"a@[ipv6:2001:DB8::1]":           {"a", "[IPv6:2001:db8::1]", "a@[IPv6:2001:db8::1]"},
		"a@xn--bcher-kva.example":        {"a", "xn--bcher-kva.example", "a@xn--bcher-kva.example"},
		"\u00e4@b\u00fccher.example":     {"\u00e4", "b\u00fccher.example", "\u00e4@b\u00fccher.example"},
		"a@_srv.example":                 {"a", "_srv.example", "a@_srv.example"},
		strings.Repeat("a", 64) + "@b":   {strings.Repeat("a", 64), "b", strings.Repeat("a", 64) + "@b"},
		"a@" + strings.Repeat("b", 63):   {"a", strings.Repeat("b", 63), "a@" + strings.Repeat("b", 63)},
		"!#$%&'*+-/=?^_`.{|}~@b.example": {"!#$%&'*+-/=?^_`.{|}~", "b.example", "!#$%&'*+-/=?^_`.{|}~@b.example"},
	}
	for in, want := range good {
		m, err := Parse(in)
		if err != nil || m.Local != want.local || m.Domain != want.domain || m.String() != want.written {
			t.Errorf("%q: %q %q written %q, error %v", in, m.Local, m.Domain, m.String(), err)
		}
	}
	bad := []string{
		"a", "a@", "@b", "a@b@c", "a b@c", "a@b c", ".a@b", "a.@b", "a..b@c", "a@.b", "a@b.", "a@b..c", "a@-b", "a@b-",
		`"a@b`, `"a"b@c`, `a"b"@c`, "\"a\x00\"@b", "\"a\r\n\"@b", "\"a\x7f\"@b", `"\`, "a\x80@b", "\"\x80\"@b", "a@b\x80", "a@b\u0085c",
		"a@[192.0.2.256]", "a@[192.0.2]", "a@[192.0.2.01]", "a@[IPv6:1::2::3]", "a@[IPv6:fe80::1%eth0]", "a@[IPv6:1.2.3.4]", "a@[x-tag:y]",
		"a@[192.0.2.1", "a@[]", "a@[192.0.2.1]x", "a\\b@c", "a(c)@b", "a@b(c)", "<a@b>", "a,b@c", "a:b@c", "a;b@c",
		"a@b\u3002c", "a@b\uff0ec", "a@b#c", "a@b c", "a@b\tc", "postmaster@",
	}
	for _, in := range bad {
		if m, err := Parse(in); !errors.Is(err, ErrSyntax) {
			t.Errorf("%q: %+v, error %v", in, m, err)
		}
	}
	for _, in := range []string{strings.Repeat("a", 65) + "@b", "a@" + strings.Repeat("b.", 130) + "c"} {
		if _, err := Parse(in); !errors.Is(err, ErrTooLong) {
			t.Errorf("%d octets: error %v", len(in), err)
		}
	}
}

func TestParsePath(t *testing.T) {
	good := map[string]struct{ written, rest string }{
		"<>":                            {"", ""},
		"<> SIZE=1":                     {"", " SIZE=1"},
		"<a@b> X=<y>":                   {"a@b", " X=<y>"},
		`<"a>b"@c>`:                     {`"a>b"@c`, ""},
		`<"a\">b"@c>d`:                  {`"a\">b"@c`, "d"},
		"<@x.example,@[192.0.2.1]:a@b>": {"a@b", ""},
		"<Postmaster>":                  {"Postmaster", ""},
	}
	for in, want := range good {
		m, rest, err := ParsePath(in)
		if err != nil || m.String() != want.written || rest != want.rest {
			t.Errorf("%q: %q rest %q, error %v", in, m.String(), rest, err)
		}
	}
	for _, in := range []string{"", "a@b", "<a@b", "<@x:>", "<@x>", "<@:a@b>", "<x:a@b>", "<@x,y:a@b>", "<<a@b>>", "< a@b>", "<a@b >", `<"a@b>`} {
		if m, _, err := ParsePath(in); err == nil {
			t.Errorf("%q: %+v", in, m)
		}
	}
}

func TestKinds(t *testing.T) {
	for in, want := range map[string][3]bool{ // null, postmaster, ASCII
		"": {true, false, true}, "POSTMASTER": {false, true, true}, "postmaster@b": {false, false, true}, `""@b`: {false, false, true},
		"\u00e4@b": {false, false, false}, "a@\u00e4": {false, false, false},
	} {
		m, err := Parse(in)
		if err != nil || [3]bool{m.IsNull(), m.IsPostmaster(), m.IsASCII()} != want {
			t.Errorf("%q: %v %v %v, error %v", in, m.IsNull(), m.IsPostmaster(), m.IsASCII(), err)
		}
	}
	a, _ := Parse("A.b@C.Example")
	b, _ := Parse("a.B@c.example")
	if a.Key() != b.Key() {
		t.Errorf("%q, %q", a.Key(), b.Key())
	}
}

// What is parsed is written so that it is the same mailbox again, alone or as a path on a line.
func checkAgain(t *testing.T, in string, m Mailbox) {
	t.Helper()
	out := m.String()
	again, err := Parse(out)
	if err != nil || again != m {
		t.Fatalf("%q is %+v, written %q, read again %+v, error %v", in, m, out, again, err)
	}
	if len(out) > len(in) && !strings.Contains(in, "@") {
		t.Fatalf("%q grew to %q", in, out)
	}
	if !utf8.ValidString(out) || strings.ContainsAny(out, "\r\n\x00") {
		t.Fatalf("%q written %q", in, out)
	}
	path, rest, err := ParsePath("<" + out + "> SIZE=1")
	if err != nil || path != m || rest != " SIZE=1" {
		t.Fatalf("%q as a path is %+v with rest %q, error %v", in, path, rest, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "a@b", `"a b"@c`, `"\"\\"@[192.0.2.1]`, "a@[IPv6:::1]", "\u00e4@\u00fc.example", "postmaster", `"@"@b`, `"a>b"@c`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		if m, err := Parse(in); err == nil {
			checkAgain(t, in, m)
		}
	})
}

// Mailboxes that did not come from a parser, too: what is written is the mailbox again, or no address at all.
func FuzzWrite(f *testing.F) {
	f.Add("a b", "c.example")
	f.Add("\r\nRCPT TO:<x@y>", "b")
	f.Add("a", "b> SIZE=1\r\n")
	f.Fuzz(func(t *testing.T, local, domain string) {
		m := Mailbox{Local: local, Domain: domain}
		again, err := Parse(m.String())
		if err != nil {
			return
		}
		if again.Local != local || !strings.EqualFold(again.Domain, domain) {
			t.Fatalf("%+v written %q is %+v", m, m.String(), again)
		}
	})
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"<>", "<a@b> SIZE=1", "<@a,@b:c@d>", `<"a>b"@c>`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		m, rest, err := ParsePath(in)
		if err != nil {
			return
		}
		if !strings.HasSuffix(in, rest) {
			t.Fatalf("%q: rest %q", in, rest)
		}
		checkAgain(t, in, m)
	})
}

func corpus(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(corpora.Path(t, path))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestHarakaCorpus(t *testing.T) {
	var c struct {
		OK        []struct{ Input, User, Host string } `json:"ok"`
		MustThrow []string                             `json:"must_throw"`
	}
	if err := json.Unmarshal(corpus(t, "addr-haraka/vectors.json"), &c); err != nil {
		t.Fatal(err)
	}
	for _, v := range c.OK {
		in := v.Input
		if !strings.HasPrefix(in, "<") {
			in = "<" + in + ">" // Haraka takes paths without brackets; here the grammar is that of RFC 5321
		}
		m, rest, err := ParsePath(in)
		if err != nil || rest != "" {
			t.Errorf("%q: rest %q, error %v", in, rest, err)
			continue
		}
		checkAgain(t, in, m)
		if user := strings.Trim(v.User, `"`); m.Local != user {
			t.Errorf("%q: local part %q, want %q", in, m.Local, user)
		}
	}
	for _, in := range c.MustThrow {
		if m, _, err := ParsePath(in); err == nil {
			t.Errorf("%q: %+v", in, m)
		}
	}
}

func TestJamesCorpus(t *testing.T) {
	var c struct {
		Good []string `json:"good"`
		Bad  []string `json:"bad_for_james"`
	}
	if err := json.Unmarshal(corpus(t, "addr-james/vectors.json"), &c); err != nil {
		t.Fatal(err)
	}
	for _, in := range c.Good {
		m, err := Parse(in)
		if in == `\.server-dev@james.apache.org` {
			// A backslash outside of a quoted string: RFC 821, gone since RFC 2821.
			if err == nil {
				t.Errorf("%q: %+v", in, m)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		checkAgain(t, in, m)
	}
	for _, in := range c.Bad {
		m, err := Parse(in)
		valid := in == "" || in == `"a..b"@domain.com` || !isASCII(in) // by RFC 5321 and RFC 6531
		if (err == nil) != valid {
			t.Errorf("%q: %+v, error %v", in, m, err)
		}
	}
}

// is_email's verdicts. Of what it calls valid in some sense only what RFC 5321 has is an address here: no comments, no
// folding, no obsolete forms.
func TestIsEmailCorpus(t *testing.T) {
	for file, differs := range map[string]map[int]bool{"tests.xml": isEmailDiffers, "tests-original.xml": nil} {
		t.Run(file, func(t *testing.T) { isEmail(t, file, differs) })
	}
}

// isEmail compares with one file of is_email: differs has the tests with another outcome here.
func isEmail(t *testing.T, file string, differs map[int]bool) {
	var c struct {
		Tests []struct {
			ID        int    `xml:"id,attr"`
			Address   string `xml:"address"`
			Category  string `xml:"category"`
			Diagnosis string `xml:"diagnosis"`
		} `xml:"test"`
	}
	if err := xml.Unmarshal(corpus(t, "addr-isemail/"+file), &c); err != nil {
		t.Fatal(err)
	}
	if len(c.Tests) < 160 {
		t.Fatalf("%d tests", len(c.Tests))
	}
	var pictures []string // is_email writes controls as the pictures of U+2400
	for i := rune(0); i < 0x20; i++ {
		pictures = append(pictures, string(0x2400+i), string(i))
	}
	controls := strings.NewReplacer(pictures...)
	for _, v := range c.Tests {
		in := controls.Replace(v.Address)
		m, err := Parse(in)
		valid := v.Category == "ISEMAIL_VALID_CATEGORY" || v.Category == "ISEMAIL_DNSWARN" || v.Category == "ISEMAIL_RFC5321"
		if known, ok := differs[v.ID]; ok {
			if known == valid {
				t.Errorf("test %d %q differs no more", v.ID, in)
			}
			valid = known
		}
		if (err == nil) != valid {
			t.Errorf("test %d %q (%s, %s): %+v, error %v", v.ID, in, v.Category, v.Diagnosis, m, err)
		}
		if err == nil {
			checkAgain(t, in, m)
		}
	}
}

// isEmailDiffers are tests of tests.xml with another outcome here, and why. Of the older file all agree.
var isEmailDiffers = map[int]bool{
	1:  true, // the empty address is the null reverse-path
	71: true, // "::" for a single group: deprecated, and read by all
}

func TestASCIIDomain(t *testing.T) {
	for domain, want := range map[string]string{
		"b\u00fccher.example": "xn--bcher-kva.example", "B\u00dcCHER.Example": "xn--bcher-kva.example",
		"XN--BCHER-KVA.example": "xn--bcher-kva.example", "Own.Example": "own.example", "[IPv6:::1]": "[ipv6:::1]",
		"*.b\u00fccher.example": "*.xn--bcher-kva.example", "\u00fc_.example": "\u00fc_.example", "*": "*", "": "",
	} {
		if got := ASCIIDomain(domain); got != want {
			t.Errorf("%q: got %q, want %q", domain, got, want)
		}
	}
}
