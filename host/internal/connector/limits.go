package connector

import (
	"net/netip"
	"sync"
	"time"

	"github.com/posternmail/postern/host/internal/config"
)

// limiter counts connections and messages by source. A source is an IPv4 address or an IPv6 network of 64 bits, which
// is what one customer has.
type limiter struct {
	limits config.Limits

	mu      sync.Mutex
	total   int
	sources map[netip.Prefix]*source
	swept   time.Time
}

// source is what is known of one: it is forgotten when it has no connection and its minute is over.
type source struct {
	connections int
	minute      time.Time // beginning of the minute that messages are counted in
	messages    int
}

// slot is one counted connection.
type slot struct{ key netip.Prefix }

func newLimiter(l config.Limits) *limiter {
	return &limiter{limits: l, sources: map[netip.Prefix]*source{}}
}

func keyOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// free reports whether the limits by source do not apply: loopback, unless they were set.
func (l *limiter) free(a netip.Addr) bool { return a.Unmap().IsLoopback() && !l.limits.PerSourceSet }

// take counts a connection; nil when there are too many.
func (l *limiter) take(a netip.Addr) *slot {
	key := keyOf(a)
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.source(key)
	switch {
	case l.limits.MaxConnections > 0 && l.total >= l.limits.MaxConnections:
		return nil
	case l.limits.MaxPerSource > 0 && s.connections >= l.limits.MaxPerSource && !l.free(a):
		return nil
	}
	l.total++
	s.connections++
	return &slot{key}
}

// leave gives a slot back.
func (l *limiter) leave(s *slot) {
	if s == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	l.source(s.key).connections--
	l.sweep()
}

// admit counts a message and reports whether the source may send it.
func (l *limiter) admit(a netip.Addr) bool {
	if l.limits.MessageRatePerSource <= 0 || l.free(a) {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.source(keyOf(a))
	now := time.Now()
	if now.Sub(s.minute) >= time.Minute {
		s.minute, s.messages = now, 0
	}
	s.messages++
	return s.messages <= l.limits.MessageRatePerSource
}

func (l *limiter) source(key netip.Prefix) *source {
	s := l.sources[key]
	if s == nil {
		s = &source{}
		l.sources[key] = s
	}
	return s
}

// sweep forgets sources, once a minute.
func (l *limiter) sweep() {
	now := time.Now()
	if now.Sub(l.swept) < time.Minute {
		return
	}
	l.swept = now
	for key, s := range l.sources {
		if s.connections <= 0 && now.Sub(s.minute) >= time.Minute {
			delete(l.sources, key)
		}
	}
}
