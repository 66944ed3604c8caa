package main

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/dns"
)

//go:generate go run . --options=README.md

// Config is the agent's configuration. Empty, sources are rated and the worst blocked; nobody is probed.
type Config struct {
	Block          bool           `hcl:"block,optional" default:"true" doc:"Block sources whose level reaches block_threshold. Without, they are rated only: the stamp srl."`
	BlockThreshold int            `hcl:"block_threshold,optional" default:"7" min:"1" max:"9" doc:"Sender reputation level from which on a source is blocked."`
	BlockPeriod    time.Duration  `hcl:"block_period,optional" default:"24h" min:"1s" max:"48h" doc:"How long it stands in the table ip-block. Its profile is deleted, so it starts clean afterwards."`
	BlockResponse  string         `hcl:"block_response,optional" default:"Mail from your address is refused for a time because of its reputation" doc:"Text with which its sessions end, up to 240 characters."`
	MinMessages    int            `hcl:"min_messages,optional" default:"20" min:"1" max:"100000" doc:"Messages and refusals before a source is rated. Until then its level is 0."`
	SpamSCL        int            `hcl:"spam_scl,optional" default:"5" min:"1" max:"9" doc:"Spam confidence level (stamp scl) from which on a message is unwanted."`
	Window         time.Duration  `hcl:"window,optional" default:"24h" min:"1m" max:"30d" doc:"How long the names given with HELO and the recent unwanted messages are counted, from the first one on."`
	HalfLife       time.Duration  `hcl:"half_life,optional" default:"7d" min:"1m" max:"90d" doc:"How often everything counted in the table reputation is halved."`
	Keep           time.Duration  `hcl:"keep,optional" default:"30d" min:"1h" max:"365d" doc:"How long a profile is kept after the source was last heard of."`
	Trusted        []netip.Prefix `hcl:"trusted,optional" doc:"Networks that are not rated. Neither is loopback, nor who has authenticated." example:"[\"192.0.2.0/24\"]"`
	ReverseDNS     bool           `hcl:"reverse_dns,optional" default:"true" doc:"Ask for the names of sources, when their sessions are over."`
	DNSTimeout     time.Duration  `hcl:"dns_timeout,optional" default:"2s" min:"100ms" max:"15s" doc:"How long an answer is waited for. Without one nothing is held against the source."`
	DNSServers     []string       `hcl:"dns_servers,optional" doc:"Servers to ask (address, or address:port) instead of the host's resolvers." example:"[\"127.0.0.1:53\"]"`
	Weights
	OpenProxy *OpenProxy `hcl:"open_proxy,block" doc:"Test whether sources are open proxies, by asking them to connect to this server. It connects to strangers, who may mind: off without this block."`
}

// Weights are the points that each input gives when it is at its worst.
type Weights struct {
	WeightSpam        float64 `hcl:"weight_spam,optional" default:"6" min:"0" max:"9" doc:"Points for the share of unwanted messages among those with an SCL."`
	WeightRecentSpam  float64 `hcl:"weight_recent_spam,optional" default:"2" min:"0" max:"9" doc:"Points for 20 or more unwanted messages within window; for fewer in proportion."`
	WeightGoodMail    float64 `hcl:"weight_good_mail,optional" default:"3" min:"0" max:"9" doc:"Points taken off for the share of wanted messages among those with an SCL."`
	WeightRejects     float64 `hcl:"weight_rejects,optional" default:"3" min:"0" max:"9" doc:"Points for the share of refusals (5xx) among messages and refusals."`
	WeightHarvests    float64 `hcl:"weight_harvests,optional" default:"3" min:"0" max:"9" doc:"Points for two or more directory harvests (recipientfilter), half of them for one."`
	WeightHelo        float64 `hcl:"weight_helo,optional" default:"2" min:"0" max:"9" doc:"Points for 10 or more names given with HELO or EHLO within window; two are free, those between count in proportion."`
	WeightLiteral     float64 `hcl:"weight_literal,optional" default:"3" min:"0" max:"9" doc:"Points for the share of sessions that gave an address as their name which is not the source's."`
	WeightOwnDomain   float64 `hcl:"weight_own_domain,optional" default:"4" min:"0" max:"9" doc:"Points for the share of sessions that gave a name of ours: an authoritative domain, the host, its address."`
	WeightNoReverse   float64 `hcl:"weight_no_reverse_dns,optional" default:"1" min:"0" max:"9" doc:"Points for the share of sessions from an address that has no name in DNS."`
	WeightMisnamed    float64 `hcl:"weight_reverse_mismatch,optional" default:"1" min:"0" max:"9" doc:"Points for the share of sessions that gave a name which is neither that of the address in DNS nor leads to the address."`
	WeightEarlyTalk   float64 `hcl:"weight_early_talk,optional" default:"4" min:"0" max:"9" doc:"Points for the share of sessions that talked before the greeting."`
	WeightPipelining  float64 `hcl:"weight_pipelining,optional" default:"3" min:"0" max:"9" doc:"Points for the share of sessions that sent on before replies they had to wait for (RFC 2920)."`
	WeightFeed        float64 `hcl:"weight_feed,optional" default:"0" min:"0" max:"9" doc:"Points for a source to which a feed of connfilter gives the worst IP reputation, 9; for lower levels in proportion. Such a source is rated from its first message on. connfilter must have run before."`
	WeightOpenProxies float64 `hcl:"weight_open_proxy,optional" default:"9" min:"0" max:"9" doc:"Points for a source that was found to be an open proxy."`
}

// OpenProxy configures the tests.
type OpenProxy struct {
	Timeout time.Duration `hcl:"timeout,optional" default:"3s" min:"100ms" max:"30s" doc:"How long all tests of a source together may take."`
	Every   time.Duration `hcl:"every,optional" default:"24h" min:"1m" max:"30d" doc:"How long a result is believed before the source is tested anew."`
	Target  string        `hcl:"target,optional" doc:"Address and port that proxies are asked to connect to. By default those that the client had connected to." example:"\"203.0.113.25:25\""`
	Banner  string        `hcl:"banner,optional" doc:"Text in the greeting there by which it is recognized. By default the host's name."`
	Through *Through      `hcl:"through,block" doc:"Proxy that this server itself needs to connect to the Internet."`
	Tests   []Test        `hcl:"test,block" doc:"Kind of proxy (socks4, socks5, http_connect, http_post, telnet, wingate, cisco) and its ports. Without any: SOCKS on 1080 and 1081, HTTP on 80, 3128 and 6588, the others on 23."`
}

// Through is a proxy to go through.
type Through struct {
	Kind    string `hcl:"kind" one_of:"socks4 socks5 http_connect" doc:"What it speaks."`
	Address string `hcl:"address" doc:"Where it listens, address:port." example:"\"10.0.0.1:1080\""`
}

// Test is a kind of proxy with its ports.
type Test struct {
	Kind  string `hcl:"kind,label"`
	Ports []int  `hcl:"ports" doc:"TCP ports to try."`
}

// New checks cfg. It is called for every new configuration.
func New(cfg Config, r *sdk.Registrar) (*Analysis, error) {
	a := &Analysis{Config: cfg, host: r.Host(), instance: r.Instance(), health: r.Health()}
	if err := errors.Join(checkResponse(r.At("block_response"), cfg.BlockResponse), a.openResolver(r), a.openProber(r)); err != nil {
		return nil, err
	}
	a.subscribe(r)
	return a, nil
}

// maxResponse is Exchange's bound.
const maxResponse = 240

// checkResponse: one line of printable ASCII (RFC 5321 section 4.2).
func checkResponse(place sdk.Place, text string) error {
	if len(text) > maxResponse {
		return place.Errorf("text of %d characters, at most %d", len(text), maxResponse)
	}
	for _, c := range text {
		if c < ' ' || c > '~' {
			return place.Errorf("%q cannot stand in a reply, which is one line of ASCII", c)
		}
	}
	return nil
}

func (a *Analysis) openResolver(r *sdk.Registrar) error {
	servers := r.Host().Resolvers
	if len(a.DNSServers) > 0 {
		servers = nil
	}
	for i, text := range a.DNSServers {
		if ip, err := netip.ParseAddr(text); err == nil {
			text = net.JoinHostPort(ip.String(), "53")
		}
		if _, err := netip.ParseAddrPort(text); err != nil {
			return r.At("dns_servers", i).Errorf("%q is neither an address nor address:port", text)
		}
		servers = append(servers, text)
	}
	var err error
	a.resolver, err = dns.New(dns.Options{Servers: servers, Timeout: a.DNSTimeout})
	return err
}

// openProber checks the block open_proxy.
func (a *Analysis) openProber(r *sdk.Registrar) error {
	c := a.OpenProxy
	if c == nil {
		return nil
	}
	a.prober = newProber(c, a.host.Name)
	for i, test := range c.Tests {
		if kinds[test.Kind] == nil {
			return r.At("open_proxy", "test", i).Errorf("%q is no kind of proxy", test.Kind)
		}
		if j := slices.IndexFunc(test.Ports, func(p int) bool { return p < 1 || p > 65535 }); j >= 0 {
			return r.At("open_proxy", "test", i, "ports", j).Errorf("%d is no port", test.Ports[j])
		}
	}
	if _, err := netip.ParseAddrPort(c.Target); c.Target != "" && err != nil {
		return r.At("open_proxy", "target").Errorf("%q is not address:port", c.Target)
	}
	if c.Through != nil {
		host, port, err := net.SplitHostPort(c.Through.Address)
		if _, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil || host == "" {
			return r.At("open_proxy", "through", "address").Errorf("%q is not address:port", c.Through.Address)
		}
	}
	return nil
}
