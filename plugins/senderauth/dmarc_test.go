package main

import (
	"io"
	"regexp"
	"strings"
	"testing"
)

// TestOrganizationalDomain runs the tests of the public suffix list.
func TestOrganizationalDomain(t *testing.T) {
	octets, err := io.ReadAll(openCorpus(t, "psl", "tests", "test_psl.txt"))
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, m := range regexp.MustCompile(`(?m)^checkPublicSuffix\('([^']+)', (?:'([^']+)'|null)\);`).FindAllStringSubmatch(string(octets), -1) {
		count++
		name, want := asciiDomain(m[1]), asciiDomain(m[2])
		if want == "" {
			want = name // a public suffix, or no name: it stands for itself
		}
		if got := organizational(name); got != want {
			t.Errorf("%s: %s, expected %s", m[1], got, want)
		}
	}
	t.Logf("%d names", count)
	if count < 70 {
		t.Errorf("only %d names", count)
	}
}

func TestDMARCRecords(t *testing.T) {
	for _, c := range []struct {
		text  string
		below bool
		want  string // "" no record
	}{
		{"v=DMARC1; p=reject", false, "reject"},
		{"v=DMARC1 ; P=Quarantine ;", false, "quarantine"},
		{"v=DMARC1; p=reject; sp=none", true, "none"},
		{"v=DMARC1; p=reject", true, "reject"},
		{"v=DMARC1; p=reject; pct=0", false, "quarantine"},
		{"v=DMARC1; p=quarantine; pct=0", false, "none"},
		{"v=DMARC1; p=reject; t=y", false, "quarantine"},
		{"v=DMARC1; p=quarantine; t=y; pct=100", false, "none"},
		{"v=DMARC1; p=nonsense; rua=mailto:a@x.example", false, "none"},
		{"v=DMARC1; p=nonsense", false, ""},
		{"v=DMARC2; p=reject", false, ""},
		{"p=reject; v=DMARC1", false, ""},
		{"", false, ""},
	} {
		got := ""
		if r := parseDMARC(c.text); r != nil {
			got = r.apply(r.asked(c.below), "id")
		}
		if got != c.want {
			t.Errorf("%q: %q, expected %q", c.text, got, c.want)
		}
	}
}

func TestAlignment(t *testing.T) {
	for _, c := range []struct {
		domain, from string
		strict, want bool
	}{
		{"x.example", "x.example", true, true},
		{"mail.x.example", "x.example", true, false},
		{"mail.x.example", "news.x.example", false, true},
		{"a.co.uk", "b.co.uk", false, false},
		{"", "x.example", false, false},
	} {
		if got := aligned(c.domain, c.from, c.strict); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestFromDomains(t *testing.T) {
	for _, c := range []struct{ from, want string }{
		{" Jane <jane@X.example>", "x.example"},
		{" =?x-unknown?Q?Jane?= <jane@x.example>", "x.example"},
		{" a@x.example, b@x.example", "x.example"},
		{" a@x.example, b@y.example", "x.example y.example"},
		{" jane@b\u00fccher.example", "xn--bcher-kva.example"},
		{" nobody", ""},
	} {
		if got := strings.Join(fromDomains([]string{c.from}), " "); got != c.want {
			t.Errorf("%q: %q, expected %q", c.from, got, c.want)
		}
	}
}

func FuzzResults(f *testing.F) {
	f.Add(" (c) mx.example 1; dmarc=pass (p=\"none\")", "jane@x.example")
	f.Add(` "mx;" ; a="; dmarc=pass"`, "\r\nX: y")
	f.Fuzz(func(t *testing.T, field, value string) {
		authservID(field)
		resultIn(field, "dmarc")
		addressesOf(value)
		parseDMARC(value)
		if q := quoted(value); strings.ContainsAny(q, "\r\n\x00") {
			t.Errorf("%q: a value that ends the field", q)
		}
	})
}

func TestResultOfSealer(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"mx.example; spf=fail; dmarc=pass (p=none) header.from=x", "pass"},
		{`mx.example; spf=fail smtp.mailfrom="; dmarc=pass"; dmarc=fail`, "fail"},
		{`mx.example; spf=fail (a " b) smtp.mailfrom="; dmarc=pass; "`, ""},
		{"mx.example; spf=fail (; dmarc=pass)", ""},
	} {
		if got := resultIn(c.text, "dmarc"); got != c.want {
			t.Errorf("%q: %q, expected %q", c.text, got, c.want)
		}
	}
}
