package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternmail/postern/sdk/agentpb"
)

// Agent is one configured agent: its instances and the events they work on. It is safe for concurrent use.
type Agent struct {
	o          Options
	slots      []*slot
	limit      int // events in flight
	queueLimit int
	nextID     atomic.Uint64
	generation atomic.Uint64
	newest     atomic.Pointer[process] // of the processes that came up
	taken      atomic.Pointer[taken]   // configuration taken live; nil: that of o
	life       context.Context         // ends with Close
	quit       context.CancelFunc
	running    sync.WaitGroup
	bytes      atomic.Int64 // of events in flight and waiting

	mu         sync.Mutex
	closed     bool
	queue      []*flight // waiting for a place, oldest first
	suspects   []*flight // waiting to be tried alone
	reserved   *stream   // takes suspects only
	inFlight   int
	streams    map[*stream]bool  // of processes that came up and may have events
	records    map[string]record // of events that were guilty and then failed otherwise, by EventID
	counts     counts
	breakers   map[agentpb.EventKind]*breaker // of kinds of events that failed last
	complaints map[FailureKind]*complaint
}

// Bounds of the events that an agent has in flight and waiting: load beyond them is shed, whatever memory there is.
const (
	queueShare = 4        // events that may wait for each that may be in flight
	maxBytes   = 64 << 20 // of all their facts, headers and bodies that go inline
)

// newAgent makes an agent without processes.
func newAgent(o Options) *Agent {
	a := &Agent{o: o, limit: o.Spec.MaxInFlight, queueLimit: queueShare * o.Spec.MaxInFlight, counts: newCounts(),
		streams: map[*stream]bool{}, records: map[string]record{}, breakers: map[agentpb.EventKind]*breaker{}, complaints: map[FailureKind]*complaint{}}
	a.life, a.quit = context.WithCancel(context.Background())
	for i := range o.Spec.Instances {
		a.slots = append(a.slots, newSlot(a, i+1))
	}
	return a
}

// Name is the label of the agent block.
func (a *Agent) Name() string { return a.o.Spec.Name }

// Call asks the agent and waits for its answer, over as many attempts as Call.Timeout leaves room for. The
// error, if any, is a *Failure. An event that is still in flight when ctx ends counts as late.
func (a *Agent) Call(ctx context.Context, c *Call) (Result, error) {
	size := int64(c.bound())
	if held := a.bytes.Add(size); held > maxBytes && held > size {
		a.bytes.Add(-size)
		return Result{}, a.refuseCall(c, Busy, fmt.Sprintf("its events in flight and waiting have %d MiB", (held-size)>>20))
	}
	defer a.bytes.Add(-size)
	f, err := newFlight(c)
	if err != nil {
		return Result{}, a.refuseCall(c, Faulty, err.Error())
	}
	if f.size > maxEventBytes {
		return Result{}, a.refuseCall(c, Faulty, fmt.Sprintf("the event is larger than %d bytes", maxEventBytes))
	}
	f.waiter = waiters.Get().(*waiter)
	defer waiters.Put(f.waiter)
	if failure := a.admit(f); failure != nil {
		return Result{}, failure
	}
	a.await(ctx, f)
	return f.outcome()
}

// admit queues a flight, or says why not.
func (a *Agent) admit(f *flight) *Failure {
	a.mu.Lock()
	defer a.mu.Unlock()
	if failure := a.refusal(f); failure != nil {
		a.failed(f.call, failure)
		return failure
	}
	if a.remember(f) {
		a.suspects = append(a.suspects, f)
	} else {
		a.queue = append(a.queue, f)
	}
	a.schedule()
	return nil
}

// refuseCall is the failure of a call that does not become a flight.
func (a *Agent) refuseCall(c *Call, kind FailureKind, detail string) *Failure {
	failure := &Failure{Kind: kind, Detail: detail}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed(c, failure)
	return failure
}

// failed completes the failure of a call, and has it counted and told. Under mu.
func (a *Agent) failed(c *Call, failure *Failure) {
	failure.Agent = a.Name()
	a.counts.failures[failure.Kind]++
	a.complain(c, failure)
}

// refusal says why a new flight cannot be taken.
func (a *Agent) refusal(f *flight) *Failure {
	switch {
	case a.closed:
		return &Failure{Kind: Down, Detail: "closed"}
	case len(a.queue)+len(a.suspects) >= a.queueLimit:
		return &Failure{Kind: Busy, Detail: fmt.Sprintf("%d events in flight, %d waiting", a.inFlight, len(a.queue)+len(a.suspects))}
	case !a.hope(f):
		return &Failure{Kind: Down, Detail: a.lastExit()}
	}
	return a.broken(f)
}

// await waits for the end of a flight.
func (a *Agent) await(ctx context.Context, f *flight) {
	timer := f.waiter.timer
	timer.Reset(f.left())
	defer timer.Stop()
	for {
		select {
		case <-f.waiter.done:
			return
		case <-timer.C:
			if left := f.left(); left > 0 { // Progress came
				timer.Reset(left)
				continue
			}
			a.abandon(f, "no answer within "+rounded(time.Duration(f.deadline.Load())).String())
		case <-ctx.Done():
			a.abandon(f, "not waited for any longer: "+context.Cause(ctx).Error())
		}
		<-f.waiter.done
		return
	}
}

// rounded is a duration as a person would say it.
func rounded(d time.Duration) time.Duration {
	switch {
	case d >= time.Second:
		return d.Round(time.Second / 10)
	case d >= time.Second/10:
		return d.Round(time.Second / 100)
	}
	return d.Round(time.Millisecond)
}

// abandon gives a flight up, unless it has just ended. It counts as in flight at a death until the agent
// answers it or says that it works on nothing.
func (a *Agent) abandon(f *flight, why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if f.finished {
		return
	}
	f.unwanted = f.left() > 0
	s := f.on
	if s == nil {
		a.dequeue(f)
		a.end(f, a.waitedInVain(f, why))
		return
	}
	if f.sent {
		s.abandoned[f.id] = time.Now()
		s.cancels = append(s.cancels, f.id)
		s.ask(time.Now()) // the answer may say that it works on nothing
	} else {
		s.waiting = slices.DeleteFunc(s.waiting, func(g *flight) bool { return g == f })
	}
	a.land(s, f)
	a.fail(s, f, &Failure{Kind: Late, Detail: why})
	a.schedule()
	s.noteDrained()
}

// waitedInVain is the failure of a flight that ends in a queue: that of its last attempt, if there was one.
func (a *Agent) waitedInVain(f *flight, why string) *Failure {
	if n := len(f.attempts); n > 0 {
		last := f.attempts[n-1].Failure
		return &Failure{Kind: last.Kind, Detail: last.Detail}
	}
	if a.closed || a.leastLoaded() == nil && a.reserved == nil {
		return &Failure{Kind: Down, Detail: a.lastExit()}
	}
	return &Failure{Kind: Late, Detail: why}
}

// dequeue takes a flight out of the queues.
func (a *Agent) dequeue(f *flight) {
	same := func(g *flight) bool { return g == f }
	a.queue = slices.DeleteFunc(a.queue, same)
	a.suspects = slices.DeleteFunc(a.suspects, same)
}

// schedule gives what waits to the streams that have room. Under mu.
func (a *Agent) schedule() {
	a.scheduleSuspect()
	for len(a.queue) > 0 && a.inFlight < a.limit {
		s := a.leastLoaded()
		if s == nil {
			return
		}
		f := a.queue[0]
		a.queue[0] = nil
		a.queue = a.queue[1:]
		a.give(s, f)
	}
}

// scheduleSuspect tries the next suspect, on a stream that carries nothing else.
func (a *Agent) scheduleSuspect() {
	if a.reserved != nil && !a.reserved.up {
		a.reserved = nil
	}
	if len(a.suspects) == 0 {
		if a.reserved != nil && a.reserved.load() == 0 {
			a.reserved = nil
		}
		return
	}
	if a.reserved == nil {
		a.reserved = a.leastLoaded()
	}
	if a.reserved == nil || a.reserved.load() > 0 {
		return
	}
	f := a.suspects[0]
	a.suspects = a.suspects[1:]
	a.give(a.reserved, f)
}

// leastLoaded answers with the stream that has the fewest events, of those not in doubt if there are any; nil if none
// takes events.
func (a *Agent) leastLoaded() *stream {
	var least *stream
	for _, slot := range a.slots {
		s := slot.stream()
		if s == nil || !s.up || s == a.reserved {
			continue
		}
		if least == nil || least.doubted && !s.doubted || least.doubted == s.doubted && s.load() < least.load() {
			least = s
		}
	}
	return least
}

// give puts a flight on a stream.
func (a *Agent) give(s *stream, f *flight) {
	f.on, f.sent = s, false
	f.id = a.nextID.Add(1)
	s.flights[f.id] = f
	s.waiting = append(s.waiting, f)
	a.inFlight++
	s.awake()
}

// take fills b with what waits on a stream. It reports false, and the stream's writer will be woken, when
// nothing does.
func (a *Agent) take(s *stream, b *batch) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.fill(b)
	s.idle = b.empty()
	return !s.idle
}

// ping asks a stream for a sign of life.
func (a *Agent) ping(s *stream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.ask(time.Now())
	s.forgetAbandoned(s.pinged.Add(-abandonedLife))
}

// abandonedLife is how long an event that was given up, and is never answered, counts as in flight.
const abandonedLife = time.Minute

// ask queues a ping. Under Agent.mu.
func (s *stream) ask(now time.Time) {
	s.nonce++
	s.ping, s.pinged = s.nonce, now
	if s.asked.IsZero() {
		s.asked = now
	}
	s.awake()
}

// silence is how long a ping has been waiting without a sign of life.
func (a *Agent) silence(s *stream) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.asked.IsZero() {
		return 0
	}
	return time.Since(s.asked)
}

// noteDrained tells who drains the stream that it carries nothing any more. Under Agent.mu.
func (s *stream) noteDrained() {
	if s.draining && len(s.flights) == 0 {
		s.draining = false
		close(s.drained)
	}
}
