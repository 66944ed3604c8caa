package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
)

// dnsPause is how long DNS is left alone after it did not answer.
const dnsPause = 30 * time.Second

// reverse are the counts that the names of a source in DNS add to. What DNS does not say is not held against anybody.
func (a *Analysis) reverse(ctx context.Context, s *sdk.Session) []string {
	if time.Now().UnixNano() < a.dnsDown.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.patience(ctx))
	defer cancel()
	names, err := a.resolver.PTR(ctx, s.Client.Addr)
	a.report(err)
	switch {
	case err != nil:
		return nil
	case len(names) == 0:
		return []string{"NoReverse"}
	}
	if _, isAddress := literal(s.Helo); isAddress || s.Helo == "" || a.named(ctx, s, names) {
		return nil
	}
	return []string{"Misnamed"}
}

// named reports whether the name that the client gave is one of the source's names in DNS, or leads to it. In doubt it
// does.
func (a *Analysis) named(ctx context.Context, s *sdk.Session, names []string) bool {
	helo := strings.TrimSuffix(s.Helo, ".")
	if slices.ContainsFunc(names, func(name string) bool { return strings.EqualFold(name, helo) }) {
		return true
	}
	ask := a.resolver.A
	if s.Client.Is6() {
		ask = a.resolver.AAAA
	}
	addresses, err := ask(ctx, helo)
	return err != nil || slices.Contains(addresses, s.Client.Addr)
}

// report how DNS answered, and leave it alone for a while when it did not.
func (a *Analysis) report(err error) {
	a.health.Report("DNS", err)
	if err != nil {
		a.dnsDown.Store(time.Now().Add(dnsPause).UnixNano())
	}
}

// patience is how long to wait: the event must be answered in time even if DNS is not heard of.
func (a *Analysis) patience(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return a.DNSTimeout
	}
	return min(a.DNSTimeout, time.Until(deadline)/2)
}
