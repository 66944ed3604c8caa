package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
)

// slot is the place of one instance: it outlives the processes that fill it.
type slot struct {
	a       *Agent
	number  int
	history history
	orders  chan order    // to replace the process
	revive  chan struct{} // to start one now

	falseAlarm time.Time // when a process was last started beside one that was not hung

	// Under Agent.mu.
	process  *process // newest, up or not
	state    State
	since    time.Time
	next     time.Time // of the next start, in backoff or failed; zero: only by an order
	unborn   int       // starts in a row that did not bring a process up
	barren   time.Time // of the first of them
	obstacle string    // to the last of them
	restarts int
	lastExit string
	lastTail []string
}

// order to replace the process of a slot, or to have it take a configuration.
type order struct {
	ctx       context.Context
	configure *taken // nil: a new process
	done      chan error
}

// newSlot makes a slot without a process.
func newSlot(a *Agent, number int) *slot {
	return &slot{a: a, number: number, history: history{Backoff: a.o.Backoff}, orders: make(chan order), revive: make(chan struct{}, 1),
		state: Starting, since: time.Now()}
}

// stream of the slot's process, nil if it has none. Under Agent.mu.
func (s *slot) stream() *stream {
	if s.process == nil {
		return nil
	}
	return s.process.stream
}

// start brings a process up to its first answered ping.
func (s *slot) start(ctx context.Context) (*process, error) {
	ctx, cancel := context.WithTimeout(ctx, s.a.o.Spec.StartTimeout)
	defer cancel()
	p, err := newProcess(ctx, s.a.options(), s.number)
	if err != nil {
		return nil, err
	}
	for _, step := range []func() error{
		func() error { return p.describe(ctx) },
		func() error { return p.configure(ctx, s.a.generation.Add(1)) },
		func() error { return p.openEvents(ctx) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	go p.stream.read(s.a)
	go p.stream.write(s.a)
	go p.bodies.receive()
	return p, p.probe(ctx, s.a)
}

// install makes a started process the one that takes events. It reports false when the agent is closed.
func (s *slot) install(p *process) bool {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	if s.a.closed {
		return false
	}
	if s.process != nil {
		s.restarts++
		s.process.stream.retire()
	}
	s.process = p
	s.unborn = 0
	p.stream.up = true
	s.a.streams[p.stream] = true
	s.a.newest.Store(p)
	s.a.probeNow()
	s.enter(Up)
	s.a.schedule()
	return true
}

// retire stops giving events to a stream; drained is closed when it has none left. Under Agent.mu.
func (st *stream) retire() {
	if st.up {
		st.up, st.draining = false, true
		st.noteDrained()
	}
}

// enter changes the state. Under Agent.mu.
func (s *slot) enter(state State) {
	s.state, s.since = state, time.Now()
	if s.a.o.OnChange != nil {
		go s.a.o.OnChange()
	}
}

// supervise keeps the slot filled until the agent is closed. p is up; nil: the slot is empty.
func (s *slot) supervise(p *process) {
	for alive := true; alive; {
		for p != nil {
			p = s.watch(p)
		}
		p, alive = s.rise()
	}
}

// refill starts a process into an empty slot. It answers with nil when that fails.
func (s *slot) refill() *process {
	p, err := s.start(s.a.life)
	if err != nil {
		s.failed(err)
		return nil
	}
	if !s.bringUp(p) {
		return nil
	}
	return p
}

// bringUp installs a process and says so; when the agent has been closed meanwhile, it ends the process and
// reports false.
func (s *slot) bringUp(p *process) bool {
	if !s.install(p) {
		p.destroy()
		return false
	}
	p.o.Logger.Info("agent is up", "agent", s.a.Name(), "process", p.label, "version", p.manifest.GetVersion(),
		"took", time.Since(p.started).Round(time.Millisecond))
	return true
}

// watch waits for the end of a process and buries it, or for an order to replace it. It answers with the process
// to watch next, nil if there is none.
func (s *slot) watch(p *process) *process {
	ticker := time.NewTicker(s.a.o.HangAfter / looksPerHang)
	defer ticker.Stop()
	for {
		select {
		case <-p.stream.broken:
			return s.lost(p, Died)
		case <-p.exited():
			return s.lost(p, Died)
		case <-ticker.C:
			silence, doubtful := s.a.look(p.stream)
			if silence >= s.a.o.HangAfter {
				return s.lost(p, Hung)
			}
			if doubtful && s.a.doubt(p.stream) && s.mayRelieve(p) {
				if next := s.relieve(p); next != p {
					return next
				}
			}
			p.bodies.expire()
		case o := <-s.orders:
			if o.configure == nil {
				return s.replace(o, p)
			}
			return s.retake(o, p)
		case <-s.a.life.Done():
			return nil // Close ends the process
		}
	}
}

// lost ends what is left of a process that died or hangs and has its events tried elsewhere.
func (s *slot) lost(p *process, kind FailureKind) *process {
	if s.a.life.Err() != nil {
		return nil
	}
	s.a.down(p.stream)
	detail := s.autopsy(p, kind)
	p.o.Logger.Error("agent is lost", "agent", s.a.Name(), "process", p.label, "how", kind, "detail", detail)
	pause := s.history.next(time.Since(p.started), p.killedFromOutside())
	s.a.mu.Lock()
	s.process = nil
	s.lastExit, s.lastTail = detail, p.logs.tail(keptLines)
	s.restarts++
	s.backOff(pause)
	s.a.mu.Unlock()
	s.a.bury(p.stream, kind, detail)
	s.a.despair()
	return nil
}

// backOff enters the wait for the next start. Under Agent.mu.
func (s *slot) backOff(p pause) {
	s.next = time.Time{}
	if !p.forever {
		s.next = time.Now().Add(p.delay)
	}
	if !p.failed {
		s.enter(Waiting)
		return
	}
	s.enter(Failed)
	next := "by order only"
	if !p.forever {
		next = p.delay.Round(time.Second).String()
	}
	go s.a.o.Logger.Error("agent has failed: it ends again and again", "agent", s.a.Name(), "instance", s.number,
		"last", s.lastExit, "next", next, "stderr", lastOf(s.lastTail, shownLines))
}

// lastOf answers with the last n lines as one text.
func lastOf(lines []string, n int) string {
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// autopsy ends the process and says how it ended.
func (s *slot) autopsy(p *process, kind FailureKind) string {
	detail := ""
	switch {
	case kind == Hung:
		detail = silenceOf(s.a.silence(p.stream))
		s.a.mu.Lock()
		s.enter(Hanging)
		s.a.mu.Unlock()
	case p.runner == nil:
		detail = fmt.Sprintf("the event stream ended: %v", p.stream.cause)
	default:
		if detail = p.exitState(outputGrace); detail == "" {
			return s.endHungUp(p)
		}
	}
	p.destroy()
	return detail
}

// endHungUp ends a process whose event stream has ended. One that was about to end by itself says how.
func (s *slot) endHungUp(p *process) string {
	p.destroy()
	if detail := p.exitState(outputGrace); detail != "" && !p.killedByHost() {
		return detail
	}
	return fmt.Sprintf("the event stream ended while the process lived: %v", p.stream.cause)
}

// failed records a start that failed.
func (s *slot) failed(err error) {
	if s.a.life.Err() != nil {
		return
	}
	pause := s.history.next(0, false)
	s.a.mu.Lock()
	level := hclog.Error
	if s.unborn > 0 && s.obstacle == err.Error() { // which was said
		level = hclog.Debug
	}
	s.unstarted(err, pause)
	s.a.mu.Unlock()
	s.a.o.Logger.Log(level, "agent cannot be started", "agent", s.a.Name(), "instance", s.number, "error", err,
		"next", pause.delay.Round(time.Millisecond))
	s.a.despair()
}

// unstarted notes why no process came up, and enters the wait for the next start. Under Agent.mu.
func (s *slot) unstarted(err error, p pause) {
	if s.unborn++; s.unborn == 1 {
		s.barren = time.Now()
	}
	s.lastExit, s.obstacle = err.Error(), err.Error()
	var start *startError
	if errors.As(err, &start) {
		s.lastExit, s.lastTail = start.step+": "+start.err.Error(), start.stderr
		if start.exit != "" {
			s.lastExit += "; " + start.exit
		}
	}
	s.backOff(p)
}

// rise waits for the time of the next start, or an order to start now, and starts a process. It answers with nil
// when that fails, and with alive unset when the agent is closed.
func (s *slot) rise() (p *process, alive bool) {
	s.a.mu.Lock()
	due, stop := dueAt(s.next)
	s.a.mu.Unlock()
	defer stop()
	select {
	case <-due:
		return s.begin(nil)
	case o := <-s.orders:
		s.history.forgive()
		return s.begin(&o)
	case <-s.revive:
		s.history.forgive()
		return s.begin(nil)
	case <-s.a.life.Done():
		return nil, false
	}
}

// dueAt answers with a channel that something comes from at a time, never for none.
func dueAt(at time.Time) (due <-chan time.Time, stop func()) {
	if at.IsZero() {
		return nil, func() {}
	}
	timer := time.NewTimer(time.Until(at))
	return timer.C, func() { timer.Stop() }
}

// begin starts a process into the empty slot. Whoever ordered a new one waits for it and hears why it does not come;
// for a configuration it is enough that the next process gets it.
func (s *slot) begin(o *order) (p *process, alive bool) {
	s.a.mu.Lock()
	s.enter(Starting)
	closed := s.a.closed
	s.a.mu.Unlock()
	switch {
	case closed && o != nil:
		o.done <- fmt.Errorf("agent %s is closed", s.a.Name())
	case !closed && o != nil && o.configure == nil:
		return s.replace(*o, nil), true
	case o != nil:
		o.done <- nil
	}
	if closed {
		return nil, false
	}
	return s.refill(), true
}

// launched is the outcome of starting a process.
type launched struct {
	process *process
	err     error
}

// replace starts a new process beside p, and retires p when the new one is up; where the agent owns something
// that only one process can, p goes first. It answers with the process that fills the slot.
func (s *slot) replace(o order, p *process) *process {
	if p != nil && len(p.manifest.GetExclusiveResources()) > 0 {
		s.vacate(o.ctx, p)
		p = nil
	}
	fresh := s.launch(o.ctx)
	var died <-chan struct{}
	if p != nil {
		died = p.stream.broken
	}
	select {
	case <-died: // its events need not wait for the new one
		s.lost(p, Died)
		p = nil
	case l := <-fresh:
		return s.settle(o, p, l)
	}
	return s.settle(o, nil, <-fresh)
}

// launch starts a process for the slot, outside of the watch over the one that it has.
func (s *slot) launch(ctx context.Context) <-chan launched {
	fresh := make(chan launched, 1)
	go func() {
		p, err := s.start(ctx)
		fresh <- launched{p, err}
	}()
	return fresh
}

// vacate ends the process of the slot before there is another one.
func (s *slot) vacate(ctx context.Context, p *process) {
	s.a.mu.Lock()
	p.stream.retire()
	s.enter(Draining)
	s.a.mu.Unlock()
	s.a.retire(ctx, p)
	s.a.mu.Lock()
	s.process = nil
	s.restarts++
	s.a.mu.Unlock()
}

// settle ends an order: the new process takes over from p, which may be nil, or p stays.
func (s *slot) settle(o order, p *process, l launched) *process {
	switch {
	case l.err == nil && s.bringUp(l.process):
		o.done <- nil
		if p != nil {
			s.a.running.Go(func() { s.a.retire(s.a.life, p) })
		}
		return l.process
	case l.err == nil:
		o.done <- fmt.Errorf("agent %s is closed", s.a.Name())
	default:
		o.done <- l.err
		if p == nil {
			s.failed(l.err)
		}
	}
	return p
}
