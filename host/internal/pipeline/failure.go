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
	held := r.late(q) && q.onFailure != "skip"
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
		if !r.rule.routing && !r.late(q) {
			r.missedFrom(q.name)
		}
	case poisoned:
		r.noteFailed(q, "defer", why)
	case q.onFailure == "skip":
		r.noteFailed(q, "skipped", why)
		r.skipped(q)
		return
	case r.rule.routing:
		r.out.WaitFor = q.name
		r.noteFailed(q, "waiting", why)
	case r.late(q) || q.onFailure == "hold" && q.kind == agentpb.EventKind_EVENT_KIND_END_OF_DATA:
		r.hold(q.name)
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

// late reports whether the agent is shown a message that it has missed at the end of data: there is no client to refuse it
// to any more.
func (r *run) late(q *question) bool {
	return r.ev.Only != "" && q.kind == agentpb.EventKind_EVENT_KIND_END_OF_DATA
}

// hold notes that an agent must still see the message.
func (r *run) hold(agent string) {
	if !slices.Contains(r.out.Hold, agent) {
		r.out.Hold = append(r.out.Hold, agent)
	}
}

// missedFrom notes that an agent and all behind it must still see the message, should it ever go on.
func (r *run) missedFrom(agent string) {
	found := false
	for _, s := range r.stages {
		for _, a := range s.asks {
			if found = found || a.name == agent; found {
				r.hold(a.name)
			}
		}
	}
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
