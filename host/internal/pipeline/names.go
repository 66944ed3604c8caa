package pipeline

import "github.com/posternmail/postern/sdk/agentpb"

// eventNames are the names of events as logs, the ledger and the documentation write them.
var eventNames = [...]string{
	agentpb.EventKind_EVENT_KIND_CONNECT:               "OnConnect",
	agentpb.EventKind_EVENT_KIND_HELO:                  "OnHelo",
	agentpb.EventKind_EVENT_KIND_EHLO:                  "OnEhlo",
	agentpb.EventKind_EVENT_KIND_START_TLS:             "OnStartTls",
	agentpb.EventKind_EVENT_KIND_AUTH:                  "OnAuth",
	agentpb.EventKind_EVENT_KIND_END_OF_AUTHENTICATION: "OnEndOfAuthentication",
	agentpb.EventKind_EVENT_KIND_MAIL:                  "OnMail",
	agentpb.EventKind_EVENT_KIND_RCPT:                  "OnRcpt",
	agentpb.EventKind_EVENT_KIND_DATA:                  "OnData",
	agentpb.EventKind_EVENT_KIND_END_OF_HEADERS:        "OnEndOfHeaders",
	agentpb.EventKind_EVENT_KIND_END_OF_DATA:           "OnEndOfData",
	agentpb.EventKind_EVENT_KIND_NOOP:                  "OnNoop",
	agentpb.EventKind_EVENT_KIND_HELP:                  "OnHelp",
	agentpb.EventKind_EVENT_KIND_RSET:                  "OnRset",
	agentpb.EventKind_EVENT_KIND_REJECT:                "OnReject",
	agentpb.EventKind_EVENT_KIND_DISCONNECT:            "OnDisconnect",
	agentpb.EventKind_EVENT_KIND_SUBMITTED:             "OnSubmitted",
	agentpb.EventKind_EVENT_KIND_RESOLVED:              "OnResolved",
	agentpb.EventKind_EVENT_KIND_ROUTED:                "OnRouted",
	agentpb.EventKind_EVENT_KIND_CATEGORIZED:           "OnCategorized",
	agentpb.EventKind_EVENT_KIND_DELIVERED:             "OnDelivered",
	agentpb.EventKind_EVENT_KIND_DEFERRED:              "OnDeferred",
	agentpb.EventKind_EVENT_KIND_FAILED:                "OnFailed",
	agentpb.EventKind_EVENT_KIND_REPORTED:              "OnReported",
	agentpb.EventKind_EVENT_KIND_SCHEDULE:              "OnSchedule",
	agentpb.EventKind_EVENT_KIND_RELEASED:              "OnReleased",
	agentpb.EventKind_EVENT_KIND_FEEDBACK:              "OnFeedback",
}

// kinds is one more than the last event kind.
const kinds = len(eventNames)

// EventName is the name of an event as the ledger writes it, such as "OnRcpt"; "event N" for an unknown one.
func EventName(kind agentpb.EventKind) string {
	if known(kind) {
		return eventNames[kind]
	}
	return "event " + kind.String()
}

// known reports whether kind is an event of this version.
func known(kind agentpb.EventKind) bool { return kind > 0 && int(kind) < kinds }
