package agent

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/posternmail/postern/sdk/agentpb"
)

// Line is where a plan sends the events of one agent block: to the generation of the agent that holds the line at
// the moment. Any instance can answer any event, so a generation that goes hands over, with its line, what it has
// not answered. It is safe for concurrent use.
type Line struct {
	name string
	seat atomic.Pointer[seat]
}

// seat is who holds a line until it changes.
type seat struct {
	agent   *Agent
	line    *Line         // that took over; nil: agent holds it
	ended   bool          // nobody holds it any more, and nobody will
	changed chan struct{} // closed when another seat has taken its place
}

// NewLine makes a line that a holds.
func NewLine(a *Agent) *Line {
	l := &Line{name: a.Name()}
	l.seat.Store(&seat{agent: a, changed: make(chan struct{})})
	return l
}

// Exchange gives the line to another generation, between two events. The one that held it gets no more.
func (l *Line) Exchange(a *Agent) { l.take(&seat{agent: a, changed: make(chan struct{})}) }

// Vacate leaves the line without an agent, until Exchange: events wait, as long as they may take. The manifest and
// the subscriptions stay those of the last one.
func (l *Line) Vacate() {
	l.take(&seat{agent: l.seat.Load().agent, line: l, changed: make(chan struct{})})
}

// Forward gives what still comes to this line to another one, for good.
func (l *Line) Forward(to *Line) { l.take(&seat{line: to, changed: make(chan struct{})}) }

// End lets what still comes to this line pass: the agent is not in the plan any more.
func (l *Line) End() {
	l.take(&seat{agent: l.Agent(), ended: true, changed: make(chan struct{})})
}

func (l *Line) take(s *seat) { close(l.seat.Swap(s).changed) }

// holder follows the line to its agent, which is nil while the line is vacant.
func (l *Line) holder() (*Agent, *seat) {
	for {
		s := l.seat.Load()
		switch s.line {
		case nil:
			return s.agent, s
		case l:
			return nil, s
		}
		l = s.line
	}
}

// Agent is the generation that holds the line; while it is vacant, the one that held it last.
func (l *Line) Agent() *Agent {
	a, s := l.holder()
	if a == nil {
		return s.agent
	}
	return a
}

// Name is the label of the agent block.
func (l *Line) Name() string { return l.name }

// Manifest of the generation that holds the line.
func (l *Line) Manifest() *agentpb.DescribeResponse { return l.Agent().Manifest() }

// Subscriptions of the generation that holds the line.
func (l *Line) Subscriptions() []*agentpb.Subscription { return l.Agent().Subscriptions() }

// Call asks the agent that holds the line. An event that a generation could not answer because it was replaced goes
// to the next one, inside Call.Timeout.
func (l *Line) Call(ctx context.Context, c *Call) (Result, error) {
	started := time.Now()
	var before []Attempt
	for {
		a, s := l.holder()
		if s.ended {
			return passing(before), nil
		}
		if a == nil {
			if failure := l.await(ctx, s, c.Timeout-time.Since(started)); failure != nil {
				return Result{Attempts: before}, failure
			}
			continue
		}
		result, err := a.Call(ctx, c.after(started, len(before)))
		if err == nil || !l.movesOn(ctx, a, c, err) || time.Since(started) >= c.Timeout {
			if len(before) > 0 {
				result.Attempts = append(before, result.Attempts...)
			}
			return result, err
		}
		before = append(before, result.Attempts...)
	}
}

// passing is what an agent that was taken out has to say.
func passing(attempts []Attempt) Result {
	v := &agentpb.Verdict{Kind: agentpb.VerdictKind_VERDICT_KIND_CONTINUE, Reason: "the agent was taken out"}
	return Result{Answer: &agentpb.Answer{Verdicts: []*agentpb.Verdict{v}}, Attempts: attempts}
}

// after is the call as a later generation gets it, with the time that is left.
func (c *Call) after(started time.Time, attempts int) *Call {
	spent := time.Since(started)
	if attempts == 0 && spent < time.Millisecond {
		return c
	}
	again := *c
	again.Before = attempts
	again.Timeout, again.Extend = max(c.Timeout-spent, time.Millisecond), max(c.Extend-spent, 0)
	return &again
}

// movesOn reports whether an event that a did not answer is one for the generation that came after a. A fact is not
// sent a second time; one that was not sent at all is.
func (l *Line) movesOn(ctx context.Context, a *Agent, c *Call, err error) bool {
	if now, s := l.holder(); now == a && !s.ended || ctx.Err() != nil {
		return false
	}
	var failure *Failure
	if !errors.As(err, &failure) {
		return false
	}
	switch failure.Kind {
	case Down, Busy, Broken:
		return true
	case Died, Hung:
		return !c.Fact
	}
	return false
}

// await waits for the next holder of a vacant line.
func (l *Line) await(ctx context.Context, s *seat, left time.Duration) *Failure {
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-s.changed:
		return nil
	case <-timer.C:
		return &Failure{Agent: l.name, Kind: Down, Detail: fmt.Sprintf("it is being replaced, and %s were not enough", rounded(left))}
	case <-ctx.Done():
		return &Failure{Agent: l.name, Kind: Late, Detail: "not waited for any longer: " + context.Cause(ctx).Error()}
	}
}
