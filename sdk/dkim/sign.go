package dkim

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Signer makes signatures with one key.
type Signer struct {
	Domain   string
	Selector string
	Key      crypto.Signer // *rsa.PrivateKey or ed25519.PrivateKey; see ParsePrivateKey
	// Headers to sign, From among them. A name signs as many fields as it stands there; once more than there are
	// fields, and the signature breaks when one is added (RFC 6376 section 8.15).
	Headers []string
	// Expires after this time; 0: never.
	Expires time.Duration
}

// Sign answers with the value of a DKIM-Signature field, relaxed/relaxed, folded, to be put before all others.
func (s *Signer) Sign(m *Message, now time.Time) (string, error) {
	name, err := AlgorithmOf(s.Key)
	if err != nil {
		return "", err
	}
	tags := []Tag{
		{"v", "1"}, {"a", name}, {"c", "relaxed/relaxed"}, {"d", s.Domain}, {"s", s.Selector}, {"t", seconds(now)},
	}
	if s.Expires > 0 {
		tags = append(tags, Tag{"x", seconds(now.Add(s.Expires))})
	}
	body, err := m.RelaxedBodyHash()
	if err != nil {
		return "", err
	}
	tags = append(tags, Tag{"h", strings.Join(s.Headers, ":")}, Tag{"bh", body}, Tag{"b", ""})
	value := FormatTags("DKIM-Signature", tags)
	signature, err := s.signField(m, "DKIM-Signature", value)
	return InsertSignature(value, foldBase64(signature)), err
}

// Tag of a list that is written.
type Tag struct{ Name, Value string }

func seconds(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }

// RelaxedBodyHash is bh= of the relaxed body by SHA-256.
func (m *Message) RelaxedBodyHash() (string, error) {
	sum, _, err := m.hashBody(bodyForm{relaxed: true, limit: -1})
	return base64.StdEncoding.EncodeToString(sum), err
}

// SignField signs the signer's Headers and the field itself, made of the tags, in relaxed form, and answers with its value.
// Tag b is among the tags, without a value.
func (s *Signer) SignField(m *Message, field string, tags []Tag) (string, error) {
	value := FormatTags(field, tags)
	signature, err := s.signField(m, field, value)
	return InsertSignature(value, signature), err
}

func (s *Signer) signField(m *Message, field, value string) (string, error) {
	covered := &signed{message: m, headers: s.Headers, headerRelaxed: true}
	return SignSum(s.Key, covered.headerSum(field+":"+value))
}

// InsertSignature puts a signature into the empty tag b of a value that FormatTags made.
func InsertSignature(value, signature string) string {
	i := strings.Index(value, " b=")
	if i < 0 {
		i = strings.Index(value, "\tb=")
	}
	i += len(" b=")
	return value[:i] + signature + value[i:]
}

// SignSum signs a SHA-256 sum and answers in base64.
func SignSum(key crypto.Signer, sum []byte) (string, error) {
	options := crypto.SignerOpts(crypto.SHA256)
	if _, ok := key.(ed25519.PrivateKey); ok {
		options = crypto.Hash(0) // RFC 8463 section 3: the sum is the message
	}
	signature, err := key.Sign(rand.Reader, sum, options)
	if err != nil {
		return "", fmt.Errorf("signing: %w", err)
	}
	return base64.StdEncoding.EncodeToString(signature), nil
}

// FormatTags writes a tag list as the value of a field, folded, and around b in any case.
func FormatTags(field string, tags []Tag) string {
	var b strings.Builder
	used := len(field) + 1
	for i, t := range tags {
		text := t.Name + "=" + t.Value
		if i < len(tags)-1 {
			text += ";"
		}
		if used+1+len(text) > maxLine && used > 2 || i > 0 && (t.Name == "b" || tags[i-1].Name == "b") {
			b.WriteString("\r\n\t")
			used = 1
		} else {
			b.WriteByte(' ')
			used++
		}
		text, used = foldList(text, used)
		b.WriteString(text)
	}
	return b.String()
}

// maxLine of a field that is written, without the line end.
const maxLine = 76

// foldList breaks a long list behind its colons; used is how much of the line is taken, before and after.
func foldList(text string, used int) (string, int) {
	var b strings.Builder
	for part := range strings.SplitAfterSeq(text, ":") {
		if used+len(part) > maxLine && used > 2 {
			b.WriteString("\r\n\t ")
			used = 2
		}
		b.WriteString(part)
		used += len(part)
	}
	return b.String(), used
}

// foldBase64 breaks octets into lines; the first has "b=" before it.
func foldBase64(text string) string {
	var b strings.Builder
	first := min(len(text), 70)
	b.WriteString(text[:first])
	for part := range slices.Chunk([]byte(text[first:]), 72) {
		b.WriteString("\r\n\t ")
		b.Write(part)
	}
	return b.String()
}

// AlgorithmOf a key, as a= names it. RSA keys of less than 1024 bits are refused (RFC 8301).
func AlgorithmOf(key crypto.Signer) (string, error) {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if n := k.N.BitLen(); n < minBits {
			return "", fmt.Errorf("RSA key of %d bits, at least %d", n, minBits)
		}
		return "rsa-sha256", nil
	case ed25519.PrivateKey:
		return "ed25519-sha256", nil
	}
	return "", fmt.Errorf("neither an RSA nor an Ed25519 key: %T", key)
}

// ParsePrivateKey reads a key in PEM form: PKCS #8, or PKCS #1 of an RSA key.
func ParsePrivateKey(octets []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(octets)
	if block == nil {
		return nil, errors.New("no key in PEM form")
	}
	if block.Type == "RSA PRIVATE KEY" {
		key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("RSA key: %w", err)
		}
		return key, nil
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("private key of type %q: %w", block.Type, err)
	}
	key, ok := any.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key of type %T cannot sign", any)
	}
	_, err = AlgorithmOf(key)
	return key, err
}

// Record is the text of the TXT record to publish for a key, at SELECTOR._domainkey.DOMAIN.
func Record(key crypto.Signer) (string, error) {
	switch public := key.Public().(type) {
	case ed25519.PublicKey:
		return "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(public), nil
	case *rsa.PublicKey:
		der, err := x509.MarshalPKIXPublicKey(public)
		return "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der), err
	}
	return "", fmt.Errorf("neither an RSA nor an Ed25519 key: %T", key)
}

// CheckRecord reports whether the published record of a selector fits the key: nil if so.
func CheckRecord(ctx context.Context, lookup Lookup, selector, domain string, key crypto.Signer) error {
	published, err := fetchKey(ctx, lookup, selector, domain)
	if err != nil {
		return err
	}
	own, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !own.Equal(published.key) {
		return errors.New("the published key is another one")
	}
	return nil
}

// OversignedHeaders is h= for a message: each name as often as fields of it are there, and those of always once
// more. Names without a field are left out unless always names them.
func OversignedHeaders(m *Message, names, always []string) []string {
	var out []string
	for _, name := range names {
		for range m.Fields(name) {
			out = append(out, strings.ToLower(name))
		}
	}
	for _, name := range always {
		out = append(out, strings.ToLower(name))
	}
	slices.SortStableFunc(out, func(a, b string) int { return cmp.Compare(rank(a), rank(b)) })
	return out
}

// rank puts From first, where people look for it.
func rank(name string) int {
	if name == "from" {
		return 0
	}
	return 1
}
