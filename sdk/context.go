package sdk

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/sdk/agentpb"
)

// eventContext is the context of one event and what the SDK remembers of it. Most handlers never look at
// their context, so its timer, its channel and its logger are made when they are asked for.
type eventContext struct {
	stream     *eventStream
	generation *generation
	event      wireEvent
	common     *Event // set when the handler's event was built

	mu       sync.Mutex
	deadline time.Time     // zero: none
	done     chan struct{} // nil until asked for
	timer    *time.Timer   // runs once done or after was asked for
	err      error
	after    map[*func()]struct{} // of AfterFunc
	logger   hclog.Logger
	body     *BodyReader
	second   []*agentpb.Answer // see Answer
	proto    *agentpb.Event    // see whole
	ownPart  *agentpb.Event    // see own
}

func newEventContext(es *eventStream, g *generation, event wireEvent, received time.Time) *eventContext {
	ec := &eventContext{stream: es, generation: g, event: event}
	if t := event.timeout; t > 0 {
		ec.deadline = received.Add(time.Duration(t) * time.Microsecond)
	}
	return ec
}

// Deadline implements context.Context.
func (ec *eventContext) Deadline() (time.Time, bool) {
	ec.mu.Lock()
	defer ec.mu.Unlock()
	return ec.deadline, !ec.deadline.IsZero()
}

// Done implements context.Context.
func (ec *eventContext) Done() <-chan struct{} {
	ec.mu.Lock()
	defer ec.mu.Unlock()
	if ec.done == nil {
		ec.done = make(chan struct{})
		if ec.err != nil {
			close(ec.done)
		}
		ec.watch()
	}
	return ec.done
}

// Err implements context.Context.
func (ec *eventContext) Err() error {
	ec.mu.Lock()
	defer ec.mu.Unlock()
	if ec.err == nil && !ec.deadline.IsZero() && time.Now().After(ec.deadline) {
		ec.end(context.DeadlineExceeded)
	}
	return ec.err
}

// Value implements context.Context. The logger is found under hclog's own key.
func (ec *eventContext) Value(key any) any {
	if key == hclogKey {
		return ec.Logger()
	}
	return nil
}

// AfterFunc lets the context package derive contexts without a goroutine for each.
func (ec *eventContext) AfterFunc(f func()) (stop func() bool) {
	ec.mu.Lock()
	defer ec.mu.Unlock()
	if ec.err != nil {
		go f()
		return func() bool { return false }
	}
	if ec.after == nil {
		ec.after = map[*func()]struct{}{}
	}
	ec.after[&f] = struct{}{}
	ec.watch()
	return func() bool {
		ec.mu.Lock()
		defer ec.mu.Unlock()
		_, waiting := ec.after[&f]
		delete(ec.after, &f)
		return waiting
	}
}

// watch starts the timer of the deadline; called with the lock held.
func (ec *eventContext) watch() {
	if ec.timer != nil || ec.err != nil || ec.deadline.IsZero() {
		return
	}
	ec.timer = time.AfterFunc(time.Until(ec.deadline), ec.expire)
}

// expire ends the context unless the deadline was moved meanwhile.
func (ec *eventContext) expire() {
	ec.mu.Lock()
	defer ec.mu.Unlock()
	if left := time.Until(ec.deadline); left > 0 {
		ec.timer.Reset(left)
		return
	}
	ec.end(context.DeadlineExceeded)
}

// end the context; called with the lock held.
func (ec *eventContext) end(err error) {
	if ec.err != nil {
		return
	}
	ec.err = err
	if ec.done != nil {
		close(ec.done)
	}
	for f := range ec.after {
		go (*f)()
	}
	ec.after = nil
	if ec.timer != nil {
		ec.timer.Stop()
	}
}

// extend moves the deadline to d from now.
func (ec *eventContext) extend(d time.Duration) {
	ec.mu.Lock()
	ec.deadline = time.Now().Add(d) // a running timer looks at it when it fires
	ec.mu.Unlock()
	ec.stream.addProgress(&agentpb.Progress{Id: ec.event.id, ExtendMillis: uint32(d.Milliseconds())})
}

// cancel ends the context.
func (ec *eventContext) cancel() {
	ec.mu.Lock()
	defer ec.mu.Unlock()
	ec.end(context.Canceled)
}

// finish lets go of what the event held.
func (ec *eventContext) finish() {
	ec.cancel()
	if ec.event.hasBody {
		ec.stream.service.bodies.finish(ec.own().GetBody().GetTicket(), ec.body)
	}
	ec.generation.release()
}

// Logger names agent, version, session, message and event.
func (ec *eventContext) Logger() hclog.Logger {
	ec.mu.Lock()
	defer ec.mu.Unlock()
	if ec.logger == nil {
		fields := []any{"event", EventName(ec.event.kind)}
		if id := firstText(ec.event.session); id != "" {
			fields = append(fields, "session", id)
		}
		if id := firstText(ec.event.envelope); id != "" {
			fields = append(fields, "message", id)
		}
		ec.logger = ec.generation.logger.With(fields...)
	}
	return ec.logger
}

// firstText is field 1 of a part: the id of a session or a message.
func firstText(octets []byte) string {
	for f := factsOf(octets); f.next(); {
		if f.number == 1 {
			return f.piece
		}
	}
	return ""
}

// Logger of the event that a handler got ctx with: every line it writes names agent, version, session,
// message and event. hclog.FromContext answers with the same.
func Logger(ctx context.Context) hclog.Logger { return hclog.FromContext(ctx) }

// hclogKey is the key under which hclog looks for a logger in a context. It is not exported, so it is learned
// by watching hclog look.
var hclogKey = learnKey()

func learnKey() any {
	spy := &keySpy{Context: context.Background()}
	hclog.FromContext(spy)
	return spy.key
}

type keySpy struct {
	context.Context
	key any
}

// Value implements context.Context.
func (s *keySpy) Value(key any) any {
	s.key = key
	return nil
}
