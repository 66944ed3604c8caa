package agent

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/host/internal/cgroup"
	"github.com/posternmail/postern/host/internal/privsep"
	"github.com/posternmail/postern/host/internal/sandbox"
)

// Descriptors that a process finds open beside the first three.
const (
	lifelineFD = 3 // read end of a pipe: its end means that the host has gone
	sideFD     = 4 // one end of a SOCK_SEQPACKET pair: tickets with descriptors
)

// outputGrace is how long a dead process's output is still read. Only a descendant that left the process group
// can keep it open longer.
const outputGrace = time.Second

// child is one operating system process of an agent, in a session and process group of its own.
type child struct {
	starter
	cmd      *exec.Cmd
	foreign  *privsep.Process // it, where parent has started it
	policy   sandbox.Policy
	warnings []string // what the kernel lacks of the policy; fixed once it runs
	pid      int
	limits   string          // in force, in words; fixed once it runs
	oomKills int             // of the machine, before it started
	shortage cgroup.Shortage // that ended it, as its cgroup knows; valid once it was reaped
	lifeline *os.File        // our end; closing it tells the process that we have gone
	side     *net.UnixConn   // our end of the side socket
	stdout   *os.File
	stderr   *os.File
	exited   chan struct{} // closed when the process has been reaped
	result   string        // how it ended, as the kernel tells it; valid once it was reaped
	status   syscall.WaitStatus
	explain  func() string // more about its end than the kernel tells; may be nil
	state    string        // how it ended; valid after exited
	killed   bool          // by SIGKILL; valid after exited
	output   sync.WaitGroup

	mu   sync.Mutex
	gone bool   // its pid may belong to a stranger from now on
	ours bool   // the host sent SIGKILL while it lived; fixed after exited
	why  string // the host ended it, "" if it did not say
}

// starter is who starts processes of an agent.
type starter struct {
	parent *privsep.Link // that starts them as users of their own; nil: this process does
	groups *cgroup.Tree  // of this process; nil: none
	label  string        // of the agent
}

// spawn starts a command with an environment of exactly env, which may do what policy says. Its output must be
// read, with read, both ways. explain, if not nil, is called when it has ended.
func (s starter) spawn(command, env []string, policy sandbox.Policy, explain func() string) (*child, error) {
	c := &child{starter: s, policy: policy, explain: explain, exited: make(chan struct{})}
	c.output.Add(2)
	theirs, err := c.plumb()
	defer closeAll(theirs)
	if err != nil {
		c.close()
		return nil, err
	}
	c.cmd = exec.Command(command[0], command[1:]...)
	c.cmd.Env = policy.Environment(env)
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = theirs[0], theirs[1], theirs[2]
	c.cmd.ExtraFiles = theirs[3:]
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := c.start(); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// plumb makes the descriptors between host and process and answers with those of the process: stdin, stdout,
// stderr, lifeline and side socket.
func (c *child) plumb() (theirs []*os.File, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, null)
	for _, ours := range []**os.File{&c.stdout, &c.stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return theirs, fmt.Errorf("making a pipe: %w", err)
		}
		*ours, theirs = r, append(theirs, w)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return theirs, fmt.Errorf("making the lifeline: %w", err)
	}
	c.lifeline, theirs = w, append(theirs, r)
	side, err := c.sideSocket()
	if err != nil {
		return theirs, fmt.Errorf("making the side socket: %w", err)
	}
	return append(theirs, side), nil
}

// sideSocket makes the pair, keeps our end and answers with the other.
func (c *child) sideSocket() (*os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "side socket of the agent")
	ours := os.NewFile(uintptr(pair[0]), "side socket")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, err
	}
	c.side = conn.(*net.UnixConn)
	return theirs, nil
}

// start runs the command and everything that must happen on the thread that started it: the kernel sends
// Pdeathsig when that thread ends, not when the host does, so it is kept until the process has gone.
func (c *child) start() error {
	lack := ""
	if c.parent != nil {
		if lack = c.policy.Blocked(); lack == "" {
			return c.entrust()
		}
		lack = fmt.Sprintf("it runs as the host's user: a user of its own has no access to %s", lack)
		if c.policy.Required {
			return fmt.Errorf("starting %s: sandbox: %s", c.cmd.Path, lack)
		}
	}
	started, program := make(chan error), c.cmd.Path
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		c.oomKills = sandbox.OutOfMemoryKills()
		group, limits := sandbox.Group(c.groups, c.label, c.cmd, &c.policy)
		warnings, err := sandbox.Start(c.cmd, c.policy)
		if err != nil {
			group.End()
			started <- err
			return
		}
		c.pid, c.warnings, c.limits = c.cmd.Process.Pid, warnings, limits
		started <- nil
		c.reap(group)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("starting %s: %w", program, err)
	}
	if lack != "" {
		c.warnings = append(c.warnings, lack)
	}
	return nil
}

// entrust has the parent of the host start the command, as a user that the host cannot become.
func (c *child) entrust() (err error) {
	c.oomKills = sandbox.OutOfMemoryKills()
	if c.foreign, c.warnings, err = c.parent.Start(c.cmd, c.policy); err != nil {
		return fmt.Errorf("starting %s: %w", c.cmd.Path, err)
	}
	c.pid, c.limits = c.foreign.PID, c.foreign.Limits
	go func() {
		<-c.foreign.Done
		c.mu.Lock()
		c.gone = true
		if c.why == "" {
			c.why = c.foreign.Exit.Why
		}
		c.ours = c.ours || c.foreign.Exit.Why != ""
		c.shortage = c.foreign.Exit.Shortage
		c.mu.Unlock()
		c.ended(c.foreign.Exit.Text, c.foreign.Status())
	}()
	return nil
}

// reap waits for the end of the process and ends what it left in its group. The group is signalled before the
// process is reaped: until then its number cannot become that of a stranger. What has left the group of the session is
// still in the cgroup, and ends with that.
func (c *child) reap(group *cgroup.Group) {
	for {
		err := unix.Waitid(unix.P_PID, c.pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	c.mu.Lock()
	_ = unix.Kill(-c.pid, unix.SIGKILL)
	c.gone = true
	c.mu.Unlock()
	c.shortage = group.Shortage()
	group.End()
	_ = c.cmd.Wait()
	status, _ := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	c.ended(c.cmd.ProcessState.String(), status)
}

// ended reads what is left of the output and says how the process ended.
func (c *child) ended(result string, status syscall.WaitStatus) {
	c.result, c.status = result, status
	deadline := time.Now().Add(outputGrace)
	_ = c.stdout.SetReadDeadline(deadline)
	_ = c.stderr.SetReadDeadline(deadline)
	c.output.Wait()
	c.state = c.ending()
	c.killed = status.Signaled() && status.Signal() == unix.SIGKILL
	close(c.exited)
}

// ending says how the process ended.
func (c *child) ending() string {
	text := c.result
	c.mu.Lock()
	why, ours := c.why, c.ours
	c.mu.Unlock()
	if c.status.Signal() == unix.SIGKILL && !ours {
		why = c.outOfMemory()
	}
	if why == "" && c.explain != nil && (!c.status.Exited() || c.status.ExitStatus() != 0) {
		why = c.explain()
	}
	if why != "" {
		text += " (" + why + ")"
	}
	return text
}

// outOfMemory says so where the kernel has ended the process for want of memory, or may have.
func (c *child) outOfMemory() string {
	switch {
	case c.shortage == cgroup.Own:
		return "out of memory: it may have " + sandbox.Size(c.policy.Memory) + ", and the kernel has ended it"
	case c.shortage == cgroup.Elsewhere:
		return "out of memory: the kernel has ended it to get some back for others"
	case !c.policy.Grouped && sandbox.OutOfMemoryKills() > c.oomKills:
		return "out of memory: the kernel has ended a process meanwhile to get some back"
	}
	return ""
}

// kill ends the process group at once, for a reason that its state will show.
func (c *child) kill(why string) {
	c.mu.Lock()
	c.why = why
	c.mu.Unlock()
	c.signal(unix.SIGKILL)
}

// read gives one output of the process to f until it ends.
func (c *child) read(file *os.File, f func(*os.File)) {
	go func() {
		defer c.output.Done()
		f(file)
	}()
}

// signal sends a signal to the whole process group. It does nothing when the process has ended.
func (c *child) signal(sig unix.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.gone {
		c.ours = c.ours || sig == unix.SIGKILL
		if c.foreign != nil {
			c.foreign.Signal(sig)
			return
		}
		_ = unix.Kill(-c.pid, sig)
	}
}

// close releases our ends. The process sees the end of its lifeline.
func (c *child) close() {
	closeAll([]*os.File{c.stdout, c.stderr, c.lifeline})
	if c.side != nil {
		_ = c.side.Close()
	}
}

// closeAll closes what is not nil.
func closeAll(files []*os.File) {
	for _, f := range slices.DeleteFunc(slices.Clone(files), func(f *os.File) bool { return f == nil }) {
		_ = f.Close()
	}
}
