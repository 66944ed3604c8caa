package agent

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternmail/postern/sdk/agentpb"
)

// flight is a Call on its way to its answer, over one or more attempts.
type flight struct {
	call     *Call
	body     inline
	size     int // bound of its bytes on the wire
	started  time.Time
	latest   time.Time // Progress does not move the deadline behind it
	deadline atomic.Int64
	waiter   *waiter

	// Under Agent.mu.
	finished bool
	unwanted bool    // given up before its time was over: the caller has gone
	on       *stream // that carries it, nil while it is queued
	id       uint64  // of the attempt
	sent     bool    // to the agent, in this attempt
	since    time.Time
	attempts []Attempt
	first    [1]Attempt // memory of attempts, mostly all there are
	guilt    int        // deaths with this event alone in flight
	evidence []string
	result   Result
	failure  *Failure
}

// waiter is what a call waits with. It is used again.
type waiter struct {
	done  chan struct{}
	timer *time.Timer
}

// waiters holds idle ones.
var waiters = sync.Pool{New: func() any {
	w := &waiter{done: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
	w.timer.Stop()
	return w
}}

// newFlight prepares a call.
func newFlight(c *Call) (*flight, error) {
	body, err := inlineBody(c)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	f := &flight{call: c, body: body, size: eventBound(c, &body), started: now}
	f.latest = now.Add(max(c.Timeout, c.Extend))
	f.deadline.Store(int64(c.Timeout))
	f.attempts = f.first[:0]
	return f, nil
}

// left is the time until the deadline.
func (f *flight) left() time.Duration {
	return time.Duration(f.deadline.Load()) - time.Since(f.started)
}

// extend moves the deadline, but not behind the latest one and not back.
func (f *flight) extend(by time.Duration) {
	wanted := min(time.Since(f.started)+by, f.latest.Sub(f.started))
	if int64(wanted) > f.deadline.Load() {
		f.deadline.Store(int64(wanted))
	}
}

// wire is the attempt as it goes over the stream.
func (f *flight) wire() wireEvent {
	e := wireEvent{call: f.call, body: f.body, id: f.id, attempt: uint32(f.call.Before + len(f.attempts) + 1), timeout: max(f.left(), 0)}
	if f.body.ticket {
		e.ticket = "b" + strconv.FormatUint(f.id, 10)
	}
	return e
}

// finish wakes the call. Under Agent.mu, once.
func (f *flight) finish() {
	f.finished = true
	f.waiter.done <- struct{}{}
}

// close records the end of an attempt.
func (f *flight) close(s *stream, failure *Failure) {
	f.attempts = append(f.attempts, Attempt{
		Instance: s.process.label, Version: s.process.manifest.GetVersion(),
		Took: time.Since(f.since), Failure: failure,
	})
	f.on = nil
}

// outcome is what the call answers with.
func (f *flight) outcome() (Result, error) {
	f.result.Attempts = f.attempts
	if n := len(f.attempts); n > 0 {
		f.result.Version = f.attempts[n-1].Version
	}
	if f.failure != nil {
		return f.result, f.failure
	}
	return f.result, nil
}

// byAge orders flights as they came.
func byAge(flights map[uint64]*flight) []*flight {
	return slices.SortedFunc(maps.Values(flights), func(x, y *flight) int { return cmp.Compare(x.id, y.id) })
}

// settle takes what the agent sent: answers, progress and a pong.
func (a *Agent) settle(s *stream, in *agentpb.EventsResponse) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	s.asked, s.looks, s.doubted = time.Time{}, 0, false
	for _, answer := range in.GetAnswers() {
		a.answer(s, answer, now)
	}
	for _, progress := range in.GetProgress() {
		if f := s.flights[progress.GetId()]; f != nil {
			f.extend(time.Duration(progress.GetExtendMillis()) * time.Millisecond)
		}
	}
	if pong := in.GetPong(); pong.GetNonce() == s.nonce && pong.GetInFlight() == 0 {
		s.forgetAbandoned(s.pinged)
	}
	if h := in.GetHealth(); h != nil {
		s.degraded = degradations(h)
	}
	a.schedule()
	s.noteDrained()
}

// answer settles one answer.
func (a *Agent) answer(s *stream, answer *agentpb.Answer, now time.Time) {
	id := answer.GetId()
	f := s.flights[id]
	if f == nil || !f.sent {
		a.deadLetter(s, id)
		return
	}
	a.land(s, f)
	a.counts.answered(now.Sub(f.since), now)
	if fault := answer.GetFault(); fault != "" {
		a.fail(s, f, &Failure{Kind: Faulty, Detail: cutString(printable(fault), keptLineBytes)})
		return
	}
	a.mend(f)
	f.close(s, nil)
	f.result = Result{Answer: answer, uploads: s.process.bodies}
	f.finish()
}

// forgetAbandoned forgets the events that were given up before a time. Under mu.
func (s *stream) forgetAbandoned(before time.Time) {
	maps.DeleteFunc(s.abandoned, func(_ uint64, at time.Time) bool { return at.Before(before) })
}

// deadLetter counts an answer that nothing waits for.
func (a *Agent) deadLetter(s *stream, id uint64) {
	if _, late := s.abandoned[id]; late {
		delete(s.abandoned, id)
		a.counts.dead.Late++
		return
	}
	a.counts.dead.Second++
}

// land takes a flight off its stream.
func (a *Agent) land(s *stream, f *flight) {
	delete(s.flights, f.id)
	a.inFlight--
	if f.body.ticket {
		s.process.bodies.forget(f.wire().ticket)
	}
}

// fail ends a flight with a failure of its last attempt. The flight has landed.
func (a *Agent) fail(s *stream, f *flight, failure *Failure) {
	failure.Agent = a.Name()
	f.close(s, failure)
	a.end(f, failure)
}

// end finishes a flight without an answer.
func (a *Agent) end(f *flight, failure *Failure) {
	f.failure = failure
	a.failed(f.call, failure)
	a.wear(f, failure)
	a.record(f)
	f.finish()
}

// refuse fails an event that cannot be sent.
func (a *Agent) refuse(s *stream, id uint64, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if f := s.flights[id]; f != nil {
		a.land(s, f)
		a.fail(s, f, &Failure{Kind: Faulty, Detail: err.Error()})
		a.schedule()
		s.noteDrained()
	}
}

// bury settles what was in flight on a stream that has ended. Those events are suspects: each is tried again
// alone. One that was alone is guilty, and one guilty twice is poison. Events not sent yet had no part in it.
func (a *Agent) bury(s *stream, kind FailureKind, detail string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.up = false
	alone := s.sentCount() == 1
	var again []*flight
	for _, f := range byAge(s.flights) {
		a.land(s, f)
		switch {
		case !f.sent && !a.closed:
			f.on = nil
			again = append(again, f)
		case f.call.Fact || a.closed:
			a.fail(s, f, &Failure{Kind: kind, Detail: detail})
		default:
			a.suspect(s, f, alone, &Failure{Agent: a.Name(), Kind: kind, Detail: detail})
		}
	}
	a.queue = append(again, a.queue...)
	s.waiting, s.abandoned, s.cancels = nil, nil, nil
	delete(a.streams, s)
	a.schedule()
	s.noteDrained()
}

// down stops giving events to a stream that has ended.
func (a *Agent) down(s *stream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.up = false
}

// sentCount is how many events the agent had when its stream ended.
func (s *stream) sentCount() int {
	n := len(s.abandoned)
	for _, f := range s.flights {
		if f.sent {
			n++
		}
	}
	return n
}

// How guilt is measured: an event guilty of two deaths is poison. One of them may be that the process used up the memory it
// may have: the cgroup tells such a kill from others, and without one the process is refused memory and ends by itself. Any
// other SIGKILL that the host did not send comes from outside, from an operator or the kernel that needs memory for others,
// and has mostly nothing to do with the event: it counts half.
const (
	guiltOfDeath = 2
	guiltOfKill  = 1
	guiltOfTwo   = 2 * guiltOfDeath
)

// suspect queues an event to be tried again alone, or ends it as poison.
func (a *Agent) suspect(s *stream, f *flight, alone bool, failure *Failure) {
	f.close(s, failure)
	if alone {
		f.guilt += s.process.guilt(failure.Kind)
		f.evidence = append(f.evidence, s.process.evidence(failure))
	}
	if f.guilt < guiltOfTwo {
		// Behind the others: the innocent are through before a guilty one kills again.
		a.suspects = append(a.suspects, f)
		return
	}
	a.end(f, &Failure{Kind: Poison, Detail: failure.Detail, Evidence: strings.Join(append([]string{f.input()}, f.evidence...), "\n")})
}

// input names what killed: the event, and the message that is parked beside the evidence.
func (f *flight) input() string {
	c := f.call
	input := fmt.Sprintf("input: event %q of %d bytes", c.EventID, len(c.Facts)+len(c.Own))
	if c.Session != "" {
		input += ", session " + c.Session
	}
	if c.Message != "" {
		input += ", message " + c.Message
	}
	if c.Body != nil {
		input += fmt.Sprintf(", body of %d bytes", c.Body.Size())
	}
	return input
}

// record is what is held against an event that was guilty once and failed before it could be tried again. Right
// of the 250 line the same event comes again when the agent is back.
type record struct {
	guilt    int
	evidence []string
}

// maxRecords bounds how many events are remembered.
const maxRecords = 1024

// record keeps or removes what is held against an event that has failed. Under mu.
func (a *Agent) record(f *flight) {
	if f.guilt == 0 || f.guilt >= guiltOfTwo {
		return
	}
	for id := range a.records {
		if len(a.records) < maxRecords {
			break
		}
		delete(a.records, id)
	}
	a.records[f.call.EventID] = record{f.guilt, f.evidence}
}

// remember holds against an event what is known of it, and reports whether that was anything. Under mu.
func (a *Agent) remember(f *flight) bool {
	r, known := a.records[f.call.EventID]
	if known {
		f.guilt, f.evidence = r.guilt, r.evidence
		delete(a.records, f.call.EventID)
	}
	return known
}

// guilt of an event that was alone in flight when the process ended.
func (p *process) guilt(kind FailureKind) int {
	if kind == Died && p.killedFromOutside() {
		return guiltOfKill
	}
	return guiltOfDeath
}

// evidence is what is known of the death of a process.
func (p *process) evidence(failure *Failure) string {
	lines := append([]string{p.label + " " + string(failure.Kind) + ": " + failure.Detail}, p.logs.tail(keptLines)...)
	return strings.Join(lines, "\n  ")
}
