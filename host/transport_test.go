package host

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/categorizer"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/delivery"
	"github.com/posternmail/postern/host/internal/directory"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
	"github.com/posternmail/postern/test/rig"
)

// scripted is an agent in this process.
type scripted struct {
	kinds  []agentpb.EventKind
	answer func() *agentpb.Answer

	mu    sync.Mutex
	asked int
}

func (s *scripted) Name() string { return "judge" }

func (s *scripted) Manifest() *agentpb.DescribeResponse {
	return &agentpb.DescribeResponse{Name: "judge", Version: "1.0.0"}
}

func (s *scripted) Subscriptions() (subs []*agentpb.Subscription) {
	for _, k := range s.kinds {
		subs = append(subs, &agentpb.Subscription{Event: k, MayChange: &agentpb.Changes{Verdict: true}})
	}
	return subs
}

func (s *scripted) Call(context.Context, *agent.Call) (agent.Result, error) {
	s.mu.Lock()
	s.asked++
	s.mu.Unlock()
	return agent.Result{Answer: s.answer(), Version: "1.0.0"}, nil
}

func continues() *agentpb.Answer {
	return &agentpb.Answer{Verdicts: []*agentpb.Verdict{{Kind: agentpb.VerdictKind_VERDICT_KIND_CONTINUE}}}
}

// records is a ledger in memory.
type records struct {
	mu   sync.Mutex
	list []tracking.Record
}

func (l *records) Full() bool { return false }

func (l *records) Write(r *tracking.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, *r)
}

// of an event.
func (l *records) of(event string) (found []tracking.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.list {
		if r.Event == event {
			found = append(found, r)
		}
	}
	return found
}

// right is everything right of the 250 line: a transport with a real queue, categorizer and drop directory.
type right struct {
	*transport
	t      *testing.T
	ledger *records
	drop   string
	stop   func()
}

// newRight makes one with an agent; nil: none. Change may change its configuration.
func newRight(t *testing.T, a *scripted, change func(*config.Config)) *right {
	t.Helper()
	drop := t.TempDir()
	c := &config.Config{
		Host: config.Host{Name: "edge.test", Postmaster: "postmaster@ours.test", DataDir: t.TempDir()},
		Queue: config.Queue{ExpireAfter: 48 * time.Hour, DelayNotice: 4 * time.Hour, GlitchInterval: time.Minute,
			RetryInterval: time.Minute, GlitchRetries: 4},
		Quarantine:      config.Quarantine{ExpireAfter: 24 * time.Hour},
		AcceptedDomains: []config.AcceptedDomain{{Name: "ours.test", Type: config.Authoritative}},
		SendConnectors:  []config.SendConnector{{Name: "out", DropDirectory: drop, AddressSpaces: []config.AddressSpace{{Pattern: "*", Cost: 1}}}},
	}
	if change != nil {
		change(c)
	}
	store, err := queue.OpenStore(t.TempDir(), queue.StoreOptions{ReserveBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	q, err := queue.New(store, queue.Options{Config: c.Queue})
	if err != nil {
		t.Fatal(err)
	}
	rows, err := tables.Open(t.TempDir(), tables.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := directory.New(c.Directories, rows, hclog.NewNullLogger())
	if err := d.Load(); err != nil {
		t.Fatal(err)
	}
	p := pipeline.New(pipeline.Options{Host: c.Host, Accepted: c.AcceptedDomains, NewID: queue.NewID})
	if a != nil {
		plan, err := pipeline.NewPlan([]pipeline.Member{{Caller: a, Spec: &config.Agent{Name: "judge", Priority: 1}}})
		if err != nil {
			t.Fatal(err)
		}
		p.SetPlan(plan)
	}
	out, err := delivery.New(delivery.Options{Config: c, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	l := &records{}
	ways := new(atomic.Pointer[routes])
	ways.Store(&routes{config: c, delivery: out,
		categorizer: categorizer.New(categorizer.Options{Pipeline: p, Config: c, Tables: d.Tables(), Ledger: l, Logger: hclog.NewNullLogger()})})
	r := &right{t: t, ledger: l, drop: drop, transport: &transport{
		routes: ways, queue: q, pipeline: p, ledger: l, log: hclog.NewNullLogger(), now: time.Now,
	}}
	stop := r.start()
	r.stop = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		stop(ctx)
	})
	t.Cleanup(func() {
		r.stop()
		out.Close()
		_ = q.Close()
		_ = rows.Close()
	})
	return r
}

func mailbox(t *testing.T, s string) address.Mailbox {
	t.Helper()
	m, err := address.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// message for recipients, not committed yet.
func (r *right) message(recipients ...string) *queue.Item {
	r.t.Helper()
	header := []byte("Subject: hello\r\n")
	m := &envelope.Mail{
		ID: queue.NewID() + ".1", Sender: envelope.Sender{Address: mailbox(r.t, "a@sender.test")}, Traffic: envelope.External,
		Header: header, OriginalHeader: header, Body: envelope.MemoryBody([]byte("hello\r\n")),
	}
	for _, to := range recipients {
		m.AddRecipient(&envelope.Recipient{Address: mailbox(r.t, to)})
	}
	return &queue.Item{ID: m.ID, Message: m.ID, Origin: queue.OriginSMTP, Mail: m, Session: envelope.Session{Trust: envelope.Anonymous}}
}

func (r *right) commit(items ...*queue.Item) {
	r.t.Helper()
	if err := r.queue.Commit(items...); err != nil {
		r.t.Fatal(err)
	}
}

// eventually waits for what must come true.
func (r *right) eventually(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	r.t.Fatalf("waited for %s; the queue has %+v", what, r.queue.Entries(nil))
}

// in reports whether one item is left, in that state.
func (r *right) in(state queue.State) func() bool {
	return func() bool {
		list := r.queue.Entries(nil)
		return len(list) == 1 && list[0].State == state
	}
}

func (r *right) empty() bool { return len(r.queue.Entries(nil)) == 0 }

// A message waits for an agent that could not judge it, though it runs: the next sweep has it tried again.
func TestWhatWaitsForAnAgentThatIsThereIsTriedAgain(t *testing.T) {
	broken := true
	a := &scripted{kinds: []agentpb.EventKind{agentpb.EventKind_EVENT_KIND_SUBMITTED}}
	a.answer = func() *agentpb.Answer {
		if broken {
			broken = false
			return &agentpb.Answer{} // no verdict: a breach
		}
		return continues()
	}
	r := newRight(t, a, nil)
	r.commit(r.message("b@ours.test"))
	r.eventually("the message to wait", r.in(queue.Waiting))
	r.sweepOnce(time.Now())
	r.eventually("the message to be delivered", r.empty)
	if len(r.ledger.of(tracking.Send)) != 1 {
		t.Errorf("the ledger has %+v", r.ledger.list)
	}
}

// One that is away is waited for.
func TestWhatWaitsForAnAgentThatIsAwayIsLeftAlone(t *testing.T) {
	a := &scripted{kinds: []agentpb.EventKind{agentpb.EventKind_EVENT_KIND_SUBMITTED}, answer: func() *agentpb.Answer { return &agentpb.Answer{} }}
	r := newRight(t, a, nil)
	r.away = func(agent string) bool { return agent == "judge" }
	r.commit(r.message("b@ours.test"))
	r.eventually("the message to wait", r.in(queue.Waiting))
	r.sweepOnce(time.Now())
	time.Sleep(20 * time.Millisecond)
	if a.mu.Lock(); a.asked != 1 {
		t.Errorf("it was asked %d times", a.asked)
	}
	a.mu.Unlock()
	if !r.in(queue.Waiting)() {
		t.Errorf("the queue has %+v", r.queue.Entries(nil))
	}
}

// Quarantine keeps a message for its whole time, however old the message was when it got there.
func TestQuarantineCountsFromItsBeginning(t *testing.T) {
	r := newRight(t, nil, nil)
	item := r.message("b@ours.test")
	item.State, item.Received = queue.Quarantined, time.Now().Add(-47*time.Hour) // it waited long for an agent
	item.Expires = time.Now().Add(r.routes.Load().config.Quarantine.ExpireAfter)
	r.commit(item)
	h := r.clock(time.Now())
	if !r.in(queue.Quarantined)() {
		t.Fatal("it is gone at once")
	}
	whole := r.routes.Load().config.Quarantine.ExpireAfter + time.Minute
	h.move(whole, whole)
	r.sweepOnce(h.now())
	if drops := r.ledger.of(tracking.Drop); !r.empty() || len(drops) != 1 {
		t.Errorf("at the end of its time: %+v, ledger %+v", r.queue.Entries(nil), drops)
	}
}

// What must not vanish and failed is kept for the operator, and tried again when it is resumed.
func TestDurableSurvivesItsFailure(t *testing.T) {
	directory := t.TempDir() + "/directory.csv"
	if err := os.WriteFile(directory, []byte("address\nknown@ours.test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRight(t, nil, func(c *config.Config) {
		c.Directories = []config.Directory{{Name: "d", File: directory}}
	})
	item := r.message("journal@ours.test")
	item.Durable = true
	r.commit(item)
	r.eventually("the message to be parked", r.in(queue.Parked))
	for range 2 { // nothing has changed: it fails again, and is still there
		if err := r.queue.Resume(r.queue.Entries(nil)[0].ID); err != nil {
			t.Fatal(err)
		}
		r.eventually("the message to be parked again", r.in(queue.Parked))
	}
}

// A panic of the host costs no message and no other message's way.
func TestPanicParksTheMessage(t *testing.T) {
	a := &scripted{kinds: []agentpb.EventKind{agentpb.EventKind_EVENT_KIND_SUBMITTED}}
	a.answer = func() *agentpb.Answer { panic("a bug") }
	r := newRight(t, a, nil)
	r.commit(r.message("b@ours.test"))
	r.eventually("the message to be parked", r.in(queue.Parked))
	if reason := r.queue.Entries(nil)[0].Reason; !strings.Contains(reason, "a bug") {
		t.Errorf("reason %q", reason)
	}
	if len(r.ledger.of(tracking.Poison)) != 1 {
		t.Errorf("the ledger has %+v", r.ledger.list)
	}
	if _, err := r.queue.Load(r.queue.Entries(nil)[0].ID); err != nil {
		t.Error(err)
	}
}

// A remote domain without nondelivery_reports gets none, whenever the delivery fails.
func TestRemoteDomainWithoutReports(t *testing.T) {
	for _, reports := range []bool{true, false} {
		r := newRight(t, nil, func(c *config.Config) {
			c.RemoteDomains = []config.RemoteDomain{{Name: "sender.test", NondeliveryReports: reports}}
		})
		item := r.message("b@ours.test")
		r.clock(time.Now())
		item.Next, item.Expires = time.Now(), time.Now().Add(-time.Second)
		r.commit(item)
		r.eventually("an empty queue", r.empty)
		if n := len(r.ledger.of(tracking.DSN)); (n == 1) != reports {
			t.Errorf("nondelivery_reports %v: %d reports", reports, n)
		}
		if !slices.ContainsFunc(r.ledger.of(tracking.Fail), func(rec tracking.Record) bool { return rec.Message == item.Message }) {
			t.Error("the failure is not in the ledger")
		}
	}
}

func over(address string) func(*config.Config) {
	return func(c *config.Config) {
		c.SendConnectors = []config.SendConnector{{Name: "out", SmartHosts: []string{address}, AddressSpaces: []config.AddressSpace{{Pattern: "*", Cost: 1}}}}
	}
}

// Of a durable message that some recipients refuse the others' delivery is in the ledger, and not done again.
func TestDurableDeliveredInPart(t *testing.T) {
	next := rig.StartHop(t, func(line string) string {
		if strings.HasPrefix(line, "RCPT TO:<c@") {
			return "550 5.1.1 nobody"
		}
		return ""
	})
	r := newRight(t, nil, over(next))
	item := r.message("b@ours.test", "c@ours.test")
	item.Durable = true
	r.commit(item)
	r.eventually("the message to be parked", r.in(queue.Parked))
	r.stop()
	sent := r.ledger.of(tracking.Send)
	if len(sent) != 1 || len(sent[0].Recipients) != 1 || sent[0].Recipients[0].Address != "b@ours.test" {
		t.Errorf("the ledger has of deliveries %+v", sent)
	}
	left, err := r.queue.Load(item.ID)
	if err != nil {
		t.Fatal(err)
	}
	if b, c := left.Mail.Recipients[0], left.Mail.Recipients[1]; b.State != envelope.Relayed || c.State != envelope.Pending {
		t.Errorf("recipients %+v, %+v", b, c)
	}
}

// What a next hop refuses of a durable message comes to OnRouted once more, in an item that is the same each time; if no agent sends it
// elsewhere it is parked without another attempt.
func TestDurableComesToAgentsOnceMore(t *testing.T) {
	var attempts atomic.Int32
	next := rig.StartHop(t, func(line string) string {
		if !strings.HasPrefix(line, "RCPT TO:<c@") {
			return ""
		}
		attempts.Add(1)
		return "550 5.1.1 nobody"
	})
	judge := &scripted{kinds: []agentpb.EventKind{agentpb.EventKind_EVENT_KIND_ROUTED}, answer: continues}
	r := newRight(t, judge, over(next))
	item := r.message("b@ours.test", "c@ours.test")
	item.Durable = true
	r.commit(item)
	r.eventually("the message to be parked", r.in(queue.Parked))
	left, err := r.queue.Load(r.queue.Entries(nil)[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if left.ID != queue.ChildID(item, "refused", 1) || left.Parent != item.ID || left.Origin != queue.OriginRefused ||
		len(left.Mail.Recipients) != 1 || left.Reason != "a next hop refuses it: 550 5.1.1 nobody" {
		t.Errorf("parked %+v", left)
	}
	for try := range 2 {
		if n := attempts.Load(); n != int32(try+1) {
			t.Errorf("%d attempts, want %d", n, try+1)
		}
		if try > 0 {
			break
		}
		if err := r.queue.Resume(left.ID); err != nil {
			t.Fatal(err)
		}
		r.eventually("another attempt", func() bool { return attempts.Load() > 1 })
		r.eventually("the message to be parked again", r.in(queue.Parked))
	}
	r.stop()
	if judge.asked != 2 {
		t.Errorf("the agent was asked %d times", judge.asked)
	}
	if failed, sent := r.ledger.of(tracking.Fail), r.ledger.of(tracking.Send); len(failed) != 0 || len(sent) != 1 || sent[0].Recipients[0].Address != "b@ours.test" {
		t.Errorf("failed %+v, sent %+v", failed, sent)
	}
}

// So does a durable message whose time is over. It has the full time again.
func TestDurableThatExpiresComesToAgentsOnceMore(t *testing.T) {
	judge := &scripted{kinds: []agentpb.EventKind{agentpb.EventKind_EVENT_KIND_ROUTED}, answer: continues}
	r := newRight(t, judge, nil)
	r.clock(time.Now())
	item := r.message("c@ours.test")
	item.Durable, item.Routed, item.Hop, item.Next, item.Expires = true, true, "out/ours.test", time.Now(), time.Now().Add(-time.Second)
	r.commit(item)
	r.eventually("the message to be parked", r.in(queue.Parked))
	left, err := r.queue.Load(r.queue.Entries(nil)[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if left.Reason != "expired: 550 5.4.7 Delivery time expired" || left.Mail.Recipients[0].State != envelope.Pending || time.Until(left.Expires) < time.Hour {
		t.Errorf("parked %+v", left)
	}
	if judge.mu.Lock(); judge.asked != 1 {
		t.Errorf("the agent was asked %d times", judge.asked)
	}
	judge.mu.Unlock()
}

// A delivery under way when the host ends is finished: one cut off at its final dot would be made twice.
func TestStopFinishesDeliveries(t *testing.T) {
	dot, reply := make(chan struct{}), make(chan struct{})
	next := rig.StartHop(t, func(line string) string {
		if line == "." {
			close(dot)
			<-reply
		}
		return ""
	})
	r := newRight(t, nil, over(next))
	r.commit(r.message("b@ours.test"))
	<-dot
	time.AfterFunc(100*time.Millisecond, func() { close(reply) })
	r.stop()
	if sent := r.ledger.of(tracking.Send); !r.empty() || len(sent) != 1 {
		t.Errorf("left %+v, ledger %+v", r.queue.Entries(nil), r.ledger.list)
	}
}
