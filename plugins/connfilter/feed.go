package main

import (
	"bytes"
	"context"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/feed"
	"github.com/posternmail/postern/sdk/match"
)

// Kinds of files in a bundle that this agent uses.
const (
	kindAllow      = "ip-allow"      // as a file of allow_list
	kindBlock      = "ip-block"      // as a file of block_list
	kindReputation = "ip-reputation" // "192.0.2.0/24 7 # comment": the worse, the higher, 1 to 9
)

// fedLists are the lists of a feed.
type fedLists struct {
	allow, block networks
	reputation   match.Prefixes[reputed]
}

// reputed is what a feed knows of a network.
type reputed struct {
	level   int
	comment string
}

// maxLevel of a reputation, which is that of the worst.
const maxLevel = 9

// buildLists reads a bundle. One that would refuse a good part of the Internet is a mistake of its publisher.
func buildLists(b *feed.Bundle) (*fedLists, error) {
	if !b.Has(kindAllow, kindBlock, kindReputation) {
		return nil, fmt.Errorf("it has no file of the kinds %s, %s and %s", kindAllow, kindBlock, kindReputation)
	}
	l := new(fedLists)
	var refused []netip.Prefix
	for kind, add := range map[string]func(string) error{
		kindAllow: l.allow.readLine,
		kindBlock: func(line string) error {
			prefixes, err := l.addBlocked(line)
			refused = append(refused, prefixes...)
			return err
		},
		kindReputation: func(line string) error {
			prefixes, err := l.addReputed(line)
			refused = append(refused, prefixes...)
			return err
		},
	} {
		for name, content := range b.Files(kind) {
			if number, err := match.ReadLines(bytes.NewReader(content), add); err != nil {
				return nil, fmt.Errorf("%s:%d: %w", name, number, err)
			}
		}
	}
	return l, checkRefused(refused)
}

// addBlocked reads a line of a block list.
func (l *fedLists) addBlocked(line string) ([]netip.Prefix, error) {
	if err := l.block.readLine(line); err != nil {
		return nil, err
	}
	text, _ := match.CutComment(line, "#;")
	words := strings.Fields(text)
	if len(words) == 0 {
		return nil, nil
	}
	return match.ParseNetwork(words[0])
}

// addReputed reads a line of reputations. Of two for one network the worse stays.
func (l *fedLists) addReputed(line string) ([]netip.Prefix, error) {
	text, comment := match.CutComment(line, "#;")
	words := strings.Fields(text)
	if len(words) == 0 {
		return nil, nil
	}
	level := 0
	if len(words) == 2 {
		level, _ = strconv.Atoi(words[1])
	}
	if level < 1 || level > maxLevel {
		return nil, fmt.Errorf("%q is not understood: a line is a network and its level, 1 to %d, # and a comment", text, maxLevel)
	}
	prefixes, err := match.ParseNetwork(words[0])
	for _, p := range prefixes {
		if old, there := l.reputation.At(p); !there || old.level < level {
			l.reputation.Put(p, reputed{level, comment})
		}
	}
	return prefixes, err
}

// What no list of a feed may refuse: networks wider than any that are given to one owner, this machine, and in all more
// than a quarter of the addresses.
const (
	widest4  = 8
	widest6  = 16
	maxShare = 4 // one in so many
)

func tooWide(p netip.Prefix) bool {
	return p.Addr().Is4() && p.Bits() < widest4 || p.Addr().Is6() && p.Bits() < widest6
}

func checkRefused(all []netip.Prefix) error {
	for _, p := range all {
		if tooWide(p) {
			return fmt.Errorf("%s is wider than any network of one owner: a mistake", p)
		}
		if p.Contains(netip.IPv6Loopback()) || p.Contains(netip.AddrFrom4([4]byte{127, 0, 0, 1})) {
			return fmt.Errorf("%s holds the loopback address", p)
		}
	}
	for _, bits := range []int{32, 128} {
		total := new(big.Int).Lsh(big.NewInt(1), uint(bits))
		if size := sizeOf(all, bits); size.Mul(size, big.NewInt(maxShare)).Cmp(total) > 0 {
			return fmt.Errorf("more than one in %d of all addresses of %d bits would be refused: a mistake", maxShare, bits)
		}
	}
	return nil
}

// sizeOf all networks with addresses of so many bits together, those within others counted once.
func sizeOf(all []netip.Prefix, bits int) *big.Int {
	all = slices.DeleteFunc(slices.Clone(all), func(p netip.Prefix) bool { return p.Addr().BitLen() != bits })
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	size := new(big.Int)
	var last netip.Prefix
	for _, p := range all {
		if last.IsValid() && last.Contains(p.Addr()) {
			continue
		}
		last = p
		size.Add(size, new(big.Int).Lsh(big.NewInt(1), uint(bits-p.Bits())))
	}
	return size
}

// OnSchedule looks at the sources of the feeds.
func (f *Filter) OnSchedule(_ context.Context, e *sdk.ScheduleEvent) sdk.Verdict {
	f.feeds.Fetch(e)
	return sdk.Continue()
}

// judgeByFeeds looks into what allows in all feeds, then into what refuses.
func (f *Filter) judgeByFeeds(ip netip.Addr, now time.Time) judgement {
	for v := range f.feeds.Values() {
		if p, e, ok := v.Value.allow.find(ip, now); ok {
			return judgement{kind: allowed, Reason: reasonAllowFeed, Data: v.Feed + " " + describe(p, e.comment)}
		}
	}
	for v := range f.feeds.Values() {
		if p, e, ok := v.Value.block.find(ip, now); ok {
			return judgement{refused, reasonBlockFeed, v.Feed + " " + describe(p, e.comment), fill(f.BlockResponse, ip, "")}
		}
	}
	name, p, worst := f.reputation(ip)
	if worst.level == 0 || worst.level < f.ReputationThreshold {
		return judgement{}
	}
	data := fmt.Sprintf("%s %d %s", name, worst.level, describe(p, worst.comment))
	return judgement{refused, reasonReputation, data, fill(f.MachineResponse, ip, "")}
}

// reputation of an address: the worst that a feed has for its closest network. The level is 0 where none knows it.
func (f *Filter) reputation(ip netip.Addr) (name string, network netip.Prefix, worst reputed) {
	for v := range f.feeds.Values() {
		for p, r := range v.Value.reputation.Holding(ip) {
			if r.level > worst.level {
				name, network, worst = v.Feed, p, r
			}
			break // a closer network is an exception to a wider one
		}
	}
	return name, network, worst
}
