package main

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/match"
)

// Filter judges one recipient at a time: a bad one costs the message nothing but itself.
type Filter struct {
	Config
	accepted []sdk.AcceptedDomain
	trusted  []netip.Prefix // whose unknown recipients are not counted
	blocked  *match.Addresses

	recipients sdk.Table[recipient]
	sources    sdk.Table[source]
	ipBlock    sdk.Table[block]
	reputation sdk.Table[reputation]
}

// recipient is a row of the host's table recipients: under an address it exists, under "@" and a domain the
// directory knows all of the domain's recipients.
type recipient struct{}

// source is a row of the table sources: what a client asked for since its first unknown recipient. It lives as
// long as harvest_window.
type source struct {
	Unknown int64 `json:"unknown"`
	Known   int64 `json:"known"`
}

// block is a row of the host's table ip-block.
type block struct {
	Reason string `json:"reason"`
	By     string `json:"by"`
}

// reputation is what this agent adds to a row of the host's table reputation, whose keys are client addresses, of IPv6
// the /64: those that protocol analysis reads.
type reputation struct {
	Harvests int64 `json:"harvests"`
}

// Reasons in the ledger.
const (
	reasonUnknown = "RecipientDoesNotExist"
	reasonBlocked = "RecipientOnBlockList"
	reasonHarvest = "DirectoryHarvest"
)

// reputationKeep is how long a harvest stands in the reputation of a source.
const reputationKeep = 30 * 24 * time.Hour

func (f *Filter) subscribe(r *sdk.Registrar) {
	f.recipients = sdk.UseTable[recipient](r, "recipients", sdk.Key(sdk.Recipient))
	// A host on the Internet has its IPv6 address from a /64 of its own.
	f.sources = sdk.UseTable[source](r, "sources", sdk.Key(sdk.ClientNet(32, 64)), sdk.MaxRows(200_000))
	if f.HarvestLimit > 0 && f.HarvestBlock > 0 {
		f.ipBlock = sdk.UseTable[block](r, "ip-block", sdk.Key())
		f.reputation = sdk.UseTable[reputation](r, "reputation", sdk.Key(sdk.ClientNet(32, 64)))
	}
	r.OnRcpt(sdk.MayChange(sdk.Verdicts))
}

// OnRcpt judges a recipient.
func (f *Filter) OnRcpt(_ context.Context, e *sdk.RcptEvent) sdk.Verdict {
	if entry, ok := f.blocked.Match(e.Recipient.Mailbox); ok {
		return unknown().Because(reasonBlocked, entry)
	}
	if _, exists := f.recipients.Row(e); exists || !f.validated(e) {
		return f.known(e)
	}
	domain := "@" + address.ASCIIDomain(e.Recipient.Domain)
	if !e.Needed {
		return sdk.Continue().Needs(f.recipients.Keys(domain))
	}
	if _, covered := f.recipients.RowOf(e, domain); !covered {
		return sdk.Continue()
	}
	return f.unknown(e)
}

// validated reports whether the recipient must be in the directory, if that covers the domain.
func (f *Filter) validated(e *sdk.RcptEvent) bool {
	// RFC 5321 section 4.5.1: postmaster is always taken, with any domain of ours or none.
	return f.Validate && f.authoritative(address.ASCIIDomain(e.Recipient.Domain)) && !strings.EqualFold(e.Recipient.Local, "postmaster")
}

// authoritative reports whether a domain is ours alone. What is said of its name outweighs what is said of the
// subdomains of one above it.
func (f *Filter) authoritative(domain string) bool {
	found, length := "", -1
	for _, d := range f.accepted {
		above, wild := strings.CutPrefix(d.Name, "*")
		matches := domain == d.Name
		if wild {
			matches = strings.HasSuffix(domain, above) && len(domain) > len(above)
		}
		if n := len(above); matches && (n > length || !wild) {
			found, length = d.Type, n
			if !wild {
				break
			}
		}
	}
	return found == "authoritative"
}

func (f *Filter) anyAuthoritative() bool {
	return slices.ContainsFunc(f.accepted, func(d sdk.AcceptedDomain) bool { return d.Type == "authoritative" })
}

// known has no objection. A source that asks for more who do not exist gets the answer no faster than it gets a
// refusal. What it knows speaks for it: a large sender with one stale address is soon as fast as before.
func (f *Filter) known(e *sdk.RcptEvent) sdk.Verdict {
	row, suspect := f.sources.Row(e)
	if !suspect {
		return sdk.Continue()
	}
	v := sdk.Continue()
	if f.Tarpit > 0 && row.Value.Unknown >= row.Value.Known {
		v = sdk.Tarpit(f.Tarpit)
	}
	if left := f.left(e, row); left > 0 {
		v = v.Write(f.sources.Add("Known", 1, left))
	}
	return v
}

// unknown refuses a recipient that does not exist, and counts it against its source.
func (f *Filter) unknown(e *sdk.RcptEvent) sdk.Verdict {
	v := unknown().Because(reasonUnknown, "")
	if f.HarvestLimit == 0 || e.Session.Trust != sdk.Anonymous || e.Session.Client.In(f.trusted) {
		return v
	}
	row, _ := f.sources.Row(e)
	left := f.left(e, row)
	if left <= 0 {
		row, left = sdk.Row[source]{}, f.HarvestWindow
		return v.Write(f.sources.Delete(), f.sources.Add("Unknown", 1, left))
	}
	n := row.Value.Unknown + 1
	if n >= int64(f.HarvestLimit) && n >= row.Value.Known {
		return f.end(e, n)
	}
	return v.Write(f.sources.Add("Unknown", 1, left))
}

// left is how long the window of a source lasts: it begins with the first unknown recipient.
func (f *Filter) left(e *sdk.RcptEvent, row sdk.Row[source]) time.Duration {
	if row.Created.IsZero() {
		return f.HarvestWindow
	}
	return f.HarvestWindow - e.Time.Sub(row.Created)
}

// end the session of a source that harvests, and block it. The recipient gets the reply that any other unknown one
// gets.
func (f *Filter) end(e *sdk.RcptEvent, count int64) sdk.Verdict {
	data := strconv.FormatInt(count, 10) + " unknown recipients in " + f.HarvestWindow.String()
	v := sdk.Disconnect(550, "5.1.1", "User unknown").Because(reasonHarvest, data).
		Count("harvests", 1).Write(f.sources.Delete())
	if f.HarvestBlock == 0 {
		return v
	}
	return v.Write(
		f.ipBlock.Put(block{Reason: reasonHarvest + ": " + data, By: "recipientfilter"}, f.HarvestBlock).At(network(e.Session.Client.Addr)),
		f.reputation.Add("Harvests", 1, reputationKeep),
	)
}

// network that stands for a client: its address, of IPv6 the /64.
func network(ip netip.Addr) string {
	ip, bits := ip.Unmap(), 32
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return ip.String()
	}
	return p.String()
}

func unknown() sdk.Verdict { return sdk.Reject(550, "5.1.1", "User unknown") }
