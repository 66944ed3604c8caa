package classifier

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"
)

// Model tells spam from wanted mail. It is not changed once it is made, but by Learn, which answers with another one.
type Model struct {
	Recipe  Recipe
	Trained time.Time
	Spam    int // messages it was trained with
	Ham     int

	bits    int // of an index into weights
	weights []float32
	bias    float64
	words   curve // of the sum over the weights
	signs   signWeights
	curve   curve // of words and signs together
}

// Bounds of the number of weights, as bits of their index. A weight takes two octets in a file.
const (
	minBits      = 8
	standardBits = 20
	maxBits      = 22
)

// shapeShare is how much the shape of a message weighs beside its text. More of it helps with mail like that of the
// training, and costs wanted mail of another kind: who has learnt no newsletters takes their HTML for spam.
const shapeShare = 0.05

// index of a feature.
func index(hash uint64, bits int) uint32 { return uint32(hash >> (64 - bits)) }

// scales of the features of a message: its length must not matter.
func (f *Features) scales() (text, shape float64) {
	if n := len(f.Text); n > 0 {
		text = 1 / math.Sqrt(float64(n))
	}
	if n := len(f.Shape); n > 0 {
		shape = shapeShare / math.Sqrt(float64(n))
	}
	return text, shape
}

// Score of a message: above 0 for spam, the farther the surer. It has no unit.
func (m *Model) Score(f *Features) float64 {
	return doubted(m.wordOdds(f)) + m.signs.odds(f.Signs)
}

// wordOdds are the log odds of words and shape.
func (m *Model) wordOdds(f *Features) float64 {
	text, shape := f.scales()
	return m.words.odds(m.bias + text*m.sum(f.Text) + shape*m.sum(f.Shape))
}

func (m *Model) sum(hashes []uint64) float64 {
	sum := float32(0)
	for _, h := range hashes {
		sum += m.weights[index(h, m.bits)]
	}
	return float64(sum)
}

// Probability that a message is spam, 0 to 1, as often as it was so of the mail that the model was calibrated with.
func (m *Model) Probability(f *Features) float64 { return m.curve.probability(m.Score(f)) }

// Reason is a token or a sign, and what it adds to the score.
type Reason struct {
	Token  string
	Weight float64
}

// Explain names the n tokens and signs that weigh most, of features with names.
func (m *Model) Explain(f *Features, n int) []Reason {
	text, shape := f.scales()
	if odds := m.wordOdds(f); odds != 0 {
		scale := m.words.Slope * doubted(odds) / odds
		text, shape = text*scale, shape*scale
	}
	var all []Reason
	for _, h := range f.Text {
		all = append(all, Reason{f.names[h], text * float64(m.weights[index(h, m.bits)])})
	}
	for _, h := range f.Shape {
		all = append(all, Reason{f.names[h], shape * float64(m.weights[index(h, m.bits)])})
	}
	for _, id := range f.Signs {
		all = append(all, Reason{kindSign + signs[id].name, m.signs.each[id]})
	}
	slices.SortFunc(all, func(a, b Reason) int {
		return cmp.Or(cmp.Compare(math.Abs(b.Weight), math.Abs(a.Weight)), strings.Compare(a.Token, b.Token))
	})
	return all[:min(n, len(all))]
}
