package main

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk/address"
)

// srs writes and reads bounce addresses as libsrs2 and postsrsd do: SRS0=hash=day=domain=local and, for a sender
// that is one already, SRS1=hash=host=rest. The hash is a truncated HMAC-SHA1 in base64, compared without case
// since local parts on the way may lose it.
type srs struct{ SRS }

// days since 1970 in two characters, so they come again after 1024.
const (
	day      = 24 * time.Hour
	dayCycle = 1024
	dayChars = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
)

// Errors of reverse, for the ledger.
var (
	errNoSRS   = errors.New("not an SRS address")
	errForged  = errors.New("the hash is wrong")
	errExpired = errors.New("too old")
)

func newSRS(cfg SRS) *srs {
	cfg.Domain = strings.ToLower(cfg.Domain)
	return &srs{cfg}
}

// prefixed reports whether local begins with SRS0 or SRS1 and a separator.
func prefixed(local, prefix string) bool {
	return len(local) > len(prefix) && strings.EqualFold(local[:len(prefix)], prefix) && strings.IndexByte("=+-", local[len(prefix)]) >= 0
}

// owns reports whether m is a bounce address of ours.
func (s *srs) owns(m address.Mailbox) bool {
	return domainKey(m.Domain) == domainKey(s.Domain) && (prefixed(m.Local, "SRS0") || prefixed(m.Local, "SRS1"))
}

// forward makes a bounce address for a sender of another domain.
func (s *srs) forward(from address.Mailbox, now time.Time) (address.Mailbox, bool) {
	if from.Local == "" || from.Domain == "" || strings.EqualFold(from.Domain, s.Domain) {
		return from, false
	}
	var local string
	switch {
	case prefixed(from.Local, "SRS0"):
		rest := from.Local[len("SRS0"):]
		local = s.join("SRS1", from.Domain, rest)
	case prefixed(from.Local, "SRS1"):
		fields := strings.SplitN(from.Local[len("SRS1="):], "=", 3)
		if len(fields) != 3 {
			return from, false
		}
		local = s.join("SRS1", fields[1], fields[2])
	default:
		local = s.join("SRS0", stamp(now), from.Domain, from.Local)
	}
	return address.Mailbox{Local: local, Domain: s.Domain}, true
}

func (s *srs) join(prefix string, fields ...string) string {
	return prefix + "=" + hash(s.Secret, fields)[:s.HashLen] + "=" + strings.Join(fields, "=")
}

// reverse answers with the address that bounces go to.
func (s *srs) reverse(m address.Mailbox, now time.Time) (address.Mailbox, error) {
	if len(m.Local) < 5 {
		return m, errNoSRS
	}
	fields := strings.SplitN(m.Local[5:], "=", 2)
	if len(fields) != 2 {
		return m, errNoSRS
	}
	if prefixed(m.Local, "SRS1") {
		return s.reverse1(m, fields[0], fields[1])
	}
	if !prefixed(m.Local, "SRS0") {
		return m, errNoSRS
	}
	signed := strings.SplitN(fields[1], "=", 3)
	switch {
	case len(signed) != 3 || signed[1] == "" || signed[2] == "":
		return m, errNoSRS
	case !s.genuine(fields[0], signed):
		return m, errForged
	case s.expired(signed[0], now):
		return m, errExpired
	}
	return address.Mailbox{Local: signed[2], Domain: strings.ToLower(signed[1])}, nil
}

// reverse1 sends the bounce to the host that made the SRS0 address.
func (s *srs) reverse1(m address.Mailbox, hash, rest string) (address.Mailbox, error) {
	signed := strings.SplitN(rest, "=", 2)
	switch {
	case len(signed) != 2 || signed[0] == "" || !prefixed("SRS0"+signed[1], "SRS0"):
		return m, errNoSRS
	case !s.genuine(hash, signed):
		return m, errForged
	}
	return address.Mailbox{Local: "SRS0" + signed[1], Domain: strings.ToLower(signed[0])}, nil
}

func (s *srs) genuine(given string, fields []string) bool {
	if len(given) < s.HashLen {
		return false
	}
	for _, secret := range append([]string{s.Secret}, s.Former...) {
		want := hash(secret, fields)
		if len(given) <= len(want) && hmac.Equal([]byte(strings.ToLower(given)), []byte(strings.ToLower(want[:len(given)]))) {
			return true
		}
	}
	return false
}

// expired reports whether a day is further back than MaxAge, or ahead by more than clocks may differ.
func (s *srs) expired(text string, now time.Time) bool {
	if len(text) != 2 {
		return true
	}
	high, low := strings.IndexByte(dayChars, upper(text[0])), strings.IndexByte(dayChars, upper(text[1]))
	if high < 0 || low < 0 {
		return true
	}
	age := (today(now) - (high<<5 | low) + dayCycle) % dayCycle
	return age > int(s.MaxAge/day) && age != dayCycle-1
}

func upper(c byte) byte {
	if c >= 'a' && c <= 'z' {
		return c - 'a' + 'A'
	}
	return c
}

func today(now time.Time) int { return int(now.Unix()/int64(day/time.Second)) % dayCycle }

func stamp(now time.Time) string {
	d := today(now)
	return string([]byte{dayChars[d>>5], dayChars[d&31]})
}

func hash(secret string, fields []string) string {
	mac := hmac.New(sha1.New, []byte(secret))
	for _, f := range fields {
		mac.Write([]byte(strings.ToLower(f)))
	}
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}
