// Package host builds the parts of Postern and runs them. DESIGN.md, beside this file, tells how they belong
// together; transport.go is the path of a message right of the 250 line.
package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/categorizer"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/connector"
	"github.com/posternmail/postern/host/internal/delivery"
	"github.com/posternmail/postern/host/internal/directory"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/session"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/host/internal/users"
)

// Options of a Host.
type Options struct {
	Config  *config.Config
	Path    string // of the configuration, for `postern status`
	Version string
	Logger  hclog.Logger
}

// Host is a running host with all its parts.
type Host struct {
	Options
	started time.Time
	broken  chan error // what ends the host from inside

	tables      tables.Store
	directory   *directory.Directory
	ledger      *tracking.File
	queue       *queue.Queue
	agents      *fleet
	pipeline    *pipeline.Pipeline
	delivery    *delivery.Delivery
	categorizer *categorizer.Categorizer
	transport   *transport
	connectors  atomic.Pointer[[]*connector.Connector] // nil at first: the control socket is there before them
	metrics     *admin.Metrics
	closers     []func(context.Context) // in the order of building
}

// Start builds the parts and starts them, from the store outwards: mail is taken last. The error says which part
// could not be started and why; nothing runs then.
func Start(ctx context.Context, o Options) (*Host, error) {
	h := &Host{Options: o, started: time.Now(), broken: make(chan error, 1)}
	beBatchWork()
	collectLess()
	for _, step := range []struct {
		what  string
		build func(context.Context) error
	}{
		{"data directory", h.openDataDir},
		{"queue", h.openQueue},
		{"ledger", h.openLedger},
		{"tables", h.openTables},
		{"directory", h.loadDirectory},
		{"agents", h.launchAgents},
		{"send connectors", h.openDelivery},
		{"transport", h.startTransport},
		{"control socket", h.serveAdmin},
		{"receive connectors", h.listen},
	} {
		if err := step.build(ctx); err != nil {
			h.Stop()
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return h, nil
}

// Wait blocks until ctx ends or the host cannot go on.
func (h *Host) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-h.broken:
		return err
	}
}

// Stop ends the parts in the reverse order of Start: no more connections, sessions end or are told to come back,
// deliveries under way finish, agents drain.
func (h *Host) Stop() {
	ctx, cancel := context.WithTimeout(context.Background(), h.Config.Host.ShutdownGrace)
	defer cancel()
	for i := len(h.closers) - 1; i >= 0; i-- {
		h.closers[i](ctx)
	}
	h.closers = nil
}

func (h *Host) onStop(f func(context.Context)) { h.closers = append(h.closers, f) }

// closing is onStop for a part whose error at its end can only be said.
func (h *Host) closing(what string, f func() error) {
	h.onStop(func(context.Context) {
		if err := f(); err != nil {
			h.Logger.Error("closing", "part", what, "error", err)
		}
	})
}

// background runs f until the host stops.
func (h *Host) background(f func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); f(ctx) }()
	h.onStop(func(context.Context) { cancel(); <-done })
}

// data is a path below the data directory.
func (h *Host) data(name string) string { return filepath.Join(h.Config.Host.DataDir, name) }

func (h *Host) openDataDir(context.Context) error {
	return os.MkdirAll(h.Config.Host.DataDir, 0o750)
}

func (h *Host) openQueue(context.Context) error {
	store, err := queue.OpenStore(h.data("queue"), queue.StoreOptions{
		Logger: h.Logger.Named("queue"),
		OnBroken: func(err error) {
			h.broken <- fmt.Errorf("the queue's disk fails, a restart reads what it holds: %w", err)
		},
	})
	if err != nil {
		return err
	}
	h.queue, err = queue.New(store, queue.Options{Config: h.Config.Queue, Logger: h.Logger.Named("queue")})
	if err != nil {
		return errors.Join(err, store.Close())
	}
	h.closing("queue", h.queue.Close)
	return nil
}

func (h *Host) openLedger(context.Context) (err error) {
	h.ledger, err = tracking.Open(tracking.Dir(h.Config.Host.DataDir), tracking.Options{Config: h.Config.Ledger, Logger: h.Logger.Named("ledger")})
	if err != nil {
		return err
	}
	h.closing("ledger", h.ledger.Close)
	return nil
}

func (h *Host) openTables(context.Context) error {
	store, err := tables.Open(h.data("tables"), tables.Options{Logger: h.Logger.Named("tables")})
	if err != nil {
		return err
	}
	h.tables = store
	h.closing("tables", store.Close)
	return nil
}

func (h *Host) loadDirectory(context.Context) error {
	h.directory = directory.New(h.Config.Directories, h.tables, h.Logger.Named("directory"))
	if err := h.directory.Load(); err != nil {
		return err
	}
	h.background(h.directory.Watch)
	return nil
}

func (h *Host) launchAgents(ctx context.Context) error {
	h.metrics = admin.NewMetrics()
	h.agents = newFleet(h)
	h.pipeline = pipeline.New(h.pipelineOptions())
	h.onStop(h.agents.close)
	members, err := h.agents.launch(ctx)
	if err != nil {
		return err
	}
	plan, err := pipeline.NewPlan(members)
	if err != nil {
		return err
	}
	h.pipeline.SetPlan(plan)
	for _, m := range members {
		h.queue.Wake(m.Caller.Name()) // what waited for it when the host ended
	}
	h.background(h.agents.runSchedules)
	return nil
}

func (h *Host) pipelineOptions() pipeline.Options {
	return pipeline.Options{
		Tables: h.directory.Tables(), Host: h.Config.Host, Accepted: h.Config.AcceptedDomains,
		Logger: h.Logger.Named("pipeline"), NewID: queue.NewID, Breach: h.agents.countBreach, Failed: h.metrics.Failed,
	}
}

func (h *Host) openDelivery(context.Context) (err error) {
	h.delivery, err = delivery.New(delivery.Options{Config: h.Config, Logger: h.Logger.Named("delivery")})
	if err != nil {
		return err
	}
	h.onStop(func(context.Context) { h.delivery.Close() })
	return nil
}

func (h *Host) startTransport(context.Context) error {
	h.categorizer = categorizer.New(categorizer.Options{
		Pipeline: h.pipeline, Config: h.Config, Tables: h.directory.Tables(), Ledger: h.counted(), Logger: h.Logger.Named("categorizer"),
	})
	h.transport = &transport{
		config: h.Config, queue: h.queue, delivery: h.delivery, pipeline: h.pipeline,
		ledger: h.counted(), log: h.Logger.Named("transport"), now: time.Now, categorizer: h.categorizer,
		away: h.agents.away,
	}
	h.onStop(h.transport.start())
	h.background(h.transport.sweep)
	return nil
}

// counted is the ledger with the metrics listening.
func (h *Host) counted() tracking.Ledger { return h.metrics.Ledger(h.ledger) }

func (h *Host) serveAdmin(context.Context) error {
	server, err := admin.Serve(admin.SocketPath(h.Config.Host.DataDir), h.adminDeps())
	if err != nil {
		return err
	}
	h.closing("control socket", server.Close)
	if h.Config.Metrics.Listen == "" {
		return nil
	}
	listener, err := net.Listen("tcp", h.Config.Metrics.Listen)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	metrics := &http.Server{Handler: h.metrics.Handler(), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = metrics.Serve(listener) }()
	h.closing("metrics", metrics.Close)
	return nil
}

func (h *Host) listen(context.Context) error {
	certificates, err := connector.LoadCertificates(h.Config, h.Logger.Named("tls"))
	if err != nil {
		return err
	}
	h.background(certificates.Watch)
	authenticate, err := h.authenticator()
	if err != nil {
		return err
	}
	deps := session.Deps{
		Pipeline: h.pipeline, Store: h.queue, Ledger: h.counted(), Config: h.Config,
		Authenticate: authenticate, Logger: h.Logger.Named("smtp"),
	}
	var list []*connector.Connector
	for i := range h.Config.ReceiveConnectors {
		spec := h.Config.ReceiveConnectors[i]
		c, err := connector.New(connector.Options{
			Config: spec, Host: h.Config.Host, TLS: certificates.Config(spec.TLS), Session: deps, Logger: h.Logger.Named("smtp"),
		})
		if err != nil {
			return err
		}
		if err := c.Listen(); err != nil {
			return err
		}
		list = append(list, c)
	}
	h.connectors.Store(&list)
	for _, c := range list {
		go func() {
			if err := c.Serve(); err != nil {
				h.broken <- fmt.Errorf("receive connector: %w", err)
			}
		}()
	}
	h.onStop(func(ctx context.Context) {
		for _, c := range list {
			if err := c.Shutdown(ctx); err != nil {
				h.Logger.Warn("sessions were cut off at the end of the grace period", "error", err)
			}
		}
	})
	return nil
}

// authenticator answers for AUTH; nil where nobody may authenticate.
func (h *Host) authenticator() (func(user, password string) (bool, error), error) {
	if h.Config.Users.File == "" {
		return nil, nil
	}
	file, err := users.Open(h.Config.Users.File, h.Logger.Named("users"))
	if err != nil {
		return nil, err
	}
	h.background(file.Watch)
	return file.Authenticate, nil
}
