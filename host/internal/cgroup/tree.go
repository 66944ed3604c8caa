// Package cgroup limits what the processes of an agent use together, where the host has a part of the hierarchy of
// cgroups (cgroups(7), version 2) to itself, such as a unit of systemd with Delegate=yes.
//
// A cgroup that gives controllers to those below it holds no processes of its own. So the one that the host was started
// in comes to have two:
//
//	host                       the host; during a restart, both
//	agents/LABEL.PID.NUMBER    a process of an agent with all that it starts. PID is that of the host that started it
//
// An agent's cgroup ends with the agent, and whatever is still in it. What a host leaves that was killed, the next one
// removes.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// Names of the two.
const (
	hostName   = "host"
	agentsName = "agents"
)

// wanted are the controllers in use.
var wanted = []string{"memory", "pids", "cpu"}

// Tree is the part of the hierarchy that is the host's. A Tree that has none makes no groups, and neither does nil.
type Tree struct {
	agents      string   // folder; "": it has none
	controllers []string // of those below it
	lack        string   // why it has none

	number   atomic.Uint64
	removing sync.WaitGroup
}

// Enter divides the cgroup that this process is in, and moves it to its place there. It never fails: the Tree says what it
// lacks. Only the process that is to start agents calls it, before it has started any.
func Enter() *Tree {
	dir, err := ownFolder()
	t := &Tree{}
	if err == nil {
		t, err = divide(dir, wanted)
	}
	if err != nil {
		return &Tree{lack: err.Error()}
	}
	return t
}

// divide makes a Tree below a cgroup, or finds the one that a former host has made, whose place this process is at.
func divide(own string, controllers []string) (*Tree, error) {
	dir := own
	joins := filepath.Base(own) == hostName && isFolder(filepath.Join(filepath.Dir(own), agentsName))
	if joins {
		dir = filepath.Dir(own)
	} else if err := isOurs(own); err != nil {
		return nil, err
	}
	given := intersection(controllers, list(filepath.Join(dir, "cgroup.controllers")))
	if len(given) == 0 && len(controllers) > 0 {
		return nil, fmt.Errorf("%s has none of the controllers %s", dir, strings.Join(controllers, ", "))
	}
	t := &Tree{agents: filepath.Join(dir, agentsName)}
	if err := t.furnish(dir, given); err != nil {
		if !joins {
			undo(dir)
		}
		return nil, err
	}
	return t, nil
}

// furnish makes the two cgroups, moves this process and hands controllers down.
func (t *Tree) furnish(dir string, controllers []string) error {
	for _, name := range []string{hostName, agentsName} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := write(filepath.Join(dir, hostName), "cgroup.procs", strconv.Itoa(os.Getpid())); err != nil {
		return err
	}
	var refused []error
	for _, name := range controllers { // one by one: some can be had where others can not
		for _, folder := range []string{dir, t.agents} {
			if err := write(folder, "cgroup.subtree_control", "+"+name); err != nil {
				refused = append(refused, fmt.Errorf("%s: %w", name, err))
				break
			}
		}
	}
	t.controllers = intersection(controllers, list(filepath.Join(t.agents, "cgroup.subtree_control")))
	if len(t.controllers) == 0 && len(controllers) > 0 {
		return errors.Join(refused...)
	}
	t.removeLeftovers(filepath.Join(dir, hostName))
	return t.probe()
}

// undo leaves a cgroup as it was before furnish.
func undo(dir string) {
	for _, folder := range []string{filepath.Join(dir, agentsName), dir} {
		for _, name := range wanted {
			_ = write(folder, "cgroup.subtree_control", "-"+name) // refused for what was not given
		}
	}
	_ = write(dir, "cgroup.procs", strconv.Itoa(os.Getpid()))
	_ = os.Remove(filepath.Join(dir, agentsName))
	_ = os.Remove(filepath.Join(dir, hostName))
}

// removeLeftovers ends the cgroups of hosts that live no more. The hosts that do are in the cgroup at hosts. One with the
// number of this process, which has made none yet, was another.
func (t *Tree) removeLeftovers(hosts string) {
	entries, _ := os.ReadDir(t.agents)
	living, err := processes(hosts)
	if err != nil {
		return
	}
	for _, entry := range entries {
		parts := strings.Split(entry.Name(), ".")
		if !entry.IsDir() || len(parts) < 3 {
			continue
		}
		pid, err := strconv.Atoi(parts[len(parts)-2])
		if err != nil || pid != os.Getpid() && slices.Contains(living, pid) {
			continue
		}
		t.end(filepath.Join(t.agents, entry.Name()))
	}
}

// probe tries whether processes can be started in a cgroup: filters of system calls, such as those of containers, may
// refuse clone3(2) or the flag. Nothing is executed: that the program is missing is found out in the new process.
func (t *Tree) probe() error {
	g, err := t.New("probe", Limits{})
	if err != nil {
		return err
	}
	defer g.End()
	attr := &syscall.SysProcAttr{}
	g.Place(attr)
	_, err = os.StartProcess("/proc/self/fd/none", []string{"probe"}, &os.ProcAttr{Sys: attr})
	if !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("starting a process in a cgroup: %w", err)
	}
	return nil
}

// Lack is why the Tree makes no groups, "" where it does.
func (t *Tree) Lack() string {
	if t == nil {
		return "this process has no cgroups for them"
	}
	return t.lack
}

// Controllers that groups have, of "memory", "pids" and "cpu".
func (t *Tree) Controllers() []string {
	if t == nil {
		return nil
	}
	return slices.Clone(t.controllers)
}

// Close waits until the groups that have ended are removed.
func (t *Tree) Close() {
	if t != nil {
		t.removing.Wait()
	}
}

func intersection(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return !slices.Contains(b, s) })
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
