package main

import (
	"net/netip"
	"time"
)

// Config of the agent.
type Config struct {
	Delay  time.Duration  `hcl:"delay,optional"  default:"5m"  min:"10s" max:"1h" doc:"wait asked of a stranger"`
	Window time.Duration  `hcl:"window,optional" default:"24h" doc:"a later retry starts over"`
	Keep   time.Duration  `hcl:"keep,optional"   default:"36d" doc:"memory of a triple that passed"`
	Exempt []netip.Prefix `hcl:"exempt,optional" doc:"networks never greylisted" example:"[\"192.0.2.0/24\"]"`
}
