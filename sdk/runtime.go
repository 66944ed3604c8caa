package sdk

import (
	"os"
	"runtime"
)

// useOneProcessor keeps the Go code of an agent on one processor at a time, unless the operator's environment
// sets GOMAXPROCS. Mostly one to three events are with an agent, each of which takes microseconds: a second
// processor that wakes up, looks for work and finds none costs more than they do. An agent that computes for
// long gets more processors by more processes (`instances`).
func useOneProcessor() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
}
