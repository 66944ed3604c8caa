package agent

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/posternmail/postern/sdk/agentpb"
)

// stream is the Events stream of one process: what waits to be sent, what is in flight and what was given up.
// The fields below mu belong to the Agent's lock.
type stream struct {
	process *process
	grpc    grpc.ClientStream
	cancel  context.CancelFunc
	broken  chan struct{} // closed when the stream has ended
	cause   error         // valid after broken
	wake    chan struct{} // to the writer
	ponged  chan struct{} // closed at the first pong
	heard   atomic.Int64  // nanoseconds since process.started, of the last message

	// Under Agent.mu.
	up        bool                 // takes events
	waiting   []*flight            // given to this stream, not yet sent
	flights   map[uint64]*flight   // given to this stream, not yet answered; those waiting too
	abandoned map[uint64]time.Time // sent and given up since; the agent may still work on them
	cancels   []uint64
	ping      uint64    // nonce to be sent; 0: none
	nonce     uint64    // of the last ping
	pinged    time.Time // when that was asked for
	asked     time.Time // of the oldest ping without a sign of life since; zero: none
	looks     int       // in a row that have found a ping unanswered
	doubted   bool      // it has given no sign of life for longer than its events can wait
	idle      bool      // the writer sleeps
	drained   chan struct{}
	draining  bool
	degraded  []Degradation // what the process told last
}

// openEvents opens the stream. ctx bounds only the opening.
func (p *process) openEvents(ctx context.Context) error {
	return p.step(ctx, "opening the event stream", func(ctx context.Context) error {
		life, cancel := context.WithCancel(context.Background())
		stop := context.AfterFunc(ctx, cancel)
		raw, err := p.conn.NewStream(life, &agentpb.AgentService_ServiceDesc.Streams[0],
			agentpb.AgentService_Events_FullMethodName, grpc.ForceCodecV2(newEventCodec()))
		if err == nil && !stop() {
			err = ctx.Err()
		}
		if err != nil {
			cancel()
			return err
		}
		p.stream = newStream(p, raw, cancel)
		p.bodies = newBodies(p)
		return nil
	})
}

// newStream wraps a stream of grpc's.
func newStream(p *process, raw grpc.ClientStream, cancel context.CancelFunc) *stream {
	return &stream{
		process: p, grpc: raw, cancel: cancel,
		broken: make(chan struct{}), wake: make(chan struct{}, 1), ponged: make(chan struct{}),
		flights: map[uint64]*flight{}, abandoned: map[uint64]time.Time{}, drained: make(chan struct{}),
	}
}

// load is how many events the agent may be working on.
func (s *stream) load() int { return len(s.flights) + len(s.abandoned) }

// awake tells the writer that something is waiting. Under Agent.mu.
func (s *stream) awake() {
	if !s.idle {
		return
	}
	s.idle = false
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// fill moves what waits into b, as much as a batch may hold. Under Agent.mu.
func (s *stream) fill(b *batch) {
	now, bytes, n := time.Now(), 0, 0
	for _, f := range s.waiting {
		if n == maxBatchEvents || n > 0 && bytes+f.size > maxBatchBytes {
			break
		}
		f.sent, f.since = true, now
		b.events = append(b.events, f.wire())
		bytes += f.size
		n++
	}
	s.waiting = slices.Delete(s.waiting, 0, n)
	b.cancel = append(b.cancel, s.cancels...)
	s.cancels = s.cancels[:0]
	b.ping, s.ping = s.ping, 0
}

// read receives answers until the stream ends.
func (s *stream) read(a *Agent) {
	defer close(s.broken)
	first := true
	for {
		in := new(agentpb.EventsResponse)
		if err := s.grpc.RecvMsg(in); err != nil {
			s.cause = foreign(err)
			a.down(s)
			return
		}
		s.heard.Store(int64(time.Since(s.process.started)))
		a.settle(s, in)
		if first && in.GetPong() != nil {
			first = false
			close(s.ponged)
		}
	}
}

// write sends what waits until the stream ends. A batch is what is waiting, never a wait for more.
func (s *stream) write(a *Agent) {
	var b batch
	for {
		b.reset()
		if !a.take(s, &b) {
			select {
			case <-s.wake:
				// The callers that are ready to run get to add their events first: a batch grows by what is
				// there anyway, at no wait.
				runtime.Gosched()
				continue
			case <-s.broken:
				return
			}
		}
		s.sendBodies(a, &b)
		if err := s.grpc.SendMsg(&b); err != nil {
			return // the reader gets the cause
		}
	}
}

// sendBodies sends the bodies that do not go inline, ahead of their events. An event whose body cannot be sent
// fails and is not sent either.
func (s *stream) sendBodies(a *Agent, b *batch) {
	b.events = slices.DeleteFunc(b.events, func(e wireEvent) bool {
		if e.ticket == "" {
			return false
		}
		err := s.process.bodies.send(e.ticket, e.call.Body)
		if err != nil {
			a.refuse(s, e.id, err)
		}
		return err != nil
	})
}

// probe waits for the answer to a first ping: only then the agent takes events.
func (p *process) probe(ctx context.Context, a *Agent) error {
	return p.step(ctx, "waiting for the answer to a ping", func(ctx context.Context) error {
		a.ping(p.stream)
		select {
		case <-p.stream.ponged:
			return nil
		case <-p.stream.broken:
			return fmt.Errorf("the event stream ended: %w", p.stream.cause)
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}
