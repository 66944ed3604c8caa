package main

import (
	"fmt"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/arc"
	"github.com/posternmail/postern/sdk/dkim"
)

// Actions.
const (
	actionStamp      = "stamp"
	actionReject     = "reject"
	actionDelete     = "delete"
	actionQuarantine = "quarantine"
)

// reply of a refusal.
type reply struct {
	code     int
	enhanced string
	text     string
}

// Replies. Those of Sender ID are Exchange's; the enhanced codes of the others are those of RFC 7372.
var (
	replySPF           = reply{550, "5.7.23", "SPF validation failed"}
	replySPFError      = reply{550, "5.7.24", "SPF validation error"}
	replySPFTemporary  = reply{451, "4.4.3", "SPF check is temporarily unavailable"}
	replySenderID      = reply{550, "5.7.1", "Sender ID (PRA) Not Permitted"}
	replyNoPurported   = reply{550, "5.7.1", "Missing purported responsible address"}
	replySenderIDLater = reply{451, "4.4.3", "Sender ID check is temporarily unavailable"}
	replyDKIM          = reply{550, "5.7.20", "No passing DKIM signature found"}
	replyARC           = reply{550, "5.7.29", "ARC validation failure"}
	replyDMARC         = reply{550, "5.7.1", "Message refused by the DMARC policy of the domain in From"}
	replyDMARCLater    = reply{451, "4.4.3", "DMARC check is temporarily unavailable"}
)

// action on a finding.
type action struct {
	what   string
	reply  reply
	reason string
	data   string
}

func (a *action) verdict() sdk.Verdict {
	switch {
	case a.what == actionDelete:
		return sdk.Discard()
	case a.what == actionQuarantine:
		return sdk.Quarantine()
	case a.reply.code < 500:
		return sdk.Defer(a.reply.code, a.reply.enhanced, a.reply.text)
	}
	return sdk.Reject(a.reply.code, a.reply.enhanced, a.reply.text)
}

// action to take: the first that is not just to stamp, DMARC before the methods it rests on. What proves the domain of
// From, or a sealer that is trusted, outweighs SPF and Sender ID, which do not survive forwarding.
func (a *Auth) action(f *findings) (action, bool) {
	candidates := []action{a.dmarcAction(f)}
	if f.dmarc.result != resultPass && f.sealer == "" {
		candidates = append(candidates, a.senderIDAction(f), a.spfAction(f), a.dkimAction(f), a.arcAction(f))
	}
	for _, c := range candidates {
		if c.what != "" && c.what != actionStamp {
			return c, true
		}
	}
	return action{}, false
}

func (a *Auth) dmarcAction(f *findings) action {
	d := f.dmarc
	data := fmt.Sprintf("%s p=%s", clip(d.domain), d.policy)
	switch {
	case d.result == resultTempError:
		return action{a.DMARCTempError, replyDMARCLater, reasonDMARC, clip(d.domain) + " temperror"}
	case d.result != resultFail || f.sealer != "":
		return action{}
	case d.policy == "reject":
		return action{a.DMARCReject, replyDMARC, reasonDMARC, data}
	case d.policy == "quarantine":
		return action{a.DMARCQuarantine, replyDMARC, reasonDMARC, data}
	}
	return action{}
}

func (a *Auth) senderIDAction(f *findings) action {
	if f.senderID == nil {
		return action{}
	}
	data := clip(f.purported.Domain) + " " + f.senderID.result
	switch {
	case f.senderID.result == resultTempError:
		return action{a.SenderIDTempError, replySenderIDLater, reasonSenderID, data}
	case f.senderID.result != resultFail:
		return action{}
	case f.purported.field == "":
		return action{a.SenderIDFail, replyNoPurported, reasonSenderID, f.senderID.reason}
	}
	return action{a.SenderIDFail, replySenderID, reasonSenderID, data}
}

func (a *Auth) spfAction(f *findings) action {
	data := clip(f.spf.domain) + " " + f.spf.result
	switch f.spf.result {
	case resultFail:
		return action{a.SPFFail, replySPF, reasonSPF, data}
	case resultSoftFail:
		return action{a.SPFSoftFail, replySPF, reasonSPF, data}
	case resultTempError:
		return action{a.SPFTempError, replySPFTemporary, reasonSPF, data}
	case resultPermError:
		return action{a.SPFPermError, replySPFError, reasonSPF, data}
	}
	return action{}
}

func (a *Auth) dkimAction(f *findings) action {
	if s := f.signature(); s.Result == dkim.Fail {
		return action{a.DKIMFail, replyDKIM, reasonDKIM, clip(s.Domain) + " " + s.Reason}
	}
	return action{}
}

func (a *Auth) arcAction(f *findings) action {
	if f.chain.Result == arc.Fail {
		return action{a.ARCFail, replyARC, reasonARC, clip(f.chain.Reason)}
	}
	return action{}
}
