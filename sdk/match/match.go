// Package match compares names, addresses and networks with an operator's lists: file names with wildcards,
// mailboxes and domains, and IP prefixes.
package match

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"path"
	"strings"

	"github.com/posternmail/postern/sdk/address"
)

// Check reports the first pattern that Names would not take, by its index.
func Check(patterns []string) (int, error) {
	for i, p := range patterns {
		if _, err := path.Match(strings.ToLower(p), ""); err != nil || p == "" {
			return i, fmt.Errorf("%q is not a pattern: use * for any characters, ? for one, [a-z] for a range", p)
		}
	}
	return 0, nil
}

// Names matches file names without regard to case: whole names, or patterns with *, ? and [a-z].
type Names struct{ patterns []string }

// NewNames makes a matcher. The error names the pattern.
func NewNames(patterns []string) (*Names, error) {
	if _, err := Check(patterns); err != nil {
		return nil, err
	}
	n := &Names{}
	for _, p := range patterns {
		n.patterns = append(n.patterns, strings.ToLower(p))
	}
	return n, nil
}

// Match answers with the first pattern that name matches. Dots and spaces at its end do not hide an extension,
// since Windows drops them.
func (n *Names) Match(name string) (pattern string, ok bool) {
	name = strings.ToLower(strings.TrimRight(name, ". \t"))
	name = strings.ReplaceAll(name, "/", "_") // path.Match stops at slashes
	for _, p := range n.patterns {
		if ok, _ := path.Match(p, name); ok {
			return p, true
		}
	}
	return "", false
}

// Addresses matches mailboxes: "user@domain", "domain" for all of its users, "*.domain" for those of its
// subdomains, "*" for everybody. Case does not matter. The zero value is empty and ready.
type Addresses struct{ entries map[string]bool }

// NewAddresses makes a matcher. The error comes with the index of the entry.
func NewAddresses(entries []string) (*Addresses, int, error) {
	a := &Addresses{entries: make(map[string]bool, len(entries))}
	for i, e := range entries {
		if err := a.Add(e); err != nil {
			return nil, i, err
		}
	}
	return a, 0, nil
}

// Add an entry. The error names it.
func (a *Addresses) Add(entry string) error {
	if err := checkEntry(entry); err != nil {
		return fmt.Errorf("%q: %w", entry, err)
	}
	if a.entries == nil {
		a.entries = map[string]bool{}
	}
	a.entries[entryKey(entry)] = true
	return nil
}

// entryKey is an entry in the form that Match looks for.
func entryKey(e string) string {
	if m, err := address.Parse(e); err == nil && strings.Contains(e, "@") {
		return m.Key()
	}
	return address.ASCIIDomain(e)
}

func checkEntry(e string) error {
	switch {
	case e == "*":
		return nil
	case strings.Contains(e, "@"):
		_, err := address.Parse(e)
		return err
	}
	_, err := address.ParseDomain(strings.TrimPrefix(e, "*."))
	return err
}

// Len is the number of entries.
func (a *Addresses) Len() int { return len(a.entries) }

// Match answers with the closest entry: the address, its domain, the nearest "*.domain" above it, "*".
func (a *Addresses) Match(m address.Mailbox) (entry string, ok bool) {
	if len(a.entries) == 0 || m.IsNull() {
		return "", false
	}
	domain := address.ASCIIDomain(m.Domain)
	for _, e := range []string{m.Key(), domain} {
		if a.entries[e] {
			return e, true
		}
	}
	for {
		_, above, more := strings.Cut(domain, ".")
		if !more {
			break
		}
		if e := "*." + above; a.entries[e] {
			return e, true
		}
		domain = above
	}
	return "*", a.entries["*"]
}

// Prefixes maps IP prefixes to values; the longest prefix that holds an address wins. A lookup costs a few map
// reads, however many entries there are. The zero value is empty and ready.
type Prefixes[V any] struct {
	values map[netip.Prefix]V
	bits4  [33]int // entries of each length
	bits6  [129]int
}

// Put adds p or replaces its value.
func (t *Prefixes[V]) Put(p netip.Prefix, v V) {
	p = canonical(p)
	if t.values == nil {
		t.values = map[netip.Prefix]V{}
	}
	if _, there := t.values[p]; !there {
		if p.Addr().Is4() {
			t.bits4[p.Bits()]++
		} else {
			t.bits6[p.Bits()]++
		}
	}
	t.values[p] = v
}

// Len is the number of prefixes.
func (t *Prefixes[V]) Len() int { return len(t.values) }

// At is the value of just this prefix.
func (t *Prefixes[V]) At(p netip.Prefix) (v V, ok bool) {
	v, ok = t.values[canonical(p)]
	return v, ok
}

// Get finds the value of the longest prefix that holds ip, and that prefix.
func (t *Prefixes[V]) Get(ip netip.Addr) (v V, p netip.Prefix, ok bool) {
	for p, v := range t.Holding(ip) {
		return v, p, true
	}
	return v, p, false
}

// Holding walks the prefixes that hold ip, the longest first.
func (t *Prefixes[V]) Holding(ip netip.Addr) iter.Seq2[netip.Prefix, V] {
	return func(yield func(netip.Prefix, V) bool) {
		ip = ip.Unmap().WithZone("")
		lengths := t.bits6[:]
		if ip.Is4() {
			lengths = t.bits4[:]
		}
		for bits := ip.BitLen(); bits >= 0; bits-- {
			if lengths[bits] == 0 {
				continue
			}
			p, err := ip.Prefix(bits)
			if err != nil {
				return // no address
			}
			if v, ok := t.values[p]; ok && !yield(p, v) {
				return
			}
		}
	}
}

func canonical(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// ErrNetwork is wrapped by ParseNetwork.
var ErrNetwork = errors.New("not an IP address, a prefix or a range")

// ParseNetwork reads an address, a CIDR prefix or a range "a-b" as the fewest prefixes that cover just it.
func ParseNetwork(s string) ([]netip.Prefix, error) {
	s = strings.TrimSpace(s)
	if first, last, ok := strings.Cut(s, "-"); ok {
		a, errA := netip.ParseAddr(strings.TrimSpace(first))
		b, errB := netip.ParseAddr(strings.TrimSpace(last))
		if errA != nil || errB != nil || a.BitLen() != b.BitLen() || a.Zone()+b.Zone() != "" || b.Less(a) {
			return nil, fmt.Errorf("%w: %q", ErrNetwork, s)
		}
		return cover(a, b), nil
	}
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%w: %q", ErrNetwork, s)
		}
		return []netip.Prefix{p.Masked()}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return nil, fmt.Errorf("%w: %q", ErrNetwork, s)
	}
	return []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}, nil
}

// cover splits the range a to b into prefixes: the largest that starts at a and does not pass b, and so on.
func cover(a, b netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for {
		bits := a.BitLen()
		for bits > 0 {
			p, _ := a.Prefix(bits - 1)
			if p.Addr() != a || b.Less(last(p)) {
				break
			}
			bits--
		}
		p := netip.PrefixFrom(a, bits)
		out = append(out, p)
		end := last(p)
		if end == b {
			return out
		}
		a = end.Next()
	}
}

// last is the highest address of p.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
