package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"time"
)

// counts is how often each agent was called at each event.
type counts map[string]uint64

// agentCounts asks the running host.
func agentCounts(config string, agents int) (counts, error) {
	all := counts{}
	for _, a := range seedTable[:agents] {
		text, err := exec.Command("bin/postern", "agent", "show", a.name, "--json", "--config", config).Output()
		if err != nil {
			return nil, fmt.Errorf("agent show %s: %w", a.name, err)
		}
		var shown struct {
			Events []struct {
				Event string
				Calls uint64
			}
		}
		if err := json.Unmarshal(text, &shown); err != nil {
			return nil, fmt.Errorf("agent show %s: %w", a.name, err)
		}
		for _, e := range shown.Events {
			all[a.name+" "+e.Event] = e.Calls
		}
	}
	return all, nil
}

// expected adds what a load makes of the counts before it: each agent is called once a session or message at
// each of its events, but never at those that the load does not cause.
func (c counts) expected(agents int, l load) counts {
	want := maps.Clone(c)
	sessions := (l.messages + l.perConnection - 1) / l.perConnection
	for _, a := range seedTable[:agents] {
		for _, event := range a.events {
			switch event {
			case "OnConnect", "OnDisconnect":
				want[a.name+" "+event] += uint64(sessions)
			case "OnReject", "OnRset":
			default:
				want[a.name+" "+event] += uint64(l.messages)
			}
		}
	}
	return want
}

// settled waits until the counts stand still: the warm-up's last events come when nobody waits any more.
func (srv *server) settled() (counts, error) {
	last, err := srv.counts()
	for err == nil {
		time.Sleep(200 * time.Millisecond)
		var now counts
		if now, err = srv.counts(); maps.Equal(now, last) {
			break
		}
		last = now
	}
	return last, err
}

// check compares until the counts are right: a fact like OnDisconnect comes when nobody waits any more.
func (srv *server) check(want counts) error {
	var got counts
	for range 50 {
		var err error
		if got, err = srv.counts(); err != nil {
			return err
		}
		if maps.Equal(got, want) {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("agents were called %v, want %v", got, want)
}
