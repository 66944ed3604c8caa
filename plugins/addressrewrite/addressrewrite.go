package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/net/idna"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
)

// Header fields that are rewritten. All else stays: Return-Path, Received, Message-ID, what stands in MIME parts.
var (
	inboundFields  = []string{"To", "Cc"}
	outboundFields = []string{"From", "Sender", "Reply-To", "Return-Receipt-To", "Disposition-Notification-To", "Resent-From", "Resent-Sender"}
)

// Rewriter is the agent, in one direction.
type Rewriter struct {
	outbound bool
	accepted []sdk.AcceptedDomain
	rules    rules
	srs      *srs
}

// rule is an entry, ready for use.
type rule struct {
	Entry
	internal   address.Mailbox // a domain has no local part
	external   address.Mailbox
	exceptions exceptions
}

// rules of one direction by what they look for.
type rules struct {
	addresses map[string]*rule // by key
	domains   map[string]*rule
	above     map[string]*rule // subdomains of the key
}

func (m *rules) len() int { return len(m.addresses) + len(m.domains) + len(m.above) }

// add r, and answer with the rule that has its place already.
func (m *rules) add(r *rule, outbound bool) (other *rule) {
	if m.addresses == nil {
		m.addresses, m.domains, m.above = map[string]*rule{}, map[string]*rule{}, map[string]*rule{}
	}
	from, into := r.internal, m.domains
	switch {
	case !outbound && r.OutboundOnly:
		return nil
	case !outbound:
		from = r.external
	case strings.HasPrefix(r.Internal, "*."):
		into = m.above
	}
	if from.Local != "" {
		into = m.addresses
	}
	key := addressKey(from)
	if other := into[key]; other != nil {
		return other
	}
	into[key] = r
	return nil
}

// addressKey is the one form that addresses are compared in; that of a domain is the domain.
func addressKey(m address.Mailbox) string {
	if m.Local == "" {
		return domainKey(m.Domain)
	}
	return strings.ToLower(m.Local) + "@" + domainKey(m.Domain)
}

// find the closest rule.
func (m *rules) find(a address.Mailbox) *rule {
	if r := m.addresses[addressKey(a)]; r != nil {
		return r
	}
	domain := domainKey(a.Domain)
	if r := m.domains[domain]; r != nil {
		return r
	}
	for len(m.above) > 0 {
		_, parent, ok := strings.Cut(domain, ".")
		if !ok {
			return nil
		}
		if r := m.above[parent]; r != nil {
			return r
		}
		domain = parent
	}
	return nil
}

// rewrite answers with the address that takes the place of a, and false if a stays. Internationalized domains
// become A-labels where the message may not hold others; a local part that cannot be written keeps a as it is.
func (w *Rewriter) rewrite(a address.Mailbox, utf8 bool) (address.Mailbox, bool) {
	r := w.rules.find(a)
	if r == nil || a.IsNull() {
		return a, false
	}
	from, to := r.internal, r.external
	if !w.outbound {
		from, to = to, from
	}
	out := address.Mailbox{Local: a.Local, Domain: to.Domain}
	if from.Local != "" {
		out.Local = to.Local
	}
	inside := a
	if !w.outbound {
		inside = out
	}
	if r.exceptions.has(inside) {
		return a, false
	}
	if !utf8 && !out.IsASCII() {
		ascii, err := idna.Lookup.ToASCII(out.Domain)
		if err != nil {
			return a, false
		}
		out.Domain = ascii
	}
	return out, out != a && (utf8 || out.IsASCII()) && fits(out)
}

// fits reports whether an address may stand in an envelope (RFC 5321 section 4.5.3.1).
func fits(m address.Mailbox) bool {
	_, err := address.Parse(m.String())
	return err == nil
}

// exceptions of a rule, by key; those of subdomains begin with "*.".
type exceptions map[string]bool

func newExceptions(list []string) (exceptions, error) {
	all := exceptions{}
	for _, text := range list {
		m, err := parsePattern(text)
		if err != nil {
			return nil, err
		}
		key := addressKey(m)
		if strings.HasPrefix(text, "*.") {
			key = "*." + key
		}
		all[key] = true
	}
	return all, nil
}

func (x exceptions) has(m address.Mailbox) bool {
	if len(x) == 0 {
		return false
	}
	domain := domainKey(m.Domain)
	if x[addressKey(m)] || x[domain] {
		return true
	}
	for {
		_, parent, ok := strings.Cut(domain, ".")
		if !ok {
			return false
		}
		if x["*."+parent] {
			return true
		}
		domain = parent
	}
}

// OnRcpt rewrites RCPT TO, and turns bounce addresses back.
func (w *Rewriter) OnRcpt(_ context.Context, e *sdk.RcptEvent) sdk.Verdict {
	if w.srs != nil && w.srs.owns(e.Recipient.Mailbox) {
		return w.turnBack(e)
	}
	to, ok := w.rewrite(e.Recipient.Mailbox, e.Sender.SMTPUTF8)
	if !ok {
		return sdk.Continue()
	}
	return rewritten(sdk.Continue().Edit(sdk.RewriteRecipient(e.Recipient, to)), []string{"RCPT TO"})
}

func (w *Rewriter) turnBack(e *sdk.RcptEvent) sdk.Verdict {
	to, err := w.srs.reverse(e.Recipient.Mailbox, e.Time)
	if err != nil || !fits(to) {
		return sdk.Reject(550, "5.1.1", "Not a valid bounce address").Because("srs-invalid", fmt.Sprint(err))
	}
	return sdk.Continue().Edit(sdk.RewriteRecipient(e.Recipient, to)).Because("srs-turned-back", "").Count("srs_turned_back", 1)
}

// OnEndOfHeaders rewrites To and Cc.
func (w *Rewriter) OnEndOfHeaders(_ context.Context, e *sdk.HeadersEvent) sdk.Verdict {
	edits, names := w.fields(e.Headers, inboundFields, e.Sender.SMTPUTF8)
	return rewritten(sdk.Continue().Edit(edits...), names)
}

// OnRouted rewrites what leaves for other organizations: there the recipients are final. Copies for our own stay.
func (w *Rewriter) OnRouted(_ context.Context, e *sdk.RoutingEvent) sdk.Verdict {
	var leaving []sdk.EnvelopeRecipient
	for _, r := range e.Recipients {
		if !w.inside(r.Domain) {
			leaving = append(leaving, r)
		}
	}
	if len(leaving) == 0 {
		return sdk.Continue()
	}
	edits, names := w.fields(e.Headers, outboundFields, e.Sender.SMTPUTF8)
	if sender, ok := w.sender(e.Sender.Mailbox, e.Sender.SMTPUTF8, e.Time); ok {
		edits, names = append(edits, sdk.RewriteSender(sender)), append([]string{"MAIL FROM"}, names...)
	}
	if len(edits) == 0 {
		return sdk.Continue()
	}
	v := rewritten(sdk.Continue().Edit(edits...), names)
	if len(leaving) < len(e.Recipients) {
		return v.ForRecipients(leaving...)
	}
	return v
}

// sender that takes the place of MAIL FROM.
func (w *Rewriter) sender(from address.Mailbox, utf8 bool, now time.Time) (address.Mailbox, bool) {
	if to, ok := w.rewrite(from, utf8); ok {
		return to, true
	}
	if w.srs == nil || from.IsNull() || w.ours(from.Domain) {
		return from, false
	}
	to, ok := w.srs.forward(from, now)
	return to, ok && fits(to) && (utf8 || to.IsASCII())
}

// inside reports whether mail for domain stays with us.
func (w *Rewriter) inside(domain string) bool {
	d := w.acceptedDomain(domain)
	return d != nil && d.Type != "external_relay"
}

func (w *Rewriter) ours(domain string) bool { return w.acceptedDomain(domain) != nil }

func (w *Rewriter) acceptedDomain(domain string) *sdk.AcceptedDomain {
	for _, name := range []string{strings.ToLower(domain), domainKey(domain)} {
		for i := range w.accepted {
			one := sdk.Host{AcceptedDomains: w.accepted[i : i+1]}
			if one.Accepts(name) {
				return &w.accepted[i]
			}
		}
	}
	return nil
}

// maxFields of a message that are rewritten. RFC 5322 section 3.6 allows one of each name, and an answer can ask for so many
// edits only.
const maxFields = 500

// fields with addresses to rewrite, as edits.
func (w *Rewriter) fields(h sdk.Header, names []string, utf8 bool) (edits []sdk.Edit, changed []string) {
	if w.rules.len() == 0 {
		return nil, nil
	}
	translate := func(m address.Mailbox) (address.Mailbox, bool) { return w.rewrite(m, utf8) }
	for _, name := range names {
		for f := range h.All(name) {
			if len(edits) == maxFields {
				return edits, changed
			}
			if value, n := rewriteList(len(f.Name)+1, f.Raw, translate); n > 0 {
				edits = append(edits, sdk.ReplaceRawHeader(f, value))
				changed = append(changed, f.Name)
			}
		}
	}
	return edits, changed
}

func rewritten(v sdk.Verdict, names []string) sdk.Verdict {
	if len(names) == 0 {
		return v
	}
	return v.Because("rewritten", strings.Join(names, ", ")).Count("rewritten", len(names))
}
