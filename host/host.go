// Package host builds the parts of Postern and runs them. DESIGN.md, beside this file, tells how they belong
// together; transport.go is the path of a message right of the 250 line.
package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/cgroup"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/connector"
	"github.com/posternmail/postern/host/internal/delivery"
	"github.com/posternmail/postern/host/internal/directory"
	"github.com/posternmail/postern/host/internal/fleet"
	"github.com/posternmail/postern/host/internal/handover"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/privsep"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/host/internal/tracking"
)

// Options of a Host.
type Options struct {
	Config  *config.Config
	Path    string // of the configuration, for `postern status`
	Version string
	Logger  hclog.Logger
	Command []string            // that starts a process like this one, for Restart
	Sockets *handover.Listeners // where listening sockets come from
	Heir    *handover.Heir      // of the host that this one replaces; nil: it is the first
	Parent  *privsep.Link       // that stays root and starts agents; nil: this process does
	Groups  *cgroup.Tree        // for the agents that this process starts; nil: none

	Load     fleet.Loader    // reads the configuration again, for reloads and orders; nil: neither is possible
	Programs *fleet.Programs // digests of programs, shared with Load; nil: they are not remembered
}

// Host is a running host with all its parts.
type Host struct {
	Options
	started time.Time
	broken  chan error // what ends the host from inside

	front      handover.Front // queue, ledger and tables, whoever owns them
	tables     tables.Store   // the front's
	directory  *directory.Directory
	agents     *fleet.Fleet
	occasions  *occasions
	pipeline   *pipeline.Pipeline
	routes     atomic.Pointer[routes]                 // right of the 250 line
	shared     *common                                // left of it; changed by reloads only
	connectors atomic.Pointer[[]*connector.Connector] // nil at first: the control socket is there before them
	metrics    *admin.Metrics
	closers    closers

	// What reloads change, see reload.go.
	current atomic.Pointer[config.Config] // in force; nil: Config
	pending atomic.Pointer[[]string]      // blocks of it that wait for a restart
	readAt  atomic.Pointer[time.Time]     // when it was read; nil: at the start
	leaving sync.Mutex
	retired []*connector.Connector // that do not listen any more and have sessions

	// What only the owner of the data directory has, see own.go.
	ownership *handover.Ownership
	queue     atomic.Pointer[queue.Queue] // nil: this process is not the owner
	ledger    *tracking.File
	transport *transport
	rows      tables.Store // the front's, while this process owns them
	pickup    *handover.Pickup
	owned     closers

	restarting sync.Mutex
	out        atomic.Pointer[time.Time]     // when Drain has stopped taking connections; nil: they are taken
	drainer    *handover.Drainer             // nil: no other process owns the data directory
	behind     func() (handover.Back, error) // comes behind the front when queue, ledger and tables are closed; nil: nothing
	drained    chan struct{}                 // closed when a drainer has nothing left to do
	life       context.Context               // ends with Stop
	ending     context.CancelFunc
}

// closers end parts. They are called in the reverse order.
type closers []func(context.Context)

func (c *closers) add(f func(context.Context)) { *c = append(*c, f) }

func (c *closers) close(ctx context.Context) {
	for len(*c) > 0 {
		last := len(*c) - 1
		f := (*c)[last]
		*c = (*c)[:last]
		f(ctx)
	}
}

// Start builds the parts and starts them, from the data directory outwards: mail is taken last. The error says which
// part could not be started and why; nothing runs then.
func Start(ctx context.Context, o Options) (*Host, error) {
	h := &Host{Options: o, started: time.Now(), broken: make(chan error, 1), drained: make(chan struct{})}
	h.life, h.ending = context.WithCancel(context.Background())
	if h.Sockets == nil {
		h.Sockets = handover.NewListeners()
	}
	beBatchWork()
	collectLess()
	for _, step := range []struct {
		what  string
		build func(context.Context) error
	}{
		{"data directory", h.openDataDir},
		{"pipeline", h.openPipeline},
		{"send connectors", h.openDelivery},
		{"receive connectors", h.listenEarly},
		{"agents", h.launchAgents},
		{"taking over", h.takeOver},
		{"data directory", h.own},
		{"receive connectors", h.listen},
		{"taking over", h.tookOver},
		{"receive connectors", h.accept},
	} {
		if err := step.build(ctx); err != nil {
			h.Stop()
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return h, nil
}

// Wait blocks until ctx ends, the host cannot go on, or another one has replaced it and it has nothing left to do.
func (h *Host) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-h.drained:
		return nil
	case err := <-h.broken:
		return err
	}
}

// Stop ends the parts: no more connections, sessions end or are told to come back, deliveries under way finish, agents
// drain.
func (h *Host) Stop() {
	h.ending()
	h.restarting.Lock() // a restart under way ends first
	defer h.restarting.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), h.cfg().Host.ShutdownGrace)
	defer cancel()
	h.shutConnectors(ctx)
	if h.queue.Load() != nil {
		if err := handover.NotifyStopping(); err != nil {
			h.Logger.Warn("the service manager was not told", "error", err)
		}
		handover.StopAll(ctx, h.data(incomingName)) // drainers end with their owner
		h.pickup.Adopt()
	}
	h.disown(ctx)
	h.closers.close(ctx)
	if h.drainer != nil {
		if err := h.drainer.Close(); err != nil {
			h.Logger.Error("closing", "part", "folder of what was accepted", "error", err)
		}
		h.drainer = nil
	}
	if h.ownership != nil {
		_ = h.ownership.Close()
		h.ownership = nil
	}
	h.Sockets.Close()
}

func (h *Host) onStop(f func(context.Context)) { h.closers.add(f) }

// background runs f until the function it returns is called.
func background(f func(context.Context)) (stop func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); f(ctx) }()
	return func(context.Context) { cancel(); <-done }
}

// data is a path below the data directory.
func (h *Host) data(name string) string { return filepath.Join(h.Config.Host.DataDir, name) }

func (h *Host) openDataDir(context.Context) (err error) {
	if err := os.MkdirAll(h.Config.Host.DataDir, 0o750); err != nil {
		return err
	}
	if h.Heir != nil {
		h.ownership = h.Heir.Ownership // the lock is held by both until one of them gives it up
		return nil
	}
	h.ownership, err = handover.Own(h.Config.Host.DataDir)
	return err
}

func (h *Host) openPipeline(context.Context) error {
	h.tables = h.front.Tables()
	h.directory = directory.New(h.Config.Directories, h.tables, h.Logger.Named("directory"))
	h.metrics = admin.NewMetrics()
	h.pipeline = pipeline.New(h.asking())
	h.agents = fleet.New(fleet.Options{
		Config: h.Config, Version: h.Version, Logger: h.Logger, Parent: h.Parent, Groups: h.Groups, Programs: h.Programs, Load: h.Load,
		Metrics: h.metrics, Pipeline: h.pipeline, Asking: h.asking, InForce: h.cfg, Changed: h.setAgents, Queue: h.queue.Load,
		Strict: h.Heir != nil, // the host that would be replaced has them all, perhaps
	})
	h.occasions = newOccasions(h)
	return nil
}

func (h *Host) launchAgents(ctx context.Context) error {
	h.onStop(h.agents.Close)
	if err := h.quiesceFormer(ctx); err != nil {
		return err
	}
	return h.agents.Launch(ctx)
}

// asking is how agents are asked.
func (h *Host) asking() pipeline.Options {
	return pipeline.Options{
		Tables: h.directory.Tables(), Host: h.Config.Host, Accepted: h.Config.AcceptedDomains,
		Logger: h.Logger.Named("pipeline"), NewID: queue.NewID, Breach: func(agent, reason string) { h.agents.CountBreach(agent, reason) }, Failed: h.metrics.Failed,
	}
}

func (h *Host) openDelivery(context.Context) error {
	d, err := delivery.New(delivery.Options{Config: h.Config, Logger: h.Logger.Named("delivery")})
	if err != nil {
		return err
	}
	h.routes.Store(&routes{config: h.Config, categorizer: h.newCategorizer(h.Config), delivery: d})
	h.onStop(func(context.Context) { h.routes.Load().delivery.Close() })
	return nil
}

// counted is the ledger with the metrics listening.
func (h *Host) counted() tracking.Ledger { return h.metrics.Ledger(&h.front) }

// listen opens the addresses of the receive connectors. Nothing is taken from them yet.
func (h *Host) listen(context.Context) error {
	if h.connectors.Load() != nil {
		return nil // it was done early
	}
	shared, err := h.newCommon(h.Config)
	if err != nil {
		return err
	}
	h.shared = shared
	h.onStop(func(context.Context) { h.shared.close() })
	var list []*connector.Connector
	for _, spec := range h.Config.ReceiveConnectors {
		c, err := h.newConnector(h.Config, spec, shared, sharing{h.Sockets})
		if err != nil {
			return err
		}
		if err := c.Listen(); err != nil {
			return err
		}
		list = append(list, c)
	}
	h.connectors.Store(&list)
	return nil
}

// accept takes mail.
func (h *Host) accept(context.Context) error {
	for _, address := range h.Sockets.CloseUnused() {
		h.Logger.Warn("a socket that was handed to this process is closed, since no connector listens there", "address", address)
	}
	for _, c := range *h.connectors.Load() {
		h.take(c)
	}
	return nil
}

// receivers are the receive connectors; none before they listen.
func (h *Host) receivers() []*connector.Connector {
	if list := h.connectors.Load(); list != nil {
		return *list
	}
	return nil
}

// shutConnectors takes no more connections and ends the sessions, all connectors at once.
func (h *Host) shutConnectors(ctx context.Context) {
	var ending sync.WaitGroup
	for _, c := range slices.Concat(h.receivers(), h.left()) {
		ending.Go(func() {
			if err := c.Shutdown(ctx); err != nil {
				h.Logger.Warn("sessions were cut off at the end of the grace period", "error", err)
			}
		})
	}
	ending.Wait()
}
