package delivery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"github.com/posternmail/postern/host/internal/envelope"
)

// target is one address of a next hop.
type target struct {
	network string // "tcp" or "unix"
	address string // "192.0.2.1:25" or a path
	host    string // its name, for certificates and reports; "" for an address
	domain  string // that was routed: a certificate of it, or of a host below it, is as good as the host's
	pref    uint16 // of the MX
}

// String names t as results do.
func (t target) String() string {
	if t.network == "unix" || t.host == "" {
		return t.address
	}
	ip, port, _ := net.SplitHostPort(t.address)
	return fmt.Sprintf("%s [%s]:%s", t.host, ip, port)
}

// failure ends an attempt at a target for all recipients that have no result yet.
type failure struct {
	reply     envelope.Reply
	elsewhere bool // another target may do better
	again     bool // an idle connection was dead before it answered anything, or one has had its share of messages
	plain     bool // TLS did not come about, but nobody insists on it
}

// Error implements error.
func (f *failure) Error() string { return f.reply.String() }

// next is a failure to be tried elsewhere.
func next(code int, enhanced, format string, args ...any) *failure {
	return &failure{reply: reply(code, enhanced, fmt.Sprintf(format, args...)), elsewhere: true}
}

// client is a connection to a next hop that has been greeted.
type client struct {
	*wire
	smtp     *smtp.Client
	target   target
	ext      extensions
	tls      string
	verified bool // its certificate is the host's
	sent     int  // messages
	dirty    bool // a transaction is open: RSET before the next
	timer    *time.Timer
}

// extensions that a next hop offers.
type extensions struct {
	pipelining, eightBit, utf8, dsn, requireTLS, startTLS, auth bool
	size                                                        int64 // 0: not told
	sizeParam                                                   bool
	rcptMax, mailMax                                            int // RFC 9422; 0: not told
}

// dial connects to t and goes as far as a transaction may start.
func (d *Delivery) dial(ctx context.Context, c *connector, t target, verify bool) (*client, *failure) {
	cl, fail := d.open(ctx, c, t, verify, !c.IgnoreSTARTTLS)
	if fail != nil && fail.plain {
		d.log.Info("STARTTLS failed, sending in the clear", "connector", c.Name, "remote", t.String(), "error", fail.reply.Text)
		return d.open(ctx, c, t, verify, false)
	}
	return cl, fail
}

// open makes one connection; with useTLS it is encrypted where the hop offers that.
func (d *Delivery) open(ctx context.Context, c *connector, t target, verify, useTLS bool) (*client, *failure) {
	conn, err := d.connect(ctx, c, t)
	if err != nil {
		return nil, next(451, "4.4.1", "connecting to %s: %s", t, plainError(err))
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	cl := &client{wire: newWire(conn), target: t}
	if fail := d.greet(c, cl); fail != nil {
		_ = conn.Close()
		return nil, fail
	}
	if fail := d.secure(c, cl, verify, useTLS); fail != nil {
		_ = conn.Close()
		return nil, fail
	}
	if fail := d.authenticate(c, cl); fail != nil {
		_ = conn.Close()
		return nil, fail
	}
	if verify && !cl.ext.requireTLS {
		d.pool.quit(cl)
		return nil, noRequireTLS(cl.target, "does not offer REQUIRETLS")
	}
	return cl, nil
}

// noRequireTLS: RFC 8689 section 4.2.1 wants such a message returned rather than sent with less than it asks.
func noRequireTLS(t target, why string) *failure {
	return next(550, "5.7.30", "%s %s, and the sender demands REQUIRETLS", t, why)
}

func (d *Delivery) connect(ctx context.Context, c *connector, t target) (net.Conn, error) {
	dialer := net.Dialer{Timeout: d.timeouts.Connect}
	if c.SourceIP.IsValid() && t.network == "tcp" {
		dialer.LocalAddr = &net.TCPAddr{IP: c.SourceIP.AsSlice()}
	}
	return dialer.DialContext(ctx, t.network, t.address)
}

// greet waits for the greeting and says EHLO, or HELO where that is forced or EHLO is refused.
func (d *Delivery) greet(c *connector, cl *client) *failure {
	cl.helo = c.ForceHELO
	err := d.hello(c, cl)
	var refused *smtp.SMTPError
	// RFC 5321 section 3.2: a client that gets an error for EHLO falls back to HELO. The library does so for 500
	// and 502 only.
	if errors.As(err, &refused) && refused.Code/100 == 5 && cl.hello && c.LMTP == "" && !cl.helo {
		cl.helo = true
		cl.inject = []byte("220 again\r\n")
		err = d.hello(c, cl)
	}
	if err == nil {
		cl.ext = listExtensions(cl.smtp)
		return nil
	}
	fail := helloFailure(cl.target, err)
	// RFC 7504 section 3: 521 is for good. Another 5yz greeting says that this host is out of order.
	if errors.As(err, &refused) && refused.Code != 521 && refused.Code/100 == 5 {
		fail.reply.Code, fail.reply.Enhanced = 450, "4.3.2"
	}
	return fail
}

func (d *Delivery) hello(c *connector, cl *client) error {
	if c.LMTP != "" {
		cl.smtp = smtp.NewClientLMTP(cl.wire)
	} else {
		cl.smtp = smtp.NewClient(cl.wire)
	}
	cl.smtp.CommandTimeout = d.timeouts.Command
	name := c.Fqdn
	if name == "" {
		name = d.config.Host.Name
	}
	return cl.smtp.Hello(name)
}

func helloFailure(t target, err error) *failure {
	var refused *smtp.SMTPError
	if errors.As(err, &refused) {
		text := strings.ReplaceAll(refused.Message, "\n", " ")
		fail := next(refused.Code, "", "%s said: %d %s", t, refused.Code, printable(text))
		if e := refused.EnhancedCode; e[0] == refused.Code/100 {
			fail.reply.Enhanced = fmt.Sprintf("%d.%d.%d", e[0], e[1], e[2])
		}
		return fail
	}
	return next(451, "4.4.2", "greeting of %s: %s", t, plainError(err))
}

func listExtensions(c *smtp.Client) extensions {
	has := func(name string) bool { ok, _ := c.Extension(name); return ok }
	e := extensions{
		pipelining: has("PIPELINING"),
		eightBit:   has("8BITMIME"),
		utf8:       has("SMTPUTF8"),
		dsn:        has("DSN"),
		requireTLS: has("REQUIRETLS"),
		startTLS:   has("STARTTLS"),
		auth:       has("AUTH"),
		sizeParam:  has("SIZE"),
	}
	if size, ok := c.MaxMessageSize(); ok {
		e.size = int64(size)
	}
	if _, limits := c.Extension("LIMITS"); limits != "" {
		e.rcptMax, e.mailMax = limit(limits, "RCPTMAX"), limit(limits, "MAILMAX")
	}
	return e
}

// limit reads one of "RCPTMAX=20 MAILMAX=5" (RFC 9422 section 3); 0 when it is not there.
func limit(limits, name string) int {
	for _, word := range strings.Fields(limits) {
		if key, value, ok := strings.Cut(word, "="); ok && strings.EqualFold(key, name) {
			n, err := strconv.Atoi(value)
			if err == nil && n > 0 {
				return n
			}
		}
	}
	return 0
}

// secure starts TLS where the connector or the message wants it, or the hop offers it.
func (d *Delivery) secure(c *connector, cl *client, verify, useTLS bool) *failure {
	need := c.needsTLS() || verify
	switch {
	case verify && !cl.ext.startTLS:
		return noRequireTLS(cl.target, "does not offer STARTTLS")
	case need && !cl.ext.startTLS:
		return next(451, "4.7.4", "%s does not offer STARTTLS, which is required", cl.target)
	case !cl.ext.startTLS || !useTLS && !need:
		return nil
	}
	_ = cl.SetDeadline(time.Now().Add(d.timeouts.Command))
	defer func() { _ = cl.SetDeadline(time.Time{}) }()
	rep, err := cl.command("STARTTLS")
	switch {
	case err != nil:
		return &failure{reply: reply(451, "4.4.2", fmt.Sprintf("STARTTLS at %s: %s", cl.target, plainError(err))), elsewhere: true, plain: !need}
	case rep.Code != 220 && need:
		return next(451, "4.7.4", "%s refused STARTTLS: %s", cl.target, rep)
	case rep.Code != 220:
		return nil
	case cl.r.Buffered() > 0:
		// What came in the clear behind the 220 would be read as if it had come encrypted (RFC 3207 section 6).
		return next(451, "4.7.5", "%s sent more than its reply to STARTTLS", cl.target)
	}
	return d.handshake(c, cl, verify, !need)
}

func (d *Delivery) handshake(c *connector, cl *client, verify, plain bool) *failure {
	conn := tls.Client(cl.Conn, c.tlsConfig(cl, verify))
	if err := conn.Handshake(); err != nil {
		if verify && isCertificate(err) {
			return noRequireTLS(cl.target, "has a certificate that is not good: "+plainError(err))
		}
		text := fmt.Sprintf("TLS with %s: %s", cl.target, plainError(err))
		return &failure{reply: reply(451, "4.7.5", text), elsewhere: true, plain: plain}
	}
	state := conn.ConnectionState()
	cl.tls = tls.VersionName(state.Version) + " " + tls.CipherSuiteName(state.CipherSuite)
	cl.restart(conn)
	// RFC 3207 section 4.2: what was known from before is forgotten, and EHLO said again.
	return d.greet(c, cl)
}

// authenticate at a smart host, over TLS only.
func (d *Delivery) authenticate(c *connector, cl *client) *failure {
	if c.Username == "" {
		return nil
	}
	if cl.tls == "" {
		return next(451, "4.7.0", "%s: the password is not sent without TLS", cl.target)
	}
	var mech sasl.Client
	switch {
	case cl.smtp.SupportsAuth(sasl.Plain):
		mech = sasl.NewPlainClient("", c.Username, c.Password)
	case cl.smtp.SupportsAuth(sasl.Login):
		mech = sasl.NewLoginClient(c.Username, c.Password)
	default:
		return next(451, "4.7.0", "%s offers neither AUTH PLAIN nor LOGIN", cl.target)
	}
	if err := cl.smtp.Auth(mech); err != nil {
		return next(451, "4.7.8", "%s: authentication failed: %s", cl.target, plainError(err))
	}
	return nil
}

// command sends one line and reads its reply.
func (w *wire) command(line string) (envelope.Reply, error) {
	if _, err := w.Write([]byte(line + "\r\n")); err != nil {
		return envelope.Reply{}, err
	}
	return w.reply()
}

// quit ends the session in good manners, but does not wait long for the other side's.
func (cl *client) quit() {
	cl.smtp.CommandTimeout = 2 * time.Second
	if cl.smtp.Quit() != nil {
		_ = cl.Conn.Close()
	}
}

// plainError is the part of err that an operator reads: "connection refused", "timeout".
func plainError(err error) string {
	var op *net.OpError
	switch {
	case isTimeout(err):
		return "timeout"
	case errors.As(err, &op) && op.Err != nil:
		return printable(op.Err.Error())
	}
	return printable(err.Error())
}

func isCertificate(err error) bool {
	var bad *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	return errors.As(err, &bad) || errors.As(err, &unknown) || errors.As(err, &name) || errors.As(err, &invalid)
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
