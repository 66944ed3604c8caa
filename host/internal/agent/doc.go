// Package agent launches, configures and watches agent processes, and carries events to them: one stream a
// process, many events in flight, retries on another instance inside the budget.
//
// From the outside in: an Agent (agent.go, lifecycle.go) has a slot for each instance (slot.go), which fills it
// with one process after another (process.go). A process is an operating system process in a group of its own
// (child.go) that go-plugin starts through our runner (runner.go), or one that is attached to. Its lines become
// log lines (logs.go). A Call becomes a flight (flight.go) that the Agent gives to the stream of a process
// (stream.go, codec.go); large bodies travel beside it (bodies.go).
//
// One lock, Agent.mu, guards everything about which event is where; no call to a process is made under it.
// A flight is in exactly one place: Agent.queue (waiting for room), Agent.suspects (was in flight at a death and
// waits to be tried alone), or the flights of one stream. When a stream ends, bury moves its flights on.
package agent
