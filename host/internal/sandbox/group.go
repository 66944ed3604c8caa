package sandbox

import (
	"fmt"
	"os/exec"
	"strings"

	"github.com/posternmail/postern/host/internal/cgroup"
)

// Tasks of a group: the threads of the program, which may hold many that wait, and those of what it may start. The kernel
// does not tell one from the other.
const (
	tasksOfProgram = 1024
	tasksOfOther   = 64
)

// Group gives a command, before it is started under a policy, a cgroup of its own where the tree has one to give: it then
// limits memory, tasks and processor time of all its processes together. The caller ends the group, which is nil where
// there is none: an agent runs without rather than not at all. The words say which limits are in force, and how.
func Group(tree *cgroup.Tree, label string, cmd *exec.Cmd, p *Policy) (g *cgroup.Group, words string) {
	limits := cgroup.Limits{Memory: p.Memory, Tasks: tasksOfProgram + tasksOfOther*p.Processes, Nice: p.Nice}
	g, err := tree.New(label, limits)
	p.Grouped = g.Has("memory")
	memory := "any memory"
	if p.Memory > 0 {
		memory = Size(p.Memory) + " of memory"
	}
	if p.Memory > 0 && !p.Grouped {
		memory += " for each process (RLIMIT_DATA)"
	}
	if g == nil {
		lack := tree.Lack()
		if err != nil {
			lack = err.Error()
		}
		return nil, fmt.Sprintf("%s; no cgroup: %s", memory, lack)
	}
	g.Place(cmd.SysProcAttr)
	held := []string{memory}
	if g.Has("pids") {
		held = append(held, fmt.Sprintf("%d threads and processes", limits.Tasks))
	}
	if g.Has("cpu") {
		held = append(held, fmt.Sprintf("processor time as for nice %d", limits.Nice))
	}
	return g, "by cgroup: " + strings.Join(held, ", ")
}
