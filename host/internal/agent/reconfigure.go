package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/sdk/agentpb"
)

// ErrNotLive is what Reconfigure answers with when the change takes a new process: the agent does not take
// configurations while it runs, or would need another plan under the new one.
var ErrNotLive = errors.New("the change takes a new process")

// taken is a configuration that the agent took while it ran.
type taken struct {
	config     []byte
	host       *agentpb.HostFacts
	generation uint64
}

// options of the next process: those of Launch with the configuration taken since.
func (a *Agent) options() Options {
	o := a.o
	if t := a.taken.Load(); t != nil {
		o.Spec.Config, o.Host = t.config, t.host
	}
	return o
}

// Reconfigure has every process take another config block and other facts of the host, in place. When one of them
// refuses, all have what they had before and the error says why; ErrNotLive where a new process would take it.
func (a *Agent) Reconfigure(ctx context.Context, config []byte, host *agentpb.HostFacts) error {
	if !a.Manifest().GetCapabilities().GetLiveConfigure() || a.o.Spec.Attach != "" {
		return ErrNotLive
	}
	before := a.options()
	old := &taken{config: before.Spec.Config, host: before.Host}
	fresh := &taken{config: config, host: host, generation: a.generation.Add(1)}
	a.taken.Store(fresh)
	err := a.tellAll(ctx, fresh)
	if err == nil {
		return nil
	}
	old.generation = a.generation.Add(1)
	a.taken.Store(old)
	if back := a.tellAll(ctx, old); back != nil {
		err = errors.Join(err, fmt.Errorf("going back to the former configuration: %w", back))
	}
	return err
}

// tellAll has one instance after the other take t. One without a process takes it with its next start.
func (a *Agent) tellAll(ctx context.Context, t *taken) error {
	for _, s := range a.slots {
		o := order{ctx: ctx, configure: t, done: make(chan error, 1)}
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

// retake has the process of the slot take a configuration, and answers with the process to watch next. One that was
// killed from outside meanwhile, or stands still, is no reason against it: the next process takes it.
func (s *slot) retake(o order, p *process) *process {
	told := make(chan error, 1)
	go func() { told <- p.reconfigure(o.ctx, o.configure) }()
	ticker := time.NewTicker(s.a.o.HangAfter / probesPerHang)
	defer ticker.Stop()
	for {
		select {
		case err := <-told:
			if err != nil && p.exitState(outputGrace) != "" && p.killedFromOutside() {
				err = nil
			}
			o.done <- err
			return p
		case <-ticker.C:
			if s.a.silence(p.stream) < missedProbes*s.a.o.HangAfter/probesPerHang {
				s.a.ping(p.stream)
				continue
			}
			s.lost(p, Hung)
			<-told
			o.done <- nil
			return nil
		}
	}
}

// reconfigure has a running process take t. It goes on under its subscriptions, so others are refused.
func (p *process) reconfigure(ctx context.Context, t *taken) error {
	ctx, cancel := context.WithTimeout(ctx, p.o.Spec.StartTimeout)
	defer cancel()
	checked, err := p.rpc.Validate(ctx, &agentpb.ValidateRequest{Config: t.config, Host: t.host})
	if err != nil {
		return fmt.Errorf("agent %s: checking the configuration with %s: %w", p.o.Spec.Name, p.label, err)
	}
	if would := checked.GetSubscriptions(); len(would) > 0 && !SameSubscriptions(p.config.GetSubscriptions(), would) {
		return ErrNotLive // before an event meets a configuration that its plan was not made for
	}
	request := &agentpb.ConfigureRequest{
		Config: t.config, Generation: t.generation, Host: t.host,
		InstanceName: p.o.Spec.Name, StateDir: p.o.StateDir, EditKinds: editKinds(),
	}
	response, err := p.rpc.Configure(ctx, request)
	if err != nil {
		return fmt.Errorf("agent %s: configuring %s: %w", p.o.Spec.Name, p.label, err)
	}
	if err := diagnosticsError(response.GetDiagnostics()); err != nil {
		return fmt.Errorf("agent %s: configuring %s: %w", p.o.Spec.Name, p.label, err)
	}
	if !SameSubscriptions(p.config.GetSubscriptions(), response.GetSubscriptions()) {
		return ErrNotLive
	}
	return nil
}

// SameSubscriptions reports whether a plan made of a serves b, too.
func SameSubscriptions(a, b []*agentpb.Subscription) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !proto.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}
