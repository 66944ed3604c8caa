// Package session is one SMTP conversation over go-smtp: for each verb check, then agents, then proceed. There is one
// file a verb. It sits between the wire, which knows octets, and the pipeline, which knows agents; what it accepts is
// committed to the store before the client reads 250.
package session

import (
	"context"
	"crypto/tls"
	"net/netip"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/host/internal/wire"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Spool keeps what was accepted. *queue.Queue implements it.
type Spool interface {
	// RoomFor tells whether a message of size octets (0: not known) can be kept; queue.ErrFull: not now. It is cheap.
	RoomFor(size int64) error
	NewBody() (queue.BodyWriter, error)
	Commit(items ...*queue.Item) error
}

// Deps are what all sessions share.
type Deps struct {
	Pipeline *pipeline.Pipeline
	Store    Spool
	Ledger   tracking.Ledger
	Config   *config.Config
	// Authenticate judges credentials. An error says that it could not. nil: nobody can authenticate.
	Authenticate func(user, password string) (bool, error)
	Logger       hclog.Logger
	// Newest is what follows these from the next MAIL on; nil: they stay.
	Newest func() *Deps
	// Context ends when sessions must end at once; nil: never.
	Context context.Context
}

// Start is what is known of a connection when its session begins.
type Start struct {
	Connector *config.ReceiveConnector
	Client    netip.AddrPort // the source, behind PROXY where that is trusted
	Peer      netip.AddrPort // the socket's other end
	Local     netip.AddrPort
	// Admit counts a message of the client and reports whether it may send one more now; nil: always.
	Admit func() bool
	// Accepted counts a message that was taken; may be nil.
	Accepted func()
}

// Session is one conversation. It implements smtp.AuthSession for go-smtp and wire.Judge for the wire, and belongs to
// the goroutine of the connection.
type Session struct {
	deps  *Deps
	start Start
	w     *wire.Conn
	env   envelope.Session
	conv  *pipeline.Conversation

	greeted    bool // since the connection began or was encrypted
	turnedAway bool // only QUIT is left
	loopback   bool

	path    address.Mailbox // of the MAIL or RCPT at hand
	pathErr error

	tx       *transaction
	count    int // transactions begun
	messages int // accepted
	events   int // raised, for their ids
	errors   int // protocol errors
	excess   int // recipients refused since a message had too many
	failures int // of authentication

	blame      *pipeline.Verdict  // who decided the refusal that is about to be written; nil: the host
	blameSteps []tracking.Verdict // of the event it was decided at
	steps      []tracking.Verdict // of events outside of transactions
}

var (
	_ smtp.AuthSession = (*Session)(nil)
	_ wire.Judge       = (*Session)(nil)
)

// New begins the session of a connection and becomes its judge.
func New(d *Deps, w *wire.Conn, start Start) *Session {
	s := &Session{deps: d, start: start, w: w}
	s.env = envelope.Session{
		ID: queue.NewID(), Connector: start.Connector.Name,
		Client: start.Client, Peer: start.Peer, Local: start.Local,
		Trust: trustOf(start.Connector, d.Config.Host, start.Client.Addr()), Started: time.Now(),
	}
	s.loopback = start.Client.Addr().Unmap().IsLoopback()
	if state := w.TLS(); state != nil {
		s.env.TLS = tlsFacts(*state)
	}
	s.conv = d.Pipeline.Open(&s.env, nil)
	w.SetJudge(s)
	return s
}

// Backend gives go-smtp the session that a connection has had since before its banner.
var Backend = smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) {
	return c.Conn().(*wire.Conn).Judge().(*Session), nil
})

// ID of the session.
func (s *Session) ID() string { return s.env.ID }

// Connect raises OnConnect. A refusal is for TurnAway.
func (s *Session) Connect() (a wire.Answer, refused bool) {
	s.env.EarlyTalk = s.w.TLS() == nil && s.w.Talks(s.bannerDelay())
	if a, refused = s.ask(agentpb.EventKind_EVENT_KIND_CONNECT, nil); !refused {
		// go-smtp writes a greeting and the wire this one in its place.
		a.Reply = envelope.Reply{Code: 220, Text: s.banner()}
		s.w.SetAnswer(a)
	}
	return a, refused
}

// TurnAway refuses the connection and returns when it is over. RFC 5321 section 3.1: after 554 only QUIT is left; other
// refusals end it at once.
func (s *Session) TurnAway(a wire.Answer) {
	a.Close = a.Close || a.Reply.Code != 554
	s.turnedAway = true
	s.w.Say(a)
	var b [512]byte
	for {
		if _, err := s.w.Read(b[:]); err != nil {
			break
		}
	}
	_ = s.w.Close()
}

func (s *Session) banner() string {
	if b := s.start.Connector.Banner; b != "" {
		return b
	}
	return s.deps.Config.Host.Name + " ESMTP Postern"
}

// Secured implements wire.Judge.
func (s *Session) Secured(state tls.ConnectionState) {
	// RFC 3207 section 4.2: nothing the client said before counts.
	s.env.TLS = tlsFacts(state)
	s.env.Helo, s.env.Extended, s.greeted = "", false, false
	s.conv.StartTLS()
}

// NotSecured implements wire.Judge.
func (s *Session) NotSecured(err error) {
	s.log().Info("TLS handshake failed", "connector", s.env.Connector, "client", s.env.Client, "error", err)
}

func tlsFacts(state tls.ConnectionState) *envelope.TLS {
	t := &envelope.TLS{
		Version: tls.VersionName(state.Version), CipherSuite: tls.CipherSuiteName(state.CipherSuite),
		ServerName: state.ServerName, ClientVerified: len(state.VerifiedChains) > 0,
	}
	if len(state.PeerCertificates) > 0 {
		t.ClientSubject = state.PeerCertificates[0].Subject.String()
	}
	return t
}

// Busy implements wire.Judge.
func (s *Session) Busy() bool { return s.tx != nil }

// Reset implements smtp.Session: the transaction is over, done or not.
func (s *Session) Reset() {
	if s.tx == nil {
		return
	}
	s.tx.abandon()
	s.tx = nil
	s.conv.EndMail()
}

// Logout implements smtp.Session. What is to be done at the end is done by Ended.
func (s *Session) Logout() error { return nil }

// Ended implements wire.Judge: OnDisconnect and the ledger's line of the session.
func (s *Session) Ended(reason string) {
	s.Reset()
	s.tell(agentpb.EventKind_EVENT_KIND_DISCONNECT, &agentpb.Arguments{Event: &agentpb.Arguments_Disconnect{
		Disconnect: &agentpb.DisconnectArguments{Reason: reason, Messages: uint32(s.messages)},
	}})
	ctx, cancel := context.WithTimeout(s.context(), 10*time.Second)
	defer cancel()
	s.conv.Close(ctx)
	r := &tracking.Record{
		Event: tracking.Session, Verdicts: s.steps,
		Counts: &tracking.Counts{
			Commands: s.env.Commands, Messages: s.messages, Rejects: s.env.Rejects,
			Millis: time.Since(s.env.Started).Milliseconds(), End: reason,
		},
	}
	r.FillSession(&s.env)
	s.deps.Ledger.Write(r)
}

func (s *Session) context() context.Context {
	if s.deps.Context != nil {
		return s.deps.Context
	}
	return context.Background()
}

// log is the logger of the session. It is made when there is something to say: most sessions have nothing.
func (s *Session) log() hclog.Logger { return s.deps.Logger.With("session", s.env.ID) }

// answer gives go-smtp the outcome of a callback, and the wire what to write for it.
func (s *Session) answer(a wire.Answer) error {
	s.w.SetAnswer(a)
	if a.Reply.Code < 400 {
		return nil
	}
	return &smtp.SMTPError{Code: a.Reply.Code, EnhancedCode: smtp.NoEnhancedCode, Message: a.Reply.Text}
}
