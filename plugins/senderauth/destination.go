package main

import (
	"context"
	"net/url"
	"strconv"
	"strings"

	"github.com/posternmail/postern/sdk/address"
)

// destination of reports.
type destination struct {
	mailbox address.Mailbox
	limit   int64 // octets of a report; 0: none
}

// maxDestinations of a domain that are heeded (RFC 7489 section 6.3: at least two).
const maxDestinations = 4

// destinations that a domain names and that want its reports. The error says that DNS did not tell.
func (a *Auth) destinations(ctx context.Context, domain, uris string) ([]destination, error) {
	var out []destination
	for _, d := range parseDestinations(uris) {
		agreed, err := a.agreed(ctx, domain, &d)
		if err == nil && agreed {
			agreed, err = a.takesMail(ctx, d.mailbox.Domain)
		}
		if err != nil {
			return nil, err
		}
		if agreed {
			out = append(out, d)
		}
	}
	return out, nil
}

// parseDestinations reads a list such as "mailto:a@x.example!10m, mailto:b@y.example" (RFC 7489 section 6.2). What it
// cannot read it leaves out.
func parseDestinations(uris string) []destination {
	var out []destination
	for text := range strings.SplitSeq(uris, ",") {
		if d, ok := parseDestination(strings.TrimSpace(text)); ok && len(out) < maxDestinations {
			out = append(out, d)
		}
	}
	return out
}

func parseDestination(text string) (d destination, ok bool) {
	scheme, rest, _ := strings.Cut(text, ":")
	if !strings.EqualFold(scheme, "mailto") {
		return d, false
	}
	rest, limit, limited := strings.Cut(rest, "!")
	if limited {
		if d.limit, ok = parseSize(limit); !ok {
			return d, false
		}
	}
	rest, _, _ = strings.Cut(rest, "?")
	plainText, err := url.PathUnescape(rest)
	if err != nil {
		return d, false
	}
	d.mailbox, err = address.Parse(plainText)
	d.mailbox.Domain = asciiDomain(d.mailbox.Domain)
	return d, err == nil && !d.mailbox.IsNull() && d.mailbox.IsASCII() && !strings.HasPrefix(d.mailbox.Domain, "[")
}

// parseSize reads digits with a unit: k, m, g or t, powers of 1024.
func parseSize(text string) (int64, bool) {
	shift := 0
	if n := len(text); n > 0 {
		if i := strings.IndexByte("kmgt", text[n-1]|0x20); i >= 0 {
			text, shift = text[:n-1], 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n << shift, err == nil && n > 0 && n<<shift>>shift == n
}

// agreed reports whether a destination wants the reports of domain: one of another organization must say so in DNS
// (RFC 7489 section 7.1), and may name another address of its own for them.
func (a *Auth) agreed(ctx context.Context, domain string, d *destination) (bool, error) {
	host := d.mailbox.Domain
	if organizational(host) == organizational(domain) {
		return true, nil
	}
	texts, err := a.resolver.TXT(ctx, domain+"._report._dmarc."+host)
	if err != nil {
		return false, err
	}
	for _, text := range texts {
		tags := dmarcTags(text)
		if tags == nil {
			continue
		}
		if other := parseDestinations(tags["rua"]); len(other) > 0 && other[0].mailbox.Domain == host {
			*d = other[0]
		}
		return true, nil
	}
	return false, nil
}

// takesMail reports whether a domain does: it has an address, and no null MX (RFC 7505).
func (a *Auth) takesMail(ctx context.Context, domain string) (bool, error) {
	mx, err := a.resolver.MX(ctx, domain)
	switch {
	case err != nil:
		return false, err
	case len(mx) > 0:
		return len(mx) > 1 || mx[0].Host != "", nil
	}
	return a.exists(ctx, domain), nil
}
