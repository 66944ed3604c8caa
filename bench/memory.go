package main

import (
	"fmt"
)

// Over how many messages memory is watched, and how often it is looked at.
const (
	memoryMessages = 100_000
	memoryLooks    = 10
)

// memory prints what host and agents occupy while 100,000 messages pass. It fails if they have grown by more than
// a fifth between the second look, when everything has been used once, and the last.
func memory(l load) error {
	const agents, size = 2, 4 << 10
	srv, out, end, err := relaying(cell{server: "postern", agents: agents, size: size})
	if err != nil {
		return err
	}
	defer end()
	l.messages = memoryMessages / memoryLooks
	var looks []float64
	fmt.Println("| messages | host MB | agents MB, each |\n|---|---|---|")
	for i := 1; i <= memoryLooks; i++ {
		if err := l.send(srv.addr, size); err != nil {
			return err
		}
		if err := out.wait(i * l.messages); err != nil {
			return err
		}
		pids := srv.pids()
		var theirs int64
		for _, pid := range pids[1:] {
			theirs += pssBytes(pid)
		}
		host := float64(pssBytes(pids[0]))
		looks = append(looks, host+float64(theirs))
		fmt.Printf("| %d | %.1f | %.1f |\n", i*l.messages, host/1e6, float64(theirs)/agents/1e6)
	}
	if settled, last := looks[1], looks[memoryLooks-1]; last > 1.2*settled {
		return fmt.Errorf("memory has grown from %.1f to %.1f MB", settled/1e6, last/1e6)
	}
	return nil
}
