package sdk

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

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

// What fails every now and then is one line in the log, not two for each time, and counts as missing until it has settled.
func TestHealthOfWhatIsUnsteady(t *testing.T) {
	var log strings.Builder
	h := newHealth(hclog.New(&hclog.LoggerOptions{Output: &log}))
	now := time.Unix(1_000_000, 0)
	h.now = func() time.Time { return now }
	told := 0
	h.follow(func() { told++ })
	down := errors.New("no answer")
	for range 1000 {
		h.Report("engine", down)
		now = now.Add(10 * time.Millisecond)
		h.Report("engine", nil)
		now = now.Add(20 * time.Millisecond)
	}
	if m := h.message(); told != 3 || len(m.GetDegraded()) != 1 {
		t.Fatalf("the host was told %d times, last %v", told, m)
	}
	now = now.Add(settled)
	h.Report("engine", nil)
	if m := h.message(); told != 4 || len(m.GetDegraded()) != 0 {
		t.Errorf("after a minute without a failure the host was told %d times, last %v", told, m)
	}
	if lines := strings.Count(log.String(), "\n"); lines != 4 || !strings.Contains(log.String(), "after=1m30s") {
		t.Errorf("%d lines in the log:\n%s", lines, log.String())
	}
	now = now.Add(settled)
	h.Report("engine", down)
	now = now.Add(time.Second)
	h.Report("engine", nil)
	if m := h.message(); told != 6 || len(m.GetDegraded()) != 0 {
		t.Errorf("what fails once in a while is back at once: told %d times, last %v", told, m)
	}
}

func degradedNames(list []*agentpb.Degradation) (names []string) {
	for _, d := range list {
		names = append(names, d.GetWhat())
	}
	return names
}
