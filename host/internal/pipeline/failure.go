package pipeline

import (
	"slices"
	"strings"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/sdk/agentpb"
)

// undetermined follows the operator's on_failure: the agent lives, but could not judge.
func (r *run) undetermined(q *question, v *agentpb.Verdict) {
	why := "undetermined"
	if v.GetReason() != "" {
		why += ": " + cut(v.GetReason(), maxReason)
	}
	held := r.ev.Only != "" && q.kind == agentpb.EventKind_EVENT_KIND_END_OF_DATA && q.onFailure == "hold"
	if held || r.rule.routing && q.onFailure == "defer" {
		// It need not be waited for: it is there. The item is tried again.
		d := Verdict{Decision: Defer, Agent: q.name, Version: q.runs(), Event: q.kind, Reason: why, Data: cut(v.GetData(), maxData)}
		d.Reply = r.reply(Defer, nil)
		r.noteFailed(q, "defer", why)
		r.decide(q, v.GetRecipients(), d)
		return
	}
	r.fail(q, why)
}

// fail follows on_failure of an agent that has not given an answer that can be used.
func (r *run) fail(q *question, why string) {
	v := Verdict{Decision: Defer, Agent: q.name, Version: q.runs(), Event: q.kind, Reason: cut(why, maxReason)}
	poisoned := q.failure != nil && q.failure.Kind == agent.Poison
	switch {
	case poisoned && (r.rule.routing || q.kind == agentpb.EventKind_EVENT_KIND_END_OF_DATA):
		r.out.Poison = q.failure
		r.noteFailed(q, "poison", why)
	case poisoned:
		r.noteFailed(q, "defer", why)
	case q.onFailure == "skip":
		r.noteFailed(q, "skipped", why)
		r.skipped(q)
		return
	case r.rule.routing:
		r.out.WaitFor = q.name
		r.noteFailed(q, "waiting", why)
	case q.onFailure == "hold" && q.kind == agentpb.EventKind_EVENT_KIND_END_OF_DATA:
		if !slices.Contains(r.out.Hold, q.name) {
			r.out.Hold = append(r.out.Hold, q.name)
		}
		r.noteFailed(q, "hold", why)
		return
	case q.onFailure == "reject" && r.rule.verdicts.has(agentpb.VerdictKind_VERDICT_KIND_REJECT):
		v.Decision = Reject
		r.noteFailed(q, "reject", why)
	case q.kind == agentpb.EventKind_EVENT_KIND_RSET:
		r.noteFailed(q, "skipped", why) // RSET is always 250
		return
	default:
		r.noteFailed(q, "defer", why)
	}
	v.Reply = r.failureReply(v.Decision)
	r.end(v)
}

// skipped stamps the message, or the session before there is one, with the agent that did not see it.
func (r *run) skipped(q *question) {
	with := func(old []byte) []byte {
		names := strings.Split(string(old), ",")
		if len(old) == 0 {
			names = nil
		}
		if slices.Contains(names, q.name) {
			return old
		}
		return []byte(strings.Join(append(names, q.name), ","))
	}
	if d := q.draft; d.mail != nil {
		setStamp(&d.mail.Stamps, stampSkipped, with(d.mail.Stamps[stampSkipped]))
		return
	}
	r.conv.setSession(q.kind, stampSkipped, with(r.conv.stamps[stampSkipped]))
}
