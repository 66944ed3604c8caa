package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/connector"
	"github.com/posternmail/postern/host/internal/fleet"
	"github.com/posternmail/postern/host/internal/handover"
	"github.com/posternmail/postern/host/internal/queue"
)

// This file is how one host process is replaced by another, see package handover.

// patience with each step of the new process. Agents may take their start_timeout, and a queue of millions its time.
const patience = 3 * time.Minute

// errDraining refuses what only the owner can do.
var errDraining = errors.New("another process has taken over from this one")

// errRestarting refuses what cannot be done during a restart.
var errRestarting = errors.New("a restart is under way")

// errStopping is why a restart is given up.
var errStopping = errors.New("the host ends")

// Restart replaces this process by a new one, which reads the configuration anew. Once it returns without an error the
// new process is the host, and this one is a drainer. On an error, which says why, everything is as it was.
func (h *Host) Restart(ctx context.Context) (admin.Restarted, error) {
	if !h.restarting.TryLock() {
		return admin.Restarted{}, errRestarting
	}
	defer h.restarting.Unlock()
	if h.drainer != nil {
		return admin.Restarted{}, errDraining
	}
	defer h.agents.Hold()()                                            // a reload ends first
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx)) // who has asked need not wait for the end
	defer cancel(nil)
	defer context.AfterFunc(h.life, func() { cancel(errStopping) })()
	turn := &turn{host: h, began: time.Now()}
	h.Logger.Info("restart: starting the new process", "command", h.Command)
	pid, err := handover.Hand(ctx, turn, handover.Offer{
		Start: h.successor(), Command: h.Command, Listeners: h.Sockets, Ownership: h.ownership, Exclusive: h.agents.Exclusive(), Patience: patience,
	})
	if err != nil {
		h.Logger.Error("restart failed, this process goes on", "error", err)
		if errors.Is(err, handover.ErrLost) {
			h.broken <- err
		}
		return admin.Restarted{}, err
	}
	done := admin.Restarted{PID: pid, FormerPID: os.Getpid(), Millis: time.Since(turn.began).Milliseconds(), GapMillis: time.Since(turn.ceded).Milliseconds()}
	h.Logger.Info("restart: another process is the host now, this one goes on with its sessions", "pid", pid,
		"without_owner", time.Since(turn.ceded).Round(time.Millisecond).String(), "limit", h.Config.Host.RestartGrace.String())
	_ = h.ownership.Close()
	h.ownership = nil
	go h.drainSessions(h.drainer)
	return done, nil
}

// successor starts the new process where this one has given up the rights that it needs, nil where it has not.
func (h *Host) successor() func(*os.File) (int, func(unix.Signal), func() error, error) {
	if h.Parent == nil {
		return nil
	}
	return func(channel *os.File) (pid int, signal func(unix.Signal), wait func() error, err error) {
		p, err := h.Parent.Host(channel)
		if err != nil {
			return 0, nil, nil, err
		}
		return p.PID, p.Signal, p.Wait, nil
	}
}

// turn is the owner's side of one restart.
type turn struct {
	host     *Host
	began    time.Time
	ceded    time.Time // when nobody owned the data directory from
	quiesced []*fleet.Member
	late     *time.Timer // nil: not ceded
}

// gapLimit is how long new connections are taken while nobody owns the data directory. What comes later waits for the
// owner: it would only have more to pick up before it is one.
const gapLimit = 2 * time.Second

// Quiesce implements handover.Owner. While an agent is away nothing may need it: no connections are taken, those who
// come wait, and sessions end with 421 after the message they are at.
func (t *turn) Quiesce(ctx context.Context) error {
	h, began := t.host, time.Now()
	ctx, cancel := context.WithTimeout(ctx, h.cfg().Host.ShutdownGrace)
	defer cancel()
	for _, c := range h.receivers() {
		c.Pause()
	}
	var emptying sync.WaitGroup
	for _, c := range h.talking() {
		emptying.Go(func() { c.Empty(ctx) })
	}
	emptying.Wait()
	emptied := time.Now()
	t.quiesced = h.agents.Quiesce(ctx)
	h.Logger.Info("restart: sessions and the agents that only one process can run have ended", "agents", len(t.quiesced),
		"sessions_took", emptied.Sub(began).Round(time.Millisecond).String(), "agents_took", time.Since(emptied).Round(time.Millisecond).String())
	return nil
}

// Cede implements handover.Owner. Deliveries under way end first, then what is accepted goes to a folder for the next
// owner, and then everything is closed that only one process can have open.
func (t *turn) Cede(context.Context) error {
	h := t.host
	ctx, cancel := context.WithTimeout(context.Background(), h.cfg().Host.ShutdownGrace)
	defer cancel()
	t.ceded = time.Now()
	var failed error
	h.behind = func() (handover.Back, error) {
		t.ceded = time.Now() // deliveries have ended
		d, err := handover.NewDrainer(handover.DrainerOptions{
			Incoming: h.data(incomingName), Socket: admin.SocketPath(h.Config.Host.DataDir), Tables: h.rows,
			Full: h.Config.Ledger.Full, Logger: h.Logger.Named("drainer"),
		})
		if err != nil {
			failed = err
			return nil, err
		}
		h.drainer = d
		return d, nil
	}
	h.disown(ctx)
	h.behind = nil
	t.late = time.AfterFunc(gapLimit, func() {
		for _, c := range h.receivers() {
			c.Pause()
		}
	})
	return failed
}

// Resume implements handover.Owner.
func (t *turn) Resume() error {
	h := t.host
	ctx := context.Background()
	if t.late != nil {
		t.late.Stop()
	}
	h.agents.Resume(t.quiesced)
	if !t.ceded.IsZero() {
		if err := h.own(ctx); err != nil {
			return err
		}
		if h.drainer != nil {
			err := h.drainer.Close()
			h.drainer = nil
			h.pickup.Adopt()
			if err != nil {
				h.Logger.Error("closing", "part", "folder of what was accepted", "error", err)
			}
		}
	}
	for _, c := range h.receivers() {
		c.Resume()
	}
	return nil
}

// drainSessions waits for the end of the sessions, until their time is over or the owner says so. Then the process ends,
// which tells what is left 421.
func (h *Host) drainSessions(d *handover.Drainer) {
	defer close(h.drained)
	for _, c := range h.receivers() {
		c.Retire()
	}
	limit := time.NewTimer(h.Config.Host.RestartGrace)
	defer limit.Stop()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for h.sessions() > 0 {
		select {
		case <-look.C:
			if d.Stopped() {
				h.Logger.Info("the host ends, and its sessions with it")
				return
			}
		case <-limit.C:
			h.Logger.Info("the sessions of a replaced host have had their time", "sessions", h.sessions())
			return
		}
	}
}

// Adopt implements admin.ProcessControl.
func (h *Host) Adopt() { h.pickup.Adopt() }

// AdoptRows implements admin.ProcessControl.
func (h *Host) AdoptRows() { h.pickup.AdoptRows() }

// Drain takes no more connections, until the process is replaced or started anew: clients are refused, and go to
// another exchanger. Sessions go on to their end, and what is queued is delivered.
func (h *Host) Drain(context.Context) (admin.Drained, error) {
	if !h.restarting.TryLock() {
		return admin.Drained{}, errRestarting
	}
	defer h.restarting.Unlock()
	q := h.queue.Load()
	if q == nil {
		return admin.Drained{}, errDraining
	}
	for _, c := range h.receivers() {
		c.Retire()
	}
	now := time.Now()
	if h.out.CompareAndSwap(nil, &now) {
		h.Logger.Info("no more connections are taken, as an operator wishes")
	}
	waiting := q.Entries(func(e queue.Entry) bool { return e.State == queue.Ready || e.State == queue.Waiting })
	return admin.Drained{Sessions: h.sessions(), Queued: len(waiting)}, nil
}

// degraded says what is wrong with the process as a whole.
func (h *Host) degraded() (out []string) {
	if since := h.out.Load(); since != nil {
		out = append(out, fmt.Sprintf("no connections are taken since %s (postern drain); a restart takes them again", since.Format(time.RFC3339)))
	}
	if q := h.queue.Load(); q != nil {
		if err := q.Room(); err != nil {
			out = append(out, fmt.Sprintf("no new mail is taken (452): %s: %v", h.data("queue"), err))
		}
	}
	if n := h.pickup.Unreadable(); n > 0 {
		out = append(out, fmt.Sprintf("%d unreadable files of a former host are in %s", n, h.pickup.Parked()))
	}
	return out
}

// talking are the connectors that may have sessions.
func (h *Host) talking() []*connector.Connector { return slices.Concat(h.receivers(), h.left()) }

func (h *Host) sessions() (n int) {
	for _, c := range h.talking() {
		n += c.Stats().Current
	}
	return n
}

// listenEarly opens the addresses before anything is taken from the former host, so that one that cannot be opened costs
// nothing. The first host of all opens them last: who can connect is served.
func (h *Host) listenEarly(ctx context.Context) error {
	if h.Heir == nil {
		return nil
	}
	return h.listen(ctx)
}

// quiesceFormer has the former host end the agents that only one process can run, where this one wants to run them.
func (h *Host) quiesceFormer(ctx context.Context) error {
	if h.Heir == nil || len(h.Heir.Exclusive) == 0 {
		return nil
	}
	return h.Heir.Quiesce(ctx)
}

// takeOver waits until the former host has closed what only one process can have open.
func (h *Host) takeOver(ctx context.Context) error {
	if h.Heir == nil {
		return nil
	}
	return h.Heir.Ready(ctx)
}

// tookOver tells the former host that it need not go on, and the service manager who the service is.
func (h *Host) tookOver(context.Context) error {
	if h.Heir != nil {
		if err := h.Heir.Running(); err != nil {
			return fmt.Errorf("the former host: %w", err)
		}
	}
	pid := os.Getpid()
	if h.Parent != nil {
		if err := h.Parent.Main(); err != nil {
			return err
		}
		pid = os.Getppid()
	}
	if err := handover.Notify(pid); err != nil {
		h.Logger.Warn("the service manager was not told", "error", err)
	}
	return nil
}
