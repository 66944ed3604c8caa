package wire

import (
	"io"
	"net"
	"sync"
	"syscall"
)

// Sizes of input buffers. An idle plain connection holds none.
const (
	commandBuffer = 4 << 10
	bodyBuffer    = 32 << 10
)

// pools of input buffers by size.
type pools struct{ command, body sync.Pool }

// buffers is shared by all connections; a pool is no state anyone can see.
var buffers = pools{
	command: sync.Pool{New: func() any { b := make([]byte, commandBuffer); return &b }},
	body:    sync.Pool{New: func() any { b := make([]byte, bodyBuffer); return &b }},
}

// input is the buffer between the network and whoever reads.
type input struct {
	raw   syscall.RawConn // of a plain socket, which can be waited for without a buffer; nil otherwise
	buf   []byte
	held  *[]byte // what buf came from
	r, w  int     // unread are buf[r:w]
	large bool    // a body is coming

	// For raw reads: kept here since a closure a read would be garbage.
	attempt func(fd uintptr) bool
	n       int
	err     error
}

// unread are the octets that have arrived.
func (in *input) unread() []byte { return in.buf[in.r:in.w] }

// take marks n octets as read. They stay valid until the next fill.
func (in *input) take(n int) { in.r += n }

// fill reads from conn once. What is unread stays; slices given out before are void.
func (in *input) fill(conn net.Conn) error {
	if in.raw != nil {
		return in.fillRaw()
	}
	in.room()
	n, err := conn.Read(in.buf[in.w:])
	in.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// fillRaw waits for the socket without a buffer when none is needed.
func (in *input) fillRaw() error {
	if in.attempt == nil {
		in.attempt = in.tryRead
	}
	if err := in.raw.Read(in.attempt); err != nil {
		return err
	}
	if in.err != nil {
		return in.err
	}
	if in.n == 0 {
		return io.EOF
	}
	in.w += in.n
	return nil
}

// tryRead reads what is there. It answers false to be called again when there is more.
func (in *input) tryRead(fd uintptr) bool {
	in.room()
	for {
		in.n, in.err = syscall.Read(int(fd), in.buf[in.w:])
		if in.err != syscall.EINTR {
			break
		}
	}
	if in.err == syscall.EAGAIN {
		if in.r == in.w {
			in.release()
		}
		return false
	}
	if in.err != nil {
		in.n = 0
	}
	return true
}

// room makes sure that there is space behind w.
func (in *input) room() {
	if in.r == in.w {
		in.r, in.w = 0, 0
		if in.large != (len(in.buf) >= bodyBuffer) {
			in.release()
		}
	}
	if in.buf == nil {
		in.obtain()
		return
	}
	if in.r > 0 {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
	if in.w == len(in.buf) {
		in.grow()
	}
}

func (in *input) obtain() {
	pool := &buffers.command
	if in.large {
		pool = &buffers.body
	}
	in.held = pool.Get().(*[]byte)
	in.buf, in.r, in.w = *in.held, 0, 0
}

// grow doubles the buffer, for the long lines of authentication and for what has no line end within a buffer.
func (in *input) grow() {
	larger := make([]byte, 2*len(in.buf))
	n := copy(larger, in.unread())
	in.release()
	in.buf, in.r, in.w = larger, 0, n
}

// release gives the buffer back with what is in it.
func (in *input) release() {
	switch {
	case in.held == nil:
	case len(*in.held) == commandBuffer:
		buffers.command.Put(in.held)
	case len(*in.held) == bodyBuffer:
		buffers.body.Put(in.held)
	}
	in.held, in.buf, in.r, in.w = nil, nil, 0, 0
}
