package agent

import (
	"time"

	"github.com/hashicorp/go-hclog"
)

// complaint is what the log has been told of failures of one kind.
type complaint struct {
	kept   int // since, that the log does not have
	latest string
}

// complainEvery is how often the log is told of failures of one kind.
const complainEvery = time.Minute

// complain logs a failed event: the first of its kind at once, those that follow within a minute as their number.
// Under Agent.mu.
func (a *Agent) complain(c *Call, failure *Failure) {
	if a.closed {
		return
	}
	if told := a.complaints[failure.Kind]; told != nil {
		told.kept++
		told.latest = failure.Detail
		return
	}
	a.complaints[failure.Kind] = &complaint{}
	go a.o.Logger.Warn("agent failed at an event", "agent", a.Name(), "how", failure.Kind, "detail", failure.Detail,
		"event", c.Event, "session", c.Session, "message", c.Message)
	time.AfterFunc(complainEvery, func() { a.complainAgain(failure.Kind) })
}

// complainAgain logs how many failures of a kind there were since, and goes on as long as there are any.
func (a *Agent) complainAgain(kind FailureKind) {
	a.mu.Lock()
	told, logger := a.complaints[kind], a.o.Logger
	if told.kept == 0 || a.closed {
		delete(a.complaints, kind)
		logger = hclog.NewNullLogger()
	} else {
		a.complaints[kind] = &complaint{}
		time.AfterFunc(complainEvery, func() { a.complainAgain(kind) })
	}
	a.mu.Unlock()
	logger.Warn("agent failed at more events", "agent", a.Name(), "how", kind, "detail", told.latest,
		"events", told.kept, "within", complainEvery)
}
