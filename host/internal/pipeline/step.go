package pipeline

import (
	"strconv"
	"strings"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/agentpb"
)

// note adds a step of an agent that was not asked, or whose answer was thrown away.
func (r *run) note(q *question, verdict string) {
	r.out.Steps = append(r.out.Steps, tracking.Verdict{
		Agent: q.name, Version: q.version(), Event: eventNames[q.kind], Verdict: verdict, Recipients: r.only(q, nil),
	})
}

// only lists the recipients a step is about, when they are not all of the event.
func (r *run) only(q *question, indexes []uint32) (list []string) {
	if len(indexes) == 0 && !q.partial && len(r.drafts) == 1 && len(r.settled) == 0 || r.ev.Recipient != nil {
		return nil
	}
	for _, rcpt := range q.targets(indexes) {
		list = append(list, rcpt.Address.String())
	}
	return list
}

// noteAttempts adds a step for each attempt that failed before the one that answered.
func (r *run) noteAttempts(q *question) {
	failed := 0
	for _, a := range q.attempts {
		if a.Failure == nil {
			continue
		}
		r.out.Steps = append(r.out.Steps, tracking.Verdict{
			Agent: q.name, Version: a.Version, Event: eventNames[q.kind], Verdict: "failed", Micros: a.Took.Microseconds(),
			Attempt: attemptNumber(failed), Failure: a.Instance + ": " + a.Failure.Error(),
		})
		failed++
	}
}

// attemptNumber is what the ledger shows after so many attempts that failed: nothing for the first. An agent that was
// asked again with the rows it needs is still at the same attempt.
func attemptNumber(failed int) int {
	if failed == 0 {
		return 0
	}
	return failed + 1
}

// failures are the attempts that failed.
func (q *question) failures() (n int) {
	for _, a := range q.attempts {
		if a.Failure != nil {
			n++
		}
	}
	return n
}

// noteFailed adds the step that tells what followed a failure, and has it counted.
func (r *run) noteFailed(q *question, verdict, why string) {
	if tell := r.conv.pipeline.options.Failed; tell != nil && !r.ev.DryRun {
		tell(q.name, verdict)
	}
	r.out.Steps = append(r.out.Steps, tracking.Verdict{
		Agent: q.name, Version: q.runs(), Event: eventNames[q.kind], Verdict: verdict, Micros: q.took.Microseconds(),
		Recipients: r.only(q, nil), Failure: why,
	})
}

// noteAnswer adds a step for each verdict of an answer, the first with its edits and stamps, and answers with the
// place of the first.
func (r *run) noteAnswer(p *proposal) int {
	first := len(r.out.Steps)
	for _, v := range p.verdicts {
		r.out.Steps = append(r.out.Steps, tracking.Verdict{
			Agent: p.name, Version: p.runs(), Event: eventNames[p.kind], Verdict: verdictWord(v.GetKind()),
			Reply: given(v.GetReply()), Reason: cut(v.GetReason(), maxReason), Data: cut(v.GetData(), maxData),
			Recipients: r.only(p.question, v.GetRecipients()), Micros: p.took.Microseconds(),
			Attempt: attemptNumber(p.failures()),
		})
	}
	s := &r.out.Steps[first]
	s.Edits, s.Stamps = p.editsInWords(), p.stampsInWords()
	return first
}

func (p *proposal) editsInWords() (words []string) {
	for i := range p.changes {
		w := p.changes[i].words
		for n, index := range p.changes[i].recipients {
			rcpt := p.recipient(index)
			if rcpt == nil {
				continue
			}
			w += pickText(n == 0, " for ", ", ") + rcpt.Address.String()
		}
		words = append(words, w)
	}
	for _, w := range p.answer.GetWrites() {
		words = append(words, writeInWords(w))
	}
	for i := range p.spawns {
		words = append(words, "spawn for "+strings.Join(p.spawns[i].Recipients, ", "))
	}
	for _, k := range p.answer.GetCopies() {
		words = append(words, strings.TrimSpace("keep copy "+cut(k.GetReason(), maxReason)))
	}
	return words
}

func pickText(yes bool, a, b string) string {
	if yes {
		return a
	}
	return b
}

func writeInWords(w *agentpb.TableWrite) string {
	op := strings.ToLower(strings.TrimPrefix(w.GetOp().String(), "TABLE_OP_"))
	return op + " " + w.GetTable() + " " + cut(strings.ToValidUTF8(string(w.GetKey()), "?"), 120)
}

func (p *proposal) stampsInWords() (words []string) {
	for _, s := range p.stamps {
		w := s.name + "=" + cut(strings.ToValidUTF8(string(s.value), "?"), 60)
		if s.recipient != nil {
			w += " for " + s.recipient.Address.String()
		}
		words = append(words, w)
	}
	return words
}

// verdictWord is a kind as the ledger writes it: "reject".
func verdictWord(k agentpb.VerdictKind) string {
	if k >= 0 && int(k) < len(verdictWords) {
		return verdictWords[k]
	}
	return "unknown verdict " + strconv.Itoa(int(k))
}

// verdictWords never change.
var verdictWords = [...]string{
	agentpb.VerdictKind_VERDICT_KIND_UNSPECIFIED:  "unspecified",
	agentpb.VerdictKind_VERDICT_KIND_CONTINUE:     "continue",
	agentpb.VerdictKind_VERDICT_KIND_DONE:         "done",
	agentpb.VerdictKind_VERDICT_KIND_REJECT:       "reject",
	agentpb.VerdictKind_VERDICT_KIND_DEFER:        "defer",
	agentpb.VerdictKind_VERDICT_KIND_DISCONNECT:   "disconnect",
	agentpb.VerdictKind_VERDICT_KIND_DISCARD:      "discard",
	agentpb.VerdictKind_VERDICT_KIND_QUARANTINE:   "quarantine",
	agentpb.VerdictKind_VERDICT_KIND_TARPIT:       "tarpit",
	agentpb.VerdictKind_VERDICT_KIND_BYPASS:       "bypass",
	agentpb.VerdictKind_VERDICT_KIND_FAIL:         "fail",
	agentpb.VerdictKind_VERDICT_KIND_UNDETERMINED: "undetermined",
}

// replyText is the complete reply for the ledger, where there is one.
func replyText(complete envelope.Reply, otherwise string) string {
	if complete.IsZero() {
		return otherwise
	}
	return complete.String()
}

func given(reply *agentpb.Reply) string {
	if reply.GetText() == "" && reply.GetCode() == 0 {
		return ""
	}
	return strings.TrimSpace(strconv.Itoa(int(reply.GetCode())) + " " + reply.GetEnhanced() + " " + reply.GetText())
}
