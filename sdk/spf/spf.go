// Package spf answers whether a client may send for a domain: the function check_host of RFC 7208, with explanations.
// Records are checked as a whole before anything of them counts.
package spf

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Result of a check in the words of RFC 7208 section 2.6.
type Result string

// Results.
const (
	None      Result = "none"
	Neutral   Result = "neutral"
	Pass      Result = "pass"
	Fail      Result = "fail"
	SoftFail  Result = "softfail"
	TempError Result = "temperror"
	PermError Result = "permerror"
)

// Resolver asks DNS. No records and no error: there are none; an error: nobody could say.
type Resolver interface {
	TXT(ctx context.Context, name string) ([]string, error)
	A(ctx context.Context, name string) ([]netip.Addr, error)
	AAAA(ctx context.Context, name string) ([]netip.Addr, error)
	MX(ctx context.Context, name string) ([]net.MX, error)
	PTR(ctx context.Context, ip netip.Addr) ([]string, error)
}

// Query is what is judged.
type Query struct {
	IP       netip.Addr
	Helo     string
	Sender   string // local@domain; the local part is postmaster where it is empty
	Domain   string // whose record counts
	Receiver string // name of this host, for explanations
	Now      time.Time
	// Records chooses among the TXT records of a domain those that count, written as SPF records; nil: as they are.
	Records func([]string) []string
}

// Answer to a Query.
type Answer struct {
	Result      Result
	Reason      string // why it is an error, or the mechanism that matched
	Explanation string // of the domain, when it fails
}

// Limits of RFC 7208 section 4.6.4.
const (
	maxLookups = 10
	maxVoid    = 2
	maxNames   = 10 // of MX and PTR
)

// check is the state of one evaluation.
type check struct {
	Query
	dns     Resolver
	local   string
	lookups int
	void    int
}

// Errors that end an evaluation.
type (
	temporaryError struct{ error }
	permanentError struct{ error }
)

func permanent(text string) error { return permanentError{errors.New(text)} }

// Check evaluates a query.
func Check(ctx context.Context, r Resolver, q Query) Answer {
	q.IP = q.IP.Unmap().WithZone("")
	c := &check{Query: q, dns: r}
	at := strings.LastIndexByte(q.Sender, '@')
	if c.local = q.Sender[:max(at, 0)]; c.local == "" {
		c.local = "postmaster" // RFC 7208 section 4.3
	}
	c.Sender = c.local + "@" + q.Sender[at+1:]
	return c.host(ctx, strings.TrimSuffix(q.Domain, "."), true)
}

// host is check_host; only the record asked for first, or what it redirects to, explains.
func (c *check) host(ctx context.Context, domain string, explains bool) Answer {
	answer, err := c.evaluate(ctx, domain, explains)
	var temporary temporaryError
	switch {
	case err == nil:
		return answer
	case errors.As(err, &temporary):
		return Answer{Result: TempError, Reason: "DNS lookup failed"}
	}
	return Answer{Result: PermError, Reason: err.Error()}
}

func (c *check) evaluate(ctx context.Context, domain string, explains bool) (Answer, error) {
	r, err := c.fetch(ctx, domain)
	if err != nil {
		return Answer{}, err
	}
	if r == nil {
		return Answer{Result: None, Reason: "no record"}, nil
	}
	for _, d := range r.directives {
		matches, err := c.matches(ctx, domain, d)
		if err != nil {
			return Answer{}, err
		}
		if matches {
			a := Answer{Result: d.result, Reason: d.name}
			if a.Result == Fail && explains && r.explanation != "" {
				a.Explanation = c.explain(ctx, domain, r.explanation)
			}
			return a, nil
		}
	}
	if r.redirect == "" {
		return Answer{Result: Neutral, Reason: "nothing matches"}, nil
	}
	return c.redirect(ctx, domain, r.redirect, explains)
}

// redirect (RFC 7208 section 6.1).
func (c *check) redirect(ctx context.Context, domain, spec string, explains bool) (Answer, error) {
	if err := c.count(); err != nil {
		return Answer{}, err
	}
	a := c.host(ctx, c.target(ctx, domain, spec), explains)
	if a.Result == None {
		return Answer{}, permanent("redirect to a domain without a record")
	}
	return a, nil
}

// fetch the record of a domain (RFC 7208 sections 4.4 to 4.6); nil if there is none.
func (c *check) fetch(ctx context.Context, domain string) (*record, error) {
	if !isName(domain) {
		return nil, nil
	}
	texts, err := c.dns.TXT(ctx, domain)
	if err != nil {
		return nil, temporaryError{err}
	}
	if c.Records != nil {
		texts = c.Records(texts)
	}
	texts = slices.DeleteFunc(slices.Clone(texts), func(t string) bool { return !isRecord(t) })
	switch len(texts) {
	case 0:
		return nil, nil
	case 1:
		r, err := parse(texts[0])
		if err != nil {
			return nil, permanentError{err}
		}
		return r, nil
	}
	return nil, permanent("several records")
}

// isName reports whether DNS can be asked for it: two labels at least (RFC 7208 section 4.3).
func isName(name string) bool {
	name = strings.TrimSuffix(name, ".")
	if len(name) > 253 || !strings.Contains(name, ".") {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
	}
	return true
}

// count a term that asks DNS.
func (c *check) count() error {
	if c.lookups++; c.lookups > maxLookups {
		return permanent("too many DNS lookups")
	}
	return nil
}

// counted answers of DNS: an error is temporary, and few may be empty.
func counted[T any](c *check, records []T, err error) ([]T, error) {
	if err != nil {
		return nil, temporaryError{err}
	}
	if len(records) == 0 {
		if c.void++; c.void > maxVoid {
			return nil, permanent("too many DNS lookups without an answer")
		}
	}
	return records, nil
}

// target of a mechanism: its domain-spec expanded, or the current domain.
func (c *check) target(ctx context.Context, domain, spec string) string {
	if spec == "" {
		return domain
	}
	name := strings.TrimSuffix(c.expand(ctx, domain, spec), ".")
	for len(name) > 253 { // RFC 7208 section 7.3
		_, rest, found := strings.Cut(name, ".")
		if !found {
			break
		}
		name = rest
	}
	return name
}

// matches reports whether a mechanism does (RFC 7208 section 5).
func (c *check) matches(ctx context.Context, domain string, d directive) (bool, error) {
	switch d.name {
	case "all":
		return true, nil
	case "ip4", "ip6":
		return d.network.Contains(c.IP), nil
	}
	if err := c.count(); err != nil {
		return false, err
	}
	name := c.target(ctx, domain, d.domain)
	switch d.name {
	case "include":
		return c.includes(ctx, name)
	case "a":
		return c.hasAddress(ctx, name, d)
	case "mx":
		return c.matchesMX(ctx, name, d)
	case "ptr":
		return c.matchesPTR(ctx, name), nil
	}
	if !isName(name) { // exists
		return false, nil
	}
	found, err := c.dns.A(ctx, name)
	found, err = counted(c, found, err)
	return len(found) > 0, err
}

// includes (RFC 7208 section 5.2).
func (c *check) includes(ctx context.Context, name string) (bool, error) {
	a := c.host(ctx, name, false)
	switch a.Result {
	case Pass:
		return true, nil
	case TempError:
		return false, temporaryError{errors.New(a.Reason)}
	case PermError:
		return false, permanent(a.Reason)
	case None:
		return false, permanent("include of a domain without a record")
	}
	return false, nil
}

// addresses of a name in the family of the client.
func (c *check) addresses(ctx context.Context, name string) ([]netip.Addr, error) {
	if !isName(name) {
		return nil, nil
	}
	if c.IP.Is4() {
		return c.dns.A(ctx, name)
	}
	return c.dns.AAAA(ctx, name)
}

func (c *check) hasAddress(ctx context.Context, name string, d directive) (bool, error) {
	all, err := c.addresses(ctx, name)
	if all, err = counted(c, all, err); err != nil {
		return false, err
	}
	n := d.bits6
	if c.IP.Is4() {
		n = d.bits4
	}
	return slices.ContainsFunc(all, func(ip netip.Addr) bool {
		return netip.PrefixFrom(ip.Unmap(), n).Contains(c.IP)
	}), nil
}

// matchesMX (RFC 7208 section 5.4); more than ten exchangers are an error.
func (c *check) matchesMX(ctx context.Context, name string, d directive) (bool, error) {
	if !isName(name) {
		return false, nil
	}
	all, err := c.dns.MX(ctx, name)
	if all, err = counted(c, all, err); err != nil {
		return false, err
	}
	if len(all) > maxNames {
		return false, permanent("too many mail exchangers")
	}
	for _, mx := range all {
		if found, err := c.hasAddress(ctx, mx.Host, d); found || err != nil {
			return found, err
		}
	}
	return false, nil
}

// matchesPTR (RFC 7208 section 5.5); errors are no match.
func (c *check) matchesPTR(ctx context.Context, name string) bool {
	return slices.ContainsFunc(c.validated(ctx), func(n string) bool { return within(n, name) })
}

// validated names of the client: those that lead back to it.
func (c *check) validated(ctx context.Context) []string {
	names, err := c.dns.PTR(ctx, c.IP)
	if err != nil {
		return nil
	}
	var out []string
	for _, n := range names[:min(len(names), maxNames)] {
		if all, err := c.addresses(ctx, n); err == nil && slices.Contains(all, c.IP) {
			out = append(out, n)
		}
	}
	return out
}

// within reports whether name is domain or below it.
func within(name, domain string) bool {
	name, domain = strings.ToLower(strings.TrimSuffix(name, ".")), strings.ToLower(strings.TrimSuffix(domain, "."))
	return name == domain || strings.HasSuffix(name, "."+domain)
}
