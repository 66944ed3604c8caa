package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/dkim"
)

//go:generate go run . --options=README.md

// Config is the agent's configuration. Empty, nothing is signed.
type Config struct {
	Keys    []Key         `hcl:"key,block" doc:"A key with which mail of a domain is signed. With several blocks of a domain each signs, an RSA and an Ed25519 key for example."`
	Seal    *Seal         `hcl:"seal,block" doc:"Seals mail from outside that goes on to domains of others (ARC)."`
	Headers []string      `hcl:"headers,optional" default:"From,Sender,Reply-To,To,Cc,Subject,Date,Message-ID,In-Reply-To,References,MIME-Version,Content-Type,Content-Transfer-Encoding,List-Unsubscribe,List-Unsubscribe-Post" doc:"Fields to sign where they are there. From is signed in any case."`
	Once    []string      `hcl:"protected,optional" default:"From,Reply-To,To,Cc,Subject,Date,Message-ID,Content-Type" doc:"Fields of which none may be added on the way: that breaks the signature."`
	Expires time.Duration `hcl:"expires,optional" default:"0s" min:"0s" max:"8760h" doc:"How long a signature is valid; 0s: for ever."`
}

// Key of a domain.
type Key struct {
	Domain     string `hcl:"domain,label"`
	Selector   string `hcl:"selector,label"`
	File       string `hcl:"file" format:"path" doc:"Private key in PEM form (PKCS #8, or PKCS #1 of an RSA key): RSA of 1024 bits or more, or Ed25519."`
	Subdomains bool   `hcl:"subdomains,optional" doc:"Whether it signs mail of subdomains, too, that have no key of their own."`
}

// Seal is how mail is sealed.
type Seal struct {
	Domain     string `hcl:"domain,label"`
	Selector   string `hcl:"selector,label"`
	File       string `hcl:"file" format:"path" doc:"Private key, as for key."`
	AuthservID string `hcl:"authserv_id,optional" doc:"Name under which senderauth writes Authentication-Results. The host's name if left out."`
}

// New checks cfg and reads the keys. It is called for every new configuration.
func New(cfg Config, r *sdk.Registrar) (*Signer, error) {
	s := &Signer{Config: cfg, host: r.Host(), signers: map[string][]dkim.Signer{}, subdomains: map[string][]dkim.Signer{}}
	errs := []error{checkNames(r, "headers", cfg.Headers), checkNames(r, "protected", cfg.Once)}
	seen := map[string]bool{}
	for i, k := range cfg.Keys {
		errs = append(errs, s.addKey(r, i, k, seen))
	}
	if cfg.Seal != nil {
		key, err := open(r, cfg.Seal.Domain, cfg.Seal.Selector, cfg.Seal.File, "seal")
		errs = append(errs, err)
		s.sealer = &key
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	s.subscribe(r)
	return s, nil
}

func (s *Signer) addKey(r *sdk.Registrar, i int, k Key, seen map[string]bool) error {
	key, err := open(r, k.Domain, k.Selector, k.File, "key", i)
	if err != nil {
		return err
	}
	name := key.Selector + "._domainkey." + key.Domain
	if seen[name] {
		return r.At("key", i).Errorf("%s stands twice", name)
	}
	seen[name] = true
	key.Expires = s.Expires
	s.signers[key.Domain] = append(s.signers[key.Domain], key)
	if k.Subdomains {
		s.subdomains[key.Domain] = append(s.subdomains[key.Domain], key)
	}
	return nil
}

// open a key and check all that is said of it.
func open(r *sdk.Registrar, domain, selector, file string, path ...any) (dkim.Signer, error) {
	name, err := address.ParseDomain(domain)
	if err != nil || strings.HasPrefix(name, "[") {
		return dkim.Signer{}, r.At(path...).Errorf("%q is no domain", domain)
	}
	if _, err := address.ParseDomain(selector); err != nil || strings.HasPrefix(selector, "[") {
		return dkim.Signer{}, r.At(path...).Errorf("%q is no selector", selector)
	}
	place := r.At(append(path, "file")...)
	key, err := readKey(file)
	if err != nil {
		return dkim.Signer{}, place.Error(err)
	}
	if facts, err := os.Stat(file); err == nil && facts.Mode().Perm()&0o007 != 0 {
		place.Warn("everybody on this machine can read the key")
	}
	return dkim.Signer{Domain: name, Selector: selector, Key: key}, nil
}

func readKey(file string) (crypto.Signer, error) {
	octets, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the key: %w", err)
	}
	key, err := dkim.ParsePrivateKey(octets)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	_, err = dkim.AlgorithmOf(key)
	return key, err
}

func checkNames(r *sdk.Registrar, option string, names []string) error {
	for i, name := range names {
		valid := name != ""
		for _, c := range name {
			valid = valid && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-')
		}
		if !valid {
			return r.At(option, i).Errorf("%q is no name of a header field", name)
		}
		if strings.EqualFold(name, "Received") || strings.EqualFold(name, "Return-Path") {
			return r.At(option, i).Errorf("%s changes on the way, so it must not be signed", name)
		}
	}
	return nil
}

// records is the command of that name: lines of a zone file.
func records(_ context.Context, c *sdk.Invocation) error {
	var cfg Config
	if err := c.Config(&cfg); err != nil {
		return err
	}
	keys := cfg.Keys
	if cfg.Seal != nil {
		keys = append(keys, Key{Domain: cfg.Seal.Domain, Selector: cfg.Seal.Selector, File: cfg.Seal.File})
	}
	for _, k := range keys {
		key, err := readKey(k.File)
		if err != nil {
			return err
		}
		text, err := dkim.Record(key)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.Out, "%s._domainkey.%s. IN TXT (", k.Selector, k.Domain)
		for len(text) > 255 { // one string holds no more
			fmt.Fprintf(c.Out, " %q", text[:255])
			text = text[255:]
		}
		fmt.Fprintf(c.Out, " %q )\n", text)
	}
	return nil
}
