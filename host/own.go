package host

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/handover"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/host/internal/tracking"
)

// This file is what only the owner of the data directory has and does: store, tables, ledger, schedule and control
// socket. All of it can be closed and opened again while sessions and agents go on.

// incomingName is the folder below the data directory with the folders of drainers.
const incomingName = "incoming"

// own opens what only the owner has, and starts what works with it. On an error all of it is closed.
func (h *Host) own(ctx context.Context) error {
	for _, step := range []struct {
		what string
		open func(context.Context) error
	}{
		{"queue", h.openQueue},
		{"ledger", h.openLedger},
		{"tables", h.openTables},
		{"directory", h.loadDirectory},
		{"mail of former hosts", h.adopt},
		{"metrics", h.serveMetrics},
		{"control socket", h.serveAdmin},
		{"transport", h.startTransport},
	} {
		began := time.Now()
		if err := step.open(ctx); err != nil {
			h.disown(ctx)
			return fmt.Errorf("%s: %w", step.what, err)
		}
		h.Logger.Debug("opened", "part", step.what, "took", time.Since(began).String())
	}
	return nil
}

// disown ends what own has started.
func (h *Host) disown(ctx context.Context) { h.owned.close(ctx) }

// disowning has disown end a part whose error at its end can only be said.
func (h *Host) disowning(what string, f func() error) {
	h.owned.add(func(context.Context) {
		began := time.Now()
		if err := f(); err != nil {
			h.Logger.Error("closing", "part", what, "error", err)
		}
		h.Logger.Debug("closed", "part", what, "took", time.Since(began).String())
	})
}

// lockWait is how long the store may be in use by a process that is ending.
const lockWait = 10 * time.Second

func (h *Host) openQueue(context.Context) error {
	var (
		store queue.Store
		err   error
	)
	for until := time.Now().Add(lockWait); ; time.Sleep(20 * time.Millisecond) {
		store, err = queue.OpenStore(h.data("queue"), queue.StoreOptions{
			Logger: h.Logger.Named("queue"),
			OnBroken: func(err error) {
				h.broken <- fmt.Errorf("the queue's disk fails, a restart reads what it holds: %w", err)
			},
		})
		if !errors.Is(err, queue.ErrLocked) || time.Now().After(until) {
			break
		}
	}
	if err != nil {
		return err
	}
	q, err := queue.New(store, queue.Options{Config: h.cfg().Queue, Logger: h.Logger.Named("queue")})
	if err != nil {
		return errors.Join(err, store.Close())
	}
	h.queue.Store(q)
	h.disowning("queue", func() error { h.queue.Store(nil); return q.Close() })
	return nil
}

func (h *Host) openLedger(context.Context) (err error) {
	h.ledger, err = tracking.Open(tracking.Dir(h.Config.Host.DataDir), tracking.Options{Config: h.Config.Ledger, Logger: h.Logger.Named("ledger")})
	if err != nil {
		return err
	}
	h.disowning("ledger", h.ledger.Close)
	return nil
}

// openTables opens the tables, and puts them with queue and ledger behind the front.
func (h *Host) openTables(context.Context) error {
	store, err := tables.Open(h.data("tables"), tables.Options{Logger: h.Logger.Named("tables")})
	if err != nil {
		return err
	}
	h.disowning("tables", store.Close)
	h.rows = store
	owned := handover.Owned{Queue: h.queue.Load(), Ledger: h.ledger, Rows: store}
	if err := h.front.Change(func() (handover.Back, error) { return owned, nil }); err != nil {
		return err
	}
	h.disowning("front", h.leaveFront)
	h.pickup = &handover.Pickup{Incoming: h.data(incomingName), Queue: owned.Queue, Tables: store, Ledger: h.ledger, Logger: h.Logger.Named("incoming")}
	return nil
}

// leaveFront puts something else behind the front before queue, ledger and tables are closed: nothing, at the end.
func (h *Host) leaveFront() error {
	if h.behind == nil {
		return h.front.Change(func() (handover.Back, error) { return nil, nil })
	}
	return h.front.Change(h.behind)
}

func (h *Host) loadDirectory(context.Context) error {
	if err := h.directory.Load(); err != nil {
		return err
	}
	h.owned.add(background(h.directory.Watch))
	return nil
}

// adopt takes what former hosts have accepted, before anything is delivered, and goes on doing so.
func (h *Host) adopt(context.Context) error {
	h.pickup.Adopt()
	h.owned.add(background(h.pickup.Run))
	return nil
}

func (h *Host) startTransport(context.Context) error {
	q := h.queue.Load()
	h.transport = &transport{
		routes: &h.routes, queue: q, pipeline: h.pipeline,
		ledger: h.counted(), log: h.Logger.Named("transport"), now: time.Now,
		away: h.agents.Away,
	}
	h.owned.add(h.transport.start())
	h.owned.add(background(h.transport.sweep))
	h.owned.add(background(h.occasions.run))
	for _, m := range h.agents.Members() {
		q.Wake(m.Spec.Name) // what waited for it when the host ended
	}
	go h.agents.Arrive()
	return nil
}

func (h *Host) serveMetrics(context.Context) error {
	if h.Config.Metrics.Listen == "" {
		return nil
	}
	listener, err := h.Sockets.Listen(h.Config.Metrics.Listen)
	if err != nil {
		return err
	}
	metrics := &http.Server{Handler: h.metrics.Handler(), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = metrics.Serve(listener) }()
	h.disowning("metrics", metrics.Close)
	return nil
}

// serveAdmin opens the control socket. What is asked for there goes on when the socket makes way for another process's,
// an order to restart above all.
func (h *Host) serveAdmin(context.Context) error {
	server, err := admin.Serve(admin.SocketPath(h.Config.Host.DataDir), h.adminDeps())
	if err != nil {
		return err
	}
	h.disowning("control socket", server.Retire)
	h.onStop(func(context.Context) {
		if err := server.Close(); err != nil {
			h.Logger.Error("closing", "part", "control socket", "error", err)
		}
	})
	return nil
}
