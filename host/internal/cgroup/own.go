package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// errNone: this process is in no cgroup of the second version.
var errNone = errors.New("there is no cgroup v2 here")

// ownFolder is the folder of the cgroup that this process is in.
func ownFolder() (string, error) {
	cgroups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", errNone
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", errNone
	}
	return folderOf(string(cgroups), string(mounts))
}

// folderOf finds the cgroup of a process in the mounts that it sees (cgroups(7), proc_pid_mountinfo(5)).
func folderOf(cgroups, mounts string) (string, error) {
	path, found := "", false
	for line := range strings.Lines(cgroups) {
		if rest, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			path, found = strings.TrimSuffix(rest, " (deleted)"), true
		}
	}
	if !found || strings.HasPrefix(path, "/..") { // outside of what this process sees of the hierarchy
		return "", errNone
	}
	for line := range strings.Lines(mounts) {
		mount, kind, _ := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		if !strings.HasPrefix(kind, "cgroup2 ") || len(fields) < 5 {
			continue
		}
		root, at := unescape(fields[3]), unescape(fields[4])
		if below, err := filepath.Rel(root, path); err == nil && filepath.IsLocal(below) {
			return filepath.Join(at, below), nil
		}
	}
	return "", errNone
}

// unescape undoes what mountinfo does to blanks and their like, such as "\040".
func unescape(s string) string {
	for _, code := range []string{"040 ", "011\t", "012\n", "134\\"} {
		s = strings.ReplaceAll(s, `\`+code[:3], code[3:])
	}
	return s
}

// processes are those in a cgroup. 0 stands for those that this one cannot see, in another process namespace.
func processes(dir string) (pids []int, err error) {
	f, err := os.Open(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		pid, err := strconv.Atoi(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		pids = append(pids, pid)
	}
	return pids, lines.Err()
}

// isOurs says why a cgroup is not this process's alone, to be divided: nil when it is.
func isOurs(dir string) error {
	if unix.Access(filepath.Join(dir, "cgroup.kill"), unix.F_OK) != nil { // nor has the root of all cgroups one
		return fmt.Errorf("%s is not a cgroup that can be divided (Linux 5.14 can)", dir)
	}
	if unix.Access(filepath.Join(dir, "cgroup.subtree_control"), unix.W_OK) != nil || unix.Access(dir, unix.W_OK) != nil {
		return fmt.Errorf("%s was not delegated to this user", dir)
	}
	if !delegated(dir) {
		return fmt.Errorf("%s was not delegated: its unit does not say Delegate=yes", dir)
	}
	pids, err := processes(dir)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(pids, func(pid int) bool { return pid != os.Getpid() }); i >= 0 {
		return fmt.Errorf("%s has other processes in it, such as %d", dir, pids[i])
	}
	return nil
}

// delegated reports whether systemd, where it has started this process, leaves the cgroup alone: it marks those with an
// attribute (the second before version 251), which is how root can know. For another user, that it may write is enough.
func delegated(dir string) bool {
	if os.Getenv("INVOCATION_ID") == "" || os.Geteuid() != 0 {
		return true
	}
	for _, name := range []string{"user.delegate", "trusted.delegate"} {
		value := make([]byte, 8)
		if n, err := unix.Getxattr(dir, name, value); err == nil && string(value[:n]) == "1" {
			return true
		}
	}
	return false
}

// list reads a file of words.
func list(path string) []string {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return strings.Fields(string(text))
}

// write sets a file of the kernel's, which is there already.
func write(dir, name, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
