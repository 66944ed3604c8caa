package agent

import (
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/posternmail/postern/host/internal/envelope"
)

// Bounds of a batch of events.
const (
	maxBatchEvents = 64
	maxBatchBytes  = 256 << 10 // a larger event goes alone
	maxEventBytes  = 4 << 20
)

// Bounds of a body inside an event.
const (
	maxInlineBody   = 32 << 10
	maxInlinePrefix = 1 << 20
)

// Field numbers of EventsRequest, Ping, Event and Body in agent.proto.
const (
	requestEvents = 1
	requestCancel = 2
	requestPing   = 3

	pingNonce = 1

	eventID      = 1
	eventAttempt = 2
	eventTimeout = 3
	eventBody    = 5

	bodySize      = 1
	bodyInline    = 2
	bodyTruncated = 3
	bodyTicket    = 4
)

// batch is an EventsRequest before it is marshalled.
type batch struct {
	events []wireEvent
	cancel []uint64
	ping   uint64 // nonce; 0: none
}

// empty reports whether there is nothing to send.
func (b *batch) empty() bool { return len(b.events) == 0 && len(b.cancel) == 0 && b.ping == 0 }

// reset empties b and keeps its memory.
func (b *batch) reset() {
	clear(b.events)
	b.events, b.cancel, b.ping = b.events[:0], b.cancel[:0], 0
}

// wireEvent is one attempt at a Call as it goes over the stream.
type wireEvent struct {
	call    *Call
	body    inline
	id      uint64
	attempt uint32
	timeout time.Duration
	ticket  string // of a body that does not go inline
}

// inline is what of a body goes inside the event.
type inline struct {
	size      int64 // of the whole body
	octets    []byte
	truncated bool
	present   bool
	ticket    bool // the body goes outside
}

// inlineBody decides how a body travels and reads what goes inside the event.
func inlineBody(c *Call) (inline, error) {
	if c.Body == nil {
		return inline{}, nil
	}
	in := inline{size: c.Body.Size(), present: true}
	n := c.inlineBytes()
	if in.ticket = n < 0; in.ticket {
		return in, nil
	}
	in.truncated = n < in.size
	var err error
	in.octets, err = firstOctets(c.Body, n)
	return in, err
}

// inlineBytes is how many bytes of the body go inside the event, -1 when it goes outside.
func (c *Call) inlineBytes() int64 {
	switch {
	case c.Body == nil:
		return 0
	case c.Prefix > 0:
		return min(c.Prefix, c.Body.Size(), maxInlinePrefix)
	case c.Body.Size() > maxInlineBody:
		return -1
	}
	return c.Body.Size()
}

// bound is a number of bytes that the event does not exceed in memory and on the wire.
func (c *Call) bound() int {
	return len(c.Facts) + len(c.Own) + int(max(c.inlineBytes(), 0)) + headBound
}

// firstOctets reads the first n bytes of a body. Those of a body in memory are not copied.
func firstOctets(b *envelope.Body, n int64) ([]byte, error) {
	if b.InMemory() {
		return b.Bytes()[:n], nil
	}
	octets := make([]byte, n)
	if _, err := io.ReadFull(b.Reader(), octets); err != nil {
		return nil, fmt.Errorf("reading the body: %w", err)
	}
	return octets, nil
}

// bound is a number of bytes that e does not exceed on the wire.
func (e *wireEvent) bound() int { return eventBound(e.call, &e.body) }

// headBound covers the head of an event: tags, numbers and a ticket.
const headBound = 128

// eventBound is a number of bytes that an event of call does not exceed on the wire.
func eventBound(c *Call, body *inline) int {
	return len(c.Facts) + len(c.Own) + len(body.octets) + headBound
}

// append marshals the event.
func (e *wireEvent) append(b []byte) []byte {
	body := e.bodySize()
	head := protowire.SizeTag(eventID) + protowire.SizeVarint(e.id) +
		protowire.SizeTag(eventAttempt) + protowire.SizeVarint(uint64(e.attempt)) +
		protowire.SizeTag(eventTimeout) + protowire.SizeVarint(uint64(e.timeout.Microseconds()))
	if e.body.present {
		head += protowire.SizeTag(eventBody) + protowire.SizeBytes(body)
	}
	b = protowire.AppendTag(b, requestEvents, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(e.call.Facts)+len(e.call.Own)+head))
	b = append(b, e.call.Facts...)
	b = append(b, e.call.Own...)
	b = appendNumber(b, eventID, e.id)
	b = appendNumber(b, eventAttempt, uint64(e.attempt))
	b = appendNumber(b, eventTimeout, uint64(e.timeout.Microseconds()))
	if e.body.present {
		b = e.appendBody(b, body)
	}
	return b
}

// bodySize is the length of the Body message.
func (e *wireEvent) bodySize() int {
	if !e.body.present {
		return 0
	}
	n := protowire.SizeTag(bodySize) + protowire.SizeVarint(uint64(e.body.size))
	if len(e.body.octets) > 0 {
		n += protowire.SizeTag(bodyInline) + protowire.SizeBytes(len(e.body.octets))
	}
	if e.body.truncated {
		n += protowire.SizeTag(bodyTruncated) + protowire.SizeVarint(1)
	}
	if e.ticket != "" {
		n += protowire.SizeTag(bodyTicket) + protowire.SizeBytes(len(e.ticket))
	}
	return n
}

// appendBody marshals the Body message, which is size bytes long.
func (e *wireEvent) appendBody(b []byte, size int) []byte {
	b = protowire.AppendTag(b, eventBody, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	b = appendNumber(b, bodySize, uint64(e.body.size))
	if len(e.body.octets) > 0 {
		b = protowire.AppendTag(b, bodyInline, protowire.BytesType)
		b = protowire.AppendBytes(b, e.body.octets)
	}
	if e.body.truncated {
		b = appendNumber(b, bodyTruncated, 1)
	}
	if e.ticket != "" {
		b = protowire.AppendTag(b, bodyTicket, protowire.BytesType)
		b = protowire.AppendString(b, e.ticket)
	}
	return b
}

// appendNumber marshals a field that is a varint.
func appendNumber(b []byte, field protowire.Number, value uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), value)
}

// bound is a number of bytes that b does not exceed on the wire.
func (b *batch) bound() int {
	n := headBound + 2*(len(b.cancel))*protowire.SizeVarint(^uint64(0))
	for i := range b.events {
		n += b.events[i].bound()
	}
	return n
}

// append marshals the batch.
func (b *batch) append(out []byte) []byte {
	for i := range b.events {
		out = b.events[i].append(out)
	}
	for _, id := range b.cancel {
		out = appendNumber(out, requestCancel, id)
	}
	if b.ping != 0 {
		size := protowire.SizeTag(pingNonce) + protowire.SizeVarint(b.ping)
		out = protowire.AppendTag(out, requestPing, protowire.BytesType)
		out = protowire.AppendVarint(out, uint64(size))
		out = appendNumber(out, pingNonce, b.ping)
	}
	return out
}

// eventCodec marshals a *batch into one pooled buffer: Facts, marshalled once for all agents of an event, are
// only copied. Answers are left to grpc's own codec.
type eventCodec struct{ encoding.CodecV2 }

// newEventCodec makes the codec of the Events stream.
func newEventCodec() eventCodec { return eventCodec{encoding.GetCodecV2(proto.Name)} }

// Marshal implements encoding.CodecV2.
func (c eventCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(*batch)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	pool := mem.DefaultBufferPool()
	buffer := pool.Get(b.bound())
	*buffer = b.append((*buffer)[:0])
	return mem.BufferSlice{mem.NewBuffer(buffer, pool)}, nil
}
