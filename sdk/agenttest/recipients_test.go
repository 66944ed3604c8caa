package agenttest_test

import (
	"context"
	"testing"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agenttest"
)

// parting says different things of different recipients.
type parting struct{}

type partingConfig struct {
	Late     bool `hcl:"late,optional" doc:"asks for the body too"`
	Original bool `hcl:"original,optional" doc:"sees the message as it was received"`
}

func newParting(cfg partingConfig, r *sdk.Registrar) (any, error) {
	r.OnEndOfHeaders(sdk.ReadsHeaders("Subject", "X-Mark"), sdk.MayChange(sdk.Verdicts, sdk.Headers))
	if !cfg.Late {
		return &parting{}, nil
	}
	view := sdk.Current
	if cfg.Original {
		view = sdk.Original
	}
	r.OnEndOfData(sdk.Body(sdk.Whole, view), sdk.ReadsHeaders("Subject", "X-Mark"), sdk.MayChange(sdk.Verdicts, sdk.Headers))
	return &late{}, nil
}

// OnEndOfHeaders refuses nobody@ and marks the message of a@.
func (*parting) OnEndOfHeaders(_ context.Context, e *sdk.HeadersEvent) sdk.Verdict {
	var parts []sdk.Verdict
	for _, r := range e.Recipients {
		v := sdk.Continue()
		switch r.Local {
		case "nobody":
			v = sdk.Reject(550, "5.1.1", "no")
		case "a":
			v = v.Edit(sdk.AddHeader("X-Mark", "early"))
		}
		parts = append(parts, v.ForRecipients(r))
	}
	return sdk.PerRecipient(parts...)
}

type late struct{ parting }

// OnEndOfData tells a@ what it sees, and removes the subject for b@.
func (*late) OnEndOfData(_ context.Context, e *sdk.DataEvent) sdk.Verdict {
	var parts []sdk.Verdict
	for _, r := range e.Recipients {
		v := sdk.Continue()
		switch r.Local {
		case "a":
			v = v.Edit(sdk.AddHeader("X-Seen", "mark "+e.Headers.Get("X-Mark")))
		case "b":
			v = v.Edit(sdk.RemoveHeader("Subject"))
		}
		parts = append(parts, v.ForRecipients(r))
	}
	return sdk.PerRecipient(parts...)
}

const parted = "From: x@x.example\nSubject: hello\n\nbody\n"

// What is said of one recipient at the end of the headers is in the outcome of Data, whatever comes behind.
func TestVerdictsOnRecipientsAtEndOfHeaders(t *testing.T) {
	for _, config := range []string{``, `late = true`} {
		a := agenttest.Start(t, newParting, config)
		s := a.From("192.0.2.1")
		s.Mail("x@x.example").To("a@y.example").To("nobody@y.example")
		s.Data(parted).WantFor("nobody@y.example", 550, "5.1.1").WantVerdictFor("a@y.example", "continue")
	}
}

// Each recipient has its own edits.
func TestMessageFor(t *testing.T) {
	for config, seen := range map[string]string{`late = true`: "early", "late = true\noriginal = true": ""} {
		a := agenttest.Start(t, newParting, config)
		s := a.From("192.0.2.1")
		s.Mail("x@x.example").To("a@y.example").To("b@y.example")
		out := s.Data(parted)
		for recipient, want := range map[string]string{
			"a@y.example": "X-Seen: mark " + seen + "\r\nX-Mark: early\r\nFrom: x@x.example\r\nSubject: hello\r\n\r\nbody\r\n",
			"b@y.example": "From: x@x.example\r\n\r\nbody\r\n",
		} {
			if got := out.MessageFor(recipient); got != want {
				t.Errorf("%s: %s gets\n%s\nwant\n%s", config, recipient, got, want)
			}
		}
	}
}
