package sdk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/sdk/agentpb"
)

// sideSocket receives descriptors of bodies: each message is a ticket and one descriptor (SCM_RIGHTS).
type sideSocket struct {
	fd     int // -1: none
	logger hclog.Logger

	mu      sync.Mutex
	arrived map[string]int      // descriptors nobody has taken yet
	waiting map[string]chan int // who waits for a ticket
	dropped map[string]struct{} // tickets of events that ended before their descriptor came
	taken   map[string]struct{} // tickets whose descriptor was taken
	closed  chan struct{}       // the host closed its end
}

// newSideSocket uses the socket that the host left in the environment, if any.
func newSideSocket(logger hclog.Logger) *sideSocket {
	s := &sideSocket{
		fd: -1, logger: logger, arrived: map[string]int{}, waiting: map[string]chan int{},
		dropped: map[string]struct{}{}, taken: map[string]struct{}{}, closed: make(chan struct{}),
	}
	if fd, err := strconv.Atoi(os.Getenv(sideFDVariable)); err == nil {
		unix.CloseOnExec(fd)
		unix.SetNonblock(fd, false) // a thread of its own reads it, not the runtime
		s.fd = fd
	}
	return s
}

// open reports whether bodies come this way.
func (s *sideSocket) open() bool { return s.fd >= 0 }

func (s *sideSocket) start() {
	if s.open() {
		go s.receive()
	}
}

// receive blocks a thread of its own, since the socket is not the runtime's.
func (s *sideSocket) receive() {
	defer close(s.closed)
	ticket, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*8))
	for {
		n, oobn, _, _, err := unix.Recvmsg(s.fd, ticket, oob, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || n == 0 && oobn == 0:
			return
		}
		fds, err := descriptors(oob[:oobn])
		if err != nil || len(fds) != 1 {
			s.logger.Error("bad message on the side socket", "descriptors", len(fds), "error", err)
			closeAll(fds)
			continue
		}
		s.deliver(string(ticket[:n]), fds[0])
	}
}

func descriptors(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var all []int
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return all, err
		}
		all = append(all, fds...)
	}
	return all, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// deliver a descriptor to the event that waits for it, or keep it.
func (s *sideSocket) deliver(ticket string, fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, gone := s.dropped[ticket]; gone {
		delete(s.dropped, ticket)
		unix.Close(fd)
		return
	}
	if c := s.waiting[ticket]; c != nil {
		delete(s.waiting, ticket)
		s.taken[ticket] = struct{}{}
		c <- fd
		return
	}
	s.arrived[ticket] = fd
}

// take the descriptor of a ticket, which may come before or after its event.
func (s *sideSocket) take(ctx context.Context, ticket string) (int, error) {
	s.mu.Lock()
	if fd, ok := s.arrived[ticket]; ok {
		delete(s.arrived, ticket)
		s.taken[ticket] = struct{}{}
		s.mu.Unlock()
		return fd, nil
	}
	c := make(chan int, 1)
	s.waiting[ticket] = c
	s.mu.Unlock()
	select {
	case fd := <-c:
		return fd, nil
	case <-ctx.Done():
		return s.giveUp(ticket, c, ctx.Err())
	case <-s.closed:
		return s.giveUp(ticket, c, errors.New("the host closed the side socket"))
	}
}

func (s *sideSocket) giveUp(ticket string, c chan int, err error) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, ticket)
	select {
	case fd := <-c:
		return fd, nil
	default:
		return -1, fmt.Errorf("the body did not come: %w", err)
	}
}

// drop what belongs to the ticket of an event that is over.
func (s *sideSocket) drop(ticket string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.taken[ticket]; ok {
		delete(s.taken, ticket)
		return
	}
	if fd, ok := s.arrived[ticket]; ok {
		delete(s.arrived, ticket)
		unix.Close(fd)
		return
	}
	s.dropped[ticket] = struct{}{}
}

// body maps the descriptor of the event.
func (s *sideSocket) body(ec *eventContext, p *agentpb.Body) *BodyReader {
	size := int64(p.GetSize())
	fd, err := s.take(ec, p.GetTicket())
	if err != nil {
		return &BodyReader{size: size, err: err}
	}
	data, err := mapped(fd, size)
	if err != nil || len(data) == 0 {
		unix.Close(fd)
		return &BodyReader{size: size, err: err}
	}
	release := func() {
		unix.Munmap(data)
		unix.Close(fd)
	}
	return &BodyReader{size: size, have: size, data: data, file: fd, close: release}
}

// mapped octets of a descriptor.
func mapped(fd int, size int64) ([]byte, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	if stat.Size < size { // reading beyond the end of a mapped file would kill the process
		return nil, fmt.Errorf("body has %d of %d octets", stat.Size, size)
	}
	if size == 0 {
		return nil, nil
	}
	data, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("cannot map the body: %w", err)
	}
	return data, nil
}
