package privsep

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/host/internal/cgroup"
	"github.com/posternmail/postern/host/internal/sandbox"
)

// Options of a Parent.
type Options struct {
	User    sandbox.Credential // of the hosts
	DataDir string             // absolute; it is the user's
	Command []string           // that starts a host
	Sockets []*os.File         // of the service manager, for the first host: descriptors 3 and following
	Groups  *cgroup.Tree       // for agents; nil: none
	Logger  hclog.Logger
}

// Bounds of what hosts may ask for.
const (
	maxHosts     = 16
	maxProcesses = 1024 // of one host
)

// Parent starts hosts, and for them what takes root.
type Parent struct {
	Options
	dataDir  *os.File
	finished chan int // exit status of the main host

	mu    sync.Mutex
	main  *host
	hosts map[*host]bool
}

// host is one that the parent has started.
type host struct {
	parent  *Parent
	cmd     *exec.Cmd
	packets packets
	sending sync.Mutex
	slots   chan struct{} // one for each request under way: a host that asks faster waits
	former  *host         // that has asked for this one, under the number
	number  uint64

	mu        sync.Mutex
	gone      bool
	processes map[uint64]*started
}

// Run starts the first host, passes signals on to the one that is the service, and answers with its exit status when it
// has ended. Nothing that the parent has started outlives that.
func Run(o Options, signals <-chan os.Signal) (status int, err error) {
	p := &Parent{Options: o, finished: make(chan int, 1), hosts: map[*host]bool{}}
	if p.dataDir, err = os.Open(o.DataDir); err != nil {
		return 0, err
	}
	defer p.dataDir.Close()
	if err := p.removeLeftovers(); err != nil {
		o.Logger.Warn("what a former host has left cannot be removed", "error", err)
	}
	first, err := p.startHost(&host{}, o.Sockets, "LISTEN_PID=", "LISTEN_FDS="+strconv.Itoa(len(o.Sockets)))
	closeAll(o.Sockets)
	if err != nil {
		return 0, fmt.Errorf("starting the host: %w", err)
	}
	p.setMain(first)
	for {
		select {
		case sig := <-signals:
			p.pass(sig.(syscall.Signal))
		case status = <-p.finished:
			p.killAll()
			p.Groups.Close()
			return status, nil
		}
	}
}

func (p *Parent) setMain(h *host) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.main = h
	if !p.hosts[h] { // it has ended meanwhile
		p.finish(h)
	}
}

func (p *Parent) finish(h *host) {
	select {
	case p.finished <- exitStatus(h.cmd):
	default:
	}
}

// exitStatus as a shell tells it.
func exitStatus(cmd *exec.Cmd) int {
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

func (p *Parent) pass(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hosts[p.main] {
		_ = p.main.cmd.Process.Signal(sig)
	}
}

// killAll ends what is left: drainers, and what they have started.
func (p *Parent) killAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for h := range p.hosts {
		_ = h.cmd.Process.Kill()
		h.killAll()
	}
}

// startHost starts a host that finds files behind standard error and variables in its environment, and serves it.
func (p *Parent) startHost(h *host, files []*os.File, variables ...string) (*host, error) {
	ours, theirs, err := newPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	h.parent, h.packets, h.slots, h.processes = p, ours, make(chan struct{}, 64), map[uint64]*started{}
	h.cmd = exec.Command(p.Command[0], p.Command[1:]...)
	h.cmd.Stdin, h.cmd.Stdout, h.cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	h.cmd.ExtraFiles = append(files[:len(files):len(files)], theirs)
	h.cmd.Env = append(append(os.Environ(), variables...), linkVariable+"="+strconv.Itoa(3+len(files)))
	p.mu.Lock()
	full := len(p.hosts) >= maxHosts
	p.mu.Unlock()
	if full {
		_ = ours.conn.Close()
		return nil, fmt.Errorf("%d hosts run already", maxHosts)
	}
	if err := onThread(func() error { return p.launchHost(h) }, h.reap); err != nil {
		_ = ours.conn.Close()
		return nil, err
	}
	go h.serve()
	return h, nil
}

func (p *Parent) launchHost(h *host) error {
	if err := sandbox.StartAs(h.cmd, p.User); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hosts[h] = true
	return nil
}

// onThread calls start, and after it reap in the background, on one thread that lives as long: with it would end what
// start has started (PR_SET_PDEATHSIG).
func onThread(start func() error, reap func()) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := start()
		result <- err
		if err == nil {
			reap()
		}
	}()
	return <-result
}

// reap waits for the end of a host and ends what it has had started.
func (h *host) reap() {
	_ = h.cmd.Wait()
	p := h.parent
	h.killAll()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.hosts, h)
	if p.main == h {
		p.finish(h)
	}
	if h.former != nil {
		state := h.cmd.ProcessState
		go h.former.say(answer{ID: h.number, Exit: &Exit{Text: state.String(), Status: uint32(state.Sys().(syscall.WaitStatus))}})
	}
}

// killAll ends the processes of a host, and takes no more requests of it.
func (h *host) killAll() {
	_ = h.packets.conn.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gone = true
	for _, s := range h.processes {
		s.signal(unix.SIGKILL)
	}
}

// serve answers requests until the host has gone.
func (h *host) serve() {
	for {
		var r request
		files, err := h.packets.receive(&r)
		if err != nil && !errors.Is(err, errPacket) {
			closeAll(files)
			h.killAll()
			return
		}
		h.slots <- struct{}{}
		go func() {
			defer func() { <-h.slots }()
			h.answer(r, files, err)
		}()
	}
}

// answer does what a request asks for. files are closed in the end.
func (h *host) answer(r request, files []*os.File, err error) {
	defer closeAll(files)
	a, out := answer{}, (*os.File)(nil)
	if err == nil {
		a, out, err = h.do(r, files)
	}
	a.ID = r.ID
	if err != nil {
		a.Error = err.Error()
		h.parent.Logger.Warn("the host asked for what it did not get", "kind", r.Kind, "error", err)
	}
	if out != nil {
		defer out.Close()
		h.say(a, out)
		return
	}
	h.say(a)
}

// say sends an answer. A host that has gone, or reads none, misses it.
func (h *host) say(a answer, files ...*os.File) {
	h.sending.Lock()
	defer h.sending.Unlock()
	_ = h.packets.send(a, files...)
}

func (h *host) do(r request, files []*os.File) (a answer, out *os.File, err error) {
	switch r.Kind {
	case kindStart:
		a, err = h.start(r, files)
	case kindSignal:
		err = h.signal(r)
	case kindDial:
		out, err = h.dial(r)
	case kindHost:
		a, err = h.another(r, files)
	case kindMain:
		h.parent.setMain(h)
	default:
		err = fmt.Errorf("no such request: %q", r.Kind)
	}
	return a, out, err
}

// another starts a host with the command that this process knows itself. Its end is told to the one that has asked.
func (h *host) another(r request, files []*os.File) (answer, error) {
	if r.ID == 0 || len(files) != 1 {
		return answer{}, errors.New("another host needs one descriptor")
	}
	next, err := h.parent.startHost(&host{former: h, number: r.ID}, files, handoverVariable+"=3")
	if err != nil {
		return answer{}, err
	}
	return answer{PID: next.cmd.Process.Pid}, nil
}

// handoverVariable is that of package handover.
const handoverVariable = "POSTERN_HANDOVER_FD"

func (h *host) process(id uint64) (*started, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.processes[id]; s != nil && s.pid != 0 {
		return s, nil
	}
	return nil, errors.New("no such process")
}

func (h *host) signal(r request) error {
	if r.Signal < 1 || r.Signal > 31 {
		return fmt.Errorf("no such signal: %d", r.Signal)
	}
	if s, err := h.process(r.Process); err == nil {
		s.signal(unix.Signal(r.Signal))
	}
	p := h.parent
	p.mu.Lock()
	defer p.mu.Unlock()
	for next := range p.hosts {
		if next.former == h && next.number == r.Process {
			_ = next.cmd.Process.Signal(syscall.Signal(r.Signal))
		}
	}
	return nil // one that has ended is no mistake: its host will hear of it
}

// dial connects to a socket of an agent's process: folders that agents make are closed to the host.
func (h *host) dial(r request) (*os.File, error) {
	s, err := h.process(r.Process)
	if err != nil {
		return nil, err
	}
	s.folders.RLock()
	defer s.folders.RUnlock()
	if s.closed {
		return nil, errors.New("it has ended")
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	fd, err := unix.Openat2(int(s.temp.Fd()), r.Path, &how)
	if err != nil {
		return nil, fmt.Errorf("its socket: %w", err)
	}
	defer unix.Close(fd)
	var info unix.Stat_t
	if err := unix.Fstat(fd, &info); err != nil {
		return nil, fmt.Errorf("its socket: %w", err)
	}
	if info.Mode&unix.S_IFMT != unix.S_IFSOCK || info.Uid != s.uid {
		return nil, errors.New("its socket: not a socket of the agent")
	}
	return connect(fd)
}

func connect(socket int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	// Not blocking: an agent that accepts nothing may not keep this process waiting.
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d", socket)}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("connecting: %w", err)
	}
	return os.NewFile(uintptr(fd), "connection"), nil
}

// stateFolder opens the state folder of an agent by its name, and the folder of all of them: nothing on the way may be
// a symbolic link. The path is the host's, and only its last name is believed.
func (p *Parent) stateFolder(path string) (names, state *os.File, err error) {
	name := filepath.Base(path)
	if path != filepath.Join(p.DataDir, "agents", name) || strings.HasPrefix(name, ".") {
		return nil, nil, errors.New("the state folder is not one of an agent's below data_dir")
	}
	if names, err = openFolder(p.dataDir, "agents"); err != nil {
		return nil, nil, err
	}
	if state, err = openFolder(names, name); err != nil {
		names.Close()
		return nil, nil, err
	}
	return names, state, nil
}

func openFolder(in *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(in.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "opening", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
