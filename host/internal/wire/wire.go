// Package wire is one SMTP connection as go-smtp sees it: a net.Conn that owns the socket, TLS, framing and
// timing, and shows go-smtp one command at a time.
//
// A Read in command state answers with exactly one line, and go-smtp asks for the next one only when it has
// answered the last, so the wire always knows which command a reply belongs to. go-smtp stays the judge of grammar
// and sequence. What it does not see or gets wrong is done here: the octets of a command, STARTTLS (RFC 3207),
// the body after 354, BDAT (RFC 3030), the secrets after 334, the text of replies, timeouts. What needs an opinion is
// asked of the Judge, which is the session.
//
// Rules: a positive reply is never turned into a refusal on its way out; every refusal passes Judge.Refuse, whoever
// wrote it; replies are flushed before the network is read and before anything that may take long; after an end
// of data that other servers could read otherwise, command state is never entered again.
package wire

import (
	"crypto/tls"
	"errors"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/address"
)

// Limits of the wire.
const (
	maxCommand  = 2048  // octets of a command with its CRLF: 512 of RFC 5321 and the additions of the extensions offered
	maxSecret   = 12288 // octets of a line of an authentication exchange, RFC 4954 section 4
	maxOverlong = 1 << 20
	patience    = 50 * time.Millisecond // replies wait no longer than this for company
)

// Judge decides what the wire cannot. It is called in the goroutine of the connection, or in one that this
// goroutine waits for.
type Judge interface {
	// Command is asked about each command before go-smtp sees it. pass hands the command on, and the answer is what
	// to say if go-smtp agrees (its zero value: what go-smtp says). Otherwise the answer is said at once.
	Command(c *Command) (a Answer, pass bool)
	// Secured is told that the connection is encrypted from now on.
	Secured(state tls.ConnectionState)
	// NotSecured is told that the handshake after STARTTLS has failed. The connection is over.
	NotSecured(err error)
	// Chunk takes octets of a BDAT chunk.
	Chunk(p []byte)
	// EndOfChunk answers a chunk of size octets, the last one excepted. A refusal ends the transaction.
	EndOfChunk(size int64) Answer
	// Refuse is asked about each refusal before it is written, by whomever it was decided, and may complete it.
	Refuse(c *Command, a *Answer)
	// Busy reports whether a transaction has begun, which a shutdown lets finish.
	Busy() bool
	// Ended is told, once, that the connection is over and why.
	Ended(reason string)
}

// Reasons given to Judge.Ended.
const (
	EndQuit     = "quit"
	EndTimeout  = "timeout"
	EndGone     = "client-gone"
	EndErrors   = "too-many-errors"
	EndDropped  = "dropped"
	EndShutdown = "shutdown"
	EndProtocol = "protocol"
)

// Command is one command of the client.
type Command struct {
	Verb  string // upper case; "" when the line is none
	Arg   string // what follows, without white space around it
	Line  string // as received, without its line end
	Fault string // why the line is no command; "" for a good one
	Chunk *Chunk // of BDAT

	// Of MAIL and RCPT, from the line itself: go-smtp loses quotes and lets almost any octet pass in a domain.
	Path    address.Mailbox
	PathErr error
	params  string // behind the path
}

// Chunk is the argument of BDAT (RFC 3030 section 2).
type Chunk struct {
	Size int64
	Last bool
}

// Answer to a command.
type Answer struct {
	Reply  envelope.Reply
	Lines  []string      // of EHLO: all lines of a positive reply after the first
	Tarpit time.Duration // wait before it
	Close  bool          // the connection ends after it
	End    string        // with Close: the reason; "" is EndDropped
}

// Options of a Conn.
type Options struct {
	TLS        *tls.Config   // for STARTTLS; nil: not offered
	Inactivity time.Duration // longest wait for the client
	Timeout    time.Duration // of the whole connection; it stands still while a body moves
	MaxDrain   int64         // octets of a message read in vain before the connection is given up
	Logger     hclog.Logger
	Released   func() // called once, after Judge.Ended
}

// Conn is the connection. Its net.Conn methods are for go-smtp, Interrupt and Abort for everyone; all others belong
// to the goroutine of the connection.
type Conn struct {
	opt    Options
	judge  Judge
	socket net.Conn        // TCP
	raw    syscall.RawConn // of socket; nil when it has none
	conn   net.Conn        // socket, or TLS over it
	secure *tls.ConnectionState
	in     input
	until  time.Time // deadline of the whole connection

	cmd      Command
	fed      []fed // lines for go-smtp that the client did not send
	protocol func(event byte, data string)

	pending []byte // rest of the line go-smtp is reading
	line    []byte // its memory
	answer  Answer // for when go-smtp agrees
	swallow bool   // the next reply of go-smtp is to a line the client did not send
	secret  bool   // the next line answers a 334
	body    Body

	mu   sync.Mutex // guards out: replies may be flushed by a timer
	out  []byte
	fail error

	down   atomic.Bool // no more is read
	hurry  atomic.Bool // shutting down
	reason string
	once   sync.Once
}

var _ net.Conn = (*Conn)(nil)

// fed is a line for go-smtp that the client did not send.
type fed struct {
	line    string
	swallow bool // keep go-smtp's reply from the client
}

// New makes a wire of conn, which may be a socket or TLS over one; socket is what conn reads from in the end. SetJudge
// must follow before anything else.
func New(conn, socket net.Conn, opt Options) *Conn {
	c := &Conn{opt: opt, conn: conn, socket: socket, until: time.Now().Add(opt.Timeout)}
	if sc, ok := socket.(syscall.Conn); ok {
		c.raw, _ = sc.SyscallConn()
	}
	if conn == socket {
		c.in.raw = c.raw
	}
	if t, ok := conn.(*tls.Conn); ok {
		state := t.ConnectionState()
		c.secure = &state
	}
	return c
}

// SetJudge names the session. It must be called once before the connection is used.
func (c *Conn) SetJudge(j Judge) { c.judge = j }

// Judge is the session.
func (c *Conn) Judge() Judge { return c.judge }

// TLS is the state of an encrypted connection, nil for a plain one.
func (c *Conn) TLS() *tls.ConnectionState { return c.secure }

// OffersTLS reports whether STARTTLS is possible now.
func (c *Conn) OffersTLS() bool { return c.opt.TLS != nil && c.secure == nil }

// SetAnswer says what is written when go-smtp agrees or disagrees with the command at hand as the answer does.
func (c *Conn) SetAnswer(a Answer) { c.answer = a }

// Feed hands a line to go-smtp, before the next one of the client, and keeps the reply from the client.
func (c *Conn) Feed(line string) { c.fed = append(c.fed, fed{line: line, swallow: true}) }

// Interrupt wakes an idle connection, which then ends with 421; one in a transaction may finish that. For a shutdown.
func (c *Conn) Interrupt() {
	c.hurry.Store(true)
	_ = c.socket.SetReadDeadline(time.Now())
}

// Abort closes the socket under the connection.
func (c *Conn) Abort() {
	c.down.Store(true)
	_ = c.socket.Close()
}

// Close ends the connection; go-smtp calls it at the end of each.
func (c *Conn) Close() error {
	c.once.Do(c.close)
	return nil
}

func (c *Conn) close() {
	_ = c.Flush()
	c.down.Store(true)
	_ = c.conn.Close()
	c.in.release()
	if c.reason == "" {
		c.reason = EndDropped
	}
	c.log('-', c.reason)
	if c.opt.Released != nil {
		defer c.opt.Released()
	}
	if c.judge == nil {
		return
	}
	defer c.survive()
	c.judge.Ended(c.reason)
}

// end notes why the connection is over and stops reading. The first reason counts.
func (c *Conn) end(reason string) {
	if c.reason == "" {
		c.reason = reason
	}
	c.down.Store(true)
}

// survive keeps a panic of the session from ending the process.
func (c *Conn) survive() {
	if v := recover(); v != nil {
		c.opt.Logger.Error("session failed", "panic", v, "stack", string(debug.Stack()))
		c.end(EndDropped)
	}
}

// crashed answers a panic of the session: it costs this connection, no other.
func (c *Conn) crashed(v any) {
	c.opt.Logger.Error("session failed", "panic", v, "stack", string(debug.Stack()))
	c.put(Answer{Reply: internalError})
	_ = c.Flush()
	c.end(EndDropped)
}

// log writes to the protocol log.
func (c *Conn) log(event byte, data string) {
	if c.protocol != nil {
		c.protocol(event, data)
	}
}

// SetLog names the protocol log; it is called with '+', '-', '<', '>' or '*' and never with a secret. nil: none.
func (c *Conn) SetLog(log func(event byte, data string)) {
	c.protocol = log
	c.log('+', "")
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.socket.LocalAddr() }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.socket.RemoteAddr() }

// SetDeadline implements net.Conn and does nothing: timing is the wire's.
func (c *Conn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn and does nothing.
func (c *Conn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn and does nothing.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }

// isTimeout reports whether err is a deadline that has passed.
func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
