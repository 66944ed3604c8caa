// Package agent launches, configures and watches agent processes, and carries events to them: one stream a
// process, many events in flight, retries on another instance inside the budget.
package agent
