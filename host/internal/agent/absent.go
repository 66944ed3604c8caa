package agent

import (
	"github.com/posternmail/postern/sdk/agentpb"
)

// Absent is an agent that could not be started, for the reason why, and is known from before: by the manifest and the
// subscriptions of the generation that ran last. Its instances are in backoff, and are started as those of an agent that
// has lost its processes. Until one is up, its events fail as Down.
func Absent(o Options, manifest *agentpb.DescribeResponse, subscriptions []*agentpb.Subscription, why error) *Agent {
	a := newAgent(o.withDefaults())
	a.newest.Store(&process{o: a.o, manifest: manifest, config: &agentpb.ConfigureResponse{Subscriptions: subscriptions}})
	for _, s := range a.slots {
		pause := s.history.next(0, false)
		a.mu.Lock()
		s.unstarted(why, pause)
		a.mu.Unlock()
		a.running.Go(func() { s.supervise(nil) })
	}
	return a
}
