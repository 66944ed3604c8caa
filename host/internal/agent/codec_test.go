package agent

import (
	"bytes"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/agentpb"
)

// What is assembled by hand is what protobuf makes of the whole.
func FuzzBatch(f *testing.F) {
	f.Add("event", "header", uint64(7), uint32(1), int64(2500000), []byte("body"), int64(0), uint64(3), uint64(9))
	f.Add("", "", uint64(1<<63), uint32(1<<31), int64(0), []byte{}, int64(2), uint64(0), uint64(0))
	f.Add("x", "y", uint64(300), uint32(200), int64(1), bytes.Repeat([]byte("z"), 300), int64(200), uint64(1<<40), uint64(1))
	f.Fuzz(func(t *testing.T, event, header string, id uint64, attempt uint32, micros int64, octets []byte, prefix int64, cancel, ping uint64) {
		facts := &agentpb.Event{EventId: "e" + bytesOnly(event), Kind: agentpb.EventKind_EVENT_KIND_DATA}
		own := &agentpb.Event{Headers: []*agentpb.HeaderField{{Name: []byte(header), Value: []byte(event)}}, Needed: true}
		call := &Call{Facts: marshal(t, facts), Own: marshal(t, own), Body: envelope.MemoryBody(octets), Prefix: max(prefix, 0)}
		in, err := inlineBody(call)
		if err != nil {
			t.Fatal(err)
		}
		timeout := time.Duration(micros&(1<<40-1)) * time.Microsecond
		b := batch{events: []wireEvent{{call: call, body: in, id: id, attempt: attempt, timeout: timeout}}, cancel: []uint64{cancel, 1}, ping: ping}
		if in.ticket {
			b.events[0].ticket = "b1"
		}
		b.events = append(b.events, wireEvent{call: &Call{Facts: call.Facts}, id: 2, attempt: 1})

		wanted := proto.Clone(facts).(*agentpb.Event)
		proto.Merge(wanted, own)
		wanted.Id, wanted.Attempt, wanted.TimeoutMicros = id, attempt, uint64(timeout.Microseconds())
		wanted.Body = &agentpb.Body{Size: uint64(len(octets)), Inline: in.octets, Truncated: in.truncated, Ticket: b.events[0].ticket}
		second := proto.Clone(facts).(*agentpb.Event)
		second.Id, second.Attempt = 2, 1
		want := &agentpb.EventsRequest{Events: []*agentpb.Event{wanted, second}, Cancel: b.cancel}
		if ping != 0 {
			want.Ping = &agentpb.Ping{Nonce: ping}
		}
		octetsOut := b.append(nil)
		got := &agentpb.EventsRequest{}
		if err := proto.Unmarshal(octetsOut, got); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, want) {
			t.Errorf("got  %v\nwant %v", got, want)
		}
		if len(octetsOut) > b.bound() {
			t.Errorf("%d bytes, bound %d", len(octetsOut), b.bound())
		}
	})
}

// bytesOnly makes valid UTF-8 of any string.
func bytesOnly(s string) string { return string(bytes.ToValidUTF8([]byte(s), nil)) }

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	octets, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return octets
}
