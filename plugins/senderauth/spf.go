package main

import (
	"context"
	"strings"

	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/spf"
)

// Results in the words of RFC 8601, of all methods.
const (
	resultNone      = "none"
	resultPass      = "pass"
	resultFail      = "fail"
	resultSoftFail  = "softfail"
	resultTempError = "temperror"
	resultPermError = "permerror"
)

// spfResult is the answer to one check_host (RFC 7208 section 4).
type spfResult struct {
	result string
	reason string
	domain string // that was asked about, lower case
	sender string // MAIL FROM, or postmaster@HELO for the null sender
	helo   bool   // the identity is that of HELO

	explanation string // of the domain, why it fails
}

// checkSPF judges the client by MAIL FROM, or by HELO for the null sender (RFC 7208 section 2.4).
func (a *Auth) checkSPF(ctx context.Context, c client, sender address.Mailbox) spfResult {
	out := spfResult{sender: sender.Local + "@" + sender.Domain, domain: strings.ToLower(sender.Domain)}
	if sender.IsNull() {
		out.helo, out.domain = true, strings.ToLower(strings.TrimSuffix(c.helo, "."))
		out.sender = "postmaster@" + out.domain
	}
	return a.checkHost(ctx, c, out, nil)
}

// checkHost judges the client for a domain.
func (a *Auth) checkHost(ctx context.Context, c client, out spfResult, records func([]string) []string) spfResult {
	if !c.ip.IsValid() {
		out.result, out.reason = resultNone, "no source address"
		return out
	}
	answer := spf.Check(ctx, a.resolver, spf.Query{
		IP: c.ip, Helo: c.helo, Sender: out.sender, Domain: out.domain, Receiver: a.host, Now: c.time, Records: records,
	})
	out.result = string(answer.Result)
	if answer.Result == spf.TempError || answer.Result == spf.PermError {
		out.reason = answer.Reason
	}
	out.explanation = answer.Explanation
	return out
}
