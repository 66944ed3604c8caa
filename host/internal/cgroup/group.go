package cgroup

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of a group: of all its processes together.
type Limits struct {
	Memory int64 // bytes, 0: any
	Tasks  int   // threads and processes, 0: any
	Nice   int   // as a nice value, -20 to 19: its share of the processors beside other groups
}

// Group is a cgroup for one process and all that it starts. nil is none.
type Group struct {
	tree *Tree
	path string
	dir  *os.File // nil after End
}

// New makes a group with limits, as far as the controllers that there are can enforce them; nil where the Tree has none.
func (t *Tree) New(label string, l Limits) (*Group, error) {
	if t == nil || t.agents == "" {
		return nil, nil
	}
	g := &Group{tree: t, path: filepath.Join(t.agents, fmt.Sprintf("%s.%d.%d", plain(label), os.Getpid(), t.number.Add(1)))}
	if err := os.Mkdir(g.path, 0o755); err != nil {
		return nil, fmt.Errorf("making a cgroup: %w", err)
	}
	err := g.limit(l)
	if err == nil {
		g.dir, err = os.OpenFile(g.path, unix.O_PATH|unix.O_DIRECTORY, 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making a cgroup: %w", err), os.Remove(g.path))
	}
	return g, nil
}

// plain is a label as a name of a folder, whoever has chosen it.
func plain(label string) string {
	clean := strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '-'
	}, label)
	return clean[:min(len(clean), 64)]
}

func (g *Group) limit(l Limits) error {
	for _, one := range []struct {
		controller, file, value string
		wanted, optional        bool
	}{
		{controller: "memory", file: "memory.max", value: strconv.FormatInt(l.Memory, 10), wanted: l.Memory > 0},
		// What does not fit is not to be on the disk instead. The file is missing in a kernel without swap.
		{controller: "memory", file: "memory.swap.max", value: "0", wanted: l.Memory > 0, optional: true},
		// Half an agent is none: all of its processes end with the first that the kernel ends.
		{controller: "memory", file: "memory.oom.group", value: "1", wanted: true},
		{controller: "pids", file: "pids.max", value: strconv.Itoa(l.Tasks), wanted: l.Tasks > 0},
		{controller: "cpu", file: "cpu.weight", value: strconv.Itoa(weight(l.Nice)), wanted: true},
	} {
		if !one.wanted || !g.Has(one.controller) {
			continue
		}
		if err := write(g.path, one.file, one.value); err != nil && !one.optional {
			return err
		}
	}
	return nil
}

// weight is the share of the processors that a nice value comes to: 100 for 0, and a quarter more for each step down, as
// the kernel weighs processes (sched(7)).
func weight(nice int) int {
	return min(max(int(math.Round(100*math.Pow(1.25, float64(-nice)))), 1), 10000)
}

// Has reports whether a controller limits the group: "memory", "pids" or "cpu".
func (g *Group) Has(controller string) bool {
	return g != nil && slices.Contains(g.tree.controllers, controller)
}

// Controllers that limit the group.
func (g *Group) Controllers() []string {
	if g == nil {
		return nil
	}
	return g.tree.Controllers()
}

// Place has a process started in the group: from its first instruction it is nowhere else (CLONE_INTO_CGROUP).
func (g *Group) Place(attr *syscall.SysProcAttr) {
	if g != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(g.dir.Fd())
	}
}

// Shortage is whose want of memory the kernel has ended processes for.
type Shortage string

// Shortages.
const (
	NoShortage Shortage = ""
	Own        Shortage = "own"     // the group had as much as it may
	Elsewhere  Shortage = "machine" // all of the machine's was in use, or all that the host may have
)

// Shortage that has ended processes of the group so far; valid until End. "oom" counts times when the group itself was at
// its limit, "oom_kill" processes that were ended for any want of memory (memory.events in the kernel's cgroup-v2.rst).
func (g *Group) Shortage() Shortage {
	if !g.Has("memory") {
		return NoShortage
	}
	text, err := os.ReadFile(filepath.Join(g.path, "memory.events"))
	if err != nil {
		return NoShortage
	}
	return shortageOf(string(text))
}

func shortageOf(events string) Shortage {
	count := map[string]int{}
	for line := range strings.Lines(events) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		count[name], _ = strconv.Atoi(value)
	}
	switch {
	case count["oom_kill"] == 0:
		return NoShortage
	case count["oom"] > 0:
		return Own
	}
	return Elsewhere
}

// End kills what is in the group, and removes it as soon as that has gone. Once.
func (g *Group) End() {
	if g == nil {
		return
	}
	_ = g.dir.Close()
	g.tree.end(g.path)
}

// removePatience is how long killed processes may take to go. What is left then, the next host removes.
const removePatience = 10 * time.Second

// end kills all processes in a cgroup, and has it removed.
func (t *Tree) end(path string) {
	_ = write(path, "cgroup.kill", "1")
	t.removing.Go(func() {
		pause := time.Millisecond
		for deadline := time.Now().Add(removePatience); time.Now().Before(deadline); time.Sleep(pause) {
			if err := remove(path); err == nil || errors.Is(err, unix.ENOENT) {
				return
			}
			pause = min(2*pause, 100*time.Millisecond)
		}
	})
}

// remove removes a cgroup that holds no process, with those that an agent may have made in it.
func remove(path string) error {
	entries, _ := os.ReadDir(path)
	for _, entry := range entries {
		if entry.IsDir() {
			_ = remove(filepath.Join(path, entry.Name()))
		}
	}
	return unix.Rmdir(path)
}
