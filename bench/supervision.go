package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
)

// supervisionPairs is how many runs there are with and without the sandbox, in turn.
const supervisionPairs = 5

// supervised are the parts whose cost is looked up in the host's profile, since no run is without them: what functions
// are theirs.
var supervised = []struct{ name, functions string }{
	{"ledger", `host/internal/tracking\.|admin\.\(\*?(Metrics|counted)`},
	{"supervision", `internal/agent\.\(\*(Agent|slot)\)\.(broken|wear|mend|probeNow|look|doubt|trusted|inDoubt|complain|hope|despair|relieve|mayRelieve|arrive|succeed)|internal/agent\.\(\*stream\)\.(patience|awaited)|internal/agent\.\(\*process\)\.(watch|run|log)`},
}

// supervision prints what the sandbox, the ledger and the watching of agents add to a message.
func supervision(l load) error {
	const agents, size = 11, 4 << 10
	var with, without []float64
	shares := make([][]float64, len(supervised))
	for range supervisionPairs {
		free, _, err := profiled(cell{server: "postern", agents: agents, size: size, free: true}, l)
		if err != nil {
			return err
		}
		boxed, parts, err := profiled(cell{server: "postern", agents: agents, size: size}, l)
		if err != nil {
			return err
		}
		without, with = append(without, free.cpuMillis), append(with, boxed.cpuMillis)
		for i, part := range parts {
			shares[i] = append(shares[i], part*boxed.hostShare)
		}
	}
	fmt.Printf("| part | share of the CPU time of a message with %d agents |\n|---|---|\n", agents)
	sandbox := median(with)/median(without) - 1
	fmt.Printf("| sandbox (%d pairs of runs: %.3f ms with, %.3f without) | %.1f %% |\n", supervisionPairs, median(with), median(without), 100*sandbox)
	sum := sandbox
	for i, part := range supervised {
		sum += median(shares[i])
		fmt.Printf("| %s (profile of the host) | %.1f %% |\n", part.name, 100*median(shares[i]))
	}
	fmt.Printf("| all | %.1f %% (aim: 10 %%) |\n", 100*sum)
	return nil
}

// profiled is measure, with what each part of supervised takes of the host's CPU time meanwhile. Looking costs time as
// well: compare such runs among themselves only.
func profiled(c cell, l load) (run result, parts []float64, err error) {
	profile, err := os.CreateTemp("", "postern-*.prof")
	if err != nil {
		return run, nil, err
	}
	defer os.Remove(profile.Name())
	defer profile.Close()
	var failed error
	run, err = measureBeside(c, l, func(dir string) { failed = takeProfile(profile, filepath.Join(dir, "data", "control.sock")) })
	if err := errors.Join(err, failed); err != nil {
		return run, nil, err
	}
	for _, part := range supervised {
		share, err := shareOf(profile.Name(), part.functions)
		if err != nil {
			return run, nil, err
		}
		parts = append(parts, share)
	}
	return run, parts, nil
}

// profileSeconds is shorter than a run takes.
const profileSeconds = 3

// takeProfile has the host of a control socket write a profile of its CPU time.
func takeProfile(to io.Writer, socket string) error {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	resp, err := client.Get(fmt.Sprintf("http://postern/debug/pprof/profile?seconds=%d", profileSeconds))
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(to, resp.Body); err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	return nil
}

var accounting = regexp.MustCompile(`accounting for [^,]+, ([0-9.]+)% of`)

// shareOf is the part of a profile's samples that were taken in functions, or in what they call.
func shareOf(profile, functions string) (share float64, err error) {
	text, err := exec.Command("go", "tool", "pprof", "-top", "-nodefraction=0", "-focus="+functions, "bin/postern", profile).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("reading the profile: %w: %s", err, text)
	}
	found := accounting.FindSubmatch(text)
	if found == nil {
		return 0, nil // no sample was
	}
	percent, err := strconv.ParseFloat(string(found[1]), 64)
	return percent / 100, err
}
