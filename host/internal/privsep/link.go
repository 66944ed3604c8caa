package privsep

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/host/internal/sandbox"
)

// linkVariable of the environment has the number of the descriptor of a link.
const linkVariable = "POSTERN_PARENT_FD"

// Link is a host's side of its connection to the parent.
type Link struct {
	packets packets

	mu        sync.Mutex
	last      uint64
	lost      bool
	waiting   map[uint64]chan reply
	processes map[uint64]*Process
}

type reply struct {
	answer
	files []*os.File
}

// errLost: the parent has ended, and this process is about to.
var errLost = errors.New("the parent process has gone")

// Inherited is the link that the parent has given this process, nil where none has started it.
func Inherited() (*Link, error) {
	text, ok := os.LookupEnv(linkVariable)
	if !ok {
		return nil, nil
	}
	_ = os.Unsetenv(linkVariable)
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("%s is %q, which is no descriptor", linkVariable, text)
	}
	unix.CloseOnExec(fd)
	p, err := packetsOf(os.NewFile(uintptr(fd), "link"))
	if err != nil {
		return nil, fmt.Errorf("talking to the parent process: %w", err)
	}
	return newLink(p), nil
}

func newLink(p packets) *Link {
	l := &Link{packets: p, waiting: map[uint64]chan reply{}, processes: map[uint64]*Process{}}
	go l.read()
	return l
}

// read passes answers on until the parent has gone.
func (l *Link) read() {
	for {
		var r reply
		files, err := l.packets.receive(&r.answer)
		if err != nil {
			closeAll(files)
			l.lose()
			return
		}
		r.files = files
		l.mu.Lock()
		if r.Exit != nil {
			if p := l.processes[r.ID]; p != nil {
				p.end(*r.Exit)
				delete(l.processes, r.ID)
			}
		} else if to := l.waiting[r.ID]; to != nil {
			delete(l.waiting, r.ID)
			to <- r
		}
		l.mu.Unlock()
	}
}

func (l *Link) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = true
	for _, to := range l.waiting {
		to <- reply{answer: answer{Error: errLost.Error()}}
	}
	for _, p := range l.processes {
		p.end(Exit{Text: errLost.Error(), Status: uint32(unix.SIGKILL)})
	}
	l.waiting, l.processes = nil, nil
}

// ask sends a request and waits for the answer. p, if not nil, is the process that it starts.
func (l *Link) ask(r request, p *Process, files ...*os.File) (reply, error) {
	to := make(chan reply, 1)
	l.mu.Lock()
	if l.lost {
		l.mu.Unlock()
		return reply{}, errLost
	}
	l.last++
	r.ID = l.last
	l.waiting[r.ID] = to
	if p != nil {
		p.id, l.processes[r.ID] = r.ID, p
	}
	l.mu.Unlock()
	if err := l.packets.send(r, files...); err != nil {
		l.forget(r.ID)
		return reply{}, fmt.Errorf("asking the parent process: %w", err)
	}
	a := <-to
	if a.Error != "" {
		closeAll(a.files)
		l.forget(r.ID)
		return a, errors.New(a.Error)
	}
	return a, nil
}

func (l *Link) forget(id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiting, id)
	delete(l.processes, id)
}

// Process is one that the parent has started.
type Process struct {
	PID    int
	Limits string        // in force, in words
	Exit   Exit          // valid after Done
	Done   chan struct{} // closed when it has been reaped, with all of its group

	link *Link
	id   uint64
	temp string
}

func newProcess(l *Link) *Process { return &Process{link: l, Done: make(chan struct{})} }

func (p *Process) end(e Exit) {
	p.Exit = e
	close(p.Done)
}

// Start has the parent start a command of an agent as the agent's user. The warnings say what the kernel could not do.
func (l *Link) Start(cmd *exec.Cmd, policy sandbox.Policy) (*Process, []string, error) {
	if cmd.Err != nil {
		return nil, nil, cmd.Err
	}
	temp, err := os.Open(policy.Temp)
	if err != nil {
		return nil, nil, fmt.Errorf("the folder for temporary files: %w", err)
	}
	defer temp.Close()
	files := []*os.File{cmd.Stdin.(*os.File), cmd.Stdout.(*os.File), cmd.Stderr.(*os.File)}
	files = append(append(files, cmd.ExtraFiles...), temp)
	p := newProcess(l)
	p.temp = policy.Temp
	args := append([]string{cmd.Path}, cmd.Args[1:]...)
	a, err := l.ask(request{Kind: kindStart, Args: args, Env: cmd.Env, Policy: &policy}, p, files...)
	if err != nil {
		return nil, nil, err
	}
	p.PID, p.Limits = a.PID, a.Limits
	return p, a.Warnings, nil
}

// Host has the parent start another host, which finds channel as its first descriptor behind standard error.
func (l *Link) Host(channel *os.File) (*Process, error) {
	p := newProcess(l)
	a, err := l.ask(request{Kind: kindHost}, p, channel)
	if err != nil {
		return nil, err
	}
	p.PID = a.PID
	return p, nil
}

// Main tells the parent that this process is the service from now on: what is signalled to the parent is for it, and
// the parent ends with it.
func (l *Link) Main() error {
	_, err := l.ask(request{Kind: kindMain}, nil)
	return err
}

// Signal sends a signal to the process's group, unless it has ended.
func (p *Process) Signal(sig unix.Signal) {
	_, _ = p.link.ask(request{Kind: kindSignal, Process: p.id, Signal: int(sig)}, nil)
}

// Wait waits for the end of the process, and tells of it as exec.Cmd.Wait does.
func (p *Process) Wait() error {
	<-p.Done
	if p.Exit.Status != 0 {
		return errors.New(p.Exit.Text)
	}
	return nil
}

// Status is valid after Done.
func (p *Process) Status() syscall.WaitStatus { return syscall.WaitStatus(p.Exit.Status) }

// Dial connects to a socket below the process's folder for temporary files, which only the agent's user may enter.
func (p *Process) Dial(path string) (net.Conn, error) {
	below, err := filepath.Rel(p.temp, path)
	if err != nil {
		return nil, err
	}
	a, err := p.link.ask(request{Kind: kindDial, Process: p.id, Path: below}, nil)
	if err != nil {
		return nil, err
	}
	defer closeAll(a.files)
	if len(a.files) != 1 {
		return nil, errors.New("the parent process gave no connection")
	}
	return net.FileConn(a.files[0])
}
