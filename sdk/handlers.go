package sdk

import (
	"context"

	"github.com/posternmail/postern/sdk/agentpb"
)

// EventKind names an event.
type EventKind = agentpb.EventKind

// Kinds of events, named as their handlers.
const (
	OnConnect             = agentpb.EventKind_EVENT_KIND_CONNECT
	OnHelo                = agentpb.EventKind_EVENT_KIND_HELO
	OnEhlo                = agentpb.EventKind_EVENT_KIND_EHLO
	OnStartTls            = agentpb.EventKind_EVENT_KIND_START_TLS
	OnAuth                = agentpb.EventKind_EVENT_KIND_AUTH
	OnEndOfAuthentication = agentpb.EventKind_EVENT_KIND_END_OF_AUTHENTICATION
	OnMail                = agentpb.EventKind_EVENT_KIND_MAIL
	OnRcpt                = agentpb.EventKind_EVENT_KIND_RCPT
	OnData                = agentpb.EventKind_EVENT_KIND_DATA
	OnEndOfHeaders        = agentpb.EventKind_EVENT_KIND_END_OF_HEADERS
	OnEndOfData           = agentpb.EventKind_EVENT_KIND_END_OF_DATA
	OnNoop                = agentpb.EventKind_EVENT_KIND_NOOP
	OnHelp                = agentpb.EventKind_EVENT_KIND_HELP
	OnRset                = agentpb.EventKind_EVENT_KIND_RSET
	OnReject              = agentpb.EventKind_EVENT_KIND_REJECT
	OnDisconnect          = agentpb.EventKind_EVENT_KIND_DISCONNECT
	OnSubmitted           = agentpb.EventKind_EVENT_KIND_SUBMITTED
	OnResolved            = agentpb.EventKind_EVENT_KIND_RESOLVED
	OnRouted              = agentpb.EventKind_EVENT_KIND_ROUTED
	OnCategorized         = agentpb.EventKind_EVENT_KIND_CATEGORIZED
	OnDelivered           = agentpb.EventKind_EVENT_KIND_DELIVERED
	OnDeferred            = agentpb.EventKind_EVENT_KIND_DEFERRED
	OnFailed              = agentpb.EventKind_EVENT_KIND_FAILED
	OnReported            = agentpb.EventKind_EVENT_KIND_REPORTED
	OnSchedule            = agentpb.EventKind_EVENT_KIND_SCHEDULE
	OnReleased            = agentpb.EventKind_EVENT_KIND_RELEASED
	OnFeedback            = agentpb.EventKind_EVENT_KIND_FEEDBACK
)

// The handlers. An agent has those of the events it wants; the host never sends others.
type (
	// ConnectHandler is called when a client has connected; nothing has been sent to it.
	ConnectHandler interface {
		OnConnect(context.Context, *ConnectEvent) Verdict
	}
	// HeloHandler is called at HELO.
	HeloHandler interface {
		OnHelo(context.Context, *HelloEvent) Verdict
	}
	// EhloHandler is called at EHLO.
	EhloHandler interface {
		OnEhlo(context.Context, *HelloEvent) Verdict
	}
	// StartTlsHandler is called at STARTTLS, before its 220.
	StartTlsHandler interface {
		OnStartTls(context.Context, *StartTLSEvent) Verdict
	}
	// AuthHandler is called at AUTH, before any credential is asked for.
	AuthHandler interface {
		OnAuth(context.Context, *AuthEvent) Verdict
	}
	// EndOfAuthenticationHandler is called when credentials were judged, before the reply.
	EndOfAuthenticationHandler interface {
		OnEndOfAuthentication(context.Context, *AuthEvent) Verdict
	}
	// MailHandler is called at MAIL FROM.
	MailHandler interface {
		OnMail(context.Context, *MailEvent) Verdict
	}
	// RcptHandler is called at each RCPT TO.
	RcptHandler interface {
		OnRcpt(context.Context, *RcptEvent) Verdict
	}
	// DataHandler is called at DATA before 354, or the first BDAT.
	DataHandler interface {
		OnData(context.Context, *DataCommandEvent) Verdict
	}
	// EndOfHeadersHandler is called when the header block is complete, the body is still coming.
	EndOfHeadersHandler interface {
		OnEndOfHeaders(context.Context, *HeadersEvent) Verdict
	}
	// EndOfDataHandler is called when the message is complete, the reply is not written.
	EndOfDataHandler interface {
		OnEndOfData(context.Context, *DataEvent) Verdict
	}
	// NoopHandler is called at NOOP.
	NoopHandler interface {
		OnNoop(context.Context, *TextEvent) Verdict
	}
	// HelpHandler is called at HELP.
	HelpHandler interface {
		OnHelp(context.Context, *TextEvent) Verdict
	}
	// RsetHandler is called at RSET.
	RsetHandler interface {
		OnRset(context.Context, *RsetEvent) Verdict
	}
	// RejectHandler is called when something was refused, by whomever. A fact.
	RejectHandler interface {
		OnReject(context.Context, *RejectEvent) Verdict
	}
	// DisconnectHandler is called when the session is over. A fact.
	DisconnectHandler interface {
		OnDisconnect(context.Context, *DisconnectEvent) Verdict
	}
	// SubmittedHandler is called when an accepted message enters the categorizer.
	SubmittedHandler interface {
		OnSubmitted(context.Context, *RoutingEvent) Verdict
	}
	// ResolvedHandler is called when recipients are resolved and expanded, next hops are not chosen.
	ResolvedHandler interface {
		OnResolved(context.Context, *RoutingEvent) Verdict
	}
	// RoutedHandler is called when every recipient has a next hop.
	RoutedHandler interface {
		OnRouted(context.Context, *RoutingEvent) Verdict
	}
	// CategorizedHandler is called when this copy is about to enter its delivery queue.
	CategorizedHandler interface {
		OnCategorized(context.Context, *RoutingEvent) Verdict
	}
	// DeliveredHandler is called when a next hop took recipients. A fact.
	DeliveredHandler interface {
		OnDelivered(context.Context, *DeliveryEvent) Verdict
	}
	// DeferredHandler is called when a delivery failed for now. A fact.
	DeferredHandler interface {
		OnDeferred(context.Context, *DeliveryEvent) Verdict
	}
	// FailedHandler is called when recipients failed for good. A fact.
	FailedHandler interface {
		OnFailed(context.Context, *DeliveryEvent) Verdict
	}
	// ReportedHandler is called when a delivery status notification was made. A fact.
	ReportedHandler interface {
		OnReported(context.Context, *DeliveryEvent) Verdict
	}
	// ScheduleHandler is called when the interval asked for with Every has passed.
	ScheduleHandler interface {
		OnSchedule(context.Context, *ScheduleEvent) Verdict
	}
	// ReleasedHandler is called when an operator released a message from quarantine.
	ReleasedHandler interface {
		OnReleased(context.Context, *ReleasedEvent) Verdict
	}
	// FeedbackHandler is called when an operator or user says a message was judged wrongly.
	FeedbackHandler interface {
		OnFeedback(context.Context, *ReleasedEvent) Verdict
	}
)

// handler calls the agent for one event.
type handler func(*eventContext) Verdict

// kinds is one more than the highest EventKind.
const kinds = int(OnFeedback) + 1

// handlers of an agent by kind.
type handlers [kinds]handler

func (h *handlers) of(kind EventKind) handler {
	if kind < 0 || int(kind) >= kinds {
		return nil
	}
	return h[kind]
}

// eventNames by kind.
var eventNames = [kinds]string{
	OnConnect:             "OnConnect",
	OnHelo:                "OnHelo",
	OnEhlo:                "OnEhlo",
	OnStartTls:            "OnStartTls",
	OnAuth:                "OnAuth",
	OnEndOfAuthentication: "OnEndOfAuthentication",
	OnMail:                "OnMail",
	OnRcpt:                "OnRcpt",
	OnData:                "OnData",
	OnEndOfHeaders:        "OnEndOfHeaders",
	OnEndOfData:           "OnEndOfData",
	OnNoop:                "OnNoop",
	OnHelp:                "OnHelp",
	OnRset:                "OnRset",
	OnReject:              "OnReject",
	OnDisconnect:          "OnDisconnect",
	OnSubmitted:           "OnSubmitted",
	OnResolved:            "OnResolved",
	OnRouted:              "OnRouted",
	OnCategorized:         "OnCategorized",
	OnDelivered:           "OnDelivered",
	OnDeferred:            "OnDeferred",
	OnFailed:              "OnFailed",
	OnReported:            "OnReported",
	OnSchedule:            "OnSchedule",
	OnReleased:            "OnReleased",
	OnFeedback:            "OnFeedback",
}

// EventName of a kind: "OnRcpt".
func EventName(kind EventKind) string {
	if kind <= 0 || int(kind) >= kinds {
		return "unknown event"
	}
	return eventNames[kind]
}

// findHandlers looks which handlers the agent has.
func findHandlers(agent any) handlers {
	var t handlers
	if h, ok := agent.(ConnectHandler); ok {
		t[OnConnect] = func(c *eventContext) Verdict { return h.OnConnect(c, newConnectEvent(c)) }
	}
	if h, ok := agent.(HeloHandler); ok {
		t[OnHelo] = func(c *eventContext) Verdict { return h.OnHelo(c, newHelloEvent(c)) }
	}
	if h, ok := agent.(EhloHandler); ok {
		t[OnEhlo] = func(c *eventContext) Verdict { return h.OnEhlo(c, newHelloEvent(c)) }
	}
	if h, ok := agent.(StartTlsHandler); ok {
		t[OnStartTls] = func(c *eventContext) Verdict { return h.OnStartTls(c, newStartTLSEvent(c)) }
	}
	if h, ok := agent.(AuthHandler); ok {
		t[OnAuth] = func(c *eventContext) Verdict { return h.OnAuth(c, newAuthEvent(c)) }
	}
	if h, ok := agent.(EndOfAuthenticationHandler); ok {
		t[OnEndOfAuthentication] = func(c *eventContext) Verdict { return h.OnEndOfAuthentication(c, newAuthEvent(c)) }
	}
	if h, ok := agent.(MailHandler); ok {
		t[OnMail] = func(c *eventContext) Verdict { return h.OnMail(c, newMailEvent(c)) }
	}
	if h, ok := agent.(RcptHandler); ok {
		t[OnRcpt] = func(c *eventContext) Verdict { return h.OnRcpt(c, newRcptEvent(c)) }
	}
	if h, ok := agent.(DataHandler); ok {
		t[OnData] = func(c *eventContext) Verdict { return h.OnData(c, newDataCommandEvent(c)) }
	}
	if h, ok := agent.(EndOfHeadersHandler); ok {
		t[OnEndOfHeaders] = func(c *eventContext) Verdict { return h.OnEndOfHeaders(c, newHeadersEvent(c)) }
	}
	if h, ok := agent.(EndOfDataHandler); ok {
		t[OnEndOfData] = func(c *eventContext) Verdict { return h.OnEndOfData(c, newDataEvent(c)) }
	}
	if h, ok := agent.(NoopHandler); ok {
		t[OnNoop] = func(c *eventContext) Verdict { return h.OnNoop(c, newTextEvent(c)) }
	}
	if h, ok := agent.(HelpHandler); ok {
		t[OnHelp] = func(c *eventContext) Verdict { return h.OnHelp(c, newTextEvent(c)) }
	}
	if h, ok := agent.(RsetHandler); ok {
		t[OnRset] = func(c *eventContext) Verdict { return h.OnRset(c, newRsetEvent(c)) }
	}
	if h, ok := agent.(RejectHandler); ok {
		t[OnReject] = func(c *eventContext) Verdict { return h.OnReject(c, newRejectEvent(c)) }
	}
	if h, ok := agent.(DisconnectHandler); ok {
		t[OnDisconnect] = func(c *eventContext) Verdict { return h.OnDisconnect(c, newDisconnectEvent(c)) }
	}
	if h, ok := agent.(SubmittedHandler); ok {
		t[OnSubmitted] = func(c *eventContext) Verdict { return h.OnSubmitted(c, newRoutingEvent(c)) }
	}
	if h, ok := agent.(ResolvedHandler); ok {
		t[OnResolved] = func(c *eventContext) Verdict { return h.OnResolved(c, newRoutingEvent(c)) }
	}
	if h, ok := agent.(RoutedHandler); ok {
		t[OnRouted] = func(c *eventContext) Verdict { return h.OnRouted(c, newRoutingEvent(c)) }
	}
	if h, ok := agent.(CategorizedHandler); ok {
		t[OnCategorized] = func(c *eventContext) Verdict { return h.OnCategorized(c, newRoutingEvent(c)) }
	}
	if h, ok := agent.(DeliveredHandler); ok {
		t[OnDelivered] = func(c *eventContext) Verdict { return h.OnDelivered(c, newDeliveryEvent(c)) }
	}
	if h, ok := agent.(DeferredHandler); ok {
		t[OnDeferred] = func(c *eventContext) Verdict { return h.OnDeferred(c, newDeliveryEvent(c)) }
	}
	if h, ok := agent.(FailedHandler); ok {
		t[OnFailed] = func(c *eventContext) Verdict { return h.OnFailed(c, newDeliveryEvent(c)) }
	}
	if h, ok := agent.(ReportedHandler); ok {
		t[OnReported] = func(c *eventContext) Verdict { return h.OnReported(c, newDeliveryEvent(c)) }
	}
	if h, ok := agent.(ScheduleHandler); ok {
		t[OnSchedule] = func(c *eventContext) Verdict { return h.OnSchedule(c, newScheduleEvent(c)) }
	}
	if h, ok := agent.(ReleasedHandler); ok {
		t[OnReleased] = func(c *eventContext) Verdict { return h.OnReleased(c, newReleasedEvent(c)) }
	}
	if h, ok := agent.(FeedbackHandler); ok {
		t[OnFeedback] = func(c *eventContext) Verdict { return h.OnFeedback(c, newReleasedEvent(c)) }
	}
	return t
}
