package agenttest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agenttest"
)

// badVariable makes TestBadAgents run the agent of that name, which must fail it.
const badVariable = "AGENTTEST_BAD"

// bad breaks a rule, the one that its configuration names.
type bad struct {
	how  string
	seen int
}

type badConfig struct {
	How string `hcl:"how"`
}

func newBad(cfg badConfig, r *sdk.Registrar) (*bad, error) {
	if cfg.How == "remembers rows" {
		sdk.UseTable[struct{}](r, "t", sdk.Key(sdk.Sender))
	}
	r.OnMail(sdk.MayChange(sdk.Verdicts))
	return &bad{how: cfg.How}, nil
}

// OnMail breaks the rule.
func (b *bad) OnMail(context.Context, *sdk.MailEvent) sdk.Verdict {
	b.seen++
	sender := address.Mailbox{Local: "a", Domain: "x.example"}
	switch b.how {
	case "remembers":
		return sdk.Continue().Because("seen", fmt.Sprint(b.seen))
	case "undeclared stamp":
		return sdk.Continue().Stamp("a", "1")
	case "undeclared edit":
		return sdk.Continue().Edit(sdk.RewriteSender(sender))
	case "undeclared header":
		return sdk.Continue().Edit(sdk.AddHeader("X", "y"))
	case "undeclared copy":
		return sdk.Continue().KeepCopy("x")
	case "undeclared spawn":
		return sdk.Continue().Spawn(sdk.Spawn{Recipients: []address.Mailbox{sender}})
	case "undeclared bypass":
		return sdk.Bypass(sdk.Antispam, sdk.InSession)
	case "wrong class":
		return sdk.Reject(450, "4.7.1", "no")
	case "wrong enhanced":
		return sdk.Reject(550, "4.7.1", "no")
	case "two lines":
		return sdk.Reject(550, "5.7.1", "one\r\ntwo")
	case "unseen fault":
		return sdk.Fault(errors.New("broken"))
	case "wants other":
		return sdk.Continue()
	case "dies":
		os.Exit(9)
	}
	return sdk.Continue()
}

func TestBadAgents(t *testing.T) {
	if how := os.Getenv(badVariable); how != "" {
		a := agenttest.Start(t, newBad, fmt.Sprintf("how = %q", how), agenttest.WithEnv(badVariable+"="+how))
		s := a.From("192.0.2.1")
		s.Mail("a@x.example")
		out := s.Mail("a@x.example")
		if how == "wants other" {
			out.Want(550, "")
		}
		return
	}
	for how, want := range map[string]string{
		"remembers":         "remembers something between events",
		"undeclared stamp":  `sdk.Stamps("a")`,
		"undeclared edit":   "sdk.MayChange(sdk.Addresses)",
		"undeclared header": "sdk.MayChange(sdk.Headers)",
		"undeclared copy":   "sdk.MayKeepCopy",
		"undeclared spawn":  "sdk.MaySpawn",
		"undeclared bypass": "sdk.MayBypass",
		"wrong class":       "code 450 of a reject",
		"wrong enhanced":    "enhanced code 4.7.1 does not fit code 550",
		"two lines":         "not one line",
		"unseen fault":      "the handler failed: broken",
		"wants other":       "want a refusal with 550",
		"dies":              "the agent's process ended in the middle of an event",
	} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestBadAgents$")
		cmd.Env = append(os.Environ(), badVariable+"="+how)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, want %q in\n%s", how, err, want, out)
		}
	}
}

// tally counts the messages of a sender in a table, and notes at MAIL what it says at RCPT.
type tally struct {
	rows sdk.Table[tallyRow]
}

type tallyRow struct{ Messages int64 }

func newTally(_ struct{}, r *sdk.Registrar) (*tally, error) {
	r.OnMail(sdk.MayChange(sdk.Stamps("note")))
	r.OnRcpt(sdk.ReadsOwnStamps("note"), sdk.ReadsStamps("other.*"))
	r.OnSchedule(sdk.Every(time.Hour))
	return &tally{sdk.UseTable[tallyRow](r, "tally", sdk.Key(sdk.SenderDomain))}, nil
}

// OnMail counts.
func (a *tally) OnMail(_ context.Context, e *sdk.MailEvent) sdk.Verdict {
	row, _ := a.rows.Row(e)
	return sdk.Continue().Stamp("note", fmt.Sprint(row.Value.Messages)).Write(a.rows.Add("Messages", 1, time.Hour))
}

// OnRcpt says what it knows.
func (a *tally) OnRcpt(_ context.Context, e *sdk.RcptEvent) sdk.Verdict {
	return sdk.Reject(550, "5.7.1", "no").Because(e.OwnStamp("note"), e.Stamp("other.x"))
}

// OnSchedule forgets everything.
func (a *tally) OnSchedule(_ context.Context, e *sdk.ScheduleEvent) sdk.Verdict {
	v := sdk.Continue()
	for row := range a.rows.Rows(e) {
		v = v.Write(a.rows.Delete().At(row.Key))
	}
	return v
}

// Stamps and rows go from one process to the other, also past a crash between any two events.
func TestStampsAndRows(t *testing.T) {
	a := agenttest.Start(t, newTally, ``, agenttest.KillBetween())
	for i := range 3 {
		s := a.From("192.0.2.1")
		s.Mail("a@X.example").WantStamp("note", fmt.Sprint(i))
		s.Stamped("other.x", "seen").To("r@y.example").Want(550, "5.7.1").WantReason(fmt.Sprint(i))
	}
	rows := a.Rows("tally")
	if len(rows) != 1 || rows[0].Key != "x.example" || rows[0].Value != `{"Messages":3}` || !rows[0].Expires.Equal(a.Now().Add(time.Hour)) {
		t.Errorf("rows %v", rows)
	}
	a.Schedule().WantContinue()
	if rows := a.Rows("tally"); len(rows) != 0 {
		t.Errorf("rows %v after the schedule", rows)
	}
	a.PutRow("tally", "x.example", `{"Messages":7}`, 0)
	a.From("192.0.2.1").Mail("b@x.example").WantStamp("note", "7")
	a.Advance(2 * time.Hour) // the write at MAIL gave the row an hour
	a.From("192.0.2.1").Mail("b@x.example").WantStamp("note", "0")
}
