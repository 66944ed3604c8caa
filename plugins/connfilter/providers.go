package main

import (
	"context"
	"net/netip"
	"strings"
	"sync"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/dns"
)

var loopback8 = netip.MustParsePrefix("127.0.0.0/8")

// answer of one DNS list.
type answer struct {
	hit  bool
	code netip.Addr
}

// askLists asks all DNS lists at once. An allowing list decides before a blocking one, and among the lists of a
// kind the first that has an entry.
func (f *Filter) askLists(ctx context.Context, ip netip.Addr) judgement {
	name := dns.ReverseName(ip)
	if name == "" {
		return judgement{}
	}
	ctx, cancel := context.WithTimeout(ctx, f.DNSTimeout)
	defer cancel()
	all := append(append([]provider{}, f.allowAt...), f.blockAt...)
	answers := make([]answer, len(all))
	var asking sync.WaitGroup
	for i := range all {
		asking.Go(func() { answers[i] = f.ask(ctx, name, &all[i]) })
	}
	asking.Wait()
	for i, a := range answers {
		switch p := all[i]; {
		case !a.hit:
		case i < len(f.allowAt):
			return judgement{kind: allowed, reason: "AllowListProvider", data: p.Zone + " " + a.code.String()}
		default:
			return judgement{refused, "BlockListProvider", p.Zone + " " + a.code.String(), fill(p.Response, ip, p.Zone)}
		}
	}
	return judgement{}
}

// ask one list. A list that cannot be reached has no entry: mail must flow without it.
func (f *Filter) ask(ctx context.Context, name string, p *provider) answer {
	addrs, err := f.resolver.A(ctx, name+strings.TrimSuffix(p.Zone, "."))
	if err != nil {
		sdk.Logger(ctx).Warn("DNS list did not answer", "zone", p.Zone, "error", err)
		return answer{}
	}
	for _, a := range addrs {
		if p.counts(a) {
			return answer{true, a}
		}
	}
	return answer{}
}

// counts reports whether an answer is a hit: any code, a bit of the mask, or one of the codes. Answers outside
// of 127.0.0.0/8 are no answers of a list (RFC 5782 section 2.1), and 127.255.255.0/24 is how lists say that
// they do not serve the one who asks.
func (p *provider) counts(a netip.Addr) bool {
	if !loopback8.Contains(a) || a.As4()[1] == 255 {
		return false
	}
	switch {
	case len(p.codes) == 0 && p.bitmask == 0:
		return true
	case p.codes[a]:
		return true
	}
	return a.As4()[3]&p.bitmask != 0
}
