package main

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/match"
)

// Config is the agent's configuration. Empty, it honours the table ip-block.
type Config struct {
	AllowList          *List         `hcl:"allow_list,block" doc:"clients that no antispam agent judges"`
	BlockList          *List         `hcl:"block_list,block" doc:"clients whose mail is refused"`
	AllowProviders     []Provider    `hcl:"dnswl,block" doc:"DNS lists of good clients, the first has the highest priority; their hits are treated as allow_list"`
	BlockProviders     []Provider    `hcl:"dnsbl,block" doc:"DNS lists of bad clients, the first has the highest priority"`
	BypassedRecipients []string      `hcl:"bypassed_recipients,optional" doc:"recipients (user@domain, domain, *.domain) who get mail from refused clients all the same" example:"[\"abuse@example.org\"]"`
	BlockResponse      string        `hcl:"block_response,optional" default:"External client with IP address {ip} does not have permissions to submit to this server" doc:"text of the refusal by block_list; {ip} is the client's address"`
	MachineResponse    string        `hcl:"machine_response,optional" default:"External client with IP address {ip} is blocked for a time because of its reputation" doc:"text of the refusal by the table ip-block"`
	DNSTimeout         time.Duration `hcl:"dns_timeout,optional" default:"3s" min:"100ms" max:"15s" doc:"how long all DNS lists together are waited for; one that has not answered by then is as if it had no entry"`
	DNSServers         []string      `hcl:"dns_servers,optional" doc:"servers to ask (address:port) instead of the host's resolvers"`
}

// List of networks.
type List struct {
	Entries  []Entry  `hcl:"entry,block" doc:"a network with a comment and an expiry"`
	Networks []string `hcl:"networks,optional" doc:"addresses, prefixes (192.0.2.0/24) and ranges (192.0.2.1-192.0.2.9)"`
	Files    []string `hcl:"files,optional" format:"path" doc:"files with a network a line; # starts a comment, and \"expires=2026-12-31\" may follow the network"`
}

// Entry of a list.
type Entry struct {
	Network string `hcl:"network,label"`
	Comment string `hcl:"comment,optional" doc:"why; it stands in the ledger"`
	Expires string `hcl:"expires,optional" doc:"date (2026-12-31) or time (RFC 3339) after which the entry is disabled"`
}

// Provider is a DNS list.
type Provider struct {
	Zone     string   `hcl:"zone,label"`
	Codes    []string `hcl:"codes,optional" doc:"answers that count; none given: any answer in 127.0.0.0/8 counts"`
	Bitmask  string   `hcl:"bitmask,optional" doc:"an address such as 127.0.0.6; an answer counts when it has one of the bits of its last octet"`
	Response string   `hcl:"response,optional" default:"Recipient not authorized, your IP has been found on a block list" doc:"text of the refusal; {ip} is the client's address, {zone} the list"`
}

// maxResponse is Exchange's bound of a response text.
const maxResponse = 240

// New checks cfg and reads its files. It is called for every new configuration.
func New(cfg Config, r *sdk.Registrar) (*Filter, error) {
	f := &Filter{Config: cfg, host: r.Host()}
	var err error
	if f.allow, err = loadList(r, "allow_list", cfg.AllowList); err != nil {
		return nil, err
	}
	if f.block, err = loadList(r, "block_list", cfg.BlockList); err != nil {
		return nil, err
	}
	if f.allowAt, err = providers(r, "dnswl", cfg.AllowProviders); err != nil {
		return nil, err
	}
	if f.blockAt, err = providers(r, "dnsbl", cfg.BlockProviders); err != nil {
		return nil, err
	}
	var i int
	if f.bypassed, i, err = match.NewAddresses(cfg.BypassedRecipients); err != nil {
		return nil, r.At("bypassed_recipients", i).Error(err)
	}
	for name, text := range map[string]string{"block_response": cfg.BlockResponse, "machine_response": cfg.MachineResponse} {
		if len(text) > maxResponse {
			return nil, r.At(name).Error(fmt.Errorf("text of %d characters, at most %d", len(text), maxResponse))
		}
	}
	if f.resolver, err = f.newResolver(); err != nil {
		return nil, err
	}
	f.subscribe(r)
	return f, nil
}

// listed is what is known of an entry.
type listed struct {
	list    string // "allow_list", "block_list"
	comment string
	expires time.Time // zero: never
}

// networks is a list ready for look-ups.
type networks = match.Prefixes[listed]

// codes of a provider, checked.
type provider struct {
	Provider
	codes   map[netip.Addr]bool
	bitmask byte
}

func providers(r *sdk.Registrar, block string, list []Provider) ([]provider, error) {
	var out []provider
	for i, p := range list {
		checked := provider{Provider: p, codes: map[netip.Addr]bool{}}
		for j, c := range p.Codes {
			a, err := netip.ParseAddr(c)
			if err != nil || !loopback8.Contains(a) {
				return nil, r.At(block, i, "codes", j).Error(fmt.Errorf("%q is no answer of a DNS list: those are in 127.0.0.0/8", c))
			}
			checked.codes[a] = true
		}
		if p.Bitmask != "" {
			a, err := netip.ParseAddr(p.Bitmask)
			if err != nil || !loopback8.Contains(a) {
				return nil, r.At(block, i, "bitmask").Error(fmt.Errorf("%q is not in 127.0.0.0/8", p.Bitmask))
			}
			checked.bitmask = a.As4()[3]
		}
		if len(p.Response) > maxResponse {
			return nil, r.At(block, i, "response").Error(fmt.Errorf("text of %d characters, at most %d", len(p.Response), maxResponse))
		}
		out = append(out, checked)
	}
	return out, nil
}
