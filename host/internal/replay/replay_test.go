package replay

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/agentpb"
)

// player is an agent inside the test.
type player struct {
	subscriptions []*agentpb.Subscription
	answer        func(e *agentpb.Event) *agentpb.Answer
}

func (p *player) Name() string { return "player" }
func (p *player) Manifest() *agentpb.DescribeResponse {
	return &agentpb.DescribeResponse{Name: "player", Version: "1.0.0"}
}
func (p *player) Subscriptions() []*agentpb.Subscription { return p.subscriptions }
func (p *player) Call(_ context.Context, c *agent.Call) (agent.Result, error) {
	var e agentpb.Event
	if err := proto.Unmarshal(slices.Concat(c.Facts, c.Own), &e); err != nil {
		return agent.Result{}, &agent.Failure{Agent: "player", Kind: agent.Faulty, Detail: err.Error()}
	}
	return agent.Result{Answer: p.answer(&e), Version: "1.0.0", Attempts: []agent.Attempt{{Version: "1.0.0"}}}, nil
}

func verdict(kind agentpb.VerdictKind) *agentpb.Answer {
	return &agentpb.Answer{Verdicts: []*agentpb.Verdict{{Kind: kind}}}
}

const testConfig = `
host {
  name     = "edge.example.org"
  data_dir = "DATA"
}
receive_connector "internet" {
  listen      = ["127.0.0.1:2525"]
  permissions = ["anonymous"]
  limits {
    tarpit = "30s"
  }
}
receive_connector "from-hub" {
  listen      = ["127.0.0.2:2525"]
  remote      = ["10.30.0.0/16"]
  permissions = ["own_servers"]
}
accepted_domain "example.org" { type = "authoritative" }
send_connector "inside" {
  address_spaces = ["example.org"]
  drop_directory = "drop"
}
send_connector "outside" {
  address_spaces = ["*"]
  dns            = true
}
`

func engine(t *testing.T, connector string, p *player) *Engine {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.hcl")
	if err := os.WriteFile(path, []byte(strings.Replace(testConfig, "DATA", t.TempDir(), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	c, found := config.Load(path, config.Options{})
	if found.Errors() {
		t.Fatal(found.All())
	}
	var members []pipeline.Member
	if p != nil {
		members = append(members, pipeline.Member{Caller: p, Spec: &config.Agent{
			Name: "player", Enabled: true, Priority: 10,
			Timeout: config.Timeouts{Connect: time.Minute, Command: time.Minute, Message: time.Minute, Submitted: time.Minute},
		}})
	}
	e, err := New(Options{Config: c, Members: members, Rows: NoRows{}, Connector: connector, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func message(client string, to ...string) Message {
	return Message{
		Name: "m", Client: netip.AddrPortFrom(netip.MustParseAddr(client), 4321), Helo: "mail.a.example", From: "ann@a.example", To: to,
		Raw: []byte("From: ann@a.example\nX-Postern-SCL: -1\nSubject: x\n\n.dot\nbody\n"),
	}
}

func replay(t *testing.T, e *Engine, m Message) *Report {
	t.Helper()
	r, err := e.Replay(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRouting(t *testing.T) {
	for _, test := range []struct {
		name, client, to, connector, result, hop string
	}{
		{"a stranger to us", "192.0.2.1", "bob@example.org", "internet", "accepted", "inside/"},
		{"a stranger relaying", "192.0.2.1", "bob@elsewhere.example", "internet", "refused", ""},
		{"our hub relaying", "10.30.0.11", "bob@elsewhere.example", "from-hub", "accepted", "outside/elsewhere.example"},
		{"IPv6", "2001:db8::1", "bob@example.org", "internet", "accepted", "inside/"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := replay(t, engine(t, "", nil), message(test.client, test.to))
			if r.Connector != test.connector || r.Result != test.result {
				t.Fatalf("%+v", r)
			}
			if test.hop == "" {
				if len(r.Items) != 0 {
					t.Errorf("%+v", r.Items)
				}
				return
			}
			if len(r.Items) != 1 || !strings.HasPrefix(r.Items[0].Hop, test.hop) {
				t.Errorf("%+v", r.Items)
			}
		})
	}
}

func TestRefusedAtConnect(t *testing.T) {
	e := engine(t, "", &player{
		subscriptions: []*agentpb.Subscription{{Event: agentpb.EventKind_EVENT_KIND_CONNECT, MayChange: &agentpb.Changes{Verdict: true}}},
		answer:        func(*agentpb.Event) *agentpb.Answer { return verdict(agentpb.VerdictKind_VERDICT_KIND_REJECT) },
	})
	for range 2 {
		r := replay(t, e, message("192.0.2.1", "bob@example.org"))
		if r.Result != "refused" || len(r.Dialog) != 1 || !strings.HasPrefix(r.Dialog[0].Reply, "554 ") || len(r.Verdicts) == 0 {
			t.Errorf("%+v", r)
		}
	}
}

func TestEventsAreDryAndWritesAreSeen(t *testing.T) {
	var seen []string
	e := engine(t, "", &player{
		subscriptions: []*agentpb.Subscription{
			{Event: agentpb.EventKind_EVENT_KIND_MAIL, MayChange: &agentpb.Changes{Tables: []string{"own"}},
				Tables: []*agentpb.TableUse{{Table: "own", Key: []*agentpb.KeyPart{{Fact: agentpb.Fact_FACT_SENDER}}}}},
			{Event: agentpb.EventKind_EVENT_KIND_CATEGORIZED, MayChange: &agentpb.Changes{}},
		},
		answer: func(event *agentpb.Event) *agentpb.Answer {
			if !event.DryRun {
				t.Errorf("%v is no dry run", event.Kind)
			}
			a := verdict(agentpb.VerdictKind_VERDICT_KIND_CONTINUE)
			if event.Kind == agentpb.EventKind_EVENT_KIND_MAIL {
				for _, row := range event.Rows {
					if row.Found {
						seen = append(seen, string(row.Value))
					}
				}
				a.Writes = []*agentpb.TableWrite{{Table: "own", Key: []byte("ann@a.example"), Op: agentpb.TableOp_TABLE_OP_ADD, Field: "n", Amount: 1}}
			} else {
				seen = append(seen, "categorized")
			}
			return a
		},
	})
	for range 2 {
		if r := replay(t, e, message("192.0.2.1", "bob@example.org")); r.Result != "accepted" {
			t.Fatalf("%+v", r)
		}
	}
	if want := []string{"categorized", `{"n":1}`, "categorized"}; !reflect.DeepEqual(seen, want) {
		t.Errorf("seen %q, want %q", seen, want)
	}
}

func TestConnectorThatIsNotThere(t *testing.T) {
	_, err := engine(t, "nowhere", nil).Replay(t.Context(), message("192.0.2.1", "bob@example.org"))
	if err == nil || !strings.Contains(err.Error(), `no receive connector "nowhere"`) {
		t.Errorf("%v", err)
	}
}

func TestEnvelope(t *testing.T) {
	null, given := "", "given@a.example"
	client := netip.MustParseAddr("192.0.2.1")
	for _, test := range []struct {
		name     string
		envelope Envelope
		raw      string
		from     string
		to       []string
		rest     string
	}{
		{"drop directory", Envelope{}, "X-Sender: <ann@a.example> BODY=8BITMIME\r\nX-Receiver: <bob@b.example> NOTIFY=NEVER\r\nX-Receiver: <cid@b.example>\r\nFrom: x@y.example\r\n\r\nhi",
			"ann@a.example", []string{"bob@b.example", "cid@b.example"}, "From: x@y.example\r\n\r\nhi"},
		{"drop directory, null sender", Envelope{}, "X-Sender: <>\r\nX-Receiver: <bob@b.example>\r\nFrom: x@y.example\r\n\r\n", "", []string{"bob@b.example"}, "From: x@y.example\r\n\r\n"},
		{"header", Envelope{}, "From: Ann <ann@a.example>\nTo: b@b.example, c@b.example\nCc: b@b.example\n\n", "ann@a.example", []string{"b@b.example", "c@b.example"}, ""},
		{"delivered mail", Envelope{}, "Return-Path: <bounce@a.example>\nDelivered-To: bob@b.example\nFrom: ann@a.example\nTo: list@b.example\n\n", "bounce@a.example", []string{"bob@b.example"}, ""},
		{"given", Envelope{From: &given, To: []string{"to@b.example"}}, "From: ann@a.example\nTo: b@b.example\n\n", "given@a.example", []string{"to@b.example"}, ""},
		{"given null sender", Envelope{From: &null}, "From: ann@a.example\nTo: b@b.example\n\n", "", []string{"b@b.example"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.envelope.Client = client
			m, err := test.envelope.Message("m", []byte(test.raw))
			if err != nil {
				t.Fatal(err)
			}
			if test.rest == "" {
				test.rest = test.raw
			}
			if m.From != test.from || !reflect.DeepEqual(m.To, test.to) || string(m.Raw) != test.rest {
				t.Errorf("%+v", m)
			}
		})
	}
	if _, err := (Envelope{Client: client}).Message("m", []byte("Subject: x\n\n")); err == nil || !strings.Contains(err.Error(), "--to") {
		t.Errorf("%v", err)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"a.eml":   "Subject: a\n\nFrom here on\n",
		"b/mbox":  "From ann Mon\nSubject: 1\n\nx\nFrom the middle\n>From quoted\n\nFrom bob Tue\nSubject: 2\n\nlast",
		"c/empty": "",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	err := Files([]string{dir}, func(name string, raw []byte) error {
		got = append(got, strings.TrimPrefix(name, dir)+"="+string(raw))
		return nil
	})
	want := []string{"/a.eml=Subject: a\n\nFrom here on\n", "/b/mbox:1=Subject: 1\n\nx\nFrom the middle\nFrom quoted\n\n", "/b/mbox:2=Subject: 2\n\nlast", "/c/empty="}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\n%q\n%q", err, got, want)
	}
	broken := errors.New("broken")
	if err := Files([]string{dir}, func(string, []byte) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

// TestOverlay does the same writes to an overlay above a store and to another store, and compares.
func TestOverlayIsAsAStoreIs(t *testing.T) {
	open := func() tables.Store {
		s, err := tables.Open(t.TempDir(), tables.Options{Logger: hclog.NewNullLogger()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	first := []tables.Write{
		{Table: "t", Key: "a", Op: tables.Put, Value: []byte(`{"n":1}`)},
		{Table: "t", Key: "b", Op: tables.Put, Value: []byte(`{"n":2}`)},
		{Table: "ip", Key: "192.0.2.0/24", Op: tables.Put, Value: []byte(`{}`)},
		{Table: "ip", Key: "2001:db8::/32", Op: tables.Put, Value: []byte(`{}`)},
	}
	second := []tables.Write{
		{Table: "t", Key: "a", Op: tables.Add, Field: "n", Amount: 5},
		{Table: "t", Key: "new", Op: tables.Add, Field: "n", Amount: 5},
		{Table: "t", Key: "a", Op: tables.PutIfAbsent, Value: []byte(`{"n":99}`)},
		{Table: "t", Key: "c", Op: tables.PutIfAbsent, Value: []byte(`{"n":3}`)},
		{Table: "t", Key: "b", Op: tables.Delete},
		{Table: "t", Key: "once", Op: tables.Add, Field: "n", Amount: 1, EventID: "e1"},
		{Table: "ip", Key: "192.0.2.128/25", Op: tables.Put, Value: []byte(`{"x":1}`)},
	}
	below, plain := open(), open()
	below.Apply(first)
	plain.Apply(first)
	overlay := NewOverlay(below)
	for range 2 { // the write with an event id applies once
		overlay.Apply(second)
		plain.Apply(second)
	}
	for _, key := range []string{"a", "b", "c", "new", "once", "none"} {
		got, gotFound := overlay.Get("t", key)
		want, wantFound := plain.Get("t", key)
		if gotFound != wantFound || string(got.Value) != string(want.Value) {
			t.Errorf("%s: %s %v, a store has %s %v", key, got.Value, gotFound, want.Value, wantFound)
		}
	}
	for _, text := range []string{"192.0.2.1", "192.0.2.200", "198.51.100.1", "2001:db8::5", "::ffff:192.0.2.200"} {
		addr := netip.MustParseAddr(text)
		got, gotFound := overlay.Match("ip", addr)
		want, wantFound := plain.Match("ip", addr)
		if gotFound != wantFound || got.Key != want.Key {
			t.Errorf("%s: %s %v, a store has %s %v", text, got.Key, gotFound, want.Key, wantFound)
		}
	}
	if row, _ := below.Get("t", "a"); string(row.Value) != `{"n":1}` {
		t.Errorf("the store below has %s", row.Value)
	}
}
