package command

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"

	"github.com/posternmail/postern/host/internal/admin"
)

func verifyCommand(a *app) *command {
	var r admin.VerifyRequest
	return &command{
		name: "verify", short: "Send a marked message through the running host and report each step.", json: true, host: true,
		long: "The message goes over SMTP to a listener of the host and is really delivered. The steps come from the ledger.",
		flags: func(f *flag.FlagSet) {
			f.StringVar(&r.To, "to", "", "recipient `ADDRESS`; required")
			f.StringVar(&r.From, "from", "", "sender `ADDRESS`; default: the postmaster of the host")
			f.StringVar(&r.Subject, "subject", "", "`TEXT` of the subject, to see what the agents make of it")
			f.StringVar(&r.Connector, "connector", "", "receive connector `NAME`; default: the first for anonymous clients")
			f.StringVar(&r.Wait, "wait", "30s", "how long to wait for the delivery, a `TIME`")
		},
		run: func(ctx context.Context, _ []string) error {
			if r.To == "" {
				return &misuse{text: "--to is missing"}
			}
			return a.verify(ctx, r)
		},
	}
}

func (a *app) verify(ctx context.Context, r admin.VerifyRequest) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ok := false
	err = c.Lines(ctx, http.MethodPost, "/v1/verify", nil, r, func(line []byte) error {
		var step admin.VerifyStep
		if err := json.Unmarshal(line, &step); err != nil {
			return fmt.Errorf("reading the answer of the host: %w", err)
		}
		ok = step.Step == "done" && step.OK
		if a.json {
			a.printf("%s\n", line)
			return nil
		}
		a.printStep(step)
		return nil
	})
	if err != nil {
		return a.explained(err)
	}
	if !ok {
		return errSilent
	}
	return nil
}

func (a *app) printStep(s admin.VerifyStep) {
	mark := a.paint(green, "ok  ")
	if !s.OK {
		mark = a.paint(red, "FAIL")
	}
	if s.Step == "mx" && !s.OK {
		mark = a.paint(yellow, "note") // mail may well come here without an MX record
	}
	a.printf("%s  %6dms  %-14s %s\n", mark, s.Millis, printable(s.Step), printable(s.Text))
}
