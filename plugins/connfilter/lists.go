package main

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/match"
)

// loadList reads the entries of a list from the configuration and its files.
func loadList(r *sdk.Registrar, name string, l *List) (*networks, error) {
	n := new(networks)
	if l == nil {
		return n, nil
	}
	for i, text := range l.Networks {
		if err := put(n, text, listed{list: name}); err != nil {
			return nil, r.At(name, "networks", i).Error(err)
		}
	}
	for i, e := range l.Entries {
		expires, err := parseExpiry(e.Expires)
		if err != nil {
			return nil, r.At(name, "entry", i, "expires").Error(err)
		}
		if err := put(n, e.Network, listed{name, e.Comment, expires}); err != nil {
			return nil, r.At(name, "entry", i).Error(err)
		}
	}
	for i, path := range l.Files {
		if err := loadFile(n, name, path); err != nil {
			return nil, r.At(name, "files", i).Error(err)
		}
	}
	return n, nil
}

func put(n *networks, text string, l listed) error {
	prefixes, err := match.ParseNetwork(text)
	if err != nil {
		return err
	}
	for _, p := range prefixes {
		n.Put(p, l)
	}
	return nil
}

// loadFile reads a network a line: "192.0.2.0/24 expires=2026-12-31 # comment".
func loadFile(n *networks, list, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for number := 1; lines.Scan(); number++ {
		text, comment, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		l := listed{list: list, comment: strings.TrimSpace(comment)}
		for _, word := range words[1:] {
			date, ok := strings.CutPrefix(word, "expires=")
			if !ok {
				return fmt.Errorf("%s:%d: %q is not understood", path, number, word)
			}
			if l.expires, err = parseExpiry(date); err != nil {
				return fmt.Errorf("%s:%d: %w", path, number, err)
			}
		}
		if err := put(n, words[0], l); err != nil {
			return fmt.Errorf("%s:%d: %w", path, number, err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func parseExpiry(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.DateOnly, s); err == nil {
		return t.AddDate(0, 0, 1), nil // through the end of that day
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a date (2026-12-31) nor a time (2026-12-31T18:00:00Z)", s)
	}
	return t, nil
}

// find answers with the entry that covers ip at the time now.
func find(n *networks, ip netip.Addr, now time.Time) (listed, netip.Prefix, bool) {
	l, p, ok := n.Get(ip)
	if !ok || !l.expires.IsZero() && !now.Before(l.expires) {
		return listed{}, netip.Prefix{}, false
	}
	return l, p, true
}
