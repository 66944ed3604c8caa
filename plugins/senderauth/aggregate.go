package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
)

// aggregate is a row of the table of that name: what messages of one day have in common that a DMARC aggregate
// report tells of (RFC 7489 section 7.2), and how many they were. Its key is "20260131/domain/digest", so the rows
// of a report stand together.
type aggregate struct {
	Owner       string      `json:"owner"` // domain that has the policy record
	IP          string      `json:"ip"`
	From        string      `json:"from"`
	MailFrom    string      `json:"mail_from,omitempty"` // its domain
	Disposition string      `json:"disposition"`
	DKIM        string      `json:"dkim"` // in the view of DMARC: aligned
	SPF         string      `json:"spf"`
	Override    string      `json:"override,omitempty"` // why the disposition is not what the policy asks for
	Comment     string      `json:"comment,omitempty"`
	Signatures  []signature `json:"signatures,omitempty"`
	SPFDomain   string      `json:"spf_domain,omitempty"`
	SPFScope    string      `json:"spf_scope,omitempty"`
	SPFResult   string      `json:"spf_result,omitempty"`
	Count       int64       `json:"count,omitempty"`
}

// signature as it is reported.
type signature struct {
	Domain   string `json:"domain"`
	Selector string `json:"selector"`
	Result   string `json:"result"`
}

// Bounds of what is kept for reports: strangers fill it.
const (
	maxAggregates       = 100_000            // rows; the oldest leave
	keepAggregates      = 7 * 24 * time.Hour // at most: as long as DNS does not say where to report to
	maxReportSignatures = 4                  // of a message
)

// dayForm is how the day of a row stands in its key. Days are those of UTC (RFC 7489 section 7.2).
const dayForm = "20060102"

// counted adds what a message adds to the report for the domain of From. What a client is asked to send again is
// counted when it comes again.
func (a *Auth) counted(v sdk.Verdict, e *sdk.DataEvent, f *findings, act action) sdk.Verdict {
	if a.ReportFrom == nil || f.dmarc.record == nil || f.dmarc.record.reports == "" || !f.client.ip.IsValid() {
		return v
	}
	if f.dmarc.result == resultTempError || act.temporary() || !presentable(f.dmarc.domain) {
		return v
	}
	row := f.aggregate(act)
	key := row.key(e.Time)
	return v.Write(a.counts.PutIfAbsent(row, keepAggregates).At(key), a.counts.Add("Count", 1, keepAggregates).At(key))
}

func (r aggregate) key(at time.Time) string {
	text, err := json.Marshal(r)
	if err != nil { // strings and numbers have a form in JSON
		text = []byte(err.Error())
	}
	sum := sha256.Sum256(text)
	return at.UTC().Format(dayForm) + "/" + r.Owner + "/" + hex.EncodeToString(sum[:12])
}

// presentable reports whether a name that strangers chose can be shown as it is.
func presentable(name string) bool { return quoted(name) == name }

// aggregate that the message belongs to.
func (f *findings) aggregate(act action) aggregate {
	d := f.dmarc
	r := aggregate{
		Owner: d.owner, IP: f.client.ip.String(), From: d.domain, Disposition: act.disposition(),
		DKIM: passOrFail(d.dkim), SPF: passOrFail(d.spf), SPFScope: "mfrom", SPFResult: f.spf.result,
	}
	if !f.spf.helo && presentable(f.spf.domain) {
		r.MailFrom = f.spf.domain
	}
	if f.spf.helo {
		r.SPFScope = "helo"
	}
	if presentable(f.spf.domain) {
		r.SPFDomain = f.spf.domain
	}
	for _, v := range f.signatures {
		if len(r.Signatures) < maxReportSignatures && presentable(v.Domain) && presentable(v.Selector) {
			r.Signatures = append(r.Signatures, signature{v.Domain, v.Selector, string(v.Result)})
		}
	}
	r.Override, r.Comment = f.whyNot(r.Disposition)
	return r
}

func passOrFail(pass bool) string {
	if pass {
		return resultPass
	}
	return resultFail
}

// whyNot says why the policy was not followed (RFC 7489 section 6, RFC 8617 section 7.2.2).
func (f *findings) whyNot(disposition string) (override, comment string) {
	asked := resultNone
	if f.dmarc.result == resultFail {
		asked = f.dmarc.policy
	}
	switch {
	case f.sealer != "":
		newest := len(f.chain.Sets)
		return "local_policy", fmt.Sprintf("arc=pass as[%d].d=%s", newest, f.sealer)
	case disposition != asked:
		return "local_policy", ""
	case f.dmarc.result == resultFail && f.dmarc.sampled && f.dmarc.record.testing:
		return "other", "policy_test_mode"
	case f.dmarc.result == resultFail && f.dmarc.sampled:
		return "sampled_out", ""
	}
	return "", ""
}

// disposition of a message in the words of a report.
func (a *action) disposition() string {
	switch a.what {
	case actionReject, actionDelete:
		return policyReject
	case actionQuarantine:
		return policyQuarantine
	}
	return resultNone
}

// temporary reports whether the client is asked to try again.
func (a *action) temporary() bool { return a.what == actionReject && a.reply.code < 500 }

// dayOf a row's key, and the domain; false for a key that is none of ours.
func dayOf(key string) (day time.Time, domain string, ok bool) {
	text, rest, _ := strings.Cut(key, "/")
	domain, _, found := strings.Cut(rest, "/")
	day, err := time.Parse(dayForm, text)
	return day, domain, err == nil && found && domain != ""
}
