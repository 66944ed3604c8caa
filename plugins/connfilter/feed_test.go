package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/internal/feedtest"
)

func TestBuildLists(t *testing.T) {
	l, err := buildLists(feedtest.Bundle(t,
		kindAllow, "192.0.2.1 # a friend\n", kindBlock, "# comment\n\n192.0.2.0/24 expires=2026-06-30 ; spam\n2001:db8::/32\n",
		kindReputation, "198.51.100.0/24 5 # not good\n198.51.100.7 9\n198.51.100.7 8\n198.51.100.8 1\n", "model", "of another agent"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	if _, e, ok := l.allow.find(netip.MustParseAddr("192.0.2.1"), now); !ok || e.comment != "a friend" {
		t.Errorf("the friend: %v %v", e, ok)
	}
	for ip, want := range map[string]bool{"192.0.2.9": true, "192.0.3.9": false, "2001:db8::7": true} {
		if _, _, ok := l.block.find(netip.MustParseAddr(ip), now); ok != want {
			t.Errorf("%s blocked: %v", ip, ok)
		}
	}
	if _, _, ok := l.block.find(netip.MustParseAddr("192.0.2.9"), now.AddDate(1, 0, 0)); ok {
		t.Error("the entry does not expire")
	}
	for ip, want := range map[string]int{"198.51.100.1": 5, "198.51.100.7": 9, "198.51.100.8": 1} {
		for _, r := range l.reputation.Holding(netip.MustParseAddr(ip)) {
			if r.level != want {
				t.Errorf("%s has level %d", ip, r.level)
			}
			break
		}
	}
}

func TestBuildListsRefuses(t *testing.T) {
	var quarter, most strings.Builder
	for i := range 66 {
		fmt.Fprintf(&quarter, "%d.0.0.0/8\n%d.1.0.0/16\n", i+1, i+1)
		fmt.Fprintf(&most, "%d.0.0.0/8 9\n", i+1)
	}
	for _, c := range []struct{ kind, list, want string }{
		{"model", "x", "no file of the kinds"},
		{kindBlock, "192.0.2.0/24\nnonsense\n", `0.txt:2: not an IP address`},
		{kindBlock, "0.0.0.0/0\n", "wider than any network of one owner"},
		{kindBlock, "::/0\n", "wider than any network of one owner"},
		{kindBlock, "0.0.0.0-255.255.255.255\n", "wider than any network"},
		{kindBlock, "127.0.0.0/8\n", "holds the loopback address"},
		{kindBlock, "::1\n", "holds the loopback address"},
		{kindBlock, quarter.String(), "more than one in 4"},
		{kindReputation, most.String(), "more than one in 4"},
		{kindReputation, "192.0.2.1\n", "a network and its level"},
		{kindReputation, "192.0.2.1 10\n", "a network and its level"},
		{kindAllow, "192.0.2.1 maybe\n", "is not understood"},
	} {
		if _, err := buildLists(feedtest.Bundle(t, c.kind, c.list)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %.20q: %v, want ... %s ...", c.kind, c.list, err, c.want)
		}
	}
	half := strings.Replace(quarter.String(), "66.0.0.0/8\n", "", 1)
	half = strings.Join(strings.Split(half, "\n")[:80], "\n")
	if _, err := buildLists(feedtest.Bundle(t, kindBlock, half)); err != nil {
		t.Errorf("forty networks of which some hold others: %v", err)
	}
}
