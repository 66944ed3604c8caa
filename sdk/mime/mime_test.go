package mime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// parse splits a message at its empty line and parses it.
func parse(t testing.TB, msg string, limits Limits) (*Tree, error) {
	t.Helper()
	msg = strings.ReplaceAll(strings.ReplaceAll(msg, "\r\n", "\n"), "\n", "\r\n")
	header, body, _ := strings.Cut(msg, "\r\n\r\n")
	return Parse(context.Background(), []byte(header+"\r\n"), bytes.NewReader([]byte(body)), limits)
}

// outline writes a tree as one line a part.
func outline(tree *Tree) string {
	var b strings.Builder
	for p := range tree.All() {
		raw, _ := io.ReadAll(p.Raw())
		line := fmt.Sprintf("%s%s", strings.Repeat(" ", p.Depth), p.Type)
		if p.Filename != "" {
			line += " " + p.Filename
		}
		if len(p.Parts) == 0 {
			line += fmt.Sprintf(" %q", raw)
		}
		if len(p.Defects) > 0 {
			line += " !" + strings.Join(p.Defects, ", ")
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

func TestStructure(t *testing.T) {
	tests := map[string]struct{ msg, want string }{
		"plain": {"Subject: x\n\nhello\n", "text/plain \"hello\\r\\n\"\n"},
		"mixed": {`Content-Type: multipart/mixed; boundary="b"

preamble
--b
Content-Type: text/html

<p>
--b
Content-Type: application/pdf; name="=?utf-8?q?r=C3=A9sum=C3=A9.pdf?="
Content-Transfer-Encoding: base64

AAAA
--b--
epilogue
`, "multipart/mixed\n text/html \"<p>\"\n application/pdf résumé.pdf \"AAAA\"\n"},
		"nested": {`Content-Type: multipart/mixed; boundary=outer

--outer
Content-Type: multipart/alternative; boundary=inner

--inner

one
--inner--
--outer
Content-Type: message/rfc822

Subject: inside
Content-Type: text/html

two
--outer--
`, "multipart/mixed\n multipart/alternative\n  text/plain \"one\"\n message/rfc822\n  text/html \"two\"\n"},
		"inner boundary left open": {`Content-Type: multipart/mixed; boundary=outer

--outer
Content-Type: multipart/alternative; boundary=inner

--inner

one
--outer

two
--outer--
`, "multipart/mixed\n multipart/alternative !closing boundary missing\n  text/plain \"one\"\n text/plain \"two\"\n"},
		"no boundary in the body": {"Content-Type: multipart/mixed; boundary=b\n\nx\n",
			"multipart/mixed \"x\\r\\n\" !boundary never stands in the body\n"},
		"text behind a boundary": {"Content-Type: multipart/mixed; boundary=b\n\n--b ignored\n\none\n--b2\n--bx ignored\n--b-- ignored\n\n--b\n",
			"multipart/mixed\n text/plain \"one\\r\\n--b2\\r\\n--bx ignored\"\n"},
		"digest": {"Content-Type: multipart/digest; boundary=b\n\n--b\n\nSubject: a\n\nx\n--b--\n",
			"multipart/digest\n message/rfc822\n  text/plain \"x\"\n"},
		"RFC 2231 name": {"Content-Disposition: attachment; filename*0*=utf-8''a%20; filename*1=b.exe\n\nx",
			"text/plain a b.exe \"x\"\n"},
		"broken parameter": {"Content-Type: application/x-msdownload; name=\"a.exe\n\nx",
			"application/x-msdownload a.exe \"x\" !Content-Type does not parse\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tree, err := parse(t, tt.msg, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if got := outline(tree); got != tt.want {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	deep := "Content-Type: message/rfc822\n\n" + strings.Repeat("Content-Type: message/rfc822\n\n", 50)
	many := "Content-Type: multipart/mixed; boundary=b\n\n" + strings.Repeat("--b\n\nx\n", 50)
	long := "Content-Type: multipart/mixed; boundary=b\n\n--b\nX: " + strings.Repeat("x", 2000) + "\n\nx"
	for _, tt := range []struct {
		msg    string
		limits Limits
		want   error
	}{
		{deep, Limits{Depth: 10}, ErrTooDeep},
		{many, Limits{Parts: 10}, ErrTooMany},
		{long, Limits{HeaderBytes: 1000}, ErrTooLarge},
	} {
		if _, err := parse(t, tt.msg, tt.limits); !errors.Is(err, tt.want) {
			t.Errorf("got %v, want %v", err, tt.want)
		}
	}
}

func TestDecoded(t *testing.T) {
	for _, tt := range []struct{ encoding, charset, content, want string }{
		{"base64", "", "aGVs\nbG8=", "hello"},
		{"base64", "", "aGVs!! bG8", "hello"},
		{"quoted-printable", "iso-8859-1", "=E9t=E9", "été"},
		{"8bit", "utf-8", "été", "été"},
		{"7bit", "x-unknown", "abc", "abc"},
	} {
		tree, err := parse(t, fmt.Sprintf("Content-Type: text/plain; charset=%q\nContent-Transfer-Encoding: %s\n\n%s",
			tt.charset, tt.encoding, tt.content), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if got, _, _ := tree.Root.DecodedText(1 << 20); got != tt.want {
			t.Errorf("%s %s: got %q, want %q", tt.encoding, tt.content, got, tt.want)
		}
	}
}

// Readers differ in which of several names they take.
func TestNames(t *testing.T) {
	msg := "Content-Type: application/pdf; name=\"=?utf-8?q?a=2Eexe?=\"\nContent-Type: text/plain; name=b.exe\nContent-Disposition: attachment; filename=c.pdf\n" +
		"Content-Disposition: inline; filename*=utf-8''d%2Eexe\n\nx"
	tree, err := parse(t, msg, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(tree.Root.Names(), " "); got != "c.pdf a.exe d.exe b.exe" {
		t.Errorf("names %s", got)
	}
	if got := strings.Join(tree.Root.Types(), " "); got != "application/pdf text/plain" {
		t.Errorf("types %s", got)
	}
	tree, err = parse(t, "Subject: x\n\nx", Limits{})
	if err != nil || len(tree.Root.Names()) > 0 || len(tree.Root.Types()) != 1 {
		t.Errorf("%v %q %q", err, tree.Root.Names(), tree.Root.Types())
	}
}

// Where readers of mail differ about a name, a file has all of them.
func TestNamesThatReadersMayTake(t *testing.T) {
	const octets = "Content-Type: application/octet-stream"
	for field, want := range map[string]string{
		octets + `; name="x.txt"; name="x.js"`:                                             "x.js",
		octets + "; name='x.js'":                                                           "x.js",
		octets + ` name="x.js"`:                                                            "x.js",
		octets + `, name=x.js, size=1`:                                                     "x.js",
		octets + "; NAME = x.js (script)":                                                  "x.js",
		octets + "; name=my x.js":                                                          "my x.js",
		octets + `; name="=?utf-8?B?eC5qcw?="`:                                             "x.js",
		octets + `; name="=?utf-8?B?eC=5qcw==?="`:                                          "x.js",
		octets + `; name="=?utf-7?Q?x+AC4-js?="`:                                           "x.js",
		octets + `; name="=?utf-8*en?Q?x=2Ejs?="`:                                          "x.js",
		octets + `; name="=?x?B?eC4?= =?utf-8?Q?js?="`:                                     "x.js",
		"Content-Disposition: filename=x.js":                                               "x.js",
		"Content-Disposition: attachment; filename*=utf-16be''%00x%00.%00j%00s":            "x.js",
		`Content-Disposition: attachment; filename*0="x."; filename*2="js"`:                "x.js",
		`Content-Disposition: attachment; filename*1="s"; filename*0*=utf-8''x%2Ej; x="y"`: "x.js",
		`Content-Disposition: attachment; filename="a.txt"; filename*="x.js"`:              "x.js",
		octets + strings.Repeat(";\n name=a.txt", 10_000) + ";\n name=x.js":                "x.js",
		octets + "; name=\"" + strings.Repeat("name=", 1000) + "x.js\"; name=\"x.js":       "x.js",
	} {
		tree, err := parse(t, field+"\n\nx", Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if names := tree.Root.Names(); !slices.Contains(names, want) {
			t.Errorf("%.120s has the names %.300q", field, names)
		}
	}
}

func TestAddressLike(t *testing.T) {
	for in, want := range map[string]string{
		"a@x.example.": "a@x.example", "<@z.example:a@x.example>": "@z.example a@x.example", "a@(who)x.example": "a@x.example", "a@x\r\n .example": "a@x.example",
		"<a@x.example> <b@z.example>": "a@x.example b@z.example", "a@z.example@x.example": "a@z.example z.example@x.example", "\"A <a@x.example>": "a@x.example",
		"=?utf-8?q?a=40x.example?=": "a@x.example", "\"a\"@x.example;": "a@x.example", "j\u00fc@b\u00fccher.example,": "j\u00fc@b\u00fccher.example",
		"a@b": "", "@": "", "nobody": "", strings.Repeat("a@x.example ", 1000): strings.TrimSpace(strings.Repeat("a@x.example ", 50)),
	} {
		if got := strings.Join(AddressLike(in), " "); got != want {
			t.Errorf("%.60q has %q, want %q", in, got, want)
		}
	}
}

func TestUTF7(t *testing.T) {
	for in, want := range map[string]string{
		"hello": "hello", "1 +- 1": "1 + 1", "A+ImIDkQ.": "A\u2262\u0391.", "+ADw-b+AD4-": "<b>", "Hi Mom -+Jjo--!": "Hi Mom -\u263a-!", "+": "+", "+AGE": "a",
	} {
		if got := fromUTF7(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
	tree, err := parse(t, "Subject: =?utf-7?Q?+AGE-b?=\nContent-Type: text/html; charset=UTF-7\n\n+ADw-b+AD4-", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if text, _, _ := tree.Root.DecodedText(100); text != "<b>" || tree.Root.Header.Decoded("Subject") != "ab" {
		t.Errorf("text %q, subject %q", text, tree.Root.Header.Decoded("Subject"))
	}
}

// What other readers of mail find in a multipart is found in one of its readings.
func TestHidden(t *testing.T) {
	const evil = "Content-Type: text/plain; name=x.js\n\nvar\n"
	for name, msg := range map[string]string{
		"behind the end":         "Content-Type: multipart/mixed; boundary=b\n\n--b\n\nhi\n--b--\n--b\n" + evil,
		"a second boundary":      "Content-Type: multipart/mixed; boundary=b; boundary=c\n\n--c\n" + evil + "--c--\n--b\n\nhi\n--b--\n",
		"a second Content-Type":  "Content-Type: multipart/mixed; boundary=b\nContent-Type: multipart/mixed; boundary=\"c\"\n\n--c\n" + evil + "--c--\n--b\n\nhi\n--b--\n",
		"none is named":          "Content-Type: multipart/mixed\n\n--c\n" + evil + "--c--\n",
		"an empty one is named":  "Content-Type: multipart/mixed; boundary=\"\"\n\n--c\n" + evil + "--c--\n",
		"it is not that one":     "Content-Type: multipart/mixed; boundary=d\n\n--c\n" + evil + "--c--\n",
		"with quotes and blanks": "Content-Type: multipart/mixed; boundary=d; boundary=\"c d\"\n\n--c d\n" + evil + "--c d--\n",
	} {
		tree, err := parse(t, msg, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		readings, err := tree.Root.Hidden()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, r := range readings {
			other, err := Parse(context.Background(), r.Header, r.Body, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			for p := range other.Leaves() {
				names = append(names, p.Names()...)
			}
		}
		if !slices.Contains(names, "x.js") {
			t.Errorf("%s: %d readings with the names %q", name, len(readings), names)
		}
	}
	tree, err := parse(t, "Content-Type: multipart/mixed; boundary=b\n\n--b\n"+evil+"--b--\n", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if readings, err := tree.Root.Hidden(); err != nil || len(readings) > 0 {
		t.Errorf("a message in order has %d other readings, %v", len(readings), err)
	}
}

func TestDecodeWords(t *testing.T) {
	for in, want := range map[string]string{
		"=?utf-8?q?gr=C3=BC=C3=9Fe?=":          "gr\u00fc\u00dfe",
		"=?x-unknown?q?a?= =?utf-8?b?YmM=?= d": "abc d",
		"=?utf-8?b?!!?= =?utf-8?q?x?=":         "=?utf-8?b?!!?= x",
		"=?utf-8?q?open":                       "=?utf-8?q?open",
	} {
		if got := DecodeWords(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

// A megabyte of header that is made to cost much costs memory in proportion.
func TestHeaderFloods(t *testing.T) {
	for name, line := range map[string]string{
		"folds": " x\r\n", "fields": "A:\r\n", "words": " =?utf-8?q?a?=\r\n", "open words": " =?utf-8?q?\r\n", "marks": "=?", "parameters": ";\r\n a=b",
		"continuations": ";\r\n a*0=b", "comments": "((", "quotes": "\"", "addresses": " a@b.c,\r\n", "groups": " a:;\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			block := []byte("From: x\r\nContent-Type: multipart/mixed; boundary=b" + strings.Repeat(line, (1<<20)/len(line)) + "\r\n")
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			tree, err := Parse(context.Background(), block, bytes.NewReader([]byte("--b\r\n\r\nx\r\n--b--\r\n")), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range []string{"From", "Content-Type"} {
				_ = tree.Root.Header.Decoded(f)
				_, _ = tree.Root.Header.Addresses(f)
			}
			runtime.ReadMemStats(&after)
			if used := after.TotalAlloc - before.TotalAlloc; used > 512<<20 {
				t.Errorf("%d MiB allocated for one of header", used>>20)
			}
		})
	}
}

// FuzzParse: whatever comes, parts lie inside their parents and in order, and reading them does not fail.
func FuzzParse(f *testing.F) {
	f.Add("Content-Type: multipart/mixed; boundary=b\n\n--b\n\nx\n--b--\n")
	f.Add("Content-Type: message/rfc822\n\nContent-Type: multipart/mixed; boundary=\"\"\n\n--\n")
	f.Add("Content-Type: multipart/mixed; boundary=b\n\n--b\n--b\n--b--")
	f.Add("Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: message/rfc822\n\nContent-Type: multipart/mixed; boundary=c\n\n--b--\n")
	f.Add("Content-Type: multipart/mixed; boundary=b\n\n--b x\n\n--b-- y\n")
	f.Add("Content-Type: multipart/mixed; boundary=b; boundary*1=c; name*0*=utf-7''%2bA; name*2=\"=?x?b?A?=\"; name=\n\n--c\n\n--b--\n--b\n")
	f.Add("Content-Type: text/plain; charset=utf-7; name=\"=?utf-7?q?+?= =?utf-16?b?//4?=\n\n+AGE")
	f.Fuzz(func(t *testing.T, msg string) {
		tree, err := parse(t, msg, Limits{Depth: 10, Parts: 100})
		if err != nil {
			return
		}
		for p := range tree.All() {
			if p.Start > p.Content || p.Content > p.End || p.End > p.body.Size() {
				t.Fatalf("offsets %d %d %d of %d", p.Start, p.Content, p.End, p.body.Size())
			}
			if p.Parent != nil && (p.Start < p.Parent.Content || p.End > p.Parent.End) {
				t.Fatalf("part %d-%d outside of its parent %d-%d", p.Start, p.End, p.Parent.Content, p.Parent.End)
			}
			if _, _, err := p.DecodedText(1000); err != nil {
				t.Fatal(err)
			}
			_, _ = p.Names(), p.Types()
			readings, err := p.Hidden()
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range readings {
				_, _ = Parse(context.Background(), r.Header, r.Body, Limits{Depth: 10, Parts: 100})
			}
		}
	})
}
