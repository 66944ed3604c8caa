// Package arc validates and writes the Authenticated Received Chain (RFC 8617): what each handler of a message
// found when it came in, sealed one over the other.
package arc

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/dkim"
)

// Names of the fields.
const (
	ResultsField = "ARC-Authentication-Results"
	MessageField = "ARC-Message-Signature"
	SealField    = "ARC-Seal"
)

// Result of a validation (RFC 8617 section 4.4).
type Result string

// Results. A chain whose keys cannot be looked up is TempError (RFC 8617 section 5.2.1 leaves the choice).
const (
	None      Result = "none"
	Pass      Result = "pass"
	Fail      Result = "fail"
	TempError Result = "temperror"
)

// maxSets of a chain (RFC 8617 section 4.2.1).
const maxSets = 50

// Chain is a validated chain.
type Chain struct {
	Result Result
	Reason string // why it failed
	Sets   []Set  // from instance 1 on; those that could be read, if it failed
}

// Set is what one handler added.
type Set struct {
	Sealer  string // d= of the seal, lower case
	CV      string // cv= of the seal: the result that the sealer found
	Results string // of Authentication-Results, from the authserv-id on
	results string // the fields as they stand
	message string
	seal    string
}

// Validate the chain of a message (RFC 8617 section 5.2).
func Validate(ctx context.Context, v *dkim.Verifier, m *dkim.Message) Chain {
	sets, err := collect(m)
	c := Chain{Sets: sets}
	switch {
	case err == nil && len(sets) == 0:
		c.Result = None
		return c
	case err == nil:
		err = c.validate(ctx, v, m)
	}
	switch result, reason := dkim.ResultOf(err); {
	case result == dkim.Pass:
		c.Result = Pass
	case result == dkim.TempError:
		c.Result, c.Reason = TempError, reason
	default:
		c.Result, c.Reason = Fail, err.Error()
	}
	return c
}

func (c *Chain) validate(ctx context.Context, v *dkim.Verifier, m *dkim.Message) error {
	seals := make([]dkim.Tags, len(c.Sets))
	for i := range c.Sets {
		var err error
		if seals[i], err = checkSeal(c.Sets[i].seal, i+1); err != nil {
			return fmt.Errorf("seal %d: %w", i+1, err)
		}
		c.Sets[i].Sealer, c.Sets[i].CV = strings.ToLower(seals[i].Compact("d")), seals[i].Compact("cv")
	}
	if err := verifyMessage(ctx, v, m, c.Sets[len(c.Sets)-1].message); err != nil {
		return fmt.Errorf("message signature %d: %w", len(c.Sets), err)
	}
	for i := len(seals) - 1; i >= 0; i-- {
		if err := v.VerifySum(ctx, sealSum(c.Sets[:i+1]), seals[i]); err != nil {
			return fmt.Errorf("seal %d: %w", i+1, err)
		}
	}
	return nil
}

// collect the sets: one field of each kind for each instance from 1 on (RFC 8617 section 5.2 step 3).
func collect(m *dkim.Message) ([]Set, error) {
	results, messages, seals := m.Fields(ResultsField), m.Fields(MessageField), m.Fields(SealField)
	n := max(len(results), len(messages), len(seals))
	switch {
	case n > maxSets:
		return nil, fmt.Errorf("%d sets, at most %d", n, maxSets)
	case len(results) != n || len(messages) != n || len(seals) != n:
		return nil, errors.New("a set is not complete")
	}
	sets := make([]Set, n)
	for _, kind := range []struct {
		fields []string
		number func(field string) (int, error)
		put    func(s *Set) *string
	}{
		{results, resultsInstance, func(s *Set) *string { return &s.results }},
		{messages, tagInstance, func(s *Set) *string { return &s.message }},
		{seals, tagInstance, func(s *Set) *string { return &s.seal }},
	} {
		for _, f := range kind.fields {
			i, err := kind.number(f)
			if err != nil {
				return nil, err
			}
			if i > n || *kind.put(&sets[i-1]) != "" {
				return nil, fmt.Errorf("instance %d is wrong", i)
			}
			*kind.put(&sets[i-1]) = f
		}
	}
	for i := range sets {
		_, rest, _ := strings.Cut(dkim.FieldValue(sets[i].results), ";")
		sets[i].Results = strings.TrimSpace(rest)
	}
	return sets, nil
}

// tagInstance is i= of a tag list.
func tagInstance(field string) (int, error) {
	tags, err := dkim.ParseTags(dkim.FieldValue(field))
	if err != nil {
		return 0, err
	}
	return instance(tags["i"])
}

// resultsInstance is i=, with which ARC-Authentication-Results begins (RFC 8617 section 4.1.1).
func resultsInstance(field string) (int, error) {
	first, _, found := strings.Cut(dkim.FieldValue(field), ";")
	name, value, isTag := strings.Cut(first, "=")
	if !found || !isTag || strings.TrimSpace(name) != "i" {
		return 0, errors.New("ARC-Authentication-Results without an instance")
	}
	return instance(strings.TrimSpace(value))
}

func instance(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 8)
	if err != nil || n < 1 || n > maxSets {
		return 0, fmt.Errorf("%q is no instance", text[:min(len(text), 10)])
	}
	return int(n), nil
}

// checkSeal: what a seal must say (RFC 8617 sections 4.1.3 and 5.2 step 3).
func checkSeal(field string, i int) (dkim.Tags, error) {
	tags, err := dkim.ParseTags(dkim.FieldValue(field))
	if err != nil {
		return nil, err
	}
	if _, found := tags["h"]; found {
		return nil, errors.New("tag h is not allowed")
	}
	if err := checkTags(tags, "i", "a", "b", "cv", "d", "s"); err != nil {
		return nil, err
	}
	want := "pass"
	if i == 1 {
		want = "none"
	}
	if cv := tags.Compact("cv"); cv != want {
		return nil, fmt.Errorf("cv=%s where it must be %s", cv[:min(len(cv), 10)], want)
	}
	return tags, nil
}

func checkTags(tags dkim.Tags, needed ...string) error {
	if err := tags.Need(needed...); err != nil {
		return err
	}
	if _, err := tags.Time("t"); err != nil {
		return err
	}
	_, err := address.ParseDomain(tags.Compact("d"))
	return err
}

// verifyMessage verifies the signature of the newest set, which alone must hold (RFC 8617 section 5.2 step 4).
func verifyMessage(ctx context.Context, v *dkim.Verifier, m *dkim.Message, field string) error {
	tags, err := dkim.ParseTags(dkim.FieldValue(field))
	if err != nil {
		return err
	}
	if err := checkTags(tags, "i", "a", "b", "bh", "d", "s"); err != nil {
		return err
	}
	if _, found := tags["h"]; !found {
		return errors.New("tag h is missing")
	}
	if slices.ContainsFunc(tags.List("h"), func(s string) bool { return strings.EqualFold(s, SealField) }) {
		return errors.New("ARC-Seal is signed")
	}
	if _, found := tags["c"]; !found { // what the suite of the protocol's authors expects; DKIM would say simple
		tags["c"] = "relaxed/relaxed"
	}
	return v.VerifyField(ctx, m, field, tags)
}

// sealSum hashes the sets in order, the last seal without its signature (RFC 8617 section 5.1.1).
func sealSum(sets []Set) []byte {
	h := sha256.New()
	for i, s := range sets {
		h.Write([]byte(dkim.RelaxedField(s.results)))
		h.Write([]byte(dkim.RelaxedField(s.message)))
		if i < len(sets)-1 {
			h.Write([]byte(dkim.RelaxedField(s.seal)))
			continue
		}
		h.Write([]byte(strings.TrimSuffix(dkim.RelaxedField(dkim.WithoutSignature(s.seal)), "\r\n")))
	}
	return h.Sum(nil)
}
