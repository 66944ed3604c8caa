package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/match"
)

// entry is what is known of a network.
type entry struct {
	comment string
	expires time.Time // zero: never
}

// over reports whether the entry is disabled at a time.
func (e entry) over(now time.Time) bool { return !e.expires.IsZero() && !now.Before(e.expires) }

// outlasts reports whether e is in force when other is no more.
func (e entry) outlasts(other entry) bool {
	return !other.expires.IsZero() && (e.expires.IsZero() || e.expires.After(other.expires))
}

// networks ready for look-ups.
type networks struct{ match.Prefixes[entry] }

// put a network. Of two entries for the same one the one that lasts longer stays.
func (n *networks) put(text string, e entry) error {
	prefixes, err := match.ParseNetwork(text)
	if err != nil {
		return err
	}
	for _, p := range prefixes {
		if old, there := n.At(p); !there || e.outlasts(old) {
			n.Put(p, e)
		}
	}
	return nil
}

// find the closest entry that is in force.
func (n *networks) find(ip netip.Addr, now time.Time) (netip.Prefix, entry, bool) {
	for p, e := range n.Holding(ip) {
		if !e.over(now) {
			return p, e, true
		}
	}
	return netip.Prefix{}, entry{}, false
}

// list is a List at work. What its files hold changes with them; the rest stays.
type list struct {
	name  string
	fixed networks
	files *match.Files[networks]
}

// openList reads a list. A nil one is empty.
func openList(r *sdk.Registrar, name string, config *List) (*list, error) {
	if config == nil {
		config = new(List)
	}
	l := &list{name: name}
	for i, text := range config.Networks {
		if err := l.fixed.put(text, entry{}); err != nil {
			return nil, r.At(name, "networks", i).Error(err)
		}
		warnOfSlips(r.At(name, "networks", i), text)
	}
	for i, e := range config.Entries {
		if err := l.add(r, i, e); err != nil {
			return nil, err
		}
	}
	var i int
	var err error
	if l.files, i, err = match.OpenFiles(config.Files, (*networks).readLine); err != nil {
		return nil, r.At(name, "files", i).Error(err)
	}
	return l, nil
}

func (l *list) add(r *sdk.Registrar, i int, config Entry) error {
	expires, err := parseExpiry(config.Expires)
	if err != nil {
		return r.At(l.name, "entry", i, "expires").Error(err)
	}
	e := entry{comment: config.Comment, expires: expires}
	if err := l.fixed.put(config.Network, e); err != nil {
		return r.At(l.name, "entry", i).Error(err)
	}
	warnOfSlips(r.At(l.name, "entry", i), config.Network)
	if e.over(time.Now()) {
		r.At(l.name, "entry", i, "expires").Warn("this entry has expired and does nothing any more")
	}
	return nil
}

// warnOfSlips of what is understood, but may not be what was meant.
func warnOfSlips(place sdk.Place, network string) {
	p, err := netip.ParsePrefix(network)
	if err != nil {
		return // an address or a range, which are neither
	}
	if p != p.Masked() {
		place.Warn("bits are set behind the prefix: all of " + p.Masked().String() + " is meant")
	}
	if tooWide(p) {
		place.Warn(p.String() + " is wider than any network of one owner")
	}
}

// find the entry in force that holds ip.
func (l *list) find(ip netip.Addr, now time.Time) (netip.Prefix, entry, bool) {
	if p, e, ok := l.fixed.find(ip, now); ok {
		return p, e, true
	}
	return l.files.List().find(ip, now)
}

// parseExpiry reads a date, which includes that day, or a time. Empty: never.
func parseExpiry(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.DateOnly, s); err == nil {
		return t.AddDate(0, 0, 1), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a date (2026-12-31) nor a time (2026-12-31T18:00:00Z)", s)
	}
	return t, nil
}

// readLine reads "192.0.2.0/24 expires=2026-12-31 # comment"; ";" starts a comment too, as in the files that
// operators of DNS lists hand out.
func (n *networks) readLine(line string) error {
	text, comment := match.CutComment(line, "#;")
	words := strings.Fields(text)
	if len(words) == 0 {
		return nil
	}
	e := entry{comment: comment}
	for _, word := range words[1:] {
		date, ok := strings.CutPrefix(word, "expires=")
		if !ok || date == "" {
			return fmt.Errorf("%q is not understood: a line is a network, expires=DATE, # and a comment", word)
		}
		var err error
		if e.expires, err = parseExpiry(date); err != nil {
			return err
		}
	}
	return n.put(words[0], e)
}
