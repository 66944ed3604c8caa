package main

import (
	"context"
	"net/netip"
	"strconv"
	"strings"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/match"
)

// Filter judges messages at the end of data: first the bypass lists, then the phrases, then the thresholds.
type Filter struct {
	Config
	good, bad  *phrases
	senders    *match.Addresses
	recipients *match.Addresses
	internal   []netip.Prefix // our own servers
}

// gtube is the string that every spam filter takes for spam, folded.
const gtube = "xjs*c4jdbqadn1.nsbn3*2idnen*gtube-standard-anti-ube-test-email*c.34x"

// Spam confidence levels with a meaning of their own.
const (
	sclTrusted = -1
	sclWanted  = 0
	sclSpam    = 9
)

// Reasons in the ledger.
const (
	reasonSender        = "SenderBypassed"
	reasonRecipient     = "RecipientBypassed" // some of them
	reasonAllRecipients = "AllRecipientsBypassed"
	reasonDelete        = "SclAtOrAboveDeleteThreshold"
	reasonReject        = "SclAtOrAboveRejectThreshold"
	reasonQuarantine    = "SclAtOrAboveQuarantineThreshold"
	reasonBelow         = "SclBelowThresholds"
	reasonUnreadable    = "Unreadable" // the message could not be read: undetermined
)

// tokenPhrase is in the report of a message with one of the operator's phrases.
const tokenPhrase = "CW:CustomList"

// rating is what the filter thinks of a message.
type rating struct {
	scl    int
	tokens []string // of the report header
	found  string   // for the ledger
}

// trusted is the rating of mail that is not judged.
func trusted(reason string) rating { return rating{scl: sclTrusted, tokens: []string{reason}} }

// OnEndOfData rates the message, stamps it, and acts on the strictest threshold that it reaches.
func (f *Filter) OnEndOfData(ctx context.Context, e *sdk.DataEvent) sdk.Verdict {
	if entry, ok := f.bypassedSender(e); ok {
		return f.report(e, sdk.Continue().Because(reasonSender, entry), trusted(reasonSender)).Stamp("scl", "-1")
	}
	bypassed, judged := f.split(e.Recipients)
	if len(judged) == 0 {
		return f.report(e, sdk.Continue().Because(reasonAllRecipients, ""), trusted(reasonAllRecipients)).Stamp("scl", "-1")
	}
	r, err := f.rate(ctx, e)
	if err != nil {
		return sdk.Undetermined(reasonUnreadable, err)
	}
	v := f.report(e, f.act(r), r).Stamp("scl", strconv.Itoa(r.scl))
	if len(bypassed) == 0 {
		return v
	}
	return sdk.PerRecipient(f.bypass(e, bypassed), v.ForRecipients(judged...))
}

// bypass is the verdict for the recipients whose mail is not judged, beside others whose mail is.
func (f *Filter) bypass(e *sdk.DataEvent, recipients []sdk.EnvelopeRecipient) sdk.Verdict {
	v := f.report(e, sdk.Continue().Because(reasonRecipient, ""), trusted(reasonRecipient))
	for _, r := range recipients {
		v = v.StampRecipient(r, "scl", "-1")
	}
	return v.ForRecipients(recipients...)
}

func (f *Filter) bypassedSender(e *sdk.DataEvent) (entry string, ok bool) {
	if entry, ok := f.senders.Match(e.Sender.Mailbox); ok {
		return entry, true
	}
	return f.senders.Match(e.Message.From)
}

func (f *Filter) split(all []sdk.EnvelopeRecipient) (bypassed, judged []sdk.EnvelopeRecipient) {
	for _, r := range all {
		if _, ok := f.recipients.Match(r.Mailbox); ok {
			bypassed = append(bypassed, r)
		} else {
			judged = append(judged, r)
		}
	}
	return bypassed, judged
}

// rate looks for GTUBE, then for phrases. A good one outweighs a bad one.
func (f *Filter) rate(ctx context.Context, e *sdk.DataEvent) (rating, error) {
	text, note, err := messageText(ctx, e)
	if err != nil {
		return rating{}, err
	}
	r := rating{scl: sclWanted, found: note}
	if note != "" {
		r.tokens = []string{"MIME:" + note}
	}
	if strings.Contains(text, gtube) {
		return rating{sclSpam, append(r.tokens, "GTUBE"), "GTUBE"}, nil
	}
	if p := f.good.find(text); p != "" {
		return rating{sclWanted, append(r.tokens, tokenPhrase), "good phrase " + strconv.Quote(p)}, nil
	}
	if p := f.bad.find(text); p != "" {
		return rating{sclSpam, append(r.tokens, tokenPhrase), "bad phrase " + strconv.Quote(p)}, nil
	}
	return r, nil
}

// act compares with the thresholds, the strictest first.
func (f *Filter) act(r rating) sdk.Verdict {
	data := strconv.Itoa(r.scl)
	if r.found != "" {
		data += ": " + r.found
	}
	switch {
	case reaches(r.scl, f.DeleteAt):
		return sdk.Discard().Because(reasonDelete, data)
	case reaches(r.scl, f.RejectAt):
		return sdk.Reject(550, "5.7.1", f.Response).Because(reasonReject, data)
	case reaches(r.scl, f.QuarantineAt):
		return sdk.Quarantine().Because(reasonQuarantine, data)
	}
	return sdk.Continue().Because(reasonBelow, data)
}

func reaches(scl, threshold int) bool { return threshold > 0 && scl >= threshold }

// report adds the header fields that tell the next hop of the rating.
func (f *Filter) report(e *sdk.DataEvent, v sdk.Verdict, r rating) sdk.Verdict {
	tokens := append([]string{"DV:" + version}, r.tokens...)
	if ip := e.Session.Client; ip.IsValid() && !ip.In(f.internal) {
		tokens = append(tokens, "OrigIP:"+ip.String())
	}
	return v.Edit(
		sdk.AddHeader("X-Postern-Antispam-Report", strings.Join(tokens, ";")),
		sdk.AddHeader("X-Postern-SCL", strconv.Itoa(r.scl)),
	)
}
