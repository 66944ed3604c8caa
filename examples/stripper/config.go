package main

import "github.com/posternmail/postern/sdk/address"

// Config of the agent.
type Config struct {
	Names  []string          `hcl:"names,optional" default:"*.exe,*.scr,*.js,*.vbs,*.lnk" doc:"names of unwanted attachments, with * and ?"`
	Notice string            `hcl:"notice,optional" default:"The attachment %q was removed." doc:"text in its place; %q is its name"`
	Except []address.Mailbox `hcl:"except,optional" doc:"recipients who get the message as it is" example:"[\"security@adventureworks.example\"]"`
}
