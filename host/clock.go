package host

import (
	"sync"
	"time"
)

const (
	// leapAtLeast tells a leap of the clock from the small steps by which it is set.
	leapAtLeast = 5 * time.Minute
	// believedAfter is how long a leap must have lasted before it counts for the age of messages, and how long after the
	// start an old message is tried before it expires.
	believedAfter = time.Hour
)

// calendar judges the age of messages. It keeps mail from expiring for no other reason than that the clock was set forward, that the machine slept or
// that the host was not running: each message is tried before it is given up.
type calendar struct {
	elapsed func() time.Duration // monotonic; nil: since the first look

	mu    sync.Mutex
	begun time.Time     // the first look
	wall  time.Time     // the last look
	mono  time.Duration // of the last look
	ahead time.Duration // by which the clock is ahead of what is believed
	leapt time.Duration // mono of the last leap
}

// look takes the time and answers with how far it is ahead of what is believed: 0 but for an hour after a leap. The
// sweep looks every minute.
func (p *calendar) look(now time.Time) (ahead time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.elapsed == nil {
		start := time.Now()
		p.elapsed = func() time.Duration { return time.Since(start) }
	}
	mono, wall := p.elapsed(), now.Round(0) // without the monotonic reading
	if p.begun.IsZero() {
		p.begun, p.wall, p.mono = wall, wall, mono
	}
	switch step := wall.Sub(p.wall) - (mono - p.mono); {
	case step > leapAtLeast:
		p.ahead, p.leapt = p.ahead+step, mono
	case step < -leapAtLeast: // set back: perhaps it was the leap that was wrong
		p.ahead = max(p.ahead+step, 0)
	}
	if mono-p.leapt >= believedAfter {
		p.ahead = 0
	}
	p.wall, p.mono = wall, mono
	return p.ahead
}

// untried reports whether a message that was due at next has waited since before the host began, and that was not long ago.
func (p *calendar) untried(next time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return next.Before(p.begun) && p.elapsed() < believedAfter
}
