package main

import (
	"context"
	"io"
	"mime"
	"net/mail"
	"strings"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
)

// purported responsible address (RFC 4407) and the field it stands in.
type purported struct {
	address.Mailbox
	field string // "sender"; empty if there is no such address
}

// purportedOf finds it (RFC 4407 section 2): the first usable of Resent-Sender, Resent-From, Sender and From.
func purportedOf(h sdk.Header) purported {
	if f, ok := resentField(h); ok {
		return onlyAddress(f)
	}
	for _, name := range []string{"Sender", "From"} {
		fields := filled(h, name)
		switch {
		case len(fields) == 1:
			return onlyAddress(fields[0])
		case len(fields) > 1:
			return purported{}
		}
	}
	return purported{}
}

// resentField is the first Resent-Sender, unless a Resent-From stands above it with trace fields between them, which
// began a later block; else the first Resent-From (RFC 4407 section 2 steps 1 and 2).
func resentField(h sdk.Header) (field sdk.Field, ok bool) {
	traced := false // trace fields since the first Resent-From
	for f := range h.Fields() {
		if strings.TrimSpace(f.Text()) == "" {
			continue
		}
		switch strings.ToLower(f.Name) {
		case "resent-from":
			if !ok {
				field, ok = f, true
			}
		case "resent-sender":
			if !traced {
				return f, true
			}
			return field, ok
		case "received", "return-path":
			traced = traced || ok
		}
	}
	return field, ok
}

// filled fields of that name.
func filled(h sdk.Header, name string) []sdk.Field {
	var out []sdk.Field
	for f := range h.All(name) {
		if strings.TrimSpace(f.Text()) != "" {
			out = append(out, f)
		}
	}
	return out
}

// onlyAddress of a field that must have exactly one (RFC 4407 section 2 step 6).
func onlyAddress(f sdk.Field) purported {
	all := addressesOf(string(f.Raw))
	if len(all) != 1 {
		return purported{}
	}
	return purported{all[0], strings.ToLower(f.Name)}
}

// addressesOf a field's value; none if it cannot be read.
func addressesOf(raw string) []address.Mailbox {
	parser := mail.AddressParser{WordDecoder: &mime.WordDecoder{CharsetReader: anyCharset}}
	list, err := parser.ParseList(strings.Join(strings.Fields(raw), " "))
	if err != nil {
		return nil
	}
	var out []address.Mailbox
	for _, entry := range list {
		at := strings.LastIndexByte(entry.Address, '@')
		out = append(out, address.Mailbox{Local: entry.Address[:at], Domain: strings.ToLower(entry.Address[at+1:])})
	}
	return out
}

// anyCharset lets display names be in any charset: only the address is wanted.
func anyCharset(_ string, input io.Reader) (io.Reader, error) { return input, nil }

// checkSenderID judges the client by the purported responsible address (RFC 4406).
func (a *Auth) checkSenderID(ctx context.Context, c client, p purported) spfResult {
	out := spfResult{sender: p.Local + "@" + p.Domain, domain: p.Domain}
	if p.field == "" {
		out.result, out.reason = resultFail, "no purported responsible address"
		return out
	}
	out = a.checkHost(ctx, c, out, senderIDRecords)
	if out.result == resultNone && c.ip.IsValid() && !a.exists(ctx, p.Domain) {
		out.result, out.reason = resultFail, "the domain does not exist" // RFC 4406 section 4.3
	}
	return out
}

// exists is false for a domain with neither mail exchanger nor address.
func (a *Auth) exists(ctx context.Context, domain string) bool {
	mx, errMX := a.resolver.MX(ctx, domain)
	v4, errA := a.resolver.A(ctx, domain)
	v6, errAAAA := a.resolver.AAAA(ctx, domain)
	return len(mx)+len(v4)+len(v6) > 0 || errMX != nil || errA != nil || errAAAA != nil
}

// senderIDRecords leaves the records that count for the purported responsible address, written as SPF records: spf2.0 with
// the scope pra, or else those of SPF (RFC 4406 section 4.4).
func senderIDRecords(records []string) []string {
	var own []string
	for _, r := range records {
		version, rest, _ := strings.Cut(r, " ")
		scopes, found := strings.CutPrefix(strings.ToLower(version), "spf2.0/")
		if !found {
			continue
		}
		for scope := range strings.SplitSeq(scopes, ",") {
			if scope == "pra" {
				own = append(own, "v=spf1 "+rest)
			}
		}
	}
	if own != nil {
		return own
	}
	return records
}
