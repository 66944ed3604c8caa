package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/posternmail/postern/internal/corpora"
	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agentpb"
	"github.com/posternmail/postern/sdk/agenttest"
)

var withInfo = agenttest.WithInfo(info())

const message = `From: Ann <ann@x.example>
To: r@y.example
Subject: =?utf-8?q?A_gr=C3=BC=C3=9Fe_offer?=
List-Id: <news.x.example>
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=b

--b
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: quoted-printable

<p>Buy <b>ch</b>eap=C3=BC pills</p><script>secret</script>
--b
Content-Type: application/x-msdownload
Content-Disposition: attachment; filename="Setup.EXE"
Content-Transfer-Encoding: base64

QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo=
--b--
`

// sent raises the events of one message.
func sent(s *agenttest.Session, from, to string) *agenttest.Outcome {
	s.Mail(from)
	for _, r := range strings.Fields(to) {
		s.To(r)
	}
	return s.Data(message)
}

// Each condition holds, and does not.
func TestConditions(t *testing.T) {
	conditions := map[string]bool{
		`from_contains = ["ANN"]`:                              true,
		`from_contains = ["an"]`:                               false, // not a whole word
		`from_contains = ["bounce"]`:                           true,  // envelope
		`from_matches = ["^ann@"]`:                             true,
		`from_matches = ["^bob@"]`:                             false,
		`from_scope = "outside"`:                               true,
		`from_scope = "inside"`:                                false,
		`clients = ["192.0.2.0/24"]`:                           true,
		`clients = ["198.51.100.0/24", "2001:db8::/32"]`:       false,
		`recipient_contains = ["s@y.example"]`:                 true,
		`recipient_contains = ["q"]`:                           false,
		`recipient_matches = ["^R@"]`:                          false,
		`recipient_matches = ["(?i)^R@"]`:                      true,
		`subject_contains = ["Grüße offer"]`:                   true,
		`subject_contains = ["grü"]`:                           false,
		`subject_matches = ["gr.{3}"]`:                         true,
		`subject_or_body_contains = ["cheapü pills"]`:          true, // decoded, without markup
		`subject_or_body_contains = ["offer"]`:                 true,
		`subject_or_body_contains = ["secret"]`:                false, // a script
		`subject_or_body_matches = ["pills$"]`:                 false,
		`subject_or_body_matches = ["p.lls"]`:                  true,
		"header \"list-id\" {}":                                true,
		"header \"Precedence\" {}":                             false,
		"header \"List-Id\" {\ncontains = [\"news\"]\n}":       true,
		"header \"List-Id\" {\nmatches = [\"^other\"]\n}":      false,
		"stamp \"auth.spf\" {\nis = [\"fail\", \"none\"]\n}":   true,
		"stamp \"auth.spf\" {\nis = [\"pass\"]\n}":             false,
		"stamp \"auth.dkim\" {}":                               false,
		"stamp \"senderauth.score\" {\nat_least = 3\n}":        true,
		"stamp \"senderauth.score\" {\nat_least = 4\n}":        false,
		`scl_over = 5`:                                         true,
		`scl_over = 6`:                                         false,
		`message_over = "100 B"`:                               true,
		`message_over = "1 MB"`:                                false,
		`has_attachment = true`:                                true,
		`attachment_over = "26 B"`:                             true, // decoded, and at least
		`attachment_over = "27 B"`:                             false,
		`attachment_names = ["*.zip", "*.exe"]`:                true,
		`attachment_names = ["*.zip"]`:                         false,
		`attachment_types = ["application/x-*"]`:               true,
		`attachment_types = ["image/*"]`:                       false,
		"from_scope = \"outside\"\nsubject_contains = [\"x\"]": false, // all must hold
	}
	var config strings.Builder
	var names []string
	for condition := range conditions {
		fmt.Fprintf(&config, "rule \"r\" {\nwhen {\n%s\n}\nset_headers = { X-Hit-%d = \"yes\" }\n}\n", condition, len(names))
		names = append(names, condition)
	}
	s := agenttest.Start(t, New, config.String(), withInfo).From("192.0.2.1")
	s.Mail("bounce@x.example").To("r@y.example")
	s.To("s@y.example")
	s.Stamped("auth.spf", "fail").Stamped("senderauth.score", "3").Stamped("scl", "5")
	text := s.Data(message).WantContinue().Message()
	for i, condition := range names {
		if got := strings.Contains(text, fmt.Sprintf("X-Hit-%d:", i)); got != conditions[condition] {
			t.Errorf("%s: %v, want %v", condition, got, conditions[condition])
		}
	}
}

func TestExceptions(t *testing.T) {
	a := agenttest.Start(t, New, `
		rule "r" {
			when {
				subject_contains = ["offer"]
			}
			unless {
				recipient_contains = ["abuse"]
				header "X-Good" {}
			}
			reject {
				code = 451
				text = "Not now"
			}
		}`, withInfo)
	sent(a.From("192.0.2.1"), "a@x.example", "r@y.example").Want(451, "4.7.1")
	sent(a.From("192.0.2.1"), "a@x.example", "r@y.example abuse@y.example").WantContinue()
}

func TestEndings(t *testing.T) {
	for action, want := range map[string]string{
		"delete = true": "discard", "quarantine = true": "quarantine", "disconnect = true": "disconnect", "reject {}": "reject",
		"stop = true": "continue", "log = \"seen\"": "continue",
	} {
		t.Run(want, func(t *testing.T) {
			a := agenttest.Start(t, New, "rule \"r\" {\n"+action+"\n}", withInfo)
			sent(a.From("192.0.2.1"), "a@x.example", "r@y.example").WantVerdict(want).WantCount("matched", 1)
		})
	}
}

func TestEdits(t *testing.T) {
	a := agenttest.Start(t, New, `
		rule "mark" {
			priority        = 20
			prepend_subject = "[x] "
			set_headers     = { List-Id = "edge", X-New = "grüß" }
			remove_headers  = ["To"]
			copy_to         = ["c@y.example", "r@y.example"]
			blind_copy_to   = ["b@y.example"]
		}
		rule "again" {
			priority        = 30
			prepend_subject = "[x] "
			blind_copy_to   = ["b@y.example"]
			set_scl         = -1
		}`, withInfo)
	o := sent(a.From("192.0.2.1"), "a@x.example", "r@y.example").WantContinue().WantReason("matched").
		WantHeaderAdded("Subject", "[x] A grüße offer").WantHeaderAdded("List-Id", "edge").WantHeaderAdded("X-New", "grüß").
		WantHeaderRemoved("To").WantHeaderAdded("Cc", "<c@y.example>, <r@y.example>").WantStamp("scl", "-1").WantCount("matched", 2)
	var added []string
	for _, e := range o.Answer().GetEdits() {
		if r := e.GetAddRecipient(); r != nil {
			added = append(added, string(r.GetAddress()))
		}
	}
	if got := strings.Join(added, " "); got != "c@y.example b@y.example" {
		t.Errorf("added %s", got)
	}
}

func TestRedirect(t *testing.T) {
	a := agenttest.Start(t, New, `
		rule "r" {
			redirect_to = ["one@y.example", "two@y.example"]
		}
		rule "later" {
			reject {}
		}`, withInfo)
	o := sent(a.From("192.0.2.1"), "a@x.example", "r@y.example s@y.example t@y.example two@y.example").WantContinue()
	var got []string
	for _, e := range o.Answer().GetEdits() {
		switch e := e.GetEdit().(type) {
		case *agentpb.Edit_RewriteRecipient:
			got = append(got, "rewrite", string(e.RewriteRecipient.GetAddress()))
		case *agentpb.Edit_RemoveRecipient:
			got = append(got, "remove", string('0'+rune(e.RemoveRecipient.GetIndex())))
		}
	}
	if text := strings.Join(got, " "); text != "rewrite one@y.example remove 1 remove 2" {
		t.Error(text)
	}
}

// Priority decides, not the place in the file; stop and endings end the rules.
func TestOrder(t *testing.T) {
	a := agenttest.Start(t, New, `
		rule "second" {
			priority = 2
			reject {
				text = "second"
			}
		}
		rule "first" {
			priority = 1
			when {
				from_contains = ["stop"]
			}
			stop = true
		}`, withInfo)
	sent(a.From("192.0.2.1"), "go@x.example", "r@y.example").Want(550, "5.7.1")
	sent(a.From("192.0.2.1"), "stop@x.example", "r@y.example").WantContinue()
}

func TestPerRecipient(t *testing.T) {
	a := agenttest.Start(t, New, `
		rule "refuse" {
			priority = 1
			when {
				recipient_contains = ["sales"]
			}
			unless {
				recipient_matches = ["^boss"]
			}
			per_recipient = true
			reject {}
		}
		rule "mark" {
			priority        = 2
			blind_copy_to   = ["archive@y.example"]
			prepend_subject = "[m] "
		}
		rule "hold" {
			priority = 3
			when {
				recipient_contains = ["held"]
			}
			per_recipient = true
			quarantine    = true
		}`, withInfo)
	o := sent(a.From("192.0.2.1"), "a@x.example", "sales@y.example boss-sales@y.example held@y.example r@y.example")
	o.WantFor("sales@y.example", 550, "5.7.1").WantVerdictFor("boss-sales@y.example", "continue").
		WantVerdictFor("held@y.example", "quarantine").WantVerdictFor("r@y.example", "continue")
	archived := 0
	for _, e := range o.Answer().GetEdits() {
		for _, i := range e.GetRecipients() {
			if i == 0 {
				t.Errorf("a refused copy is edited: %v", e)
			}
		}
		if e.GetAddRecipient() != nil {
			archived++
		}
	}
	if archived != 1 {
		t.Errorf("archive@y.example gets %d copies", archived)
	}
	sent(a.From("192.0.2.1"), "a@x.example", "sales@y.example").Want(550, "5.7.1")
}

// Without per_recipient one matching recipient is enough for all, as in Exchange.
func TestAllRecipients(t *testing.T) {
	a := agenttest.Start(t, New, `
		rule "r" {
			when {
				recipient_contains = ["sales"]
			}
			reject {}
		}`, withInfo)
	sent(a.From("192.0.2.1"), "a@x.example", "r@y.example sales@y.example").WantFor("r@y.example", 550, "5.7.1")
}

// What cannot be looked at is not judged, so that nesting is no way around a rule.
func TestHostileStructure(t *testing.T) {
	a := agenttest.Start(t, New, `
		rule "r" {
			when {
				attachment_names = ["*.exe"]
			}
			reject {}
		}`, withInfo)
	s := a.From("192.0.2.1")
	s.Mail("a@x.example").To("r@y.example")
	var b strings.Builder
	b.WriteString("Content-Type: multipart/mixed; boundary=b\n\n")
	for range 2000 {
		b.WriteString("--b\n\nx\n")
	}
	s.Data(b.String()).WantVerdict("undetermined").WantReason("cannot-judge")
}

func TestUsers(t *testing.T) {
	a := agenttest.Start(t, New, `
		rule "r" {
			when {
				from_scope = "inside"
			}
			reject {}
		}`, withInfo)
	sent(a.From("192.0.2.1").Authenticated("me"), "a@x.example", "r@y.example").Want(550, "5.7.1")
}

func TestEmpty(t *testing.T) {
	if got := agenttest.Diagnostics(t, New, "", withInfo); len(got) != 1 || got[0] != "warning: no rule: no message is touched" {
		t.Errorf("%q", got)
	}
}

func TestEmptyDoesNothing(t *testing.T) {
	sent(agenttest.Start(t, New, "", withInfo).From("192.0.2.1"), "a@x.example", "r@y.example").WantContinue()
}

func TestMistakes(t *testing.T) {
	for config, want := range map[string]string{
		"rule \"a\" {}": "rule[0]: it has no action",
		"rule \"a\" {\ndelete = true\nquarantine = true\n}":                                      "rule[0]: delete and quarantine exclude each other",
		"rule \"a\" {\nwhen {}\ndelete = true\n}":                                                "rule[0].when: it has no condition",
		"rule \"a\" {\ndisconnect = true\nper_recipient = true\n}":                               "rule[0].disconnect: a connection cannot be closed",
		"rule \"a\" {\nreject {\nenhanced = \"4.7.1\"\n}\n}":                                     "rule[0].reject.enhanced: \"4.7.1\" is no enhanced code of class 5",
		"rule \"a\" {\nreject {\ntext = \"grüß\"\n}\n}":                                          "rule[0].reject.text: 'ü' cannot stand in a reply",
		"rule \"a\" {\nset_headers = { \"A:\" = \"x\" }\n}":                                      "rule[0].set_headers[\"A:\"]: \"A:\" is no name of a header field",
		"rule \"a\" {\nset_headers = { A = \"x\\r\\nB: y\" }\n}":                                 "rule[0].set_headers[\"A\"]: '\\r' cannot stand in a header field",
		"rule \"a\" {\nprepend_subject = \"x\\n\"\n}":                                            "rule[0].prepend_subject: '\\n' cannot stand in a header field",
		"rule \" \" {\nstop = true\n}":                                                           "rule[0]: it needs a name",
		"rule \"a\" {\nunless {\nsubject_contains = [\"a\", \"\"]\n}\nstop = true\n}":            "rule[0].unless.subject_contains[1]: an empty word is in no text",
		"rule \"a\" {\nwhen {\nheader \"A\" {\ncontains = [\"\"]\n}\n}\nstop = true\n}":          "rule[0].when.header[0].contains[0]: an empty word is in no text",
		"rule \"a\" {\nwhen {\nheader \"A B\" {}\n}\nstop = true\n}":                             "rule[0].when.header[0]: \"A B\" is no name of a header field",
		"rule \"a\" {\nwhen {\nstamp \"\" {}\n}\nstop = true\n}":                                 "rule[0].when.stamp[0]: \"\" is no name of a stamp",
		"rule \"a\" {\nwhen {\nattachment_names = [\"[\"]\n}\nstop = true\n}":                    "rule[0].when.attachment_names[0]",
		"rule \"a\" {\npriority = 1\nstop = true\n}\nrule \"b\" {\nstop = true\n}":               "1 rules have no priority and 1 have one",
		"rule \"a\" {\npriority = 1\nstop = true\n}\nrule \"b\" {\npriority = 1\nstop = true\n}": "rule[1].priority: rule \"a\" has it already",
	} {
		t.Run(want, func(t *testing.T) {
			if got := agenttest.Diagnostics(t, New, config, withInfo); len(got) != 1 || !strings.HasPrefix(got[0], want) {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

func TestReadme(t *testing.T) { agenttest.CheckReadme(t, New, "README.md") }

func TestWords(t *testing.T) {
	for _, c := range []struct {
		text, word string
		want       bool
	}{
		{"Viagra!", "viagra", true}, {"viagras", "viagra", false}, {"a viagras viagra", "viagra", true},
		{"買便宜藥片", "便宜", true}, {"", "x", false}, {"x", "", false}, {"100% off", "100%", true}, {"\xffword\xff", "word", true},
		{"free  money", "free money", true}, {"free\u00a0money", "Free Money", true}, {"fr\u200bee\r\n\tmo\u00adney", "free money", true}, {"ｆｒｅｅ ｍｏｎｅｙ", "free money", true},
		{"gru\u0308\u00dfe", "gr\u00fc\u00dfe", true}, {"free moneys", "free money", false},
	} {
		if got := findWord([]string{c.word})(c.text) != ""; got != c.want {
			t.Errorf("%q in %q: %v", c.word, c.text, got)
		}
	}
}

func configured(t *testing.T, out io.Writer, args ...string) error {
	t.Helper()
	a, err := New(Config{Rules: []Rule{
		{Name: "big", When: &Conditions{MessageOver: sdk.MiB}, Actions: Actions{Delete: true}},
		{Name: "offers", When: &Conditions{SubjectContains: []string{"offer"}, Stamps: []StampTest{{Name: "auth.spf", Is: []string{"fail"}}}},
			Actions: Actions{Reject: &Reject{Code: 550, Text: "No"}}},
		{Name: "never", Actions: Actions{Stop: true}},
	}}, new(sdk.Registrar))
	if err != nil {
		t.Fatal(err)
	}
	f, err := readArguments(context.Background(), &sdk.Invocation{Args: args, In: strings.NewReader(message), Out: out, Err: io.Discard})
	if err != nil {
		return err
	}
	o, err := a.run(f)
	if err == nil {
		a.tell(out, f, o)
	}
	return err
}

func TestTestCommand(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.eml")
	if err := os.WriteFile(path, []byte(message), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := configured(t, &out, "--from", "a@x.example", "--to", "r@y.example", "--stamp", "auth.spf=fail", path); err != nil {
		t.Fatal(err)
	}
	want := `rule "big": does not match: message_over does not hold
rule "offers": matches
    subject_contains: "offer"
    stamp auth.spf: "fail"
rule "never": not looked at, the rules had ended
recipient r@y.example: offers: reject 550 5.7.1 No
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	if err := configured(t, &out, "-"); err != nil || !strings.Contains(out.String(), `rule "offers": does not match: stamp auth.spf does not hold`) {
		t.Errorf("%v\n%s", err, out.String())
	}
	for _, args := range [][]string{{}, {"--to", "x@@y", path}, {"--ip", "x", path}, {path + ".none"}} {
		if err := configured(t, io.Discard, args...); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}

// The command reads the agent's configuration.
func TestTestCommandEmpty(t *testing.T) {
	var out bytes.Buffer
	c := &sdk.Invocation{Args: []string{"-"}, In: strings.NewReader(message), Out: &out, Err: io.Discard}
	if err := test(context.Background(), c); err != nil || out.String() != "recipient postmaster: no rule acts\n" {
		t.Errorf("%v %q", err, out.String())
	}
}

// Any message is judged or said to be beyond judging; nothing fails otherwise.
func FuzzContent(f *testing.F) {
	f.Add([]byte(strings.ReplaceAll(message, "\n", "\r\n")))
	f.Add([]byte("Content-Type: text/html\r\n\r\n<p><script></p"))
	f.Fuzz(func(t *testing.T, m []byte) {
		block, body, _ := bytes.Cut(m, []byte("\r\n\r\n"))
		c, err := readContent(context.Background(), block, bytes.NewReader(body))
		if err != nil && !errors.Is(err, errTooLarge) {
			t.Fatal(err)
		}
		if c != nil && len(c.text) > maxAll+4*maxPart {
			t.Fatalf("%d octets of text", len(c.text))
		}
	})
}

// Every message of the corpus of odd MIME is judged.
func TestCorpus(t *testing.T) {
	root := corpora.Path(t, "mime-mime4j")
	seen := 0
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".msg") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		block, body, _ := bytes.Cut(text, []byte("\r\n\r\n"))
		if _, err := readContent(context.Background(), block, bytes.NewReader(body)); err != nil && !errors.Is(err, errTooLarge) {
			t.Errorf("%s: %v", path, err)
		}
		seen++
		return nil
	})
	if err != nil || seen == 0 {
		t.Errorf("%d messages, %v", seen, err)
	}
}
