package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/posternmail/postern/sdk/agentpb"
)

// closeGrace is how long events in flight may take to finish when nobody set another limit.
const closeGrace = 30 * time.Second

// Launch starts the agent's instances, or attaches to the one that runs, and brings each up to its first
// answered ping. The error says which step failed, and shows the last lines of stderr; then nothing is left
// running. ctx bounds the start, not the life of the agent.
func Launch(ctx context.Context, o Options) (*Agent, error) {
	o = o.withDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	a := newAgent(o)
	started := make([]*process, len(a.slots))
	errs := make([]error, len(a.slots))
	var starting sync.WaitGroup
	for i, s := range a.slots {
		starting.Go(func() { started[i], errs[i] = s.start(ctx) })
	}
	starting.Wait()
	if err := errors.Join(errs...); err != nil {
		a.quit()
		stopAll(started)
		return nil, err
	}
	for i, s := range a.slots {
		s.bringUp(started[i])
		a.running.Go(func() { s.supervise(started[i]) })
	}
	return a, nil
}

// stopAll ends the processes that were started beside one that could not be.
func stopAll(started []*process) {
	for _, p := range started {
		if p != nil {
			p.destroy()
		}
	}
}

// Describe starts a process for its manifest alone and ends it.
func Describe(ctx context.Context, o Options) (*agentpb.DescribeResponse, error) {
	var manifest *agentpb.DescribeResponse
	err := briefly(ctx, o, func(ctx context.Context, p *process) error {
		err := p.describe(ctx)
		manifest = p.manifest
		return err
	})
	return manifest, err
}

// Validate starts a process to check a configuration, the config block as JSON, and ends it. What is wrong with
// the configuration is in the diagnostics; an error means that it could not be checked.
func Validate(ctx context.Context, o Options, configJSON []byte) ([]*agentpb.Diagnostic, error) {
	var diagnostics []*agentpb.Diagnostic
	err := briefly(ctx, o, func(ctx context.Context, p *process) error {
		return p.step(ctx, "validating", func(ctx context.Context) error {
			response, err := p.rpc.Validate(ctx, &agentpb.ValidateRequest{Config: configJSON, Host: o.Host})
			diagnostics = response.GetDiagnostics()
			return err
		})
	})
	return diagnostics, err
}

// briefly starts a process, has f use it and ends it. Nothing is in flight, so it need not be asked twice. A process that
// somebody else has killed says nothing about the agent: another one is tried, once.
func briefly(ctx context.Context, o Options, f func(context.Context, *process) error) error {
	o = o.withDefaults()
	o.Beside = true
	killed, err := once(ctx, o, f)
	if killed && err != nil && ctx.Err() == nil {
		o.Logger.Warn("a process that was only to be asked was killed, another one is tried", "agent", o.Spec.Name, "error", err)
		_, err = once(ctx, o, f)
	}
	return err
}

// once is briefly for one process. killed tells that a SIGKILL ended it which was not the host's.
func once(ctx context.Context, o Options, f func(context.Context, *process) error) (killed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, o.Spec.StartTimeout)
	defer cancel()
	p, err := newProcess(ctx, o, 1)
	if err == nil {
		defer p.destroy()
		err = f(ctx, p)
	}
	return p != nil && p.killedFromOutside(), err
}

// Ready reports whether an instance is up.
func (a *Agent) Ready() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.slots {
		if st := s.stream(); st != nil && st.up {
			return true
		}
	}
	return false
}

// Restart replaces the process of one instance after another. Each new process is up before the old one gets no
// more events; what the old one has in flight it may finish. An instance whose new process does not start keeps
// its old one, and the rest are left alone.
func (a *Agent) Restart(ctx context.Context) error {
	for _, s := range a.slots {
		o := order{ctx: ctx, done: make(chan error, 1)}
		select {
		case s.orders <- o:
		case <-ctx.Done():
			return ctx.Err()
		case <-a.life.Done():
			return fmt.Errorf("agent %s is closed", a.Name())
		}
		if err := <-o.done; err != nil {
			return err
		}
	}
	return nil
}

// Revive has instances without a process started now that wait for their time, and those that have failed. It does
// not wait for them.
func (a *Agent) Revive() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.slots {
		if s.state == Waiting || s.state == Failed {
			select {
			case s.revive <- struct{}{}:
			default: // it is told already
			}
		}
	}
}

// retire waits for a process that gets no more events to finish those it has, and stops it. One that leaves pings
// unanswered meanwhile is ended at once: what it has in flight is for others.
func (a *Agent) retire(ctx context.Context, p *process) {
	if !a.awaitDrained(ctx, p) {
		p.destroy()
		<-p.stream.broken
		a.bury(p.stream, Hung, fmt.Sprintf("%d pings were not answered while it drained", missedProbes))
		return
	}
	p.stop(ctx)
	<-p.stream.broken
	a.bury(p.stream, Died, "stopped before it answered")
}

// awaitDrained waits until a stream carries nothing any more, not longer than closeGrace. It reports false for one that
// gives no sign of life.
func (a *Agent) awaitDrained(ctx context.Context, p *process) bool {
	grace, cancel := context.WithTimeout(ctx, closeGrace)
	defer cancel()
	ticker := time.NewTicker(a.o.HangAfter / probesPerHang)
	defer ticker.Stop()
	for {
		select {
		case <-p.stream.drained:
			return true
		case <-p.stream.broken:
			return true
		case <-grace.Done():
			return true
		case <-ticker.C:
			if a.silence(p.stream) >= missedProbes*a.o.HangAfter/probesPerHang {
				return false
			}
			a.ping(p.stream)
		}
	}
}

// Close gives the events in flight time to finish, until ctx ends or for 30 seconds, then ends all processes.
// Calls that wait, and new ones, fail as Down.
func (a *Agent) Close(ctx context.Context) {
	var ending sync.WaitGroup
	for _, p := range a.shut() {
		ending.Go(func() { a.retire(ctx, p) })
	}
	ending.Wait()
	a.running.Wait()
}

// shut stops taking calls and answers with the processes to end.
func (a *Agent) shut() []*process {
	a.quit()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	a.failQueued(func(*flight) bool { return true })
	var processes []*process
	for _, s := range a.slots {
		if s.process != nil {
			s.process.stream.retire()
			processes = append(processes, s.process)
		}
		s.enter(Stopped)
	}
	return processes
}

// hope reports whether an instance may take f before its deadline. Under mu.
func (a *Agent) hope(f *flight) bool {
	if a.closed {
		return false
	}
	deadline := time.Now().Add(f.left())
	for _, s := range a.slots {
		if s.mayRise(deadline) {
			return true
		}
	}
	return false
}

// patience is how long starts may fail, one after the other, before no event waits for the next one.
const patience = 5 * time.Second

// mayRise reports whether the slot may have a process that takes events before a time. Under Agent.mu.
func (s *slot) mayRise(by time.Time) bool {
	hopeless := s.unborn > 0 && time.Since(s.barren) > patience
	switch s.state {
	case Waiting:
		return !hopeless && s.next.Before(by)
	case Starting:
		return !hopeless
	case Failed:
		return false
	}
	return true
}

// despair fails what waits for an instance that will not come in time.
func (a *Agent) despair() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failQueued(func(f *flight) bool { return !a.hope(f) })
}

// failQueued fails the queued flights that choose selects. Under mu.
func (a *Agent) failQueued(choose func(*flight) bool) {
	for _, queue := range []*[]*flight{&a.queue, &a.suspects} {
		var kept []*flight
		for _, f := range *queue {
			if choose(f) {
				a.end(f, a.waitedInVain(f, ""))
			} else {
				kept = append(kept, f)
			}
		}
		*queue = kept
	}
}

// lastExit says how a process ended last. Under mu.
func (a *Agent) lastExit() string {
	detail, at := "", time.Time{}
	for _, s := range a.slots {
		if s.lastExit != "" && !s.since.Before(at) {
			detail, at = s.lastExit, s.since
		}
	}
	return detail
}
