package agent

import (
	"fmt"
	"time"
)

// missedProbes is how many pings in a row a process may leave unanswered before its events are tried elsewhere.
const missedProbes = 2

// doubt has the events of a process that leaves pings unanswered tried on another instance, if there is one that
// answers. What the silent one says to them later is dropped. It gets no more events until it gives a sign of life,
// and counts as hung only after HangAfter.
func (a *Agent) doubt(s *stream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.doubted = true; a.trusted() == nil {
		return
	}
	if a.reserved == s {
		a.reserved = nil
	}
	var again []*flight
	for _, f := range byAge(s.flights) {
		if f.call.Fact {
			continue
		}
		a.land(s, f)
		if f.sent {
			s.abandoned[f.id] = time.Now()
			s.cancels = append(s.cancels, f.id)
			f.close(s, &Failure{Agent: a.Name(), Kind: Hung, Detail: fmt.Sprintf("%d pings were not answered", missedProbes)})
		}
		f.on = nil
		again = append(again, f)
	}
	s.waiting = nil
	for _, f := range s.flights { // facts that were not sent yet
		if !f.sent {
			s.waiting = append(s.waiting, f)
		}
	}
	a.queue = append(again, a.queue...)
	a.schedule()
	s.noteDrained()
}

// trusted answers with a stream that takes events and is not in doubt; nil if there is none. Under mu.
func (a *Agent) trusted() *stream {
	for _, slot := range a.slots {
		if s := slot.stream(); s != nil && s.up && !s.doubted && s != a.reserved {
			return s
		}
	}
	return nil
}
