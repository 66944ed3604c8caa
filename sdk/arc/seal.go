package arc

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk/dkim"
)

// Sealed is a set to be put on a message: Results first, Message over it, Seal on top. Values without the fields' names.
type Sealed struct{ Results, Message, Seal string }

// Reasons not to seal.
var (
	ErrNoResults = errors.New("no Authentication-Results of this server")
	ErrFailed    = errors.New("the chain has failed already") // RFC 8617 section 5.1: nothing is added to it
	ErrUnknown   = errors.New("the chain could not be validated, since DNS did not answer")
)

// Seal a message with the next set of its chain (RFC 8617 section 5.1). The results are those of Authentication-Results
// under the name server, the state of the chain is arc= among them. Expires of the signer is not used.
func Seal(m *dkim.Message, s *dkim.Signer, server string, now time.Time) (Sealed, error) {
	results := resultsOf(m, server)
	if results == "" {
		return Sealed{}, ErrNoResults
	}
	sets, err := collect(m)
	n := len(sets) + 1
	switch {
	case n > maxSets:
		return Sealed{}, fmt.Errorf("a chain of %d sets already", maxSets)
	case err != nil || n > 1 && hasFailed(sets[n-2].seal):
		return Sealed{}, ErrFailed
	}
	cv := stateOf(results, n)
	if cv == string(TempError) { // a seal can only say pass or fail (RFC 8617 section 4.1.3), and neither is known
		return Sealed{}, ErrUnknown
	}
	algorithm, err := dkim.AlgorithmOf(s.Key)
	if err != nil {
		return Sealed{}, err
	}
	body, err := m.RelaxedBodyHash()
	if err != nil {
		return Sealed{}, err
	}
	instance, at := strconv.Itoa(n), strconv.FormatInt(now.Unix(), 10)
	out := Sealed{Results: "i=" + instance + "; " + server + ";\r\n\t" + results}
	out.Message, err = s.SignField(m, MessageField, []dkim.Tag{
		{Name: "a", Value: algorithm}, {Name: "b"}, {Name: "bh", Value: body}, {Name: "c", Value: "relaxed/relaxed"},
		{Name: "d", Value: s.Domain}, {Name: "h", Value: strings.Join(s.Headers, ":")}, {Name: "i", Value: instance},
		{Name: "s", Value: s.Selector}, {Name: "t", Value: at},
	})
	if err != nil {
		return Sealed{}, err
	}
	value := dkim.FormatTags(SealField, []dkim.Tag{
		{Name: "a", Value: algorithm}, {Name: "b"}, {Name: "cv", Value: cv}, {Name: "d", Value: s.Domain},
		{Name: "i", Value: instance}, {Name: "s", Value: s.Selector}, {Name: "t", Value: at},
	})
	own := Set{results: ResultsField + ":" + out.Results, message: MessageField + ":" + out.Message, seal: SealField + ":" + value}
	if cv == string(Fail) {
		sets = nil // RFC 8617 section 5.1.2: a failed chain is not covered
	}
	signature, err := dkim.SignSum(s.Key, sealSum(append(sets, own)))
	out.Seal = dkim.InsertSignature(value, signature)
	return out, err
}

// hasFailed reports whether the sealer found a broken chain.
func hasFailed(seal string) bool {
	tags, err := dkim.ParseTags(dkim.FieldValue(seal))
	return err != nil || tags.Compact("cv") == string(Fail)
}

// resultsOf this server, those of several fields joined.
func resultsOf(m *dkim.Message, server string) string {
	var all []string
	for _, f := range m.Fields("Authentication-Results") {
		id, results, _ := strings.Cut(dkim.FieldValue(f), ";")
		words := strings.Fields(id)
		if len(words) > 0 && strings.EqualFold(words[0], server) && strings.TrimSpace(results) != "" {
			all = append(all, strings.TrimRight(strings.TrimSpace(results), "; \t\r\n"))
		}
	}
	return strings.Join(all, ";\r\n\t")
}

// stateOf the chain as arc= says; without it, or for the first set, what the number of the set says.
func stateOf(results string, n int) string {
	if n == 1 {
		return string(None)
	}
	for part := range strings.SplitSeq(Bare(results), ";") {
		words := strings.Fields(part)
		if len(words) == 0 {
			continue
		}
		switch strings.ToLower(words[0]) {
		case "arc=pass":
			return string(Pass)
		case "arc=temperror":
			return string(TempError)
		}
	}
	return string(Fail)
}

// Bare is an Authentication-Results without comments and quoted strings (RFC 8601 section 2.2), in which strangers
// could write anything.
func Bare(s string) string {
	var b strings.Builder
	depth, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			i++
		case quoted:
			quoted = c != '"'
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case depth > 0:
		case c == '"':
			quoted = true
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
