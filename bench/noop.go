package main

import (
	"context"

	"github.com/posternmail/postern/sdk"
)

// noop is the agent that is measured: it has a handler for every event of the seed's table, each answers
// "continue", and its configuration says which it takes. It is the counterpart of the no-op milter.
type noop struct{}

// noopConfig is what the `config` block of a noop holds.
type noopConfig struct {
	Events []string `hcl:"events" doc:"events to take"`
}

// serveNoop is this process as an agent. It does not return.
func serveNoop() {
	sdk.Main(sdk.Info{Name: "noop", Version: "1.0.0", Summary: "answers continue"}, newNoop)
}

func newNoop(cfg noopConfig, r *sdk.Registrar) (noop, error) {
	wanted := map[string]bool{}
	for _, name := range cfg.Events {
		wanted[name] = true
	}
	for kind := sdk.OnConnect; kind <= sdk.OnFeedback; kind++ {
		if !wanted[sdk.EventName(kind)] {
			r.Skip(kind)
		}
	}
	return noop{}, nil
}

func (noop) OnConnect(context.Context, *sdk.ConnectEvent) sdk.Verdict       { return sdk.Continue() }
func (noop) OnMail(context.Context, *sdk.MailEvent) sdk.Verdict             { return sdk.Continue() }
func (noop) OnRcpt(context.Context, *sdk.RcptEvent) sdk.Verdict             { return sdk.Continue() }
func (noop) OnEndOfHeaders(context.Context, *sdk.HeadersEvent) sdk.Verdict  { return sdk.Continue() }
func (noop) OnEndOfData(context.Context, *sdk.DataEvent) sdk.Verdict        { return sdk.Continue() }
func (noop) OnRset(context.Context, *sdk.RsetEvent) sdk.Verdict             { return sdk.Continue() }
func (noop) OnReject(context.Context, *sdk.RejectEvent) sdk.Verdict         { return sdk.Continue() }
func (noop) OnDisconnect(context.Context, *sdk.DisconnectEvent) sdk.Verdict { return sdk.Continue() }
func (noop) OnSubmitted(context.Context, *sdk.RoutingEvent) sdk.Verdict     { return sdk.Continue() }
func (noop) OnRouted(context.Context, *sdk.RoutingEvent) sdk.Verdict        { return sdk.Continue() }
