package pipeline

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/agentpb"
)

func TestNoAgentsContinues(t *testing.T) {
	g := newRig(t)
	m := mail("r0@here.example")
	o := g.raise(t, onData, m)
	if o.Decision != Continue || len(o.Mails) != 1 || o.Mails[0] != m || len(o.Steps) != 0 {
		t.Errorf("outcome %+v", o)
	}
}

func TestEqualPriorities(t *testing.T) {
	a, b := newFake("one", 5, carryOn()), newFake("two", 5, carryOn())
	_, err := NewPlan([]Member{{Caller: a, Spec: a.spec}, {Caller: b, Spec: b.spec}})
	if err == nil || !strings.Contains(err.Error(), `"one"`) || !strings.Contains(err.Error(), `"two"`) {
		t.Errorf("error %v does not name both", err)
	}
}

// The agents are asked by priority, and the first refusal is the last question.
func TestOrderAndRefusal(t *testing.T) {
	first := newFake("first", 1, carryOn(), everything(onRcpt))
	second := newFake("second", 20, say(&agentpb.Verdict{Kind: kReject, Reply: &agentpb.Reply{Code: 553, Enhanced: "5.1.8", Text: "No"},
		Reason: "listed", Data: "zen"}), everything(onRcpt))
	third := newFake("third", 300, carryOn(), everything(onRcpt))
	g := newRig(t, third, second, first)
	m := mail("r0@here.example")
	rcpt := &envelope.Recipient{Index: m.NextIndex, Address: box("new@here.example")}
	o := g.Open(session(), nil).Raise(context.Background(), &Event{Kind: onRcpt, ID: "e", Mail: m, Recipient: rcpt})
	want := Verdict{Decision: Reject, Reply: envelope.Reply{Code: 553, Enhanced: "5.1.8", Text: "No"}, Agent: "second", Version: "1.0.0",
		Event: onRcpt, Reason: "listed", Data: "zen"}
	if o.Verdict != want {
		t.Errorf("verdict %+v", o.Verdict)
	}
	if first.calls.Load() != 1 || third.calls.Load() != 0 {
		t.Errorf("calls: first %d, third %d", first.calls.Load(), third.calls.Load())
	}
	var steps []string
	for _, s := range o.Steps {
		steps = append(steps, s.Agent+" "+s.Verdict+" "+s.Reply)
	}
	if got := strings.Join(steps, "; "); got != "first continue ; second reject 553 5.1.8 No" {
		t.Errorf("steps %s", got)
	}
}

func TestRcptShowsTheRecipientAndCountsTheOthers(t *testing.T) {
	a := newFake("a", 1, carryOn(), everything(onRcpt))
	g := newRig(t, a)
	for _, inMail := range []bool{false, true} {
		m := mail("r0@here.example", "r1@here.example")
		rcpt := &envelope.Recipient{Index: m.NextIndex, Address: box("New@here.example"), Notify: envelope.NotifyFailure}
		if inMail {
			m.AddRecipient(rcpt)
		}
		g.Open(session(), nil).Raise(context.Background(), &Event{Kind: onRcpt, ID: "e", Mail: m, Recipient: rcpt})
		e := a.last(t)
		r := e.GetArguments().GetRcpt().GetRecipient()
		if string(r.GetAddress()) != "New@here.example" || r.GetIndex() != 2 || !slices.Equal(r.GetNotify(), []string{"FAILURE"}) {
			t.Errorf("recipient %v", r)
		}
		if e.Envelope.RecipientCount != 2 || len(e.Envelope.Recipients) != 0 || string(e.Envelope.Sender.Address) != "s@else.example" {
			t.Errorf("envelope %v", e.Envelope)
		}
		if e.EventId != "e" || e.Session.Id != "sess" || string(e.Session.Helo) != "Client.Example" || e.Session.Traffic != agentpb.Traffic_TRAFFIC_EXTERNAL {
			t.Errorf("facts %v", e.Event)
		}
	}
}

func TestRewriteAtMailAndRcpt(t *testing.T) {
	sender := newFake("sender", 1, &agentpb.Answer{Verdicts: carryOn().Verdicts, Edits: []*agentpb.Edit{
		{Edit: &agentpb.Edit_RewriteSender{RewriteSender: &agentpb.RewriteSender{Address: []byte("new@else.example")}}}}}, everything(onMail))
	rcpt := newFake("rcpt", 2, &agentpb.Answer{Verdicts: carryOn().Verdicts, Edits: []*agentpb.Edit{
		{Edit: &agentpb.Edit_RewriteRecipient{RewriteRecipient: &agentpb.RewriteRecipient{Index: 7, Address: []byte("b@here.example")}}}},
		Stamps: []*agentpb.Stamp{{Name: "seen", Scope: agentpb.Scope_SCOPE_RECIPIENT, Recipient: 7, Value: []byte("1")}}}, everything(onRcpt))
	after := newFake("after", 3, carryOn(), everything(onRcpt))
	g := newRig(t, sender, rcpt, after)
	m := mail()
	c := g.Open(session(), nil)
	c.Raise(context.Background(), &Event{Kind: onMail, ID: "1", Mail: m})
	if m.Sender.Address != box("new@else.example") {
		t.Errorf("sender %s", m.Sender.Address)
	}
	r := &envelope.Recipient{Index: 7, Address: box("a@here.example"), ORCPT: "rfc822;a@here.example"}
	o := c.Raise(context.Background(), &Event{Kind: onRcpt, ID: "2", Mail: m, Recipient: r})
	if r.Address != box("b@here.example") || r.Original != "a@here.example" || r.ORCPT != "rfc822;a@here.example" || string(r.Stamps["rcpt.seen"]) != "1" {
		t.Errorf("recipient %+v; breaches %v", r, g.breaches)
	}
	if got := string(after.last(t).GetArguments().GetRcpt().GetRecipient().GetAddress()); got != "b@here.example" {
		t.Errorf("the agent behind was shown %s", got)
	}
	if len(o.Steps) != 2 || !slices.Equal(o.Steps[0].Edits, []string{"rewrite recipient <a@here.example> to <b@here.example>"}) {
		t.Errorf("steps %+v", o.Steps)
	}
}

func TestSegments(t *testing.T) {
	all := everything(onData)
	all.Headers = &agentpb.HeaderNeed{All: true}
	all.Body = &agentpb.BodyNeed{Mode: agentpb.BodyMode_BODY_MODE_WHOLE}
	named := everything(onData)
	named.Headers = &agentpb.HeaderNeed{Names: []string{"subject", "X-TWICE"}}
	named.Body = &agentpb.BodyNeed{Mode: agentpb.BodyMode_BODY_MODE_PREFIX, PrefixBytes: 4}
	skip := everything(onData)
	skip.Body = &agentpb.BodyNeed{Mode: agentpb.BodyMode_BODY_MODE_WHOLE, SkipOver: 5}
	a, b, c := newFake("a", 1, carryOn(), all), newFake("b", 2, carryOn(), named), newFake("c", 3, carryOn(), skip)
	g := newRig(t, a, b, c)
	o := g.raise(t, onData, mail("r0@here.example"))
	if o.Decision != Continue {
		t.Fatalf("outcome %+v", o)
	}
	var raw strings.Builder
	for i, h := range a.last(t).Headers {
		if int(h.Index) != i {
			t.Errorf("index %d at %d", h.Index, i)
		}
		raw.WriteString(string(h.Name) + ":" + string(h.Value) + "\r\n")
	}
	if raw.String() != sampleHeader || string(a.last(t).body) != "line one\r\nline two\r\n" {
		t.Errorf("header %q, body %q", raw.String(), a.last(t).body)
	}
	got := []string{}
	for _, h := range b.last(t).Headers {
		got = append(got, fmt.Sprintf("%d %s:%s", h.Index, h.Name, h.Value))
	}
	if want := []string{"3 Subject: hello\r\n world", "4 X-Twice: 1", "5 x-twice: 2"}; !slices.Equal(got, want) {
		t.Errorf("named headers %q", got)
	}
	if string(b.last(t).body) != "line" {
		t.Errorf("prefix %q", b.last(t).body)
	}
	if s := c.last(t); s.body != nil || !s.Body.GetSkipped() || s.Body.GetSize() != 20 {
		t.Errorf("skipped body %q %v", s.body, s.Body)
	}
	f := a.last(t).Message
	if string(f.HeaderFrom) != "J.Doe@else.example" || string(f.MessageId) != "<1@else.example>" || f.ReceivedCount != 1 || f.BodyBytes != 20 {
		t.Errorf("message facts %v", f)
	}
}

// What one agent changes the next sees, unless it asked for what was received.
func TestViews(t *testing.T) {
	body := "new body\r\n"
	sum := sha256.Sum256([]byte(body))
	index := uint32(3)
	edit := newFake("edit", 1, &agentpb.Answer{Verdicts: carryOn().Verdicts, Edits: []*agentpb.Edit{
		{Edit: &agentpb.Edit_AddHeader{AddHeader: &agentpb.AddHeader{Name: []byte("X-First"), Value: []byte("1")}}},
		{Edit: &agentpb.Edit_AddHeader{AddHeader: &agentpb.AddHeader{Name: []byte("X-Last"), Value: []byte("a\r\n b"), Last: true}}},
		{Edit: &agentpb.Edit_ReplaceHeader{ReplaceHeader: &agentpb.ReplaceHeader{Index: 3, Name: []byte("subject"), Value: []byte("bye")}}},
		{Edit: &agentpb.Edit_RemoveHeader{RemoveHeader: &agentpb.RemoveHeader{Name: []byte("X-Twice")}}},
		{Edit: &agentpb.Edit_Body{Body: &agentpb.BodyEdit{Size: uint64(len(body)), Sha256: sum[:],
			Segments: []*agentpb.Segment{{Source: &agentpb.Segment_Data{Data: []byte(body)}}}}}},
	}}, everything(onData))
	reads := everything(onData)
	reads.Headers, reads.Body = &agentpb.HeaderNeed{All: true}, &agentpb.BodyNeed{Mode: agentpb.BodyMode_BODY_MODE_WHOLE}
	current := newFake("current", 2, carryOn(), reads)
	original := everything(onData)
	original.Headers, original.Body, original.View = reads.Headers, reads.Body, agentpb.View_VIEW_ORIGINAL
	late := newFake("late", 3, &agentpb.Answer{Verdicts: carryOn().Verdicts, Edits: []*agentpb.Edit{
		// By the index that it saw; the field stands elsewhere now, and Subject is another one.
		{Edit: &agentpb.Edit_ReplaceHeader{ReplaceHeader: &agentpb.ReplaceHeader{Index: 2, Name: []byte("To"), Value: []byte("all")}}},
		{Edit: &agentpb.Edit_RemoveHeader{RemoveHeader: &agentpb.RemoveHeader{Index: &index, Name: []byte("Subject")}}},
	}}, original)
	g := newRig(t, edit, current, late)
	m := mail("r0@here.example")
	o := g.raise(t, onData, m)
	if len(g.breaches) > 0 {
		t.Fatal(g.breaches)
	}
	want := "X-First: 1\r\nReceived: from a\r\n by b\r\nFrom: \"Doe, J\" <J.Doe@Else.Example>\r\nTo: all\r\nSubject: bye\r\nMessage-ID: <1@else.example>\r\nX-Last: a\r\n b\r\n"
	if string(m.Header) != want {
		t.Errorf("header %q", m.Header)
	}
	if string(m.Body.Bytes()) != body || string(m.OriginalHeader) != sampleHeader {
		t.Errorf("body %q", m.Body.Bytes())
	}
	if string(current.last(t).body) != body || string(current.last(t).Headers[0].Name) != "X-First" {
		t.Error("the second agent does not see the first one's edits")
	}
	if string(late.last(t).body) != "line one\r\nline two\r\n" || len(late.last(t).Headers) != 7 {
		t.Error("the third agent does not see what was received")
	}
	if len(o.Steps[0].Edits) != 5 || o.Steps[0].Edits[4] != "replace body (10 bytes)" {
		t.Errorf("edits in words %q", o.Steps[0].Edits)
	}
}

func TestBodyOfRangesInAFile(t *testing.T) {
	line := strings.Repeat("x", 76) + "\r\n"
	old := strings.Repeat(line, 2000)
	want := old[:78] + "new\r\n" + old[78:]
	sum := sha256.Sum256([]byte(want))
	rng := func(off, n int) *agentpb.Segment {
		return &agentpb.Segment{Source: &agentpb.Segment_Original{Original: &agentpb.Range{Offset: uint64(off), Length: uint64(n)}}}
	}
	a := newFake("a", 1, &agentpb.Answer{Verdicts: carryOn().Verdicts, Edits: []*agentpb.Edit{{Edit: &agentpb.Edit_Body{Body: &agentpb.BodyEdit{
		Size: uint64(len(want)), Sha256: sum[:], Segments: []*agentpb.Segment{rng(0, 78),
			{Source: &agentpb.Segment_Data{Data: []byte("new\r\n")}}, rng(78, len(old)-78)}}}}}}, everything(onData))
	g := newRig(t, a)
	m := mail("r0@here.example")
	m.Body = envelope.MemoryBody([]byte(old))
	g.raise(t, onData, m)
	got, err := io.ReadAll(m.Body.Reader())
	if err != nil || string(got) != want || m.Body.InMemory() || len(g.breaches) > 0 {
		t.Errorf("body of %d octets, error %v, breaches %v", len(got), err, g.breaches)
	}
}

// Edits and verdicts for some recipients: the mail is split, and later agents are asked for each copy.
func TestSplit(t *testing.T) {
	mark := newFake("mark", 1, &agentpb.Answer{Verdicts: carryOn().Verdicts, Edits: []*agentpb.Edit{{
		Edit:       &agentpb.Edit_AddHeader{AddHeader: &agentpb.AddHeader{Name: []byte("X-Marked"), Value: []byte("yes")}},
		Recipients: []uint32{0, 2}}}}, everything(onData))
	reads := everything(onData)
	reads.Headers = &agentpb.HeaderNeed{Names: []string{"X-Marked"}}
	after := newFake("after", 2, nil, reads)
	after.answer = func(_ context.Context, e *shown) *agentpb.Answer {
		if len(e.Headers) == 1 {
			return say(&agentpb.Verdict{Kind: kReject, Recipients: []uint32{2}, Reason: "marked"})
		}
		return carryOn()
	}
	g := newRig(t, mark, after)
	m := mail("r0@here.example", "r1@here.example", "r2@here.example")
	o := g.raise(t, onData, m)
	if len(g.breaches) > 0 || len(o.Mails) != 2 || o.Decision != Continue || len(o.Recipients) != 1 || o.Recipients[2].Reason != "marked" {
		t.Fatalf("outcome %+v, breaches %v", o, g.breaches)
	}
	if o.Mails[0] != m || len(m.Recipients) != 1 || strings.Contains(string(m.Header), "X-Marked") {
		t.Errorf("first copy %+v", m)
	}
	second := o.Mails[1]
	if len(second.Recipients) != 2 || !strings.HasPrefix(string(second.Header), "X-Marked: yes\r\n") || second.Recipients[0].ORCPT != "rfc822;r0@here.example" {
		t.Errorf("second copy %+v", second)
	}
	if after.calls.Load() != 2 {
		t.Errorf("asked %d times", after.calls.Load())
	}
}

// Copies made at the end of headers come into being when the body is there.
func TestSplitAtHeadersWaitsForTheBody(t *testing.T) {
	mark := newFake("mark", 1, &agentpb.Answer{Verdicts: carryOn().Verdicts, Edits: []*agentpb.Edit{{
		Edit:       &agentpb.Edit_AddHeader{AddHeader: &agentpb.AddHeader{Name: []byte("X-Marked"), Value: []byte("yes")}},
		Recipients: []uint32{1}}}}, everything(onHeaders))
	g := newRig(t, mark)
	m := mail("r0@here.example", "r1@here.example")
	body := m.Body
	m.Body = nil
	c := g.Open(session(), nil)
	o := c.Raise(context.Background(), &Event{Kind: onHeaders, ID: "1", Mail: m})
	if len(o.Mails) != 1 || len(m.Recipients) != 2 || !c.Subscribed(onData) {
		t.Fatalf("outcome %+v", o)
	}
	m.Body = body
	o = c.Raise(context.Background(), &Event{Kind: onData, ID: "2", Mail: m})
	if len(o.Mails) != 2 || o.Mails[1].Body != body || !strings.Contains(string(o.Mails[1].Header), "X-Marked") || len(o.Mails[1].Recipients) != 1 {
		t.Errorf("outcome %+v", o)
	}
	c.EndMail()
	if c.Subscribed(onData) {
		t.Error("copies outlive their message")
	}
}

func TestMixedRecipients(t *testing.T) {
	for name, test := range map[string]struct {
		verdicts []*agentpb.Verdict
		want     Decision
		some     int
	}{
		"some refused":             {[]*agentpb.Verdict{verdict(kReject, 1)}, Continue, 1},
		"all refused, one by one":  {[]*agentpb.Verdict{verdict(kReject, 1), verdict(kReject, 0)}, Reject, 0},
		"any defer":                {[]*agentpb.Verdict{verdict(kReject, 1), verdict(kDefer, 0)}, Defer, 0},
		"refused and quarantined":  {[]*agentpb.Verdict{verdict(kReject, 1), verdict(agentpb.VerdictKind_VERDICT_KIND_QUARANTINE, 0)}, Continue, 2},
		"all discarded":            {[]*agentpb.Verdict{verdict(agentpb.VerdictKind_VERDICT_KIND_DISCARD)}, Discard, 0},
		"rest by the whole":        {[]*agentpb.Verdict{verdict(kReject, 1), verdict(agentpb.VerdictKind_VERDICT_KIND_QUARANTINE)}, Continue, 2},
		"disconnect for everybody": {[]*agentpb.Verdict{verdict(agentpb.VerdictKind_VERDICT_KIND_DISCONNECT)}, Disconnect, 0},
	} {
		t.Run(name, func(t *testing.T) {
			g := newRig(t, newFake("a", 1, say(test.verdicts...), everything(onData)))
			o := g.raise(t, onData, mail("r0@here.example", "r1@here.example"))
			if o.Decision != test.want || len(o.Recipients) != test.some || len(g.breaches) > 0 {
				t.Errorf("decision %s, %d recipients, breaches %v", o.Decision, len(o.Recipients), g.breaches)
			}
			if o.Decision >= Defer && (o.Reply.Code == 0 || o.Reply.Enhanced == "" || o.Reply.Text == "") {
				t.Errorf("reply %q is not complete", o.Reply)
			}
		})
	}
}

func TestDefaultReplies(t *testing.T) {
	for _, test := range []struct {
		kind agentpb.EventKind
		v    *agentpb.Verdict
		want string
	}{
		{onConnect, verdict(kReject), "554 5.7.1 Connection refused"},
		{onConnect, verdict(kDefer), "421 4.7.1 Please try again later"},
		{onMail, verdict(kReject), "550 5.7.1 Sender refused"},
		{onData, verdict(kReject), "550 5.7.1 Message refused"},
		{onData, verdict(kDefer), "451 4.7.1 Please try again later"},
		{onMail, verdict(agentpb.VerdictKind_VERDICT_KIND_DISCONNECT), "421 4.7.0 Closing connection"},
		{onMail, &agentpb.Verdict{Kind: kReject, Reply: &agentpb.Reply{Text: "Grüße"}}, "550 5.7.1 Gr??e"},
		{onMail, &agentpb.Verdict{Kind: kReject, Reply: &agentpb.Reply{Code: 552}}, "552 5.7.1 Sender refused"},
		{onMail, &agentpb.Verdict{Kind: agentpb.VerdictKind_VERDICT_KIND_DISCONNECT, Reply: &agentpb.Reply{Enhanced: "5.3.2"}}, "521 5.3.2 Closing connection"},
	} {
		g := newRig(t, newFake("a", 1, say(test.v), everything(test.kind)))
		m := mail()
		if test.kind == onConnect {
			m = nil
		} else if test.kind == onData {
			m = mail("r0@here.example")
		}
		if o := g.raise(t, test.kind, m); o.Reply.String() != test.want {
			t.Errorf("%s %s: %q, want %q", EventName(test.kind), test.v.Kind, o.Reply, test.want)
		}
	}
}

// Ten agents that wait are asked at once; a reject by the first leaves nothing of the other nine.
func TestStage(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		var inside sync.WaitGroup
		inside.Add(10)
		var fakes []*fake
		for i := range 10 {
			sub := everything(onData)
			sub.Waits = true
			sub.MayChange.Headers, sub.MayChange.Body, sub.MayChange.Envelope, sub.MayChange.Bypass = false, false, false, false
			f := newFake(fmt.Sprintf("a%d", i), i, nil, sub)
			f.answer = func(ctx context.Context, _ *shown) *agentpb.Answer {
				inside.Done()
				inside.Wait() // until all ten are here
				if refuse && i == 0 {
					return say(verdict(kReject))
				}
				return &agentpb.Answer{
					Verdicts: carryOn().Verdicts,
					Stamps:   []*agentpb.Stamp{{Name: "here", Value: []byte("1")}, {Name: "in", Scope: agentpb.Scope_SCOPE_SESSION, Value: []byte("1")}},
					Writes:   []*agentpb.TableWrite{{Table: "own", Key: []byte("k"), Op: agentpb.TableOp_TABLE_OP_PUT, Value: []byte("{}")}},
					Spawns:   []*agentpb.Spawn{{Recipients: [][]byte{[]byte("j@here.example")}, Before: []byte("Subject: j\r\n\r\n"), IncludeOriginal: true}},
					Copies:   []*agentpb.KeepCopy{{Reason: "r"}},
				}
			}
			fakes = append(fakes, f)
		}
		g := newRig(t, fakes...)
		m := mail("r0@here.example")
		c := g.Open(session(), nil)
		o := c.Raise(context.Background(), &Event{Kind: onData, ID: "e", Mail: m})
		want := 10
		if refuse {
			want = 0
		}
		if len(g.breaches) > 0 || len(m.Stamps) != want || len(c.SessionStamps()) != want || len(g.store.Names()) != want ||
			len(o.Spawns) != want || len(o.Copies) != want {
			t.Errorf("refuse %v: %d stamps, %d session stamps, %d tables, %d spawns, %d copies, breaches %v", refuse,
				len(m.Stamps), len(c.SessionStamps()), len(g.store.Names()), len(o.Spawns), len(o.Copies), g.breaches)
		}
		if refuse {
			n := 0
			for _, s := range o.Steps {
				if s.Verdict == "not-needed" {
					n++
				}
			}
			if o.Decision != Reject || n != 9 {
				t.Errorf("%s, %d not needed", o.Decision, n)
			}
		}
	}
}

func TestStagesOfAPlan(t *testing.T) {
	sub := func(waits bool, fill func(*agentpb.Subscription)) *agentpb.Subscription {
		s := &agentpb.Subscription{Event: onData, Waits: waits, MayChange: &agentpb.Changes{Verdict: true}}
		if fill != nil {
			fill(s)
		}
		return s
	}
	readsHeaders := func(s *agentpb.Subscription) { s.Headers = &agentpb.HeaderNeed{All: true} }
	changesHeaders := func(s *agentpb.Subscription) { s.MayChange.Headers = true }
	for name, test := range map[string]struct {
		subs []*agentpb.Subscription
		want string
	}{
		"cheap ones in a row":     {[]*agentpb.Subscription{sub(false, nil), sub(false, nil)}, "a0 | a1 (at most one of them waits)"},
		"one waits":               {[]*agentpb.Subscription{sub(false, nil), sub(true, nil)}, "a0 | a1 (at most one of them waits)"},
		"two wait":                {[]*agentpb.Subscription{sub(true, nil), sub(true, nil)}, "a0 a1"},
		"a cheap one between":     {[]*agentpb.Subscription{sub(true, nil), sub(false, nil), sub(true, nil)}, "a0 a1 a2"},
		"cheap ones around":       {[]*agentpb.Subscription{sub(false, nil), sub(true, nil), sub(true, nil), sub(false, nil)}, "a0 | a1 a2 (the agent before it does not wait) | a3 (it does not wait)"},
		"headers":                 {[]*agentpb.Subscription{sub(true, changesHeaders), sub(true, readsHeaders)}, "a0 | a1 (a1 reads headers, which a0 may change)"},
		"read before the change":  {[]*agentpb.Subscription{sub(true, readsHeaders), sub(true, changesHeaders)}, "a0 a1"},
		"headers as received":     {[]*agentpb.Subscription{sub(true, changesHeaders), sub(true, func(s *agentpb.Subscription) { readsHeaders(s); s.View = agentpb.View_VIEW_ORIGINAL })}, "a0 a1"},
		"stamps":                  {[]*agentpb.Subscription{sub(true, func(s *agentpb.Subscription) { s.MayChange.Stamps = []string{"x"} }), sub(true, func(s *agentpb.Subscription) { s.ReadsStamps = []string{"a0.*"} })}, "a0 | a1 (a1 reads stamp a0.x, which a0 may change)"},
		"shared stamps":           {[]*agentpb.Subscription{sub(true, func(s *agentpb.Subscription) { s.MayChange.Stamps = []string{"scl"} }), sub(true, func(s *agentpb.Subscription) { s.ReadsStamps = []string{"scl"} })}, "a0 | a1 (a1 reads stamp scl, which a0 may change)"},
		"tables":                  {[]*agentpb.Subscription{sub(true, func(s *agentpb.Subscription) { s.MayChange.Tables = []string{"reputation"} }), sub(true, func(s *agentpb.Subscription) { s.Tables = []*agentpb.TableUse{{Table: "reputation"}} })}, "a0 | a1 (a1 reads table reputation, which a0 may change)"},
		"own tables of that name": {[]*agentpb.Subscription{sub(true, func(s *agentpb.Subscription) { s.MayChange.Tables = []string{"t"} }), sub(true, func(s *agentpb.Subscription) { s.Tables = []*agentpb.TableUse{{Table: "t"}} })}, "a0 a1"},
		"bypass":                  {[]*agentpb.Subscription{sub(true, func(s *agentpb.Subscription) { s.MayChange.Bypass = true }), sub(true, nil)}, "a0 | a1 (a1 reads stamp bypass.other, which a0 may change)"},
		"envelope":                {[]*agentpb.Subscription{sub(true, func(s *agentpb.Subscription) { s.MayChange.Envelope = true }), sub(true, nil)}, "a0 | a1 (a1 reads the envelope, which a0 may change)"},
	} {
		t.Run(name, func(t *testing.T) {
			var fakes []*fake
			for i, s := range test.subs {
				fakes = append(fakes, newFake(fmt.Sprintf("a%d", i), i, carryOn(), s))
			}
			var words []string
			for _, s := range plan(t, fakes...).Describe()[0].Stages {
				var names []string
				for _, a := range s.Agents {
					names = append(names, a.Agent)
				}
				w := strings.Join(names, " ")
				if s.Apart != "" {
					w += " (" + s.Apart + ")"
				}
				words = append(words, w)
			}
			if got := strings.Join(words, " | "); got != test.want {
				t.Errorf("%s\nwant %s", got, test.want)
			}
		})
	}
}

func TestFailures(t *testing.T) {
	dead := &agent.Failure{Agent: "a", Kind: agent.Died, Detail: "signal: killed"}
	poison := &agent.Failure{Agent: "a", Kind: agent.Poison, Evidence: "panic"}
	for name, test := range map[string]struct {
		kind      agentpb.EventKind
		onFailure string
		failure   *agent.Failure
		answer    *agentpb.Answer
		want      string
	}{
		"dies, default":                {onData, "", dead, nil, "defer 451 4.3.2 Service temporarily unavailable, please try again later; failed, defer"},
		"dies, skip":                   {onData, "skip", dead, nil, "continue; skipped=a; failed, skipped"},
		"dies, reject":                 {onData, "reject", dead, nil, "reject 550 5.7.1 Message refused; failed, reject"},
		"dies, hold":                   {onData, "hold", dead, nil, "continue; hold a; failed, hold"},
		"hold where it cannot be":      {onMail, "hold", dead, nil, "defer 451 4.3.2 Service temporarily unavailable, please try again later; failed, defer"},
		"right of the line":            {onSubmit, "", dead, nil, "defer 451 4.3.2 Service temporarily unavailable, please try again later; waits for a; failed, waiting"},
		"right of the line, skip":      {onSubmit, "skip", dead, nil, "continue; skipped=a; failed, skipped"},
		"poison at the end of data":    {onData, "skip", poison, nil, "defer 451 4.3.2 Service temporarily unavailable, please try again later; hold a; poison; failed, poison"},
		"poison right of the line":     {onSubmit, "", poison, nil, "defer 451 4.3.2 Service temporarily unavailable, please try again later; poison; failed, poison"},
		"poison before there is mail":  {onConnect, "", poison, nil, "defer 421 4.3.2 Service temporarily unavailable, please try again later; failed, defer"},
		"no verdict":                   {onData, "", nil, &agentpb.Answer{}, "defer 451 4.3.2 Service temporarily unavailable, please try again later; breach; defer"},
		"fault":                        {onData, "skip", nil, &agentpb.Answer{Fault: "panic: x"}, "continue; skipped=a; skipped"},
		"undetermined":                 {onData, "reject", nil, say(verdict(agentpb.VerdictKind_VERDICT_KIND_UNDETERMINED)), "reject 550 5.7.1 Message refused; undetermined, reject"},
		"undetermined, right":          {onSubmit, "defer", nil, say(verdict(agentpb.VerdictKind_VERDICT_KIND_UNDETERMINED)), "defer 451 4.7.1 Please try again later; undetermined, defer"},
		"skip by default, no verdicts": {onHeaders, "", dead, nil, "continue; skipped=a; failed, skipped"},
	} {
		t.Run(name, func(t *testing.T) {
			sub := everything(test.kind)
			sub.MayChange.Verdict = test.kind != onHeaders
			a := newFake("a", 1, test.answer, sub)
			a.fails = func(*shown) *agent.Failure { return test.failure }
			if test.onFailure != "" {
				a.spec.OnFailure = map[agentpb.EventKind]string{test.kind: test.onFailure}
			}
			g := newRig(t, a)
			var m *envelope.Mail
			if test.kind != onConnect {
				m = mail("r0@here.example")
			}
			o := g.raise(t, test.kind, m)
			if got := inWords(g, o, m); got != test.want {
				t.Errorf("%s\nwant %s", got, test.want)
			}
		})
	}
}

// inWords tells an outcome with its failures.
func inWords(g *rig, o *Outcome, m *envelope.Mail) string {
	words := []string{strings.TrimSpace(o.Decision.String() + " " + strings.TrimPrefix(o.Reply.String(), "0 "))}
	if m != nil && m.Stamps["skipped"] != nil {
		words = append(words, "skipped="+string(m.Stamps["skipped"]))
	}
	if len(o.Hold) > 0 {
		words = append(words, "hold "+strings.Join(o.Hold, ","))
	}
	if o.WaitFor != "" {
		words = append(words, "waits for "+o.WaitFor)
	}
	if o.Poison != nil {
		words = append(words, "poison")
	}
	if len(g.breaches) > 0 {
		words = append(words, "breach")
	}
	var steps []string
	for _, s := range o.Steps {
		steps = append(steps, s.Verdict)
	}
	return strings.Join(append(words, strings.Join(steps, ", ")), "; ")
}

func TestBypass(t *testing.T) {
	antispam := func(f *fake) *fake { f.manifest.Category = agentpb.Category_CATEGORY_ANTISPAM; return f }
	by := func(scope agentpb.Scope, recipients ...uint32) *agentpb.Answer {
		return say(&agentpb.Verdict{Kind: kBypass, Category: agentpb.Category_CATEGORY_ANTISPAM, Scope: scope, Recipients: recipients})
	}
	t.Run("session", func(t *testing.T) {
		allow := antispam(newFake("allow", 1, by(agentpb.Scope_SCOPE_SESSION), everything(onConnect), everything(onData)))
		allow.answer = func(_ context.Context, e *shown) *agentpb.Answer {
			if e.Kind == onConnect {
				return by(agentpb.Scope_SCOPE_SESSION)
			}
			return carryOn()
		}
		filter := antispam(newFake("filter", 2, say(verdict(kReject)), everything(onData)))
		other := newFake("other", 3, carryOn(), everything(onData))
		g := newRig(t, allow, filter, other)
		c := g.Open(session(), nil)
		c.Raise(context.Background(), &Event{Kind: onConnect, ID: "1"})
		c.StartTLS() // what OnConnect said stays
		o := c.Raise(context.Background(), &Event{Kind: onData, ID: "2", Mail: mail("r0@here.example")})
		if o.Decision != Continue || filter.calls.Load() != 0 || other.calls.Load() != 1 || allow.calls.Load() != 2 {
			t.Errorf("outcome %+v, breaches %v", o, g.breaches)
		}
		if o.Steps[1].Agent != "filter" || o.Steps[1].Verdict != "bypassed" {
			t.Errorf("steps %+v", o.Steps)
		}
	})
	t.Run("recipients", func(t *testing.T) {
		allow := antispam(newFake("allow", 1, by(agentpb.Scope_SCOPE_RECIPIENT, 1), everything(onData)))
		filter := antispam(newFake("filter", 2, &agentpb.Answer{Verdicts: say(verdict(kReject)).Verdicts,
			Stamps: []*agentpb.Stamp{{Name: "scl", Value: []byte("9")}}}, everything(onData)))
		g := newRig(t, allow, filter)
		m := mail("r0@here.example", "r1@here.example", "r2@here.example")
		o := g.raise(t, onData, m)
		if e := filter.last(t); len(e.Envelope.Recipients) != 2 {
			t.Errorf("the filter was shown %v", e.Envelope)
		}
		if o.Decision != Continue || len(o.Recipients) != 2 || o.Recipients[0].Decision != Reject || o.Recipients[2].Decision != Reject {
			t.Errorf("outcome %+v, breaches %v", o, g.breaches)
		}
		if m.Stamps["scl"] != nil || string(m.Recipients[0].Stamps["scl"]) != "9" || m.Recipients[1].Stamps["scl"] != nil {
			t.Error("the stamp reaches a recipient that the agent was not shown")
		}
	})
	t.Run("recipient at RCPT", func(t *testing.T) {
		allow := antispam(newFake("allow", 1, by(agentpb.Scope_SCOPE_RECIPIENT), everything(onRcpt)))
		filter := antispam(newFake("filter", 2, say(verdict(kReject)), everything(onRcpt)))
		g := newRig(t, allow, filter)
		r := &envelope.Recipient{Address: box("a@here.example")}
		o := g.Open(session(), nil).Raise(context.Background(), &Event{Kind: onRcpt, ID: "1", Mail: mail(), Recipient: r})
		if o.Decision != Continue || filter.calls.Load() != 0 {
			t.Errorf("outcome %+v, breaches %v", o, g.breaches)
		}
	})
	t.Run("antivirus is not granted", func(t *testing.T) {
		allow := newFake("allow", 1, say(&agentpb.Verdict{Kind: kBypass, Category: agentpb.Category_CATEGORY_ANTIVIRUS}), everything(onData))
		g := newRig(t, allow)
		g.raise(t, onData, mail("r0@here.example"))
		if len(g.breaches) != 1 || !strings.Contains(g.breaches[0], "needs the grant bypass_antivirus") {
			t.Errorf("breaches %v", g.breaches)
		}
	})
}

func TestDone(t *testing.T) {
	a := newFake("a", 1, nil, everything(onConnect), everything(onMail), everything(onData))
	a.answer = func(_ context.Context, e *shown) *agentpb.Answer {
		return say(&agentpb.Verdict{Kind: kDone, Scope: map[agentpb.EventKind]agentpb.Scope{
			onConnect: 0, onMail: agentpb.Scope_SCOPE_MESSAGE}[e.Kind]})
	}
	g := newRig(t, a)
	c := g.Open(session(), nil)
	c.Raise(context.Background(), &Event{Kind: onConnect, ID: "0"})
	if len(g.breaches) != 1 {
		t.Errorf("done for a message where there is none: %v", g.breaches)
	}
	m := mail("r0@here.example")
	c.Raise(context.Background(), &Event{Kind: onMail, ID: "1", Mail: m})
	o := c.Raise(context.Background(), &Event{Kind: onData, ID: "2", Mail: m})
	if a.calls.Load() != 2 || len(o.Steps) != 1 || o.Steps[0].Verdict != "done" {
		t.Errorf("%d calls, steps %+v", a.calls.Load(), o.Steps)
	}
	c.EndMail()
	c.Raise(context.Background(), &Event{Kind: onData, ID: "3", Mail: mail("r0@here.example")})
	if a.calls.Load() != 3 {
		t.Error("done outlives its message")
	}
}

func TestWhen(t *testing.T) {
	yes := true
	outbound := mail("r0@far.example")
	for name, test := range map[string]struct {
		when  config.When
		trust envelope.Trust
		mail  *envelope.Mail
		want  int64
	}{
		"no condition":                {config.When{}, envelope.Anonymous, mail("r0@here.example"), 1},
		"another connector":           {config.When{Connectors: []string{"hub"}}, envelope.Anonymous, mail("r0@here.example"), 0},
		"this connector":              {config.When{Connectors: []string{"internet"}}, envelope.Anonymous, mail("r0@here.example"), 1},
		"external":                    {config.When{Traffic: []string{"external"}}, envelope.Partner, mail("r0@here.example"), 1},
		"external, from a user":       {config.When{Traffic: []string{"external"}}, envelope.User, mail("r0@here.example"), 0},
		"internal, to a subdomain":    {config.When{Traffic: []string{"internal"}}, envelope.User, mail("r0@x.sub.example"), 1},
		"internal, to somebody else":  {config.When{Traffic: []string{"internal"}}, envelope.User, outbound, 0},
		"outbound":                    {config.When{Traffic: []string{"outbound"}}, envelope.OwnServer, outbound, 1},
		"recipients not known yet":    {config.When{Traffic: []string{"outbound"}}, envelope.OwnServer, mail(), 1},
		"both kinds of recipients":    {config.When{Traffic: []string{"internal"}}, envelope.User, mail("a@far.example", "b@here.example"), 1},
		"authenticated":               {config.When{Authenticated: &yes}, envelope.Anonymous, mail("r0@here.example"), 0},
		"larger than the agent wants": {config.When{MaxSize: 10}, envelope.Anonymous, mail("r0@here.example"), 0},
		"small enough":                {config.When{MaxSize: 10000}, envelope.Anonymous, mail("r0@here.example"), 1},
	} {
		a := newFake("a", 1, carryOn(), everything(onData))
		a.spec.When = test.when
		g := newRig(t, a)
		s := session()
		s.Trust = test.trust
		g.Open(s, nil).Raise(context.Background(), &Event{Kind: onData, ID: "1", Mail: test.mail})
		if a.calls.Load() != test.want {
			t.Errorf("%s: %d calls", name, a.calls.Load())
		}
	}
}

func TestNeed(t *testing.T) {
	sub := everything(onData)
	sub.Tables = []*agentpb.TableUse{{Table: "own"}, {Table: "own"}}
	a := newFake("a", 1, nil, sub)
	a.answer = func(_ context.Context, e *shown) *agentpb.Answer {
		if !e.Needed {
			return &agentpb.Answer{Need: &agentpb.Need{Tables: []*agentpb.NeedKeys{{Table: "own", Keys: [][]byte{[]byte("k"), []byte("l")}}}}}
		}
		if len(e.Rows) != 2 || !e.Rows[0].Found || e.Rows[1].Found || e.EventId != "event" {
			t.Errorf("rows %v", e.Rows)
		}
		return &agentpb.Answer{Verdicts: carryOn().Verdicts, Writes: []*agentpb.TableWrite{{Table: "own", Key: []byte("k"),
			Op: agentpb.TableOp_TABLE_OP_ADD, Field: "n", Amount: 1}}}
	}
	twice := newFake("twice", 2, &agentpb.Answer{Need: &agentpb.Need{Tables: []*agentpb.NeedKeys{{Table: "own"}}}}, sub)
	g := newRig(t, a, twice)
	g.store.Apply([]tables.Write{{Table: "a/own", Key: "k", Op: tables.Put, Value: []byte(`{"n":1}`)}})
	if reads := g.Plan().Describe()[0].Stages[0].Agents[0].Reads; strings.Count(strings.Join(reads, " "), "table a/own") != 1 {
		t.Errorf("reads %q", reads)
	}
	out := g.raise(t, onData, mail("r0@here.example"))
	if step := out.Steps[0]; step.Agent != "a" || step.Attempt != 0 { // that it was asked twice is no second attempt
		t.Errorf("step %+v", step)
	}
	g.raise(t, onData, mail("r0@here.example")) // the same event again
	if row, _ := g.store.Get("a/own", "k"); string(row.Value) != `{"n":2}` {
		t.Errorf("row %s", row.Value)
	}
	if len(g.breaches) != 2 || !strings.Contains(g.breaches[0], "need a second time") {
		t.Errorf("breaches %v", g.breaches)
	}
}

func TestRows(t *testing.T) {
	part := func(f agentpb.Fact) *agentpb.KeyPart { return &agentpb.KeyPart{Fact: f, Ipv4Bits: 24, Ipv6Bits: 64} }
	sub := everything(onData)
	sub.Tables = []*agentpb.TableUse{
		{Table: "triples", Key: []*agentpb.KeyPart{part(agentpb.Fact_FACT_CLIENT), part(agentpb.Fact_FACT_SENDER), part(agentpb.Fact_FACT_RECIPIENT)}},
		{Table: "ip-block", Key: []*agentpb.KeyPart{{Fact: agentpb.Fact_FACT_CLIENT}}, LongestPrefix: true},
		{Table: "facts", Key: []*agentpb.KeyPart{{Fact: agentpb.Fact_FACT_LITERAL, Literal: "x"}, part(agentpb.Fact_FACT_HELO),
			part(agentpb.Fact_FACT_SENDER_DOMAIN), part(agentpb.Fact_FACT_HEADER_FROM), part(agentpb.Fact_FACT_HEADER_FROM_DOMAIN)}},
		{Table: "noted"},
	}
	a := newFake("a", 1, carryOn(), sub)
	g := newRig(t, a)
	g.store.Apply(tablesWrites("ip-block", "192.0.2.0/25", "a/triples", "192.0.2.0|s@else.example|r1@here.example"))
	g.raise(t, onData, mail("R0@here.example", "r1@here.example"))
	var got []string
	for _, r := range a.last(t).Rows {
		got = append(got, fmt.Sprintf("%d %s %s %v %d %s", r.Use, r.Table, r.Key, r.Found, r.Recipient, r.Matched))
	}
	want := []string{
		"0 triples 192.0.2.0|s@else.example|r0@here.example false 0 ",
		"0 triples 192.0.2.0|s@else.example|r1@here.example true 1 ",
		"1 ip-block 192.0.2.7 true 0 192.0.2.0/25",
		"2 facts x|client.example|else.example|j.doe@else.example|else.example false 0 ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("rows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestFacts(t *testing.T) {
	sub := everything(onReject)
	release := make(chan struct{})
	a := newFake("a", 1, nil, sub, everything(onMail))
	var mu sync.Mutex
	var order []string
	a.answer = func(_ context.Context, e *shown) *agentpb.Answer {
		if e.Kind == onReject {
			<-release
		}
		mu.Lock()
		defer mu.Unlock()
		order = append(order, e.EventId)
		if e.EventId != "2" {
			return carryOn()
		}
		return &agentpb.Answer{
			Verdicts: []*agentpb.Verdict{{Kind: agentpb.VerdictKind_VERDICT_KIND_DISCONNECT, Reason: "harvesting"}},
			Stamps:   []*agentpb.Stamp{{Name: "bad", Scope: agentpb.Scope_SCOPE_SESSION, Value: []byte("2")}},
			Writes:   []*agentpb.TableWrite{{Table: "own", Key: []byte("k"), Op: agentpb.TableOp_TABLE_OP_PUT, Value: []byte("{}")}},
		}
	}
	g := newRig(t, a)
	c := g.Open(session(), nil)
	m := mail()
	for i := range 4 {
		c.Tell(&Event{Kind: onReject, ID: fmt.Sprint(i), Mail: m, Arguments: &agentpb.Arguments{Event: &agentpb.Arguments_Reject{
			Reject: &agentpb.RejectArguments{Command: "RCPT"}}}})
	}
	if c.Disconnecting() {
		t.Fatal("answered too early")
	}
	close(release)
	c.Raise(context.Background(), &Event{Kind: onMail, ID: "mail", Mail: m}) // waits for the facts before it
	mu.Lock()
	if got := strings.Join(order, " "); got != "0 1 2 3 mail" {
		t.Errorf("order %s", got)
	}
	mu.Unlock()
	c.Close(context.Background())
	if !c.Disconnecting() || c.Disconnected().Reason != "harvesting" || c.Disconnected().Reply.Code != 421 {
		t.Errorf("disconnect %+v", c.Disconnected())
	}
	if string(c.SessionStamps()["a.bad"]) != "2" {
		t.Errorf("stamps %v", c.SessionStamps())
	}
	if _, ok := g.store.Get("a/own", "k"); !ok {
		t.Error("the table write is not there")
	}
}

func TestFullQueueOfFactsDropsAndCounts(t *testing.T) {
	release := make(chan struct{})
	a := newFake("a", 1, nil, everything(onReject))
	a.answer = func(context.Context, *shown) *agentpb.Answer { <-release; return carryOn() }
	g := newRig(t, a)
	c := g.Open(session(), nil)
	for range maxFacts + 10 {
		c.Tell(&Event{Kind: onReject, ID: "1"})
	}
	close(release)
	c.Close(context.Background())
	if n := g.DroppedFacts()["a"]; n != 10 || a.calls.Load() != maxFacts {
		t.Errorf("%d dropped, %d asked", n, a.calls.Load())
	}
}

func TestStartTLSDropsSessionStamps(t *testing.T) {
	a := newFake("a", 1, nil, everything(onConnect), everything(agentpb.EventKind_EVENT_KIND_EHLO))
	a.answer = func(_ context.Context, e *shown) *agentpb.Answer {
		return &agentpb.Answer{Verdicts: carryOn().Verdicts, Stamps: []*agentpb.Stamp{
			{Name: "kept", Scope: agentpb.Scope_SCOPE_SESSION, Value: []byte(e.EventId)},
			{Name: e.EventId, Scope: agentpb.Scope_SCOPE_SESSION, Value: []byte("1")}}}
	}
	g := newRig(t, a)
	c := g.Open(session(), nil)
	c.Raise(context.Background(), &Event{Kind: onConnect, ID: "c"})
	c.Raise(context.Background(), &Event{Kind: agentpb.EventKind_EVENT_KIND_EHLO, ID: "e"})
	c.StartTLS()
	s := c.SessionStamps()
	if len(s) != 2 || string(s["a.kept"]) != "c" || s["a.c"] == nil {
		t.Errorf("stamps %v", s)
	}
}

// The chain has a budget; what is left of it is what the next agent gets.
func TestBudget(t *testing.T) {
	slow := newFake("slow", 1, nil, everything(onData))
	slow.answer = func(context.Context, *shown) *agentpb.Answer { time.Sleep(200 * time.Millisecond); return carryOn() }
	next := newFake("next", 2, carryOn(), everything(onData))
	third := newFake("third", 3, carryOn(), everything(onData))
	next.answer = func(context.Context, *shown) *agentpb.Answer { time.Sleep(2 * time.Second); return carryOn() }
	g := newRig(t, slow, next, third)
	g.options.Host.EventBudget.Message = 2 * time.Second
	g.SetConfig(g.options.Host, nil)
	o := g.raise(t, onData, mail("r0@here.example"))
	if o.Decision != Defer || o.Agent != "third" || third.calls.Load() != 0 {
		t.Errorf("outcome %+v", o.Verdict)
	}
	if n := next.last(t).call.Timeout; n > 1800*time.Millisecond {
		t.Errorf("the second agent was given %s", n)
	}
}

func TestPlanStaysUntilMail(t *testing.T) {
	old, young := newFake("old", 1, carryOn(), everything(onMail)), newFake("young", 1, carryOn(), everything(onMail))
	g := newRig(t, old)
	c := g.Open(session(), nil)
	g.SetPlan(plan(t, young))
	c.Raise(context.Background(), &Event{Kind: onMail, ID: "1", Mail: mail()})
	c.BeginMail()
	c.Raise(context.Background(), &Event{Kind: onMail, ID: "2", Mail: mail()})
	if old.calls.Load() != 1 || young.calls.Load() != 1 {
		t.Errorf("old %d, young %d", old.calls.Load(), young.calls.Load())
	}
}

func TestRouting(t *testing.T) {
	edit := func(e ...*agentpb.Edit) *agentpb.Answer {
		return &agentpb.Answer{Verdicts: carryOn().Verdicts, Edits: e}
	}
	a := newFake("a", 1, edit(
		&agentpb.Edit{Edit: &agentpb.Edit_Expand{Expand: &agentpb.Expand{Index: 0, Addresses: [][]byte{[]byte("x@here.example"), []byte("y@here.example")}}}},
		&agentpb.Edit{Edit: &agentpb.Edit_RemoveRecipient{RemoveRecipient: &agentpb.RemoveRecipient{Index: 1, Report: &agentpb.Reply{Code: 550, Enhanced: "5.1.1", Text: "gone"}}}},
		&agentpb.Edit{Edit: &agentpb.Edit_Route{Route: &agentpb.Route{Domain: "Via.Example"}}, Recipients: []uint32{2}},
		&agentpb.Edit{Edit: &agentpb.Edit_Fork{Fork: &agentpb.Fork{}}, Recipients: []uint32{2}},
		&agentpb.Edit{Edit: &agentpb.Edit_AddRecipient{AddRecipient: &agentpb.AddRecipient{Address: []byte("add@here.example")}}},
	), everything(onResolve))
	g := newRig(t, a)
	m := mail("group@here.example", "gone@here.example", "r2@here.example", "r3@here.example")
	m.Recipients[0].Stamps = envelope.Stamps{"k": []byte("v")}
	o := g.raise(t, onResolve, m)
	if len(g.breaches) > 0 || len(o.Mails) != 2 || len(o.Fails) != 1 || o.Fails[0].Reply.String() != "550 5.1.1 gone" || o.Routes[2] != "via.example" {
		t.Fatalf("outcome %+v, breaches %v", o, g.breaches)
	}
	var got []string
	seen := map[int]bool{}
	for i, m := range o.Mails {
		for _, r := range m.Recipients {
			if seen[r.Index] {
				t.Errorf("index %d twice", r.Index)
			}
			seen[r.Index] = true
			got = append(got, fmt.Sprintf("%d %s %s %s %s", i, r.Address, r.ExpandedFrom, r.ORCPT, r.Stamps["k"]))
		}
	}
	want := []string{
		"0 r3@here.example  rfc822;r3@here.example ",
		"0 x@here.example group@here.example rfc822;group@here.example v",
		"0 y@here.example group@here.example rfc822;group@here.example v",
		"0 add@here.example   ",
		"1 r2@here.example  rfc822;r2@here.example ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("recipients\n%s", strings.Join(got, "\n"))
	}
}

// A verdict for the whole message finds all its recipients, whatever copies were made before.
func TestWholeVerdictAfterASplit(t *testing.T) {
	mark := newFake("mark", 1, &agentpb.Answer{Verdicts: carryOn().Verdicts, Edits: []*agentpb.Edit{{
		Edit:       &agentpb.Edit_AddHeader{AddHeader: &agentpb.AddHeader{Name: []byte("X-Marked"), Value: []byte("yes")}},
		Recipients: []uint32{1}}}}, everything(onSubmit), everything(onData))
	for _, test := range []struct {
		kind    agentpb.EventKind
		k       agentpb.VerdictKind
		whole   bool
		dies    bool
		waitFor string
	}{
		{onData, kReject, true, false, ""},
		{onData, agentpb.VerdictKind_VERDICT_KIND_QUARANTINE, false, false, ""},
		{onSubmit, kDefer, false, false, ""},
		{onSubmit, kDefer, true, true, "last"},
	} {
		last := newFake("last", 2, say(verdict(test.k)), everything(test.kind))
		if test.dies {
			last.fails = func(*shown) *agent.Failure { return &agent.Failure{Kind: agent.Died} }
		}
		g := newRig(t, mark, last)
		m := mail("r0@here.example", "r1@here.example")
		o := g.raise(t, test.kind, m)
		all := 0
		for _, m := range o.Mails {
			all += len(m.Recipients)
		}
		if o.Mails[0] != m || all != 2 || (o.Decision != Continue) != test.whole || test.whole && len(m.Recipients) != 2 ||
			!test.whole && (len(o.Mails) != 2 || len(o.Recipients) != 2) || o.WaitFor != test.waitFor {
			t.Errorf("%s %s: outcome %+v", EventName(test.kind), test.k, o)
		}
	}
}

func TestAllRecipientsRemoved(t *testing.T) {
	remove := func(i uint32) *agentpb.Edit {
		return &agentpb.Edit{Edit: &agentpb.Edit_RemoveRecipient{RemoveRecipient: &agentpb.RemoveRecipient{Index: i}}}
	}
	g := newRig(t, newFake("a", 1, &agentpb.Answer{Verdicts: carryOn().Verdicts, Edits: []*agentpb.Edit{remove(0), remove(1)}}, everything(onData)))
	if o := g.raise(t, onData, mail("r0@here.example", "r1@here.example")); o.Decision != Discard || o.Agent != "a" {
		t.Errorf("outcome %+v", o)
	}
}

// Who was refused at the end of headers is not shown at the end of data, and counts for the reply.
func TestDecidedAtHeadersStaysDecided(t *testing.T) {
	early := newFake("early", 1, say(verdict(kReject, 1)), everything(onHeaders))
	late := newFake("late", 2, say(verdict(kReject)), everything(onData))
	g := newRig(t, early, late)
	m := mail("r0@here.example", "r1@here.example")
	c := g.Open(session(), nil)
	if o := c.Raise(context.Background(), &Event{Kind: onHeaders, ID: "1", Mail: m}); o.Decision != Continue || len(o.Recipients) != 1 {
		t.Fatalf("outcome %+v", o)
	}
	o := c.Raise(context.Background(), &Event{Kind: onData, ID: "2", Mail: m})
	if list := late.last(t).Envelope.Recipients; len(list) != 1 || list[0].Index != 0 {
		t.Errorf("shown %v", list)
	}
	if o.Decision != Reject || o.Agent != "early" {
		t.Errorf("outcome %+v", o.Verdict)
	}
}

func TestReservedLabels(t *testing.T) {
	for _, label := range []string{"auth", "av", "bypass", "done"} {
		f := newFake(label, 1, carryOn(), everything(onData))
		if _, err := NewPlan([]Member{{Caller: f, Spec: f.spec}}); err == nil {
			t.Errorf("label %q is taken", label)
		}
	}
}
