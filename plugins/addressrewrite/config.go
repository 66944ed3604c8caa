package main

import (
	"errors"
	"strings"
	"time"

	"golang.org/x/net/idna"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
)

//go:generate go run . --options=README.md

// Config is the agent's configuration. Empty, nothing is rewritten.
type Config struct {
	Direction string  `hcl:"direction,optional" one_of:"inbound outbound" doc:"Which way this agent block rewrites: inbound turns external addresses into internal ones, outbound the reverse. Needed as soon as there is an entry or srs."`
	Entries   []Entry `hcl:"entry,block" doc:"A pair of addresses or domains. Both agent blocks are given the same entries. The closest one counts: address, then domain, then the longest *.domain."`
	SRS       *SRS    `hcl:"srs,block" doc:"Senders of other domains whose mail goes on to other domains get a bounce address of our own (SRS0, SRS1), so that it passes SPF there; the inbound block turns bounces back."`
}

// Entry is a pair of addresses or domains.
type Entry struct {
	Name         string   `hcl:"name,label"`
	Internal     string   `hcl:"internal" doc:"user@domain, domain, or *.domain for its subdomains." example:"\"*.corp.example.org\""`
	External     string   `hcl:"external" doc:"user@domain where internal is one, otherwise a domain."`
	Exceptions   []string `hcl:"exceptions,optional" doc:"Internal addresses (user@domain, domain, *.domain) that a domain or *.domain leaves alone."`
	OutboundOnly bool     `hcl:"outbound_only,optional" default:"false" doc:"Mail to the external address is not rewritten. Must be true with *.domain, which cannot be turned back."`
}

// SRS is the sender rewriting scheme.
type SRS struct {
	Domain  string        `hcl:"domain" format:"domain" doc:"Domain of the bounce addresses; an accepted one."`
	Secret  string        `hcl:"secret" sensitive:"true" doc:"Key of the hashes, the same in both agent blocks and on all edges."`
	Former  []string      `hcl:"former_secrets,optional" sensitive:"true" doc:"Keys whose bounce addresses are still taken."`
	MaxAge  time.Duration `hcl:"max_age,optional" default:"21d" min:"24h" max:"512d" doc:"Bounce addresses older than this are refused."`
	HashLen int           `hcl:"hash_length,optional" default:"4" min:"4" max:"20" doc:"Characters of the hash in a bounce address. Shorter ones are not taken."`
}

// New checks cfg. It is called for every new configuration.
func New(cfg Config, r *sdk.Registrar) (*Rewriter, error) {
	w := &Rewriter{outbound: cfg.Direction == outbound, accepted: r.Host().AcceptedDomains}
	var errs []error
	if cfg.Direction == "" && (len(cfg.Entries) > 0 || cfg.SRS != nil) {
		errs = append(errs, r.At().Errorf(`direction is needed: "inbound" or "outbound"`))
	}
	errs = append(errs, w.readEntries(r, cfg.Entries), w.readSRS(r, cfg.SRS))
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if w.idle() {
		r.Warn("no entry and no srs: nothing is rewritten")
	}
	w.subscribe(r)
	return w, nil
}

// Values of direction.
const outbound = "outbound"

// idle reports whether there is nothing to do in this direction.
func (w *Rewriter) idle() bool { return w.rules.len() == 0 && w.srs == nil }

func (w *Rewriter) subscribe(r *sdk.Registrar) {
	r.OnRcpt(sdk.MayChange(sdk.Verdicts, sdk.Addresses))
	r.OnEndOfHeaders(sdk.ReadsHeaders(inboundFields...), sdk.MayChange(sdk.Verdicts, sdk.Headers))
	r.OnRouted(sdk.ReadsHeaders(outboundFields...), sdk.MayChange(sdk.Verdicts, sdk.Headers, sdk.Addresses))
	if w.outbound || w.idle() {
		r.Skip(sdk.OnRcpt, sdk.OnEndOfHeaders)
	}
	if !w.outbound || w.idle() {
		r.Skip(sdk.OnRouted)
	}
	if w.rules.len() == 0 {
		r.Skip(sdk.OnEndOfHeaders) // srs looks at the envelope only
	}
}

func (w *Rewriter) readSRS(r *sdk.Registrar, cfg *SRS) error {
	if cfg == nil {
		return nil
	}
	if len(cfg.Secret) < 8 {
		return r.At("srs", "secret").Errorf("a secret of %d octets can be guessed; at least 8", len(cfg.Secret))
	}
	if !r.Host().Accepts(strings.ToLower(cfg.Domain)) {
		r.At("srs", "domain").Warn("no accepted domain: bounces to it are refused before they can be turned back")
	}
	w.srs = newSRS(*cfg)
	return nil
}

func (w *Rewriter) readEntries(r *sdk.Registrar, entries []Entry) error {
	var errs []error
	for i, e := range entries {
		if err := w.readEntry(r, i, e); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (w *Rewriter) readEntry(r *sdk.Registrar, i int, e Entry) error {
	place := func(name string) sdk.Place { return r.At("entry", i, name) }
	rule, err := newRule(e)
	if err != nil {
		return place(err.field).Error(err.err)
	}
	if strings.HasPrefix(e.Internal, "*.") && !e.OutboundOnly {
		return place("internal").Errorf("*.domain cannot be turned back: set outbound_only = true")
	}
	if !r.Host().Accepts(rule.external.Domain) {
		place("external").Warn("no accepted domain: answers to this address do not come back to us")
	}
	if other := w.rules.add(rule, w.outbound); other != nil {
		field := "internal"
		if !w.outbound {
			field = "external"
		}
		return place(field).Errorf("entry %q has it already", other.Name)
	}
	return nil
}

// fieldError names the argument that is wrong.
type fieldError struct {
	field string
	err   error
}

// newRule reads the addresses of an entry.
func newRule(e Entry) (*rule, *fieldError) {
	out := &rule{Entry: e}
	var err error
	if out.internal, err = parsePattern(e.Internal); err != nil {
		return nil, &fieldError{"internal", err}
	}
	if out.external, err = parsePattern(e.External); err != nil {
		return nil, &fieldError{"external", err}
	}
	isAddress := out.internal.Local != ""
	switch {
	case strings.HasPrefix(e.External, "*."):
		return nil, &fieldError{"external", errors.New("*.domain names no single domain to write")}
	case isAddress != (out.external.Local != ""):
		return nil, &fieldError{"external", errors.New("internal and external must both be addresses, or both domains")}
	case isAddress && len(e.Exceptions) > 0:
		return nil, &fieldError{"exceptions", errors.New("an address has no exceptions")}
	}
	if out.exceptions, err = newExceptions(e.Exceptions); err != nil {
		return nil, &fieldError{"exceptions", err}
	}
	return out, nil
}

// parsePattern reads user@domain, domain or *.domain; the last as its domain.
func parsePattern(s string) (address.Mailbox, error) {
	if strings.Contains(s, "@") {
		return address.Parse(s)
	}
	domain, err := address.ParseDomain(strings.TrimPrefix(s, "*."))
	return address.Mailbox{Domain: domain}, err
}

// domainKey is the one form that domains are compared in: A-labels (RFC 5890) in lower case.
func domainKey(domain string) string {
	domain = strings.ToLower(domain)
	if ascii, err := idna.Lookup.ToASCII(domain); err == nil {
		return ascii
	}
	return domain
}
