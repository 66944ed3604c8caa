package spf

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// expand the macros of a text that checkMacros has passed (RFC 7208 section 7).
func (c *check) expand(ctx context.Context, domain, text string) string {
	var b strings.Builder
	at := 0
	for _, m := range macro.FindAllStringSubmatchIndex(text, -1) {
		b.WriteString(text[at:m[0]])
		at = m[1]
		switch whole := text[m[0]:m[1]]; whole {
		case "%%":
			b.WriteByte('%')
		case "%_":
			b.WriteByte(' ')
		case "%-":
			b.WriteString("%20")
		default:
			b.WriteString(c.macro(ctx, domain, text[m[2]:m[3]], text[m[4]:m[5]], m[6] < m[7], text[m[8]:m[9]]))
		}
	}
	b.WriteString(text[at:])
	return b.String()
}

// macro expands one: its letter, how many parts are kept, whether they are reversed, and what separates them.
func (c *check) macro(ctx context.Context, domain, letter, digits string, reversed bool, delimiters string) string {
	if delimiters == "" {
		delimiters = "."
	}
	value := c.letter(ctx, domain, strings.ToLower(letter))
	parts := strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(delimiters, r) })
	if reversed {
		slices.Reverse(parts)
	}
	if n, err := strconv.Atoi(digits); err == nil && n < len(parts) {
		parts = parts[len(parts)-n:]
	}
	value = strings.Join(parts, ".")
	if letter < "a" { // upper case
		return strings.ReplaceAll(url.QueryEscape(value), "+", "%20")
	}
	return value
}

func (c *check) letter(ctx context.Context, domain, letter string) string {
	_, senderDomain, _ := strings.Cut(c.Sender[len(c.local):], "@")
	switch letter {
	case "s":
		return c.Sender
	case "l":
		return c.local
	case "o":
		return senderDomain
	case "d":
		return domain
	case "i":
		return c.dotted()
	case "p":
		return c.clientName(ctx, domain)
	case "h":
		return c.Helo
	case "c":
		return c.IP.String()
	case "r":
		return c.Receiver
	case "t":
		return strconv.FormatInt(c.Now.Unix(), 10)
	}
	if c.IP.Is4() { // v
		return "in-addr"
	}
	return "ip6"
}

// dotted is the client's address in labels.
func (c *check) dotted() string {
	if c.IP.Is4() {
		return c.IP.String()
	}
	var nibbles []string
	for _, octet := range c.IP.As16() {
		nibbles = append(nibbles, fmt.Sprintf("%x.%x", octet>>4, octet&15))
	}
	return strings.Join(nibbles, ".")
}

// clientName is a validated name of the client: the domain itself, one below it, or any (RFC 7208 section 7.3).
func (c *check) clientName(ctx context.Context, domain string) string {
	names := c.validated(ctx)
	for _, fits := range []func(string) bool{
		func(n string) bool { return strings.EqualFold(strings.TrimSuffix(n, "."), domain) },
		func(n string) bool { return within(n, domain) },
		func(string) bool { return true },
	} {
		if i := slices.IndexFunc(names, fits); i >= 0 {
			return strings.TrimSuffix(names[i], ".")
		}
	}
	return "unknown"
}

// explain a failure in the words of the domain (RFC 7208 section 6.2): "" if anything is wrong with them.
func (c *check) explain(ctx context.Context, domain, spec string) string {
	name := c.target(ctx, domain, spec)
	if !isName(name) {
		return ""
	}
	texts, err := c.dns.TXT(ctx, name)
	if err != nil || len(texts) != 1 {
		return ""
	}
	for word := range strings.SplitSeq(texts[0], " ") {
		if checkMacros(word, true) != nil {
			return ""
		}
	}
	return c.expand(ctx, domain, texts[0])
}
