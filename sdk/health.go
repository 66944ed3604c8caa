package sdk

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/sdk/agentpb"
)

// Health tells the operator what an agent has to work without: a DNS list, an engine, a feed out of reach. It
// changes no verdict. `postern status` shows each thing that is missing with the time since when; the log has
// one line when it goes and one when it is back, however often it is asked for meanwhile. What goes again within a
// minute of being back is unsteady: it counts as missing until it has not failed for a minute. It is safe for
// concurrent use, and a nil *Health does nothing.
type Health struct {
	logger  hclog.Logger
	now     func() time.Time
	changed func()
	missing atomic.Int32 // len(parts), to be read without the lock

	mu    sync.Mutex
	parts map[string]degraded
	back  map[string]time.Time // what has come back in the last minute, and when
}

// degraded is one thing that is missing.
type degraded struct {
	detail   string
	since    time.Time
	failed   time.Time // last
	unsteady bool
}

// Limits of what is told to the host.
const (
	maxDegraded       = 64          // things
	maxDegradedDetail = 1024        // octets of each detail
	settled           = time.Minute // without a failure
)

func newHealth(logger hclog.Logger) *Health {
	return &Health{logger: logger, now: time.Now, changed: func() {}, parts: map[string]degraded{}, back: map[string]time.Time{}}
}

// Report says how the last use of something went that the agent depends on. what names it for people ("dnsbl
// zen.example"), err is why it could not be used, nil that it could. Call it after each use: as long as nothing
// changes it costs next to nothing. Things beyond the 64th are not told.
func (h *Health) Report(what string, err error) {
	if h == nil || err == nil && h.missing.Load() == 0 {
		return
	}
	if tell := h.note(what, err); tell != nil {
		tell()
	}
}

// note answers with what tells the host, nil when nothing has changed.
func (h *Health) note(what string, err error) (tell func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	old, known := h.parts[what]
	switch {
	case err != nil && known:
		old.failed = now
		h.parts[what] = old
		return nil
	case err == nil && !known, err != nil && len(h.parts) == maxDegraded, old.unsteady && now.Sub(old.failed) < settled:
		return nil
	case err == nil:
		h.recovered(what, now)
	default:
		h.gone(what, err, now)
	}
	h.missing.Store(int32(len(h.parts)))
	return h.changed
}

// recovered notes that something is back.
func (h *Health) recovered(what string, now time.Time) {
	h.logger.Info("works again", "what", what, "after", now.Sub(h.parts[what].since).Round(time.Second).String())
	delete(h.parts, what)
	maps.DeleteFunc(h.back, func(_ string, at time.Time) bool { return now.Sub(at) >= settled })
	h.back[what] = now
}

// gone notes that something is missing from now on.
func (h *Health) gone(what string, err error, now time.Time) {
	at, wasBack := h.back[what]
	detail := err.Error()
	h.parts[what] = degraded{
		detail: detail[:min(len(detail), maxDegradedDetail)], since: now, failed: now,
		unsteady: wasBack && now.Sub(at) < settled,
	}
	h.logger.Warn("degraded", "what", what, "error", err)
}

// message is the whole of it for the host.
func (h *Health) message() *agentpb.Health {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := &agentpb.Health{}
	for _, what := range slices.SortedFunc(maps.Keys(h.parts), cmp.Compare[string]) {
		p := h.parts[what]
		m.Degraded = append(m.Degraded, &agentpb.Degradation{What: what, Detail: p.detail, SinceUnixNanos: p.since.UnixNano()})
	}
	return m
}

// follow calls changed whenever the host has to be told.
func (h *Health) follow(changed func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.changed = changed
}
