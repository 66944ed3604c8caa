// Package sdk is what the author of an agent imports, and all of it: an agent is a struct with handlers named
// after the events it wants, a Config struct, and a New function that makes one from the other.
//
//	func New(cfg Config, r *sdk.Registrar) (*Greylist, error)
//	func (g *Greylist) OnRcpt(ctx context.Context, e *sdk.RcptEvent) sdk.Verdict
//
//	func main() {
//		sdk.Main(sdk.Info{Name: "greylist", Version: "1.0.0", Category: sdk.Antispam}, New)
//	}
//
// # What an agent can rely on
//
// New is called for every new configuration and its result never changes afterwards: handlers of the old one
// finish on the old one. If it has a Close method, that is called when its last event was answered.
//
// Handlers run concurrently, events of one session in order. An agent may be run as several processes, any of
// which may get the next event of a session, and a process may be replaced between two events. So nothing may
// be kept in the agent that a later event depends on: what one event tells a later one of the same session or
// message is a stamp, what outlives them is a row of a table. Both are kept by the host.
//
// A panic in a handler fails that event only. A handler that answers nothing (the zero Verdict) has failed.
// The context ends at the deadline of the event or when the host lost interest, and carries a logger
// (Logger, or hclog.FromContext) that names agent, version, session, message and event on every line.
//
// A process of an agent uses one processor at a time, which is the cheapest way to answer many small events. An
// agent that computes for long is given more processes (`instances` in its block) or, where its memory is
// large, GOMAXPROCS in its `environment`.
//
// Package agenttest runs an agent as two processes and checks that none of this is broken.
package sdk

// Version of this SDK, told to the host.
const Version = "0.1.0"
