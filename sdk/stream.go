package sdk

import (
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/sdk/agentpb"
)

// Limits of one message on the stream (docs/protocol.md): what is waiting, never a wait for more.
const (
	maxBatch      = 64
	maxBatchBytes = 256 << 10
)

// eventStream is one Events call: a reader, the handlers, and a writer that sends whatever is waiting.
type eventStream struct {
	service *service
	stream  messages
	wake    chan struct{} // something is waiting for the writer
	done    chan struct{} // the stream is over

	mu       sync.Mutex
	answers  []*agentpb.Answer
	progress []*agentpb.Progress
	pong     *agentpb.Pong
	health   *agentpb.Health
	ailing   bool // the host was told that something is missing
	active   map[uint64]*eventContext
}

// messages are what the stream carries; *grpc.ServerStream is one.
type messages interface {
	RecvMsg(m any) error
	SendMsg(m any) error
}

// Events reads events and starts handlers until the host closes the stream.
func (s *service) Events(stream agentpb.AgentService_EventsServer) error {
	return s.serveEvents(stream)
}

func (s *service) serveEvents(stream messages) error {
	es := &eventStream{
		service: s, stream: stream, wake: make(chan struct{}, 1), done: make(chan struct{}),
		active: map[uint64]*eventContext{},
	}
	var writing sync.WaitGroup
	writing.Go(es.write)
	s.open(es)
	err := es.read()
	s.over(es)
	close(es.done)
	es.cancelAll()
	writing.Wait()
	return err
}

// read never waits for a handler, so a ping is answered however long they take.
func (es *eventStream) read() error {
	for {
		var raw rawRequest
		if err := es.stream.RecvMsg(&raw); err != nil {
			return nil // the host is done with the stream, or gone
		}
		received := time.Now()
		in, err := parseRequest(raw.octets)
		if err != nil {
			return err
		}
		if in.ping != nil {
			es.setPong(in.ping.GetNonce())
		}
		for i := range in.events {
			es.begin(in.events[i], received)
		}
		for _, id := range in.cancel {
			es.cancel(id)
		}
	}
}

func (es *eventStream) setPong(nonce uint64) {
	es.mu.Lock()
	es.pong = &agentpb.Pong{Nonce: nonce, InFlight: uint32(es.service.work.inFlight())}
	es.mu.Unlock()
	es.signal()
}

// tellHealth sends what the agent misses now. A new stream need not be told that nothing is missing.
func (es *eventStream) tellHealth() {
	g := es.service.current.Load()
	if g == nil {
		return
	}
	es.mu.Lock()
	if h := g.health.message(); len(h.Degraded) > 0 || es.ailing {
		es.health, es.ailing = h, len(h.Degraded) > 0
	}
	es.mu.Unlock()
	es.signal()
}

// begin starts the handler of an event.
func (es *eventStream) begin(event wireEvent, received time.Time) {
	g := es.service.pin()
	if g == nil {
		es.answer(fault(event.id, "not configured"))
		return
	}
	ec := newEventContext(es, g, event, received)
	es.mu.Lock()
	es.active[event.id] = ec
	es.mu.Unlock()
	es.service.work.start(ec.run)
}

// run the handler and queue its answer.
func (ec *eventContext) run() {
	answer := ec.handle()
	es := ec.stream
	es.mu.Lock()
	delete(es.active, ec.event.id)
	es.answers = append(es.answers, answer)
	for _, a := range ec.second {
		a.Id = answer.Id
		es.answers = append(es.answers, a)
	}
	es.mu.Unlock()
	es.signal()
	ec.finish()
}

// handle calls the handler. A panic in it is a fault of this event alone.
func (ec *eventContext) handle() (answer *agentpb.Answer) {
	id := ec.event.id
	defer func() {
		if cause := recover(); cause != nil {
			ec.Logger().Error("handler panicked", "cause", fmt.Sprint(cause), "stack", stack())
			answer = fault(id, fmt.Sprintf("panic: %v", cause))
		}
	}()
	handler := ec.generation.handlers.of(ec.event.kind)
	if handler == nil {
		return fault(id, fmt.Sprintf("no handler for %s", EventName(ec.event.kind)))
	}
	return ec.complete(handler(ec))
}

// complete makes an answer of a verdict.
func (ec *eventContext) complete(v Verdict) *agentpb.Answer {
	id := ec.event.id
	answer, err := v.answer(ec.common)
	if err != nil {
		ec.Logger().Error("handler failed", "error", err)
		return fault(id, err.Error())
	}
	if answer.Id == 0 {
		answer.Id = id
	}
	if len(v.raw) > 1 {
		ec.second = v.raw[1:]
	}
	return answer
}

func fault(id uint64, what string) *agentpb.Answer { return &agentpb.Answer{Id: id, Fault: what} }

func (es *eventStream) answer(a *agentpb.Answer) {
	es.mu.Lock()
	es.answers = append(es.answers, a)
	es.mu.Unlock()
	es.signal()
}

func (es *eventStream) addProgress(p *agentpb.Progress) {
	es.mu.Lock()
	es.progress = append(es.progress, p)
	es.mu.Unlock()
	es.signal()
}

// cancel tells a handler that nobody wants its answer any more.
func (es *eventStream) cancel(id uint64) {
	es.mu.Lock()
	ec := es.active[id]
	es.mu.Unlock()
	if ec != nil {
		ec.cancel()
	}
}

func (es *eventStream) cancelAll() {
	es.mu.Lock()
	var all []*eventContext
	for _, ec := range es.active {
		all = append(all, ec)
	}
	es.mu.Unlock()
	for _, ec := range all {
		ec.cancel()
	}
}

func (es *eventStream) signal() {
	select {
	case es.wake <- struct{}{}:
	default:
	}
}

// write sends what is waiting, and while it is being sent the next batch gathers.
func (es *eventStream) write() {
	for {
		select {
		case <-es.wake:
		case <-es.done:
			return
		}
		for {
			out := es.take()
			if out == nil {
				break
			}
			if err := es.stream.SendMsg(out); err != nil {
				es.service.logger.Warn("cannot answer the host", "error", err)
				return
			}
		}
	}
}

// take the next message for the host; nil if nothing is waiting.
func (es *eventStream) take() *agentpb.EventsResponse {
	es.mu.Lock()
	defer es.mu.Unlock()
	if len(es.answers) == 0 && len(es.progress) == 0 && es.pong == nil && es.health == nil {
		return nil
	}
	out := &agentpb.EventsResponse{Pong: es.pong, Progress: es.progress, Health: es.health}
	es.pong, es.progress, es.health = nil, nil, nil
	n := batchLength(es.answers)
	out.Answers = es.answers[:n:n]
	es.answers = es.answers[n:]
	if len(es.answers) == 0 {
		es.answers = nil
	}
	return out
}

// batchLength is how many answers go into one message; a large one goes alone.
func batchLength(answers []*agentpb.Answer) int {
	bytes := 0
	for i, a := range answers {
		bytes += answerSize(a)
		if i == maxBatch || i > 0 && bytes > maxBatchBytes {
			return i
		}
	}
	return len(answers)
}

// answerSize measures only answers that can be large; the others are far below 4 KiB.
func answerSize(a *agentpb.Answer) int {
	if len(a.Edits) == 0 && len(a.Spawns) == 0 && len(a.Stamps) == 0 && len(a.Writes) == 0 {
		return 1 << 10
	}
	return proto.Size(a)
}
