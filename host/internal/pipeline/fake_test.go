package pipeline

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Short names for the tests.
const (
	onConnect = agentpb.EventKind_EVENT_KIND_CONNECT
	onMail    = agentpb.EventKind_EVENT_KIND_MAIL
	onRcpt    = agentpb.EventKind_EVENT_KIND_RCPT
	onHeaders = agentpb.EventKind_EVENT_KIND_END_OF_HEADERS
	onData    = agentpb.EventKind_EVENT_KIND_END_OF_DATA
	onReject  = agentpb.EventKind_EVENT_KIND_REJECT
	onSubmit  = agentpb.EventKind_EVENT_KIND_SUBMITTED
	onResolve = agentpb.EventKind_EVENT_KIND_RESOLVED
	kContinue = agentpb.VerdictKind_VERDICT_KIND_CONTINUE
	kReject   = agentpb.VerdictKind_VERDICT_KIND_REJECT
	kDefer    = agentpb.VerdictKind_VERDICT_KIND_DEFER
	kBypass   = agentpb.VerdictKind_VERDICT_KIND_BYPASS
	kDone     = agentpb.VerdictKind_VERDICT_KIND_DONE
)

// shown is an event as a fake agent sees it.
type shown struct {
	*agentpb.Event
	body []byte
	call *agent.Call
}

// fake is an agent without a process.
type fake struct {
	name     string
	manifest *agentpb.DescribeResponse
	subs     []*agentpb.Subscription
	spec     *config.Agent
	answer   func(ctx context.Context, e *shown) *agentpb.Answer
	fails    func(e *shown) *agent.Failure
	calls    atomic.Int64

	mu   sync.Mutex
	seen []*shown
}

func (f *fake) Name() string                           { return f.name }
func (f *fake) Manifest() *agentpb.DescribeResponse    { return f.manifest }
func (f *fake) Subscriptions() []*agentpb.Subscription { return f.subs }

// Call implements Caller the way *agent.Agent does: facts and own part are one event.
func (f *fake) Call(ctx context.Context, c *agent.Call) (agent.Result, error) {
	f.calls.Add(1)
	e := &shown{Event: &agentpb.Event{}, call: c}
	wire := append(append([]byte{}, c.Facts...), c.Own...)
	if err := proto.Unmarshal(wire, e.Event); err != nil {
		return agent.Result{}, &agent.Failure{Agent: f.name, Kind: agent.Died, Detail: err.Error()}
	}
	if c.Body != nil {
		e.body, _ = io.ReadAll(c.Body.Reader())
		if c.Prefix > 0 {
			e.body = e.body[:min(c.Prefix, int64(len(e.body)))]
		}
	}
	f.mu.Lock()
	f.seen = append(f.seen, e)
	f.mu.Unlock()
	attempt := agent.Attempt{Instance: f.name + "/1", Version: f.manifest.Version, Took: time.Microsecond}
	if f.fails != nil {
		if failure := f.fails(e); failure != nil {
			attempt.Failure = failure
			return agent.Result{Version: f.manifest.Version, Attempts: []agent.Attempt{attempt}}, failure
		}
	}
	answer := f.answer(ctx, e)
	return agent.Result{Answer: answer, Version: f.manifest.Version, Attempts: []agent.Attempt{attempt}}, nil
}

func (f *fake) last(t *testing.T) *shown {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.seen) == 0 {
		t.Fatalf("agent %s was not asked", f.name)
	}
	return f.seen[len(f.seen)-1]
}

// everything that a subscription may declare.
func everything(kind agentpb.EventKind) *agentpb.Subscription {
	return &agentpb.Subscription{Event: kind, MayChange: &agentpb.Changes{
		Verdict: true, Headers: true, Body: true, Envelope: true, Stamps: []string{"*"}, Tables: []string{"own", "reputation"},
		Bypass: true, KeepCopy: true, Spawn: true, Route: true,
	}}
}

func verdict(k agentpb.VerdictKind, recipients ...uint32) *agentpb.Verdict {
	return &agentpb.Verdict{Kind: k, Recipients: recipients}
}

func say(v ...*agentpb.Verdict) *agentpb.Answer { return &agentpb.Answer{Verdicts: v} }

func carryOn() *agentpb.Answer { return say(verdict(kContinue)) }

func always(a *agentpb.Answer) func(context.Context, *shown) *agentpb.Answer {
	return func(context.Context, *shown) *agentpb.Answer { return a }
}

func newFake(name string, priority int, answer *agentpb.Answer, subs ...*agentpb.Subscription) *fake {
	return &fake{
		name: name, subs: subs, answer: always(answer), spec: &config.Agent{Name: name, Priority: priority},
		manifest: &agentpb.DescribeResponse{
			Name: name, Version: "1.0.0", Capabilities: &agentpb.Capabilities{Need: true}, SharedStamps: []string{"scl"},
		},
	}
}

// bench of a test: a pipeline with fakes and a store.
type rig struct {
	*Pipeline
	store    tables.Store
	breaches []string
	mu       sync.Mutex
}

func newRig(t testing.TB, agents ...*fake) *rig {
	t.Helper()
	g := &rig{store: openTables(t)}
	logger := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard})
	logger.RegisterSink(g)
	g.Pipeline = New(Options{
		Tables: g.store, Logger: logger, NewID: func() string { return "id" },
		Accepted: []config.AcceptedDomain{{Name: "here.example"}, {Name: "*.sub.example"}},
		TempFile: func() (*os.File, error) { return unnamedFile(t.TempDir()) },
		Breach: func(_, part string) {
			if !slices.Contains([]string{breachVerdict, breachEdit, breachSpawn, breachStamp, breachWrite, breachNeed}, part) {
				t.Errorf("breach in %q", part)
			}
		},
	})
	g.SetPlan(plan(t, agents...))
	return g
}

// Accept implements hclog.SinkAdapter: breaches are read from the log.
func (g *rig) Accept(_ string, _ hclog.Level, message string, args ...any) {
	if !strings.HasPrefix(message, "breach") {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	said := map[any]any{}
	for i := 0; i+1 < len(args); i += 2 {
		said[args[i]] = args[i+1]
	}
	g.breaches = append(g.breaches, fmt.Sprintf("%s: %s", said["agent"], said["reason"]))
}

func plan(t testing.TB, agents ...*fake) *Plan {
	t.Helper()
	var members []Member
	for _, f := range agents {
		members = append(members, Member{Caller: f, Spec: f.spec})
	}
	p, err := NewPlan(members)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func openTables(t testing.TB) tables.Store {
	t.Helper()
	store, err := tables.Open(t.TempDir(), tables.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

func session() *envelope.Session {
	return &envelope.Session{
		ID: "sess", Connector: "internet", Client: netip.MustParseAddrPort("192.0.2.7:4711"), Peer: netip.MustParseAddrPort("192.0.2.7:4711"),
		Local: netip.MustParseAddrPort("192.0.2.1:25"), Helo: "Client.Example", Extended: true, Trust: envelope.Anonymous,
	}
}

const sampleHeader = "Received: from a\r\n by b\r\nFrom: \"Doe, J\" <J.Doe@Else.Example>\r\nTo: <r0@here.example>\r\nSubject: hello\r\n world\r\nX-Twice: 1\r\nx-twice: 2\r\nMessage-ID: <1@else.example>\r\n"

func box(s string) address.Mailbox {
	m, err := address.Parse(s)
	if err != nil {
		panic(err)
	}
	return m
}

func mail(recipients ...string) *envelope.Mail {
	m := &envelope.Mail{
		ID: "sess.1", Sender: envelope.Sender{Address: box("s@else.example")}, Header: []byte(sampleHeader),
		OriginalHeader: []byte(sampleHeader), Body: envelope.MemoryBody([]byte("line one\r\nline two\r\n")),
	}
	m.OriginalBody = m.Body
	for _, r := range recipients {
		m.AddRecipient(&envelope.Recipient{Address: box(r), ORCPT: "rfc822;" + r})
	}
	return m
}

func (g *rig) raise(t testing.TB, kind agentpb.EventKind, m *envelope.Mail) *Outcome {
	t.Helper()
	return g.Open(session(), nil).Raise(context.Background(), &Event{Kind: kind, ID: "event", Mail: m})
}

// tablesWrites puts an empty row for each pair of table and key.
func tablesWrites(pairs ...string) (list []tables.Write) {
	for i := 0; i+1 < len(pairs); i += 2 {
		list = append(list, tables.Write{Table: pairs[i], Key: pairs[i+1], Op: tables.Put, Value: []byte("{}")})
	}
	return list
}
