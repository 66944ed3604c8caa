// Package admintest plays a host for tests of the control socket and of the commands: a few connectors, agents,
// messages and tables that are always the same.
package admintest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Now is when everything happens.
var Now = time.Date(2031, 5, 6, 12, 0, 0, 0, time.UTC)

// Host that is played.
type Host struct {
	Queue   *Queue
	Agent   *Agent
	Tables  *Tables
	Ledger  *tracking.File
	Metrics *admin.Metrics
}

// New makes a host whose ledger is in a folder of t.
func New(t *testing.T) *Host {
	t.Helper()
	ledger, err := tracking.Open(t.TempDir(), tracking.Options{Now: func() time.Time { return Now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ledger.Close() })
	h := &Host{Queue: NewQueue(), Agent: &Agent{}, Tables: NewTables(), Ledger: ledger, Metrics: admin.NewMetrics()}
	counted := h.Metrics.Ledger(ledger)
	for _, r := range Records() {
		counted.Write(&r)
	}
	return h
}

// Deps of the host.
func (h *Host) Deps() admin.Deps {
	agents := admin.Agents(h.agents)
	h.Metrics.SetSource(admin.MetricsSource{
		Version: "1.2.3", Queue: h.Queue, Agents: agents.List, Dropped: h.Ledger.Dropped, Listens: listeners,
	})
	return admin.Deps{
		Info:      admin.Info{Version: "1.2.3", Name: "edge.example.org", Config: "/etc/postern/config.hcl", DataDir: "/var/lib/postern", Started: Now.Add(-26 * time.Hour)},
		Queue:     h.Queue,
		Agents:    agents,
		Pipeline:  plan,
		Tables:    h.Tables,
		Ledger:    h.Ledger,
		Listeners: listeners,
		Effective: func() any {
			return config.Effective{{Type: "host", Source: "config.hcl:1", Values: []config.EffectiveValue{{Name: "name", Value: `"edge.example.org"`, Source: "config.hcl:2"}}}}
		},
		Health:     func() (degraded, drift []string) { return []string{"agent antivirus is not running since 11:58"}, nil },
		Postmaster: "postmaster@example.org",
		LookupMX: func(context.Context, string) ([]*net.MX, error) {
			return []*net.MX{{Host: "mx1.example.org.", Pref: 10}}, nil
		},
		Metrics: h.Metrics,
		Logger:  hclog.NewNullLogger(),
	}
}

// Serve serves the host until the test ends and answers with the path of its socket.
func (h *Host) Serve(t *testing.T, dir string) string {
	t.Helper()
	socket := admin.SocketPath(dir)
	server, err := admin.Serve(socket, h.Deps())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return socket
}

func listeners() []admin.Listener {
	return []admin.Listener{
		{Connector: "internet", Address: "203.0.113.25:25", Permissions: []string{"anonymous"}, TLS: "starttls", Connections: 3, Accepted: 1204, Refused: 17},
		{Connector: "from-hub", Address: "10.20.0.1:25", Permissions: []string{"own_servers"}, TLS: "required", Connections: 1, Accepted: 88},
	}
}

func plan() []pipeline.EventPlan {
	connfilter := pipeline.AgentPlan{Agent: "connfilter", Version: "1.0.0", Priority: 10, Changes: []string{"verdict", "bypass"}, Waits: true, OnFailure: "defer", Timeout: "5s"}
	content := pipeline.AgentPlan{Agent: "contentfilter", Version: "2.1.0", Priority: 40, Reads: []string{"headers", "body"}, Changes: []string{"verdict", "headers", "stamp scl"}, OnFailure: "defer", Timeout: "20s"}
	return []pipeline.EventPlan{
		{Event: "OnRcpt", Stages: []pipeline.StagePlan{{Agents: []pipeline.AgentPlan{connfilter}}}},
		{Event: "OnEndOfData", Stages: []pipeline.StagePlan{
			{Agents: []pipeline.AgentPlan{connfilter}},
			{Agents: []pipeline.AgentPlan{content}, Apart: "connfilter may bypass contentfilter"},
		}},
	}
}

func (h *Host) agents() []admin.Running {
	return []admin.Running{
		{
			Spec: config.Agent{
				Name: "contentfilter", Plugin: "contentfilter", Priority: 40, Enabled: true, Version: "~> 2.1",
				Command: []string{"catalog/content/contentfilter"}, SHA256: map[string]string{"catalog/content/contentfilter": "21"},
			},
			Process: h.Agent, Source: "catalog",
			Installed: []admin.Installed{
				{Version: "3.0.0", Protocol: 1, SHA256: "30"}, {Version: "2.2.0", Protocol: 1, SHA256: "22", Allowed: true},
				{Version: "2.1.0", Protocol: 1, SHA256: "21", Allowed: true, Runs: true},
			},
		},
		{Spec: config.Agent{Name: "journal", Plugin: "journal", Priority: 90}},
		{Spec: config.Agent{Name: "antivirus", Plugin: "antivirus", Priority: 110, Enabled: true}},
	}
}

// Agent plays contentfilter.
type Agent struct {
	mu       sync.Mutex
	restarts int
	Broken   bool // it cannot be restarted
}

// Manifest implements admin.Process.
func (*Agent) Manifest() *agentpb.DescribeResponse {
	return &agentpb.DescribeResponse{
		Name: "contentfilter", Version: "2.1.0", Category: agentpb.Category_CATEGORY_ANTISPAM, Summary: "judges what a message says", Sdk: "go 1.0.0",
	}
}

// Subscriptions implements admin.Process.
func (*Agent) Subscriptions() []*agentpb.Subscription {
	return []*agentpb.Subscription{{
		Event: agentpb.EventKind_EVENT_KIND_END_OF_DATA, Headers: &agentpb.HeaderNeed{All: true},
		Body:      &agentpb.BodyNeed{Mode: agentpb.BodyMode_BODY_MODE_WHOLE},
		MayChange: &agentpb.Changes{Verdict: true, Headers: true, Stamps: []string{"scl"}},
	}}
}

// Status implements admin.Process.
func (a *Agent) Status() agent.Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	return agent.Status{
		Name: "contentfilter", Version: "2.1.0", Protocol: 1, Breaches: map[string]uint64{"a header with a line end": 2},
		DeadLetters: agent.DeadLetters{Late: 3},
		Instances: []agent.InstanceStatus{
			{Number: 1, PID: 4711, State: agent.Up, Version: "2.1.0", Since: Now.Add(-time.Hour), Restarts: 1 + a.restarts, InFlight: 2},
			{Number: 2, State: agent.Waiting, Since: Now.Add(-time.Minute), Restarts: 4, LastExit: "signal: killed", Stderr: []string{"loading model", "out of memory"}},
		},
	}
}

// Ready implements admin.Process.
func (*Agent) Ready() bool { return true }

// Restart implements admin.Process.
func (a *Agent) Restart(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.Broken {
		return errors.New("agent contentfilter: starting: exit status 1: no such file: model.bin")
	}
	a.restarts++
	return nil
}

// Queue plays a queue.
type Queue struct {
	mu    sync.Mutex
	items map[string]*queue.Item
}

// NewQueue makes a queue with an item in every state.
func NewQueue() *Queue {
	q := &Queue{items: map[string]*queue.Item{}}
	add := func(id string, state queue.State, ago time.Duration, change func(*queue.Item)) {
		base, _, _ := strings.Cut(id, "-")
		session, _, _ := strings.Cut(base, ".")
		item := &queue.Item{
			ID: id, Message: base, Origin: queue.OriginSMTP, State: state, Received: Now.Add(-ago), Next: Now, Expires: Now.Add(48 * time.Hour),
			Session: envelope.Session{ID: session, Connector: "internet", Client: netip.MustParseAddrPort("192.0.2.7:4321"), Helo: "mail.a.example", Trust: envelope.Anonymous},
			Mail: &envelope.Mail{
				ID: base, Sender: envelope.Sender{Address: address.Mailbox{Local: "ann", Domain: "a.example"}}, Traffic: envelope.External,
				Header: []byte("From: Ann <ann@a.example>\r\nSubject: Offer of\r\n the month\r\nMessage-ID: <m1@a.example>\r\n"),
				Body:   envelope.MemoryBody([]byte("Hello\r\n")), Stamps: envelope.Stamps{"scl": []byte("5")},
			},
			Prefix: []byte("Received: from mail.a.example\r\n"),
		}
		item.Mail.AddRecipient(&envelope.Recipient{Address: address.Mailbox{Local: "bob", Domain: "example.org"}})
		if change != nil {
			change(item)
		}
		q.items[id] = item
	}
	add("06azv5q8e0aaaaaa.1", queue.Ready, 3*time.Hour, func(i *queue.Item) {
		i.Routed, i.Hop, i.Attempts, i.Next, i.LastError = true, "to-hub/10.30.0.11", 5, Now.Add(7*time.Minute), "451 4.3.2 try again"
	})
	add("06azv5q8e0aaaaab.1", queue.Waiting, 2*time.Hour, func(i *queue.Item) { i.WaitingFor = "antivirus" })
	add("06azv5q8e0aaaaac.1", queue.Suspended, time.Hour, func(i *queue.Item) { i.Routed, i.Hop = true, "to-hub/10.30.0.11" })
	add("06azv5q8e0aaaaad.1", queue.Parked, 30*time.Minute, func(i *queue.Item) {
		i.Agent, i.Reason, i.Evidence = "contentfilter", "it killed two instances", "exit: signal 11\nstderr: \x1b[31mpanic"
	})
	add("06azv5q8e0aaaaae.1", queue.Quarantined, 20*time.Minute, func(i *queue.Item) { i.Agent, i.Reason = "contentfilter", "scl 8" })
	add("06azv5q8e0aaaaae.1-x", queue.Quarantined, 20*time.Minute, func(i *queue.Item) { i.Agent, i.Reason = "contentfilter", "scl 8" })
	return q
}

// Entries implements admin.QueueControl.
func (q *Queue) Entries(filter func(queue.Entry) bool) []queue.Entry {
	q.mu.Lock()
	defer q.mu.Unlock()
	var list []queue.Entry
	for _, i := range q.items {
		if e := entryOf(i); filter(e) {
			list = append(list, e)
		}
	}
	return list
}

func entryOf(i *queue.Item) queue.Entry {
	return queue.Entry{
		ID: i.ID, Message: i.Message, State: i.State, Hop: i.Hop, Routed: i.Routed, Attempts: i.Attempts, Received: i.Received, Next: i.Next,
		Expires: i.Expires, WaitingFor: i.WaitingFor, Sender: i.Mail.Sender.Address.String(), Recipients: len(i.Mail.Recipients), Size: i.Mail.Size(),
		Agent: i.Agent, Reason: i.Reason, LastError: i.LastError,
	}
}

// Load implements admin.QueueControl.
func (q *Queue) Load(id string) (*queue.Item, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := q.items[id]; i != nil {
		return i, nil
	}
	return nil, queue.ErrNotFound
}

func (q *Queue) change(id string, fn func(*queue.Item)) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := q.items[id]
	if i == nil {
		return queue.ErrNotFound
	}
	fn(i)
	return nil
}

// Retry implements admin.QueueControl.
func (q *Queue) Retry(ids ...string) error {
	for _, id := range ids {
		if err := q.change(id, func(i *queue.Item) { i.Next = Now }); err != nil {
			return err
		}
	}
	return nil
}

// Suspend implements admin.QueueControl.
func (q *Queue) Suspend(id string) error {
	return q.change(id, func(i *queue.Item) { i.State = queue.Suspended })
}

// Resume implements admin.QueueControl.
func (q *Queue) Resume(id string) error {
	return q.change(id, func(i *queue.Item) { i.State = queue.Ready })
}

// Remove implements admin.QueueControl.
func (q *Queue) Remove(id string) error {
	return q.change(id, func(i *queue.Item) { delete(q.items, id) })
}

// Release implements admin.QueueControl.
func (q *Queue) Release(id string) error {
	return q.change(id, func(i *queue.Item) { i.State, i.Origin = queue.Ready, queue.OriginRelease })
}

// Tables plays the shared tables.
type Tables struct {
	mu   sync.Mutex
	rows map[string][]tables.Row
}

// NewTables makes tables with some rows.
func NewTables() *Tables {
	t := &Tables{rows: map[string][]tables.Row{}}
	for i := range 5 {
		t.rows["greylist"] = append(t.rows["greylist"], tables.Row{
			Key: fmt.Sprintf("192.0.2.%d|a@b.example", i), Value: []byte(`{"seen":1}`), Created: Now.Add(-time.Hour), Expires: Now.Add(time.Hour),
		})
	}
	t.rows["ip-block"] = []tables.Row{{Key: "198.51.100.0/24", Value: []byte("{}"), Created: Now}}
	return t
}

// Get implements tables.Store.
func (t *Tables) Get(table, key string) (tables.Row, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.rows[table], func(r tables.Row) bool { return r.Key == key })
	if i < 0 {
		return tables.Row{}, false
	}
	return t.rows[table][i], true
}

// Match implements tables.Store.
func (t *Tables) Match(table string, addr netip.Addr) (tables.Row, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.rows[table] {
		if p, err := netip.ParsePrefix(r.Key); err == nil && p.Contains(addr) {
			return r, true
		}
	}
	return tables.Row{}, false
}

// Apply implements tables.Store.
func (t *Tables) Apply(writes []tables.Write) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, w := range writes {
		rows := slices.DeleteFunc(slices.Clone(t.rows[w.Table]), func(r tables.Row) bool { return r.Key == w.Key })
		if w.Op == tables.Put {
			row := tables.Row{Key: w.Key, Value: w.Value, Created: Now}
			if w.TTL > 0 {
				row.Expires = Now.Add(w.TTL)
			}
			rows = append(rows, row)
		}
		slices.SortFunc(rows, func(a, b tables.Row) int { return strings.Compare(a.Key, b.Key) })
		t.rows[w.Table] = rows
	}
}

// List implements tables.Store.
func (t *Tables) List(table, after string, fn func(tables.Row) bool) {
	t.mu.Lock()
	rows := slices.Clone(t.rows[table])
	t.mu.Unlock()
	for _, r := range rows {
		if r.Key > after && !fn(r) {
			return
		}
	}
}

// Names implements tables.Store.
func (t *Tables) Names() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	names := map[string]int{}
	for name, rows := range t.rows {
		names[name] = len(rows)
	}
	return names
}

// Replace implements tables.Store.
func (t *Tables) Replace(table string, rows []tables.Row) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows[table] = rows
}

// Close implements tables.Store.
func (t *Tables) Close() error { return nil }

// Records are the ledger: a message delivered to one of two recipients after a second attempt of an agent, one
// refused at RCPT and at the end of data, and a notification.
func Records() []tracking.Record {
	const session = "06azv5q8e0bbbbbb"
	at := func(millis int) time.Time { return Now.Add(time.Duration(millis) * time.Millisecond) }
	text := func(s string) *string { return &s }
	next := Now.Add(10 * time.Minute)
	incoming := tracking.Record{Session: session, Connector: "internet", Client: "192.0.2.7:4321", Helo: "mail.a.example", TLS: "TLS 1.3 TLS_AES_128_GCM_SHA256", Trust: "anonymous"}
	with := func(fill func(*tracking.Record)) tracking.Record {
		r := incoming
		fill(&r)
		return r
	}
	content := tracking.Verdict{Agent: "contentfilter", Version: "2.1.0", Event: "OnEndOfData", Verdict: "continue", Reason: "scored", Data: "scl 2",
		Edits: []string{"add header X-SCL"}, Stamps: []string{"scl=2"}, Micros: 840}
	died := tracking.Verdict{Agent: "contentfilter", Version: "2.1.0", Event: "OnEndOfData", Verdict: "failed", Failure: "died: signal: killed", Micros: 120, Attempt: 1}
	second := content
	second.Attempt = 2
	return []tracking.Record{
		with(func(r *tracking.Record) {
			r.Time, r.Event, r.Message, r.Command, r.Reply = at(20), tracking.Reject, session+".1", "RCPT", "550 5.7.1 not wanted ["+session+".1]"
			r.Agent, r.Version, r.AgentEvent, r.Reason = "connfilter", "1.0.0", "OnRcpt", "block list"
			r.Sender, r.Recipients = text("ann@a.example"), []tracking.Recipient{{Address: "eve@example.org"}}
			r.Verdicts = []tracking.Verdict{{Agent: "connfilter", Version: "1.0.0", Event: "OnRcpt", Verdict: "reject", Reply: "550 5.7.1 not wanted", Reason: "block list", Data: "zen.example 127.0.0.2", Micros: 2100}}
		}),
		with(func(r *tracking.Record) {
			r.Time, r.Event, r.Message, r.Size, r.Reply = at(50), tracking.Receive, session+".1", 4321, "250 2.6.0 <m1@a.example> ["+session+".1] Queued mail for delivery"
			r.MessageID, r.Subject, r.Traffic = "<m1@a.example>", "Offer of the \x1b[31mmonth", "external"
			r.Sender, r.Recipients = text("ann@a.example"), []tracking.Recipient{{Address: "bob@example.org"}, {Address: "cid@example.org"}}
			r.Verdicts = []tracking.Verdict{died, second}
		}),
		with(func(r *tracking.Record) {
			r.Time, r.Event, r.Message, r.Command, r.Reply = at(90), tracking.Reject, session+".2", "MESSAGE", "550 5.7.1 spam ["+session+".2]"
			r.Agent, r.Version, r.AgentEvent, r.Reason = "contentfilter", "2.1.0", "OnEndOfData", "scl 9"
			r.Sender, r.Recipients = text(""), []tracking.Recipient{{Address: "bob@example.org"}}
		}),
		with(func(r *tracking.Record) {
			r.Time, r.Event = at(120), tracking.Session
			r.Counts = &tracking.Counts{Commands: 9, Messages: 1, Rejects: 2, Millis: 118, End: "quit"}
		}),
		{Time: at(130), Event: tracking.Categorize, Message: session + ".1", Item: session + ".1", Session: session, Recipients: []tracking.Recipient{{Address: "bob@example.org", Status: "to to-hub/10.30.0.11"}, {Address: "cid@example.org", Status: "to to-hub/10.30.0.11"}}},
		{Time: at(300), Event: tracking.Send, Message: session + ".1", Item: session + ".1", Session: session, Sender: text("ann@a.example"), Connector: "to-hub", Remote: "hub [10.30.0.11]:25", TLS: "TLS 1.3",
			Recipients: []tracking.Recipient{{Address: "bob@example.org", Status: "delivered", Reply: "250 2.1.5 ok"}}},
		{Time: at(301), Event: tracking.Defer, Message: session + ".1", Item: session + ".1", Session: session, Sender: text("ann@a.example"), Connector: "to-hub", Remote: "hub [10.30.0.11]:25", Next: &next, Attempt: 1,
			Recipients: []tracking.Recipient{{Address: "cid@example.org", Status: "deferred", Reply: "452 4.2.2 mailbox full"}}},
		{Time: at(400), Event: tracking.DSN, Message: session + ".1", Item: session + ".1-dsn", Parent: session + ".1", Sender: text(""), Recipients: []tracking.Recipient{{Address: "ann@a.example"}}},
	}
}
