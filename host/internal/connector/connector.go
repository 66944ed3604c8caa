// Package connector holds receive connectors: where the host listens, whom it lets in and how many, PROXY, implicit
// TLS, and the gate before the banner. What it lets in is a wire with a session, served by go-smtp.
package connector

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/session"
)

// Options of a Connector.
type Options struct {
	Config   config.ReceiveConnector
	Host     config.Host
	TLS      *tls.Config // nil: none. See Certificates
	Session  session.Deps
	Logger   hclog.Logger
	Sockets  Sockets             // where listening sockets come from; nil: they are opened
	Siblings func() []*Connector // all connectors, some of which may share an address with this one; nil: none
	Protocol io.Writer           // takes the protocol log; nil with Config.ProtocolLog: a file in the data directory
}

// Sockets opens listening TCP sockets, or has them from somebody else.
type Sockets interface {
	Listen(address string) (net.Listener, error)
}

// Stats of a connector since it was made.
type Stats struct {
	Name     string `json:"name"`
	Current  int    `json:"current"`  // connections now
	Total    uint64 `json:"total"`    // connections ever
	Refused  uint64 `json:"refused"`  // connections refused by limits or the gate
	Accepted uint64 `json:"accepted"` // messages
}

// Connector is one receive connector.
type Connector struct {
	o         Options
	deps      atomic.Pointer[session.Deps]
	server    *smtp.Server
	listeners []net.Listener
	gate      *gate
	limits    *limiter
	log       *ProtocolLog

	ctx    context.Context // ends when sessions must end at once
	cancel context.CancelFunc
	all    sync.WaitGroup // connections

	mu    sync.Mutex
	conns map[*incoming]struct{}
	down  bool
	left  bool          // Retire was called
	again chan struct{} // while Pause is in force; closed by Resume

	total, refused, accepted atomic.Uint64
}

// New makes a connector. The error says what in its options cannot be.
func New(o Options) (*Connector, error) {
	if o.Config.ImplicitTLS && o.TLS == nil {
		return nil, fmt.Errorf("receive connector %q: implicit_tls needs tls", o.Config.Name)
	}
	if o.Config.RequireTLS && o.TLS == nil {
		return nil, fmt.Errorf("receive connector %q: require_tls needs tls", o.Config.Name)
	}
	c := &Connector{o: o, limits: newLimiter(o.Config.Limits), conns: map[*incoming]struct{}{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.SetSession(o.Session)
	c.gate = newGate()
	if err := c.openLog(); err != nil {
		return nil, err
	}
	c.server = smtp.NewServer(session.Backend)
	c.server.Domain = o.Host.Name
	c.server.MaxLineLength = 0        // the wire bounds lines
	c.server.AllowInsecureAuth = true // the session decides where AUTH is offered
	c.server.EnableSMTPUTF8 = true
	c.server.EnableREQUIRETLS = true
	c.server.EnableDSN = true
	c.server.ErrorLog = errorLog{o.Logger}
	return c, nil
}

// SetSession replaces what sessions share: for new ones at once, for the others with their next MAIL.
func (c *Connector) SetSession(d session.Deps) {
	d.Context, d.Newest = c.ctx, c.deps.Load
	c.deps.Store(&d)
}

func (c *Connector) openLog() (err error) {
	if !c.o.Config.ProtocolLog && c.o.Protocol == nil {
		return nil
	}
	if c.o.Protocol != nil {
		c.log = newProtocolLog(c.o.Config.Name, c.o.Protocol)
		return nil
	}
	c.log, err = openProtocolLog(c.o.Host.DataDir, c.o.Config.Name)
	return err
}

// Listen opens the addresses of the connector. The error names the one that could not be opened.
func (c *Connector) Listen() error {
	for _, address := range c.o.Config.Listen {
		l, err := c.open(address)
		if err != nil {
			c.closeListeners()
			return fmt.Errorf("receive connector %q: %w", c.o.Config.Name, err)
		}
		c.listeners = append(c.listeners, l)
	}
	return nil
}

func (c *Connector) open(address string) (net.Listener, error) {
	if c.o.Sockets == nil {
		return net.Listen("tcp", address)
	}
	return c.o.Sockets.Listen(address)
}

// Config is its block.
func (c *Connector) Config() config.ReceiveConnector { return c.o.Config }

// Addrs are the addresses it listens at.
func (c *Connector) Addrs() []net.Addr {
	var addrs []net.Addr
	for _, l := range c.listeners {
		addrs = append(addrs, l.Addr())
	}
	return addrs
}

// Serve takes connections until Shutdown or Retire. It returns nil after that, and an error when a listener failed.
func (c *Connector) Serve() error {
	failed := make(chan error, len(c.listeners)+1)
	for _, l := range c.listeners {
		go func() { failed <- c.accept(l) }()
	}
	go func() { failed <- c.server.Serve(c.gate) }()
	err := <-failed
	if c.closing() || c.retired() {
		return nil
	}
	return fmt.Errorf("receive connector %q: %w", c.o.Config.Name, err)
}

// accept takes connections from one listener.
func (c *Connector) accept(l net.Listener) error {
	const pause = 50 * time.Millisecond
	for {
		conn, err := l.Accept()
		if err != nil {
			if c.closing() || errors.Is(err, net.ErrClosed) {
				return err
			}
			if again := c.paused(); again != nil {
				<-again
				continue
			}
			// Too many open files and the like: they pass.
			c.o.Logger.Error("connection not accepted", "connector", c.o.Config.Name, "error", err)
			time.Sleep(pause)
			continue
		}
		if in := c.meant(l, conn).register(conn); in != nil {
			go in.admit()
		}
	}
}

// meant is the connector that a connection is for: of those that share the address the one with the most specific range
// that holds the client, or the one for all.
func (c *Connector) meant(l net.Listener, conn net.Conn) *Connector {
	if c.o.Siblings == nil {
		return c
	}
	client := addrPort(conn.RemoteAddr()).Addr()
	best, bits := c, c.holds(client)
	for _, other := range c.o.Siblings() {
		if n := other.holds(client); n > bits && other.listensAt(l.Addr()) {
			best, bits = other, n
		}
	}
	return best
}

// holds answers with the length of the most specific range of the connector that holds an address: 0 for a connector
// without ranges, -1 when none does.
func (c *Connector) holds(client netip.Addr) int {
	bits := -1
	if len(c.o.Config.Remote) == 0 {
		bits = 0
	}
	for _, p := range c.o.Config.Remote {
		if p.Contains(client) {
			bits = max(bits, p.Bits())
		}
	}
	return bits
}

func (c *Connector) listensAt(a net.Addr) bool {
	return slices.ContainsFunc(c.listeners, func(l net.Listener) bool { return l.Addr().String() == a.String() })
}

// Pause stops taking connections until Resume. Clients that connect meanwhile wait, since the sockets stay open.
func (c *Connector) Pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.again == nil && !c.down {
		c.again = make(chan struct{})
		c.setDeadlines(time.Unix(1, 0))
	}
}

// Resume ends Pause.
func (c *Connector) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.again != nil {
		c.setDeadlines(time.Time{})
		close(c.again)
		c.again = nil
	}
}

// setDeadlines of the listeners, which wakes those who accept.
func (c *Connector) setDeadlines(t time.Time) {
	for _, l := range c.listeners {
		if tcp, ok := l.(*net.TCPListener); ok {
			_ = tcp.SetDeadline(t)
		}
	}
}

func (c *Connector) paused() chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.again
}

// Retire closes the listeners and lets sessions go on.
func (c *Connector) Retire() {
	c.mu.Lock()
	c.left = true
	c.closeListeners()
	c.mu.Unlock()
	c.Resume()
}

func (c *Connector) retired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left
}

// Empty ends the sessions as Shutdown does, and goes on to take connections: 421 to those that are idle, and what is
// left when ctx ends is cut off. It returns when there are none.
func (c *Connector) Empty(ctx context.Context) {
	c.mu.Lock()
	for in := range c.conns {
		in.interrupt()
	}
	c.mu.Unlock()
	for c.Stats().Current > 0 {
		select {
		case <-ctx.Done():
			c.mu.Lock()
			for in := range c.conns {
				in.abort()
			}
			c.mu.Unlock()
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Shutdown stops listening, ends idle sessions with 421, and lets transactions finish until ctx ends. Then what is left
// is cut off, and the error is that of ctx.
func (c *Connector) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	c.down = true
	c.closeListeners()
	if c.again != nil {
		close(c.again)
		c.again = nil
	}
	for in := range c.conns {
		in.interrupt()
	}
	c.mu.Unlock()
	err := c.wait(ctx)
	c.cancel()
	if err != nil {
		c.mu.Lock()
		for in := range c.conns {
			in.abort()
		}
		c.mu.Unlock()
		c.all.Wait()
	}
	_ = c.gate.Close()
	c.log.close()
	return err
}

func (c *Connector) wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		c.all.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for sessions of receive connector %q: %w", c.o.Config.Name, ctx.Err())
	}
}

func (c *Connector) closing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.down
}

func (c *Connector) closeListeners() {
	for _, l := range c.listeners {
		_ = l.Close()
	}
}

// Stats of the connector.
func (c *Connector) Stats() Stats {
	c.mu.Lock()
	current := len(c.conns)
	c.mu.Unlock()
	return Stats{
		Name: c.o.Config.Name, Current: current,
		Total: c.total.Load(), Refused: c.refused.Load(), Accepted: c.accepted.Load(),
	}
}

// errorLog hands go-smtp's log to the host's.
type errorLog struct{ hclog.Logger }

// Printf implements smtp.Logger.
func (l errorLog) Printf(format string, v ...any) {
	l.Error("smtp", "message", fmt.Sprintf(format, v...))
}

// Println implements smtp.Logger.
func (l errorLog) Println(v ...any) { l.Error("smtp", "message", fmt.Sprint(v...)) }
