package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Bounds of bodies outside events.
const (
	chunkBytes      = 64 << 10  // of chunks sent
	startCredit     = 256 << 10 // of a body, both ways
	maxUpload       = 64 << 20  // bytes of one upload
	maxUploads      = 256 << 20 // bytes of all uploads of a process that nobody has opened
	maxOpenUploads  = 256       // tickets at once
	uploadInMemory  = 64 << 10  // a larger upload goes to a file
	uploadPatience  = 5 * time.Second
	uploadLife      = time.Minute
	sideSocketGrace = 2 * time.Second // for an agent to make room in its side socket
	reopenBodies    = time.Second
)

// errNoBodies: the agent does not serve Bodies.
var errNoBodies = errors.New("the agent takes neither descriptors nor chunks, and the body is too large to go inline")

// bodies carries the bodies that do not go inside events, for one process.
type bodies struct {
	process *process
	life    context.Context
	quit    context.CancelFunc

	sending sync.Mutex // one SendMsg at a time

	mu        sync.Mutex
	stream    agentpb.AgentService_BodiesClient // nil while there is none
	opened    chan struct{}                     // closed with the first stream, or the knowledge that there is none
	absent    bool
	transfers map[string]*transfer
	uploads   map[string]*upload
	held      int64 // bytes of uploads
}

// transfer is a body on its way to the agent, in chunks.
type transfer struct {
	credit int64
	more   chan struct{} // credit came
	stop   chan struct{} // the agent has enough, or the event is over
}

// upload is a body on its way from the agent.
type upload struct {
	mem    []byte
	file   *os.File
	size   int64
	since  time.Time
	err    error
	body   *envelope.Body // when complete
	done   chan struct{}
	opened bool
}

// newBodies makes the bodies of a process.
func newBodies(p *process) *bodies {
	b := &bodies{process: p, opened: make(chan struct{}), transfers: map[string]*transfer{}, uploads: map[string]*upload{}}
	b.life, b.quit = context.WithCancel(context.Background())
	return b
}

// close ends all transfers.
func (b *bodies) close() { b.quit() }

// send sends a body under a ticket: a descriptor where the agent takes one, else chunks behind its back.
func (b *bodies) send(ticket string, body *envelope.Body) error {
	if b.process.runner != nil && b.process.manifest.GetCapabilities().GetBodyDescriptor() {
		return b.sendDescriptor(ticket, body)
	}
	select {
	case <-b.opened:
	case <-b.life.Done():
		return b.life.Err()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.absent {
		return errNoBodies
	}
	t := &transfer{credit: startCredit, more: make(chan struct{}, 1), stop: make(chan struct{})}
	b.transfers[ticket] = t
	go b.sendChunks(ticket, t, body)
	return nil
}

// sendDescriptor sends a read-only descriptor of the body over the side socket.
func (b *bodies) sendDescriptor(ticket string, body *envelope.Body) error {
	file, err := body.Descriptor()
	if err != nil {
		return err
	}
	defer file.Close()
	side := b.process.runner.started().side
	if err := side.SetWriteDeadline(time.Now().Add(sideSocketGrace)); err != nil {
		return err
	}
	rights := unix.UnixRights(int(file.Fd()))
	if _, _, err := side.WriteMsgUnix([]byte(ticket), rights, nil); err != nil {
		return fmt.Errorf("sending a descriptor: %w", err)
	}
	return nil
}

// sendChunks sends a body in chunks, as far as the agent's credit goes.
func (b *bodies) sendChunks(ticket string, t *transfer, body *envelope.Body) {
	reader, buffer := body.Reader(), make([]byte, chunkBytes)
	for left := body.Size(); ; {
		n := b.wait(t, min(left, chunkBytes))
		if n < 0 {
			return
		}
		if _, err := io.ReadFull(reader, buffer[:n]); err != nil {
			b.process.o.Logger.Error("a body cannot be read", "agent", b.process.o.Spec.Name, "error", err)
			return
		}
		left -= n
		chunk := &agentpb.Chunk{Data: buffer[:n], Last: left == 0}
		frame := &agentpb.BodiesRequest{Ticket: ticket, Frame: &agentpb.BodiesRequest_Chunk{Chunk: chunk}}
		if err := b.sendFrame(frame); err != nil || left == 0 {
			return
		}
	}
}

// wait waits for credit and takes up to want of it; -1: the transfer is over.
func (b *bodies) wait(t *transfer, want int64) int64 {
	for {
		b.mu.Lock()
		n := min(want, t.credit)
		t.credit -= n
		b.mu.Unlock()
		if n > 0 || want == 0 {
			return n
		}
		select {
		case <-t.more:
		case <-t.stop:
			return -1
		case <-b.life.Done():
			return -1
		}
	}
}

// sendFrame sends one frame.
func (b *bodies) sendFrame(frame *agentpb.BodiesRequest) error {
	b.mu.Lock()
	stream := b.stream
	b.mu.Unlock()
	if stream == nil {
		return errNoBodies
	}
	b.sending.Lock()
	defer b.sending.Unlock()
	return stream.Send(frame)
}

// forget ends the transfer of a ticket, if it is not through.
func (b *bodies) forget(ticket string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if t := b.transfers[ticket]; t != nil {
		delete(b.transfers, ticket)
		close(t.stop)
	}
}

// receive keeps the stream open and takes its frames until the process ends. An agent that neither needs chunks
// nor uploads anything need not serve it.
func (b *bodies) receive() {
	for first := true; b.life.Err() == nil; first = false {
		stream, err := b.process.rpc.Bodies(b.life)
		b.mu.Lock()
		b.stream = stream
		b.mu.Unlock()
		if first {
			close(b.opened)
		}
		for err == nil {
			var frame *agentpb.BodiesResponse
			if frame, err = stream.Recv(); err == nil {
				b.frame(frame)
			}
		}
		b.mu.Lock()
		b.stream, b.absent = nil, status.Code(err) == codes.Unimplemented
		absent := b.absent
		b.mu.Unlock()
		if absent {
			return
		}
		select {
		case <-time.After(reopenBodies):
		case <-b.life.Done():
		}
	}
}

// frame takes one frame.
func (b *bodies) frame(frame *agentpb.BodiesResponse) {
	ticket := frame.GetTicket()
	switch frame := frame.GetFrame().(type) {
	case *agentpb.BodiesResponse_Credit:
		b.credit(ticket, frame.Credit)
	case *agentpb.BodiesResponse_Enough:
		b.forget(ticket)
	case *agentpb.BodiesResponse_Chunk:
		n := int64(len(frame.Chunk.GetData()))
		if b.store(ticket, frame.Chunk) && n > 0 {
			back := &agentpb.BodiesRequest{Ticket: ticket, Frame: &agentpb.BodiesRequest_Credit{Credit: uint64(n)}}
			_ = b.sendFrame(back)
		}
	}
}

// maxCredit keeps sums of credit from overflowing.
const maxCredit = 1 << 40

// credit lets a transfer go on.
func (b *bodies) credit(ticket string, n uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.transfers[ticket]
	if t == nil {
		return
	}
	t.credit = min(t.credit+int64(min(n, maxCredit)), maxCredit)
	select {
	case t.more <- struct{}{}:
	default:
	}
}

// store keeps a chunk of an upload. It reports whether the agent may send as much again: one that was given up
// is read to its end, or the agent would wait for credit for ever.
func (b *bodies) store(ticket string, chunk *agentpb.Chunk) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	u := b.upload(ticket)
	if u == nil || u.err != nil {
		return !chunk.GetLast()
	}
	if u.body != nil {
		return false
	}
	data := chunk.GetData()
	if u.size+int64(len(data)) > maxUpload || b.held+int64(len(data)) > maxUploads {
		b.finishUpload(u, fmt.Errorf("upload %q is too large", printable(ticket)))
		return true
	}
	if err := u.append(b.process.o.RunDir, data); err != nil {
		b.finishUpload(u, err)
		return true
	}
	b.held += int64(len(data))
	if chunk.GetLast() {
		b.finishUpload(u, nil)
	}
	return !chunk.GetLast()
}

// upload of a ticket, made if there is room; else nil. Under mu.
func (b *bodies) upload(ticket string) *upload {
	u := b.uploads[ticket]
	if u == nil && len(b.uploads) < maxOpenUploads {
		u = &upload{since: time.Now(), done: make(chan struct{})}
		b.uploads[ticket] = u
	}
	return u
}

// append adds octets.
func (u *upload) append(dir string, data []byte) error {
	if u.file == nil && u.size+int64(len(data)) <= uploadInMemory {
		u.size += int64(len(data))
		u.mem = append(u.mem, data...)
		return nil
	}
	if u.file == nil {
		if err := u.spill(dir); err != nil {
			return err
		}
	}
	if _, err := u.file.Write(data); err != nil {
		return fmt.Errorf("keeping an upload: %w", err)
	}
	u.size += int64(len(data))
	return nil
}

// spill moves the octets so far to a file without a name.
func (u *upload) spill(dir string) error {
	file, err := os.CreateTemp(dir, "upload")
	if err != nil {
		return fmt.Errorf("keeping an upload: %w", err)
	}
	u.file = file
	if err := os.Remove(file.Name()); err != nil {
		return fmt.Errorf("keeping an upload: %w", err)
	}
	_, err = file.Write(u.mem)
	u.mem = nil
	if err != nil {
		return fmt.Errorf("keeping an upload: %w", err)
	}
	return nil
}

// finishUpload completes an upload or gives it up. Under mu.
func (b *bodies) finishUpload(u *upload, err error) {
	u.err = err
	switch {
	case err != nil && u.file != nil:
		_ = u.file.Close()
	case err == nil && u.file != nil:
		u.body = envelope.FileBody(u.file, u.size)
	case err == nil:
		u.body = envelope.MemoryBody(u.mem)
	}
	u.mem, u.file = nil, nil
	close(u.done)
}

// expire drops uploads that nobody opened in a minute.
func (b *bodies) expire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ticket, u := range b.uploads {
		if time.Since(u.since) < uploadLife {
			continue
		}
		if u.body == nil && u.err == nil {
			b.finishUpload(u, fmt.Errorf("the upload was not completed in %s", uploadLife))
		}
		if !u.opened {
			b.process.o.Logger.Debug("an upload was not asked for", "agent", b.process.o.Spec.Name, "bytes", u.size)
		}
		b.held -= u.size
		delete(b.uploads, ticket)
	}
}

// Upload opens the octets that the agent sent over Bodies under a ticket that its answer names. The stream of
// uploads and that of answers are two, so it waits up to 5 seconds for the last chunk. The same ticket may be
// opened again.
func (r *Result) Upload(ctx context.Context, ticket string) (*envelope.Body, error) {
	if r.uploads == nil {
		return nil, errors.New("there is no answer to have uploads")
	}
	return r.uploads.open(ctx, ticket)
}

// open waits for an upload.
func (b *bodies) open(ctx context.Context, ticket string) (*envelope.Body, error) {
	ctx, cancel := context.WithTimeout(ctx, uploadPatience)
	defer cancel()
	b.mu.Lock()
	u := b.upload(ticket)
	b.mu.Unlock()
	if u == nil {
		return nil, fmt.Errorf("more than %d uploads at once", maxOpenUploads)
	}
	select {
	case <-u.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("upload %q did not come: %w", printable(ticket), ctx.Err())
	case <-b.life.Done():
		return nil, fmt.Errorf("the process that uploaded %q has ended", printable(ticket))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	u.opened = true
	return u.body, u.err
}
