package session_test

import (
	"testing"

	"github.com/posternmail/postern/host/internal/tracking"
)

func TestMessage(t *testing.T) {
	h := start(t, usual())
	c := h.hello()
	c.envelope("b@ours.test")
	c.message(simple)
	c.expect(queuedSimple)
	c.dialog("C: QUIT", "S: 221 2.0.0 Service closing transmission channel")
	c.closed()
	items := h.spool.all()
	if len(items) != 1 {
		t.Fatalf("%d items", len(items))
	}
	if got := content(t, items[0]); got != simple {
		t.Errorf("content %q", got)
	}
	r := h.ledger.wait(t, tracking.Session, 1)[0]
	if r.Counts.End != "quit" || r.Counts.Messages != 1 {
		t.Errorf("session record %+v", r.Counts)
	}
}
