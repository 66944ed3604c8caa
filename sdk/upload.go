package sdk

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/posternmail/postern/sdk/agentpb"
)

// Bounds of new octets in the answer itself and beside it.
const (
	maxInlineData = 1 << 20   // more goes over Bodies before the answer
	maxPatchData  = 64 << 20  // of one patch
	uploadChunk   = 64 << 10  // octets of one frame
	startCredit   = 256 << 10 // of an upload, before the host says more
)

// uploads of an agent: their credit by ticket.
type uploads struct {
	count  atomic.Uint64
	credit map[string]chan uint64 // under chunkedBodies.mu
}

// upload sends new octets over Bodies and answers with the ticket that segments name them by.
func (c *chunkedBodies) upload(ctx context.Context, pieces [][]byte) (ticket string, err error) {
	ticket = fmt.Sprintf("upload-%d", c.uploads.count.Add(1))
	if err := c.waitOpen(ctx); err != nil {
		return "", err
	}
	more := make(chan uint64, maxPatchData/uploadChunk)
	c.mu.Lock()
	c.uploads.credit[ticket] = more
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.uploads.credit, ticket)
		c.mu.Unlock()
	}()
	credit := uint64(startCredit)
	for i, piece := range pieces {
		for len(piece) > 0 {
			chunk := piece[:min(len(piece), uploadChunk)]
			piece = piece[len(chunk):]
			if credit, err = awaitCredit(ctx, more, credit, uint64(len(chunk))); err != nil {
				return "", err
			}
			last := i == len(pieces)-1 && len(piece) == 0
			frame := &agentpb.BodiesResponse_Chunk{Chunk: &agentpb.Chunk{Data: chunk, Last: last}}
			if err := c.send(&agentpb.BodiesResponse{Ticket: ticket, Frame: frame}); err != nil {
				return "", fmt.Errorf("sending the new body: %w", err)
			}
		}
	}
	return ticket, nil
}

// awaitCredit answers with what is left of the credit after n octets.
func awaitCredit(ctx context.Context, more <-chan uint64, credit, n uint64) (uint64, error) {
	for credit < n {
		select {
		case m := <-more:
			credit += m
		case <-ctx.Done():
			return 0, fmt.Errorf("the host takes the new body too slowly: %w", ctx.Err())
		}
	}
	return credit - n, nil
}

// addCredit of the host for an upload.
func (c *chunkedBodies) addCredit(ticket string, n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	more := c.uploads.credit[ticket]
	if more == nil {
		return // the upload is complete
	}
	select {
	case more <- n:
	default: // a host that sends more credit than there can be octets
	}
}

// waitOpen waits for the stream, which the host opens right after that of the events.
func (c *chunkedBodies) waitOpen(ctx context.Context) error {
	select {
	case <-c.opened:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the host has opened no stream for bodies: %w", ctx.Err())
	}
}

// uploadLarge moves the new octets of an edit out of the answer if they are many.
func uploadLarge(e *Event, edit *agentpb.BodyEdit) error {
	var pieces [][]byte
	total := 0
	for _, s := range edit.Segments {
		if d := s.GetData(); len(d) > 0 {
			pieces, total = append(pieces, d), total+len(d)
		}
	}
	if total <= maxInlineData {
		return nil
	}
	ticket, err := e.context.stream.service.bodies.chunks.upload(e.context, pieces)
	if err != nil {
		return err
	}
	offset := uint64(0)
	for _, s := range edit.Segments {
		if n := uint64(len(s.GetData())); n > 0 {
			s.Source = &agentpb.Segment_Uploaded{Uploaded: &agentpb.Upload{
				Ticket: ticket, Range: &agentpb.Range{Offset: offset, Length: n},
			}}
			offset += n
		}
	}
	return nil
}
