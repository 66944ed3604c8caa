package main

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/posternmail/postern/sdk/agenttest"
)

const mixed = `From: a@x.example
Subject: files
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="b"

preamble
--b
Content-Type: text/plain

hello
--b
Content-Type: application/octet-stream
Content-Disposition: attachment; filename="Setup.EXE"
Content-Transfer-Encoding: base64

TVqQAAMAAAA=
--b
Content-Type: application/pdf; name="paper.pdf"
Content-Transfer-Encoding: base64

JVBERi0=
--b--
`

func TestStripsByName(t *testing.T) {
	a := agenttest.Start(t, New, ``, agenttest.WithInfo(info()))
	s := a.From("192.0.2.1")
	s.Mail("a@x.example").To("r@y.example").WantContinue()
	out := s.Data(mixed).WantContinue().WantReason("stripped").WantCopy("attachment removed").
		WantHeaderAdded("X-Stripped", "Setup.EXE")
	message := out.Message()
	if strings.Contains(message, "TVqQ") || !strings.Contains(message, "JVBERi0=") || !strings.Contains(message, "preamble\r\n--b") {
		t.Errorf("message\n%s", message)
	}
	notice := base64.StdEncoding.EncodeToString([]byte(`The attachment "Setup.EXE" was removed.`))
	if !strings.Contains(message, notice) || strings.Count(message, "--b") != 4 {
		t.Errorf("message without notice, or with its boundaries broken\n%s", message)
	}
}

func TestLeavesOthersAlone(t *testing.T) {
	a := agenttest.Start(t, New, `names = ["*.dll"]`, agenttest.WithInfo(info()))
	out := a.From("192.0.2.1").Data(mixed).WantContinue()
	if len(out.Answer().GetEdits()) != 0 {
		t.Errorf("edits %v", out.Answer().GetEdits())
	}
}

func TestExcept(t *testing.T) {
	a := agenttest.Start(t, New, `except = ["security@y.example"]`, agenttest.WithInfo(info()))
	s := a.From("192.0.2.1")
	s.Mail("a@x.example").To("security@y.example").To("r@y.example").WantContinue()
	out := s.Data(mixed).WantContinue()
	for _, e := range out.Answer().GetEdits() {
		if len(e.GetRecipients()) != 1 || e.GetRecipients()[0] != 1 {
			t.Errorf("edit for %v, want only r@y.example", e.GetRecipients())
		}
	}
	s.Mail("a@x.example").To("security@y.example").WantContinue()
	if out := s.Data(mixed).WantContinue(); len(out.Answer().GetEdits()) != 0 {
		t.Errorf("all recipients are excepted, but %v", out.Answer())
	}
}

// The message is the attachment.
func TestWholeMessage(t *testing.T) {
	a := agenttest.Start(t, New, ``, agenttest.WithInfo(info()))
	message := a.From("192.0.2.1").Data("Subject: x\nContent-Type: text/javascript; name=evil.js\n\nalert(1)\n").
		WantContinue().WantHeaderAdded("Content-Type", "text/plain; charset=utf-8").Message()
	if strings.Contains(message, "alert") || strings.Contains(message, "javascript") {
		t.Errorf("message\n%s", message)
	}
}

func TestNestingIsUndetermined(t *testing.T) {
	a := agenttest.Start(t, New, ``, agenttest.WithInfo(info()))
	var deep strings.Builder
	deep.WriteString("Subject: x\n")
	for range 30 {
		deep.WriteString("Content-Type: message/rfc822\n\n")
	}
	a.From("192.0.2.1").Data(deep.String()).WantVerdict("undetermined")
}

func TestConfiguration(t *testing.T) {
	for config, want := range map[string]string{
		`names = ["*.exe", "["]`: `names[1]:`,
		`notice = "removed"`:     `notice: must name the attachment once`,
		`except = ["nobody"]`:    `except[0]: invalid address`,
	} {
		got := strings.Join(agenttest.Diagnostics(t, New, config), "\n")
		if !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %s", config, got, want)
		}
	}
}
