package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Credential is the user and the groups of a process.
type Credential struct {
	UID, GID uint32
	Groups   []uint32 // beside GID
}

// StartAs starts a command, instead of cmd.Start, as a user who is not root. Of root's rights it keeps one, to open ports
// below 1024 (CAP_NET_BIND_SERVICE, where this process has it), and it can gain none.
func StartAs(cmd *exec.Cmd, c Credential) error {
	if cmd.Err != nil {
		return cmd.Err
	}
	if c.UID == 0 || c.GID == 0 {
		return errors.New("user and group may not be those of root")
	}
	_, err := start(cmd, order{Drop: &c, Path: cmd.Path, Args: cmd.Args, Env: cmd.Environ()})
	return err
}

// becomeHost gives up root but for low ports, and becomes the program.
func (l *launcher) becomeHost(say func(report) error) error {
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"user", l.dropRoot},
		{"no new privileges", func() error { return prctl(unix.PR_SET_NO_NEW_PRIVS, 1) }},
		{"parent", func() error { return prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL)) }},
		{"the parent", func() error { return say(report{}) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("giving up root: %s: %w", step.what, err)
		}
	}
	for i, variable := range l.Env { // sd_listen_fds(3): sockets are for the process that it names
		if strings.HasPrefix(variable, "LISTEN_PID=") {
			l.Env[i] = "LISTEN_PID=" + strconv.Itoa(os.Getpid())
		}
	}
	if err := syscall.Exec(l.Path, l.Args, l.Env); err != nil {
		return &os.PathError{Op: "executing", Path: l.Path, Err: fmt.Errorf("%w (as user %d)", err, l.Drop.UID)}
	}
	return nil
}

// dropRoot changes user and groups, and keeps the one capability across that and execve(2): see "Ambient" in
// capabilities(7).
func (l *launcher) dropRoot() error {
	const kept = uint32(1 << unix.CAP_NET_BIND_SERVICE)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var now [2]unix.CapUserData
	if err := unix.Capget(&header, &now[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	for c := range uintptr(unix.CAP_LAST_CAP + 1) {
		if c != unix.CAP_NET_BIND_SERVICE {
			_ = prctl(unix.PR_CAPBSET_DROP, c) // EINVAL: not one of this kernel's
		}
	}
	if err := prctl(unix.PR_SET_KEEPCAPS, 1); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	if err := l.changeTo(*l.Drop); err != nil {
		return err
	}
	left := now[0].Permitted & kept
	only := [2]unix.CapUserData{{Permitted: left, Effective: left, Inheritable: left}}
	if err := unix.Capset(&header, &only[0]); err != nil {
		return fmt.Errorf("dropping capabilities: %w", err)
	}
	if left == 0 {
		return nil
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_NET_BIND_SERVICE, 0, 0); err != nil {
		return fmt.Errorf("keeping the right to open low ports: %w", err)
	}
	return nil
}

func (l *launcher) changeTo(c Credential) error {
	groups := make([]int, 0, len(c.Groups))
	for _, g := range c.Groups {
		groups = append(groups, int(g))
	}
	uid, gid := int(c.UID), int(c.GID)
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("taking on groups: %w", err)
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("becoming group %d: %w", gid, err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("becoming user %d: %w", uid, err)
	}
	return nil
}
