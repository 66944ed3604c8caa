package main

import (
	"context"

	"github.com/posternmail/postern/sdk"
)

// Each handler does what the rules say of its event.

// OnConnect follows the rules.
func (m *Mock) OnConnect(ctx context.Context, e *sdk.ConnectEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnHelo follows the rules.
func (m *Mock) OnHelo(ctx context.Context, e *sdk.HelloEvent) sdk.Verdict { return m.follow(ctx, e) }

// OnEhlo follows the rules.
func (m *Mock) OnEhlo(ctx context.Context, e *sdk.HelloEvent) sdk.Verdict { return m.follow(ctx, e) }

// OnStartTls follows the rules.
func (m *Mock) OnStartTls(ctx context.Context, e *sdk.StartTLSEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnAuth follows the rules.
func (m *Mock) OnAuth(ctx context.Context, e *sdk.AuthEvent) sdk.Verdict { return m.follow(ctx, e) }

// OnEndOfAuthentication follows the rules.
func (m *Mock) OnEndOfAuthentication(ctx context.Context, e *sdk.AuthEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnMail follows the rules.
func (m *Mock) OnMail(ctx context.Context, e *sdk.MailEvent) sdk.Verdict { return m.follow(ctx, e) }

// OnRcpt follows the rules.
func (m *Mock) OnRcpt(ctx context.Context, e *sdk.RcptEvent) sdk.Verdict { return m.follow(ctx, e) }

// OnData follows the rules.
func (m *Mock) OnData(ctx context.Context, e *sdk.DataCommandEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnEndOfHeaders follows the rules.
func (m *Mock) OnEndOfHeaders(ctx context.Context, e *sdk.HeadersEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnEndOfData follows the rules.
func (m *Mock) OnEndOfData(ctx context.Context, e *sdk.DataEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnNoop follows the rules.
func (m *Mock) OnNoop(ctx context.Context, e *sdk.TextEvent) sdk.Verdict { return m.follow(ctx, e) }

// OnHelp follows the rules.
func (m *Mock) OnHelp(ctx context.Context, e *sdk.TextEvent) sdk.Verdict { return m.follow(ctx, e) }

// OnRset follows the rules.
func (m *Mock) OnRset(ctx context.Context, e *sdk.RsetEvent) sdk.Verdict { return m.follow(ctx, e) }

// OnReject follows the rules.
func (m *Mock) OnReject(ctx context.Context, e *sdk.RejectEvent) sdk.Verdict { return m.follow(ctx, e) }

// OnDisconnect follows the rules.
func (m *Mock) OnDisconnect(ctx context.Context, e *sdk.DisconnectEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnSubmitted follows the rules.
func (m *Mock) OnSubmitted(ctx context.Context, e *sdk.RoutingEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnResolved follows the rules.
func (m *Mock) OnResolved(ctx context.Context, e *sdk.RoutingEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnRouted follows the rules.
func (m *Mock) OnRouted(ctx context.Context, e *sdk.RoutingEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnCategorized follows the rules.
func (m *Mock) OnCategorized(ctx context.Context, e *sdk.RoutingEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnDelivered follows the rules.
func (m *Mock) OnDelivered(ctx context.Context, e *sdk.DeliveryEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnDeferred follows the rules.
func (m *Mock) OnDeferred(ctx context.Context, e *sdk.DeliveryEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnFailed follows the rules.
func (m *Mock) OnFailed(ctx context.Context, e *sdk.DeliveryEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnReported follows the rules.
func (m *Mock) OnReported(ctx context.Context, e *sdk.DeliveryEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnSchedule follows the rules.
func (m *Mock) OnSchedule(ctx context.Context, e *sdk.ScheduleEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnReleased follows the rules.
func (m *Mock) OnReleased(ctx context.Context, e *sdk.ReleasedEvent) sdk.Verdict {
	return m.follow(ctx, e)
}

// OnFeedback follows the rules.
func (m *Mock) OnFeedback(ctx context.Context, e *sdk.ReleasedEvent) sdk.Verdict {
	return m.follow(ctx, e)
}
