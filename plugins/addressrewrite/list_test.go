package main

import (
	"bytes"
	"net/mail"
	"strings"
	"testing"

	"github.com/posternmail/postern/sdk/address"
)

// toY rewrites all of corp.example.
func toY(m address.Mailbox) (address.Mailbox, bool) {
	if m.Domain != "corp.example" {
		return m, false
	}
	m.Domain = "y.example"
	return m, true
}

func TestRewriteList(t *testing.T) {
	for in, want := range map[string]string{
		"a@corp.example":    "a@y.example",
		" a@corp.example":   "a@y.example",
		" <a@CORP.Example>": "<a@y.example>",
		" A <a@corp.example>,b@x.example , c@corp.example": "A <a@y.example>,b@x.example , c@y.example",
		` "a@corp.example" <b@corp.example>`:               `"a@corp.example" <b@y.example>`,
		" (a@corp.example) b@corp.example (c)":             "(a@corp.example) b@y.example (c)",
		" a@corp.example <b@corp.example>":                 "a@corp.example <b@y.example>",
		` "quoted \" @ local"@corp.example`:                `"quoted \" @ local"@y.example`,
		" a . b (x) @ (y) corp (z) . example":              "a . b (x) @ (y) y.example (z)  ",
		" <@hop.example,@corp.example:a@corp.example>":     "<@hop.example,@corp.example:a@y.example>",
		" G: a@corp.example, b@x.example; c@corp.example":  "G: a@y.example, b@x.example; c@y.example",
		" undisclosed-recipients:;":                        " undisclosed-recipients:;",
		" =?utf-8?q?J=C3=B6?= <a@corp.example>":            "=?utf-8?q?J=C3=B6?= <a@y.example>",
		" Jö <jö@corp.example>":                            "Jö <jö@y.example>",
		" a@notcorp.example":                               " a@notcorp.example",
		" a@corp.example.org":                              " a@corp.example.org",
		" a@b@corp.example":                                " a@b@corp.example",
		" a b@corp.example":                                " a b@corp.example",
		" <a@corp.example":                                 " <a@corp.example",
		" a@[192.0.2.1], <b@corp.example>":                 "a@[192.0.2.1], <b@y.example>",
		"\r\n\ta@corp.example":                             "\r\n\ta@y.example",
		" x <a@corp.example>\r\n \r\n , b@x.example":       "x <a@y.example>\r\n , b@x.example",
		" a\x00b, <a@corp.example>":                        " a\x00b, <a@corp.example>",
	} {
		got, n := rewriteList(len("From:"), []byte(in), toY)
		if string(got) != want || (n == 0) != (in == want) {
			t.Errorf("%q becomes %q, %d; want %q", in, got, n, want)
		}
	}
}

// A line that grows too long is folded where a space is, never inside a name.
func TestFolds(t *testing.T) {
	long := func(m address.Mailbox) (address.Mailbox, bool) {
		if m.Domain != "corp.example" {
			return m, false
		}
		return address.Mailbox{Local: m.Local, Domain: strings.Repeat("long.", 8) + "example"}, true
	}
	got, n := rewriteList(len("To:"), []byte(" \"Doe, John Q.\" <first.name@corp.example>, \"Doe, Jane\" <second@corp.example>"), long)
	want := "\"Doe, John Q.\" <first.name@long.long.long.long.long.long.long.long.example>, \"Doe, Jane\"\r\n" +
		" <second@long.long.long.long.long.long.long.long.example>"
	if n != 2 || string(got) != want {
		t.Errorf("%d: %q", n, got)
	}
	if _, n := rewriteList(len("To:"), []byte(strings.Repeat("x", 990)+"<a@corp.example>"), long); n != 0 {
		t.Error("a line of more than 998 octets is written")
	}
}

// What is not rewritten stays as it is: undoing the rewriting gives the same octets, but for folds and the space
// at the front, and every other address of the list is still there.
func FuzzRewriteList(f *testing.F) {
	for _, s := range []string{
		" A <a@corp.example>, b@x.example", " G: a@corp.example;", "\"x\\\"(\" <@a,@b:c@corp.example> (y (z))", "a.b (c) @ corp . example",
		" <a@corp.example>\r\n\t, b@corp.example", "[", "\"", "(", "<", "a@corp.example,\r\n \r\n b", ",;:<>@",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		if bytes.Contains(value, []byte("marker")) {
			return
		}
		if got, n := rewriteList(5, value, func(m address.Mailbox) (address.Mailbox, bool) { return m, false }); n != 0 || !bytes.Equal(got, value) {
			t.Fatalf("nothing to rewrite, yet %q became %q", value, got)
		}
		out, n := rewriteList(5, value, func(m address.Mailbox) (address.Mailbox, bool) {
			to, ok := toY(m)
			if ok {
				to.Domain = "marker.example"
			}
			return to, ok
		})
		if n == 0 {
			return
		}
		if !sane(5, out) {
			t.Fatalf("%q is no header value", out)
		}
		if bytes.Count(out, []byte("marker.example")) != n {
			t.Fatalf("%d addresses rewritten in %q", n, out)
		}
		back := undo(out)
		if want := undo(value); !bytes.Contains([]byte(want), []byte("..")) && back != want {
			t.Fatalf("%q became %q: more than the addresses has changed", value, out)
		}
		before, errBefore := mail.ParseAddressList(strings.TrimSpace(string(value)))
		after, errAfter := mail.ParseAddressList(strings.TrimSpace(string(out)))
		if errBefore == nil && (errAfter != nil || len(before) != len(after)) {
			t.Fatalf("%q parses, %q does not: %v", value, out, errAfter)
		}
		for i := range before {
			if before[i].Name != after[i].Name {
				t.Fatalf("name %q became %q", before[i].Name, after[i].Name)
			}
		}
	})
}

// undo the rewriting, and take out what may differ: blanks, the case of the domain, and where its dot stands.
func undo(value []byte) string {
	text := strings.ReplaceAll(string(value), "marker.example", "corp.example")
	text = strings.Map(func(r rune) rune {
		if r < 128 && isBlank(byte(r)) {
			return -1
		}
		return r
	}, text)
	return strings.ToLower(text)
}
