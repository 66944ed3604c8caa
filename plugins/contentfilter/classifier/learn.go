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
	learnt.weights = slices.Clone(m.weights)
	for range 3 { // what one moves another may move back
		for _, e := range examples {
			learnt.correct(e)
		}
	}
	return &learnt
}

// correct takes the smallest step of the words after which the example has the score it should have at least, or at most.
// The biases stay, and the signs: they are of all mail.
func (m *Model) correct(e Example) {
	target, score := m.curve.score(wantedBelow), m.Score(e.Features)
	if e.Spam {
		target = m.curve.score(spamAbove)
	}
	v := newVector(e, m.bits)
	if (target-score)*v.y <= 0 || v.square <= 1 {
		return
	}
	odds := undoubted(target - m.signs.odds(e.Signs))
	s := machine{weights: m.weights}
	s.step(v, (odds-m.wordOdds(e.Features))/m.words.Slope/(v.square-1))
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
	b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Signs)))
	for _, id := range e.Signs { // by name: numbers change from version to version
		b = binary.LittleEndian.AppendUint64(b, fnv(fnvBasis, signs[id].name))
	}
	return b
}

// exampleVersion is the first octet of a marshalled example.
const exampleVersion = 2

var errExample = errors.New("no example, or one that is cut off")

// UnmarshalExample reads what Marshal wrote.
func UnmarshalExample(b []byte) (Example, error) {
	if len(b) < 2 || b[0] != exampleVersion || b[1] > 1 {
		return Example{}, errExample
	}
	e := Example{Features: &Features{}, Spam: b[1] == 1}
	rest := b[2:]
	var found []uint64
	for i, to := range []*[]uint64{&e.Text, &e.Shape, &found} {
		if len(rest) < 4 {
			return Example{}, errExample
		}
		n := int(binary.LittleEndian.Uint32(rest))
		rest = rest[4:]
		if limit := []int{maxTokens, maxShape, int(signCount)}[i]; n > limit || len(rest) < 8*n {
			return Example{}, fmt.Errorf("%d tokens: %w", n, errExample)
		}
		for j := range n {
			*to = append(*to, binary.LittleEndian.Uint64(rest[8*j:]))
		}
		rest = rest[8*n:]
	}
	for id := range signs {
		if slices.Contains(found, fnv(fnvBasis, signs[id].name)) {
			e.Signs = append(e.Signs, signID(id))
		}
	}
	return e, nil
}
