package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/posternmail/postern/plugins/contentfilter/classifier"
	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/feed"
	"github.com/posternmail/postern/sdk/match"
)

// Filter judges messages at the end of data: first the bypass lists, then the phrases, then the model, then the
// thresholds.
type Filter struct {
	Config
	good, bad  *phrases
	senders    *match.Addresses
	recipients *match.Addresses
	internal   []netip.Prefix // our own servers
	safelist   safelist
	protected  []domain // that are imitated
	brain      *brain
	feeds      *feed.Feeds[fedKnowledge]
	stop       func() // ends the watching of files; nil without
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
	reasonRecipient     = "RecipientBypassed" // some of them, by bypassed_recipients or because they trust the sender
	reasonAllRecipients = "AllRecipientsBypassed"
	reasonDelete        = "SclAtOrAboveDeleteThreshold"
	reasonReject        = "SclAtOrAboveRejectThreshold"
	reasonQuarantine    = "SclAtOrAboveQuarantineThreshold"
	reasonBelow         = "SclBelowThresholds"
	reasonUnreadable    = "Unreadable" // the message could not be read: undetermined
)

// Tokens of the report.
const (
	tokenPhrase  = "CW:CustomList" // one of the operator's phrases was found
	tokenNoModel = "NoModel"       // there is no model: only rules were looked at
	tokenPCL     = "PCL:PhishingLevel "
)

// stampProbability is the agent's own stamp with what the model says.
const stampProbability = "probability"

// rating is what the filter thinks of a message.
type rating struct {
	scl    int
	tokens []string // of the report header
	found  string   // for the ledger
	spam   string   // probability by the model; empty where it was not asked
	pcl    int      // 0 where it was not judged
	signs  []sign   // of phishing
}

// trusted is the rating of mail that is not judged.
func trusted(reason string) rating { return rating{scl: sclTrusted, tokens: []string{reason}} }

// OnEndOfData rates the message, stamps it, and acts on the strictest threshold that it reaches.
func (f *Filter) OnEndOfData(ctx context.Context, e *sdk.DataEvent) sdk.Verdict {
	if entry, ok := f.bypassedSender(e); ok {
		return f.report(e, sdk.Continue().Because(reasonSender, entry), trusted(reasonSender)).Stamp("scl", "-1")
	}
	bypassed, judged, entries := f.split(e)
	if len(judged) == 0 {
		return f.report(e, sdk.Continue().Because(reasonAllRecipients, entries), trusted(reasonAllRecipients)).Stamp("scl", "-1")
	}
	r, err := f.rate(ctx, e)
	if err != nil {
		return sdk.Undetermined(reasonUnreadable, err)
	}
	v := f.report(e, f.act(r), r).Stamp("scl", strconv.Itoa(r.scl)).Stamp("pcl", strconv.Itoa(r.pcl))
	if r.spam != "" {
		v = v.Stamp(stampProbability, r.spam)
	}
	if len(bypassed) == 0 {
		return v
	}
	return sdk.PerRecipient(f.bypass(e, bypassed, entries), v.ForRecipients(judged...))
}

// bypass is the verdict for the recipients whose mail is not judged, beside others whose mail is.
func (f *Filter) bypass(e *sdk.DataEvent, recipients []sdk.EnvelopeRecipient, entries string) sdk.Verdict {
	v := f.report(e, sdk.Continue().Because(reasonRecipient, entries), trusted(reasonRecipient))
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

// maxEntries is how many entries the ledger names.
const maxEntries = 5

// split the recipients into those whose mail is not judged, for they are listed or trust the sender, and the others.
// entries names what freed the first of them.
func (f *Filter) split(e *sdk.DataEvent) (bypassed, judged []sdk.EnvelopeRecipient, entries string) {
	var found []string
	for _, r := range e.Recipients {
		entry, ok := f.recipients.Match(r.Mailbox)
		if !ok {
			entry, ok = f.safelist.trusts(e, r)
		}
		if !ok {
			judged = append(judged, r)
			continue
		}
		bypassed = append(bypassed, r)
		if len(found) < maxEntries && !slices.Contains(found, entry) {
			found = append(found, entry)
		}
	}
	return bypassed, judged, strings.Join(found, ", ")
}

// rate looks for GTUBE, then for phrases, of which a good one outweighs a bad one, and asks the model about the rest.
// Whether a message may be phishing is judged by itself.
func (f *Filter) rate(ctx context.Context, e *sdk.DataEvent) (rating, error) {
	d, err := f.read(ctx, e)
	if err != nil {
		return rating{}, err
	}
	r := rating{scl: sclWanted, found: d.Note}
	r.pcl, r.signs = f.phishing(e, d)
	if d.Note != "" {
		r.tokens = []string{"MIME:" + d.Note}
	}
	if find(d, func(text string) string { return contained(text, gtube) }) != "" {
		return r.by(sclSpam, "GTUBE", "GTUBE"), nil
	}
	if p := find(d, f.good.find, f.brain.good.Load().find, f.fedGood); p != "" {
		return r.by(sclWanted, tokenPhrase, "good phrase "+strconv.Quote(p)), nil
	}
	if p := find(d, f.bad.find, f.brain.bad.Load().find, f.fedBad); p != "" {
		return r.by(sclSpam, tokenPhrase, "bad phrase "+strconv.Quote(p)), nil
	}
	return f.ask(d, r), nil
}

// by is the rating that a rule gives.
func (r rating) by(scl int, token, found string) rating {
	r.scl, r.tokens, r.found = scl, append(r.tokens, token), found
	return r
}

// read the message, but for a body over max_size.
func (f *Filter) read(ctx context.Context, e *sdk.DataEvent) (*classifier.Document, error) {
	header := append(f.arrival(e), e.Headers.Block()...)
	if body := e.Body(); !body.Skipped() {
		return classifier.Read(ctx, header, body)
	}
	return classifier.Read(ctx, header, nil)
}

// find what one of the searches finds first in one of the texts.
func find(d *classifier.Document, searches ...func(string) string) string {
	for text := range d.All {
		for _, search := range searches {
			if found := search(text); found != "" {
				return found
			}
		}
	}
	return ""
}

func contained(text, s string) string {
	if strings.Contains(text, s) {
		return s
	}
	return ""
}

// ask the model. Of a message that was not read it is not asked.
func (f *Filter) ask(d *classifier.Document, r rating) rating {
	m := f.brain.model.Load()
	switch {
	case m == nil:
		r.tokens = append(r.tokens, tokenNoModel)
		return r
	case d.Note == classifier.NoteTooLarge:
		return r
	}
	p := m.Probability(d.Features(m.Recipe, false))
	r.scl, r.spam = classifier.SCL(p), strconv.FormatFloat(p, 'f', 4, 64)
	r.tokens = append(r.tokens, "PROB:"+r.spam)
	found := "probability " + r.spam
	if r.found != "" {
		found = r.found + ", " + found
	}
	r.found = found
	if f.acts(r.scl) {
		r.found += ": " + reasons(m, d.Features(m.Recipe, true))
	}
	return r
}

// toldReasons is how many tokens the ledger names.
const toldReasons = 8

// reasons are the tokens that speak for spam most.
func reasons(m *classifier.Model, features *classifier.Features) string {
	var told []string
	for _, r := range m.Explain(features, 4*toldReasons) {
		if r.Weight > 0 && len(told) < toldReasons {
			told = append(told, printable(r.Token))
		}
	}
	return strings.Join(told, ", ")
}

// printable token of up to 40 characters: it was written by a stranger.
func printable(token string) string {
	quoted := strconv.Quote(token)
	text := []rune(quoted[1 : len(quoted)-1])
	return string(text[:min(len(text), 40)])
}

// acts reports whether an SCL reaches any threshold.
func (f *Filter) acts(scl int) bool {
	return reaches(scl, f.DeleteAt) || reaches(scl, f.RejectAt) || reaches(scl, f.QuarantineAt)
}

// act compares with the thresholds, the strictest first.
func (f *Filter) act(r rating) sdk.Verdict {
	data := strconv.Itoa(r.scl)
	if r.found != "" {
		data += ": " + r.found
	}
	if r.pcl > pclNeutral {
		data += fmt.Sprintf("; PCL %d: %v", r.pcl, r.signs)
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
	tokens := []string{"DV:" + version}
	if token := senderID(e); token != "" {
		tokens = append(tokens, token)
	}
	tokens = append(tokens, r.tokens...)
	switch {
	case r.pcl >= pclSuspicious:
		tokens = append(tokens, tokenPCL+"SUSPICIOUS")
	case r.pcl > pclNeutral:
		tokens = append(tokens, tokenPCL+"NEUTRAL")
	}
	if outOfTime(e) {
		tokens = append(tokens, tokenTime)
	}
	if ip := e.Session.Client; ip.IsValid() && !ip.In(f.internal) {
		tokens = append(tokens, "OrigIP:"+ip.String())
	}
	if r.pcl > 0 {
		v = v.Edit(sdk.AddHeader("X-Postern-PCL", strconv.Itoa(r.pcl)))
	}
	return v.Edit(
		sdk.AddHeader("X-Postern-Antispam-Report", strings.Join(tokens, ";")),
		sdk.AddHeader("X-Postern-SCL", strconv.Itoa(r.scl)),
	)
}
