package sdk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/sdk/agentpb"
)

// BodyReader reads the body of a message: all after the empty line. It can be read, from any number of goroutines, until the handler
// returns.
type BodyReader struct {
	size    int64
	have    int64 // octets that can be read; less than size for a prefix
	skipped bool

	mu     sync.RWMutex
	data   []byte // inline or mapped
	source io.ReaderAt
	file   int // descriptor that data is mapped from; 0: none
	close  func()
	err    error
}

// Errors of reading a body.
var (
	ErrNoBody     = errors.New("the subscription asks for no body (sdk.Body)")
	ErrBodyClosed = errors.New("the body is gone: its handler has returned")
)

// Size of the whole body in bytes, also where only a prefix was asked for.
func (b *BodyReader) Size() int64 { return b.size }

// Available is how many octets can be read: Size, or the length of the prefix.
func (b *BodyReader) Available() int64 { return b.have }

// Skipped reports whether the body is larger than SkipOver and was not sent.
func (b *BodyReader) Skipped() bool { return b.skipped }

// ReadAt implements io.ReaderAt.
func (b *BodyReader) ReadAt(p []byte, off int64) (int, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	switch {
	case b.err != nil:
		return 0, b.err
	case off < 0:
		return 0, fmt.Errorf("read at %d", off)
	case b.source != nil:
		return b.source.ReadAt(p, off)
	case off >= int64(len(b.data)):
		return 0, io.EOF
	}
	n := copy(p, b.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Reader reads from the start.
func (b *BodyReader) Reader() io.Reader { return io.NewSectionReader(b, 0, b.have) }

// File opens the descriptor that the body came with a second time, to hand it to another program; the caller closes it. It is
// read-only, holds Size octets and stays open beyond the handler. Bodies that came with their event have none: then
// file is nil.
func (b *BodyReader) File() (file *os.File, err error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.err != nil || b.file == 0 {
		return nil, b.err
	}
	fd, err := unix.FcntlInt(uintptr(b.file), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("descriptor of the body: %w", err)
	}
	return os.NewFile(uintptr(fd), "body"), nil
}

// end makes later reads fail and lets go of the memory.
func (b *BodyReader) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err, b.data, b.source, b.file = ErrBodyClosed, nil, nil, 0
	if b.close != nil {
		b.close()
		b.close = nil
	}
}

// openBody of the event; the same one at each call.
func (ec *eventContext) openBody() *BodyReader {
	ec.mu.Lock()
	opened := ec.body
	ec.mu.Unlock()
	if opened != nil {
		return opened
	}
	b := ec.stream.service.bodies.open(ec, ec.own().GetBody())
	ec.mu.Lock()
	defer ec.mu.Unlock()
	if ec.body != nil { // another goroutine of the handler was faster
		b.end()
		return ec.body
	}
	ec.body = b
	return b
}

// bodySource finds bodies: inline, behind a descriptor, or in chunks.
type bodySource struct {
	side   *sideSocket
	chunks *chunkedBodies
}

func (s *bodySource) open(ec *eventContext, p *agentpb.Body) *BodyReader {
	switch {
	case p == nil:
		return &BodyReader{err: ErrNoBody}
	case p.GetTicket() == "":
		return &BodyReader{
			size: int64(p.GetSize()), have: int64(len(p.GetInline())), data: p.GetInline(), skipped: p.GetSkipped(),
		}
	case s.side.open():
		return s.side.body(ec, p)
	}
	return s.chunks.body(ec, p)
}

// finish lets go of the body of an event; used is nil if the handler never asked for it.
func (s *bodySource) finish(ticket string, used *BodyReader) {
	if used != nil {
		used.end()
	}
	if ticket == "" {
		return
	}
	if s.side.open() {
		s.side.drop(ticket)
		return
	}
	s.chunks.drop(ticket)
}
