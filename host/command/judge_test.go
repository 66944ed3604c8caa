package command

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
)

// judgeConfig is the config block of the agent of these tests.
type judgeConfig struct {
	Unwanted string `hcl:"unwanted,optional" default:"spam" doc:"word in subjects that are refused"`
}

// seenRow is the row of a sender and recipient.
type seenRow struct{ Times int64 }

// judge refuses and quarantines by the subject and remembers who has written to whom.
type judge struct {
	judgeConfig
	seen sdk.Table[seenRow]
}

func newJudge(cfg judgeConfig, r *sdk.Registrar) (*judge, error) {
	r.OnEndOfData(sdk.MayChange(sdk.Verdicts, sdk.Headers), sdk.MayKeepCopy)
	return &judge{cfg, sdk.UseTable[seenRow](r, "seen", sdk.Key(sdk.Sender, sdk.Recipient))}, nil
}

// OnRcpt refuses nobody.
func (j *judge) OnRcpt(_ context.Context, e *sdk.RcptEvent) sdk.Verdict {
	if e.Recipient.Local == "nobody" {
		return sdk.Reject(550, "5.1.1", "No such user").Because("unknown", "")
	}
	if _, known := j.seen.Row(e); known {
		return sdk.Continue().Because("seen", "before")
	}
	return sdk.Continue().Write(j.seen.PutIfAbsent(seenRow{Times: 1}, time.Hour))
}

// OnEndOfData judges the subject.
func (j *judge) OnEndOfData(_ context.Context, e *sdk.DataEvent) sdk.Verdict {
	switch {
	case strings.Contains(e.Message.Subject, j.Unwanted):
		return sdk.Reject(550, "5.7.1", "Not wanted here").Because("unwanted", j.Unwanted)
	case strings.Contains(e.Message.Subject, "odd"):
		return sdk.Quarantine().Because("odd", "")
	}
	if strings.Contains(e.Message.Subject, "interesting") {
		return sdk.Continue().KeepCopy("interesting")
	}
	return sdk.Continue().Edit(sdk.AddHeader("X-Judge", "fine"))
}

func train(_ context.Context, c *sdk.Invocation) error {
	var cfg judgeConfig
	if err := c.Config(&cfg); err != nil {
		return err
	}
	if len(c.Args) == 0 {
		return fmt.Errorf("nothing to train with")
	}
	_, err := fmt.Fprintf(c.Out, "trained with %s against %s\n", strings.Join(c.Args, " "), cfg.Unwanted)
	return err
}
