package sdk

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that all other messages use
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/sdk/agentpb"
)

// Events arrive twenty to a message, and most of their facts are looked at by nobody. So they are read from the
// octets into the typed events directly; the generated types are filled only for what is asked for (Event.Proto)
// or is an agent's own part (headers, body, stamps, rows).

// rawRequest is an EventsRequest as it came.
type rawRequest struct{ octets []byte }

// eventCodec hands EventsRequests over as octets and leaves all else to the codec of gRPC.
type eventCodec struct{ encoding.CodecV2 }

func newEventCodec() eventCodec { return eventCodec{encoding.GetCodecV2("proto")} }

// Unmarshal implements encoding.CodecV2.
func (c eventCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if raw, ok := v.(*rawRequest); ok {
		raw.octets = data.Materialize()
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// errMalformed is what octets come to that are no protobuf message.
var errMalformed = errors.New("malformed message from the host")

// request is an EventsRequest.
type request struct {
	events []wireEvent
	cancel []uint64
	ping   *agentpb.Ping
}

// parseRequest reads all but the facts of the events.
func parseRequest(octets []byte) (request, error) {
	var r request
	for len(octets) > 0 {
		f, rest, err := nextField(octets)
		if err != nil {
			return r, err
		}
		octets = rest
		if f.octets == nil && f.number != 2 { // not of the type that it has in this version
			continue
		}
		switch f.number {
		case 1:
			event, err := parseEvent(f.octets)
			if err != nil {
				return r, err
			}
			r.events = append(r.events, event)
		case 2:
			r.cancel = append(r.cancel, f.numbers()...)
		case 3:
			r.ping = new(agentpb.Ping)
			if err := proto.Unmarshal(f.octets, r.ping); err != nil {
				return r, fmt.Errorf("%w: %w", errMalformed, err)
			}
		}
	}
	return r, nil
}

// wireField is one field of a message: a number, or octets.
type wireField struct {
	number protowire.Number
	value  uint64
	octets []byte
}

// numbers of a repeated field, packed or not.
func (f *wireField) numbers() []uint64 {
	if f.octets == nil {
		return []uint64{f.value}
	}
	var all []uint64
	for rest := f.octets; len(rest) > 0; {
		v, n := protowire.ConsumeVarint(rest)
		if n < 0 {
			return all
		}
		all, rest = append(all, v), rest[n:]
	}
	return all
}

// nextField reads a field and answers with what follows it. Fields of a type that we have none of are read over.
func nextField(octets []byte) (f wireField, rest []byte, err error) {
	number, kind, n := protowire.ConsumeTag(octets)
	if n < 0 {
		return f, nil, errMalformed
	}
	f.number, octets = number, octets[n:]
	switch kind {
	case protowire.VarintType:
		f.value, n = protowire.ConsumeVarint(octets)
	case protowire.BytesType:
		f.octets, n = protowire.ConsumeBytes(octets)
	default:
		f.number, n = 0, protowire.ConsumeFieldValue(number, kind, octets) // no field of ours
	}
	if n < 0 {
		return f, nil, errMalformed
	}
	return f, octets[n:], nil
}

// wireEvent is an Event with its parts unread.
type wireEvent struct {
	octets    []byte // all of it
	id        uint64
	attempt   uint32
	timeout   uint64 // microseconds
	needed    bool
	dryRun    bool
	kind      EventKind
	time      int64
	eventID   []byte
	session   []byte
	envelope  []byte
	message   []byte
	arguments []byte
	own       []byte // fields of headers, body, stamps and rows
	hasBody   bool
}

// parseEvent reads the numbers and finds the parts. A part that comes in pieces is all of them in a row, which is
// what protobuf means by it.
func parseEvent(octets []byte) (wireEvent, error) {
	e := wireEvent{octets: octets}
	for len(octets) > 0 {
		f, rest, err := nextField(octets)
		if err != nil {
			return e, err
		}
		field := octets[:len(octets)-len(rest)]
		octets = rest
		switch f.number {
		case 4, 5, 6, 7:
			e.own = join(e.own, field)
			e.hasBody = e.hasBody || f.number == 5
		case 24:
			e.session = join(e.session, f.octets)
		case 25:
			e.envelope = join(e.envelope, f.octets)
		case 26:
			e.message = join(e.message, f.octets)
		case 27:
			e.arguments = join(e.arguments, f.octets)
		default:
			e.scalar(&f)
		}
	}
	return e, nil
}

func (e *wireEvent) scalar(f *wireField) {
	switch f.number {
	case 1:
		e.id = f.value
	case 2:
		e.attempt = uint32(f.value)
	case 3:
		e.timeout = f.value
	case 8:
		e.needed = f.value != 0
	case 20:
		e.eventID = f.octets
	case 21:
		e.kind = EventKind(f.value)
	case 22:
		e.time = int64(f.value)
	case 23:
		e.dryRun = f.value != 0
	}
}

// join two pieces. A first piece has no room behind it, so it is never changed in place; what was joined before has, so
// that many pieces, such as the fields of a long header, cost their length and not its square.
func join(a, b []byte) []byte {
	if a == nil {
		return b[:len(b):len(b)]
	}
	return append(a, b...)
}

// Proto is the event as it came from the host, for what the typed events do not show. Not to be changed.
func (e *Event) Proto() *agentpb.Event {
	if e.context == nil { // made by a test
		return nil
	}
	return e.context.whole()
}

// whole event in its generated type.
func (ec *eventContext) whole() *agentpb.Event {
	ec.mu.Lock()
	defer ec.mu.Unlock()
	if ec.proto == nil {
		ec.proto = unmarshalled(ec.event.octets)
	}
	return ec.proto
}

// own part of the event: headers, body, stamps and rows.
func (ec *eventContext) own() *agentpb.Event {
	ec.mu.Lock()
	defer ec.mu.Unlock()
	if ec.ownPart == nil {
		ec.ownPart = unmarshalled(ec.event.own)
	}
	return ec.ownPart
}

// unmarshalled as far as it goes. An event that is half read is handled and answered like one whose host left
// the rest out.
func unmarshalled(octets []byte) *agentpb.Event {
	event := new(agentpb.Event)
	if len(octets) > 0 {
		_ = proto.Unmarshal(octets, event)
	}
	return event
}

// facts reads the fields of a part. The octets are copied into one string, of which all texts of the part are
// pieces: one allocation, and a text that an agent keeps holds back no more than its part.
type facts struct {
	text string
	// The field read last; 0 is none of ours.
	number int
	value  uint64
	piece  string
}

func factsOf(octets []byte) facts { return facts{text: string(octets)} }

// next reads a field; false at the end, and at octets that are no field.
func (f *facts) next() bool {
	tag, ok := f.varint()
	if !ok {
		return false
	}
	f.number, f.value, f.piece = int(tag>>3), 0, ""
	switch tag & 7 {
	case 0:
		f.value, ok = f.varint()
	case 1:
		f.number = 0 // no field of ours
		_, ok = f.take(8)
	case 2:
		var n uint64
		if n, ok = f.varint(); ok {
			f.piece, ok = f.take(n)
		}
	case 5:
		f.number = 0
		_, ok = f.take(4)
	default:
		ok = false
	}
	return ok
}

func (f *facts) take(n uint64) (string, bool) {
	if n > uint64(len(f.text)) {
		return "", false
	}
	piece := f.text[:n]
	f.text = f.text[n:]
	return piece, true
}

func (f *facts) varint() (uint64, bool) {
	var v uint64
	for i := 0; i < len(f.text) && i < 10; i++ {
		c := f.text[i]
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			f.text = f.text[i+1:]
			return v, true
		}
	}
	return 0, false
}
