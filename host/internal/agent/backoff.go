package agent

import (
	"math/rand/v2"
	"time"
)

// Backoff says how long to wait before a process that failed is started again. The first start after a failure
// is immediate; each one after it waits a random part of a delay that doubles.
type Backoff struct {
	First time.Duration // delay before the second start in a row; 250 ms
	Max   time.Duration // longest delay; 60 s
	Reset time.Duration // a process that lived so long has paid all debts; 10 min
}

// Defaults of Backoff.
const (
	defaultFirst = 250 * time.Millisecond
	defaultMax   = 60 * time.Second
	defaultReset = 10 * time.Minute
)

// healthyShare: a process that lived for so many times its last delay takes one step back, so that one killed
// now and then is not treated as one that cannot live.
const healthyShare = 4

// withDefaults fills in what is zero.
func (b Backoff) withDefaults() Backoff {
	if b.First == 0 {
		b.First = defaultFirst
	}
	if b.Max == 0 {
		b.Max = defaultMax
	}
	if b.Reset == 0 {
		b.Reset = defaultReset
	}
	return b
}

// history of the failures of one instance. It outlives its processes.
type history struct {
	Backoff
	failures int // in a row
}

// next answers with the delay before the start that follows a process which lived for uptime (0: it did not
// become ready).
func (h *history) next(uptime time.Duration) time.Duration {
	switch healthy := uptime >= healthyShare*max(h.limit(), h.First); {
	case uptime >= h.Reset:
		h.failures = 1
	case healthy:
		h.failures = max(h.failures-1, 1)
	case h.limit() < h.Max:
		h.failures++
	}
	limit := h.limit()
	if limit == 0 {
		return 0
	}
	// Full jitter keeps instances that fell together from rising together; half of it is kept as a floor, so
	// that a crash loop cannot draw zeros.
	return limit/2 + rand.N(limit/2+1)
}

// limit is the longest delay for the failures so far.
func (h *history) limit() time.Duration {
	if h.failures < 2 {
		return 0
	}
	d := h.First
	for i := 2; i < h.failures && d < h.Max; i++ {
		d *= 2
	}
	return min(d, h.Max)
}
