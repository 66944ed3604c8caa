package main

import (
	"context"
	"hash/fnv"
	"io"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"

	"github.com/posternmail/postern/sdk/dkim"
	"github.com/posternmail/postern/sdk/mime"
)

// dmarcResult is the judgement on the domain of From (RFC 7489).
type dmarcResult struct {
	result string
	reason string
	domain string // of From, lower case, A-labels
	policy string // "none", "quarantine" or "reject": what applies to this message; empty without a record
	spf    bool   // SPF is aligned and passed
	dkim   bool

	record  *dmarcRecord // nil: there is none
	owner   string       // domain at which it was found
	sampled bool         // the policy is for a percentage of messages without this one, or only tried out
}

// dmarcRecord is a policy record (RFC 7489 section 6.3), with what RFC 9989 section 4.7 adds.
type dmarcRecord struct {
	policy     string
	subdomains string
	absent     string // np: of subdomains that do not exist
	testing    bool   // t=y: the owner only tries it out
	strictDKIM bool
	strictSPF  bool
	percent    int
	options    string // fo, as it stands
	reports    string // rua, as it stands
}

// organizational domain: one label below the public suffix (RFC 7489 section 3.2).
func organizational(domain string) string {
	if org, err := publicsuffix.EffectiveTLDPlusOne(domain); err == nil {
		return org
	}
	return domain
}

// aligned identifiers (RFC 7489 section 3.1).
func aligned(domain, from string, strict bool) bool {
	if domain == from {
		return true
	}
	return !strict && domain != "" && organizational(domain) == organizational(from)
}

// asciiDomain writes a domain in A-labels.
func asciiDomain(domain string) string {
	if ascii, err := idna.Lookup.ToASCII(domain); err == nil {
		return ascii
	}
	return strings.ToLower(domain)
}

// fromDomains are the domains in the From fields, each once. Of a field that does not parse they are those that readers may
// make out in it.
func fromDomains(fields []string) (domains []string) {
	add := func(domain string) {
		if d := asciiDomain(domain); !slices.Contains(domains, d) {
			domains = append(domains, d)
		}
	}
	for _, raw := range fields {
		all := addressesOf(raw)
		for _, m := range all {
			add(m.Domain)
		}
		if len(all) == 0 {
			for _, like := range mime.AddressLike(raw) {
				add(like[strings.LastIndexByte(like, '@')+1:])
			}
		}
	}
	return domains
}

// malformed reports whether a field has no address by the grammar.
func malformed(fields []string) bool {
	return slices.ContainsFunc(fields, func(raw string) bool { return len(addressesOf(raw)) == 0 })
}

// maxFromDomains that are judged. No reader sees more.
const maxFromDomains = 10

// checkDMARC of a message; id decides whether it is among the percentage that a policy is for. Of several From fields (RFC
// 5322 section 3.6 allows one), several domains in it or one that does not parse readers see any, so the strictest policy that fails counts (RFC
// 7489 section 6.6.1), and none of them can prove the message.
func (a *Auth) checkDMARC(ctx context.Context, fromFields []string, s spfResult, signatures []dkim.Verification, id string) dmarcResult {
	domains := fromDomains(fromFields)
	switch {
	case len(domains) == 0:
		return dmarcResult{result: resultPermError, reason: "no domain in From"}
	case len(domains) == 1 && len(fromFields) == 1 && !malformed(fromFields):
		return a.checkDomain(ctx, domains[0], s, signatures, id)
	}
	out := dmarcResult{result: resultPermError, reason: "several From fields"}
	switch {
	case malformed(fromFields):
		out.reason = "From does not parse"
	case len(fromFields) == 1:
		out.reason = "several domains in From"
	}
	for _, domain := range domains[:min(len(domains), maxFromDomains)] {
		if one := a.checkDomain(ctx, domain, s, signatures, id); one.result == resultFail && strictness(one.policy) > strictness(out.policy) {
			one.reason = out.reason
			out = one
		}
	}
	return out
}

// askPolicies of the domains that checkDMARC will ask for, so that the resolver has them when the results of the other methods
// are there.
func (a *Auth) askPolicies(ctx context.Context, fromFields []string) {
	domains := fromDomains(fromFields)
	for _, domain := range domains[:min(len(domains), maxFromDomains)] {
		_, _, _ = a.policy(ctx, domain) // an error comes again, to checkDMARC
	}
}

// strictness of a policy; that of no policy is -1.
func strictness(policy string) int {
	return slices.Index([]string{resultNone, policyQuarantine, policyReject}, policy)
}

// checkDomain judges one domain of From.
func (a *Auth) checkDomain(ctx context.Context, domain string, s spfResult, signatures []dkim.Verification, id string) dmarcResult {
	out := dmarcResult{domain: domain, result: resultNone}
	record, owner, err := a.policy(ctx, domain)
	switch {
	case err != nil:
		out.result, out.reason = resultTempError, "DNS lookup failed"
		return out
	case record == nil:
		return out
	}
	out.record, out.owner = record, owner
	asked := record.asked(owner != domain)
	if owner != domain && record.absent != asked && !a.exists(ctx, domain) {
		asked = record.absent
	}
	out.policy = record.apply(asked, id)
	out.sampled = out.policy != asked
	out.spf = s.result == resultPass && aligned(asciiDomain(s.domain), domain, record.strictSPF)
	temporary := s.result == resultTempError && aligned(asciiDomain(s.domain), domain, record.strictSPF)
	for _, v := range signatures {
		if aligned(asciiDomain(v.Domain), domain, record.strictDKIM) {
			out.dkim = out.dkim || v.Result == dkim.Pass
			temporary = temporary || v.Result == dkim.TempError
		}
	}
	switch {
	case out.spf || out.dkim:
		out.result = resultPass
	case temporary:
		out.result, out.reason = resultTempError, "DNS lookup failed"
	default:
		out.result = resultFail
	}
	return out
}

// policy record of a domain or of its organizational domain (RFC 7489 section 6.6.3); owner is which of them has it.
func (a *Auth) policy(ctx context.Context, domain string) (record *dmarcRecord, owner string, err error) {
	for _, name := range []string{domain, organizational(domain)} {
		texts, err := a.resolver.TXT(ctx, "_dmarc."+name)
		if err != nil {
			return nil, "", err
		}
		switch records := recordsOf(texts); len(records) {
		case 0:
			continue
		case 1:
			return records[0], name, nil
		}
		return nil, "", nil // several are none (step 5)
	}
	return nil, "", nil
}

// recordsOf DMARC among texts.
func recordsOf(texts []string) []*dmarcRecord {
	var all []*dmarcRecord
	for _, text := range texts {
		if r := parseDMARC(text); r != nil {
			all = append(all, r)
		}
	}
	return all
}

// parseDMARC answers with nil for a text that is no record.
func parseDMARC(text string) *dmarcRecord {
	tags := dmarcTags(text)
	if tags == nil {
		return nil
	}
	lower := func(name string) string { return strings.ToLower(tags[name]) }
	r := &dmarcRecord{
		policy: lower("p"), subdomains: lower("sp"), absent: lower("np"), testing: lower("t") == "y",
		strictDKIM: lower("adkim") == "s", strictSPF: lower("aspf") == "s",
		percent: 100, options: tags["fo"], reports: tags["rua"],
	}
	if !isPolicy(r.policy) {
		if r.reports == "" {
			return nil
		}
		r.policy = resultNone // RFC 7489 section 6.6.3 step 6
	}
	if !isPolicy(r.subdomains) {
		r.subdomains = r.policy
	}
	if !isPolicy(r.absent) {
		r.absent = r.subdomains
	}
	if n, err := strconv.Atoi(tags["pct"]); err == nil && n >= 0 && n < 100 {
		r.percent = n
	}
	return r
}

// dmarcTags of a text that begins with the version; nil for any other.
func dmarcTags(text string) map[string]string {
	version, rest, _ := strings.Cut(text, ";")
	if name, value, _ := strings.Cut(version, "="); strings.TrimSpace(name) != "v" || strings.TrimSpace(value) != "DMARC1" {
		return nil
	}
	tags := map[string]string{}
	for spec := range strings.SplitSeq(rest, ";") {
		name, value, _ := strings.Cut(spec, "=")
		tags[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(value)
	}
	return tags
}

// Policies besides none.
const (
	policyQuarantine = "quarantine"
	policyReject     = "reject"
)

func isPolicy(p string) bool { return p == resultNone || p == policyQuarantine || p == policyReject }

// asked is what the record asks for, of the domain that has it or of those below.
func (r *dmarcRecord) asked(below bool) string {
	if below {
		return r.subdomains
	}
	return r.policy
}

// apply to a message what is asked for: those outside of the percentage get the next milder policy (RFC 7489 section
// 6.6.4), and so do all while the owner tries it out (RFC 9989 section 4.7).
func (r *dmarcRecord) apply(asked, id string) string {
	if !r.testing && (r.percent == 100 || sample(id) < r.percent) {
		return asked
	}
	if asked == policyReject {
		return policyQuarantine
	}
	return resultNone
}

// sample of a message: 0 to 99, the same at each attempt.
func sample(id string) int {
	h := fnv.New32a()
	io.WriteString(h, id)
	return int(h.Sum32() % 100)
}
