package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A process that was started as the launcher is never anything else: it is decided here, before any other package
// has been made ready (which costs more than all that the launcher does), and in whatever binary this package is
// part of, a test's or the host's, without its main having to know.
func init() {
	if len(os.Args) == 3 && os.Args[0] == launcherName {
		os.Exit(launch(os.Args[1], os.Args[2]))
	}
}

// launch becomes the program it is told of. It returns only when that fails.
func launch(spec, answers string) int {
	out, err := inherited(answers)
	if err != nil {
		return 1
	}
	l := &launcher{}
	err = l.run(spec, func(r report) error { return json.NewEncoder(out).Encode(r) })
	_ = json.NewEncoder(out).Encode(report{Error: err.Error(), Warnings: l.warnings})
	return 1
}

// inherited opens a descriptor that is not to reach the program.
func inherited(number string) (*os.File, error) {
	fd, err := strconv.Atoi(number)
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "inherited"), nil
}

// launcher gives up one thing after another.
type launcher struct {
	order
	warnings []string
	scoped   bool       // Landlock keeps its signals inside
	bound    bool       // Landlock lets it execute the files that were opened, and no others that take their names
	sealed   []*os.File // those, open until the program is executed
	opened   string     // path of the program by its descriptor; "": it is not sealed
}

// run does as it is told. All of it happens on the main thread, which the program's first thread will be.
func (l *launcher) run(spec string, say func(report) error) error {
	file, err := inherited(spec)
	if err != nil {
		return err
	}
	if err := json.NewDecoder(file).Decode(&l.order); err != nil {
		return fmt.Errorf("what to launch: %w", err)
	}
	file.Close()
	if l.Drop != nil {
		return l.becomeHost(say)
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"limits", l.limit},
		{"user", l.changeUser},
		{"capabilities", l.dropCapabilities},
		{"no new privileges", func() error { return prctl(unix.PR_SET_NO_NEW_PRIVS, 1) }},
		{"program", l.seal},
		{"files and network", l.restrict},
		// The signal that comes with the end of the host; a change of user has called it off.
		{"parent", func() error { return prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL)) }},
		{"system calls", l.filter},
		// Told before memory becomes scarce. A host that ended before the signal was asked for cannot be told.
		{"the host", func() error { return say(report{Warnings: l.warnings}) }},
		{"memory", l.limitMemory},
		{"threads and processes", l.limitTasks},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("sandbox: %s: %w", step.what, err)
		}
	}
	if err := syscall.Exec(l.program(), l.Args, l.Env); err != nil {
		return &os.PathError{Op: "executing", Path: l.Path, Err: l.explain(err)}
	}
	return nil
}

// seal opens the files that must be as they were, and has the rules of Landlock made for what was opened: another file
// that takes the name of one can then be neither executed nor read.
func (l *launcher) seal() error {
	for _, one := range l.Policy.Sealed {
		fd, err := unix.Open(one.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "opening", Path: one.Path, Err: err}
		}
		f := os.NewFile(uintptr(fd), one.Path)
		if now, err := IdentityOf(f); err != nil || now != one.Identity {
			return fmt.Errorf("%s was changed while it was being started", one.Path)
		}
		opened := fmt.Sprintf("/proc/self/fd/%d", fd)
		for i, path := range l.Policy.Program {
			if path == one.Path {
				l.Policy.Program[i] = opened
			}
		}
		if one.Path == l.Path {
			l.opened = opened
		}
		l.sealed = append(l.sealed, f)
	}
	return nil
}

// program is the path to execute. Where Landlock binds no path to what was opened, it leads by way of the descriptor.
// A script needs its name all the same, and so does ps wherever it can be had.
func (l *launcher) program() string {
	if l.bound || l.opened == "" || isScript(l.opened) {
		return l.Path
	}
	return l.opened
}

func isScript(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	magic := make([]byte, 2)
	_, err = f.ReadAt(magic, 0)
	return err == nil && string(magic) == "#!"
}

// explain says what a refusal may come from.
func (l *launcher) explain(err error) error {
	if errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w (the program, or its interpreter, is outside of what the sandbox may read, or not executable for its user)", err)
	}
	return err
}

// lacks notes what the kernel cannot do, or fails where that is not accepted.
func (l *launcher) lacks(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if l.Policy.Required {
		return errors.New(text + `, and the agent's block says sandbox { required = true }`)
	}
	l.warnings = append(l.warnings, text)
	return nil
}

func prctl(option int, arg uintptr) error { return unix.Prctl(option, arg, 0, 0, 0) }

// limit sets what the kernel counts. RLIMIT_AS is not among it: Go and others reserve far more than they use.
func (l *launcher) limit() error {
	p := l.Policy
	limits := []struct {
		resource int
		value    int64
	}{
		{unix.RLIMIT_CORE, -1}, // none: a core holds mail
		{unix.RLIMIT_NOFILE, int64(p.Files)},
		{unix.RLIMIT_FSIZE, p.FileSize},
	}
	for _, one := range limits {
		if err := setLimit(one.resource, one.value); err != nil {
			return err
		}
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, min(19, niceness()+p.Nice)); err != nil {
		return fmt.Errorf("nice value: %w", err)
	}
	// When memory is short, an agent can be started again; the host holds sessions. Not every container allows it.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0)
	syscall.Umask(p.umask())
	return nil
}

// limitMemory where no cgroup does.
func (l *launcher) limitMemory() error {
	if l.Policy.Grouped {
		return nil
	}
	return setLimit(unix.RLIMIT_DATA, l.Policy.Memory)
}

// setLimit sets both values, never above what there is; 0 changes nothing, -1 means none at all.
func setLimit(resource int, value int64) error {
	var now syscall.Rlimit
	if value == 0 {
		return nil
	}
	if err := syscall.Getrlimit(resource, &now); err != nil {
		return fmt.Errorf("limit %d: %w", resource, err)
	}
	want := min(uint64(max(value, 0)), now.Max)
	// By package syscall, which otherwise gives the program the number of files that this one began with.
	if err := syscall.Setrlimit(resource, &syscall.Rlimit{Cur: want, Max: want}); err != nil {
		return fmt.Errorf("limit %d: %w", resource, err)
	}
	return nil
}

// niceness of this process. The system call answers with 20 less it, so that no answer is negative.
func niceness() int {
	n, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return 0
	}
	return 20 - n
}

// changeUser becomes the agent's own user and group.
func (l *launcher) changeUser() error {
	if l.Policy.UID == 0 {
		return nil
	}
	uid, gid := int(l.Policy.UID), int(l.Policy.GID)
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("leaving all groups: %w", err)
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("becoming group %d: %w", gid, err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("becoming user %d: %w", uid, err)
	}
	return nil
}

// dropCapabilities leaves none, also to a program that runs as root for want of another user.
func (l *launcher) dropCapabilities() error {
	if l.Policy.Off {
		return nil
	}
	_ = prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL)
	if os.Geteuid() == 0 && l.Policy.UID == 0 {
		for c := range uintptr(unix.CAP_LAST_CAP + 1) {
			_ = prctl(unix.PR_CAPBSET_DROP, c) // EINVAL: not one of this kernel's
		}
		// The bounding set and these bits keep execve(2) from giving root any, see capabilities(7).
		if err := prctl(unix.PR_SET_SECUREBITS, secureNoRoot); err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("secure bits: %w", err)
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("dropping all: %w", err)
	}
	return nil
}

// SECBIT_NOROOT and SECBIT_NO_SETUID_FIXUP with their locks (capabilities(7)).
const secureNoRoot = 1<<0 | 1<<1 | 1<<2 | 1<<3
