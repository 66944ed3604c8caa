package connector

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/session"
	"github.com/posternmail/postern/host/internal/wire"
)

// Refusals at the gate, with the texts of Exchange.
var (
	tooMany  = envelope.Reply{Code: 421, Enhanced: "4.3.2", Text: "The maximum number of concurrent connections has exceeded a limit, closing transmission channel"}
	notForUs = envelope.Reply{Code: 554, Enhanced: "5.7.1", Text: "Client address is not permitted here"}
)

// proxyWait is how long a proxy may take for its header.
const proxyWait = 10 * time.Second

// gate hands connections that were let in to go-smtp: it is the listener that go-smtp serves.
type gate struct {
	in   chan net.Conn
	done chan struct{}
	once sync.Once
}

func newGate() *gate { return &gate{in: make(chan net.Conn), done: make(chan struct{})} }

// Accept implements net.Listener.
func (g *gate) Accept() (net.Conn, error) {
	select {
	case c := <-g.in:
		return c, nil
	case <-g.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (g *gate) Close() error {
	g.once.Do(func() { close(g.done) })
	return nil
}

// Addr implements net.Listener.
func (g *gate) Addr() net.Addr { return &net.TCPAddr{} }

// admit lets a connection in or not, in a goroutine of its own: PROXY, TLS and agents may take their time.
func (in *incoming) admit() {
	c := in.c
	c.total.Add(1)
	defer func() {
		if v := recover(); v != nil {
			c.o.Logger.Error("connection failed", "panic", v, "stack", string(debug.Stack()))
			in.drop()
		}
	}()
	if err := in.open(); err != nil {
		c.refused.Add(1)
		c.o.Logger.Info("connection dropped", "connector", c.o.Config.Name, "client", in.client, "peer", in.peer, "error", err)
		in.drop()
		return
	}
	if !in.greet() {
		return
	}
	select {
	case c.gate.in <- in.wire:
	case <-c.gate.done:
		_ = in.wire.Close()
	}
}

// incoming is a connection on its way in.
type incoming struct {
	c      *Connector
	socket net.Conn
	conn   net.Conn // socket, or what is above it
	client netip.AddrPort
	peer   netip.AddrPort
	local  netip.AddrPort
	wire   *wire.Conn // nil before there is one; set under the connector's lock
	slot   *slot      // counted by the limits; nil: over a limit
	once   sync.Once
}

// open reads a PROXY header and does the handshake of implicit TLS.
func (in *incoming) open() error {
	in.peer, in.local = addrPort(in.socket.RemoteAddr()), addrPort(in.socket.LocalAddr())
	in.client = in.peer
	if contains(in.c.o.Config.ProxyFrom, in.peer.Addr()) {
		if err := in.readProxy(); err != nil {
			return err
		}
	}
	in.slot = in.c.limits.take(in.client.Addr())
	if !in.c.o.Config.ImplicitTLS {
		return nil
	}
	if in.slot == nil {
		return errors.New(tooMany.Text)
	}
	t := tls.Server(in.conn, in.c.o.TLS)
	if err := wire.Handshake(t, time.Now().Add(in.c.o.Config.Limits.InactivityTimeout)); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	in.conn = t
	return nil
}

// readProxy reads the header of PROXY v1 or v2, which must come from a source that is listed.
func (in *incoming) readProxy() error {
	_ = in.socket.SetReadDeadline(time.Now().Add(proxyWait))
	r := bufio.NewReaderSize(in.socket, 4096)
	header, err := proxyproto.Read(r)
	if err != nil {
		return fmt.Errorf("PROXY header: %w", err)
	}
	if source, destination, ok := header.TCPAddrs(); ok && !header.Command.IsLocal() {
		in.client, in.local = source.AddrPort(), destination.AddrPort()
	}
	if n := r.Buffered(); n > 0 {
		rest := make([]byte, n)
		_, _ = r.Read(rest)
		in.conn = &replayed{Conn: in.socket, rest: rest}
	}
	return nil
}

// greet makes the wire and the session and raises OnConnect. False: the client was turned away and is gone.
func (in *incoming) greet() bool {
	c := in.c
	w := wire.New(in.conn, in.socket, wire.Options{
		TLS: c.startTLS(), Inactivity: c.o.Config.Limits.InactivityTimeout, Timeout: c.o.Config.Limits.Timeout,
		MaxDrain: maxDrain(c.o.Config.Limits.MaxMessageSize), Logger: c.o.Logger, Released: in.over,
	})
	s := session.New(c.deps.Load(), w, session.Start{
		Connector: &c.o.Config, Client: in.client, Peer: in.peer, Local: in.local,
		Admit: func() bool { return c.limits.admit(in.client.Addr()) }, Accepted: func() { c.accepted.Add(1) },
	})
	w.SetLog(c.log.session(s.ID(), in.local, in.client))
	in.begin(w)
	a, refused := in.judge(s)
	if refused {
		c.refused.Add(1)
		s.TurnAway(a)
	}
	return !refused
}

// judge lets the client in or not: limits and addresses first, then the agents.
func (in *incoming) judge(s *session.Session) (a wire.Answer, refused bool) {
	remote := in.c.o.Config.Remote
	switch {
	case in.slot == nil:
		return wire.Answer{Reply: tooMany, Close: true}, true
	case len(remote) > 0 && !contains(remote, in.client.Addr()):
		return wire.Answer{Reply: notForUs}, true
	}
	return s.Connect()
}

// startTLS is the configuration for STARTTLS; nil where the connection is encrypted from its start.
func (c *Connector) startTLS() *tls.Config {
	if c.o.Config.ImplicitTLS {
		return nil
	}
	return c.o.TLS
}

// maxDrain is how much of a message is read in vain before the connection is given up.
func maxDrain(maxMessage int64) int64 {
	if maxMessage <= 0 || maxMessage > math.MaxInt64/4 {
		return math.MaxInt64
	}
	return 2*maxMessage + 1<<20
}

// register makes a connection known to Shutdown. nil: that has begun, and the connection is closed. One that was accepted
// when Pause came waits, as those do that come later: Empty has not seen it.
func (c *Connector) register(conn net.Conn) *incoming {
	in := &incoming{c: c, socket: conn, conn: conn}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.again != nil {
		again := c.again
		c.mu.Unlock()
		<-again
		c.mu.Lock()
	}
	if c.down {
		_ = conn.Close()
		return nil
	}
	c.all.Add(1)
	c.conns[in] = struct{}{}
	return in
}

// begin makes the wire known to Shutdown, which may have begun meanwhile.
func (in *incoming) begin(w *wire.Conn) {
	in.c.mu.Lock()
	defer in.c.mu.Unlock()
	in.wire = w
	if in.c.down {
		w.Interrupt()
	}
}

// interrupt asks the connection to end; one that has not begun has nothing to finish. The connector is locked.
func (in *incoming) interrupt() {
	if in.wire != nil {
		in.wire.Interrupt()
		return
	}
	_ = in.socket.Close()
}

// abort cuts the connection off. The connector is locked.
func (in *incoming) abort() {
	if in.wire != nil {
		in.wire.Abort()
		return
	}
	_ = in.socket.Close()
}

// drop ends a connection that has no wire yet, or whose gate failed.
func (in *incoming) drop() {
	if in.wire != nil {
		_ = in.wire.Close()
	} else {
		_ = in.socket.Close()
	}
	in.over()
}

// over gives back what the connection held.
func (in *incoming) over() {
	in.once.Do(func() {
		in.c.mu.Lock()
		delete(in.c.conns, in)
		in.c.mu.Unlock()
		in.c.limits.leave(in.slot)
		in.c.all.Done()
	})
}

// replayed is a connection of which some octets were read already.
type replayed struct {
	net.Conn
	rest []byte
}

// Buffered is how many octets were read and not given out.
func (r *replayed) Buffered() int { return len(r.rest) }

// Read implements net.Conn.
func (r *replayed) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return r.Conn.Read(p)
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap()
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
