package wire

import (
	"crypto/tls"
	"io"
	"syscall"
	"time"
)

// peek looks whether the socket has anything to read: octets, its end, or an error.
func (c *Conn) peek() (n int, err error) {
	if c.raw == nil {
		return 0, syscall.EAGAIN
	}
	look := &peeked{}
	if err := c.raw.Control(look.at); err != nil {
		return 0, err
	}
	if look.err == nil && look.n == 0 {
		look.err = io.EOF
	}
	return look.n, look.err
}

// peeked is the result of a peek.
type peeked struct {
	b   [1]byte
	n   int
	err error
}

func (p *peeked) at(fd uintptr) {
	p.n, _, p.err = syscall.Recvfrom(int(fd), p.b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
}

// Pending reports whether the client has sent anything that was not read yet. Behind TLS only what has been decrypted
// counts: what else there is may be no data.
func (c *Conn) Pending() bool {
	if len(c.in.unread()) > 0 || c.ahead() {
		return true
	}
	if c.secure != nil {
		return false
	}
	n, err := c.peek()
	return err == nil && n > 0
}

// ahead reports whether octets were read from the socket before there was a wire.
func (c *Conn) ahead() bool {
	b, ok := c.conn.(interface{ Buffered() int })
	return ok && b.Buffered() > 0
}

// Talks reports whether the client of a plain connection sends anything within d. It returns as soon as that is known.
func (c *Conn) Talks(d time.Duration) bool {
	if c.Pending() || d <= 0 || c.raw == nil {
		return c.Pending()
	}
	_ = c.socket.SetReadDeadline(time.Now().Add(d))
	look := &peeked{err: syscall.EAGAIN}
	_ = c.raw.Read(func(fd uintptr) bool { // it fails when the time is over: nothing was sent
		look.at(fd)
		return look.err != syscall.EAGAIN
	})
	return look.err == nil && look.n > 0
}

// PeerGone reports whether the client has closed the connection, or it broke, with nothing more to say. A client that
// has sent QUIT already has gone in good order and does not count.
func (c *Conn) PeerGone() bool {
	if len(c.in.unread()) > 0 {
		return false
	}
	_, err := c.peek()
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return false
	}
	if err == nil && c.secure == nil {
		return false
	}
	if err != nil {
		return true
	}
	// Behind TLS octets may be the notice of its end (RFC 8446 section 6.1).
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	return c.in.fill(c.conn) == io.EOF
}

// Gone ends a connection of which the client has left.
func (c *Conn) Gone() { c.end(EndGone) }

// linger lets the client read the last reply: closing a socket with unread octets would destroy it on its way.
func (c *Conn) linger() {
	const bound, wait = 1 << 20, time.Second
	if t, ok := c.conn.(*tls.Conn); ok {
		_ = t.CloseWrite()
	}
	half, ok := c.socket.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	_ = c.socket.SetReadDeadline(time.Now().Add(wait))
	_, _ = io.CopyN(io.Discard, c.socket, bound)
}
