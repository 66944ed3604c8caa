package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/match"
)

// Filter judges messages at the end of data.
type Filter struct {
	Config
	good, bad  []string // folded
	senders    *match.Addresses
	recipients *match.Addresses
}

// gtube is the test string that every spam filter takes for spam.
const gtube = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"

// Spam confidence levels with a meaning of their own.
const (
	sclTrusted = -1
	sclWanted  = 0
	sclSpam    = 9
)

// rating is what the filter thinks of a message.
type rating struct {
	scl    int
	tokens []string // of the report header
	data   string   // for the ledger: what was found
}

// OnEndOfData rates the message, stamps it, and acts on the strictest threshold that it reaches.
func (f *Filter) OnEndOfData(ctx context.Context, e *sdk.DataEvent) sdk.Verdict {
	if entry, ok := f.bypassedSender(e); ok {
		return f.stamp(sdk.Continue().Because("SenderBypassed", entry), rating{scl: sclTrusted, tokens: []string{"SenderBypassed"}})
	}
	bypassed, judged := f.split(e.Recipients)
	if len(judged) == 0 {
		return f.stamp(sdk.Continue().Because("AllRecipientsBypassed", ""), rating{scl: sclTrusted, tokens: []string{"AllRecipientsBypassed"}})
	}
	r := f.rate(ctx, e)
	v := f.stamp(f.act(r), r)
	if len(bypassed) == 0 {
		return v
	}
	trusted := f.headers(sdk.Continue().Because("RecipientBypassed", ""), rating{scl: sclTrusted, tokens: []string{"RecipientBypassed"}})
	return sdk.PerRecipient(trusted.ForRecipients(bypassed...), v.ForRecipients(judged...))
}

func (f *Filter) bypassedSender(e *sdk.DataEvent) (string, bool) {
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

// rate looks for phrases. A good one outweighs a bad one.
func (f *Filter) rate(ctx context.Context, e *sdk.DataEvent) rating {
	text, note := messageText(ctx, e)
	r := rating{scl: sclWanted}
	if note != "" {
		r.tokens, r.data = append(r.tokens, "MIME:"+note), note
	}
	if strings.Contains(text.raw, gtube) {
		return rating{sclSpam, append(r.tokens, "GTUBE"), "GTUBE"}
	}
	if p := firstIn(text.folded, f.good); p != "" {
		return rating{sclWanted, append(r.tokens, "CW:CustomList"), "good phrase " + strconv.Quote(p)}
	}
	if p := firstIn(text.folded, f.bad); p != "" {
		return rating{sclSpam, append(r.tokens, "CW:CustomList"), "bad phrase " + strconv.Quote(p)}
	}
	return r
}

func firstIn(text string, phrases []string) string {
	for _, p := range phrases {
		if strings.Contains(text, p) {
			return p
		}
	}
	return ""
}

// act compares with the thresholds, the strictest first.
func (f *Filter) act(r rating) sdk.Verdict {
	data := strconv.Itoa(r.scl)
	if r.data != "" {
		data += ": " + r.data
	}
	switch {
	case reaches(r.scl, f.DeleteAt):
		return sdk.Discard().Because("SclAtOrAboveDeleteThreshold", data)
	case reaches(r.scl, f.RejectAt):
		return sdk.Reject(550, "5.7.1", f.Response).Because("SclAtOrAboveRejectThreshold", data)
	case reaches(r.scl, f.QuarantineAt):
		return sdk.Quarantine().Because("SclAtOrAboveQuarantineThreshold", data)
	}
	return sdk.Continue().Because("scl", data)
}

func reaches(scl, threshold int) bool { return threshold > 0 && scl >= threshold }

// stamp leaves the SCL for later agents and the next hop.
func (f *Filter) stamp(v sdk.Verdict, r rating) sdk.Verdict {
	return f.headers(v, r).Stamp("scl", strconv.Itoa(r.scl))
}

func (f *Filter) headers(v sdk.Verdict, r rating) sdk.Verdict {
	report := append([]string{"DV:" + version}, r.tokens...)
	return v.Edit(
		sdk.AddHeader("X-Postern-Antispam-Report", strings.Join(report, ";")),
		sdk.AddHeader("X-Postern-SCL", fmt.Sprint(r.scl)),
	)
}
