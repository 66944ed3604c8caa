package agent

import (
	"fmt"
	"time"
)

// breaker keeps events of one kind from an agent that has failed at one after the other: they follow on_failure at
// once, instead of each waiting for its timeout. Now and then one is let through. It may stay open for long but never
// for ever: a probe needs nothing but an event and a time that comes.
type breaker struct {
	failures int // in a row
	open     bool
	since    time.Time // open
	pause    time.Duration
	next     time.Time // open: when an event is let through
	last     *Failure
}

// When a breaker opens, and how long it waits between probes.
const (
	breakAfter = 5 // failures in a row
	firstPause = time.Second
	maxPause   = 30 * time.Second
)

// broken says why f is kept from the agent, nil if it is not. An event that is let through as a probe has the time it
// may take before the next one. Under Agent.mu.
func (a *Agent) broken(f *flight) *Failure {
	b := a.breakers[f.call.Kind]
	if b == nil || !b.open {
		return nil
	}
	now := time.Now()
	if now.Before(b.next) {
		return &Failure{Kind: Broken, Detail: fmt.Sprintf("%d events of this kind failed one after the other, the last: %s: %s; the next is tried in %s",
			b.failures, b.last.Kind, b.last.Detail, rounded(b.next.Sub(now)))}
	}
	b.next = f.latest.Add(b.pause)
	return nil
}

// wear counts the failure of an event that the agent had. Under Agent.mu.
func (a *Agent) wear(f *flight, failure *Failure) {
	if f.unwanted || len(f.attempts) == 0 || a.closed {
		return
	}
	b := a.breakers[f.call.Kind]
	if b == nil {
		b = &breaker{}
		a.breakers[f.call.Kind] = b
	}
	b.failures++
	b.last = failure
	now := time.Now()
	switch {
	case b.open:
		b.pause = min(2*b.pause, maxPause)
	case b.failures >= breakAfter:
		b.open, b.since, b.pause = true, now, firstPause
		go a.o.Logger.Warn("agent keeps failing: its events follow on_failure at once, and one is tried now and then",
			"agent", a.Name(), "event", f.call.Event, "failures", b.failures, "last", failure.Error())
	default:
		return
	}
	b.next = now.Add(jittered(b.pause))
}

// mend closes the breaker of an event that was answered. Under Agent.mu.
func (a *Agent) mend(f *flight) {
	b := a.breakers[f.call.Kind]
	if b == nil {
		return
	}
	delete(a.breakers, f.call.Kind)
	if !b.open {
		return
	}
	go a.o.Logger.Info("agent answers again", "agent", a.Name(), "event", f.call.Event,
		"failures", b.failures, "since", b.since.Format(time.RFC3339))
	if a.o.OnChange != nil { // what waits for the agent need not wait for the next look
		go a.o.OnChange()
	}
}

// probeNow has the next event of each kind tried: there is a new process. Under Agent.mu.
func (a *Agent) probeNow() {
	for _, b := range a.breakers {
		b.next = time.Time{}
	}
}
