package pipeline

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Random agents whose answers depend on all they are shown and nothing else: what a plan with stages makes of them
// is what asking one by one makes of them.
func TestStagedEqualsSerial(t *testing.T) {
	stages, splits, refusals := 0, 0, 0
	for seed := range uint64(600) {
		kind := []agentpb.EventKind{onData, onHeaders, onSubmit, onResolve, onRcpt}[seed%5]
		staged, serial := randomAgents(seed, kind), randomAgents(seed, kind)
		for _, f := range serial {
			for _, s := range f.subs {
				s.Waits = false
			}
		}
		for _, s := range plan(t, staged...).events[kind] {
			if len(s.asks) > 1 {
				stages++
			}
		}
		want, _ := play(t, kind, serial)
		got, o := play(t, kind, staged)
		if got != want {
			t.Fatalf("seed %d, %s\nstaged: %s\nserial: %s", seed, EventName(kind), got, want)
		}
		splits += max(len(o.Mails)-1, 0)
		if o.Decision != Continue {
			refusals++
		}
	}
	if stages < 150 || splits < 50 || refusals < 100 || refusals > 500 {
		t.Errorf("the agents are too dull: %d stages, %d splits, %d refusals", stages, splits, refusals)
	}
}

// play raises one event and tells all that came of it.
func play(t *testing.T, kind agentpb.EventKind, agents []*fake) (string, *Outcome) {
	t.Helper()
	store := newMemory()
	p := New(Options{Tables: store})
	p.SetPlan(plan(t, agents...))
	c := p.Open(session(), envelope.Stamps{"scl": []byte("1")})
	m := mail("r0@here.example", "r1@here.example", "r2@here.example", "r3@here.example")
	ev := &Event{Kind: kind, ID: "e", Mail: m}
	if kind == onHeaders {
		m.Body = nil
	}
	if kind == onRcpt {
		ev.Recipient = m.Recipients[3]
	}
	o := c.Raise(context.Background(), ev)
	mails := o.Mails
	for _, w := range c.waiting {
		mails = append(mails, w.mail)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%+v\ntarpit %v hold %v wait %s\n", o.Verdict, o.Tarpit, o.Hold, o.WaitFor)
	tellMap(&b, o.Recipients)
	tellMap(&b, o.Routes)
	for _, m := range mails {
		tellMail(&b, m)
	}
	for _, s := range o.Spawns {
		fmt.Fprintf(&b, "spawn %s %s %d %s %v %q %q\n", s.Agent, s.Cause, s.Ordinal, s.Sender, s.Recipients, s.Header, octets(s.Body))
	}
	for _, k := range o.Copies {
		fmt.Fprintf(&b, "copy %s %d %s\n", k.Agent, k.Ordinal, k.Reason)
		tellMail(&b, k.Mail)
	}
	for _, f := range o.Fails {
		fmt.Fprintf(&b, "fail %d %s\n", f.Index, f.Reply)
	}
	for _, s := range o.Steps {
		if s.Verdict != "not-needed" {
			fmt.Fprintf(&b, "step %s %s %s %v %v %v %s\n", s.Agent, s.Verdict, s.Reply, s.Recipients, s.Edits, s.Stamps, s.Failure)
		}
	}
	tellMap(&b, c.SessionStamps())
	tellMap(&b, store.rows)
	return b.String(), o
}

func tellMail(b *strings.Builder, m *envelope.Mail) {
	fmt.Fprintf(b, "mail from %s next %d header %q body %q\n", m.Sender.Address, m.NextIndex, m.Header, octets(m.Body))
	tellMap(b, m.Stamps)
	for _, r := range m.Recipients {
		fmt.Fprintf(b, "  to %d %s %s %s %s", r.Index, r.Address, r.Original, r.ExpandedFrom, r.Route)
		tellMap(b, r.Stamps)
	}
}

func tellMap[K ~int | ~string, V any](b *strings.Builder, m map[K]V) {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintf(b, " %v=%+v;", k, m[k])
	}
	b.WriteByte('\n')
}

func octets(body *envelope.Body) []byte {
	if body == nil {
		return nil
	}
	b, _ := io.ReadAll(body.Reader())
	return b
}

// memory is a store that only remembers what was put.
type memory struct {
	tables.Store
	rows map[string]string
}

func newMemory() *memory { return &memory{rows: map[string]string{"reputation/192.0.2.7": "{}"}} }

func (m *memory) Get(table, key string) (tables.Row, bool) {
	v, ok := m.rows[table+"/"+key]
	return tables.Row{Key: key, Value: []byte(v)}, ok
}

func (m *memory) Apply(writes []tables.Write) {
	for _, w := range writes {
		m.rows[w.Table+"/"+w.Key] += string(w.Value) + w.EventID
	}
}

// randomAgents makes the same agents for the same seed.
func randomAgents(seed uint64, kind agentpb.EventKind) (list []*fake) {
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range 2 + r.IntN(5) {
		f := newFake(fmt.Sprintf("a%d", i), i*10, nil, randomSubscription(r, kind))
		f.manifest.Category = agentpb.Category(1 + r.IntN(3))
		if r.IntN(3) == 0 {
			f.spec.OnFailure = map[agentpb.EventKind]string{kind: []string{"skip", "hold", "reject", "defer"}[r.IntN(4)]}
		}
		if r.IntN(4) == 0 {
			f.spec.Grants = []string{"reject", "headers", "stamps", "envelope"}
		}
		if r.IntN(5) == 0 {
			f.spec.When = config.When{MaxSize: 400}
		}
		nonce := r.Uint64()
		f.answer = func(_ context.Context, e *shown) *agentpb.Answer {
			return randomAnswer(randomOf(nonce, e), e, f.subs[0])
		}
		f.fails = func(e *shown) *agent.Failure {
			if randomOf(nonce+1, e).IntN(25) == 0 {
				return &agent.Failure{Agent: f.name, Kind: agent.Died}
			}
			return nil
		}
		list = append(list, f)
	}
	return list
}

// randomOf is seeded by everything the agent is shown but the time.
func randomOf(nonce uint64, e *shown) *rand.Rand {
	c := proto.Clone(e.Event).(*agentpb.Event)
	c.TimeUnixNanos = 0
	wire, _ := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	sum := sha256.Sum256(append(wire, e.body...))
	return rand.New(rand.NewPCG(binary.BigEndian.Uint64(sum[:]), nonce))
}

func randomSubscription(r *rand.Rand, kind agentpb.EventKind) *agentpb.Subscription {
	yes := func(n int) bool { return r.IntN(n) == 0 }
	s := &agentpb.Subscription{Event: kind, Waits: !yes(4), MayChange: &agentpb.Changes{
		Verdict: !yes(3), Headers: yes(2), Body: yes(4), Envelope: yes(4), Bypass: yes(6), KeepCopy: yes(3), Spawn: yes(3), Route: yes(3),
	}}
	if yes(3) {
		s.Headers = &agentpb.HeaderNeed{All: yes(2), Names: []string{"X-A0", "Subject"}}
	}
	if yes(4) {
		s.Body = &agentpb.BodyNeed{Mode: agentpb.BodyMode(1 + r.IntN(2)), PrefixBytes: 5, SkipOver: uint64(r.IntN(2) * 15)}
	}
	if yes(5) {
		s.View = agentpb.View_VIEW_ORIGINAL
	}
	if yes(3) {
		s.ReadsStamps = []string{[]string{"a0.*", "a1.x", "scl", "skipped", "bypass.*"}[r.IntN(5)]}
	}
	if yes(2) {
		s.MayChange.Stamps = []string{"x", "scl"}
	}
	if yes(3) {
		s.Tables = []*agentpb.TableUse{{Table: "reputation", Key: []*agentpb.KeyPart{{Fact: agentpb.Fact_FACT_CLIENT}}}}
	}
	if yes(3) {
		s.MayChange.Tables = []string{"reputation", "own"}
	}
	return s
}

// randomAnswer is mostly within what the subscription allows.
func randomAnswer(r *rand.Rand, e *shown, sub *agentpb.Subscription) *agentpb.Answer {
	may := sub.MayChange
	some := func() (list []uint32) {
		for _, rcpt := range e.GetEnvelope().GetRecipients() {
			if r.IntN(3) == 0 {
				list = append(list, rcpt.Index)
			}
		}
		return list
	}
	a := &agentpb.Answer{Verdicts: []*agentpb.Verdict{{Kind: kContinue}}}
	if may.Verdict && r.IntN(3) == 0 {
		a.Verdicts = []*agentpb.Verdict{{Kind: agentpb.VerdictKind(1 + r.IntN(11)), Recipients: some(), DelayMillis: r.Uint64N(5000), Reason: fmt.Sprint(r.IntN(100))}}
	}
	if may.Bypass && r.IntN(2) == 0 {
		a.Verdicts = []*agentpb.Verdict{{Kind: kBypass, Category: agentpb.Category(1 + r.IntN(3)), Scope: agentpb.Scope(r.IntN(4)), Recipients: some()}}
	}
	for range r.IntN(3) {
		if edit := randomEdit(r, e, may); edit != nil {
			edit.Recipients = some()
			a.Edits = append(a.Edits, edit)
		}
	}
	for _, name := range may.Stamps {
		if r.IntN(2) == 0 {
			a.Stamps = append(a.Stamps, &agentpb.Stamp{Name: name, Scope: agentpb.Scope(1 + r.IntN(2)), Value: fmt.Append(nil, r.IntN(100))})
		}
	}
	for _, name := range may.Tables {
		if r.IntN(2) == 0 {
			a.Writes = append(a.Writes, &agentpb.TableWrite{Table: name, Key: []byte("192.0.2.7"), Op: agentpb.TableOp(1 + r.IntN(4)), Value: []byte("{}"), Field: "f"})
		}
	}
	if may.Spawn && r.IntN(3) == 0 && e.Kind != onRcpt && e.Kind != onHeaders {
		a.Spawns = []*agentpb.Spawn{{Recipients: [][]byte{[]byte("j@here.example")}, Before: fmt.Appendf(nil, "Subject: %d\r\n\r\n", r.IntN(100)), IncludeOriginal: r.IntN(2) == 0}}
	}
	if may.KeepCopy && r.IntN(3) == 0 && e.Kind != onRcpt && e.Kind != onHeaders {
		a.Copies = []*agentpb.KeepCopy{{Reason: fmt.Sprint(r.IntN(100)), Original: r.IntN(2) == 0}}
	}
	return a
}

func randomEdit(r *rand.Rand, e *shown, may *agentpb.Changes) *agentpb.Edit {
	index := uint32(r.IntN(5))
	if list := e.GetEnvelope().GetRecipients(); len(list) > 0 {
		index = list[r.IntN(len(list))].Index
	}
	address := fmt.Appendf(nil, "n%d@here.example", r.IntN(100))
	switch n := r.IntN(10); {
	case n < 2 && may.Headers:
		return &agentpb.Edit{Edit: &agentpb.Edit_AddHeader{AddHeader: &agentpb.AddHeader{Name: fmt.Appendf(nil, "X-A%d", r.IntN(3)), Value: fmt.Append(nil, r.IntN(100)), Last: r.IntN(2) == 0}}}
	case n == 2 && may.Headers:
		return &agentpb.Edit{Edit: &agentpb.Edit_RemoveHeader{RemoveHeader: &agentpb.RemoveHeader{Name: []byte("X-Twice")}}}
	case n == 3 && may.Headers && len(e.Headers) > 0:
		h := e.Headers[r.IntN(len(e.Headers))]
		return &agentpb.Edit{Edit: &agentpb.Edit_ReplaceHeader{ReplaceHeader: &agentpb.ReplaceHeader{Index: h.Index, Name: h.Name, Value: fmt.Append(nil, r.IntN(100))}}}
	case n < 6 && may.Body && e.Kind != onHeaders && e.Kind != onRcpt:
		body := fmt.Appendf(nil, "body %d\r\n", r.IntN(100))
		sum := sha256.Sum256(body)
		return &agentpb.Edit{Edit: &agentpb.Edit_Body{Body: &agentpb.BodyEdit{Size: uint64(len(body)), Sha256: sum[:], Segments: []*agentpb.Segment{{Source: &agentpb.Segment_Data{Data: body}}}}}}
	case n == 6 && may.Envelope:
		return &agentpb.Edit{Edit: &agentpb.Edit_RewriteRecipient{RewriteRecipient: &agentpb.RewriteRecipient{Index: index, Address: address}}}
	case n == 7 && may.Envelope:
		return &agentpb.Edit{Edit: &agentpb.Edit_RemoveRecipient{RemoveRecipient: &agentpb.RemoveRecipient{Index: index}}}
	case n == 8 && may.Envelope:
		return &agentpb.Edit{Edit: &agentpb.Edit_AddRecipient{AddRecipient: &agentpb.AddRecipient{Address: address}}}
	case n == 9 && may.Envelope:
		return &agentpb.Edit{Edit: &agentpb.Edit_RewriteSender{RewriteSender: &agentpb.RewriteSender{Address: address}}}
	}
	return nil
}
