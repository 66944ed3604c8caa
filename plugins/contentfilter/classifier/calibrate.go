package classifier

import "math"

// curve makes a probability of a score: 1 / (1 + exp(-(Slope*score + Offset))).
type curve struct{ Slope, Offset float64 }

func (c curve) probability(score float64) float64 { return 1 / (1 + math.Exp(-c.odds(score))) }

// odds of a score, logarithmic.
func (c curve) odds(score float64) float64 { return c.Slope*score + c.Offset }

// score that has a probability.
func (c curve) score(probability float64) float64 {
	return (math.Log(probability/(1-probability)) - c.Offset) / c.Slope
}

// calibrate finds the curve under which the judgements are most likely, as J. Platt does it (Probabilistic Outputs for
// Support Vector Machines, 1999): few examples make it less sure, by his targets. Both kinds weigh the same, so that
// the probability is that of a message of which nothing was known before.
func calibrate(judged []Judged) curve {
	q := Measure(judged)
	spam, ham := float64(q.Spam), float64(q.Ham)
	c := curve{Slope: 1}
	for range 100 {
		var g, h [3]float64 // gradient (slope, offset), and its derivatives (slope slope, slope offset, offset offset)
		for _, j := range judged {
			target, weight := 1/(ham+2), 1/ham
			if j.Spam {
				target, weight = (spam+1)/(spam+2), 1/spam
			}
			p := c.probability(j.Score)
			d, dd := weight*(p-target), weight*p*(1-p)
			g[0] += d * j.Score
			g[1] += d
			h[0] += dd * j.Score * j.Score
			h[1] += dd * j.Score
			h[2] += dd
		}
		if !c.newton(g, h) {
			break
		}
	}
	return c.sound()
}

// newton makes one step; false at the end.
func (c *curve) newton(g, h [3]float64) bool {
	const ridge = 1e-9
	h[0] += ridge
	h[2] += ridge
	determinant := h[0]*h[2] - h[1]*h[1]
	if determinant <= 0 {
		return false
	}
	slope := (h[2]*g[0] - h[1]*g[1]) / determinant
	offset := (h[0]*g[1] - h[1]*g[0]) / determinant
	size := min(1, 4/math.Max(math.Abs(slope), math.Abs(offset))) // not too far at once
	c.Slope -= size * slope
	c.Offset -= size * offset
	return math.Abs(slope)+math.Abs(offset) > 1e-6
}

// leastSlope of a curve: a model that finds nothing in its own mail is hardly ever sure.
const leastSlope = 0.1

// sound curves rise and are finite.
func (c curve) sound() curve {
	if math.IsNaN(c.Slope) || c.Slope < leastSlope || math.IsNaN(c.Offset) || math.IsInf(c.Slope, 0) || math.IsInf(c.Offset, 0) {
		return curve{Slope: leastSlope}
	}
	return c
}

// sclBounds are the probabilities from which a message has SCL 1, 2, ... 9.
var sclBounds = [...]float64{0.05, 0.15, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999}

// SCL is the spam confidence level of a probability, 0 to 9.
func SCL(probability float64) int {
	scl := 0
	for scl < len(sclBounds) && probability >= sclBounds[scl] {
		scl++
	}
	return scl
}
