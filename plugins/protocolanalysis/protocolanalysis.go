package main

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/dns"
	"github.com/posternmail/postern/sdk/trace"
)

// Analysis rates sources. What it knows of one is in rows of tables, and every count in them is added to, never written
// anew: sessions of one source may end at the same time.
type Analysis struct {
	Config
	host     *sdk.Host
	instance string
	health   *sdk.Health
	resolver *dns.Resolver
	dnsDown  atomic.Int64 // until when DNS is not asked, in nanoseconds since 1970
	prober   *prober      // nil: nobody is probed

	reputation sdk.Table[profile]
	recent     sdk.Table[recent]
	proxies    sdk.Table[proxyRow]
	ipBlock    sdk.Table[block]
}

// proxyRow is a row of the table proxies: what the last test of a source found.
type proxyRow struct {
	Open string `json:"open"` // "socks5 on port 1080"; "" is none
}

// block is a row of the host's table ip-block.
type block struct {
	Reason string `json:"reason"`
	By     string `json:"by"`
	SRL    int    `json:"srl"`
}

// Reasons in the ledger.
const (
	reasonRated    = "SenderReputation"           // the level and what it is made of
	reasonNotRated = "SenderNotRated"             // too little is known
	reasonBlocked  = "SrlAtOrAboveBlockThreshold" // the source is blocked from now on
	reasonInBlock  = "SenderBlocked"              // it was blocked since the session began
	reasonNoSource = "NoSource"                   // no source in Received
)

// Stamps.
const (
	stampFeed   = "iprl"   // shared: what a feed of connfilter gives the source
	stampSRL    = "srl"    // shared: the level of the source
	stampSource = "source" // the source of a message that came through a server of our own
)

func (a *Analysis) subscribe(r *sdk.Registrar) {
	// A host on the Internet has its IPv6 address from a /64 of its own.
	source := sdk.Key(sdk.ClientNet(32, 64))
	rated := sdk.OnlyAt(sdk.OnMail, sdk.OnEndOfData, sdk.OnReject, sdk.OnDisconnect)
	a.reputation = sdk.UseTable[profile](r, "reputation", source, sdk.OnlyAt(sdk.OnMail, sdk.OnEndOfData, sdk.OnReject, sdk.OnDisconnect, sdk.OnSchedule))
	a.recent = sdk.UseTable[recent](r, "recent", source, sdk.MaxRows(200_000),
		sdk.OnlyAt(sdk.OnHelo, sdk.OnEhlo, sdk.OnMail, sdk.OnEndOfData, sdk.OnReject, sdk.OnDisconnect))
	a.proxies = sdk.UseTable[proxyRow](r, "proxies", source, sdk.MaxRows(200_000), rated)
	a.ipBlock = sdk.UseTable[block](r, "ip-block", sdk.Key(sdk.Client), sdk.LongestPrefix(), rated)
	r.OnMail(sdk.MayChange(sdk.Verdicts, sdk.Stamps(stampSRL)))
	r.OnEndOfHeaders(sdk.ReadsHeaders("Received"), sdk.MayChange(sdk.Stamps(stampSource)))
	r.OnEndOfData(sdk.ReadsStamps("scl"), sdk.ReadsOwnStamps(stampSource), sdk.MayChange(sdk.Stamps(stampSRL)))
	r.OnReject(sdk.ReadsStamps("scl"), sdk.ReadsOwnStamps(stampSource))
	r.OnSchedule(sdk.Every(a.HalfLife))
	if a.WeightFeed > 0 {
		for _, kind := range []sdk.EventKind{sdk.OnMail, sdk.OnEndOfData, sdk.OnReject} {
			r.On(kind, sdk.ReadsStamps(stampFeed))
		}
	}
	if a.prober != nil || a.ReverseDNS {
		r.OnDisconnect(sdk.Waits)
	}
	if len(a.host.InternalSMTPServers) == 0 {
		r.Skip(sdk.OnEndOfHeaders)
	}
}

// OnHelo counts the names that a source gives itself.
func (a *Analysis) OnHelo(_ context.Context, e *sdk.HelloEvent) sdk.Verdict { return a.hello(e) }

// OnEhlo is OnHelo.
func (a *Analysis) OnEhlo(_ context.Context, e *sdk.HelloEvent) sdk.Verdict { return a.hello(e) }

func (a *Analysis) hello(e *sdk.HelloEvent) sdk.Verdict {
	if !a.rates(e.Session) {
		return sdk.Continue()
	}
	row, _ := a.recent.Row(e)
	name := nameKey(e.Name)
	if row.Value[name] > 0 || row.Value.names() >= maxNames {
		return sdk.Continue()
	}
	return sdk.Continue().Write(a.recent.Add(name, 1, a.left(e.Time, row.Created)))
}

// OnMail blocks a source that its refusals have brought over the threshold, and ends the sessions that a blocked source
// still has: connfilter turns away those that begin later.
func (a *Analysis) OnMail(_ context.Context, e *sdk.MailEvent) sdk.Verdict {
	if !a.rates(e.Session) {
		return sdk.Continue()
	}
	if row, blocked := a.ipBlock.Row(e); blocked {
		if row.Value.By == a.instance && row.Created.After(e.Session.Started) {
			return a.disconnect().Because(reasonInBlock, row.Value.Reason)
		}
		return sdk.Continue()
	}
	row, known := a.reputation.Row(e)
	if !known {
		return sdk.Continue()
	}
	s := a.source(e, row.Key)
	r := a.rate(s, e.Session)
	switch {
	case a.blocks(r):
		return a.disconnect().Because(reasonBlocked, r.String()).Write(a.block(s, r)...).Count("blocks", 1)
	case !r.rated:
		return sdk.Continue()
	}
	return sdk.Continue().Stamp(stampSRL, strconv.Itoa(r.level))
}

// OnEndOfHeaders finds the source of a message that comes through a server of our own.
func (a *Analysis) OnEndOfHeaders(_ context.Context, e *sdk.HeadersEvent) sdk.Verdict {
	if !a.relayed(e.Session.Client.Addr) {
		return sdk.Continue()
	}
	var received []string
	for field := range e.Headers.All("Received") {
		received = append(received, string(field.Raw))
	}
	client, found := trace.Source(received, a.relayed)
	if !found {
		return sdk.Continue().Because(reasonNoSource, "")
	}
	return sdk.Continue().Stamp(stampSource, client.Addr.String())
}

// OnEndOfData counts the message, rates the source anew and blocks it if it is time. The message itself has been judged
// by others.
func (a *Analysis) OnEndOfData(_ context.Context, e *sdk.DataEvent) sdk.Verdict {
	if ip, err := netip.ParseAddr(e.OwnStamp(stampSource)); err == nil {
		return a.relayedMessage(e, ip)
	}
	if !a.rates(e.Session) {
		return sdk.Continue()
	}
	row, _ := a.reputation.Row(e)
	s := a.source(e, row.Key)
	writes := a.count(&s, a.kindOf(e.Stamp("scl")), e.Time)
	return a.rateMessage(s, a.rate(s, e.Session), writes)
}

// relayedMessage counts and rates as OnEndOfData, for a source that is known by its Received field alone: of its sessions
// we have seen none.
func (a *Analysis) relayedMessage(e *sdk.DataEvent, ip netip.Addr) sdk.Verdict {
	key, _ := network(ip)
	if ip.IsLoopback() || (sdk.Address{Addr: ip}).In(a.Trusted) {
		return sdk.Continue()
	}
	if !e.Needed {
		return sdk.Continue().Needs(a.reputation.Keys(key), a.recent.Keys(key), a.proxies.Keys(key), a.ipBlock.Keys(ip.String()))
	}
	if _, blocked := a.ipBlock.RowOf(e, ip.String()); blocked {
		return sdk.Continue()
	}
	s := sourceState{ip: ip, key: key, feed: feedLevel(e)}
	s.profileRow, _ = a.reputation.RowOf(e, key)
	s.recentRow, _ = a.recent.RowOf(e, key)
	s.proxyRow, s.probed = a.proxies.RowOf(e, key)
	writes := a.count(&s, a.kindOf(e.Stamp("scl")), e.Time)
	return a.rateMessage(s, a.rate(s, nil), writes)
}

// rateMessage is the verdict of OnEndOfData.
func (a *Analysis) rateMessage(s sourceState, r rating, writes []sdk.Write) sdk.Verdict {
	v := sdk.Continue().Stamp(stampSRL, strconv.Itoa(r.level))
	switch {
	case a.blocks(r):
		return v.Because(reasonBlocked, r.String()).Write(a.block(s, r)...).Count("blocks", 1)
	case r.rated:
		return v.Because(reasonRated, r.String()).Write(writes...)
	}
	return v.Because(reasonNotRated, r.String()).Write(writes...)
}

// OnReject counts a refusal for good, and the message if that is what was refused.
func (a *Analysis) OnReject(_ context.Context, e *sdk.RejectEvent) sdk.Verdict {
	if ip, err := netip.ParseAddr(e.OwnStamp(stampSource)); err == nil && e.Command == "MESSAGE" {
		s := sourceState{ip: ip}
		s.key, _ = network(ip)
		writes := a.count(&s, a.kindOf(e.Stamp("scl")), e.Time)
		return sdk.Continue().Write(append(writes, a.add(&s, "Rejected"))...)
	}
	if _, blocked := a.ipBlock.Row(e); blocked || !a.rates(e.Session) || !counts(e) {
		return sdk.Continue()
	}
	row, _ := a.reputation.Row(e)
	s := a.source(e, row.Key)
	var writes []sdk.Write
	if e.Command == "MESSAGE" {
		writes = append(a.count(&s, a.kindOf(e.Stamp("scl")), e.Time), a.add(&s, "Rejected"))
	} else {
		writes = append(writes, a.add(&s, "Refused"))
	}
	if r := a.rate(s, e.Session); a.blocks(r) {
		return a.disconnect().Because(reasonBlocked, r.String()).Write(a.block(s, r)...).Count("blocks", 1)
	}
	return sdk.Continue().Write(writes...)
}

// counts reports whether a refusal says something about the source: one for good, of a transaction, a login, a name, or
// by an agent. Typing errors do not.
func counts(e *sdk.RejectEvent) bool {
	if e.Reply.Code < 500 {
		return false
	}
	switch e.Command {
	case "MAIL", "RCPT", "DATA", "BDAT", "MESSAGE", "AUTH":
		return true
	}
	return e.Agent != ""
}

// OnDisconnect counts the session with what was odd about it.
func (a *Analysis) OnDisconnect(ctx context.Context, e *sdk.DisconnectEvent) sdk.Verdict {
	_, blocked := a.ipBlock.Row(e)
	// A connection without a word is one of a monitor, or of somebody who looks what is there.
	if blocked || !a.rates(e.Session) || e.Session.Commands == 0 && !e.Session.EarlyTalk {
		return sdk.Continue()
	}
	row, _ := a.reputation.Row(e)
	s := a.source(e, row.Key)
	odd := a.oddities(e.Session)
	if a.ReverseDNS {
		odd = append(odd, a.reverse(ctx, e.Session)...)
	}
	writes := []sdk.Write{a.add(&s, "Sessions")}
	for _, field := range odd {
		writes = append(writes, a.add(&s, field))
	}
	if a.prober != nil && !s.probed && !e.DryRun {
		writes = append(writes, a.probe(ctx, e, &s)...)
	}
	if r := a.rate(s, nil); a.blocks(r) {
		writes = a.block(s, r)
	}
	return sdk.Continue().Write(writes...)
}

// OnSchedule halves what was counted, so that what a source did long ago weighs less than what it does now.
func (a *Analysis) OnSchedule(_ context.Context, e *sdk.ScheduleEvent) sdk.Verdict {
	v := sdk.Continue()
	if e.Last.IsZero() { // the first time is when the agent is new
		return v
	}
	for row := range a.reputation.Rows(e) {
		v = v.Write(a.halve(row, e.Time)...)
	}
	return v
}

// rates reports whether the client of a session is rated: a stranger who is the source himself.
func (a *Analysis) rates(s *sdk.Session) bool {
	return s.Trust == sdk.Anonymous && s.Client.IsValid() && !s.Client.IsLoopback() && !s.Client.In(a.Trusted) && !a.relayed(s.Client.Addr)
}

// relayed reports whether ip is a server of our own, so that the source is found in Received.
func (a *Analysis) relayed(ip netip.Addr) bool {
	return sdk.Address{Addr: ip}.In(a.host.InternalSMTPServers)
}

func (a *Analysis) blocks(r rating) bool { return a.Block && r.rated && r.level >= a.BlockThreshold }

func (a *Analysis) disconnect() sdk.Verdict { return sdk.Disconnect(550, "5.7.1", a.BlockResponse) }

// block a source and forget it.
func (a *Analysis) block(s sourceState, r rating) []sdk.Write {
	_, prefix := network(s.ip)
	row := block{Reason: r.String(), By: a.instance, SRL: r.level}
	return []sdk.Write{
		// A block that stands already is somebody else's, and may be meant to last longer.
		a.ipBlock.PutIfAbsent(row, a.BlockPeriod).At(prefix),
		a.reputation.Delete().At(s.key),
		a.recent.Delete().At(s.key),
	}
}

// network that stands for a source, as key of a table and as prefix: its address, of IPv6 the /64.
func network(ip netip.Addr) (key, prefix string) {
	ip = ip.Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return ip.String(), ip.String()
	}
	return p.Addr().String(), p.String()
}

// left is how long the window lasts that began at a time.
func (a *Analysis) left(now, began time.Time) time.Duration {
	if began.IsZero() {
		return a.Window
	}
	return max(a.Window-now.Sub(began), time.Second)
}

// oddities of a session are the counts that it adds to.
func (a *Analysis) oddities(s *sdk.Session) (fields []string) {
	if s.EarlyTalk {
		fields = append(fields, "EarlyTalk")
	}
	if s.Unsynchronized > 0 {
		fields = append(fields, "Pipelining")
	}
	switch {
	case a.claimsOurs(s):
		fields = append(fields, "OwnDomain")
	case claimsOther(s):
		fields = append(fields, "Literal")
	}
	return fields
}

// claimsOurs reports whether the client has called itself by a name of ours.
func (a *Analysis) claimsOurs(s *sdk.Session) bool {
	if ip, ok := literal(s.Helo); ok {
		return ip == s.Local.Unmap()
	}
	name := strings.ToLower(strings.TrimSuffix(s.Helo, "."))
	if name == "" || name == strings.ToLower(a.host.Name) {
		return name != ""
	}
	for _, d := range a.host.AcceptedDomains {
		if d.Type == "authoritative" && d.Name == name {
			return true
		}
	}
	return false
}

// claimsOther reports whether the client has called itself by an address that is not its own.
func claimsOther(s *sdk.Session) bool {
	ip, ok := literal(s.Helo)
	return ok && ip != s.Client.Unmap()
}

// literal reads an address out of a name: "[192.0.2.1]", "[IPv6:2001:db8::1]" (RFC 5321 section 4.1.3), or without the
// brackets, as those who do not know better write it.
func literal(name string) (netip.Addr, bool) {
	name = strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	if len(name) > 5 && strings.EqualFold(name[:5], "IPv6:") {
		name = name[5:]
	}
	ip, err := netip.ParseAddr(name)
	return ip.Unmap().WithZone(""), err == nil
}
