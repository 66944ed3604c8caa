package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk/agenttest"
)

func TestSecondTry(t *testing.T) {
	a := agenttest.Start(t, New, `delay = "5m"`) // two processes, events alternate between them
	a.From("192.0.2.7").Rcpt("s@x.example", "r@y.example").Want(451, "4.7.1").WantReason("first").WantCount("deferred", 1)
	a.From("192.0.2.8").Rcpt("s@x.example", "r@y.example").Want(451, "4.7.1").WantReason("early")
	a.Advance(6 * time.Minute)
	a.From("192.0.2.99").Rcpt("s@x.example", "r@y.example").WantContinue().WantReason("passed")
	rows := a.Rows("greylist")
	if len(rows) != 1 || rows[0].Value != `{"Passed":1}` {
		t.Errorf("rows %v", rows)
	}
}

func TestOthersAreStrangers(t *testing.T) {
	a := agenttest.Start(t, New, ``, agenttest.KillBetween())
	a.From("192.0.2.7").Rcpt("s@x.example", "r@y.example").Want(451, "")
	a.Advance(6 * time.Minute)
	a.From("198.51.100.7").Rcpt("s@x.example", "r@y.example").WantReason("first")
	a.From("192.0.2.7").Rcpt("t@x.example", "r@y.example").WantReason("first")
	a.From("192.0.2.7").Rcpt("s@x.example", "q@y.example").WantReason("first")
	a.From("192.0.2.7").Rcpt("s@x.example", "r@y.example").WantContinue()
}

func TestRetryAfterTheWindow(t *testing.T) {
	a := agenttest.Start(t, New, `window = "1h"`)
	a.From("192.0.2.7").Rcpt("s@x.example", "r@y.example").WantReason("first")
	a.Advance(61 * time.Minute)
	a.From("192.0.2.7").Rcpt("s@x.example", "r@y.example").WantReason("first")
}

func TestExempt(t *testing.T) {
	a := agenttest.Start(t, New, `exempt = ["192.0.2.0/24", "2001:db8::/32"]`)
	a.From("192.0.2.7").Rcpt("s@x.example", "r@y.example").WantContinue()
	a.From("2001:db8::1").Rcpt("s@x.example", "r@y.example").WantContinue()
	a.From("203.0.113.1").Rcpt("", "r@y.example").WantContinue() // a notification
	a.From("203.0.113.1").Rcpt("s@x.example", "r@y.example").Want(451, "4.7.1")
}

func TestConfiguration(t *testing.T) {
	for config, want := range map[string]string{
		``:                                `[]`,
		`window = "5m"`:                   `window: must be longer than delay`,
		`delay = "1s"`:                    `delay: 1s is less than 10s`,
		`exempt = ["192.0.2.0/24", "x"]`:  `exempt[1]: "x" is no network`,
		"delay = \"5m\"\nwindow = \"1d\"": `[]`,
	} {
		got := agenttest.Diagnostics(t, New, config)
		if want == "[]" && len(got) > 0 || want != "[]" && !slices.ContainsFunc(got, func(d string) bool { return strings.Contains(d, want) }) {
			t.Errorf("%s: %q, want %s", config, got, want)
		}
	}
}
