package classifier

import (
	"errors"
	"math"
	"math/rand/v2"
	"time"
)

// Example is a message that somebody has sorted.
type Example struct {
	*Features
	Spam bool
}

// Settings of a training. The zero value is what measured best.
type Settings struct {
	Recipe Recipe // that the features of the examples were made by; Standard if 0
	Bits   int    // of an index: 2^Bits weights, 8 to 22; 20 if 0
}

// cost of an example that is on the wrong side, against the size of the weights.
const cost = 3

// AtLeast so many messages of each kind are needed for a training.
const AtLeast = 10

// ErrTooFew is the error of Train for too little mail.
var ErrTooFew = errors.New("training needs at least 10 messages of spam and 10 of wanted mail")

func (s Settings) withDefaults() Settings {
	if s.Recipe == 0 {
		s.Recipe = Standard
	}
	if s.Bits == 0 {
		s.Bits = standardBits
	}
	s.Bits = min(max(s.Bits, minBits), maxBits)
	return s
}

// Train a model: a machine for words and shape, weights for signs. Its probability is calibrated by folds: of mail that a model of the rest judges. Examples that are
// much alike should stand beside each other, as they do in order of time, so that they are of one fold.
func Train(examples []Example, settings Settings, now time.Time) (*Model, error) {
	settings = settings.withDefaults()
	m := &Model{Recipe: settings.Recipe, Trained: now.UTC().Truncate(time.Second), bits: settings.Bits}
	for _, e := range examples {
		if e.Spam {
			m.Spam++
		} else {
			m.Ham++
		}
	}
	if m.Spam < AtLeast || m.Ham < AtLeast {
		return nil, ErrTooFew
	}
	m.words, m.curve = crossCalibrate(examples, settings)
	s := fit(examples, settings.Bits)
	m.weights, m.bias, m.signs = s.weights, s.bias, fitSigns(examples)
	return m, nil
}

// folds of a calibration.
const folds = 5

// crossCalibrate finds the curves of the words and of words and signs together, by machines that have not seen what they
// judge.
func crossCalibrate(examples []Example, settings Settings) (words, both curve) {
	fold := foldsOf(examples)
	judged, bySigns := make([]Judged, len(examples)), make([]float64, len(examples))
	for f := range folds {
		var train []Example
		for i, e := range examples {
			if fold[i] != f {
				train = append(train, e)
			}
		}
		s, weights := fit(train, settings.Bits), fitSigns(train)
		for i, e := range examples {
			if fold[i] == f {
				judged[i] = Judged{Score: s.score(newVector(e, settings.Bits)), Spam: e.Spam}
				bySigns[i] = weights.odds(e.Signs)
			}
		}
	}
	words = calibrate(judged)
	for i := range judged {
		judged[i].Score = doubted(words.odds(judged[i].Score)) + bySigns[i]
	}
	return words, calibrate(judged)
}

// foldsOf cuts both kinds into folds of neighbours.
func foldsOf(examples []Example) []int {
	count := map[bool]int{}
	for _, e := range examples {
		count[e.Spam]++
	}
	seen := map[bool]int{}
	out := make([]int, len(examples))
	for i, e := range examples {
		out[i] = seen[e.Spam] * folds / count[e.Spam]
		seen[e.Spam]++
	}
	return out
}

// vector is an example as the solver needs it.
type vector struct {
	text, shape           []uint32
	textScale, shapeScale float32
	y                     float64 // 1 for spam, -1
	square                float64 // of its length
	alpha                 float64 // how much it weighs in the machine
	cost                  float64
}

func newVector(e Example, bits int) *vector {
	v := &vector{text: indexes(e.Text, bits), shape: indexes(e.Shape, bits), y: -1}
	text, shape := e.scales()
	v.textScale, v.shapeScale = float32(text), float32(shape)
	v.square = 1 + text*text*float64(len(e.Text)) + shape*shape*float64(len(e.Shape)) // 1 of the bias
	if e.Spam {
		v.y = 1
	}
	return v
}

func indexes(hashes []uint64, bits int) []uint32 {
	out := make([]uint32, len(hashes))
	for i, h := range hashes {
		out[i] = index(h, bits)
	}
	return out
}

// machine is a linear one.
type machine struct {
	weights []float32
	bias    float64
}

func (s *machine) score(v *vector) float64 {
	text, shape := float32(0), float32(0)
	for _, i := range v.text {
		text += s.weights[i]
	}
	for _, i := range v.shape {
		shape += s.weights[i]
	}
	return s.bias + float64(text*v.textScale) + float64(shape*v.shapeScale)
}

// step towards an example.
func (s *machine) step(v *vector, size float64) {
	s.bias += size
	d := float32(size) * v.textScale
	for _, i := range v.text {
		s.weights[i] += d
	}
	d = float32(size) * v.shapeScale
	for _, i := range v.shape {
		s.weights[i] += d
	}
}

// rounds at most over all examples, and how small a change ends them.
const (
	rounds  = 60
	settled = 0.02
)

// solve finds the support vector machine of squared hinge loss by coordinate descent in its dual: C.-J. Hsieh and
// others, A Dual Coordinate Descent Method for Large-scale Linear SVM (2008), algorithm 1.
func (s *machine) solve(all []*vector) {
	random := rand.New(rand.NewPCG(1, 2)) // the same model from the same mail
	for range rounds {
		worst := 0.0
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, v := range all {
			diagonal := 1 / (2 * v.cost)
			gradient := v.y*s.score(v) - 1 + diagonal*v.alpha
			if v.alpha == 0 && gradient > 0 {
				continue
			}
			worst = max(worst, math.Abs(gradient))
			old := v.alpha
			v.alpha = max(0, old-gradient/(v.square+diagonal))
			s.step(v, v.y*(v.alpha-old))
		}
		if worst < settled {
			return
		}
	}
}

// fit a machine to examples. Both kinds weigh the same, however many there are of each.
func fit(examples []Example, bits int) *machine {
	all := make([]*vector, len(examples))
	spam := 0
	for i, e := range examples {
		all[i] = newVector(e, bits)
		if e.Spam {
			spam++
		}
	}
	share := float64(len(all)-spam) / float64(len(all))
	for _, v := range all {
		v.cost = cost * 2 * (1 - share)
		if v.y > 0 {
			v.cost = cost * 2 * share
		}
	}
	s := &machine{weights: make([]float32, 1<<bits)}
	s.solve(all)
	return s
}
