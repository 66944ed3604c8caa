package session_test

import (
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/agentpb"
)

const (
	reject     = agentpb.VerdictKind_VERDICT_KIND_REJECT
	deferral   = agentpb.VerdictKind_VERDICT_KIND_DEFER
	disconnect = agentpb.VerdictKind_VERDICT_KIND_DISCONNECT
	discard    = agentpb.VerdictKind_VERDICT_KIND_DISCARD
	quarantine = agentpb.VerdictKind_VERDICT_KIND_QUARANTINE

	onConnect      = agentpb.EventKind_EVENT_KIND_CONNECT
	onHelo         = agentpb.EventKind_EVENT_KIND_HELO
	onEhlo         = agentpb.EventKind_EVENT_KIND_EHLO
	onStartTLS     = agentpb.EventKind_EVENT_KIND_START_TLS
	onAuth         = agentpb.EventKind_EVENT_KIND_AUTH
	onEndOfAuth    = agentpb.EventKind_EVENT_KIND_END_OF_AUTHENTICATION
	onMail         = agentpb.EventKind_EVENT_KIND_MAIL
	onRcpt         = agentpb.EventKind_EVENT_KIND_RCPT
	onData         = agentpb.EventKind_EVENT_KIND_DATA
	onEndOfHeaders = agentpb.EventKind_EVENT_KIND_END_OF_HEADERS
	onEndOfData    = agentpb.EventKind_EVENT_KIND_END_OF_DATA
	onNoop         = agentpb.EventKind_EVENT_KIND_NOOP
	onHelp         = agentpb.EventKind_EVENT_KIND_HELP
	onRset         = agentpb.EventKind_EVENT_KIND_RSET
	onReject       = agentpb.EventKind_EVENT_KIND_REJECT
	onDisconnect   = agentpb.EventKind_EVENT_KIND_DISCONNECT
)

// once answers the first event of a kind with a verdict, and continues otherwise.
func once(kind agentpb.EventKind, v agentpb.VerdictKind, reply *agentpb.Reply) func(*agentpb.Event) *agentpb.Answer {
	done := false
	return func(ev *agentpb.Event) *agentpb.Answer {
		if ev.Kind != kind || done {
			return nil
		}
		done = true
		return verdict(v, reply)
	}
}

// gtube is a reply that no host makes by itself.
var ownReply = &agentpb.Reply{Code: 557, Enhanced: "5.7.27", Text: "Not with me"}

// Refused at each event with a code and text of the agent's own: the exact octets, the next command works, OnReject and
// the ledger name the agent.
func TestRefusalAtEachEvent(t *testing.T) {
	const refused = "557 5.7.27 Not with me [id]"
	tests := []struct {
		kind    agentpb.EventKind
		command string
		talk    func(h *host, c *client)
	}{
		{onHelo, "HELO", func(h *host, c *client) {
			c.dialog("C: HELO x.test", "S: "+refused, "C: HELO x.test", "S: 250 edge.test Hello [127.0.0.1]")
		}},
		{onEhlo, "EHLO", func(h *host, c *client) {
			c.dialog("C: EHLO x.test", "S: "+refused, "C: EHLO x.test")
			if got := c.reply(); got[0] != "250-edge.test Hello [127.0.0.1]" {
				t.Errorf("EHLO: %q", got)
			}
		}},
		{onStartTLS, "STARTTLS", func(h *host, c *client) {
			c.dialog("C: STARTTLS", "S: "+refused)
			c.startTLS()
		}},
		{onAuth, "AUTH", func(h *host, c *client) {
			c.startTLS()
			c.dialog("C: EHLO x.test")
			c.reply()
			c.dialog("C: AUTH PLAIN AGpvZQBzZWNyZXQ=", "S: "+refused,
				"C: AUTH PLAIN AGpvZQBzZWNyZXQ=", "S: 235 2.7.0 Authentication successful")
		}},
		{onEndOfAuth, "AUTH", func(h *host, c *client) {
			c.startTLS()
			c.dialog("C: EHLO x.test")
			c.reply()
			c.dialog("C: AUTH PLAIN AGpvZQBzZWNyZXQ=", "S: "+refused,
				"C: AUTH LOGIN", "S: 334 VXNlcm5hbWU6", "C: am9l", "S: 334 UGFzc3dvcmQ6", "C: c2VjcmV0",
				"S: 235 2.7.0 Authentication successful")
		}},
		{onMail, "MAIL", func(h *host, c *client) {
			c.dialog("C: EHLO x.test")
			c.reply()
			c.dialog("C: MAIL FROM:<a@x.test>", "S: "+refused, "C: MAIL FROM:<a@x.test>", "S: 250 2.1.0 Sender OK")
		}},
		{onRcpt, "RCPT", func(h *host, c *client) {
			c.dialog("C: EHLO x.test")
			c.reply()
			c.dialog("C: MAIL FROM:<a@x.test>", "S: 250 2.1.0 Sender OK", "C: RCPT TO:<b@ours.test>", "S: "+refused,
				"C: RCPT TO:<b@ours.test>", "S: 250 2.1.5 Recipient OK")
		}},
		{onData, "DATA", func(h *host, c *client) {
			c.dialog("C: EHLO x.test")
			c.reply()
			c.envelope("b@ours.test")
			c.dialog("C: DATA", "S: "+refused)
			c.message(simple)
			c.expect(queuedSimple)
		}},
		{onEndOfHeaders, "MESSAGE", func(h *host, c *client) {
			c.dialog("C: EHLO x.test")
			c.reply()
			c.envelope("b@ours.test")
			c.message(simple)
			c.expect(refused)
			c.envelope("b@ours.test")
			c.message(simple)
			c.expect(queuedSimple)
		}},
		{onEndOfData, "MESSAGE", func(h *host, c *client) {
			c.dialog("C: EHLO x.test")
			c.reply()
			c.envelope("b@ours.test")
			c.message(simple)
			c.expect(refused)
			c.envelope("b@ours.test")
			c.message(simple)
			c.expect(queuedSimple)
		}},
		{onNoop, "NOOP", func(h *host, c *client) {
			c.dialog("C: NOOP", "S: "+refused, "C: NOOP", "S: 250 2.0.0 OK")
		}},
		{onHelp, "HELP", func(h *host, c *client) {
			c.dialog("C: EHLO x.test")
			c.reply()
			c.dialog("C: HELP me", "S: "+refused, "C: HELP", "S: 214 2.0.0 This server speaks SMTP as in RFC 5321")
		}},
	}
	for _, test := range tests {
		t.Run(test.kind.String(), func(t *testing.T) {
			a := &scripted{name: "mock", kinds: []agentpb.EventKind{test.kind, onReject}, answer: once(test.kind, reject, ownReply)}
			s := usual()
			s.plan = plan(t, a)
			s.receive.Permissions = append(s.receive.Permissions, "users")
			s.auth = func(user, password string) (bool, error) { return user == "joe" && password == "secret", nil }
			h := start(t, s)
			c := h.dial()
			c.expect("220 edge.test ESMTP Postern")
			test.talk(h, c)
			r := h.ledger.wait(t, tracking.Reject, 1)[0]
			if r.Agent != "mock" || r.Version != "1.2.3" || r.Command != test.command || !strings.HasPrefix(r.Reply, "557 5.7.27 Not with me [") {
				t.Errorf("ledger: %+v", r)
			}
			if len(r.Verdicts) == 0 || r.Verdicts[0].Verdict != "reject" {
				t.Errorf("ledger: verdicts %+v", r.Verdicts)
			}
			if test.command == "RCPT" && (len(r.Recipients) != 1 || r.Recipients[0].Status != "rejected") {
				t.Errorf("ledger: recipients %+v", r.Recipients)
			}
			told := eventually(t, a, onReject, 1)[0].Arguments.GetReject()
			if told.Agent != "mock" || told.AgentVersion != "1.2.3" || told.Event != test.kind || told.Command != test.command || told.Reply.Code != 557 {
				t.Errorf("OnReject: %v", told)
			}
			if test.command == "AUTH" && len(told.Line) > 0 {
				t.Errorf("OnReject holds a secret: %q", told.Line)
			}
		})
	}
}

// eventually waits for n events of a kind.
func eventually(t testing.TB, a *scripted, kind agentpb.EventKind, n int) []*agentpb.Event {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if list := a.events(kind); len(list) >= n {
			return list
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v: %d events, want %d", kind, len(a.events(kind)), n)
		}
	}
}

// RFC 5321 section 3.1: after 554 only QUIT is left.
func TestConnectRejected(t *testing.T) {
	a := &scripted{name: "mock", kinds: []agentpb.EventKind{onConnect, onReject}, answer: once(onConnect, reject, nil)}
	s := usual()
	s.plan = plan(t, a)
	h := start(t, s)
	c := h.dial()
	if l := c.line(); !strings.HasPrefix(l, "554 5.") {
		t.Fatalf("banner %q", l)
	}
	c.dialog("C: EHLO x.test", "S: 503 5.5.1 Only QUIT is accepted [id]", "C: QUIT", "S: 221 2.0.0 Service closing transmission channel")
	c.closed()
	if told := eventually(t, a, onReject, 1)[0].Arguments.GetReject(); told.Command != "CONNECT" || told.Agent != "mock" {
		t.Errorf("OnReject: %v", told)
	}
	h.dial().expect("220 edge.test ESMTP Postern")
}

func TestConnectDeferredAndCut(t *testing.T) {
	for _, test := range []struct {
		kind agentpb.VerdictKind
		code string
	}{{deferral, "421 4."}, {disconnect, "4"}} {
		a := &scripted{name: "mock", kinds: []agentpb.EventKind{onConnect}, answer: once(onConnect, test.kind, nil)}
		s := usual()
		s.plan = plan(t, a)
		c := start(t, s).dial()
		if l := c.line(); !strings.HasPrefix(l, test.code) {
			t.Errorf("%v: %q", test.kind, l)
		}
		c.closed()
	}
}

// Disconnect at any event: the reply, then the end.
func TestDisconnectAtCommand(t *testing.T) {
	for _, kind := range []agentpb.EventKind{onEhlo, onNoop, onRset, onMail} {
		a := &scripted{name: "mock", kinds: []agentpb.EventKind{kind}, answer: once(kind, disconnect, &agentpb.Reply{Code: 421, Enhanced: "4.7.0", Text: "Go away"})}
		s := usual()
		s.plan = plan(t, a)
		c := start(t, s).dial()
		c.expect("220 edge.test ESMTP Postern")
		switch kind {
		case onEhlo:
			c.send("EHLO x\r\n")
		case onNoop:
			c.send("NOOP\r\n")
		case onRset:
			c.send("RSET\r\n")
		case onMail:
			c.send("HELO x\r\nMAIL FROM:<>\r\n")
			c.reply()
		}
		c.expect("421 4.7.0 Go away [id]")
		c.closed()
	}
}

// OnReject may ask for disconnect, which happens at the next command.
func TestRejectFactDisconnects(t *testing.T) {
	a := &scripted{name: "mock", kinds: []agentpb.EventKind{onReject}, answer: func(*agentpb.Event) *agentpb.Answer {
		return verdict(disconnect, &agentpb.Reply{Code: 421, Enhanced: "4.7.0", Text: "Enough"})
	}}
	s := usual()
	s.plan = plan(t, a)
	s.receive.Limits.MaxProtocolErrors = 1000
	c := start(t, s).dial()
	c.expect("220 edge.test ESMTP Postern")
	for range 100 {
		c.send("XYZZY\r\n")
		l := c.line()
		if strings.HasPrefix(l, "421 4.7.0 Enough") {
			c.closed()
			return
		}
		if mask(l) != "500 5.3.3 Unrecognized command [id]" {
			t.Fatalf("%q", l)
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("never disconnected")
}

// All events of one session in their order, with the facts of each.
func TestEventsInOrder(t *testing.T) {
	all := []agentpb.EventKind{onConnect, onEhlo, onNoop, onMail, onRcpt, onReject, onData, onEndOfHeaders, onEndOfData, onRset, onDisconnect}
	a := &scripted{name: "mock", kinds: all, answer: func(*agentpb.Event) *agentpb.Answer { return nil }}
	s := usual()
	s.plan = plan(t, a)
	h := start(t, s)
	c := h.hello()
	c.dialog("C: NOOP hi", "S: 250 2.0.0 OK")
	c.envelope("b@ours.test", "c@ours.test")
	c.dialog("C: RCPT TO:<d@elsewhere.test>", "S: 550 5.7.1 Unable to relay [id]")
	c.message(simple)
	c.expect(queuedSimple)
	c.dialog("C: RSET", "S: 250 2.0.0 Resetting", "C: QUIT", "S: 221 2.0.0 Service closing transmission channel")
	eventually(t, a, onDisconnect, 1)
	want := []agentpb.EventKind{onConnect, onEhlo, onNoop, onMail, onRcpt, onRcpt, onReject, onData, onEndOfHeaders, onEndOfData, onRset, onDisconnect}
	a.mu.Lock()
	defer a.mu.Unlock()
	var got []agentpb.EventKind
	for _, ev := range a.seen {
		got = append(got, ev.Kind)
	}
	if len(got) != len(want) {
		t.Fatalf("events %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("events %v, want %v", got, want)
		}
	}
	if n := string(a.seen[2].Arguments.GetText().GetText()); n != "hi" {
		t.Errorf("NOOP text %q", n)
	}
	if r := a.seen[5].Arguments.GetRcpt().GetRecipient(); string(r.GetAddress()) != "c@ours.test" || r.GetIndex() != 1 {
		t.Errorf("OnRcpt: %v", r)
	}
	if d := a.seen[11].Arguments.GetDisconnect(); d.GetReason() != "quit" || d.GetMessages() != 1 {
		t.Errorf("OnDisconnect: %v", d)
	}
}

// DATA out of sequence raises nothing.
func TestDataOutOfSequence(t *testing.T) {
	a := &scripted{name: "mock", kinds: []agentpb.EventKind{onData}, answer: func(*agentpb.Event) *agentpb.Answer { return nil }}
	s := usual()
	s.plan = plan(t, a)
	c := start(t, s).hello()
	c.dialog("C: DATA", "S: 503 5.5.2 Need rcpt command [id]", "C: MAIL FROM:<>", "S: 250 2.1.0 Sender OK",
		"C: DATA", "S: 503 5.5.2 Need rcpt command [id]")
	c.send("BDAT 3\r\nab\n")
	c.dialog("S: 503 5.5.2 Need rcpt command [id]", "C: NOOP", "S: 250 2.0.0 OK")
	if n := len(a.events(onData)); n != 0 {
		t.Errorf("OnData was raised %d times", n)
	}
}

// Mixed recipients at the end of data.
func TestMixedRecipients(t *testing.T) {
	perRecipient := func(kind agentpb.EventKind, verdicts ...*agentpb.Verdict) func(*agentpb.Event) *agentpb.Answer {
		return func(ev *agentpb.Event) *agentpb.Answer {
			if ev.Kind != kind {
				return nil
			}
			return &agentpb.Answer{Verdicts: append([]*agentpb.Verdict{}, verdicts...)}
		}
	}
	no := func(v agentpb.VerdictKind, code uint32, enhanced string, recipients ...uint32) *agentpb.Verdict {
		x := &agentpb.Verdict{Kind: v, Recipients: recipients, Reason: "test"}
		if code != 0 {
			x.Reply = &agentpb.Reply{Code: code, Enhanced: enhanced, Text: "mixed"}
		}
		return x
	}
	for _, kind := range []agentpb.EventKind{onEndOfHeaders, onEndOfData} {
		tests := []struct {
			name     string
			verdicts []*agentpb.Verdict
			partial  string
			reply    string
			items    map[string]queue.State // recipients by state
		}{
			{"one deferred", []*agentpb.Verdict{no(deferral, 451, "4.7.1", 1), no(reject, 550, "5.7.1", 0)}, "quarantine", "451 4.7.1 mixed [id]", nil},
			{"all refused", []*agentpb.Verdict{no(reject, 551, "5.7.1", 0), no(reject, 552, "5.7.1", 1)}, "quarantine", "551 5.7.1 mixed [id]", nil},
			{"one refused", []*agentpb.Verdict{no(reject, 550, "5.7.1", 1)}, "quarantine", queuedSimple,
				map[string]queue.State{"b@ours.test": queue.Ready, "c@ours.test": queue.Quarantined}},
			{"one refused, discarded", []*agentpb.Verdict{no(reject, 550, "5.7.1", 1)}, "discard", queuedSimple,
				map[string]queue.State{"b@ours.test": queue.Ready}},
			{"one discarded", []*agentpb.Verdict{no(discard, 0, "", 0)}, "quarantine", queuedSimple,
				map[string]queue.State{"c@ours.test": queue.Ready}},
			{"one quarantined", []*agentpb.Verdict{no(quarantine, 0, "", 0)}, "quarantine", queuedSimple,
				map[string]queue.State{"b@ours.test": queue.Quarantined, "c@ours.test": queue.Ready}},
			{"all quarantined", []*agentpb.Verdict{no(quarantine, 0, "")}, "quarantine", queuedSimple,
				map[string]queue.State{"b@ours.test c@ours.test": queue.Quarantined}},
			{"all discarded", []*agentpb.Verdict{no(discard, 0, "")}, "quarantine", queuedSimple, map[string]queue.State{}},
		}
		for _, test := range tests {
			t.Run(kind.String()+"/"+test.name, func(t *testing.T) {
				s := usual()
				s.config.Host.OnPartialReject = test.partial
				s.plan = plan(t, &scripted{name: "mock", kinds: []agentpb.EventKind{kind}, answer: perRecipient(kind, test.verdicts...)})
				h := start(t, s)
				c := h.hello()
				c.envelope("b@ours.test", "c@ours.test")
				c.message(simple)
				c.expect(test.reply)
				got := map[string]queue.State{}
				ids := map[string]bool{}
				for _, item := range h.spool.all() {
					var names []string
					for _, r := range item.Mail.Recipients {
						names = append(names, r.Address.String())
					}
					got[strings.Join(names, " ")] = item.State
					ids[item.ID] = true
				}
				if len(got) != len(test.items) || len(ids) != len(test.items) {
					t.Fatalf("items %v, want %v", got, test.items)
				}
				for k, v := range test.items {
					if got[k] != v {
						t.Errorf("items %v, want %v", got, test.items)
					}
				}
				if h.spool.commits > 1 {
					t.Errorf("%d commits", h.spool.commits)
				}
				if test.items != nil {
					h.ledger.wait(t, tracking.Receive, 1)
				} else {
					h.ledger.wait(t, tracking.Reject, 1)
				}
			})
		}
	}
}

// Discard at MAIL and RCPT: 250 throughout, and nothing is kept for those concerned.
func TestDiscardInEnvelope(t *testing.T) {
	a := &scripted{name: "mock", kinds: []agentpb.EventKind{onRcpt, onEndOfData}, answer: once(onRcpt, discard, nil)}
	s := usual()
	s.plan = plan(t, a)
	h := start(t, s)
	c := h.hello()
	c.envelope("b@ours.test", "c@ours.test")
	c.message(simple)
	c.expect(queuedSimple)
	items := h.spool.all()
	if len(items) != 1 || len(items[0].Mail.Recipients) != 1 || items[0].Mail.Recipients[0].Address.Local != "c" {
		t.Errorf("items %+v", items)
	}
	r := h.ledger.wait(t, tracking.Receive, 1)[0]
	if len(r.Recipients) != 2 || r.Recipients[1].Status != "discarded" {
		t.Errorf("ledger %+v", r.Recipients)
	}

	a = &scripted{name: "mock", kinds: []agentpb.EventKind{onMail, onRcpt, onEndOfData}, answer: once(onMail, discard, nil)}
	s = usual()
	s.plan = plan(t, a)
	h = start(t, s)
	c = h.hello()
	c.envelope("b@ours.test")
	c.message(simple)
	c.expect(queuedSimple)
	if n := len(h.spool.all()); n != 0 {
		t.Errorf("%d items of a discarded message", n)
	}
	if len(a.events(onRcpt))+len(a.events(onEndOfData)) != 0 {
		t.Error("agents were asked about a discarded message")
	}
}

// Rewrites of addresses and header edits reach the item.
func TestEdits(t *testing.T) {
	a := &scripted{name: "mock", kinds: []agentpb.EventKind{onMail, onRcpt, onEndOfData}, answer: func(ev *agentpb.Event) *agentpb.Answer {
		an := verdict(agentpb.VerdictKind_VERDICT_KIND_CONTINUE, nil)
		switch ev.Kind {
		case onMail:
			an.Edits = []*agentpb.Edit{{Edit: &agentpb.Edit_RewriteSender{RewriteSender: &agentpb.RewriteSender{Address: []byte("new@x.test")}}}}
		case onRcpt:
			an.Edits = []*agentpb.Edit{{Edit: &agentpb.Edit_RewriteRecipient{RewriteRecipient: &agentpb.RewriteRecipient{
				Index: ev.Arguments.GetRcpt().GetRecipient().GetIndex(), Address: []byte("other@ours.test")}}}}
		case onEndOfData:
			an.Edits = []*agentpb.Edit{{Edit: &agentpb.Edit_AddHeader{AddHeader: &agentpb.AddHeader{Name: []byte("X-Seen"), Value: []byte("yes")}}}}
		}
		return an
	}}
	s := usual()
	s.plan = plan(t, a)
	h := start(t, s)
	c := h.hello()
	c.envelope("b@ours.test")
	c.message(simple)
	c.expect(queuedSimple)
	item := h.spool.all()[0]
	if got := item.Mail.Sender.Address.String() + " " + item.Mail.Recipients[0].Address.String(); got != "new@x.test other@ours.test" {
		t.Errorf("envelope %s", got)
	}
	if !strings.Contains(string(item.Mail.Header), "X-Seen: yes\r\n") || strings.Contains(string(item.Mail.OriginalHeader), "X-Seen") {
		t.Errorf("header %q", item.Mail.Header)
	}
}

// A panic in the session costs it alone.
func TestPanicCostsOneSession(t *testing.T) {
	for _, kind := range []agentpb.EventKind{onConnect, onEhlo, onMail, onEndOfHeaders, onEndOfData} {
		t.Run(kind.String(), func(t *testing.T) {
			s := usual()
			s.quiet = true
			s.plan = plan(t, &scripted{name: "mock", kinds: []agentpb.EventKind{kind}, answer: func(*agentpb.Event) *agentpb.Answer { return nil }})
			h := start(t, s)
			other := h.hello()
			h.deps.Pipeline.SetPlan(plan(t, &scripted{name: "mock", kinds: []agentpb.EventKind{kind}, answer: func(*agentpb.Event) *agentpb.Answer {
				panic("on purpose")
			}}))
			c := h.dial()
			_, _ = c.Write([]byte("EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<b@ours.test>\r\nDATA\r\nA: b\r\n\r\n.\r\n"))
			rest := readAll(c)
			if kind != onConnect && !strings.Contains(rest, "421 4.3.0 Internal error, closing transmission channel") {
				t.Errorf("client read %q", rest)
			}
			h.deps.Pipeline.SetPlan(plan(t))
			other.dialog("C: NOOP", "S: 250 2.0.0 OK")
			other.envelope("b@ours.test")
			other.message(simple)
			other.expect(queuedSimple)
		})
	}
}

// A client that goes, or says nothing more, while OnEndOfHeaders is under way.
func TestEndOfHeadersAndSilence(t *testing.T) {
	for _, leave := range []bool{true, false} {
		slow := make(chan struct{})
		a := &scripted{name: "mock", kinds: []agentpb.EventKind{onEndOfHeaders, onReject, onDisconnect}, answer: func(ev *agentpb.Event) *agentpb.Answer {
			if ev.Kind == onEndOfHeaders {
				<-slow
			}
			return nil
		}}
		s := usual()
		s.receive.Limits.InactivityTimeout = 100 * time.Millisecond
		s.plan = plan(t, a)
		h := start(t, s)
		c := h.hello()
		c.envelope("b@ours.test")
		c.dialog("C: DATA", s354)
		c.send("a: b\r\n\r\nbody that never ends")
		eventually(t, a, onEndOfHeaders, 1)
		if leave {
			_ = c.Close()
		}
		time.AfterFunc(300*time.Millisecond, func() { close(slow) })
		if !leave {
			c.expect("421 4.4.1 Connection timed out [id]")
			c.closed()
		}
		end := h.ledger.wait(t, tracking.Session, 1)[0].Counts.End
		if want := map[bool]string{true: "client-gone", false: "timeout"}[leave]; end != want {
			t.Errorf("end %q, want %q", end, want)
		}
		eventually(t, a, onDisconnect, 1)
		if n := len(h.spool.all()); n != 0 {
			t.Errorf("%d items", n)
		}
	}
}

// A refusal at OnEndOfHeaders drops the rest and is answered at the dot.
func TestEndOfHeadersRefusesWhileBodyMoves(t *testing.T) {
	a := &scripted{name: "mock", kinds: []agentpb.EventKind{onEndOfHeaders, onEndOfData}, answer: once(onEndOfHeaders, reject, ownReply)}
	s := usual()
	s.plan = plan(t, a)
	h := start(t, s)
	c := h.hello()
	c.envelope("b@ours.test")
	c.dialog("C: DATA", s354)
	c.send("a: b\r\n\r\n")
	eventually(t, a, onEndOfHeaders, 1)
	for range 100 {
		c.send(strings.Repeat("x", 1000) + "\r\n")
	}
	c.send(".\r\n")
	c.expect("557 5.7.27 Not with me [id]")
	if n := len(a.events(onEndOfData)); n != 0 {
		t.Errorf("OnEndOfData was raised %d times", n)
	}
}

// What is stored with a message is stored in one commit: spawns, copies, the report to an authenticated client.
func TestItemsOfOneCommit(t *testing.T) {
	a := &scripted{name: "mock", kinds: []agentpb.EventKind{onEndOfData}, answer: func(*agentpb.Event) *agentpb.Answer {
		an := verdict(reject, &agentpb.Reply{Code: 550, Enhanced: "5.7.1", Text: "not for you"}, 1)
		an.Spawns = []*agentpb.Spawn{{
			Recipients: [][]byte{[]byte("journal@ours.test")}, Before: []byte("Subject: report\r\n\r\ntext\r\n"), IncludeOriginal: true, Durable: true,
		}}
		an.Copies = []*agentpb.KeepCopy{{Reason: "for later", Original: true}}
		return an
	}}
	s := usual()
	s.receive.Permissions = []string{"users"}
	s.auth = func(string, string) (bool, error) { return true, nil }
	s.plan = plan(t, a)
	h := start(t, s)
	c := h.secure()
	c.dialog("C: AUTH PLAIN AGpvZQBzZWNyZXQ=", "S: 235 2.7.0 Authentication successful")
	c.envelope("b@elsewhere.test", "c@elsewhere.test")
	c.message(simple)
	c.expect(queuedSimple)
	if h.spool.commits != 1 {
		t.Errorf("%d commits", h.spool.commits)
	}
	found, ids := map[string]*queue.Item{}, map[string]bool{}
	for _, item := range h.spool.all() {
		key := item.Origin
		if item.State == queue.Quarantined {
			key = "copy"
		}
		found[key], ids[item.ID] = item, true
		if item.Next.IsZero() || item.Received.IsZero() || item.Expires.Before(item.Received) {
			t.Errorf("%s: times %v %v %v", key, item.Received, item.Next, item.Expires)
		}
	}
	if len(found) != 4 || len(ids) != 4 {
		t.Fatalf("items %v", found)
	}
	mail, spawn, kept, report := found[queue.OriginSMTP], found[queue.OriginSpawn], found["copy"], found[queue.OriginDSN]
	if mail.ID != mail.Message || len(mail.Mail.Recipients) != 1 || mail.Mail.Recipients[0].Address.Local != "b" {
		t.Errorf("message %+v", mail)
	}
	if !spawn.Durable || spawn.Parent != mail.ID || spawn.Depth != 1 || spawn.Mail.Recipients[0].Address.Local != "journal" || !strings.Contains(content(t, spawn), "Subject: hello") {
		t.Errorf("spawn %+v", spawn)
	}
	if kept.Reason != "for later" || kept.Agent != "mock" || content(t, kept) != simple {
		t.Errorf("copy %+v", kept)
	}
	if r := h.ledger.wait(t, tracking.Receive, 1)[0]; !strings.HasPrefix(r.Reply, "250 2.6.0 ") || !strings.Contains(r.Reply, "["+mail.ID+"]") {
		t.Errorf("the ledger says that the client was told %q", r.Reply)
	}
	line := h.ledger.wait(t, tracking.Quarantine, 1)[0]
	if line.Item != kept.ID || line.Agent != "mock" || line.Reason != "for later" || !line.Beside() || line.Message != mail.ID {
		t.Errorf("ledger of the copy: %+v", line)
	}
	if report.Mail.Recipients[0].Address.String() != "a@x.test" || !strings.Contains(content(t, report), "c@elsewhere.test") || strings.Contains(content(t, report), "b@elsewhere.test") {
		t.Errorf("report %+v", report)
	}
}

func TestHold(t *testing.T) {
	a := &scripted{name: "scanner", kinds: []agentpb.EventKind{onEndOfData}, fail: func(*agentpb.Event) *agent.Failure {
		return &agent.Failure{Agent: "scanner", Kind: agent.Down}
	}}
	s := usual()
	s.plan = plan(t, a)
	h := start(t, s)
	c := h.hello()
	c.envelope("b@ours.test")
	c.message(simple)
	c.expect(queuedSimple)
	if item := h.spool.all()[0]; len(item.Missed) != 1 || item.Missed[0] != "scanner" || item.State != queue.Ready {
		t.Errorf("item %+v", item)
	}
}

// A message that kills an agent twice is accepted and parked with the evidence; the rest flows.
func TestPoison(t *testing.T) {
	a := &scripted{name: "scanner", kinds: []agentpb.EventKind{onEndOfData}, fail: func(ev *agentpb.Event) *agent.Failure {
		if string(ev.Envelope.GetSender().GetAddress()) != "poison@x.test" {
			return nil
		}
		return &agent.Failure{Agent: "scanner", Kind: agent.Poison, Evidence: "signal: segmentation fault"}
	}, answer: func(*agentpb.Event) *agentpb.Answer { return nil }}
	s := usual()
	s.plan = plan(t, a)
	h := start(t, s)
	c := h.hello()
	c.dialog("C: MAIL FROM:<poison@x.test>", sOK, "C: RCPT TO:<b@ours.test>", rOK)
	c.message(simple)
	c.expect(queuedSimple)
	c.envelope("b@ours.test")
	c.message(simple)
	c.expect(queuedSimple)
	items := h.spool.all()
	if len(items) != 2 || items[0].State != queue.Parked || items[0].Evidence != "signal: segmentation fault" || items[0].Agent != "scanner" || items[1].State != queue.Ready {
		t.Errorf("items %+v", items)
	}
	if r := h.ledger.wait(t, tracking.Poison, 1); len(r) != 1 || r[0].Agent != "scanner" {
		t.Errorf("ledger %+v", r)
	}
}

func readAll(c *client) string {
	var b strings.Builder
	for {
		l, err := c.r.ReadString('\n')
		b.WriteString(l)
		if err != nil {
			return b.String()
		}
	}
}
