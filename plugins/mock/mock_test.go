package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agenttest"
)

var info = agenttest.WithInfo(sdk.Info{Name: "mock", Version: "1.0.0", SharedStamps: []string{"scl", "pcl"}})

const message = "From: a@x.example\nTo: r@y.example\nSubject: hello\nX-Old: 1\n\nline one\nline two\n"

// Every event of a session can be refused, each with its own reply.
func TestRefusesAnywhere(t *testing.T) {
	var config strings.Builder
	for i, event := range []string{"OnConnect", "OnHelo", "OnEhlo", "OnStartTls", "OnMail", "OnRcpt", "OnEndOfData"} {
		config.WriteString("on \"" + event + "\" {\n action = \"reject\"\n enhanced = \"5.7." + string(rune('1'+i)) + "\"\n}\n")
	}
	a := agenttest.Start(t, New, config.String(), info)
	s := a.From("192.0.2.1")
	s.Connect().Want(550, "5.7.1")
	s.Helo("h").Want(550, "5.7.2")
	s.Ehlo("h").Want(550, "5.7.3")
	s.StartTLS().Want(550, "5.7.4")
	s.Mail("a@x.example").Want(550, "5.7.5")
	s.To("r@y.example").Want(550, "5.7.6")
	s.Data(message).Want(550, "5.7.7")
}

func TestConditions(t *testing.T) {
	a := agenttest.Start(t, New, `
		on "OnRcpt" {
			sender    = "^bad@"
			recipient = "^r@"
			client    = ["192.0.2.0/24"]
			action    = "defer"
		}
		on "OnEndOfData" {
			subject = "poison"
			action  = "quarantine"
		}`, info)
	a.From("192.0.2.1").Rcpt("bad@x.example", "r@y.example").Want(451, "4.7.1")
	a.From("192.0.2.1").Rcpt("good@x.example", "r@y.example").WantContinue()
	a.From("192.0.2.1").Rcpt("bad@x.example", "q@y.example").WantContinue()
	a.From("203.0.113.1").Rcpt("bad@x.example", "r@y.example").WantContinue()
	a.From("203.0.113.1").Data(message).WantContinue()
	a.From("203.0.113.1").Data("Subject: =?utf-8?q?p=6Fison?=\n\n").WantVerdict("quarantine")
}

func TestEdits(t *testing.T) {
	a := agenttest.Start(t, New, `
		on "OnEndOfData" {
			headers        = ["*"]
			body           = true
			add_header     = { X-New = "grüß" }
			remove_header  = ["x-old"]
			replace_header = { Subject = "changed" }
			append_body    = "line three\r\n"
			stamp          = { seen = "1", scl = "5" }
			keep_copy      = "kept"
			count          = { edits = 4 }
			spawn {
				recipients = ["watcher@y.example"]
			}
			write "memory" {
				key = "{sender}|{client}"
				op  = "add"
			}
		}`, info)
	s := a.From("192.0.2.1")
	s.Mail("A@x.example").To("r@y.example").WantContinue()
	s.Data(message).WantContinue().WantHeaderAdded("X-New", "grüß").WantHeaderRemoved("X-Old").
		WantHeaderAdded("Subject", "changed").WantBody("line one\nline two\nline three\n").
		WantStamp("seen", "1").WantStamp("scl", "5").WantCopy("kept").WantCount("edits", 4).WantSpawn("watcher@y.example")
	rows := a.Rows("memory")
	if len(rows) != 1 || rows[0].Key != "a@x.example|192.0.2.1" || rows[0].Value != `{"n":1}` {
		t.Errorf("rows %v", rows)
	}
}

// A large body comes by descriptor, and a patch of it costs only what is new.
func TestLargeBody(t *testing.T) {
	a := agenttest.Start(t, New, `
		on "OnEndOfData" {
			body        = true
			append_body = "end\r\n"
		}`, info)
	large := strings.Repeat("0123456789abcde\n", 100_000)
	out := a.From("192.0.2.1").Data("Subject: large\n\n" + large)
	out.WantContinue().WantBody(large + "end\n")
	if n := len(out.Answer().GetEdits()[0].GetBody().GetSegments()); n != 2 {
		t.Errorf("%d segments, want the old body and the new line", n)
	}
}

// A new body that does not fit into an answer goes ahead of it.
func TestLargeNewBody(t *testing.T) {
	large := strings.Repeat("x", 1_500_000)
	a := agenttest.Start(t, New, `
		on "OnEndOfData" {
			body        = true
			append_body = "`+large+`\r\n"
		}`, info)
	a.From("192.0.2.1").Data("Subject: x\n\nold\n").WantContinue().WantBody("old\n" + large + "\n")
}

func TestPerRecipient(t *testing.T) {
	a := agenttest.Start(t, New, `
		on "OnEndOfData" {
			action     = "reject"
			recipients = ["r@y.example"]
		}`, info)
	s := a.From("192.0.2.1")
	s.Mail("a@x.example").To("r@y.example").To("q@y.example").WantContinue()
	s.Data(message).WantFor("r@y.example", 550, "5.7.1").WantVerdictFor("q@y.example", "continue")
}

func TestNeed(t *testing.T) {
	a := agenttest.Start(t, New, `
		on "OnRcpt" {
			action = "reject"
			need {
				table = "memory"
				keys  = ["k"]
			}
		}`, info)
	a.From("192.0.2.1").Rcpt("a@x.example", "r@y.example").Want(550, "")
}

// What fails so many times succeeds afterwards, in whichever process, since the state folder is shared.
func TestTimes(t *testing.T) {
	dir := t.TempDir()
	rule := Rule{Event: "OnRcpt", Times: 3, Per: "rule"}
	one := &Mock{Config: Config{Rules: []Rule{rule}}, stateDir: dir}
	two := &Mock{Config: Config{Rules: []Rule{rule}}, stateDir: dir}
	event := &sdk.Event{ID: "e1", Session: &sdk.Session{ID: "s1"}}
	var sights []bool
	for range 3 {
		sights = append(sights, one.firstTimes(&rule, event), two.firstTimes(&rule, event))
	}
	if !slices.Equal(sights, []bool{true, true, true, false, false, false}) {
		t.Errorf("sights %v", sights)
	}
}

// What misbehaves at its first sight does the rest of its block at the next.
func TestMisbehavesSoManyTimes(t *testing.T) {
	rule := Rule{Event: "OnRcpt", Times: 1, Per: "rule", Misbehave: "no_verdict"}
	m := &Mock{Config: Config{Rules: []Rule{rule}}, stateDir: t.TempDir()}
	event := &sdk.RcptEvent{Event: sdk.Event{ID: "e1", Session: &sdk.Session{ID: "s1"}}}
	if _, done := m.misbehave(&rule, event); !done {
		t.Error("behaves at first sight")
	}
	if _, done := m.misbehave(&rule, event); done || !m.matches(&rule, event) {
		t.Error("misbehaves at second sight, or does not match")
	}
}

func TestPanicIsAFault(t *testing.T) {
	a := agenttest.Start(t, New, `
		on "OnRcpt" {
			misbehave = "panic"
			recipient = "^p@"
		}
		on "OnMail" {
			action = "nothing"
		}`, info)
	s := a.From("192.0.2.1")
	s.Rcpt("a@x.example", "p@y.example").WantFault("mock panics")
	s.Rcpt("a@x.example", "r@y.example").WantContinue()
	s.Mail("a@x.example").WantFault("continue is explicit")
}

func TestRecord(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events")
	a := agenttest.Start(t, New, `
		record = "`+file+`"
		events = ["all"]`, info)
	s := a.From("192.0.2.1")
	s.Connect().WantContinue()
	s.Ehlo("h").Mail("a@x.example").To("r@y.example").WantContinue()
	s.Data(message).WantContinue()
	s.Submitted().WantContinue()
	a.Schedule().WantContinue()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n"); n != 18 { // nine events, in each of the two worlds
		t.Errorf("%d lines:\n%s", n, text)
	}
}

func TestConfiguration(t *testing.T) {
	for config, want := range map[string]string{
		"on \"OnRecipient\" {\n}":                       `on[0]: there is no event "OnRecipient"`,
		"on \"OnRcpt\" {\n action = \"rejct\"\n}":       `on[0].action: "rejct" is none of`,
		`invalid = "as asked"`:                          `invalid: as asked`,
		"on \"OnRcpt\" {\n}\non \"OnRcpt\" {\nper=1\n}": `on[1].per: "1" is none of`,
	} {
		got := strings.Join(agenttest.Diagnostics(t, New, config, info), "\n")
		if !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %s", config, got, want)
		}
	}
}

// A breach is what a host must notice: each of them differs from a good answer in the way its name says.
func TestBreaches(t *testing.T) {
	m := new(Mock)
	for _, name := range []string{
		"unknown_verdict", "unknown_edit", "no_verdict", "bad_header", "bad_digest", "bad_code", "forbidden_edit", "twice",
	} {
		if _, done := m.breach(&Rule{Misbehave: name}); !done {
			t.Errorf("%s does nothing", name)
		}
	}
	if _, done := m.breach(&Rule{}); done {
		t.Error("good behaviour is answered as a breach")
	}
}
