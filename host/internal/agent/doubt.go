package agent

import (
	"context"
	"fmt"
	"time"
)

// How soon the silence of a process is noticed, in parts of Options.HangAfter.
const (
	looksPerHang  = 40 // looks at a process
	probesPerHang = 10 // pings of one that has nothing to do; one with events is pinged at each look
	missedProbes  = 2  // pings in a row that it may leave unanswered before its events are tried elsewhere
)

// urgentShare is the part of an event's time that it waits for a sign of life of its process. The rest must be enough for
// another process to start and to answer.
const urgentShare = 5

// minLooks is how many looks in a row must find a process silent before it is in doubt: a host that stood still itself
// has not looked.
const minLooks = 3

// look asks a process for a sign of life when it is time to. It reports for how long there has been none, and whether
// that is more than its events can wait for.
func (a *Agent) look(s *stream) (silence time.Duration, doubtful bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	patience, working := s.patience(a.o.HangAfter)
	if s.asked.IsZero() {
		s.looks = 0
	} else {
		s.looks++
		silence = now.Sub(s.asked)
	}
	if working && s.asked.IsZero() || now.Sub(s.pinged) >= a.o.HangAfter/probesPerHang {
		s.ask(now)
		s.forgetAbandoned(now.Add(-abandonedLife))
	}
	return silence, silence >= patience && s.looks >= minLooks
}

// patience is how long the process may be silent before its events are tried elsewhere. working reports whether it has
// events. Under Agent.mu.
func (s *stream) patience(hangAfter time.Duration) (patience time.Duration, working bool) {
	patience = missedProbes * hangAfter / probesPerHang
	for _, f := range s.flights {
		if !f.call.Fact {
			patience = min(patience, f.call.Timeout/urgentShare)
		}
		working = working || f.sent
	}
	return max(patience, hangAfter/looksPerHang*minLooks), working
}

// doubt has the events of a process that gives no sign of life tried on another instance, if there is one that
// answers. What the silent one says to them later is dropped. It gets no more events until it gives a sign of life,
// and counts as hung only after HangAfter. doubt reports whether events wait that no other instance can take.
func (a *Agent) doubt(s *stream) (stranded bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.doubted = true; a.trusted() == nil {
		return s.awaited()
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
			f.close(s, &Failure{Agent: a.Name(), Kind: Hung, Detail: silenceOf(time.Since(s.asked))})
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
	return false
}

// silenceOf says what a process has not done for a time.
func silenceOf(d time.Duration) string {
	return fmt.Sprintf("neither a ping nor an event was answered for %s", rounded(d))
}

// awaited reports whether somebody waits for an answer. Under Agent.mu.
func (s *stream) awaited() bool {
	for _, f := range s.flights {
		if !f.call.Fact {
			return true
		}
	}
	return false
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

// inDoubt reports whether a stream has given no sign of life since it was doubted.
func (a *Agent) inDoubt(s *stream) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return s.doubted
}

// mayRelieve reports whether a process may be started beside one that is in doubt: not where only one can run, soon after
// a false alarm, or where the attempts are used up.
func (s *slot) mayRelieve(p *process) bool {
	return p.runner != nil && len(p.manifest.GetExclusiveResources()) == 0 &&
		s.history.failures < s.history.Attempts && time.Since(s.falseAlarm) >= s.a.o.HangAfter
}

// relieve starts a process beside p, which is in doubt while events wait that nobody else can take. When that one is up
// and p has given no sign of life meanwhile, p is ended and its events are tried there. It answers with the process
// that fills the slot.
func (s *slot) relieve(p *process) *process {
	p.o.Logger.Warn("agent does not answer: another process is started beside it", "agent", s.a.Name(), "process", p.label,
		"silence", rounded(s.a.silence(p.stream)))
	ctx, cancel := context.WithCancel(s.a.life)
	defer cancel()
	fresh := s.launch(ctx)
	ticker := time.NewTicker(s.a.o.HangAfter / looksPerHang)
	defer ticker.Stop()
	for s.a.inDoubt(p.stream) {
		select {
		case <-p.exited():
			s.lost(p, Died)
			return s.arrive(<-fresh)
		case l := <-fresh:
			return s.succeed(p, l)
		case <-ticker.C:
		}
	}
	cancel()
	return s.succeed(p, <-fresh)
}

// arrive installs the process that was started for an empty slot.
func (s *slot) arrive(l launched) *process {
	if l.err != nil {
		s.failed(l.err)
		return nil
	}
	if !s.bringUp(l.process) {
		return nil
	}
	return l.process
}

// succeed has a process that was started beside p take its place, if it is up and p is still in doubt.
func (s *slot) succeed(p *process, l launched) *process {
	silent := s.a.inDoubt(p.stream)
	switch {
	case l.err == nil && silent:
		if s.bringUp(l.process) {
			s.bequeath(p)
			return l.process
		}
	case l.err == nil:
		l.process.destroy()
	case silent && s.a.life.Err() == nil:
		p.o.Logger.Error("no process can be started beside one that does not answer", "agent", s.a.Name(), "error", l.err)
	}
	s.falseAlarm = time.Now()
	return p
}

// bequeath ends a process whose place another one has taken, and has its events tried there.
func (s *slot) bequeath(p *process) {
	detail := silenceOf(s.a.silence(p.stream))
	p.o.Logger.Error("agent is lost", "agent", s.a.Name(), "process", p.label, "how", Hung, "detail", detail)
	s.history.next(time.Since(p.started), false)
	p.destroy()
	s.a.mu.Lock()
	s.lastExit, s.lastTail = detail, p.logs.tail(keptLines)
	s.a.mu.Unlock()
	<-p.stream.broken
	s.a.bury(p.stream, Hung, detail)
}
