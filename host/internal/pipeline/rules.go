package pipeline

import (
	"time"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/sdk/agentpb"
)

// group of events that share a budget.
type group uint8

const (
	groupConnect group = iota
	groupCommand
	groupMessage
	groupRouting
)

// budget is the time that all agents of an event together have. The defaults hold where the host has none.
func (g group) budget(b config.EventBudget) time.Duration {
	switch g {
	case groupConnect:
		return positive(b.Connect, 10*time.Second)
	case groupCommand:
		return positive(b.Command, 20*time.Second)
	case groupMessage:
		return positive(b.Message, 60*time.Second)
	}
	return positive(b.Routing, 15*time.Minute)
}

// timeout of one agent at events of the group.
func (g group) timeout(t config.Timeouts) time.Duration {
	const usual = 5 * time.Second
	switch g {
	case groupConnect:
		return positive(t.Connect, usual)
	case groupCommand:
		return positive(t.Command, usual)
	case groupMessage:
		return positive(t.Message, usual)
	}
	return positive(t.Submitted, usual)
}

func positive(d, otherwise time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return otherwise
}

// verdicts is a set of kinds of verdict.
type verdicts uint32

func verdictSet(kinds ...agentpb.VerdictKind) (s verdicts) {
	for _, k := range kinds {
		s |= 1 << k
	}
	return s
}

func (s verdicts) has(k agentpb.VerdictKind) bool { return k > 0 && k < 32 && s&(1<<k) != 0 }

// edits is a set of what an answer may change in a message.
type edits uint16

const (
	editHeaders edits = 1 << iota
	editBody
	editSender           // rewrite_sender
	editRecipient        // rewrite_recipient
	editRecipients       // add_recipient, remove_recipient
	editExpand           // expand, fork
	editRoute            // route
	editSpawn            // spawns
	editCopy             // copies
	editEnvelope         = editSender | editRecipient | editRecipients
	editMessage          = editHeaders | editEnvelope
	editRouting          = editMessage | editBody | editExpand | editSpawn | editCopy
	editNone       edits = 0
)

// rule says what may be answered to an event. docs/protocol.md has it as a table.
type rule struct {
	group        group
	verdicts     verdicts
	edits        edits
	fact         bool // nobody waits for the answer
	routing      bool // right of the 250 line, with a message
	perRecipient bool // verdicts and edits may name recipients
}

// rules of all events. Never changed.
var rules = makeRules()

func makeRules() (r [kinds]rule) {
	neutral := verdictSet(agentpb.VerdictKind_VERDICT_KIND_CONTINUE, agentpb.VerdictKind_VERDICT_KIND_DONE)
	decision := neutral | verdictSet(agentpb.VerdictKind_VERDICT_KIND_BYPASS, agentpb.VerdictKind_VERDICT_KIND_UNDETERMINED)
	closing := decision | verdictSet(agentpb.VerdictKind_VERDICT_KIND_DISCONNECT, agentpb.VerdictKind_VERDICT_KIND_TARPIT)
	command := closing | verdictSet(agentpb.VerdictKind_VERDICT_KIND_REJECT, agentpb.VerdictKind_VERDICT_KIND_DEFER)
	envelope := command | verdictSet(agentpb.VerdictKind_VERDICT_KIND_DISCARD)
	message := envelope | verdictSet(agentpb.VerdictKind_VERDICT_KIND_QUARANTINE)
	routing := decision | verdictSet(agentpb.VerdictKind_VERDICT_KIND_DEFER, agentpb.VerdictKind_VERDICT_KIND_FAIL,
		agentpb.VerdictKind_VERDICT_KIND_DISCARD, agentpb.VerdictKind_VERDICT_KIND_QUARANTINE)
	background := neutral | verdictSet(agentpb.VerdictKind_VERDICT_KIND_UNDETERMINED)

	r[agentpb.EventKind_EVENT_KIND_CONNECT] = rule{group: groupConnect, verdicts: command}
	for _, k := range []agentpb.EventKind{
		agentpb.EventKind_EVENT_KIND_HELO, agentpb.EventKind_EVENT_KIND_EHLO, agentpb.EventKind_EVENT_KIND_START_TLS,
		agentpb.EventKind_EVENT_KIND_AUTH, agentpb.EventKind_EVENT_KIND_END_OF_AUTHENTICATION,
		agentpb.EventKind_EVENT_KIND_NOOP, agentpb.EventKind_EVENT_KIND_HELP, agentpb.EventKind_EVENT_KIND_DATA,
	} {
		r[k] = rule{group: groupCommand, verdicts: command}
	}
	r[agentpb.EventKind_EVENT_KIND_RSET] = rule{group: groupCommand, verdicts: closing}
	r[agentpb.EventKind_EVENT_KIND_MAIL] = rule{group: groupCommand, verdicts: envelope, edits: editSender}
	r[agentpb.EventKind_EVENT_KIND_RCPT] = rule{group: groupCommand, verdicts: envelope, edits: editRecipient}
	r[agentpb.EventKind_EVENT_KIND_END_OF_HEADERS] = rule{group: groupMessage, verdicts: message, edits: editMessage, perRecipient: true}
	r[agentpb.EventKind_EVENT_KIND_END_OF_DATA] = rule{group: groupMessage, verdicts: message,
		edits: editMessage | editBody | editSpawn | editCopy, perRecipient: true}
	for _, k := range []agentpb.EventKind{
		agentpb.EventKind_EVENT_KIND_SUBMITTED, agentpb.EventKind_EVENT_KIND_ROUTED,
		agentpb.EventKind_EVENT_KIND_RESOLVED, agentpb.EventKind_EVENT_KIND_CATEGORIZED,
	} {
		r[k] = rule{group: groupRouting, verdicts: routing, edits: editRouting, routing: true, perRecipient: true}
	}
	r[agentpb.EventKind_EVENT_KIND_RESOLVED].edits |= editRoute
	r[agentpb.EventKind_EVENT_KIND_CATEGORIZED].edits = editHeaders | editSpawn
	for _, k := range []agentpb.EventKind{
		agentpb.EventKind_EVENT_KIND_DISCONNECT, agentpb.EventKind_EVENT_KIND_REJECT, agentpb.EventKind_EVENT_KIND_DELIVERED,
		agentpb.EventKind_EVENT_KIND_DEFERRED, agentpb.EventKind_EVENT_KIND_FAILED, agentpb.EventKind_EVENT_KIND_REPORTED,
	} {
		r[k] = rule{group: groupCommand, verdicts: neutral, fact: true}
	}
	r[agentpb.EventKind_EVENT_KIND_REJECT].verdicts |= verdictSet(agentpb.VerdictKind_VERDICT_KIND_DISCONNECT)
	for _, k := range []agentpb.EventKind{
		agentpb.EventKind_EVENT_KIND_SCHEDULE, agentpb.EventKind_EVENT_KIND_RELEASED, agentpb.EventKind_EVENT_KIND_FEEDBACK,
	} {
		r[k] = rule{group: groupRouting, verdicts: background, edits: editSpawn}
	}
	return r
}

// editKind is the set member that an edit belongs to; editNone for one of an unknown kind.
func editKind(e *agentpb.Edit) edits {
	switch e.GetEdit().(type) {
	case *agentpb.Edit_AddHeader, *agentpb.Edit_ReplaceHeader, *agentpb.Edit_RemoveHeader:
		return editHeaders
	case *agentpb.Edit_Body:
		return editBody
	case *agentpb.Edit_AddRecipient, *agentpb.Edit_RemoveRecipient:
		return editRecipients
	case *agentpb.Edit_RewriteRecipient:
		return editRecipient
	case *agentpb.Edit_RewriteSender:
		return editSender
	case *agentpb.Edit_Expand, *agentpb.Edit_Fork:
		return editExpand
	case *agentpb.Edit_Route:
		return editRoute
	}
	return editNone
}
