package sdk

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/sdk/agentpb"
)

// service answers the calls of the host.
type service struct {
	agentpb.UnimplementedAgentServiceServer
	def    *definition
	logger hclog.Logger
	bodies *bodySource
	work   *workers

	configuring sync.Mutex
	current     atomic.Pointer[generation]

	mu      sync.Mutex
	streams map[*eventStream]bool // those open
}

func newService(def *definition, logger hclog.Logger, side *sideSocket) *service {
	return &service{def: def, logger: logger, bodies: &bodySource{side, newChunkedBodies()}, work: newWorkers(maxHandlers),
		streams: map[*eventStream]bool{}}
}

func (s *service) Describe(context.Context, *agentpb.DescribeRequest) (*agentpb.DescribeResponse, error) {
	return s.def.manifest()
}

// Validate builds an agent and throws it away.
func (s *service) Validate(_ context.Context, req *agentpb.ValidateRequest) (*agentpb.ValidateResponse, error) {
	r := newRegistrar(s.def, req.GetHost(), os.Getenv(instanceVariable), os.Getenv(stateDirVariable), s.logger)
	r.validating = true
	g := s.build(req.GetConfig(), r)
	if g == nil {
		return &agentpb.ValidateResponse{Diagnostics: r.diagnostics}, nil
	}
	defer g.close()
	return &agentpb.ValidateResponse{Diagnostics: r.diagnostics, Subscriptions: g.subscriptions}, nil
}

// Configure replaces the agent that answers events. The old one answers what it has begun.
func (s *service) Configure(_ context.Context, req *agentpb.ConfigureRequest) (*agentpb.ConfigureResponse, error) {
	s.configuring.Lock()
	defer s.configuring.Unlock()
	r := newRegistrar(s.def, req.GetHost(), req.GetInstanceName(), req.GetStateDir(), s.logger)
	g := s.build(req.GetConfig(), r)
	if g == nil {
		return &agentpb.ConfigureResponse{Diagnostics: r.diagnostics}, nil
	}
	if old := s.current.Swap(g); old != nil {
		old.health.follow(func() {})
		old.retire()
	}
	g.health.follow(s.tellHealth)
	s.tellHealth() // what the old configuration missed may be no matter now
	s.logger.Debug("configured", "generation", req.GetGeneration())
	return &agentpb.ConfigureResponse{Diagnostics: r.diagnostics, Subscriptions: g.subscriptions}, nil
}

// build answers with nil if there is an error among the findings of r.
func (s *service) build(config []byte, r *Registrar) (g *generation) {
	defer func() {
		if cause := recover(); cause != nil {
			r.fail(fmt.Errorf("the agent panicked in New: %v", cause))
			s.logger.Error("New panicked", "cause", cause, "stack", stack())
			g = nil
		}
	}()
	agent := s.def.typed.build(config, r)
	if r.failed() {
		closeAgent(agent, s.logger)
		return nil
	}
	g = newGeneration(agent, r)
	if r.failed() {
		g.close()
		return nil
	}
	return g
}

// tellHealth has every stream tell the host what is missing now.
func (s *service) tellHealth() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for es := range s.streams {
		es.tellHealth()
	}
}

// open and over keep count of the streams.
func (s *service) open(es *eventStream) {
	s.mu.Lock()
	s.streams[es] = true
	s.mu.Unlock()
	es.tellHealth()
}

func (s *service) over(es *eventStream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, es)
}

// Drain is answered when nothing is in flight.
func (s *service) Drain(ctx context.Context, _ *agentpb.DrainRequest) (*agentpb.DrainResponse, error) {
	if err := s.work.idle(ctx); err != nil {
		return nil, err
	}
	return &agentpb.DrainResponse{}, nil
}

// generation is the agent of one configuration.
type generation struct {
	agent         any
	instance      string
	handlers      handlers
	subscriptions []*agentpb.Subscription
	logger        hclog.Logger
	health        *Health

	mu      sync.Mutex
	events  int // being handled
	retired bool
}

func newGeneration(agent any, r *Registrar) *generation {
	g := &generation{agent: agent, instance: r.instance, handlers: findHandlers(agent), logger: r.logger, health: r.health}
	g.subscriptions = r.subscriptions(agent, &g.handlers)
	return g
}

// acquire answers false if g was retired and closed meanwhile.
func (g *generation) acquire() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.retired {
		return false
	}
	g.events++
	return true
}

func (g *generation) release() {
	g.mu.Lock()
	g.events--
	last := g.retired && g.events == 0
	g.mu.Unlock()
	if last {
		g.close()
	}
}

func (g *generation) retire() {
	g.mu.Lock()
	g.retired = true
	idle := g.events == 0
	g.mu.Unlock()
	if idle {
		g.close()
	}
}

func (g *generation) close() { closeAgent(g.agent, g.logger) }

// closeAgent calls Close of an agent that has it.
func closeAgent(agent any, logger hclog.Logger) {
	c, ok := agent.(io.Closer)
	if !ok || isNil(agent) {
		return
	}
	if err := c.Close(); err != nil {
		logger.Warn("cannot close the old configuration", "error", err)
	}
}

// pin answers with the generation in force, kept until its release. Nil: not configured.
func (s *service) pin() *generation {
	for {
		g := s.current.Load()
		if g == nil || g.acquire() {
			return g
		}
	}
}
