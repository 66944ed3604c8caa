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
	"github.com/posternmail/postern/sdk/feed"
	"github.com/posternmail/postern/sdk/match"
)

//go:generate go run . --options=README.md

// Config is the agent's configuration. Empty, it honours the table ip-block and refuses clients that do not wait for replies.
type Config struct {
	AllowList           *List           `hcl:"allow_list,block" doc:"Clients that no antispam agent judges."`
	BlockList           *List           `hcl:"block_list,block" doc:"Clients whose mail is refused."`
	AllowProviders      []Provider      `hcl:"dnswl,block" doc:"DNS list of good clients. A hit counts like one in allow_list, and before all hits in dnsbl. The first block has the highest priority."`
	BlockProviders      []BlockProvider `hcl:"dnsbl,block" doc:"DNS list of bad clients. The first block has the highest priority."`
	Feeds               []feed.Source   `hcl:"feed,block" doc:"Signed lists from elsewhere, fetched on a schedule (docs/feeds.md): ip-allow, ip-block, ip-reputation."`
	ReputationThreshold int             `hcl:"reputation_threshold,optional" default:"7" min:"1" max:"9" doc:"Level of a feed's ip-reputation, 1 to 9, from which on a client is refused."`
	BypassedRecipients  []string        `hcl:"bypassed_recipients,optional" doc:"Recipients (user@domain, domain, *.domain) who get mail from refused clients all the same." example:"[\"abuse@example.org\"]"`
	BlockResponse       string          `hcl:"block_response,optional" default:"External client with IP address {ip} does not have permissions to submit to this server" doc:"Text of the refusal by block_list and by the ip-block of a feed, up to 240 characters. {ip} is the client's address."`
	MachineResponse     string          `hcl:"machine_response,optional" default:"External client with IP address {ip} is blocked for a time because of its reputation" doc:"Text of the refusal by the table ip-block, and by the reputation that a feed gives, likewise."`
	EarlyTalkers        string          `hcl:"early_talkers,optional" default:"reject" one_of:"reject note ignore" doc:"What becomes of clients that do not wait: that talk before the greeting, or send on behind HELO, EHLO or DATA, or behind anything without EHLO, before the reply. Note writes it into the ledger alone."`
	EarlyResponse       string          `hcl:"early_response,optional" default:"Protocol error: the client does not wait for replies" doc:"Text of their refusal, up to 240 characters. {ip} is the client's address."`
	DNSTimeout          time.Duration   `hcl:"dns_timeout,optional" default:"3s" min:"100ms" max:"15s" doc:"How long all DNS lists together are waited for, within the time that the host gives the event. A list that has not answered by then is as if it had no entry."`
	DNSServers          []string        `hcl:"dns_servers,optional" doc:"Servers to ask (address, or address:port) instead of the host's resolvers." example:"[\"127.0.0.1:53\"]"`
}

// List of networks.
type List struct {
	Networks []string `hcl:"networks,optional" doc:"Addresses, prefixes (192.0.2.0/24) and ranges (192.0.2.1-192.0.2.9)."`
	Files    []string `hcl:"files,optional" format:"path" doc:"Files with a network a line, read again when they change."`
	Entries  []Entry  `hcl:"entry,block" doc:"A network with a comment and an expiry."`
}

// Entry of a List.
type Entry struct {
	Network string `hcl:"network,label"`
	Comment string `hcl:"comment,optional" doc:"Why; it stands in the ledger."`
	Expires string `hcl:"expires,optional" doc:"Date (2026-12-31, in UTC, that day included) or time (RFC 3339) after which the entry is disabled."`
}

// Provider is a DNS list.
type Provider struct {
	Zone    string   `hcl:"zone,label"`
	Codes   []string `hcl:"codes,optional" doc:"Answers that count. With neither codes nor bitmask any answer in 127.0.0.0/8 counts." example:"[\"127.0.0.2\"]"`
	Bitmask string   `hcl:"bitmask,optional" doc:"Bits of the last octet, written as an address: 127.0.0.6 is bits 2 and 4. An answer with one of them counts."`
}

// BlockProvider is a DNS list whose hits are refused.
type BlockProvider struct {
	Provider
	Response string `hcl:"response,optional" default:"Recipient not authorized, your IP has been found on a block list" doc:"Text of the refusal, up to 240 characters. {ip} is the client's address, {zone} the list."`
}

// New checks cfg and reads its files. It is called for every new configuration.
func New(cfg Config, r *sdk.Registrar) (*Filter, error) {
	f := &Filter{Config: cfg, internal: r.Host().InternalSMTPServers, health: r.Health()}
	errs := []error{
		checkResponse(r.At("block_response"), cfg.BlockResponse, ""),
		checkResponse(r.At("machine_response"), cfg.MachineResponse, ""),
		checkResponse(r.At("early_response"), cfg.EarlyResponse, ""),
		f.readProviders(r),
		f.readBypassed(r),
		f.openResolver(r),
	}
	var err error
	f.allow, err = openList(r, "allow_list", cfg.AllowList)
	errs = append(errs, err)
	f.block, err = openList(r, "block_list", cfg.BlockList)
	errs = append(errs, err)
	f.feeds, err = feed.Open(r, "feed", cfg.Feeds, buildLists)
	if err := errors.Join(append(errs, err)...); err != nil {
		f.feeds.Close()
		return nil, err
	}
	f.subscribe(r)
	f.feeds.Subscribe(r)
	f.stop = func() {}
	if !r.Validating() {
		f.stop = match.Follow(r.Logger(), map[string]match.Followed{f.allow.name: f.allow.files, f.block.name: f.block.files})
	}
	return f, nil
}

func (f *Filter) readBypassed(r *sdk.Registrar) error {
	var i int
	var err error
	if f.bypassed, i, err = match.NewAddresses(f.BypassedRecipients); err != nil {
		return r.At("bypassed_recipients", i).Error(err)
	}
	return nil
}

// Bounds of a response: Exchange's of the text, and the host's of what it becomes.
const (
	maxResponse = 240
	maxReply    = 400
)

// longestAddress as text.
var longestAddress = netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")

// checkResponse: one line of printable ASCII (RFC 5321 section 4.2).
func checkResponse(place sdk.Place, text, zone string) error {
	if len(text) > maxResponse {
		return place.Errorf("text of %d characters, at most %d", len(text), maxResponse)
	}
	for _, r := range text {
		if r < ' ' || r > '~' {
			return place.Errorf("%q cannot stand in a reply, which is one line of ASCII", r)
		}
	}
	if n := len(fill(text, longestAddress, zone)); n > maxReply {
		return place.Errorf("with {ip} and {zone} filled in it may have %d characters, at most %d", n, maxReply)
	}
	return nil
}

// readProviders puts the allowing lists before the blocking ones, which is the order in which they decide.
func (f *Filter) readProviders(r *sdk.Registrar) error {
	var errs []error
	for i, config := range f.AllowProviders {
		p, err := newProvider(r, "dnswl", i, config)
		p.allows = true
		f.providers, errs = append(f.providers, p), append(errs, err)
	}
	for i, config := range f.BlockProviders {
		p, err := newProvider(r, "dnsbl", i, config.Provider)
		p.response = config.Response
		f.providers, errs = append(f.providers, p), append(errs, err)
		errs = append(errs, checkResponse(r.At("dnsbl", i, "response"), p.response, p.zone))
	}
	return errors.Join(errs...)
}

// newProvider checks the block of that name and index.
func newProvider(r *sdk.Registrar, block string, i int, config Provider) (provider, error) {
	zone, err := address.ParseDomain(strings.TrimSuffix(config.Zone, "."))
	if err != nil || strings.HasPrefix(zone, "[") {
		return provider{}, r.At(block, i).Errorf("%q is no zone of a DNS list", config.Zone)
	}
	p := provider{zone: zone, codes: map[netip.Addr]bool{}}
	for j, text := range config.Codes {
		code, err := parseCode(text)
		if err != nil {
			return p, r.At(block, i, "codes", j).Error(err)
		}
		p.codes[code] = true
	}
	if config.Bitmask == "" {
		return p, nil
	}
	mask, err := parseCode(config.Bitmask)
	if err != nil {
		return p, r.At(block, i, "bitmask").Error(err)
	}
	if p.bitmask = mask.As4()[3]; p.bitmask == 0 {
		return p, r.At(block, i, "bitmask").Errorf("%q has no bit in its last octet, so no answer would count", config.Bitmask)
	}
	return p, nil
}

// parseCode reads an answer of a DNS list.
func parseCode(text string) (netip.Addr, error) {
	code, err := netip.ParseAddr(text)
	if err != nil || !codes.Contains(code) {
		return netip.Addr{}, fmt.Errorf("%q is no answer of a DNS list: those are in %s", text, codes)
	}
	return code, nil
}

// servers to ask, each with its port.
func (f *Filter) servers(r *sdk.Registrar) ([]string, error) {
	if len(f.DNSServers) == 0 {
		return r.Host().Resolvers, nil
	}
	var all []string
	for i, text := range f.DNSServers {
		if ip, err := netip.ParseAddr(text); err == nil {
			text = net.JoinHostPort(ip.String(), "53")
		}
		if _, err := netip.ParseAddrPort(text); err != nil {
			return nil, r.At("dns_servers", i).Errorf("%q is neither an address nor address:port", text)
		}
		all = append(all, text)
	}
	return all, nil
}
