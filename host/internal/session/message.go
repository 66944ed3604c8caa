package session

import (
	"cmp"
	"slices"
	"time"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/host/internal/wire"
	"github.com/posternmail/postern/sdk/agentpb"
)

// verdictOn is what the agents have come to about a message that has come in whole.
type verdictOn struct {
	mails  []*envelope.Mail
	fates  map[int]pipeline.Verdict // by recipient; one that is not in it continues
	spawns []pipeline.Spawn
	copies []pipeline.Copy
	hold   []string
	poison *agent.Failure // the message kills instances of an agent: it is accepted and parked
	tarpit time.Duration
	now    time.Time
}

// nobody reports whether no recipient is left to judge the message for.
func (t *transaction) nobody() bool { return t.discard != nil || len(t.mail.Recipients) == 0 }

// endOfData raises OnEndOfData and does what it comes to. A zero answer: the client is gone, and nothing was kept.
func (s *Session) endOfData() wire.Answer {
	d := s.tx.draft
	if !d.finish() {
		s.blame, s.blameSteps = d.blame, nil
		return d.refusal
	}
	v := &verdictOn{mails: []*envelope.Mail{s.tx.mail}, fates: map[int]pipeline.Verdict{}, now: time.Now()}
	if d.outcome != nil {
		v.add(d.outcome)
	}
	if a, refused := s.refusal(v); refused {
		return a
	}
	if !s.tx.nobody() {
		if o := s.raise(agentpb.EventKind_EVENT_KIND_END_OF_DATA, nil); o != nil {
			v.add(o)
			v.poison = o.Poison
		}
	}
	if v.poison == nil {
		if a, refused := s.refusal(v); refused {
			return a
		}
	}
	return s.keep(v)
}

// add takes an outcome.
func (v *verdictOn) add(o *pipeline.Outcome) {
	if len(o.Mails) > 0 {
		v.mails = o.Mails
	}
	if o.Decision != pipeline.Continue {
		for _, r := range v.recipients() {
			v.mark(r.Index, o.Verdict)
		}
	}
	for index, verdict := range o.Recipients {
		v.mark(index, verdict)
	}
	v.spawns = append(v.spawns, o.Spawns...)
	v.copies = append(v.copies, o.Copies...)
	v.hold = append(v.hold, o.Hold...)
	v.tarpit += o.Tarpit
}

// mark gives a recipient a fate; the stronger one stays.
func (v *verdictOn) mark(index int, verdict pipeline.Verdict) {
	if old, ok := v.fates[index]; !ok || verdict.Decision > old.Decision {
		v.fates[index] = verdict
	}
}

// recipients of all copies, in the order of the commands.
func (v *verdictOn) recipients() []*envelope.Recipient {
	var all []*envelope.Recipient
	for _, m := range v.mails {
		all = append(all, m.Recipients...)
	}
	slices.SortStableFunc(all, func(a, b *envelope.Recipient) int { return cmp.Compare(a.Index, b.Index) })
	return all
}

// refusal is the one reply there is for mixed recipients: a disconnect or any defer is for all, and a reject when all are
// refused. RFC 5321 has no reply a recipient here.
func (s *Session) refusal(v *verdictOn) (wire.Answer, bool) {
	if len(v.fates) == 0 {
		return wire.Answer{}, false
	}
	var first, deferred, cut *pipeline.Verdict
	refused := 0
	all := v.recipients()
	for _, r := range all {
		fate, ok := v.fates[r.Index]
		if !ok {
			continue
		}
		switch fate.Decision {
		case pipeline.Disconnect:
			cut = cmp.Or(cut, &fate)
		case pipeline.Defer:
			deferred = cmp.Or(deferred, &fate)
		case pipeline.Reject:
			first = cmp.Or(first, &fate)
			refused++
		}
	}
	if refused < len(all) || refused == 0 {
		first = nil
	}
	decided := cmp.Or(cut, deferred, first)
	if decided == nil {
		return wire.Answer{}, false
	}
	return s.judge(&pipeline.Outcome{Verdict: *decided, Tarpit: v.tarpit})
}

// keep commits what is left of the message, and answers.
func (s *Session) keep(v *verdictOn) wire.Answer {
	items, records := s.items(v)
	if s.w.PeerGone() {
		// It would send the message again: nothing is kept and no duplicate made.
		s.w.Gone()
		return wire.Answer{}
	}
	if len(items) > 0 {
		over := s.w.Waiting()
		err := s.deps.Store.Commit(items...)
		over()
		if err != nil {
			s.logStore("message not committed", err)
			return wire.Answer{Reply: storeReply(err)}
		}
	}
	s.messages++
	if s.start.Accepted != nil {
		s.start.Accepted()
	}
	answer := queued(replyMessageID(s.tx.mail.OriginalHeader), s.tx.mail.ID)
	records[0].Reply = answer.String()
	for _, r := range records {
		s.deps.Ledger.Write(r)
	}
	return wire.Answer{Reply: answer, Tarpit: v.tarpit}
}

// replyMessageID is the Message-ID as far as it fits into a reply.
func replyMessageID(h []byte) string {
	id := field(h, "Message-ID")
	for i := 0; i < len(id); i++ {
		if id[i] <= ' ' || id[i] >= 0x7f {
			return ""
		}
	}
	return id
}

// partial says what becomes of recipients that were refused when others were accepted, and the client cannot be told.
func (s *Session) partial() string {
	if s.env.Auth != nil || s.trusted() {
		return "report"
	}
	return cmp.Or(s.deps.Config.Host.OnPartialReject, "quarantine")
}

// records the ledger's line of the message.
func (s *Session) receiveRecord(v *verdictOn, statuses []tracking.Recipient) *tracking.Record {
	r := &tracking.Record{Event: tracking.Receive, Verdicts: s.tx.steps}
	s.tx.describe(r)
	r.Item, r.Recipients = s.tx.mail.ID, statuses
	r.FillSession(&s.env)
	return r
}
