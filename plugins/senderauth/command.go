package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/dns"
)

// test is the command: it asks what a client would be told, Exchange's Test-SenderId.
func test(ctx context.Context, c *sdk.Invocation) error {
	var cfg Config
	if err := c.Config(&cfg); err != nil {
		return err
	}
	servers, _, err := serverList(cfg.DNSServers)
	if err != nil {
		return err
	}
	resolver, err := dns.New(dns.Options{Servers: servers, Timeout: cfg.DNSTimeout})
	if err != nil {
		return err
	}
	return answer(ctx, c.Out, &Auth{Config: cfg, resolver: resolver, host: "localhost"}, c.Args)
}

// answer writes what a says about the arguments.
func answer(ctx context.Context, w io.Writer, a *Auth, args []string) error {
	from, sender, err := parseTest(args)
	if err != nil {
		return err
	}
	show(w, "sender-id", a.checkSenderID(ctx, from, purported{sender, "from"}))
	show(w, "spf", a.checkSPF(ctx, from, sender))
	domain := asciiDomain(sender.Domain)
	switch record, owner, err := a.policy(ctx, domain); {
	case err != nil:
		show(w, "dmarc", spfResult{result: resultTempError, reason: err.Error()})
	case record == nil:
		show(w, "dmarc", spfResult{result: "no policy"})
	default:
		show(w, "dmarc", spfResult{result: "policy " + record.asked(owner != domain) + " of " + owner})
	}
	return nil
}

func show(w io.Writer, method string, r spfResult) {
	fmt.Fprintf(w, "%-10s %s\n", method, r.result)
	if r.reason != "" {
		fmt.Fprintf(w, "  reason: %s\n", alwaysQuoted(r.reason))
	}
	if r.explanation != "" {
		fmt.Fprintf(w, "  explanation: %s\n", alwaysQuoted(r.explanation))
	}
}

// parseTest reads the arguments: the client's address, the sender's address or domain, and the name in HELO.
func parseTest(args []string) (client, address.Mailbox, error) {
	if len(args) < 2 || len(args) > 3 {
		return client{}, address.Mailbox{}, errors.New("say IP, the sender's address or domain, and the name in HELO if it matters")
	}
	ip, err := netip.ParseAddr(args[0])
	if err != nil {
		return client{}, address.Mailbox{}, fmt.Errorf("the client's address: %w", err)
	}
	text := args[1]
	if !strings.Contains(text, "@") {
		text = "postmaster@" + text
	}
	sender, err := address.Parse(text)
	if err != nil {
		return client{}, address.Mailbox{}, fmt.Errorf("the sender: %w", err)
	}
	c := client{ip: ip, time: time.Now()}
	if len(args) == 3 {
		c.helo = args[2]
	}
	return c, sender, nil
}
