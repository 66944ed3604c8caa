package sdk

import (
	"bytes"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// full is an event with every fact there is.
func full() *agentpb.Event {
	recipient := &agentpb.Recipient{
		Index: 4, Address: []byte(`"a b"@Y.example`), Orcpt: []byte("rfc822;o@y.example"), Notify: []string{"SUCCESS", "DELAY"},
		Original: []byte("old@y.example"), ExpandedFrom: []byte("group@y.example"), NextHop: "to-hub 10.0.0.1",
	}
	return &agentpb.Event{
		Id: 7, Attempt: 2, TimeoutMicros: 5_000_000, EventId: "S.1.OnRcpt.1", Kind: OnRcpt, TimeUnixNanos: -5, DryRun: true,
		Needed: true, Headers: []*agentpb.HeaderField{{Name: []byte("Subject"), Value: []byte(" x"), Index: 3}},
		Stamps: []*agentpb.Stamp{{Name: "scl", Scope: InMessage, Value: []byte("5")}}, Rows: []*agentpb.Row{{Table: "t"}},
		Body: &agentpb.Body{Size: 3, Inline: []byte("abc")},
		Session: &agentpb.Session{
			Id: "S", Connector: "internet", Client: []byte{192, 0, 2, 7}, ClientPort: 40123,
			Peer: netip.MustParseAddr("::ffff:192.0.2.9").AsSlice(), Local: netip.MustParseAddr("2001:db8::1").AsSlice(), LocalPort: 25,
			Helo: []byte("h\xff"), Extended: true, Trust: Partner, Traffic: Outbound, StartedUnixNanos: 1e18, EarlyTalk: true,
			Tls:            &agentpb.Tls{Version: "TLS 1.3", CipherSuite: "c", ServerName: "n", ClientSubject: "s", ClientVerified: true},
			Authentication: &agentpb.Authentication{Mechanism: "PLAIN", Identity: "me"}, Commands: 9, Rejects: 2, Unsynchronized: 3,
		},
		Envelope: &agentpb.Envelope{
			Id: "S.1", RecipientCount: 5, Recipients: []*agentpb.Recipient{recipient},
			Sender: &agentpb.Sender{
				Address: []byte("s+x@x.example"), Size: 4096, BodyType: "8BITMIME", Smtputf8: true, RequireTls: true, Ret: "HDRS",
				Envid: []byte("e"), Auth: []byte("a"),
			},
		},
		Message: &agentpb.Message{
			HeaderBytes: 100, BodyBytes: 1 << 40, HeaderFrom: []byte("From@x.example"), MessageId: []byte("<i@x>"),
			Subject: []byte("=?utf-8?q?=C3=BC?="), ReceivedCount: 3,
		},
		Arguments: &agentpb.Arguments{Event: &agentpb.Arguments_Rcpt{Rcpt: &agentpb.RcptArguments{Recipient: recipient}}},
	}
}

func contextOf(t *testing.T, octets []byte) *eventContext {
	t.Helper()
	e, err := parseEvent(octets)
	if err != nil {
		t.Fatal(err)
	}
	return &eventContext{event: e, generation: &generation{instance: "label"}}
}

func TestEveryFactIsRead(t *testing.T) {
	octets, err := proto.Marshal(full())
	if err != nil {
		t.Fatal(err)
	}
	c := contextOf(t, octets)
	e := newRcptEvent(c)
	want := &RcptEvent{
		Event: Event{
			ID: "S.1.OnRcpt.1", Kind: OnRcpt, Attempt: 2, Time: time.Unix(0, -5), DryRun: true, Needed: true, context: c,
			Session: &Session{
				ID: "S", Connector: "internet", Client: Address{netip.MustParseAddr("192.0.2.7")}, ClientPort: 40123,
				Peer: Address{netip.MustParseAddr("192.0.2.9")}, Local: Address{netip.MustParseAddr("2001:db8::1")}, LocalPort: 25,
				Helo: "h\xff", Extended: true, Trust: Partner, Traffic: Outbound, Started: time.Unix(0, 1e18), EarlyTalk: true,
				TLS:  &TLS{"TLS 1.3", "c", "n", "s", true},
				Auth: &Auth{"PLAIN", "me"}, Commands: 9, Rejects: 2, Unsynchronized: 3,
			},
		},
		Envelope: Envelope{
			TrackingID: "S.1", RecipientCount: 1,
			Sender: EnvelopeSender{address.Mailbox{Local: "s+x", Domain: "x.example"}, 4096, "8BITMIME", true, true, "HDRS", "e", "a"},
		},
		Recipient: EnvelopeRecipient{
			Mailbox: address.Mailbox{Local: "a b", Domain: "y.example"}, Index: 4, ORCPT: "rfc822;o@y.example",
			Notify: []string{"SUCCESS", "DELAY"}, Original: address.Mailbox{Local: "old", Domain: "y.example"},
			ExpandedFrom: address.Mailbox{Local: "group", Domain: "y.example"}, NextHop: "to-hub 10.0.0.1",
		},
	}
	want.Recipients = []EnvelopeRecipient{want.Recipient}
	if !reflect.DeepEqual(e, want) {
		t.Errorf("got  %+v %+v\nwant %+v %+v", e, e.Session, want, want.Session)
	}
	message := messageOf(c.event.message)
	if message != (Message{100, 1 << 40, address.Mailbox{Local: "From", Domain: "x.example"}, "<i@x>", "ü", 3}) {
		t.Errorf("message %+v", message)
	}
	if e.Stamp("scl") != "5" || len(c.own().GetRows()) != 1 || len(c.own().GetHeaders()) != 1 || !c.event.hasBody ||
		string(c.own().GetBody().GetInline()) != "abc" {
		t.Errorf("own part %v", c.own())
	}
	if !proto.Equal(e.Proto(), full()) {
		t.Errorf("Proto %v", e.Proto())
	}
}

// The host joins marshalled parts in any order, and sends what this SDK does not know yet.
func TestConcatenatedParts(t *testing.T) {
	parts := []*agentpb.Event{
		{Kind: OnRcpt, Session: &agentpb.Session{Id: "S"}},
		{Stamps: []*agentpb.Stamp{{Name: "a", Value: []byte("1")}}},
		{Id: 9, Attempt: 1, Session: &agentpb.Session{Connector: "late"}},
		{Stamps: []*agentpb.Stamp{{Name: "b", Value: []byte("2")}}},
	}
	var octets []byte
	for _, p := range parts {
		part, err := proto.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		octets = append(octets, part...)
		octets = protowire.AppendTag(octets, 900, protowire.Fixed64Type)
		octets = protowire.AppendFixed64(octets, 1)
		octets = protowire.AppendTag(octets, 901, protowire.BytesType)
		octets = protowire.AppendBytes(octets, []byte("from the future"))
	}
	c := contextOf(t, octets)
	e := newRcptEvent(c)
	if e.Session.ID != "S" || e.Session.Connector != "late" || e.Stamp("a") != "1" || e.Stamp("b") != "2" || c.event.id != 9 {
		t.Errorf("%+v %+v", e, e.Session)
	}
}

// A header of very many fields costs its length, not its square.
func TestManyFields(t *testing.T) {
	e := &agentpb.Event{}
	for i := range 10_000 {
		e.Headers = append(e.Headers, &agentpb.HeaderField{Name: []byte("X"), Value: []byte(" y"), Index: uint32(i)})
	}
	octets, err := proto.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(octets)
	result := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			if _, err := parseEvent(octets); err != nil {
				b.Fatal(err)
			}
		}
	})
	if n := result.AllocedBytesPerOp(); n > int64(20*len(octets)) {
		t.Errorf("%d octets are allocated for an event of %d", n, len(octets))
	}
	if !bytes.Equal(octets, before) {
		t.Error("the event was changed")
	}
}

func FuzzRequest(f *testing.F) {
	octets, err := proto.Marshal(&agentpb.EventsRequest{
		Events: []*agentpb.Event{full()}, Cancel: []uint64{1, 2}, Ping: &agentpb.Ping{Nonce: 3},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(octets)
	f.Add([]byte{0x0a, 0x04, 0xc2, 0x01, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, octets []byte) {
		r, err := parseRequest(octets)
		if err != nil {
			return
		}
		want := new(agentpb.EventsRequest)
		if proto.Unmarshal(octets, want) != nil {
			return // not UTF-8 where it should be: read all the same
		}
		if len(want.Events) != len(r.events) || len(want.Cancel) != len(r.cancel) {
			t.Fatalf("%d events and %d cancels, want %v", len(r.events), len(r.cancel), want)
		}
		for i, e := range r.events {
			c := &eventContext{event: e, generation: &generation{}}
			got := newRcptEvent(c)
			newMailEvent(c)
			newDataEvent(c)
			if got.Session.ID != want.Events[i].GetSession().GetId() || e.id != want.Events[i].GetId() {
				t.Fatalf("session %q id %d, want %v", got.Session.ID, e.id, want.Events[i])
			}
		}
	})
}
