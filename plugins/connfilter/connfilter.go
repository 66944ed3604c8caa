package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/dns"
	"github.com/posternmail/postern/sdk/match"
)

// Filter judges the source of a session or message: first the own lists, then, before the first message, the
// DNS lists. A client that is refused learns it at RCPT, so that the attempt is logged with its recipients and
// the exceptions among them can apply.
type Filter struct {
	Config
	host     *sdk.Host
	resolver *dns.Resolver
	allow    *networks
	block    *networks
	allowAt  []provider
	blockAt  []provider
	bypassed *match.Addresses
	machine  sdk.Table[Block]
}

// Block is a row of the table ip-block, which other agents and operators write.
type Block struct {
	Reason string `json:"reason"`
	By     string `json:"by"`
}

// Stamps of the session, for the events after the one that judged it.
const (
	stampRefuse = "refuse" // "reason|data|text": why this client is refused
	stampSeen   = "judged" // the DNS lists have been asked
)

func (f *Filter) newResolver() (*dns.Resolver, error) {
	servers := f.DNSServers
	if len(servers) == 0 {
		servers = f.host.Resolvers
	}
	r, err := dns.New(dns.Options{Servers: servers, Timeout: f.DNSTimeout})
	if err != nil {
		return nil, fmt.Errorf("preparing DNS: %w", err)
	}
	return r, nil
}

func (f *Filter) subscribe(r *sdk.Registrar) {
	f.machine = sdk.UseTable[Block](r, "ip-block", sdk.Key(sdk.Client), sdk.LongestPrefix(), sdk.OnlyAt(sdk.OnConnect, sdk.OnEndOfHeaders))
	leave := sdk.MayChange(sdk.Stamps(stampRefuse, stampSeen))
	r.OnConnect(leave, sdk.MayBypass)
	mail := []sdk.Option{sdk.ReadsOwnStamps(stampRefuse, stampSeen), leave, sdk.MayBypass}
	headers := []sdk.Option{sdk.ReadsHeaders("Received"), sdk.MayChange(sdk.Verdicts), sdk.MayBypass}
	if len(f.allowAt)+len(f.blockAt) > 0 {
		mail, headers = append(mail, sdk.Waits), append(headers, sdk.Waits)
	}
	r.OnMail(mail...)
	r.OnRcpt(sdk.ReadsOwnStamps(stampRefuse), sdk.MayChange(sdk.Verdicts))
	r.OnEndOfHeaders(headers...)
}

// OnConnect looks into the own lists.
func (f *Filter) OnConnect(_ context.Context, e *sdk.ConnectEvent) sdk.Verdict {
	if f.relayed(e.Session.Client.Addr) {
		return sdk.Continue().Because("internal-server", "")
	}
	row, blocked := f.machine.Row(e)
	j := f.own(e.Session.Client.Addr, e.Time, row, blocked)
	return j.session()
}

// OnMail asks the DNS lists, once a session.
func (f *Filter) OnMail(ctx context.Context, e *sdk.MailEvent) sdk.Verdict {
	ip := e.Session.Client.Addr
	if len(f.allowAt)+len(f.blockAt) == 0 || e.OwnStamp(stampSeen) != "" || e.OwnStamp(stampRefuse) != "" || f.relayed(ip) {
		return sdk.Continue()
	}
	return f.askLists(ctx, ip).session().StampSession(stampSeen, "1")
}

// OnRcpt refuses the recipients of a client that was judged before.
func (f *Filter) OnRcpt(_ context.Context, e *sdk.RcptEvent) sdk.Verdict {
	refuse := e.OwnStamp(stampRefuse)
	if refuse == "" {
		return sdk.Continue()
	}
	if entry, ok := f.bypassed.Match(e.Recipient.Mailbox); ok {
		return sdk.Continue().Because("bypassed-recipient", entry)
	}
	reason, rest, _ := strings.Cut(refuse, "|")
	data, text, _ := strings.Cut(rest, "|")
	return sdk.Reject(550, "5.7.1", text).Because(reason, data)
}

// OnEndOfHeaders judges mail that comes through a server of our own: its source is found in Received.
func (f *Filter) OnEndOfHeaders(ctx context.Context, e *sdk.HeadersEvent) sdk.Verdict {
	if !f.relayed(e.Session.Client.Addr) {
		return sdk.Continue()
	}
	ip, found := f.source(e.Headers)
	if !found {
		return sdk.Continue().Because("no-source", "")
	}
	if !e.Needed {
		return sdk.Continue().Needs(f.machine.Keys(ip.String()))
	}
	row, blocked := f.machine.RowOf(e, ip.String())
	j := f.own(ip, e.Time, row, blocked)
	if j.kind == unlisted {
		j = f.askLists(ctx, ip)
	}
	switch j.kind {
	case allowed:
		return sdk.Bypass(sdk.Antispam, sdk.InMessage).Because(j.reason, j.data)
	case refused:
		return f.refuseRecipients(e, j)
	}
	return sdk.Continue()
}

// refuseRecipients refuses all but those who want the mail all the same.
func (f *Filter) refuseRecipients(e *sdk.HeadersEvent, j judgement) sdk.Verdict {
	var refused []sdk.EnvelopeRecipient
	for _, r := range e.Recipients {
		if _, ok := f.bypassed.Match(r.Mailbox); !ok {
			refused = append(refused, r)
		}
	}
	if len(refused) == 0 {
		return sdk.Continue().Because("bypassed-recipient", j.data)
	}
	return sdk.Reject(550, "5.7.1", j.text).Because(j.reason, j.data).ForRecipients(refused...)
}

// relayed reports whether ip is a server of our own, so that the source is found in Received.
func (f *Filter) relayed(ip netip.Addr) bool {
	for _, p := range f.host.InternalSMTPServers {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// judgement of an address.
type judgement struct {
	kind   kind
	reason string
	data   string
	text   string // of a refusal
}

type kind int

const (
	unlisted kind = iota
	allowed
	refused
)

// session is the verdict on a session: a refusal waits for RCPT.
func (j judgement) session() sdk.Verdict {
	switch j.kind {
	case allowed:
		return sdk.Bypass(sdk.Antispam, sdk.InSession).Because(j.reason, j.data)
	case refused:
		return sdk.Continue().Because(j.reason, j.data).StampSession(stampRefuse, j.reason+"|"+strings.ReplaceAll(j.data, "|", "/")+"|"+j.text)
	}
	return sdk.Continue()
}

// own looks into the allow list, the block list and the row of the table, in this order (reference: Exchange's
// IP Allow list is looked at first).
func (f *Filter) own(ip netip.Addr, now time.Time, row sdk.Row[Block], blocked bool) judgement {
	if l, p, ok := find(f.allow, ip, now); ok {
		return judgement{kind: allowed, reason: "IPOnAllowList", data: describe(p, l.comment)}
	}
	if l, p, ok := find(f.block, ip, now); ok {
		return judgement{refused, "LocalBlockList", describe(p, l.comment), fill(f.BlockResponse, ip, "")}
	}
	if blocked {
		data := row.Matched
		if row.Value.By != "" {
			data += " by " + row.Value.By
		}
		return judgement{refused, "MachineBlockList", data + ": " + row.Value.Reason, fill(f.MachineResponse, ip, "")}
	}
	return judgement{}
}

func describe(p netip.Prefix, comment string) string {
	if comment == "" {
		return p.String()
	}
	return p.String() + " (" + comment + ")"
}

func fill(text string, ip netip.Addr, zone string) string {
	return strings.NewReplacer("{ip}", ip.String(), "{zone}", zone, "{0}", ip.String()).Replace(text)
}
