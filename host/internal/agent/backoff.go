package agent

import (
	"cmp"
	"math/rand/v2"
	"time"

	"github.com/posternmail/postern/host/internal/config"
)

// Backoff says how long to wait before a process that failed is started again. The first start after a failure
// is immediate; each one after it waits a random part of a delay that doubles.
type Backoff struct {
	First time.Duration // delay before the second start in a row; 250 ms
	Max   time.Duration // longest delay; 60 s
	Reset time.Duration // a process that lived so long has paid all debts; 10 min

	// Attempts is how many processes may fail in a row before the instance counts as failed; 10.
	Attempts int
	// Retry is how long a failed instance waits for each further try; 5 min. Negative: it is not tried again.
	Retry time.Duration
}

// Defaults of Backoff.
const (
	defaultFirst = 250 * time.Millisecond
	defaultMax   = 60 * time.Second
	defaultReset = 10 * time.Minute

	defaultAttempts = 10
	defaultRetry    = 5 * time.Minute
)

// healthyShare: a process that lived for so many times its last delay takes one step back, so that one killed
// now and then is not treated as one that cannot live. One that somebody else killed did not die of itself.
const (
	healthyShare = 4
	killedShare  = 1
)

// bounded takes over what the configuration says, where b says nothing.
func (b Backoff) bounded(r config.Restart) Backoff {
	if r.Attempts == 0 {
		return b
	}
	b.Attempts = cmp.Or(b.Attempts, r.Attempts)
	b.Retry = cmp.Or(b.Retry, r.RetryFailed, -1)
	return b
}

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
	if b.Attempts == 0 {
		b.Attempts = defaultAttempts
	}
	if b.Retry == 0 {
		b.Retry = defaultRetry
	}
	return b
}

// history of the failures of one instance. It outlives its processes.
type history struct {
	Backoff
	failures int // in a row
}

// pause before the next start.
type pause struct {
	delay   time.Duration
	failed  bool // the attempts are used up
	forever bool // there is no next start but by order
}

// next answers with the pause before the start that follows a process which lived for uptime (0: it did not become
// ready). killed tells that a SIGKILL ended it which was not the host's.
func (h *history) next(uptime time.Duration, killed bool) pause {
	share := time.Duration(healthyShare)
	if killed {
		share = killedShare
	}
	switch healthy := uptime >= share*max(h.limit(), h.First); {
	case uptime >= h.Reset:
		h.failures = 1
	case healthy:
		h.failures = max(min(h.failures, h.steps())-1, 1)
	default:
		h.failures = min(h.failures, h.Attempts) + 1
	}
	if h.failures > h.Attempts {
		return pause{delay: jittered(max(h.Retry, 0)), failed: true, forever: h.Retry < 0}
	}
	return pause{delay: jittered(h.limit())}
}

// forgive forgets all failures: an operator has ordered a new start.
func (h *history) forgive() { h.failures = 0 }

// jittered is a random part of a delay. Full jitter keeps instances that fell together from rising together; half of
// it is kept as a floor, so that a crash loop cannot draw zeros.
func jittered(limit time.Duration) time.Duration {
	if limit == 0 {
		return 0
	}
	return limit/2 + rand.N(limit/2+1)
}

// steps is how many failures in a row have reached the longest delay.
func (h *history) steps() int {
	n := 2
	for d := h.First; d < h.Max; d *= 2 {
		n++
	}
	return n
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
