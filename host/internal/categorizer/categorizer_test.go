package categorizer

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/directory"
	"github.com/posternmail/postern/host/internal/dsn"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

const (
	onEndOfData   = agentpb.EventKind_EVENT_KIND_END_OF_DATA
	onSubmitted   = agentpb.EventKind_EVENT_KIND_SUBMITTED
	onResolved    = agentpb.EventKind_EVENT_KIND_RESOLVED
	onRouted      = agentpb.EventKind_EVENT_KIND_ROUTED
	onCategorized = agentpb.EventKind_EVENT_KIND_CATEGORIZED
)

var start = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// ledger keeps its records.
type ledger struct {
	mu      sync.Mutex
	records []*tracking.Record
}

func (l *ledger) Write(r *tracking.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, r)
}
func (l *ledger) Full() bool { return false }

// find the first record of event; a record without content when there is none.
func (l *ledger) find(event string) *tracking.Record {
	for _, r := range l.records {
		if r.Event == event {
			return r
		}
	}
	return &tracking.Record{}
}

// script plays the pipeline: what each event comes to.
type script struct {
	answers map[agentpb.EventKind]func(*pipeline.Event) *pipeline.Outcome
	events  []string
}

func (s *script) Subscribed(k agentpb.EventKind) bool { return s.answers[k] != nil }
func (s *script) Close(context.Context)               {}
func (s *script) Raise(_ context.Context, ev *pipeline.Event) *pipeline.Outcome {
	s.events = append(s.events, ev.ID)
	if f := s.answers[ev.Kind]; f != nil {
		if o := f(ev); o != nil {
			return o
		}
	}
	return on(ev)
}

// on is the outcome that lets the mail of ev go on.
func on(ev *pipeline.Event) *pipeline.Outcome {
	return &pipeline.Outcome{Mails: []*envelope.Mail{ev.Mail}}
}

func verdict(d pipeline.Decision) pipeline.Verdict {
	return pipeline.Verdict{Decision: d, Agent: "judge", Version: "1.0.0", Reason: "because",
		Reply: envelope.Reply{Code: 550, Enhanced: "5.7.1", Text: "not wanted"}}
}

// rig is a categorizer with a directory and four send connectors.
type rig struct {
	*Categorizer
	ledger *ledger
	script *script
	store  tables.Store
}

const directoryFile = `address,aliases,members
ann@own.example,a@own.example info@own.example
bob@own.example
all@own.example,everyone@own.example,ann@own.example bob@own.example staff@own.example
staff@own.example,,carl@far.example all@own.example a@own.example
loop@own.example,,pool@own.example
pool@own.example,,loop@own.example
`

func newRig(t testing.TB, change ...func(*config.Config)) *rig {
	t.Helper()
	cfg := &config.Config{
		Host:       config.Host{Name: "edge.own.example", Postmaster: "postmaster@own.example", OnPartialReject: "quarantine"},
		Queue:      config.Queue{ExpireAfter: 48 * time.Hour, GlitchInterval: time.Minute, RetryInterval: 30 * time.Minute},
		Quarantine: config.Quarantine{ExpireAfter: 720 * time.Hour},
		AcceptedDomains: []config.AcceptedDomain{
			{Name: "own.example", Type: config.Authoritative}, {Name: "other.example", Type: config.Authoritative},
			{Name: "relay.example", Type: config.InternalRelay}, {Name: "*.sub.example", Type: config.Authoritative}},
		SendConnectors: []config.SendConnector{
			{Name: "internet", DNS: true, AddressSpaces: []config.AddressSpace{{Pattern: "*", Cost: 1}}},
			{Name: "hub", SmartHosts: []string{"h1", "h2"}, AddressSpaces: []config.AddressSpace{
				{Pattern: "own.example", Cost: 1}, {Pattern: "relay.example", Cost: 1}}},
		},
	}
	for _, c := range change {
		c(cfg)
	}
	store, err := tables.Open(t.TempDir(), tables.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	file := filepath.Join(t.TempDir(), "d.csv")
	if err := os.WriteFile(file, []byte(directoryFile), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := directory.New([]config.Directory{{Name: "corp", File: file}}, store, hclog.NewNullLogger())
	if err := dir.Load(); err != nil {
		t.Fatal(err)
	}
	l := &ledger{}
	c := New(Options{Config: cfg, Tables: dir.Tables(), Ledger: l, Logger: hclog.NewNullLogger(), Now: func() time.Time { return start }})
	s := &script{answers: map[agentpb.EventKind]func(*pipeline.Event) *pipeline.Outcome{}}
	c.open = func(*envelope.Session, envelope.Stamps) conversation { return s }
	return &rig{Categorizer: c, ledger: l, script: s, store: store}
}

func mailbox(s string) address.Mailbox {
	m, err := address.Parse(s)
	if err != nil {
		panic(err)
	}
	return m
}

func newItem(rcpts ...string) *queue.Item {
	m := &envelope.Mail{
		ID: "0123456789abcdef.1", Sender: envelope.Sender{Address: mailbox("sender@far.example")}, Traffic: envelope.External,
		Header: []byte("Subject: test\r\n"), Body: envelope.MemoryBody([]byte("Hello\r\n")),
	}
	m.OriginalHeader, m.OriginalBody = m.Header, m.Body
	for _, r := range rcpts {
		m.AddRecipient(&envelope.Recipient{Address: mailbox(r)})
	}
	return &queue.Item{ID: m.ID, Message: m.ID, Origin: queue.OriginSMTP, Mail: m, Prefix: []byte("Received: x\r\n"),
		Received: start, Next: start, Expires: start.Add(48 * time.Hour)}
}

func (r *rig) process(t *testing.T, item *queue.Item) Result {
	t.Helper()
	before := fmt.Sprintf("%+v %+v", *item, *item.Mail)
	res, err := r.Process(context.Background(), item)
	if err != nil {
		t.Fatal(err)
	}
	if after := fmt.Sprintf("%+v %+v", *item, *item.Mail); after != before {
		t.Errorf("the item was changed:\n%s\n%s", before, after)
	}
	again, err := r.Process(context.Background(), item)
	if err != nil || !slices.Equal(ids(again), ids(res)) {
		t.Errorf("the same item gives other children: %v %v", ids(res), ids(again))
	}
	return res
}

func ids(r Result) (out []string) {
	if r.Item != nil {
		out = append(out, r.Item.ID)
	}
	for _, c := range r.Children {
		out = append(out, c.ID)
	}
	return out
}

// routes tells "recipients -> hop" of what is routed.
func routes(r Result) (out []string) {
	items := r.Children
	if r.Item != nil {
		items = append([]*queue.Item{r.Item}, items...)
	}
	for _, i := range items {
		if i.Routed {
			out = append(out, addresses(i)+" -> "+i.Hop)
		}
	}
	return out
}

func addresses(i *queue.Item) string {
	var a []string
	for _, r := range i.Mail.Recipients {
		a = append(a, r.Address.String())
	}
	return strings.Join(a, " ")
}

func child(t *testing.T, r Result, is func(*queue.Item) bool) *queue.Item {
	t.Helper()
	for _, c := range r.Children {
		if is(c) {
			return c
		}
	}
	t.Fatalf("no such child among %d", len(r.Children))
	return nil
}

func isDSN(i *queue.Item) bool { return i.Origin == queue.OriginDSN }

func same(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestOneCopyAHop(t *testing.T) {
	tests := []struct {
		rcpts string
		want  []string
	}{
		{"x@far.example", []string{"x@far.example -> internet/far.example"}},
		{"x@far.example y@far.example", []string{"x@far.example y@far.example -> internet/far.example"}},
		{"x@far.example y@near.example z@far.example", []string{"x@far.example z@far.example -> internet/far.example", "y@near.example -> internet/near.example"}},
		{"ann@own.example x@relay.example", []string{"ann@own.example x@relay.example -> hub/h1,h2"}},
		{"a@own.example info@own.example ann@own.example", []string{"ann@own.example -> hub/h1,h2"}},
		{"anyone@relay.example", []string{"anyone@relay.example -> hub/h1,h2"}},
		{"anyone@other.example", []string{"anyone@other.example -> internet/other.example"}}, // no directory covers it
		{"all@own.example", []string{"ann@own.example bob@own.example -> hub/h1,h2", "carl@far.example -> internet/far.example"}},
		{"bob@own.example everyone@own.example", []string{"bob@own.example ann@own.example -> hub/h1,h2", "carl@far.example -> internet/far.example"}},
		{"postmaster", []string{"postmaster@own.example -> hub/h1,h2"}},
		{"Postmaster@own.example", []string{"Postmaster@own.example -> hub/h1,h2"}},
	}
	for _, tt := range tests {
		t.Run(tt.rcpts, func(t *testing.T) {
			r := newRig(t)
			same(t, routes(r.process(t, newItem(strings.Fields(tt.rcpts)...))), tt.want...)
		})
	}
}

func TestItemItselfGoesOnWhereNothingChanged(t *testing.T) {
	r := newRig(t)
	item := newItem("x@far.example")
	res := r.process(t, item)
	if res.Item == nil || res.Item.ID != item.ID || len(res.Children) > 0 || !res.Item.Routed || res.Item == item {
		t.Errorf("%+v", res)
	}
	if len(r.ledger.records) > 0 {
		t.Errorf("%d lines in the ledger", len(r.ledger.records))
	}
	alias := r.process(t, newItem("a@own.example"))
	if alias.Item != nil || len(alias.Children) != 1 || alias.Children[0].Parent != item.ID || alias.Children[0].ID == item.ID {
		t.Errorf("%+v", alias)
	}
	if got := alias.Children[0].Mail.Recipients[0]; got.Original != "a@own.example" {
		t.Errorf("original is %q", got.Original)
	}
}

func TestPostmasterWithoutDomain(t *testing.T) {
	r := newRig(t, func(c *config.Config) { c.Host.Postmaster = "bob@own.example" })
	same(t, routes(r.process(t, newItem("postmaster"))), "bob@own.example -> hub/h1,h2")
}

func TestUnknownRecipient(t *testing.T) {
	r := newRig(t)
	res := r.process(t, newItem("nobody@own.example", "ann@own.example"))
	same(t, routes(res), "ann@own.example -> hub/h1,h2")
	report := child(t, res, isDSN)
	body := string(report.Mail.Body.Bytes())
	if addresses(report) != "sender@far.example" || !strings.Contains(body, "Final-Recipient: rfc822; nobody@own.example") || !strings.Contains(body, "Status: 5.1.1") {
		t.Error(body)
	}
	if rec := r.ledger.find(tracking.Fail); len(rec.Recipients) != 1 || rec.Recipients[0].Address != "nobody@own.example" {
		t.Errorf("%+v", rec)
	}
	if r.ledger.find(tracking.DSN).Item != report.ID {
		t.Error("no DSN line")
	}
}

func TestNoReportToNobody(t *testing.T) {
	for name, change := range map[string]func(*queue.Item){
		"null sender": func(i *queue.Item) { i.Mail.Sender.Address = address.Mailbox{} },
		"never":       func(i *queue.Item) { i.Mail.Recipients[0].Notify = envelope.NotifyNever },
	} {
		r := newRig(t)
		item := newItem("nobody@own.example")
		change(item)
		if res := r.process(t, item); res.Item != nil || len(res.Children) > 0 {
			t.Errorf("%s: %+v", name, res)
		}
		if r.ledger.find(tracking.Fail).Event == "" {
			t.Errorf("%s: no FAIL line", name)
		}
	}
	r := newRig(t, func(c *config.Config) {
		c.RemoteDomains = []config.RemoteDomain{{Name: "*", NondeliveryReports: true}, {Name: "far.example"}}
	})
	if res := r.process(t, newItem("nobody@own.example")); len(res.Children) > 0 {
		t.Error("a report to a remote domain that wants none")
	}
}

func TestGroups(t *testing.T) {
	t.Run("loop without members", func(t *testing.T) {
		r := newRig(t)
		res := r.process(t, newItem("loop@own.example"))
		if !strings.Contains(string(child(t, res, isDSN).Mail.Body.Bytes()), "Status: 5.2.4") || len(routes(res)) > 0 {
			t.Errorf("%v", routes(res))
		}
	})
	t.Run("members", func(t *testing.T) {
		r := newRig(t)
		item := newItem("everyone@own.example")
		item.Mail.Recipients[0].Notify = envelope.NotifySuccess | envelope.NotifyFailure
		item.Mail.Recipients[0].Stamps = envelope.Stamps{"a.b": []byte("c")}
		res := r.process(t, item)
		seen := map[int]bool{}
		for _, c := range res.Children {
			for _, rcpt := range c.Mail.Recipients {
				if isDSN(c) {
					continue
				}
				if rcpt.ExpandedFrom != "all@own.example" && rcpt.ExpandedFrom != "everyone@own.example" || rcpt.Notify != envelope.NotifyFailure || string(rcpt.Stamps["a.b"]) != "c" || seen[rcpt.Index] {
					t.Errorf("%+v", rcpt)
				}
				seen[rcpt.Index] = true
			}
		}
		if body := string(child(t, res, isDSN).Mail.Body.Bytes()); !strings.Contains(body, "Action: expanded") {
			t.Error(body)
		}
	})
	t.Run("chips", func(t *testing.T) {
		r := newRig(t)
		var members []string
		for i := range 2500 {
			members = append(members, fmt.Sprintf(`"m%d@far.example"`, i))
		}
		r.store.Replace("groups", []tables.Row{{Key: "big@own.example", Value: []byte(`{"members":[` + strings.Join(members, ",") + `]}`)}})
		res, err := r.Process(context.Background(), newItem("big@own.example"))
		if err != nil || len(res.Children) != 3 || len(res.Children[2].Mail.Recipients) != 500 {
			t.Errorf("%d children, %v", len(res.Children), err)
		}
	})
}

func TestConnectorChoice(t *testing.T) {
	space := func(name string, size int64, spaces ...config.AddressSpace) config.SendConnector {
		return config.SendConnector{Name: name, DNS: true, MaxMessageSize: size, AddressSpaces: spaces}
	}
	at := func(p string, cost int) config.AddressSpace { return config.AddressSpace{Pattern: p, Cost: cost} }
	r := newRouter([]config.SendConnector{
		space("any", 0, at("*", 5)), space("any-cheap", 0, at("*", 2)), space("b-cheap", 0, at("*", 2)),
		space("com", 0, at("*.com", 50)), space("below", 0, at("*.x.com", 50)), space("exact", 0, at("a.x.com", 90)),
		space("small", 100, at("big.com", 1)), space("large", 1000, at("big.com", 9)), space("only", 100, at("Only.Org", 1)),
	})
	tests := []struct {
		domain string
		size   int64
		want   string
	}{
		{"org", 0, "any-cheap"}, {"y.org", 0, "any-cheap"}, {"com", 0, "any-cheap"}, {"y.com", 0, "com"}, {"x.com", 0, "com"},
		{"b.x.com", 0, "below"}, {"c.b.x.com", 0, "below"}, {"a.x.com", 0, "exact"}, {"A.X.Com", 0, "exact"},
		{"big.com", 100, "small"}, {"big.com", 101, "large"}, {"big.com", 2000, "com"}, {"only.org", 50, "only"},
		{"[192.0.2.1]", 0, "any-cheap"},
	}
	for _, tt := range tests {
		c, _ := r.choose(tt.domain, tt.size)
		if c == nil || c.Name != tt.want {
			t.Errorf("%s %d: %+v, want %s", tt.domain, tt.size, c, tt.want)
		}
	}
}

func TestNoWay(t *testing.T) {
	only := func(size int64) func(*config.Config) {
		return func(c *config.Config) {
			c.SendConnectors = []config.SendConnector{{Name: "s", DNS: true, MaxMessageSize: size, AddressSpaces: []config.AddressSpace{{Pattern: "far.example", Cost: 1}}}}
		}
	}
	t.Run("unreachable", func(t *testing.T) {
		r := newRig(t, only(0))
		item := newItem("x@near.example", "y@near.example")
		res := r.process(t, item)
		if res.Item == nil || res.Item.ID != item.ID || res.Item.Routed || !res.Defer.Equal(start.Add(30*time.Minute)) || !strings.Contains(res.Item.LastError, "near.example") {
			t.Errorf("%+v", res)
		}
		if r.ledger.find(tracking.Defer).Reason == "" {
			t.Error("no DEFER line")
		}
	})
	t.Run("some unreachable", func(t *testing.T) {
		r := newRig(t, only(0))
		res := r.process(t, newItem("x@near.example", "y@far.example"))
		same(t, routes(res), "y@far.example -> s/far.example")
		later := child(t, res, func(i *queue.Item) bool { return !i.Routed })
		if addresses(later) != "x@near.example" || !later.Next.Equal(start.Add(30*time.Minute)) {
			t.Errorf("%+v", later)
		}
	})
	t.Run("too big", func(t *testing.T) {
		r := newRig(t, only(10))
		res := r.process(t, newItem("x@far.example"))
		if !strings.Contains(string(child(t, res, isDSN).Mail.Body.Bytes()), "Status: 5.3.4") {
			t.Error("no report")
		}
	})
}

func TestEventsInOrder(t *testing.T) {
	r := newRig(t)
	for _, k := range []agentpb.EventKind{onSubmitted, onResolved, onRouted, onCategorized} {
		r.script.answers[k] = func(ev *pipeline.Event) *pipeline.Outcome {
			a := ev.Arguments.GetRouting()
			o := on(ev)
			o.Steps = []tracking.Verdict{{Agent: "judge", Event: fmt.Sprintf("%s %d/%d", pipeline.EventName(ev.Kind), a.Copy, a.Copies)}}
			return o
		}
	}
	item := newItem("a@own.example", "x@far.example")
	res := r.process(t, item)
	var steps []string
	for _, s := range res.Steps {
		steps = append(steps, s.Event)
	}
	same(t, steps, "OnSubmitted 1/1", "OnResolved 1/1", "OnRouted 1/1", "OnCategorized 1/2", "OnCategorized 2/2")
	same(t, r.script.events[:5], item.ID+" OnSubmitted 1", item.ID+" OnResolved 1", item.ID+" OnRouted 1", item.ID+" OnCategorized 1", item.ID+" OnCategorized 2")
	same(t, r.script.events[5:], r.script.events[:5]...) // processed twice: the same event ids
	if rec := r.ledger.find(tracking.Categorize); len(rec.Verdicts) != 5 || len(rec.Recipients) != 2 {
		t.Errorf("%+v", rec)
	}
}

func TestVerdictsOnTheWholeMessage(t *testing.T) {
	for _, kind := range []agentpb.EventKind{onSubmitted, onResolved, onRouted, onCategorized} {
		for _, d := range []pipeline.Decision{pipeline.Quarantine, pipeline.Discard, pipeline.Defer, pipeline.Reject} {
			t.Run(pipeline.EventName(kind)+" "+d.String(), func(t *testing.T) {
				r := newRig(t)
				r.script.answers[kind] = func(ev *pipeline.Event) *pipeline.Outcome {
					ev.Mail.Header = []byte("Subject: edited\r\n")
					v := verdict(d)
					v.Delay = time.Hour
					return &pipeline.Outcome{Verdict: v, Mails: []*envelope.Mail{ev.Mail}}
				}
				item := newItem("x@far.example")
				res := r.process(t, item)
				switch d {
				case pipeline.Quarantine:
					q := res.Children[0]
					if len(res.Children) != 1 || q.State != queue.Quarantined || q.Agent != "judge" || q.Reason != "because" || !q.Expires.Equal(start.Add(720*time.Hour)) {
						t.Errorf("%+v", q)
					}
				case pipeline.Discard:
					if res.Item != nil || len(res.Children) > 0 || r.ledger.find(tracking.Drop).Agent != "judge" {
						t.Errorf("%+v", res)
					}
				case pipeline.Defer:
					if res.Item == nil || !res.Defer.Equal(start.Add(time.Hour)) || res.Item.Routed || string(res.Item.Mail.Header) != "Subject: test\r\n" {
						t.Errorf("%+v", res)
					}
				case pipeline.Reject:
					if len(res.Children) != 1 || !strings.Contains(string(child(t, res, isDSN).Mail.Body.Bytes()), "Status: 5.7.1") {
						t.Errorf("%+v", res)
					}
				}
			})
		}
	}
}

func TestReleasedMessageIsNotQuarantinedAgain(t *testing.T) {
	for agent, released := range map[string]bool{"judge": true, "another": false} {
		r := newRig(t)
		r.script.answers[onSubmitted] = func(ev *pipeline.Event) *pipeline.Outcome {
			return &pipeline.Outcome{Verdict: verdict(pipeline.Quarantine)}
		}
		r.script.answers[onResolved] = func(ev *pipeline.Event) *pipeline.Outcome {
			o := on(ev)
			o.Recipients = map[int]pipeline.Verdict{0: verdict(pipeline.Quarantine)}
			return o
		}
		item := newItem("x@far.example")
		item.Origin, item.Agent = queue.OriginRelease, agent
		if got := len(routes(r.process(t, item))) == 1; got != released {
			t.Errorf("quarantined by %s before: goes on %v", agent, got)
		}
	}
}

func TestVerdictsOnSomeRecipients(t *testing.T) {
	r := newRig(t)
	r.script.answers[onSubmitted] = func(ev *pipeline.Event) *pipeline.Outcome {
		o := on(ev)
		o.Recipients = map[int]pipeline.Verdict{0: verdict(pipeline.Quarantine), 1: verdict(pipeline.Discard), 2: verdict(pipeline.Defer), 3: verdict(pipeline.Reject), 5: verdict(pipeline.Quarantine)}
		return o
	}
	res := r.process(t, newItem("q@far.example", "d@far.example", "l@far.example", "r@far.example", "ok@far.example", "q2@far.example"))
	same(t, routes(res), "ok@far.example -> internet/far.example")
	if q := child(t, res, func(i *queue.Item) bool { return i.State == queue.Quarantined }); addresses(q) != "q@far.example q2@far.example" {
		t.Error(addresses(q))
	}
	later := child(t, res, func(i *queue.Item) bool { return !i.Routed && i.State == queue.Ready && !isDSN(i) })
	if addresses(later) != "l@far.example" || !later.Next.Equal(start.Add(time.Minute)) {
		t.Errorf("%s %v", addresses(later), later.Next)
	}
	if !strings.Contains(string(child(t, res, isDSN).Mail.Body.Bytes()), "r@far.example") || r.ledger.find(tracking.Drop).Recipients[0].Address != "d@far.example" {
		t.Error("rejected or discarded one is lost")
	}
}

func TestSilentFailure(t *testing.T) {
	r := newRig(t)
	r.script.answers[onSubmitted] = func(ev *pipeline.Event) *pipeline.Outcome {
		v := verdict(pipeline.Reject)
		v.Silent = true
		return &pipeline.Outcome{Verdict: v}
	}
	if res := r.process(t, newItem("x@far.example")); len(res.Children) > 0 || r.ledger.find(tracking.Fail).Event == "" {
		t.Errorf("%+v", res)
	}
}

func TestWaitAndPoison(t *testing.T) {
	spawn := func(ev *pipeline.Event) *pipeline.Outcome {
		o := on(ev)
		o.Spawns = []pipeline.Spawn{{Agent: "j", Cause: "j OnSubmitted", Recipients: []string{"n@far.example"}}}
		return o
	}
	t.Run("wait", func(t *testing.T) {
		r := newRig(t)
		r.script.answers[onSubmitted] = spawn
		r.script.answers[onRouted] = func(ev *pipeline.Event) *pipeline.Outcome { return &pipeline.Outcome{WaitFor: "antivirus"} }
		res := r.process(t, newItem("x@far.example"))
		if res.Wait != "antivirus" || res.Item.State != queue.Waiting || res.Item.WaitingFor != "antivirus" || len(res.Children) > 0 {
			t.Errorf("%+v", res)
		}
	})
	t.Run("poison", func(t *testing.T) {
		r := newRig(t)
		r.script.answers[onSubmitted] = spawn
		r.script.answers[onCategorized] = func(ev *pipeline.Event) *pipeline.Outcome {
			return &pipeline.Outcome{Verdict: verdict(pipeline.Defer), Poison: &agent.Failure{Agent: "av", Kind: agent.Poison, Detail: "twice", Evidence: "stderr"}}
		}
		res := r.process(t, newItem("x@far.example"))
		if res.Poison == nil || res.Item.State != queue.Parked || res.Item.Evidence != "stderr" || res.Item.Agent != "av" || len(res.Children) > 0 {
			t.Errorf("%+v", res.Item)
		}
		if r.ledger.find(tracking.Poison).Agent != "av" {
			t.Error("no POISON line")
		}
	})
}

func TestEditsAndForks(t *testing.T) {
	r := newRig(t)
	r.script.answers[onSubmitted] = func(ev *pipeline.Event) *pipeline.Outcome {
		clone := ev.Mail.Split(ev.Mail.Recipients[1:])
		clone.Header = []byte("Subject: clone\r\n")
		return &pipeline.Outcome{Mails: []*envelope.Mail{ev.Mail, clone}}
	}
	r.script.answers[onResolved] = func(ev *pipeline.Event) *pipeline.Outcome {
		o := on(ev)
		o.Routes = map[int]string{2: "override.example"}
		return o
	}
	res := r.process(t, newItem("x@far.example", "y@far.example", "z@far.example"))
	same(t, routes(res), "x@far.example -> internet/far.example", "y@far.example -> internet/far.example", "z@far.example -> internet/override.example")
	if string(res.Children[0].Mail.Header) != "Subject: test\r\n" || string(res.Children[1].Mail.Header) != "Subject: clone\r\n" {
		t.Error("headers are mixed up")
	}
}

func TestRecipientAddedAtOnRouted(t *testing.T) {
	r := newRig(t)
	r.script.answers[onRouted] = func(ev *pipeline.Event) *pipeline.Outcome {
		ev.Mail.AddRecipient(&envelope.Recipient{Address: mailbox("info@own.example")})
		ev.Mail.AddRecipient(&envelope.Recipient{Address: mailbox("nobody@own.example")})
		return on(ev)
	}
	res := r.process(t, newItem("x@far.example"))
	same(t, routes(res), "x@far.example -> internet/far.example", "ann@own.example -> hub/h1,h2")
	child(t, res, isDSN)
}

func TestNoRecipientsLeft(t *testing.T) {
	r := newRig(t)
	r.script.answers[onSubmitted] = func(ev *pipeline.Event) *pipeline.Outcome {
		ev.Mail.Recipients = nil
		return on(ev)
	}
	r.script.answers[onResolved] = func(*pipeline.Event) *pipeline.Outcome { t.Error("OnResolved without recipients"); return nil }
	res := r.process(t, newItem("x@far.example"))
	if res.Item != nil || len(res.Children) > 0 || r.ledger.find(tracking.Drop).Reason != "no recipients left" {
		t.Errorf("%+v", res)
	}
}

func TestSpawnsAndCopies(t *testing.T) {
	r := newRig(t)
	r.script.answers[onCategorized] = func(ev *pipeline.Event) *pipeline.Outcome {
		o := on(ev)
		kept := *ev.Mail
		kept.Header = []byte("Subject: kept\r\n")
		o.Spawns = []pipeline.Spawn{{Agent: "j", Cause: "j OnCategorized", Sender: "j@own.example", Recipients: []string{"n@far.example", "ann@own.example"},
			Header: []byte("Subject: report\r\n"), Body: envelope.MemoryBody([]byte("x\r\n")), Durable: true}}
		o.Copies = []pipeline.Copy{{Mail: &kept, Agent: "j", Reason: "look"}}
		return o
	}
	item := newItem("x@far.example", "y@near.example")
	res := r.process(t, item)
	var spawned, kept int
	seen := map[string]bool{}
	for _, c := range res.Children {
		if seen[c.ID] {
			t.Errorf("id %s twice", c.ID)
		}
		seen[c.ID] = true
		switch {
		case c.Origin == queue.OriginSpawn:
			spawned++
			if c.Depth != 1 || !c.Durable || c.Routed || c.Message != c.ID || c.Parent != item.ID || c.Mail.Traffic != envelope.Outbound || len(c.Prefix) > 0 {
				t.Errorf("%+v", c)
			}
		case c.State == queue.Quarantined:
			kept++
			if string(c.Mail.Header) != "Subject: kept\r\n" || c.Reason != "look" {
				t.Errorf("%+v", c)
			}
		}
	}
	if line := r.ledger.find(tracking.Quarantine); !line.Beside() || line.Reason != "look" {
		t.Errorf("ledger of a copy: %+v", line)
	}
	if spawned != 2 || kept != 2 || len(res.Children) != 6 {
		t.Errorf("%d spawned, %d kept of %d", spawned, kept, len(res.Children))
	}
	item.Depth = maxDepth
	r.ledger.records = nil
	for _, c := range r.process(t, item).Children {
		if c.Origin == queue.OriginSpawn {
			t.Error("agents answer each other for ever")
		}
	}
	if !strings.HasPrefix(r.ledger.find(tracking.Drop).Reason, "agent loop") {
		t.Error("no line about the loop")
	}
}

func TestDurableMessageThatFailsIsParked(t *testing.T) {
	r := newRig(t)
	item := newItem("nobody@own.example", "ann@own.example")
	item.Durable = true
	res := r.process(t, item)
	same(t, routes(res), "ann@own.example -> hub/h1,h2")
	if p := child(t, res, func(i *queue.Item) bool { return i.State == queue.Parked }); addresses(p) != "nobody@own.example" {
		t.Error(addresses(p))
	}
}

func TestAgentThatMissedTheMessage(t *testing.T) {
	setup := func(t *testing.T, answer func(*pipeline.Event) *pipeline.Outcome) (*rig, *queue.Item) {
		r := newRig(t)
		r.script.answers[onEndOfData] = func(ev *pipeline.Event) *pipeline.Outcome {
			if ev.Only != "antivirus" {
				t.Errorf("asked %q", ev.Only)
			}
			return answer(ev)
		}
		item := newItem("x@far.example")
		item.Missed = []string{"antivirus"}
		return r, item
	}
	reject := func(ev *pipeline.Event) *pipeline.Outcome {
		return &pipeline.Outcome{Verdict: verdict(pipeline.Reject), Mails: []*envelope.Mail{ev.Mail}}
	}
	t.Run("clean", func(t *testing.T) {
		r, item := setup(t, on)
		res := r.process(t, item)
		if res.Item == nil || !res.Item.Routed || len(res.Item.Missed) > 0 || len(r.script.events) != 2 {
			t.Errorf("%+v %q", res, r.script.events)
		}
	})
	t.Run("still away", func(t *testing.T) {
		r, item := setup(t, func(ev *pipeline.Event) *pipeline.Outcome {
			return &pipeline.Outcome{Hold: []string{"antivirus"}, Mails: []*envelope.Mail{ev.Mail}}
		})
		if res := r.process(t, item); res.Wait != "antivirus" || len(res.Item.Missed) != 1 {
			t.Errorf("%+v", res)
		}
	})
	t.Run("bad, from a stranger", func(t *testing.T) {
		r, item := setup(t, reject)
		if res := r.process(t, item); len(res.Children) != 1 || res.Children[0].State != queue.Quarantined {
			t.Errorf("%+v", res)
		}
	})
	t.Run("bad, from a user", func(t *testing.T) {
		r, item := setup(t, reject)
		item.Session.Auth = &envelope.Auth{Mechanism: "PLAIN", Identity: "u"}
		if res := r.process(t, item); len(res.Children) != 1 || !isDSN(res.Children[0]) {
			t.Errorf("%+v", res)
		}
	})
}

func TestCancelled(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(context.Background())
	r.script.answers[onSubmitted] = func(ev *pipeline.Event) *pipeline.Outcome {
		cancel()
		return &pipeline.Outcome{WaitFor: "x"}
	}
	if _, err := r.Process(ctx, newItem("x@far.example")); err == nil || len(r.ledger.records) > 0 {
		t.Errorf("error %v, %d lines", err, len(r.ledger.records))
	}
}

// An item whose connector is gone gets another one, without the agents' edits made twice.
func TestRoutedItemOnlyGetsANewWay(t *testing.T) {
	r := newRig(t)
	r.script.answers[onSubmitted] = func(*pipeline.Event) *pipeline.Outcome { t.Error("OnSubmitted again"); return nil }
	item := newItem("nobody@own.example", "x@far.example")
	item.Routed, item.Hop, item.Attempts = true, "gone/drop", 3
	same(t, routes(r.process(t, item)), "nobody@own.example -> hub/h1,h2", "x@far.example -> internet/far.example")
}

func TestOnlyPendingRecipients(t *testing.T) {
	r := newRig(t)
	item := newItem("x@far.example", "y@far.example")
	item.Mail.Recipients[0].State = envelope.Delivered
	same(t, routes(r.process(t, item)), "y@far.example -> internet/far.example")
}

func BenchmarkProcess(b *testing.B) {
	r := newRig(b)
	for name, rcpt := range map[string]string{"out": "x@far.example", "in": "ann@own.example"} {
		b.Run(name, func(b *testing.B) {
			item := newItem(rcpt)
			item.Mail.Body = envelope.MemoryBody(bytes.Repeat([]byte("x"), 4096))
			b.ReportAllocs()
			for b.Loop() {
				if res, err := r.Process(context.Background(), item); err != nil || res.Item == nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// One domain has several spellings: what the front takes is ours here too.
func TestSpellingsOfADomain(t *testing.T) {
	for _, domain := range []string{"b\u00fccher.example", "xn--bcher-kva.example"} {
		r := newRig(t, func(c *config.Config) {
			c.AcceptedDomains = append(c.AcceptedDomains, config.AcceptedDomain{Name: "b\u00fccher.example", Type: config.Authoritative})
			c.SendConnectors[1].AddressSpaces = append(c.SendConnectors[1].AddressSpaces, config.AddressSpace{Pattern: "b\u00fccher.example", Cost: 1})
			c.RemoteDomains = []config.RemoteDomain{{Name: "*"}}
		})
		if r.accepted.find(domain) == nil {
			t.Errorf("%s is not accepted", domain)
		}
		if c, _ := r.router.choose(domain, 1); c == nil || c.Name != "hub" {
			t.Errorf("%s is routed to %v", domain, c)
		}
		dns := config.SendConnector{Name: "out", DNS: true}
		if hop := dns.Hop(domain); hop != "out/xn--bcher-kva.example" {
			t.Errorf("%s has a hop of its own: %s", domain, hop)
		}
		if !r.ReportsTo(domain, dsn.Failure) {
			t.Errorf("%s counts as remote", domain)
		}
	}
}
