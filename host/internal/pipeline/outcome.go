package pipeline

import (
	"maps"
	"slices"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/agentpb"
)

// close makes the outcome of what the stages left.
func (r *run) close() {
	if r.out.Mails != nil {
		if r.ev.Kind == agentpb.EventKind_EVENT_KIND_END_OF_HEADERS {
			r.keepDecided()
		}
		r.combine()
		r.gather()
	}
	if r.ev.Recipient != nil {
		r.reflect()
	}
	if store := r.conv.pipeline.options.Tables; store != nil && len(r.writes) > 0 && (!r.ev.DryRun || r.conv.pipeline.options.DryRun) {
		if r.ev.HoldWrites {
			r.out.Writes = r.writes
			return
		}
		store.Apply(r.writes)
	}
}

// reflect shows a rewritten recipient in the arguments, for a caller that reads those.
func (r *run) reflect() {
	if rcpt := r.ev.Arguments.GetRcpt().GetRecipient(); rcpt != nil {
		rcpt.Address = []byte(r.ev.Recipient.Address.String())
		rcpt.Original = []byte(r.ev.Recipient.Original)
	}
}

// combine makes one verdict of those for recipients, where they have become one.
func (r *run) combine() {
	if len(r.settled) == 0 || r.out.Decision != Continue || r.out.WaitFor != "" {
		return
	}
	first := r.settled[r.order[0]]
	// Copies that are kept, each with its own content, are told recipient by recipient.
	one := r.copies() == 1 || !r.rule.routing && first.Decision >= Defer
	if one && r.allSettled() && r.agree(first) {
		r.out.Verdict = first
		return
	}
	r.out.Recipients = maps.Clone(r.settled)
}

// copies counts those that have recipients.
func (r *run) copies() (n int) {
	for _, d := range r.drafts {
		if len(d.mail.Recipients) > 0 {
			n++
		}
	}
	return n
}

// agree reports whether all recipients got the decision of first; right of the line the same verdict, since each
// has a notification of its own.
func (r *run) agree(first Verdict) bool {
	for _, v := range r.settled {
		if v.Decision != first.Decision || r.rule.routing && v != first {
			return false
		}
	}
	return true
}

// gather lists the copies that have recipients, the event's mail first. Where none has, all were removed: the message
// is discarded. A verdict for the whole message finds all recipients in the event's mail.
func (r *run) gather() {
	had := false
	r.out.Mails = r.out.Mails[:0]
	for _, d := range r.drafts {
		if len(d.mail.Recipients) > 0 {
			r.out.Mails = append(r.out.Mails, d.mail)
		}
		had = had || d.epoch > 0
	}
	main := r.ev.Mail
	if len(r.out.Mails) == 0 {
		r.out.Mails = append(r.out.Mails, main)
		if had && r.rule.perRecipient && r.out.Decision == Continue && r.out.WaitFor == "" {
			r.out.Verdict = Verdict{Decision: Discard, Agent: r.removedBy, Event: r.ev.Kind, Reason: "all recipients removed"}
		}
		return
	}
	if first := r.out.Mails[0]; first != main {
		*main = *first
		r.out.Mails[0] = main
	}
	switch {
	case len(r.out.Mails) == 1:
	case r.out.Decision != Continue:
		r.join()
	case r.ev.Kind == agentpb.EventKind_EVENT_KIND_END_OF_HEADERS:
		r.wait()
	}
}

// waitingCopy is a copy that edits for some recipients made at OnEndOfHeaders, when there was no body yet.
type waitingCopy struct {
	mail       *envelope.Mail
	recipients []int
}

// wait keeps the copies until OnEndOfData, and puts all recipients back into the event's mail.
func (r *run) wait() {
	r.conv.waiting = nil
	for _, m := range r.out.Mails[1:] {
		w := waitingCopy{mail: m}
		for _, rcpt := range m.Recipients {
			w.recipients = append(w.recipients, rcpt.Index)
		}
		r.conv.waiting = append(r.conv.waiting, w)
	}
	r.join()
}

// join puts the recipients of all copies into the event's mail.
func (r *run) join() {
	var all []*envelope.Recipient
	for _, m := range r.out.Mails {
		all = append(all, m.Recipients...)
	}
	slices.SortFunc(all, func(a, b *envelope.Recipient) int { return a.Index - b.Index })
	r.ev.Mail.Recipients = all
	r.out.Mails = r.out.Mails[:1]
}

// decided is the verdict of OnEndOfHeaders on a recipient: agents at OnEndOfData are not shown it any more.
type decided struct {
	index   int
	verdict Verdict
}

// keepDecided remembers what OnEndOfHeaders has settled.
func (r *run) keepDecided() {
	r.conv.decided = nil
	for _, index := range r.order {
		r.conv.decided = append(r.conv.decided, decided{index, r.settled[index]})
	}
}

// takeDecided settles it again at OnEndOfData.
func (r *run) takeDecided() {
	for _, d := range r.conv.decided {
		if rcpt := r.ev.Mail.Recipient(d.index); rcpt != nil {
			r.settle(rcpt, d.verdict)
		}
	}
	r.conv.decided = nil
}

// splitWaiting makes the copies of OnEndOfHeaders again, now with the body.
func (r *run) splitWaiting() {
	main := r.drafts[0]
	for _, w := range r.conv.waiting {
		var in []*envelope.Recipient
		for _, rcpt := range main.mail.Recipients {
			if slices.Contains(w.recipients, rcpt.Index) {
				in = append(in, rcpt)
			}
		}
		switch len(in) {
		case 0:
			continue
		case len(main.mail.Recipients):
			main.mail.Header, main.mail.Sender, main.mail.Stamps = w.mail.Header, w.mail.Sender, w.mail.Stamps
			continue
		}
		m := main.mail.Split(in)
		m.Header, m.Sender, m.Stamps = w.mail.Header, w.mail.Sender, w.mail.Stamps
		r.drafts = append(r.drafts, &draft{mail: m})
	}
	r.conv.waiting = nil
}
