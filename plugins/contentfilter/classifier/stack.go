package classifier

import "math"

// Log odds of the words beyond certain count only in part: mail of a kind that was never learnt may have words of spam
// alone, or none of them, and then the signs must be able to decide.
const (
	certain   = 3.0 // 95 %
	certainty = 0.25
)

// doubted log odds.
func doubted(odds float64) float64 {
	if size := math.Abs(odds); size > certain {
		return math.Copysign(certain+certainty*(size-certain), odds)
	}
	return odds
}

// undoubted is the reverse of doubted.
func undoubted(odds float64) float64 {
	if size := math.Abs(odds); size > certain {
		return math.Copysign(certain+(size-certain)/certainty, odds)
	}
	return odds
}

// signWeights move the log odds.
type signWeights struct {
	each [signCount]float64
	bias float64
}

// odds of the signs of a message.
func (w *signWeights) odds(found []signID) float64 {
	sum := w.bias
	for _, id := range found {
		sum += w.each[id]
	}
	return sum
}

// belief in the weights that signs have before anything was learnt: the precision of a normal distribution around them.
// A weight moves far only where hundreds of messages ask for it.
const belief = 400

// Rounds at most over all signs, and how small a change ends them.
const (
	signRounds  = 50
	signSettled = 1e-4
)

// fitSigns finds the weights under which the examples are most likely (logistic regression by coordinate descent), near
// those that are believed in, none beyond zero. Both kinds of mail weigh the same.
func fitSigns(examples []Example) signWeights {
	f := newSignFit(examples)
	for range signRounds {
		step := f.newton(f.all, 0, 0)
		f.bias += f.move(f.all, step)
		change := math.Abs(step)
		for id := range f.each {
			change = max(change, f.learn(signID(id)))
		}
		if change < signSettled {
			break
		}
	}
	return f.signWeights
}

// signFit is a fit under way.
type signFit struct {
	signWeights
	examples []Example
	ham      float64 // what a wanted message weighs
	spam     float64
	odds     []float64 // of each example, by the weights so far
	all      []int     // indexes of the examples
	with     [signCount][]int
}

func newSignFit(examples []Example) *signFit {
	f := &signFit{examples: examples, odds: make([]float64, len(examples))}
	for id := range f.each {
		f.each[id] = signs[id].weight
	}
	spam := 0
	for i, e := range examples {
		if e.Spam {
			spam++
		}
		f.all = append(f.all, i)
		f.odds[i] = f.signWeights.odds(e.Signs)
		for _, id := range e.Signs {
			f.with[id] = append(f.with[id], i)
		}
	}
	half := float64(len(examples)) / 2
	f.ham, f.spam = half/float64(max(1, len(examples)-spam)), half/float64(max(1, spam))
	return f
}

// learn the weight of one sign, and report how far it moved.
func (f *signFit) learn(id signID) float64 {
	before, believed := f.each[id], signs[id].weight
	step := f.newton(f.with[id], before-believed, belief)
	if (before+step)*believed < 0 {
		step = -before
	}
	f.each[id] += f.move(f.with[id], step)
	return math.Abs(step)
}

// newton is the step, of 1 at most, that makes these examples likelier. The weight that they share is off from what is
// believed by so much.
func (f *signFit) newton(which []int, off, belief float64) float64 {
	const ridge = 1e-6
	slope, bend := belief*off, belief+ridge
	for _, i := range which {
		p := 1 / (1 + math.Exp(-f.odds[i]))
		if f.examples[i].Spam {
			slope += f.spam * (p - 1)
			bend += f.spam * p * (1 - p)
		} else {
			slope += f.ham * p
			bend += f.ham * p * (1 - p)
		}
	}
	return min(max(-slope/bend, -1), 1)
}

// move the log odds of examples.
func (f *signFit) move(which []int, step float64) float64 {
	for _, i := range which {
		f.odds[i] += step
	}
	return step
}
