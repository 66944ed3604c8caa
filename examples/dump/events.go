package main

import (
	"context"

	"github.com/posternmail/postern/sdk"
)

// One handler for each event there is. An agent of your own has only those that it wants.

// OnConnect writes the event.
func (d *Dump) OnConnect(_ context.Context, e *sdk.ConnectEvent) sdk.Verdict { return d.write(e) }

// OnHelo writes the event.
func (d *Dump) OnHelo(_ context.Context, e *sdk.HelloEvent) sdk.Verdict { return d.write(e) }

// OnEhlo writes the event.
func (d *Dump) OnEhlo(_ context.Context, e *sdk.HelloEvent) sdk.Verdict { return d.write(e) }

// OnStartTls writes the event.
func (d *Dump) OnStartTls(_ context.Context, e *sdk.StartTLSEvent) sdk.Verdict { return d.write(e) }

// OnAuth writes the event.
func (d *Dump) OnAuth(_ context.Context, e *sdk.AuthEvent) sdk.Verdict { return d.write(e) }

// OnEndOfAuthentication writes the event.
func (d *Dump) OnEndOfAuthentication(_ context.Context, e *sdk.AuthEvent) sdk.Verdict {
	return d.write(e)
}

// OnMail writes the event.
func (d *Dump) OnMail(_ context.Context, e *sdk.MailEvent) sdk.Verdict { return d.write(e) }

// OnRcpt writes the event.
func (d *Dump) OnRcpt(_ context.Context, e *sdk.RcptEvent) sdk.Verdict { return d.write(e) }

// OnData writes the event.
func (d *Dump) OnData(_ context.Context, e *sdk.DataCommandEvent) sdk.Verdict { return d.write(e) }

// OnEndOfHeaders writes the event.
func (d *Dump) OnEndOfHeaders(_ context.Context, e *sdk.HeadersEvent) sdk.Verdict { return d.write(e) }

// OnEndOfData writes the event.
func (d *Dump) OnEndOfData(_ context.Context, e *sdk.DataEvent) sdk.Verdict { return d.write(e) }

// OnNoop writes the event.
func (d *Dump) OnNoop(_ context.Context, e *sdk.TextEvent) sdk.Verdict { return d.write(e) }

// OnHelp writes the event.
func (d *Dump) OnHelp(_ context.Context, e *sdk.TextEvent) sdk.Verdict { return d.write(e) }

// OnRset writes the event.
func (d *Dump) OnRset(_ context.Context, e *sdk.RsetEvent) sdk.Verdict { return d.write(e) }

// OnReject writes the event.
func (d *Dump) OnReject(_ context.Context, e *sdk.RejectEvent) sdk.Verdict { return d.write(e) }

// OnDisconnect writes the event.
func (d *Dump) OnDisconnect(_ context.Context, e *sdk.DisconnectEvent) sdk.Verdict { return d.write(e) }

// OnSubmitted writes the event.
func (d *Dump) OnSubmitted(_ context.Context, e *sdk.RoutingEvent) sdk.Verdict { return d.write(e) }

// OnResolved writes the event.
func (d *Dump) OnResolved(_ context.Context, e *sdk.RoutingEvent) sdk.Verdict { return d.write(e) }

// OnRouted writes the event.
func (d *Dump) OnRouted(_ context.Context, e *sdk.RoutingEvent) sdk.Verdict { return d.write(e) }

// OnCategorized writes the event.
func (d *Dump) OnCategorized(_ context.Context, e *sdk.RoutingEvent) sdk.Verdict { return d.write(e) }

// OnDelivered writes the event.
func (d *Dump) OnDelivered(_ context.Context, e *sdk.DeliveryEvent) sdk.Verdict { return d.write(e) }

// OnDeferred writes the event.
func (d *Dump) OnDeferred(_ context.Context, e *sdk.DeliveryEvent) sdk.Verdict { return d.write(e) }

// OnFailed writes the event.
func (d *Dump) OnFailed(_ context.Context, e *sdk.DeliveryEvent) sdk.Verdict { return d.write(e) }

// OnReported writes the event.
func (d *Dump) OnReported(_ context.Context, e *sdk.DeliveryEvent) sdk.Verdict { return d.write(e) }

// OnSchedule writes the event.
func (d *Dump) OnSchedule(_ context.Context, e *sdk.ScheduleEvent) sdk.Verdict { return d.write(e) }

// OnReleased writes the event.
func (d *Dump) OnReleased(_ context.Context, e *sdk.ReleasedEvent) sdk.Verdict { return d.write(e) }

// OnFeedback writes the event.
func (d *Dump) OnFeedback(_ context.Context, e *sdk.ReleasedEvent) sdk.Verdict { return d.write(e) }
