package dkim

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"slices"
)

// Lookup answers with the TXT records of a name, the strings of each joined: none if there are none, an error
// if nobody could say.
type Lookup func(ctx context.Context, name string) ([]string, error)

// publicKey is a key record (RFC 6376 section 3.6.1).
type publicKey struct {
	key     crypto.PublicKey
	kind    string // "rsa" or "ed25519"
	hashes  []string
	testing bool // t=y
	strict  bool // t=s: i= must have the very domain of d=
}

// minBits of an RSA key (RFC 8301 section 3.2).
const minBits = 1024

// errPolicy is wrapped by what is right by RFC 6376 and not accepted all the same.
var errPolicy = errors.New("not accepted")

// fetchKey looks up the key of a selector.
func fetchKey(ctx context.Context, lookup Lookup, selector, domain string) (*publicKey, error) {
	records, err := lookup(ctx, selector+"._domainkey."+domain)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errUnavailable, err)
	case len(records) == 0:
		return nil, errors.New("no key for signature")
	case len(records) > 1: // undefined by RFC 6376 section 3.6.2.2
		return nil, errors.New("several key records")
	}
	return parseKey(records[0])
}

// parseKey reads a key record.
func parseKey(record string) (*publicKey, error) {
	tags, err := ParseTags(record)
	if err != nil {
		return nil, fmt.Errorf("key record: %w", err)
	}
	if v, found := tags["v"]; found && v != "DKIM1" {
		return nil, errors.New("key record of an unknown version")
	}
	if s := tags.List("s"); s != nil && !slices.Contains(s, "*") && !slices.Contains(s, "email") {
		return nil, errors.New("key is not for mail")
	}
	k := &publicKey{kind: tags.Compact("k"), hashes: tags.List("h")}
	k.testing, k.strict = slices.Contains(tags.List("t"), "y"), slices.Contains(tags.List("t"), "s")
	p, found := tags["p"]
	switch {
	case !found:
		return nil, errors.New("key record without a key")
	case p == "":
		return nil, errors.New("key is revoked")
	}
	der, err := tags.octets("p")
	if err != nil {
		return nil, fmt.Errorf("key record: %w", err)
	}
	return k, k.read(der)
}

// read the octets of p=.
func (k *publicKey) read(der []byte) error {
	switch k.kind {
	case "", "rsa":
		k.kind = "rsa"
		key, err := x509.ParsePKIXPublicKey(der)
		if err != nil { // RFC 6376 erratum 3017: both forms are in use
			key, err = x509.ParsePKCS1PublicKey(der)
		}
		if _, ok := key.(*rsa.PublicKey); err != nil || !ok {
			return errors.New("key record: not an RSA key")
		}
		k.key = key
	case "ed25519": // RFC 8463 section 4.2: the bare octets
		if len(der) != ed25519.PublicKeySize {
			return errors.New("key record: an Ed25519 key of a wrong length")
		}
		k.key = ed25519.PublicKey(der)
	default:
		return fmt.Errorf("unknown key type %q", clip(k.kind))
	}
	return nil
}

// bits of an RSA key; 256 of an Ed25519 key.
func (k *publicKey) bits() int {
	if key, ok := k.key.(*rsa.PublicKey); ok {
		return key.N.BitLen()
	}
	return 8 * ed25519.PublicKeySize
}

// algorithm of a signature.
type algorithm struct {
	kind string // of key
	sha1 bool
}

// parseAlgorithm reads a=. RFC 6376 section 3.3, RFC 8463 section 3.
func parseAlgorithm(name string) (algorithm, error) {
	switch name {
	case "rsa-sha256":
		return algorithm{kind: "rsa"}, nil
	case "ed25519-sha256":
		return algorithm{kind: "ed25519"}, nil
	case "rsa-sha1":
		return algorithm{kind: "rsa", sha1: true}, nil
	}
	return algorithm{}, fmt.Errorf("unknown algorithm %q", clip(name))
}

func (a algorithm) hashName() string {
	if a.sha1 {
		return "sha1"
	}
	return "sha256"
}

func newHash(isSHA1 bool) hash.Hash {
	if isSHA1 {
		return sha1.New()
	}
	return sha256.New()
}

// permits reports whether the key may be used so.
func (k *publicKey) permits(a algorithm) error {
	switch {
	case k.kind != a.kind:
		return errors.New("key is of another type than the signature")
	case k.hashes != nil && !slices.Contains(k.hashes, a.hashName()):
		return fmt.Errorf("key does not permit %s", a.hashName())
	}
	return nil
}

// verify a signature of a hash.
func (k *publicKey) verify(a algorithm, sum, signature []byte) bool {
	switch key := k.key.(type) {
	case *rsa.PublicKey:
		hashed := crypto.SHA256
		if a.sha1 {
			hashed = crypto.SHA1
		}
		return rsa.VerifyPKCS1v15(key, hashed, sum, signature) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(key, sum, signature)
	}
	return false
}
