package session_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/agentpb"
)

// TestCommandsBetweenChunks: with BDAT commands come in while the agents still look at the header. They are asked of
// one thing after another, and the session does not change under them.
func TestCommandsBetweenChunks(t *testing.T) {
	var asked atomic.Int32
	release := make(chan struct{})
	a := &scripted{name: "filter", kinds: []agentpb.EventKind{onEndOfHeaders, onNoop, onEhlo}}
	a.answer = func(ev *agentpb.Event) *agentpb.Answer {
		if asked.Add(1) > 1 {
			t.Errorf("%v is asked while another event is not answered", ev.Kind)
		}
		defer asked.Add(-1)
		if ev.Kind == onEndOfHeaders {
			<-release
		}
		return nil
	}
	s := usual()
	s.plan = plan(t, a)
	h := start(t, s)
	c := h.hello()
	for i := range 15 {
		c.envelope("b@ours.test")
		c.send(fmt.Sprintf("BDAT %d\r\n%s", len(simple), simple))
		c.expect(fmt.Sprintf("250 2.6.0 %d octets received", len(simple)))
		command := [...]string{"NOOP\r\n", "EHLO again.test\r\n", "BDAT 3\r\nabc"}[i%3]
		c.send(command)
		release <- struct{}{}
		if got := c.reply(); !strings.HasPrefix(got[0], "250") {
			t.Fatalf("%q: %q", command, got)
		}
		c.dialog("C: RSET", "S: 250 2.0.0 Resetting")
	}
}

// A client can have agents asked without end in one transaction: what is kept of their answers has a bound.
func TestAnswersHaveABound(t *testing.T) {
	a := &scripted{name: "greylist", kinds: []agentpb.EventKind{onRcpt}}
	a.answer = func(ev *agentpb.Event) *agentpb.Answer {
		if string(ev.GetArguments().GetRcpt().GetRecipient().GetAddress()) == "b@ours.test" {
			return nil
		}
		return verdict(agentpb.VerdictKind_VERDICT_KIND_DEFER, nil)
	}
	s := usual()
	s.plan = plan(t, a)
	h := start(t, s)
	c := h.hello()
	c.envelope("b@ours.test")
	const group, groups = 100, 60
	for range groups {
		c.send(strings.Repeat("RCPT TO:<c@ours.test>\r\n", group))
		for range group {
			c.expect("451 4.7.1 Please try again later [id]")
		}
		h.ledger.forget()
	}
	c.message(simple)
	c.expect(queuedSimple)
	got := h.ledger.wait(t, tracking.Receive, 1)[0].Verdicts
	if n := len(got); n < 5000 || n > 5001 {
		t.Errorf("the ledger has %d answers", n)
	}
	if last := got[len(got)-1]; last.Verdict != "more" {
		t.Errorf("the last is %+v", last)
	}
}
