package main

import (
	"testing"
	"time"

	"github.com/posternmail/postern/sdk/address"
)

// FuzzSRS: a bounce address that is taken was made here: with the hash changed it is not.
func FuzzSRS(f *testing.F) {
	s := newSRS(SRS{Domain: "y.example", Secret: "sixteen letters or more", MaxAge: 21 * 24 * time.Hour, HashLen: 4})
	now := time.Unix(1_700_000_000, 0)
	ours, ok := s.forward(address.Mailbox{Local: "jane", Domain: "x.example"}, now)
	if !ok {
		f.Fatal("no bounce address")
	}
	f.Add(ours.Local)
	f.Add("SRS0=AAAA=2W=x.example=sue")
	f.Add("SRS1+AAAA=x.example==AAAA=2W=y.example=sue")
	f.Add("SRS0=")
	f.Fuzz(func(t *testing.T, local string) {
		m := address.Mailbox{Local: local, Domain: "y.example"}
		to, err := s.reverse(m, now)
		if err != nil {
			return
		}
		if to.Domain == "" || to.Local == "" {
			t.Errorf("%q goes to %q", local, to)
		}
		other := newSRS(SRS{Domain: "y.example", Secret: "another secret, as long", MaxAge: 21 * 24 * time.Hour, HashLen: 20})
		if _, err := other.reverse(m, now); err == nil {
			t.Errorf("%q is taken with another secret", local)
		}
	})
}
