package handover

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listeners gives out listening sockets: those that were inherited, from the process before this one or from systemd,
// and new ones for other addresses. It is safe for concurrent use.
type Listeners struct {
	mu        sync.Mutex
	inherited []inherited
	given     map[string]*net.TCPListener // by the address as it was asked for
}

// inherited is a listening socket that nobody has asked for yet.
type inherited struct {
	address  string // as it was asked for; "" from systemd
	listener *net.TCPListener
}

// NewListeners has what is new only.
func NewListeners() *Listeners { return &Listeners{given: map[string]*net.TCPListener{}} }

// firstFD is the first descriptor that systemd passes (sd_listen_fds(3)).
const firstFD = 3

// Activated has the sockets that systemd has opened for this process (systemd.socket(5)), if it has. The variables that
// say so are removed from the environment, since they are for nobody else. What is not a listening TCP socket is an
// error.
func Activated() (*Listeners, error) {
	files, err := ActivatedFiles()
	if err != nil {
		return nil, err
	}
	l := NewListeners()
	for i, file := range files {
		if err := l.inherit("", file); err != nil {
			closeAll(files[i+1:])
			return nil, fmt.Errorf("socket %d from systemd: %w", i+1, err)
		}
	}
	return l, nil
}

// ActivatedFiles are the descriptors of Activated.
func ActivatedFiles() (files []*os.File, err error) {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name)
	}
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n, err := strconv.Atoi(count)
	if err != nil {
		return nil, fmt.Errorf("LISTEN_FDS is %q, which is no number", count)
	}
	for fd := firstFD; fd < firstFD+n; fd++ {
		unix.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), "socket from systemd"))
	}
	return files, nil
}

// inherit takes a socket over and closes file.
func (l *Listeners) inherit(address string, file *os.File) error {
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		return err
	}
	tcp, ok := listener.(*net.TCPListener)
	if !ok {
		return errors.Join(fmt.Errorf("%s is not a TCP socket", listener.Addr().Network()), listener.Close())
	}
	l.inherited = append(l.inherited, inherited{address, tcp})
	return nil
}

// Listen answers with a socket that listens at a TCP address. Closing it is the caller's.
func (l *Listeners) Listen(address string) (net.Listener, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := l.find(address); i >= 0 {
		found := l.inherited[i].listener
		l.inherited = slices.Delete(l.inherited, i, i+1)
		l.given[address] = found
		return found, nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	l.given[address] = listener.(*net.TCPListener)
	return listener, nil
}

// Share answers with another listener of a socket that was given out: what connects goes to either, and closing one of
// them leaves the other. An address that nobody has asked for, or that was closed, is opened as Listen does.
func (l *Listeners) Share(address string) (net.Listener, error) {
	l.mu.Lock()
	first := l.given[address]
	l.mu.Unlock()
	if first == nil {
		return l.Listen(address)
	}
	fd, err := duplicate(first)
	if err != nil {
		return l.Listen(address)
	}
	file := os.NewFile(uintptr(fd), "listening socket")
	defer file.Close()
	second, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.given[address] = second.(*net.TCPListener)
	return second, nil
}

// find the inherited socket for an address: the one that was asked for in the same words, or one that is bound to it.
func (l *Listeners) find(address string) int {
	if i := slices.IndexFunc(l.inherited, func(in inherited) bool { return in.address == address }); i >= 0 {
		return i
	}
	wanted, err := net.ResolveTCPAddr("tcp", address)
	if err != nil || wanted.Port == 0 {
		return -1
	}
	return slices.IndexFunc(l.inherited, func(in inherited) bool {
		bound := in.listener.Addr().(*net.TCPAddr)
		return bound.Port == wanted.Port && (bound.IP.Equal(wanted.IP) || unspecified(bound.IP) && unspecified(wanted.IP))
	})
}

func unspecified(ip net.IP) bool { return len(ip) == 0 || ip.IsUnspecified() }

// CloseUnused closes what was inherited and not asked for, and answers with its addresses.
func (l *Listeners) CloseUnused() (addresses []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, in := range l.inherited {
		addresses = append(addresses, in.listener.Addr().String())
		_ = in.listener.Close()
	}
	l.inherited = nil
	return addresses
}

// Close closes everything, given out or not.
func (l *Listeners) Close() {
	l.CloseUnused()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, listener := range l.given {
		_ = listener.Close()
	}
}

// duplicates are new descriptors of the sockets given out, for another process. The caller closes them. One that was
// closed meanwhile is left out.
func (l *Listeners) duplicates() (addresses []string, fds []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for address, listener := range l.given {
		if fd, err := duplicate(listener); err == nil {
			addresses, fds = append(addresses, address), append(fds, fd)
		}
	}
	return addresses, fds
}

// duplicate keeps the socket as it is: File and Fd would make it a blocking one, for us too.
func duplicate(s syscall.Conn) (fd int, err error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return -1, err
	}
	failed := raw.Control(func(of uintptr) { fd, err = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(failed, err)
}
