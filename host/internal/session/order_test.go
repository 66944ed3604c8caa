package session_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

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
