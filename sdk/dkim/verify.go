package dkim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Result of a verification in the words of RFC 8601 section 2.7.1.
type Result string

// Results.
const (
	Pass      Result = "pass"
	Fail      Result = "fail"      // the message or the signature was changed
	Policy    Result = "policy"    // right, but not accepted: SHA-1, a short key
	PermError Result = "permerror" // cannot be judged, and never will
	TempError Result = "temperror" // the key could not be looked up
)

// Verification is the judgement on one signature.
type Verification struct {
	Result    Result
	Reason    string // why it is no pass
	Domain    string // d=, lower case
	Selector  string // s=
	Identity  string // i=, "@" and d= without it
	Algorithm string // a=
	Signature string // b=, without white space
	Bits      int    // of the key; 0 if none was found
	Testing   bool   // the key says that the domain is testing (t=y)
	Unsigned  int64  // octets of the canonical body behind l=
	Headers   []string
	Expires   time.Time // x=; zero: never
}

// Verifier of signatures.
type Verifier struct {
	Lookup Lookup
	Now    time.Time
	Max    int // signatures of a message that are verified, from the top; 0: all

	historic bool // accepts SHA-1, short keys and the drafts before RFC 4871
}

// errUnavailable is wrapped where nobody could say.
var errUnavailable = errors.New("key unavailable")

// errAltered is wrapped where message and signature do not fit.
var errAltered = errors.New("does not verify")

// Verify the signatures of a message, all at once, and answer in the order in which they stand. A panic is the caller's.
func (v *Verifier) Verify(ctx context.Context, m *Message) []Verification {
	fields := m.Fields("DKIM-Signature")
	if v.Max > 0 {
		fields = fields[:min(len(fields), v.Max)]
	}
	out := make([]Verification, len(fields))
	causes := make([]any, len(fields))
	var all sync.WaitGroup
	for i, field := range fields {
		all.Go(func() {
			defer func() { causes[i] = recover() }() // it would end the process
			out[i] = v.verifyField(ctx, m, field)
		})
	}
	all.Wait()
	for _, cause := range causes {
		if cause != nil {
			panic(cause)
		}
	}
	return out
}

func (v *Verifier) verifyField(ctx context.Context, m *Message, field string) Verification {
	var out Verification
	tags, err := ParseTags(FieldValue(field))
	if err == nil {
		out = describe(tags)
		err = v.check(tags)
	}
	if err == nil {
		out.Expires, _ = tags.Time("x")
		err = v.verify(ctx, m, field, tags, &out)
	}
	out.Result, out.Reason = ResultOf(err)
	return out
}

func describe(tags Tags) Verification {
	out := Verification{
		Domain: strings.ToLower(tags.Compact("d")), Selector: tags.Compact("s"), Identity: tags.identity(),
		Algorithm: tags.Compact("a"), Signature: tags.Compact("b"), Headers: tags.List("h"),
	}
	if out.Identity == "" {
		out.Identity = "@" + out.Domain
	}
	return out
}

// ResultOf an error of a verification.
func ResultOf(err error) (Result, string) {
	switch {
	case err == nil:
		return Pass, ""
	case errors.Is(err, errUnavailable):
		return TempError, errUnavailable.Error()
	case errors.Is(err, errAltered):
		return Fail, err.Error()
	case errors.Is(err, errPolicy):
		return Policy, err.Error()
	}
	return PermError, err.Error()
}

// check what a DKIM signature says, apart from its cryptography (RFC 6376 section 6.1.1).
func (v *Verifier) check(tags Tags) error {
	draft := v.historic && (tags["v"] == "" || strings.HasPrefix(tags["v"], "0."))
	if tags["v"] != "1" && !draft {
		return errors.New("unknown version")
	}
	if err := tags.Need("a", "b", "bh", "d", "h", "s"); err != nil {
		return err
	}
	if q := tags.List("q"); q != nil && !slices.Contains(q, "dns/txt") && !(v.historic && slices.Contains(q, "dns")) {
		return errors.New("unknown query method")
	}
	if !containsFold(tags.List("h"), "from") {
		return errors.New("the From field is not signed")
	}
	if i := tags.identityDomain(); i != "" && !within(i, tags.Compact("d")) {
		return errors.New("i= is not of the domain d=")
	}
	made, err := tags.Time("t")
	if err != nil {
		return err
	}
	expires, err := tags.Time("x")
	switch {
	case err != nil:
		return err
	case !expires.IsZero() && v.Now.After(expires):
		return errors.New("signature has expired")
	case !expires.IsZero() && expires.Before(made):
		return errors.New("signature expires before it was made")
	}
	return nil
}

func containsFold(list []string, want string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, want) })
}

// within reports whether name is domain or below it.
func within(name, domain string) bool {
	name, domain = strings.ToLower(name), strings.ToLower(domain)
	return name == domain || strings.HasSuffix(name, "."+domain)
}

// VerifyField verifies a signature of the whole message in a field like DKIM-Signature: it has the tags a, b, bh, c,
// d, h, l and s. What else its tags must say is the caller's to check. ResultOf tells what the error means.
func (v *Verifier) VerifyField(ctx context.Context, m *Message, field string, tags Tags) error {
	return v.verify(ctx, m, field, tags, new(Verification))
}

// verify does the cryptography; out gets what is learned of the key.
func (v *Verifier) verify(ctx context.Context, m *Message, field string, tags Tags, out *Verification) error {
	s, err := newSigned(m, tags)
	if err != nil {
		return err
	}
	key, err := fetchKey(ctx, v.Lookup, tags.Compact("s"), tags.Compact("d"))
	if err != nil {
		return err
	}
	out.Bits, out.Testing = key.bits(), key.testing
	if i := tags.identityDomain(); key.strict && strings.Contains(i, ".") && !strings.EqualFold(i, tags.Compact("d")) {
		return errors.New("key demands i= of the very domain d=")
	}
	if err := key.permits(s.algorithm); err != nil {
		return err
	}
	if err := s.verifyBody(tags); err != nil {
		return err
	}
	out.Unsigned = s.unsigned
	return v.verifySum(key, s.algorithm, s.headerSum(field), tags)
}

// VerifySum verifies a signature of a SHA-256 sum; tags has a, b, d and s.
func (v *Verifier) VerifySum(ctx context.Context, sum []byte, tags Tags) error {
	a, err := parseAlgorithm(tags.Compact("a"))
	if err != nil {
		return err
	}
	key, err := fetchKey(ctx, v.Lookup, tags.Compact("s"), tags.Compact("d"))
	if err != nil {
		return err
	}
	return v.verifySum(key, a, sum, tags)
}

func (v *Verifier) verifySum(key *publicKey, a algorithm, sum []byte, tags Tags) error {
	if err := key.permits(a); err != nil {
		return err
	}
	signature, err := tags.octets("b")
	if err != nil {
		return err
	}
	if !v.historic {
		if err := acceptable(key, a); err != nil {
			return err
		}
	}
	if !key.verify(a, sum, signature) {
		return fmt.Errorf("signature %w", errAltered)
	}
	return nil
}

// acceptable by RFC 8301: SHA-1 and RSA keys of less than 1024 bits prove nothing any more.
func acceptable(key *publicKey, a algorithm) error {
	switch {
	case a.sha1:
		return fmt.Errorf("%w: SHA-1", errPolicy)
	case a.kind == "rsa" && key.bits() < minBits:
		return fmt.Errorf("%w: key of %d bits", errPolicy, key.bits())
	}
	return nil
}

// signed is what a signature covers.
type signed struct {
	message       *Message
	algorithm     algorithm
	headerRelaxed bool
	bodyRelaxed   bool
	headers       []string
	limit         int64
	unsigned      int64
}

func newSigned(m *Message, tags Tags) (*signed, error) {
	s := &signed{message: m, headers: tags.List("h"), limit: -1}
	var errs [3]error
	s.algorithm, errs[0] = parseAlgorithm(tags.Compact("a"))
	s.headerRelaxed, s.bodyRelaxed, errs[1] = tags.canonicalization()
	if l, found := tags["l"]; found {
		if s.limit, errs[2] = strconv.ParseInt(l, 10, 64); s.limit < 0 {
			errs[2] = errors.New("negative l=")
		}
	}
	return s, errors.Join(errs[:]...)
}

// verifyBody compares the hash of the body with bh=.
func (s *signed) verifyBody(tags Tags) error {
	want, err := tags.octets("bh")
	if err != nil {
		return err
	}
	sum, total, err := s.message.hashBody(bodyForm{s.bodyRelaxed, s.algorithm.sha1, s.limit})
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", errUnavailable, err)
	case s.limit > total:
		return fmt.Errorf("body %w: it is shorter than l=", errAltered)
	case !bytes.Equal(sum, want):
		return fmt.Errorf("body hash %w", errAltered)
	}
	if s.limit >= 0 {
		s.unsigned = total - s.limit
	}
	return nil
}

// headerSum hashes the fields of h= and then the signature's own field without its b= (RFC 6376 section 3.7).
func (s *signed) headerSum(field string) []byte {
	h := newHash(s.algorithm.sha1)
	s.writeFields(h)
	own := canonicalField(WithoutSignature(field), s.headerRelaxed)
	h.Write([]byte(strings.TrimSuffix(own, "\r\n")))
	return h.Sum(nil)
}

// writeFields in the order of h=, of several with the same name the lowest first (RFC 6376 section 5.4.2).
func (s *signed) writeFields(h hash.Hash) {
	left := map[string][]string{}
	for _, name := range s.headers {
		name = strings.ToLower(name)
		if _, seen := left[name]; !seen {
			left[name] = s.message.Fields(name)
		}
		if n := len(left[name]); n > 0 {
			h.Write([]byte(canonicalField(left[name][n-1], s.headerRelaxed)))
			left[name] = left[name][:n-1]
		}
	}
}
