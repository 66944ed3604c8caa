package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/dns"
	"github.com/posternmail/postern/sdk/match"
)

//go:generate go run . --options=README.md

// Config is the agent's configuration. Empty, it verifies, writes what it found, refuses nothing and reports to nobody.
type Config struct {
	AuthservID string `hcl:"authserv_id,optional" doc:"Name under which results stand in Authentication-Results; fields that came in under it are removed. The host's name if left out." example:"mx.example.org"`
	SenderID   bool   `hcl:"sender_id,optional" default:"true" doc:"Whether Sender ID (RFC 4406) is looked at, too."`

	SPFFail      string `hcl:"spf_fail,optional" default:"stamp" one_of:"stamp reject delete quarantine" doc:"What to do when the client may not send for the domain of MAIL FROM (or of HELO, for the null sender)."`
	SPFSoftFail  string `hcl:"spf_softfail,optional" default:"stamp" one_of:"stamp reject delete quarantine" doc:"What to do when the domain says it probably may not."`
	SPFTempError string `hcl:"spf_temperror,optional" default:"stamp" one_of:"stamp reject delete quarantine" doc:"What to do when DNS does not answer. To reject is to ask for another attempt (451)."`
	SPFPermError string `hcl:"spf_permerror,optional" default:"stamp" one_of:"stamp reject delete quarantine" doc:"What to do when the domain's record is wrong."`

	SenderIDFail      string `hcl:"senderid_fail,optional" default:"stamp" one_of:"stamp reject delete quarantine" doc:"What to do with a message whose purported responsible address is spoofed or missing."`
	SenderIDTempError string `hcl:"senderid_temperror,optional" default:"stamp" one_of:"stamp reject delete quarantine" doc:"What to do when DNS does not answer."`

	DKIMFail string `hcl:"dkim_fail,optional" default:"stamp" one_of:"stamp reject delete quarantine" doc:"What to do when there are signatures, none is valid and one is broken. Forwarders break signatures: RFC 6376 advises against refusing."`
	ARCFail  string `hcl:"arc_fail,optional" default:"stamp" one_of:"stamp reject delete quarantine" doc:"What to do when a chain is broken."`

	DMARCReject     string `hcl:"dmarc_reject,optional" default:"stamp" one_of:"stamp reject delete quarantine" doc:"What to do when DMARC fails and the domain of From asks for rejection."`
	DMARCQuarantine string `hcl:"dmarc_quarantine,optional" default:"stamp" one_of:"stamp reject delete quarantine" doc:"What to do when DMARC fails and the domain of From asks for quarantine."`
	DMARCTempError  string `hcl:"dmarc_temperror,optional" default:"stamp" one_of:"stamp reject delete quarantine" doc:"What to do when DNS does not answer and nothing else proved the domain of From."`

	TrustedSealers        []string         `hcl:"trusted_sealers,optional" doc:"Domains whose ARC seals are believed: when DMARC fails and the newest seals of a valid chain are theirs, what they found when the message came to them counts." example:"[\"lists.example.org\"]"`
	BypassedRecipients    []string         `hcl:"bypassed_recipients,optional" doc:"Recipients (user@domain, domain, *.domain) for whom no action is taken." example:"[\"abuse@example.org\"]"`
	BypassedSenderDomains []string         `hcl:"bypassed_sender_domains,optional" doc:"Domains (domain, *.domain) of MAIL FROM or of the purported responsible address for which no action is taken."`
	MaxSignatures         int              `hcl:"max_signatures,optional" default:"8" min:"1" max:"50" doc:"DKIM signatures of a message that are verified, from the top."`
	DNSTimeout            time.Duration    `hcl:"dns_timeout,optional" default:"10s" min:"100ms" max:"60s" doc:"How long all questions of a message together are waited for, within the time that the host gives the event."`
	ReportFrom            *address.Mailbox `hcl:"report_from,optional" doc:"Sender of DMARC aggregate reports, and where their bounces go. Without it neither are reports sent nor is the data for them kept." example:"dmarc-reports@example.org"`
	DNSServers            []string         `hcl:"dns_servers,optional" doc:"Servers to ask (address, or address:port) instead of the host's resolvers." example:"[\"127.0.0.1:53\"]"`
}

// New checks cfg. It is called for every new configuration.
func New(cfg Config, r *sdk.Registrar) (*Auth, error) {
	a := &Auth{Config: cfg, internal: r.Host().InternalSMTPServers, host: r.Host().Name, sealers: map[string]bool{}}
	if a.AuthservID == "" {
		a.AuthservID = a.host
	}
	errs := []error{a.checkAuthservID(r), a.readSealers(r), a.openResolver(r)}
	var i int
	var err error
	if a.recipients, i, err = match.NewAddresses(cfg.BypassedRecipients); err != nil {
		errs = append(errs, r.At("bypassed_recipients", i).Error(err))
	}
	if a.senders, i, err = match.NewAddresses(cfg.BypassedSenderDomains); err != nil {
		errs = append(errs, r.At("bypassed_sender_domains", i).Error(err))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if a.DMARCReject == actionReject && len(cfg.TrustedSealers) == 0 {
		r.At("dmarc_reject").Warn("without trusted_sealers mail of lists and forwarders that change it is refused, too")
	}
	if m := cfg.ReportFrom; m != nil && !r.Host().Accepts(strings.ToLower(m.Domain)) {
		r.At("report_from").Warn("no accepted domain: bounces of reports do not come back to us, and DMARC may fail for the reports themselves")
	}
	a.subscribe(r)
	return a, nil
}

// checkAuthservID: a token, so that it needs no quotes (RFC 8601 section 2.2).
func (a *Auth) checkAuthservID(r *sdk.Registrar) error {
	if a.AuthservID == "" || quoted(a.AuthservID) != a.AuthservID || strings.ContainsAny(a.AuthservID, "@/=") {
		return r.At("authserv_id").Errorf("%q is no name such as mx.example.org", a.AuthservID)
	}
	return nil
}

func (a *Auth) readSealers(r *sdk.Registrar) error {
	for i, text := range a.TrustedSealers {
		domain, err := address.ParseDomain(text)
		if err != nil {
			return r.At("trusted_sealers", i).Error(err)
		}
		a.sealers[domain] = true
	}
	return nil
}

func (a *Auth) openResolver(r *sdk.Registrar) error {
	servers, i, err := serverList(a.DNSServers)
	if err != nil {
		return r.At("dns_servers", i).Error(err)
	}
	if len(servers) == 0 {
		servers = r.Host().Resolvers
	}
	resolver, err := dns.New(dns.Options{Servers: servers, Timeout: a.DNSTimeout})
	a.resolver = &watched{Resolver: resolver, health: r.Health()}
	return err
}

// serverList gives each server its port. The error comes with the index.
func serverList(list []string) ([]string, int, error) {
	var all []string
	for i, text := range list {
		if ip, err := netip.ParseAddr(text); err == nil {
			text = net.JoinHostPort(ip.String(), "53")
		}
		if _, err := netip.ParseAddrPort(text); err != nil {
			return nil, i, fmt.Errorf("%q is neither an address nor address:port", text)
		}
		all = append(all, text)
	}
	return all, 0, nil
}
