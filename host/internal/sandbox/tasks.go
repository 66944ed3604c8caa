package sandbox

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxTasks are the threads and processes of all instances of an agent that has a user of its own.
const maxTasks = 4096

// tasksBeside is how many threads and processes the user of this process may have before a process under p, which has the
// same user, is refused another one; 0: no matter, root has no such limit and another user has one of its own. Of what
// the kernel lets the user have, a quarter is kept for the host: one that can start no thread ends.
func tasksBeside(p Policy) int64 {
	if p.UID != 0 || os.Geteuid() == 0 {
		return 0
	}
	all := int64(math.MaxInt64)
	var limit syscall.Rlimit
	if syscall.Getrlimit(unix.RLIMIT_NPROC, &limit) == nil && limit.Cur < math.MaxInt64 {
		all = int64(limit.Cur)
	}
	if n := numberIn("/proc/sys/kernel/threads-max"); n > 0 {
		all = min(all, n)
	}
	return max(min(all, tasksOfUnit())/4*3, 1)
}

// tasksOfUnit is the least of the limits of the cgroups that this process is in: TasksMax of its unit.
func tasksOfUnit() int64 {
	least := int64(math.MaxInt64)
	text, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(text)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::") // version 2, cgroups(7)
		for ; ok && path != "/" && path != "."; path = filepath.Dir(path) {
			if n := numberIn(filepath.Join("/sys/fs/cgroup", path, "pids.max")); n > 0 {
				least = min(least, n)
			}
		}
	}
	return least
}

// numberIn reads a number from a file of the kernel's; 0 where there is none.
func numberIn(path string) int64 {
	text, _ := os.ReadFile(path)
	n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n
}

// limitTasks comes last: the launcher may need a thread itself.
func (l *launcher) limitTasks() error {
	if l.Policy.UID != 0 {
		return setLimit(unix.RLIMIT_NPROC, maxTasks)
	}
	if l.Namespace && l.Tasks > 0 { // which counts by itself (user_namespaces(7))
		l.Tasks = min(l.Tasks, tasksOfProgram+tasksOfOther*int64(l.Policy.Processes))
	}
	return setLimit(unix.RLIMIT_NPROC, l.Tasks)
}
