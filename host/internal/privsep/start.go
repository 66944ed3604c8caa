package privsep

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/host/internal/cgroup"
	"github.com/posternmail/postern/host/internal/sandbox"
)

// started is a process of an agent.
type started struct {
	host  *host
	id    uint64
	cmd   *exec.Cmd
	uid   uint32
	state *os.File // nil: none
	temp  *os.File
	limit int64         // octets that both may hold, 0: any
	group *cgroup.Group // nil: none
	held  string        // limits in force, in words
	pid   int

	folders sync.RWMutex // held while state and temp are in use
	closed  bool

	mu   sync.Mutex
	gone bool // its pid may belong to a stranger from now on
	why  string
	done chan struct{}
}

// start starts a process of an agent.
func (h *host) start(r request, files []*os.File) (answer, error) {
	if len(files) != agentFiles+1 {
		return answer{}, fmt.Errorf("%d descriptors of %d", len(files), agentFiles+1)
	}
	if err := r.check(); err != nil {
		return answer{}, err
	}
	s := &started{host: h, id: r.ID, limit: r.Policy.FileSize, done: make(chan struct{})}
	if err := h.register(s); err != nil {
		return answer{}, err
	}
	warnings, err := s.run(r, files)
	if err != nil {
		h.forget(s)
		return answer{}, err
	}
	return answer{PID: s.pid, Warnings: warnings, Limits: s.held}, nil
}

func (h *host) register(s *started) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.gone:
		return errors.New("the host has ended")
	case h.processes[s.id] != nil:
		return fmt.Errorf("process %d runs already", s.id)
	case len(h.processes) >= maxProcesses:
		return fmt.Errorf("%d processes run already", maxProcesses)
	}
	h.processes[s.id] = s
	return nil
}

func (h *host) forget(s *started) {
	h.mu.Lock()
	delete(h.processes, s.id)
	h.mu.Unlock()
	s.folders.Lock()
	defer s.folders.Unlock()
	s.closed = true
	for _, dir := range []*os.File{s.state, s.temp} {
		if dir != nil {
			_ = dir.Close()
		}
	}
}

// run gives the agent its folders and starts the program.
func (s *started) run(r request, files []*os.File) (warnings []string, err error) {
	p := *r.Policy
	if err := s.open(p, files[agentFiles]); err != nil {
		return nil, err
	}
	p.UID, p.GID = s.uid, s.uid
	s.cmd = exec.Command(r.Args[0], r.Args[1:]...)
	s.cmd.Env = r.Env
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = files[0], files[1], files[2]
	s.cmd.ExtraFiles = files[3:agentFiles:agentFiles]
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	err = onThread(func() (err error) {
		s.group, s.held = sandbox.Group(s.host.parent.Groups, filepath.Base(p.State), s.cmd, &p)
		if warnings, err = sandbox.Launch(s.cmd, p); err != nil {
			s.group.End()
			return err
		}
		s.host.began(s)
		return nil
	}, s.reap)
	if err == nil {
		go s.watchDisk()
	}
	return warnings, err
}

// began notes that a process runs. Its host may have ended meanwhile.
func (h *host) began(s *started) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.pid = s.cmd.Process.Pid
	if h.gone {
		s.signal(unix.SIGKILL)
	}
}

func (s *started) open(p sandbox.Policy, temp *os.File) (err error) {
	var names *os.File
	if p.State != "" {
		if names, s.state, err = s.host.parent.stateFolder(p.State); err != nil {
			return err
		}
		defer names.Close()
	}
	fd, err := unix.FcntlInt(temp.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s.temp = os.NewFile(uintptr(fd), "temporary files")
	if s.uid, err = sandbox.Entrust(names, s.state, s.temp, s.host.parent.User); err != nil {
		return err
	}
	if why := s.over(); why != "" {
		return fmt.Errorf("%s: clear them, or raise disk", why)
	}
	return nil
}

// signal sends a signal to the process's group.
func (s *started) signal(sig unix.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.gone && s.pid > 1 {
		_ = unix.Kill(-s.pid, sig)
	}
}

// reap waits for the end of the process, ends what it left in its group before its number can become a stranger's, and
// tells the host.
func (s *started) reap() {
	for unix.Waitid(unix.P_PID, s.pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		continue
	}
	s.mu.Lock()
	_ = unix.Kill(-s.pid, unix.SIGKILL)
	s.gone = true
	why := s.why
	s.mu.Unlock()
	shortage := s.group.Shortage()
	s.group.End()
	_ = s.cmd.Wait()
	close(s.done)
	empty(s.temp)
	s.host.forget(s)
	state := s.cmd.ProcessState
	s.host.say(answer{ID: s.id, Exit: &Exit{Text: state.String(), Status: uint32(state.Sys().(syscall.WaitStatus)), Why: why, Shortage: shortage}})
}

// empty removes what is in a folder, which the host can not: folders in it may be closed to it.
func empty(dir *os.File) {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return
	}
	defer root.Close()
	entries, _ := fs.ReadDir(root.FS(), ".")
	for _, entry := range entries {
		_ = root.RemoveAll(entry.Name())
	}
}

// Between looks at what an agent has written, and their share of the time. The host does the same where it can look itself.
const (
	diskInterval = 2 * time.Second
	diskShare    = 20
)

func (s *started) watchDisk() {
	if s.limit == 0 {
		return
	}
	for wait := diskInterval; ; {
		select {
		case <-s.done:
			return
		case <-time.After(wait):
		}
		began := time.Now()
		if why := s.over(); why != "" {
			s.mu.Lock()
			s.why = "ended by the host: " + why
			s.mu.Unlock()
			s.signal(unix.SIGKILL)
			return
		}
		wait = max(diskInterval, diskShare*time.Since(began))
	}
}

// over says what of the disk the process holds is more than it may, "" when it is not.
func (s *started) over() string {
	s.folders.RLock()
	defer s.folders.RUnlock()
	if s.closed || s.limit == 0 {
		return ""
	}
	var folders []string
	for _, dir := range []*os.File{s.state, s.temp} {
		if dir != nil {
			folders = append(folders, fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
		}
	}
	size, err := sandbox.Held(s.pid, folders...)
	switch {
	case err != nil:
		return fmt.Sprintf("its folders cannot be looked at: %v", err)
	case size > s.limit:
		return fmt.Sprintf("its folders hold %d bytes, and its sandbox allows %s", size, sandbox.Size(s.limit))
	}
	return ""
}

// check refuses a start that root has no business with. The program and the rest of the policy are the host's to choose:
// the process has the agent's user, no capability and no way to gain one. That its memory is enforced by a cgroup is
// believed nobody: Group says so, or not.
func (r request) check() error {
	switch p := r.Policy; {
	case r.ID == 0:
		return errors.New("a process needs a number")
	case p == nil || len(r.Args) == 0:
		return errors.New("a process needs a program and a policy")
	case p.UID != 0 || p.GID != 0:
		return errors.New("an agent's user is not for the host to choose")
	case p.Nice < 0 || p.Nice > 19:
		return fmt.Errorf("a nice value of %d", p.Nice)
	case p.Memory < 0 || p.FileSize < 0 || p.Files < 0 || p.Processes < 0:
		return errors.New("a limit below 0")
	case p.Temp == "":
		return errors.New("a process needs a folder for temporary files")
	}
	for _, text := range append(r.Args[:len(r.Args):len(r.Args)], r.Env...) {
		if strings.ContainsRune(text, 0) {
			return errors.New("an argument or variable with a NUL")
		}
	}
	return checkProgram(r.Args[0])
}

// checkProgram refuses what is no plain program. One that changes its user could not (no new privileges), but nobody
// honest asks for it.
func checkProgram(path string) error {
	refused := fmt.Errorf("%s is not a program that an agent may be", path)
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return refused
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return refused
	}
	for _, dir := range []string{"/proc/", "/sys/", "/dev/"} {
		if strings.HasPrefix(real, dir) || strings.HasPrefix(path, dir) {
			return refused
		}
	}
	info, err := os.Stat(real)
	if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 || info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
		return refused
	}
	if n, _ := unix.Getxattr(real, "security.capability", nil); n > 0 {
		return refused
	}
	return nil
}
