package agent

import (
	"maps"
	"slices"
	"time"

	"github.com/posternmail/postern/sdk/agentpb"
)

// maxReasons bounds how many reasons of breaches are told apart.
const maxReasons = 64

// counts of an agent since it was launched. Under Agent.mu.
type counts struct {
	answers  uint64
	failures map[FailureKind]uint64
	breaches map[string]uint64
	dead     DeadLetters
	total    time.Duration
	recent   time.Duration    // moving average
	max      [2]time.Duration // of this window and the one before
	window   time.Time
}

// newCounts makes counts of nothing.
func newCounts() counts {
	return counts{failures: map[FailureKind]uint64{}, breaches: map[string]uint64{}}
}

// Weights of the latency.
const (
	recentWeight = 256 // answers that the moving average remembers
	maxWindow    = time.Minute
)

// answered counts one answer.
func (c *counts) answered(took time.Duration, now time.Time) {
	c.answers++
	c.total += took
	if c.answers == 1 {
		c.recent = took
	}
	c.recent += (took - c.recent) / recentWeight
	if now.Sub(c.window) > maxWindow {
		c.window, c.max = now, [2]time.Duration{0, c.max[0]}
	}
	c.max[0] = max(c.max[0], took)
}

// latency of the answers.
func (c *counts) latency() Latency {
	l := Latency{Last: c.recent, Max: max(c.max[0], c.max[1])}
	if c.answers > 0 {
		l.Mean = c.total / time.Duration(c.answers)
	}
	return l
}

// CountBreach counts an answer that the pipeline refused to apply, by a reason from a closed list.
func (a *Agent) CountBreach(reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.counts.breaches[reason]; !known && len(a.counts.breaches) >= maxReasons {
		reason = "other"
	}
	a.counts.breaches[reason]++
}

// Status for listings.
func (a *Agent) Status() Status {
	manifest := a.Manifest()
	a.mu.Lock()
	defer a.mu.Unlock()
	spec := &a.o.Spec
	status := Status{
		Name: spec.Name, Version: manifest.GetVersion(), SDK: manifest.GetSdk(), Protocol: a.protocol(), Priority: spec.Priority,
		Command: spec.Command, Attach: spec.Attach,
		InFlight: a.inFlight, Queued: len(a.queue), Suspects: len(a.suspects),
		Answered: a.counts.answers, Failures: maps.Clone(a.counts.failures), Breaches: maps.Clone(a.counts.breaches),
		DeadLetters: a.counts.dead, Latency: a.counts.latency(), Degraded: a.degraded(),
	}
	for _, s := range a.slots {
		status.Instances = append(status.Instances, s.status())
	}
	status.Leaked = a.leaked(time.Now())
	status.Breakers = a.openBreakers()
	return status
}

// overdue is how long after its time an event counts as forgotten.
const overdue = 10 * time.Second

// leaked counts places that are taken by no event, and events that nobody will end any more. Under mu.
func (a *Agent) leaked(now time.Time) int {
	held, forgotten := 0, 0
	for s := range a.streams {
		held += len(s.flights)
		for _, f := range s.flights {
			if now.Sub(f.latest) > overdue {
				forgotten++
			}
		}
	}
	return max(a.inFlight-held, held-a.inFlight) + forgotten
}

// openBreakers lists the breakers that are open, by kind. Under mu.
func (a *Agent) openBreakers() (list []BreakerStatus) {
	for _, kind := range slices.Sorted(maps.Keys(a.breakers)) {
		if b := a.breakers[kind]; b.open {
			list = append(list, BreakerStatus{Kind: kind, Failures: b.failures, Since: b.since, Next: b.next, Last: b.last.Error()})
		}
	}
	return list
}

// status of an instance. Under Agent.mu.
func (s *slot) status() InstanceStatus {
	status := InstanceStatus{
		Number: s.number, State: s.state, Since: s.since, Restarts: s.restarts, LastExit: s.lastExit, Stderr: s.lastTail,
	}
	if s.state == Waiting || s.state == Failed {
		status.Next = s.next
	}
	if p := s.process; p != nil {
		status.PID, status.Version, status.Limits = p.pid(), p.manifest.GetVersion(), p.limits()
		status.InFlight, status.Stderr = len(p.stream.flights), append(s.lastWords(), p.logs.tail(shownLines)...)
	}
	return status
}

// lastWords are the last lines of the process that ended, and how: who asks why wants them when the next one runs.
// Under Agent.mu.
func (s *slot) lastWords() []string {
	if s.lastExit == "" {
		return nil
	}
	kept := s.lastTail[max(0, len(s.lastTail)-shownLines):]
	return append(slices.Clone(kept), "(that process ended: "+s.lastExit+")")
}

// Manifest of the newest process.
func (a *Agent) Manifest() *agentpb.DescribeResponse { return a.newest.Load().manifest }

// Subscriptions of the effective configuration.
func (a *Agent) Subscriptions() []*agentpb.Subscription {
	return a.newest.Load().config.GetSubscriptions()
}
