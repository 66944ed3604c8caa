package main

import (
	"net/netip"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/match"
)

//go:generate go run . --options=README.md

// Config is the agent's configuration. Empty, recipients of authoritative domains that the directory covers must
// exist, and sources that ask for many who do not are blocked.
type Config struct {
	BlockedRecipients []string       `hcl:"blocked_recipients,optional" doc:"Recipients who get no mail through this server, though they exist: user@domain, domain, *.domain." example:"[\"all-staff@example.org\"]"`
	Validate          bool           `hcl:"validate,optional" default:"true" doc:"Refuse recipients that the directory does not know, in authoritative accepted domains that it covers."`
	Tarpit            time.Duration  `hcl:"tarpit,optional" default:"5s" min:"0s" max:"1m" doc:"How long a source that has asked for at least as many unknown recipients as good ones waits for the replies to good ones, so that the time does not tell them apart. The wait before a refusal is the receive connector's. 0s is none."`
	HarvestLimit      int            `hcl:"harvest_limit,optional" default:"20" min:"0" max:"100000" doc:"Unknown recipients from one source within harvest_window that end its session and block it, if it asked for no more good ones in that time. 0 is no limit."`
	HarvestWindow     time.Duration  `hcl:"harvest_window,optional" default:"1h" min:"1m" max:"7d" doc:"How long unknown recipients are counted, from the first one on."`
	HarvestBlock      time.Duration  `hcl:"harvest_block,optional" default:"24h" min:"0s" max:"30d" doc:"How long a source over the limit stands in the table ip-block. 0s leaves the table alone, which must be so where the agent lacks the grant tables."`
	Trusted           []netip.Prefix `hcl:"trusted,optional" doc:"Networks whose unknown recipients are refused but not counted, such as a backup MX. Those of internal_smtp_servers are never counted." example:"[\"192.0.2.0/24\"]"`
}

// New checks cfg. It is called for every new configuration.
func New(cfg Config, r *sdk.Registrar) (*Filter, error) {
	f := &Filter{Config: cfg, accepted: r.Host().AcceptedDomains, trusted: append(cfg.Trusted, r.Host().InternalSMTPServers...)}
	var i int
	var err error
	if f.blocked, i, err = match.NewAddresses(cfg.BlockedRecipients); err != nil {
		return nil, r.At("blocked_recipients", i).Error(err)
	}
	if cfg.Validate && !f.anyAuthoritative() {
		r.At("validate").Warn("no accepted domain is authoritative, so no recipient is validated")
	}
	f.subscribe(r)
	return f, nil
}
