package main

import "github.com/posternmail/postern/sdk"

// Config of the agent.
type Config struct {
	Body sdk.Size `hcl:"body,optional" default:"4 KiB" max:"1 MiB" doc:"how much of each body to write"`
}
