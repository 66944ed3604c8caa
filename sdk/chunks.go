package sdk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/posternmail/postern/sdk/agentpb"
)

// chunkedBodies are bodies that come over the Bodies stream, where there is no side socket. They are kept in
// memory until their event is over.
type chunkedBodies struct {
	mu      sync.Mutex
	stream  agentpb.AgentService_BodiesServer // nil: not open
	sending sync.Mutex
	bodies  map[string]*chunkedBody
	opened  chan struct{} // closed when the stream is there for the first time
	uploads uploads
	over    []string // tickets dropped before their last chunk came, the newest last
}

func newChunkedBodies() *chunkedBodies {
	return &chunkedBodies{
		opened: make(chan struct{}), bodies: map[string]*chunkedBody{}, uploads: uploads{credit: map[string]chan uint64{}},
	}
}

// rememberOver is for how many dropped tickets late chunks are known as such.
const rememberOver = 1024

// chunkedBody grows while chunks come.
type chunkedBody struct {
	ctx  context.Context
	mu   sync.Mutex
	data []byte
	last bool
	more chan struct{} // closed at the next chunk
}

// Bodies receives chunks until the host closes the stream.
func (s *service) Bodies(stream agentpb.AgentService_BodiesServer) error {
	c := s.bodies.chunks
	c.mu.Lock()
	if c.stream == nil {
		close(c.opened)
	}
	c.stream = stream
	c.mu.Unlock()
	for {
		in, err := stream.Recv()
		if err != nil {
			return nil
		}
		if chunk := in.GetChunk(); chunk != nil {
			c.receive(in.GetTicket(), chunk)
		} else {
			c.addCredit(in.GetTicket(), in.GetCredit())
		}
	}
}

// receive a chunk and ask for as much again.
func (c *chunkedBodies) receive(ticket string, chunk *agentpb.Chunk) {
	if c.isOver(ticket) {
		return
	}
	c.of(ticket).append(chunk)
	if n := len(chunk.GetData()); n > 0 && !chunk.GetLast() {
		c.send(&agentpb.BodiesResponse{Ticket: ticket, Frame: &agentpb.BodiesResponse_Credit{Credit: uint64(n)}})
	}
}

// send a frame. A failed stream shows in Recv and in the deadlines of those who wait for chunks.
func (c *chunkedBodies) send(frame *agentpb.BodiesResponse) error {
	c.mu.Lock()
	stream := c.stream
	c.mu.Unlock()
	if stream == nil {
		return errors.New("the host has opened no Bodies stream")
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	return stream.Send(frame)
}

// of a ticket; the first chunk may come before the event or after it.
func (c *chunkedBodies) of(ticket string) *chunkedBody {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.bodies[ticket]
	if b == nil {
		b = &chunkedBody{more: make(chan struct{})}
		c.bodies[ticket] = b
	}
	return b
}

func (c *chunkedBodies) body(ec *eventContext, p *agentpb.Body) *BodyReader {
	b := c.of(p.GetTicket())
	b.mu.Lock()
	b.ctx = ec
	b.mu.Unlock()
	size := int64(p.GetSize())
	return &BodyReader{size: size, have: size, source: b}
}

// drop the body and tell the host to send no more of it.
func (c *chunkedBodies) drop(ticket string) {
	b := c.of(ticket)
	c.mu.Lock()
	delete(c.bodies, ticket)
	complete := b.complete()
	if !complete {
		c.over = append(c.over[max(0, len(c.over)-rememberOver):], ticket)
	}
	c.mu.Unlock()
	if !complete {
		c.send(&agentpb.BodiesResponse{Ticket: ticket, Frame: &agentpb.BodiesResponse_Enough{Enough: true}})
	}
}

// isOver reports whether the event of the ticket has ended.
func (c *chunkedBodies) isOver(ticket string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.over, ticket)
}

func (b *chunkedBody) append(chunk *agentpb.Chunk) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, chunk.GetData()...)
	b.last = chunk.GetLast()
	close(b.more)
	b.more = make(chan struct{})
}

func (b *chunkedBody) complete() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last
}

// ReadAt waits for the octets asked for.
func (b *chunkedBody) ReadAt(p []byte, off int64) (int, error) {
	for {
		b.mu.Lock()
		n := 0
		if off < int64(len(b.data)) {
			n = copy(p, b.data[off:])
		}
		last, more := b.last, b.more
		b.mu.Unlock()
		switch {
		case n == len(p):
			return n, nil
		case last:
			return n, io.EOF
		}
		select {
		case <-more:
		case <-b.ctx.Done():
			return 0, fmt.Errorf("the body did not come: %w", b.ctx.Err())
		}
	}
}
