package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/dns"
	"github.com/posternmail/postern/sdk/spf"
)

// dnsDownAfter so many questions in a row without an answer DNS counts as out of reach. Fewer are the fault of the
// domains asked about, which are the choice of strangers.
const dnsDownAfter = 8

// watched tells the operator when DNS is out of reach and when it is back.
type watched struct {
	spf.Resolver
	health *sdk.Health
	failed atomic.Int64 // questions in a row
}

// told passes on the outcome of a question. One that nobody waited for any more says nothing.
func (w *watched) told(err error) {
	switch {
	case err == nil:
		w.failed.Store(0)
		w.health.Report("DNS", nil)
	case errors.Is(err, context.Canceled) || !errors.Is(err, dns.ErrUnavailable):
	case w.failed.Add(1) >= dnsDownAfter:
		w.health.Report("DNS", err)
	}
}

// TXT implements spf.Resolver, as do the others.
func (w *watched) TXT(ctx context.Context, name string) ([]string, error) {
	out, err := w.Resolver.TXT(ctx, name)
	w.told(err)
	return out, err
}

func (w *watched) A(ctx context.Context, name string) ([]netip.Addr, error) {
	out, err := w.Resolver.A(ctx, name)
	w.told(err)
	return out, err
}

func (w *watched) AAAA(ctx context.Context, name string) ([]netip.Addr, error) {
	out, err := w.Resolver.AAAA(ctx, name)
	w.told(err)
	return out, err
}

func (w *watched) MX(ctx context.Context, name string) ([]net.MX, error) {
	out, err := w.Resolver.MX(ctx, name)
	w.told(err)
	return out, err
}

func (w *watched) PTR(ctx context.Context, ip netip.Addr) ([]string, error) {
	out, err := w.Resolver.PTR(ctx, ip)
	w.told(err)
	return out, err
}
