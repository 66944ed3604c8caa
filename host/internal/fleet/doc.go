// Package fleet runs the agents of a host as a whole: which programs they are, in which generation, and how one follows
// another under live mail.
//
// A [Fleet] has a [Member] for each agent block. Whatever changes it (the start, a reload, an order of an operator, a
// trial that ends) becomes a list of steps. What can fail happens first, beside what runs; then the plan and the lines
// are exchanged between two events, and what was replaced drains. swap.go is that path. What was ordered, and what has
// run before, is in records.go, since it must outlive the host.
package fleet
