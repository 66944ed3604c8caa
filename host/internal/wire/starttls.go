package wire

import (
	"crypto/tls"
	"time"

	"github.com/posternmail/postern/host/internal/envelope"
)

// startTLS carries out STARTTLS (RFC 3207).
func (c *Conn) startTLS() {
	// What a client sends behind the command before it has read the reply was put there by someone who hopes that it is
	// taken for encrypted.
	if len(c.in.unread()) > 0 || c.Pending() {
		c.say(Answer{
			Reply: envelope.Reply{Code: 554, Enhanced: "5.5.1", Text: "Nothing may follow STARTTLS, closing transmission channel"},
			Close: true, End: EndProtocol,
		})
		return
	}
	c.put(Answer{Reply: envelope.Reply{Code: 220, Enhanced: "2.0.0", Text: "Ready to start TLS"}})
	if err := c.Flush(); err != nil {
		c.lost(err)
		return
	}
	c.in.release()
	c.in.raw = nil
	t := tls.Server(c.socket, c.opt.TLS)
	if err := Handshake(t, time.Now().Add(c.opt.Inactivity)); err != nil {
		c.judge.NotSecured(err)
		c.log('*', "TLS handshake failed: "+err.Error())
		c.end(EndProtocol)
		return
	}
	c.mu.Lock()
	c.conn = t
	c.mu.Unlock()
	state := t.ConnectionState()
	c.secure = &state
	c.log('*', "TLS "+tls.VersionName(state.Version)+" "+tls.CipherSuiteName(state.CipherSuite))
	// RFC 3207 section 4.2: the server MUST discard any knowledge obtained from the client. go-smtp knows a transaction;
	// that it was greeted is the session's to forget.
	c.Feed("RSET")
	c.judge.Secured(state)
}

// Handshake runs the handshake in a goroutine of its own: it needs a large stack, which the goroutine of an idle
// connection would keep.
func Handshake(t *tls.Conn, deadline time.Time) error {
	_ = t.SetDeadline(deadline)
	done := make(chan error, 1)
	go func() { done <- t.Handshake() }()
	err := <-done
	_ = t.SetDeadline(time.Time{})
	return err
}
