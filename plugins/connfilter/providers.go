package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/dns"
)

// codes are the answers of DNS lists (RFC 5782 section 2.1); others come from resolvers that redirect.
var codes = netip.MustParsePrefix("127.0.0.0/8")

// notServed are answers by which lists say that they do not serve the resolver that asks.
var notServed = netip.MustParsePrefix("127.255.255.0/24")

// provider is a Provider, checked.
type provider struct {
	zone     string
	codes    map[netip.Addr]bool
	bitmask  byte
	allows   bool
	response string // of a refusal
}

func (f *Filter) openResolver(r *sdk.Registrar) error {
	servers, err := f.servers(r)
	if err != nil {
		return err
	}
	f.resolver, err = dns.New(dns.Options{Servers: servers, Timeout: f.DNSTimeout})
	if err != nil {
		return fmt.Errorf("preparing DNS: %w", err)
	}
	return nil
}

// askLists asks all DNS lists at once. Of those with an entry the first decides, and no list behind it is
// waited for.
func (f *Filter) askLists(ctx context.Context, ip netip.Addr) judgement {
	name := dns.ReverseName(ip)
	if name == "" || len(f.providers) == 0 {
		return judgement{}
	}
	ctx, cancel := context.WithTimeout(ctx, f.patience(ctx))
	defer cancel()
	answers := make([]chan netip.Addr, len(f.providers))
	for i := range f.providers {
		answers[i] = make(chan netip.Addr, 1)
		go func() { answers[i] <- f.ask(ctx, name, &f.providers[i]) }()
	}
	for i := range f.providers {
		if code := <-answers[i]; code.IsValid() {
			return f.providers[i].judge(ip, code)
		}
	}
	return judgement{}
}

// patience is how long to wait: the event must be answered in time even if no list has been heard of.
func (f *Filter) patience(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return f.DNSTimeout
	}
	return min(f.DNSTimeout, time.Until(deadline)*9/10)
}

// ask one list for the code by which it lists name; an invalid one: it does not. A list that cannot be reached
// has no entry: mail must flow without it.
func (f *Filter) ask(ctx context.Context, name string, p *provider) (code netip.Addr) {
	answers, err := f.resolver.A(ctx, name+p.zone)
	if errors.Is(ctx.Err(), context.Canceled) { // nobody waits for it any more
		return netip.Addr{}
	}
	if i := slices.IndexFunc(answers, notServed.Contains); i >= 0 {
		err = fmt.Errorf("the list does not serve the resolver that asks it: %s", answers[i])
	}
	f.health.Report("DNS list "+p.zone, err)
	for _, a := range answers {
		if p.counts(a) {
			return a
		}
	}
	return netip.Addr{}
}

// counts reports whether an answer is a hit: one of the codes, one with a bit of the mask, or, with neither
// given, any.
func (p *provider) counts(a netip.Addr) bool {
	switch {
	case !codes.Contains(a) || notServed.Contains(a):
		return false
	case len(p.codes) == 0 && p.bitmask == 0:
		return true
	}
	return p.codes[a] || a.As4()[3]&p.bitmask != 0
}

func (p *provider) judge(ip, code netip.Addr) judgement {
	data := p.zone + " " + code.String()
	if p.allows {
		return judgement{kind: allowed, Reason: reasonAllowProvider, Data: data}
	}
	return judgement{refused, reasonBlockProvider, data, fill(p.response, ip, p.zone)}
}
