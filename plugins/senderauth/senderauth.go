package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/arc"
	"github.com/posternmail/postern/sdk/dkim"
	"github.com/posternmail/postern/sdk/match"
	"github.com/posternmail/postern/sdk/spf"
	"github.com/posternmail/postern/sdk/trace"
)

// Auth verifies the senders of messages that come from outside. It judges the octets as they were received, writes what
// it found into the header and into stamps, and acts on it where the configuration says so.
type Auth struct {
	Config
	host       string
	internal   []netip.Prefix // our own servers
	sealers    map[string]bool
	recipients *match.Addresses // without action
	senders    *match.Addresses // likewise
	resolver   spf.Resolver
	counts     sdk.Table[aggregate]
}

// Shared stamps: results in the words of RFC 8601.
const (
	stampSPF      = "auth.spf"
	stampDKIM     = "auth.dkim"
	stampDMARC    = "auth.dmarc"
	stampARC      = "auth.arc"
	stampSenderID = "auth.senderid"
	stampDomain   = "auth.domain" // what was proved
)

// Own stamps.
const (
	stampPRD      = "prd"      // the purported responsible domain
	stampPolicy   = "policy"   // what the domain of From asks for when DMARC fails
	stampOverride = "override" // the trusted sealer for whose sake DMARC's failure does not count
)

// Reasons in the ledger.
const (
	reasonTrusted         = "Trusted"  // a user or server of our own
	reasonNoSource        = "NoSource" // an own server names nobody outside that it has it from
	reasonVerified        = "Verified" // with the results
	reasonSPF             = "SPF"
	reasonSenderID        = "SenderID"
	reasonDKIM            = "DKIM"
	reasonARC             = "ARC"
	reasonDMARC           = "DMARC"
	reasonSenderBypassed  = "SenderBypassed"
	reasonRecipientBypass = "RecipientBypassed"
)

func (a *Auth) subscribe(r *sdk.Registrar) {
	r.OnEndOfHeaders(sdk.ReadsHeaders(resultsField), sdk.MayChange(sdk.Headers))
	r.OnEndOfData(
		sdk.ReadsHeaders(), sdk.Body(sdk.Whole, sdk.Original), sdk.Waits,
		sdk.MayChange(sdk.Verdicts, sdk.Headers, sdk.Stamps(
			stampSPF, stampDKIM, stampDMARC, stampARC, stampSenderID, stampDomain, stampPRD, stampPolicy, stampOverride)),
	)
	r.OnSchedule(sdk.Every(reportTurn), sdk.MaySpawn)
	if a.ReportFrom == nil {
		r.Skip(sdk.OnSchedule)
		return
	}
	a.counts = sdk.UseTable[aggregate](r, "aggregate", sdk.Key(), sdk.MaxRows(maxAggregates), sdk.OnlyAt(sdk.OnEndOfData, sdk.OnSchedule))
}

// maxForged is how many forged results are removed one by one. Of a message with more nobody's are worth to be kept, and an answer
// can ask for so many edits only.
const maxForged = 100

// OnEndOfHeaders removes results that claim to be ours (RFC 8601 section 5), whoever sent them.
func (a *Auth) OnEndOfHeaders(_ context.Context, e *sdk.HeadersEvent) sdk.Verdict {
	var edits []sdk.Edit
	for f := range e.Headers.All(resultsField) {
		id, ok := authservID(string(f.Raw))
		if !ok || strings.EqualFold(id, a.AuthservID) {
			edits = append(edits, sdk.RemoveField(f))
		}
	}
	forged := len(edits)
	switch {
	case forged == 0:
		return sdk.Continue()
	case forged > maxForged:
		edits = []sdk.Edit{sdk.RemoveHeader(resultsField)}
	}
	return sdk.Continue().Edit(edits...).Count("forged_results", forged)
}

// client whose right to send is judged.
type client struct {
	ip   netip.Addr // invalid: not known
	helo string
	time time.Time // of the event
}

// OnEndOfData verifies the message.
func (a *Auth) OnEndOfData(ctx context.Context, e *sdk.DataEvent) sdk.Verdict {
	relayed := e.Session.Client.In(a.internal)
	inside := !relayed || e.Session.Traffic == sdk.Outbound // what leaves is ours, wherever its author sits
	if inside && (e.Session.Auth != nil || e.Session.Trust == sdk.User || e.Session.Trust == sdk.OwnServer) {
		return sdk.Continue().Because(reasonTrusted, "")
	}
	c := client{e.Session.Client.Addr, e.Session.Helo, e.Time}
	if relayed {
		c = a.source(e.Headers)
		c.time = e.Time
	}
	if !c.ip.IsValid() { // from inside, or from nobody knows where: nothing can be held against it
		return sdk.Continue().Because(reasonNoSource, "")
	}
	ctx, cancel := context.WithTimeout(ctx, a.patience(ctx))
	defer cancel()
	f := a.verify(ctx, e, c)
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		return sdk.Undetermined("Canceled", err)
	}
	return a.judge(e, f)
}

// source of a message that came through servers of our own.
func (a *Auth) source(h sdk.Header) client {
	var received []string
	for f := range h.All("Received") {
		received = append(received, string(f.Raw))
	}
	ours := func(ip netip.Addr) bool { return sdk.Address{Addr: ip}.In(a.internal) }
	c, _ := trace.Source(received, ours)
	return client{ip: c.Addr, helo: c.Helo}
}

// patience is how long to wait: the event must be answered in time even if DNS is silent.
func (a *Auth) patience(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return a.DNSTimeout
	}
	return min(a.DNSTimeout, time.Until(deadline)*9/10)
}

// findings about a message.
type findings struct {
	client     client
	spf        spfResult
	senderID   *spfResult // nil: not looked at
	purported  purported
	signatures []dkim.Verification
	chain      arc.Chain
	dmarc      dmarcResult
	sealer     string // trusted, for whose sake DMARC's failure does not count
}

// verify by all methods at once; DMARC follows from the others.
func (a *Auth) verify(ctx context.Context, e *sdk.DataEvent, c client) *findings {
	f := &findings{client: c, purported: purportedOf(e.Headers)}
	body := e.Body()
	message := dkim.NewMessage(e.Headers.Block(), body, body.Size())
	verifier := &dkim.Verifier{Lookup: a.resolver.TXT, Now: e.Time, Max: a.MaxSignatures}
	var from []string
	for field := range e.Headers.All("From") {
		from = append(from, string(field.Raw))
	}
	checks := []func(){
		func() { f.spf = a.checkSPF(ctx, c, e.Sender.Mailbox) },
		func() { f.signatures = whole(verifier.Verify(ctx, message)) },
		func() { f.chain = arc.Validate(ctx, verifier, message) },
		func() { a.askPolicies(ctx, from) },
	}
	if a.SenderID {
		checks = append(checks, func() {
			r := a.checkSenderID(ctx, c, f.purported)
			f.senderID = &r
		})
	}
	atOnce(checks)
	f.dmarc = a.checkDMARC(ctx, from, f.spf, f.signatures, e.TrackingID)
	if f.dmarc.result == resultFail && f.chain.Result == arc.Pass {
		f.sealer = a.override(f.chain)
	}
	return f
}

// atOnce runs all and waits for them. A panic in one becomes the caller's, and so the fault of one event: what strangers write
// into the DNS is read here, and elsewhere a panic would end the process.
func atOnce(checks []func()) {
	var running sync.WaitGroup
	causes := make([]any, len(checks))
	for i, check := range checks {
		running.Go(func() {
			defer func() { causes[i] = recover() }()
			check()
		})
	}
	running.Wait()
	for _, cause := range causes {
		if cause != nil {
			panic(cause)
		}
	}
}

// whole takes from signatures what they leave to others: with l= anybody could put a body of his own behind the one that was
// signed, or around it (RFC 6376 section 8.2).
func whole(all []dkim.Verification) []dkim.Verification {
	for i, v := range all {
		if v.Result == dkim.Pass && v.Unsigned > 0 {
			all[i].Result, all[i].Reason = dkim.Policy, fmt.Sprintf("%d octets of the body are not signed", v.Unsigned)
		}
	}
	return all
}

// override is the trusted sealer who found that DMARC passed: one of the newest seals, without one of somebody
// else over it (RFC 8617 section 7.2.1).
func (a *Auth) override(chain arc.Chain) string {
	for i := len(chain.Sets) - 1; i >= 0 && a.sealers[chain.Sets[i].Sealer]; i-- {
		if resultIn(chain.Sets[i].Results, "dmarc") == resultPass {
			return chain.Sets[i].Sealer
		}
	}
	return ""
}

// signature that stands for all: the best result, and of several the first.
func (f *findings) signature() (best dkim.Verification) {
	best.Result = resultNone
	order := []dkim.Result{dkim.TempError, dkim.PermError, dkim.Policy, dkim.Fail, dkim.Pass}
	rank := -1
	for _, v := range f.signatures {
		for i, r := range order {
			if v.Result == r && i > rank {
				best, rank = v, i
			}
		}
	}
	return best
}

// proved is the domain that was authenticated, "" if none was: that of From before others.
func (f *findings) proved() string {
	switch {
	case f.dmarc.result == resultPass:
		return f.dmarc.domain
	case f.signature().Result == dkim.Pass:
		return f.signature().Domain
	case f.spf.result == resultPass:
		return f.spf.domain
	}
	return ""
}

// stamped adds to a verdict what was found.
func (a *Auth) stamped(v sdk.Verdict, f *findings) sdk.Verdict {
	v = v.Stamp(stampSPF, f.spf.result).Stamp(stampDKIM, string(f.signature().Result)).
		Stamp(stampDMARC, f.dmarc.result).Stamp(stampARC, string(f.chain.Result))
	if f.senderID != nil {
		v = v.Stamp(stampSenderID, f.senderID.result).Stamp(stampPRD, clip(f.purported.Domain))
	}
	if f.dmarc.policy != "" {
		v = v.Stamp(stampPolicy, f.dmarc.policy)
	}
	if f.sealer != "" {
		v = v.Stamp(stampOverride, f.sealer)
	}
	if domain := f.proved(); domain != "" {
		v = v.Stamp(stampDomain, clip(domain))
	}
	return v
}

// judge a message by what was found, and count it for the report to the domain of From.
func (a *Auth) judge(e *sdk.DataEvent, f *findings) sdk.Verdict {
	edits := []sdk.Edit{
		sdk.AddRawHeader("Received-SPF", []byte(a.receivedSPF(f))),
		sdk.AddRawHeader(resultsField, []byte(a.results(f))),
	}
	pass := a.stamped(sdk.Continue(), f).Because(reasonVerified, f.summary()).Edit(edits...)
	act, found := a.action(f)
	if !found {
		return a.counted(pass, e, f, action{})
	}
	if entry, ok := a.senderBypassed(e, f); ok {
		return a.counted(pass.Because(reasonSenderBypassed, entry), e, f, action{})
	}
	wanted, unwilling := a.split(e.Recipients)
	v := act.verdict().Because(act.reason, act.data)
	if act.what == actionQuarantine {
		v = v.Edit(edits...)
	}
	switch {
	case len(unwilling) == 0:
		return a.counted(pass.Because(reasonRecipientBypass, act.data), e, f, action{})
	case len(wanted) == 0:
		return a.counted(a.stamped(v, f), e, f, act)
	}
	return a.counted(sdk.PerRecipient(v.ForRecipients(unwilling...), pass.ForRecipients(wanted...)), e, f, act)
}

// split recipients into those for whom no action is taken and the others.
func (a *Auth) split(all []sdk.EnvelopeRecipient) (wanted, unwilling []sdk.EnvelopeRecipient) {
	for _, r := range all {
		if _, ok := a.recipients.Match(r.Mailbox); ok {
			wanted = append(wanted, r)
		} else {
			unwilling = append(unwilling, r)
		}
	}
	return wanted, unwilling
}

func (a *Auth) senderBypassed(e *sdk.DataEvent, f *findings) (entry string, ok bool) {
	if entry, ok = a.senders.Match(e.Sender.Mailbox); ok {
		return entry, true
	}
	return a.senders.Match(f.purported.Mailbox)
}
