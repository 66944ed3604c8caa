package sdk

import (
	"io"
	"net"
	"syscall"
	"unsafe"
)

// quietListener makes connections that read and write without telling Go's scheduler. It need not know, since a
// socket that does not block returns at once; told of a system call after a rest, it wakes its monitor thread,
// which in an agent, resting between any two events, costs more than the call.
type quietListener struct{ *net.UnixListener }

// quiet answers with l, or what makes quiet connections of l's.
func quiet(l net.Listener) net.Listener {
	if u, ok := l.(*net.UnixListener); ok {
		return quietListener{u}
	}
	return l
}

// Accept implements net.Listener.
func (l quietListener) Accept() (net.Conn, error) {
	conn, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return conn, nil
	}
	return &quietConn{conn, raw}, nil
}

// quietConn is a connection; only how it reads and writes differs from the one inside.
type quietConn struct {
	net.Conn
	raw syscall.RawConn
}

// Read implements net.Conn.
func (c *quietConn) Read(b []byte) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	closed := c.raw.Read(func(fd uintptr) (done bool) {
		n, done, err = transfer(syscall.SYS_READ, fd, b)
		return done
	})
	switch {
	case closed != nil:
		return 0, closed
	case err == nil && n == 0:
		return 0, io.EOF
	}
	return n, err
}

// Write implements net.Conn.
func (c *quietConn) Write(b []byte) (written int, err error) {
	for written < len(b) && err == nil {
		n := 0
		closed := c.raw.Write(func(fd uintptr) (done bool) {
			n, done, err = transfer(syscall.SYS_WRITE, fd, b[written:])
			return done
		})
		if closed != nil {
			return written, closed
		}
		written += n
	}
	return written, err
}

// transfer is read(2) or write(2) of at least one octet. It is not done while the socket is not ready.
func transfer(call, fd uintptr, b []byte) (n int, done bool, err error) {
	for {
		r, _, errno := syscall.RawSyscall(call, fd, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch errno {
		case 0:
			return int(r), true, nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			return 0, false, nil
		default:
			return 0, true, errno
		}
	}
}
