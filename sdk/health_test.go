package sdk

import (
	"context"
	"errors"
	"testing"

	"github.com/posternmail/postern/sdk/agentpb"
)

// dependent is an agent whose handler uses something that fails when the recipient says so.
type dependent struct{ health *Health }

func newDependent(_ struct{}, r *Registrar) (*dependent, error) { return &dependent{r.Health()}, nil }

func (d *dependent) OnRcpt(_ context.Context, e *RcptEvent) Verdict {
	var err error
	if e.Recipient.Local == "down" {
		err = errors.New("no answer")
	}
	d.health.Report("engine", err)
	return Continue()
}

// The host is told once when something is missing, once when it is back, and again when it opens a new stream.
func TestHealthIsToldWhenItChanges(t *testing.T) {
	s, p := served(t, `{}`, newDependent)
	var told [][]string
	send := func(id uint64, local string) {
		t.Helper()
		p.push(t, &agentpb.EventsRequest{Events: []*agentpb.Event{rcpt(id, local+"@example.org")}})
		for answered := false; !answered; {
			m := p.pull(t)
			answered = len(m.GetAnswers()) > 0
			if m.GetHealth() != nil {
				told = append(told, degradedNames(m.GetHealth().GetDegraded()))
			}
		}
	}
	for i, local := range []string{"up", "down", "down", "down", "up", "up", "down"} {
		send(uint64(i+1), local)
	}
	want := [][]string{{"engine"}, {}, {"engine"}}
	if len(told) != len(want) {
		t.Fatalf("the host was told %v, not %v", told, want)
	}
	for i := range want {
		if len(told[i]) != len(want[i]) {
			t.Errorf("message %d: %v, not %v", i, told[i], want[i])
		}
	}

	again := newPipe()
	done := make(chan error)
	go func() { done <- s.serveEvents(again) }()
	if h := again.pull(t).GetHealth(); len(h.GetDegraded()) != 1 || h.GetDegraded()[0].GetDetail() != "no answer" || h.GetDegraded()[0].GetSinceUnixNanos() == 0 {
		t.Errorf("a new stream begins with %v", h)
	}
	close(again.in)
	<-done

	configure(t, s, `{}`)
	if h := p.pull(t).GetHealth(); h == nil || len(h.GetDegraded()) != 0 {
		t.Errorf("after a new configuration the host is told %v, not that all is well", h)
	}
}

func degradedNames(list []*agentpb.Degradation) (names []string) {
	for _, d := range list {
		names = append(names, d.GetWhat())
	}
	return names
}
