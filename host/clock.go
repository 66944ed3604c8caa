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
	back  bool          // the clock was set back, which nobody has heard of yet
}

// look takes the time and answers with how far it is ahead of what is believed: 0 but for an hour after a leap. The
// sweep looks every minute.
func (c *calendar) look(now time.Time) (ahead time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.elapsed == nil {
		start := time.Now()
		c.elapsed = func() time.Duration { return time.Since(start) }
	}
	mono, wall := c.elapsed(), now.Round(0) // without the monotonic reading
	if c.begun.IsZero() {
		c.begun, c.wall, c.mono = wall, wall, mono
	}
	switch step := wall.Sub(c.wall) - (mono - c.mono); {
	case step > leapAtLeast:
		c.ahead, c.leapt = c.ahead+step, mono
	case step < -leapAtLeast: // set back: perhaps it was the leap that was wrong
		c.ahead, c.back = max(c.ahead+step, 0), true
	}
	if mono-c.leapt >= believedAfter {
		c.ahead = 0
	}
	c.wall, c.mono = wall, mono
	return c.ahead
}

// untried reports whether a message that was due at next has waited since before the host began, and that was not long ago.
func (c *calendar) untried(next time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return next.Before(c.begun) && c.elapsed() < believedAfter
}

// setBack reports, once, that the clock was set back: what is due at a time of the old one would wait for it.
func (c *calendar) setBack() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	back := c.back
	c.back = false
	return back
}
