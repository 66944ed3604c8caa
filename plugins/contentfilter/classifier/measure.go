package classifier

import (
	"cmp"
	"slices"
)

// Judged is the score that a message got, from any filter, and what it is.
type Judged struct {
	Score float64
	Spam  bool
}

// Quality of a filter on a set of messages.
type Quality struct {
	Spam, Ham int
	Area      float64 // under the ROC curve: how often spam scores higher than wanted mail
	Catch01   float64 // share of spam caught where at most 0.1 % of wanted mail is taken for spam
	Catch05   float64 // likewise with 0.5 %
}

// Measure what scores are worth.
func Measure(all []Judged) Quality {
	q := Quality{}
	for _, j := range all {
		if j.Spam {
			q.Spam++
		} else {
			q.Ham++
		}
	}
	sorted := slices.SortedFunc(slices.Values(all), func(a, b Judged) int { return cmp.Compare(b.Score, a.Score) })
	q.Area = area(sorted, q)
	q.Catch01 = q.catch(sorted, 0.001)
	q.Catch05 = q.catch(sorted, 0.005)
	return q
}

// area counts for each wanted message the spam above it; equal scores count half.
func area(sorted []Judged, q Quality) float64 {
	if q.Spam == 0 || q.Ham == 0 {
		return 0
	}
	above, sum := 0, 0.0
	for i := 0; i < len(sorted); {
		spam, ham := 0, 0
		j := i
		for ; j < len(sorted) && sorted[j].Score == sorted[i].Score; j++ {
			if sorted[j].Spam {
				spam++
			} else {
				ham++
			}
		}
		sum += float64(ham) * (float64(above) + float64(spam)/2)
		above += spam
		i = j
	}
	return sum / float64(q.Spam) / float64(q.Ham)
}

// catch is the share of spam above the lowest threshold that at most this share of wanted mail reaches.
func (q Quality) catch(sorted []Judged, limit float64) float64 {
	if q.Spam == 0 {
		return 0
	}
	allowed := int(limit * float64(q.Ham))
	caught, best, wrong := 0, 0, 0
	for i := 0; i < len(sorted); {
		score := sorted[i].Score
		for ; i < len(sorted) && sorted[i].Score == score; i++ {
			if sorted[i].Spam {
				caught++
			} else {
				wrong++
			}
		}
		if wrong > allowed {
			break
		}
		best = caught
	}
	return float64(best) / float64(q.Spam)
}
