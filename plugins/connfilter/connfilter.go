package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/dns"
	"github.com/posternmail/postern/sdk/feed"
	"github.com/posternmail/postern/sdk/match"
	"github.com/posternmail/postern/sdk/trace"
)

// Filter judges the source of a session: first by the own lists, at OnConnect, then, before its first message,
// by the DNS lists. A client that is refused learns it at RCPT, so that the attempt is logged with its
// recipients and the exceptions among them can apply. Behind a server of our own the source is another one for
// each message; it is judged when the header is there.
type Filter struct {
	Config
	internal  []netip.Prefix // our own servers
	allow     *list
	block     *list
	providers []provider // in the order in which they decide
	bypassed  *match.Addresses
	resolver  *dns.Resolver
	health    *sdk.Health
	feeds     *feed.Feeds[fedLists]
	machine   sdk.Table[blocked]
	stop      func() // ends the watching of files
}

// blocked is a row of the table ip-block, which other agents and operators write. Any JSON object is one: a
// value of another type than text still blocks.
type blocked struct {
	Reason any `json:"reason"`
	By     any `json:"by"`
}

// Reasons in the ledger.
const (
	reasonInternalServer    = "InternalServer"    // the client is a server of our own
	reasonNoSource          = "NoSource"          // no source in Received
	reasonAllowList         = "IPOnAllowList"     // allow_list
	reasonAllowProvider     = "AllowListProvider" // dnswl
	reasonBlockList         = "LocalBlockList"    // block_list
	reasonMachine           = "MachineBlockList"  // the table ip-block
	reasonAllowFeed         = "AllowListFeed"     // a feed's ip-allow
	reasonBlockFeed         = "BlockListFeed"     // a feed's ip-block
	reasonReputation        = "FeedReputation"    // a feed's ip-reputation
	reasonBlockProvider     = "BlockListProvider" // dnsbl
	reasonEarlyTalker       = "EarlyTalker"       // early_talkers: before the greeting
	reasonPipelining        = "PipeliningAbuse"   // early_talkers: before a reply
	reasonRecipientBypassed = "RecipientBypassed" // bypassed_recipients
)

// Stamps of the session, for the events after the one that judged it.
const (
	stampRefusal    = "refusal" // why this client is refused
	stampAsked      = "asked"   // the DNS lists have been asked
	stampReputation = "iprl"    // shared: the level that a feed gives the source
	stampAllowed    = "allowed" // it is on an allow list: its own bypass does not keep this agent away
)

func (f *Filter) subscribe(r *sdk.Registrar) {
	f.machine = sdk.UseTable[blocked](r, "ip-block", sdk.Key(sdk.Client), sdk.LongestPrefix(), sdk.OnlyAt(sdk.OnConnect, sdk.OnEndOfHeaders))
	leave := sdk.MayChange(sdk.Stamps(stampRefusal, stampAsked, stampAllowed))
	r.OnConnect(leave, sdk.MayChange(sdk.Stamps(stampReputation)), sdk.MayBypass)
	r.OnMail(sdk.ReadsOwnStamps(stampRefusal, stampAsked, stampAllowed), leave, sdk.MayBypass, sdk.Waits)
	r.OnRcpt(sdk.ReadsOwnStamps(stampRefusal, stampAllowed), sdk.MayChange(sdk.Verdicts))
	r.OnEndOfHeaders(sdk.ReadsHeaders("Received"), sdk.MayChange(sdk.Verdicts, sdk.Stamps(stampReputation)), sdk.MayBypass)
	if len(f.providers) == 0 {
		r.Skip(sdk.OnMail)
	} else {
		r.OnEndOfHeaders(sdk.Waits)
	}
	if len(f.internal) == 0 {
		r.Skip(sdk.OnEndOfHeaders)
	}
}

// Close is called when the last event of this configuration was answered.
func (f *Filter) Close() {
	f.stop()
	f.feeds.Close()
}

// OnConnect looks into the own lists.
func (f *Filter) OnConnect(_ context.Context, e *sdk.ConnectEvent) sdk.Verdict {
	ip := e.Session.Client.Addr
	if f.relayed(ip) {
		return sdk.Continue().Because(reasonInternalServer, "")
	}
	j := f.judgeByLists(ip, e.Time)
	if row, found := f.machine.Row(e); found && j.kind == unlisted {
		j = f.judgeByRow(ip, row)
	}
	if j.kind == unlisted {
		j = f.judgeByFeeds(ip, e.Time)
	}
	if _, _, known := f.reputation(ip); known.level > 0 {
		return j.session().StampSession(stampReputation, strconv.Itoa(known.level))
	}
	return j.session()
}

// OnMail asks the DNS lists, once a session.
func (f *Filter) OnMail(ctx context.Context, e *sdk.MailEvent) sdk.Verdict {
	ip := e.Session.Client.Addr
	if e.OwnStamp(stampAsked)+e.OwnStamp(stampRefusal)+e.OwnStamp(stampAllowed) != "" || f.relayed(ip) {
		return sdk.Continue()
	}
	return f.askLists(ctx, ip).session().StampSession(stampAsked, "1")
}

// OnRcpt refuses the recipients of a client that was judged before, or does not wait for replies.
func (f *Filter) OnRcpt(_ context.Context, e *sdk.RcptEvent) sdk.Verdict {
	if e.OwnStamp(stampAllowed) != "" {
		return sdk.Continue()
	}
	j := f.judgeManners(e.Session)
	if stamp := e.OwnStamp(stampRefusal); stamp != "" {
		if err := json.Unmarshal([]byte(stamp), &j); err != nil {
			return sdk.Fault(fmt.Errorf("own stamp %s: %w", stampRefusal, err))
		}
		j.kind = refused
	}
	if j.kind == unlisted {
		return sdk.Continue().Because(j.Reason, j.Data)
	}
	if entry, ok := f.bypassed.Match(e.Recipient.Mailbox); ok {
		return sdk.Continue().Because(reasonRecipientBypassed, entry)
	}
	return j.reject()
}

// OnEndOfHeaders judges mail that comes through a server of our own: its source is found in Received.
func (f *Filter) OnEndOfHeaders(ctx context.Context, e *sdk.HeadersEvent) sdk.Verdict {
	if !f.relayed(e.Session.Client.Addr) {
		return sdk.Continue()
	}
	ip, found := f.source(e.Headers)
	if !found {
		return sdk.Continue().Because(reasonNoSource, "")
	}
	j := f.judgeByLists(ip, e.Time)
	if j.kind == unlisted && !e.Needed {
		return sdk.Continue().Needs(f.machine.Keys(ip.String()))
	}
	if row, found := f.machine.RowOf(e, ip.String()); found && j.kind == unlisted {
		j = f.judgeByRow(ip, row)
	}
	if j.kind == unlisted {
		j = f.judgeByFeeds(ip, e.Time)
	}
	if j.kind == unlisted {
		j = f.askLists(ctx, ip)
	}
	if _, _, known := f.reputation(ip); known.level > 0 {
		return f.message(e, j).Stamp(stampReputation, strconv.Itoa(known.level))
	}
	return f.message(e, j)
}

// message is the verdict on a message.
func (f *Filter) message(e *sdk.HeadersEvent, j judgement) sdk.Verdict {
	switch j.kind {
	case allowed:
		return sdk.Bypass(sdk.Antispam, sdk.InMessage).Because(j.Reason, j.Data)
	case refused:
		return f.refuseRecipients(e, j)
	}
	return sdk.Continue()
}

// refuseRecipients refuses all but those who want the mail all the same.
func (f *Filter) refuseRecipients(e *sdk.HeadersEvent, j judgement) sdk.Verdict {
	var unwilling []sdk.EnvelopeRecipient
	for _, r := range e.Recipients {
		if _, ok := f.bypassed.Match(r.Mailbox); !ok {
			unwilling = append(unwilling, r)
		}
	}
	switch len(unwilling) {
	case 0:
		return sdk.Continue().Because(reasonRecipientBypassed, j.Data)
	case len(e.Recipients):
		return j.reject()
	}
	return j.reject().ForRecipients(unwilling...)
}

// source of a message that came through servers of our own.
func (f *Filter) source(h sdk.Header) (netip.Addr, bool) {
	var received []string
	for field := range h.All("Received") {
		received = append(received, string(field.Raw))
	}
	client, found := trace.Source(received, f.relayed)
	return client.Addr, found
}

// relayed reports whether ip is a server of our own, so that the source is found in Received.
func (f *Filter) relayed(ip netip.Addr) bool { return sdk.Address{Addr: ip}.In(f.internal) }

// judgement of an address. That of a refused client is a stamp.
type judgement struct {
	kind   kind
	Reason string
	Data   string
	Text   string // of a refusal
}

type kind uint8

const (
	unlisted kind = iota
	allowed
	refused
)

// session is the verdict on a session: a refusal waits for RCPT.
func (j judgement) session() sdk.Verdict {
	switch j.kind {
	case allowed:
		return sdk.Bypass(sdk.Antispam, sdk.InSession).Because(j.Reason, j.Data).StampSession(stampAllowed, "1")
	case refused:
		stamp, err := json.Marshal(j)
		if err != nil {
			return sdk.Fault(err)
		}
		return sdk.Continue().Because(j.Reason, j.Data).StampSession(stampRefusal, string(stamp))
	}
	return sdk.Continue()
}

func (j judgement) reject() sdk.Verdict {
	if j.Reason == reasonEarlyTalker || j.Reason == reasonPipelining {
		return sdk.Reject(554, "5.5.0", j.Text).Because(j.Reason, j.Data)
	}
	return sdk.Reject(550, "5.7.1", j.Text).Because(j.Reason, j.Data)
}

// judgeManners refuses a stranger who does not wait for the greeting (RFC 5321 section 4.3.1) or for replies that it must
// wait for (RFC 2920 section 3.1): no mail server does that, programs that only send junk do. Those on this machine may.
func (f *Filter) judgeManners(s *sdk.Session) judgement {
	var j judgement
	switch {
	case f.EarlyTalkers == "ignore" || s.Trust != sdk.Anonymous || s.Client.IsLoopback() || f.relayed(s.Client.Addr):
		return j
	case s.EarlyTalk:
		j.Reason, j.Data = reasonEarlyTalker, "before the greeting"
	case s.Unsynchronized > 0:
		j.Reason, j.Data = reasonPipelining, "before "+strconv.Itoa(s.Unsynchronized)+" replies"
	default:
		return j
	}
	if f.EarlyTalkers == "reject" {
		j.kind, j.Text = refused, fill(f.EarlyResponse, s.Client.Addr, "")
	}
	return j
}

// judgeByLists looks into the allow list, then into the block list.
func (f *Filter) judgeByLists(ip netip.Addr, now time.Time) judgement {
	if p, e, ok := f.allow.find(ip, now); ok {
		return judgement{kind: allowed, Reason: reasonAllowList, Data: describe(p, e.comment)}
	}
	if p, e, ok := f.block.find(ip, now); ok {
		return judgement{refused, reasonBlockList, describe(p, e.comment), fill(f.BlockResponse, ip, "")}
	}
	return judgement{}
}

// judgeByRow makes a refusal of a row of the table ip-block.
func (f *Filter) judgeByRow(ip netip.Addr, row sdk.Row[blocked]) judgement {
	data := row.Matched
	if row.Value.By != nil {
		data += fmt.Sprintf(" by %v", row.Value.By)
	}
	if row.Value.Reason != nil {
		data += fmt.Sprintf(" (%v)", row.Value.Reason)
	}
	return judgement{refused, reasonMachine, clip(data), fill(f.MachineResponse, ip, "")}
}

func describe(p netip.Prefix, comment string) string {
	if comment == "" {
		return p.String()
	}
	return clip(p.String() + " (" + comment + ")")
}

// maxData is how much of comments and rows goes into stamps and the ledger, in octets.
const maxData = 300

func clip(s string) string {
	if len(s) <= maxData {
		return s
	}
	return strings.ToValidUTF8(s[:maxData], "") + "..."
}

// fill in what a response says about the client.
func fill(text string, ip netip.Addr, zone string) string {
	return strings.NewReplacer("{ip}", ip.String(), "{zone}", zone).Replace(text)
}
