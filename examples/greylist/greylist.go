package main

import (
	"context"
	"fmt"
	"time"

	"github.com/posternmail/postern/sdk"
)

// Triple is the row of a (network, sender, recipient). Created and Expires come with every row.
type Triple struct{ Passed int64 }

// Greylist defers strangers.
type Greylist struct {
	Config
	seen sdk.Table[Triple]
}

// New is called for every new configuration; its value never changes afterwards.
func New(cfg Config, r *sdk.Registrar) (*Greylist, error) {
	if cfg.Window <= cfg.Delay {
		return nil, r.At("window").Errorf("must be longer than delay (%s), or nobody ever passes", cfg.Delay)
	}
	key := sdk.Key(sdk.ClientNet(24, 64), sdk.Sender, sdk.Recipient)
	return &Greylist{cfg, sdk.UseTable[Triple](r, "greylist", key)}, nil
}

// OnRcpt defers a triple until its delay has passed.
func (g *Greylist) OnRcpt(ctx context.Context, e *sdk.RcptEvent) sdk.Verdict {
	if e.Sender.IsNull() || e.Session.Client.In(g.Exempt) {
		return sdk.Continue()
	}
	row, known := g.seen.Row(e)
	age := e.Time.Sub(row.Created)
	switch {
	case !known:
		return wait("first", g.Delay).Write(g.seen.PutIfAbsent(Triple{}, g.Window))
	case age < g.Delay:
		return wait("early", g.Delay-age)
	}
	return sdk.Continue().Because("passed", age.Round(time.Second).String()).Write(g.seen.Add("Passed", 1, g.Keep))
}

func wait(reason string, left time.Duration) sdk.Verdict {
	text := fmt.Sprintf("Greylisted, please try again in %s", left.Round(time.Second))
	return sdk.Defer(451, "4.7.1", text).Because(reason, left.String()).Count("deferred", 1)
}
