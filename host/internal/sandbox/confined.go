package sandbox

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Confined reports whether a process is in a sandbox: it can gain no privileges, and has more filters of system calls
// than this one. Neither can be undone, and all that it starts has both, so it does not matter where that has gone. A
// process that cannot be looked at counts as confined; pid 0, one that this process cannot see, does not.
func Confined(pid int) bool {
	if pid == 0 {
		return false
	}
	theirs, err := seccompOf(strconv.Itoa(pid))
	if err != nil {
		return true
	}
	ours, err := seccompOf("self")
	return err != nil || theirs.noNewPrivileges && theirs.filters > ours.filters
}

// seccomp is what the kernel tells of a process (proc_pid_status(5)).
type seccomp struct {
	noNewPrivileges bool
	filters         int
}

func seccompOf(process string) (s seccomp, err error) {
	status, err := os.ReadFile("/proc/" + process + "/status")
	if err != nil {
		return s, fmt.Errorf("looking at process %s: %w", process, err)
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		number, _ := strconv.Atoi(value)
		switch name {
		case "NoNewPrivs":
			s.noNewPrivileges = number == 1
		case "Seccomp": // 2: with filters. Linux 5.9 tells how many
			s.filters = max(s.filters, number/2)
		case "Seccomp_filters":
			s.filters = number
		}
	}
	return s, nil
}
