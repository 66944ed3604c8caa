package classifier

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Probabilities that Learn moves a message to: an SCL of at most 3 if it is wanted, at least 6 if it is spam.
const (
	wantedBelow = 0.2
	spamAbove   = 0.95
)

// Learn answers with a model that rates these examples as somebody did, and other mail as before but for what is like
// them (a passive-aggressive step: K. Crammer and others, 2006). What is rated right already changes nothing.
func (m *Model) Learn(examples []Example) *Model {
	learnt := *m
	s := &machine{weights: slices.Clone(m.weights), bias: m.bias}
	for range 3 { // what one moves another may move back
		for _, e := range examples {
			s.correct(newVector(e, m.bits), m.curve)
		}
	}
	learnt.weights, learnt.bias = s.weights, s.bias
	return &learnt
}

// correct takes the smallest step after which the example has the score it should have at least, or at most. The bias
// stays: it is of all mail.
func (s *machine) correct(v *vector, c curve) {
	gap := c.score(wantedBelow) - s.score(v)
	if v.y > 0 {
		gap = c.score(spamAbove) - s.score(v)
	}
	if gap*v.y <= 0 || v.square <= 1 {
		return
	}
	bias := s.bias
	s.step(v, gap/(v.square-1))
	s.bias = bias
}

// Marshal an example, for a file of what was learnt. Its tokens cannot be read back to words.
func (e Example) Marshal() []byte {
	b := []byte{exampleVersion, 0}
	if e.Spam {
		b[1] = 1
	}
	for _, hashes := range [][]uint64{e.Text, e.Shape} {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(hashes)))
		for _, h := range hashes {
			b = binary.LittleEndian.AppendUint64(b, h)
		}
	}
	return b
}

// exampleVersion is the first octet of a marshalled example.
const exampleVersion = 1

var errExample = errors.New("no example, or one that is cut off")

// UnmarshalExample reads what Marshal wrote.
func UnmarshalExample(b []byte) (Example, error) {
	if len(b) < 2 || b[0] != exampleVersion || b[1] > 1 {
		return Example{}, errExample
	}
	e := Example{Features: &Features{}, Spam: b[1] == 1}
	rest := b[2:]
	for i, to := range []*[]uint64{&e.Text, &e.Shape} {
		if len(rest) < 4 {
			return Example{}, errExample
		}
		n := int(binary.LittleEndian.Uint32(rest))
		rest = rest[4:]
		if limit := []int{maxTokens, maxShape}[i]; n > limit || len(rest) < 8*n {
			return Example{}, fmt.Errorf("%d tokens: %w", n, errExample)
		}
		for j := range n {
			*to = append(*to, binary.LittleEndian.Uint64(rest[8*j:]))
		}
		rest = rest[8*n:]
	}
	return e, nil
}
