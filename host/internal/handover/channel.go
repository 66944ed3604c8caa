package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// channelVariable of the environment has the number of the descriptor of a channel, in a process that is to take over.
const channelVariable = "POSTERN_HANDOVER_FD"

// channelFD is the descriptor in the new process: the first behind standard error.
const channelFD = 3

// The steps of a handover, in their order. Those of the new process and those of the owner take turns.
const (
	stepHello    = "hello"    // owner: here are the sockets and the lock
	stepQuiesce  = "quiesce"  // new: end what only one process can run (left out where there is nothing of that kind)
	stepQuiesced = "quiesced" // owner: it has ended
	stepReady    = "ready"    // new: I could take over
	stepYours    = "yours"    // owner: store, tables, ledger and control socket are closed
	stepRunning  = "running"  // new: I have them open
	stepFailed   = "failed"   // new: I give up, and this is why
)

// message is a packet of a channel.
type message struct {
	Step      string   `json:"step"`
	Listeners []string `json:"listeners,omitempty"` // addresses of the first descriptors; the last one is the lock
	Exclusive []string `json:"exclusive,omitempty"` // agents that only one process can run
	Error     string   `json:"error,omitempty"`
}

// maxPacket is the largest packet, in octets.
const maxPacket = 128 << 10

// maxError is how much of an error goes over a channel.
const maxError = 64 << 10

// maxDescriptors is what the kernel passes in one packet (SCM_MAX_FD).
const maxDescriptors = 253

// Channel is what owner and new process talk over: a pair of sockets that keeps packets apart.
type Channel struct{ conn *net.UnixConn }

// newChannel makes both ends. theirs is for a process to be started.
func newChannel() (ours *Channel, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs = os.NewFile(uintptr(pair[1]), "channel of the new process")
	ours, err = channelOf(os.NewFile(uintptr(pair[0]), "channel"))
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

// channelOf makes a channel of a descriptor, which it closes.
func channelOf(file *os.File) (*Channel, error) {
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	packets, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("not a unix socket"), conn.Close())
	}
	return &Channel{packets}, nil
}

// Close ends the channel. The other side sees that.
func (c *Channel) Close() error { return c.conn.Close() }

func (c *Channel) send(m message, fds ...int) error {
	packet, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err = c.conn.WriteMsgUnix(packet, rights, nil)
	return err
}

// receive waits for a packet until ctx ends. Descriptors that came with it are the caller's.
func (c *Channel) receive(ctx context.Context) (m message, files []*os.File, err error) {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	packet, rights := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(maxDescriptors*4))
	n, rn, _, _, err := c.conn.ReadMsgUnix(packet, rights)
	if ctx.Err() != nil {
		return m, nil, context.Cause(ctx)
	}
	if err != nil {
		return m, nil, err
	}
	if n == 0 {
		return m, nil, io.EOF
	}
	if files, err = descriptors(rights[:rn]); err != nil {
		return m, nil, err
	}
	return m, files, json.Unmarshal(packet[:n], &m)
}

func descriptors(rights []byte) (files []*os.File, err error) {
	if len(rights) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "handed over"))
		}
	}
	return files, nil
}

// expect waits for one of these steps. A failure that the other side tells of is an error in its words.
func (c *Channel) expect(ctx context.Context, steps ...string) (message, []*os.File, error) {
	m, files, err := c.receive(ctx)
	if err != nil {
		return m, files, err
	}
	if m.Step == stepFailed {
		return m, files, errors.New(m.Error)
	}
	for _, s := range steps {
		if m.Step == s {
			return m, files, nil
		}
	}
	return m, files, fmt.Errorf("the other process says %q where %s was due", m.Step, strings.Join(steps, " or "))
}

// Heir is this process's side while it takes over from an owner.
type Heir struct {
	Listeners *Listeners
	Ownership *Ownership
	Exclusive []string // agents that may only be started after Quiesce

	channel *Channel
}

// helloWait is how long the owner's first word may take.
const helloWait = 10 * time.Second

// Inherited is this process's side of a handover, where an owner has started it for that; nil where not.
func Inherited(ctx context.Context) (*Heir, error) {
	text, ok := os.LookupEnv(channelVariable)
	if !ok {
		return nil, nil
	}
	_ = os.Unsetenv(channelVariable)
	fd, err := strconv.Atoi(text)
	if err != nil || fd < channelFD {
		return nil, fmt.Errorf("%s is %q, which is no descriptor", channelVariable, text)
	}
	unix.CloseOnExec(fd)
	channel, err := channelOf(os.NewFile(uintptr(fd), "channel"))
	if err != nil {
		return nil, fmt.Errorf("taking over: %w", err)
	}
	return newHeir(ctx, channel)
}

func newHeir(ctx context.Context, channel *Channel) (*Heir, error) {
	ctx, cancel := context.WithTimeout(ctx, helloWait)
	defer cancel()
	m, files, err := channel.expect(ctx, stepHello)
	if err == nil && len(files) != len(m.Listeners)+1 {
		err = fmt.Errorf("%d descriptors for %d listeners and a lock", len(files), len(m.Listeners))
	}
	if err != nil {
		closeAll(files)
		return nil, errors.Join(fmt.Errorf("taking over: %w", err), channel.Close())
	}
	h := &Heir{Listeners: NewListeners(), Ownership: &Ownership{files[len(files)-1]}, Exclusive: m.Exclusive, channel: channel}
	for i, address := range m.Listeners {
		if err := h.Listeners.inherit(address, files[i]); err != nil {
			closeAll(files[i:])
			return nil, errors.Join(fmt.Errorf("taking over the socket of %s: %w", address, err), channel.Close())
		}
	}
	return h, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// Quiesce has the owner end its agents that are Exclusive, and waits until they have.
func (h *Heir) Quiesce(ctx context.Context) error { return h.turn(ctx, stepQuiesce, stepQuiesced) }

// Ready tells the owner that this process could take over, and waits until it may.
func (h *Heir) Ready(ctx context.Context) error { return h.turn(ctx, stepReady, stepYours) }

func (h *Heir) turn(ctx context.Context, say, wait string) error {
	err := h.channel.send(message{Step: say})
	if err == nil {
		_, _, err = h.channel.expect(ctx, wait)
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("the running host has given up or ended")
	}
	if err != nil {
		return fmt.Errorf("taking over: %w", err)
	}
	return nil
}

// Running tells the former owner that this process is the owner now.
func (h *Heir) Running() error {
	h.Ownership.sign()
	return errors.Join(h.channel.send(message{Step: stepRunning}), h.channel.Close())
}

// Fail tells the owner why this process gives up.
func (h *Heir) Fail(why error) {
	text := why.Error()
	_ = h.channel.send(message{Step: stepFailed, Error: text[:min(len(text), maxError)]})
	_ = h.channel.Close()
}

// Owner is what a host that is replaced does at the steps of a handover.
type Owner interface {
	// Quiesce ends the agents that only one process can run.
	Quiesce(ctx context.Context) error
	// Cede closes what only one process can have open, and goes on without it.
	Cede(ctx context.Context) error
	// Resume opens again what Cede has closed and starts what Quiesce has ended. The new process has ended by then.
	Resume() error
}

// Offer is what an owner hands over.
type Offer struct {
	Command   []string // of the new process, with arguments
	Listeners *Listeners
	Ownership *Ownership
	Exclusive []string // agents that only one process can run
	// Patience bounds each step of the new process: loading and starting agents, and opening the store.
	Patience time.Duration
	// Start starts the new process, which finds channel as its first descriptor behind standard error, where Command
	// is not for this process to start. signal sends it a signal, and wait waits for its end. nil: Command is started.
	Start func(channel *os.File) (pid int, signal func(unix.Signal), wait func() error, err error)
}

// Hand starts a new process and makes it the owner. On an error, which says in the new process's words why it could not
// take over, it has ended and everything is as it was, unless the error wraps ErrLost.
func Hand(ctx context.Context, owner Owner, o Offer) (pid int, err error) {
	channel, theirs, err := newChannel()
	if err != nil {
		return 0, fmt.Errorf("starting the new process: %w", err)
	}
	defer channel.Close()
	child, err := startChild(o, theirs)
	if err != nil {
		return 0, fmt.Errorf("starting the new process: %w", err)
	}
	h := &handing{owner: owner, offer: o, channel: channel}
	err = h.run(ctx)
	if err == nil {
		return child.pid, nil
	}
	err = child.explain(err)
	_ = channel.Close()
	child.end()
	if h.touched {
		if lost := owner.Resume(); lost != nil {
			err = fmt.Errorf("%w; and then %w: %w", err, ErrLost, lost)
		}
	}
	return 0, err
}

// ErrLost tells that an owner could neither hand over nor go on.
var ErrLost = errors.New("this process cannot go on as it was")

// handing is a handover under way.
type handing struct {
	owner   Owner
	offer   Offer
	channel *Channel
	touched bool // the owner has changed something
}

func (h *handing) run(ctx context.Context) error {
	if err := h.hello(); err != nil {
		return err
	}
	m, err := h.await(ctx, stepQuiesce, stepReady)
	if err != nil {
		return err
	}
	h.touched = true
	if m.Step == stepQuiesce {
		if err := h.owner.Quiesce(ctx); err != nil {
			return err
		}
		if err := h.channel.send(message{Step: stepQuiesced}); err != nil {
			return err
		}
		if _, err := h.await(ctx, stepReady); err != nil {
			return err
		}
	}
	if err := h.owner.Cede(ctx); err != nil {
		return err
	}
	if err := h.channel.send(message{Step: stepYours}); err != nil {
		return err
	}
	_, err = h.await(ctx, stepRunning)
	return err
}

func (h *handing) hello() error {
	addresses, fds := h.offer.Listeners.duplicates()
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	if len(fds) >= maxDescriptors {
		return fmt.Errorf("%d listening sockets, %d can be handed over", len(fds), maxDescriptors-1)
	}
	lock := int(h.offer.Ownership.file.Fd())
	return h.channel.send(message{Step: stepHello, Listeners: addresses, Exclusive: h.offer.Exclusive}, append(fds[:len(fds):len(fds)], lock)...)
}

func (h *handing) await(ctx context.Context, steps ...string) (message, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, h.offer.Patience,
		fmt.Errorf("the new process did not say %q within %s; the log of this one has where it stood still", steps[len(steps)-1], h.offer.Patience))
	defer cancel()
	m, files, err := h.channel.expect(ctx, steps...)
	closeAll(files)
	return m, err
}

// child is the new process as the owner sees it.
type child struct {
	signal func(unix.Signal)
	pid    int
	exited chan error
}

// startChild starts the new process with its end of the channel, which is closed here.
func startChild(o Offer, theirs *os.File) (*child, error) {
	defer theirs.Close()
	start := o.Start
	if start == nil {
		start = func(channel *os.File) (int, func(unix.Signal), func() error, error) {
			return startCommand(o.Command, channel)
		}
	}
	pid, signal, wait, err := start(theirs)
	if err != nil {
		return nil, err
	}
	c := &child{signal: signal, pid: pid, exited: make(chan error, 1)}
	go func() { c.exited <- wait() }()
	return c, nil
}

func startCommand(command []string, theirs *os.File) (pid int, signal func(unix.Signal), wait func() error, err error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = append(os.Environ(), channelVariable+"="+strconv.Itoa(channelFD))
	if err := cmd.Start(); err != nil {
		return 0, nil, nil, err
	}
	return cmd.Process.Pid, func(s unix.Signal) { _ = cmd.Process.Signal(s) }, cmd.Wait, nil
}

// exitWait is how long a process may take to end that has said it gives up, or closed the channel.
const exitWait = 5 * time.Second

// explain says how the process ended where that is all that is known: it has closed the channel without a word.
func (c *child) explain(err error) error {
	if !errors.Is(err, io.EOF) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		return err
	}
	select {
	case ended := <-c.exited:
		c.exited <- ended
		if ended == nil {
			return errors.New("the new process ended without a word")
		}
		return fmt.Errorf("the new process ended without a word (%w); what it wrote is in the log of this one", ended)
	case <-time.After(exitWait):
		return errors.New("the new process does not talk to this one")
	}
}

// end waits for the end of the process, and kills it when it does not come: nothing of it may be left when the owner
// goes on. SIGQUIT has it write down first where it stands still.
func (c *child) end() {
	for _, s := range []unix.Signal{unix.SIGQUIT, unix.SIGKILL} {
		select {
		case <-c.exited:
			return
		case <-time.After(exitWait):
			c.signal(s)
		}
	}
	<-c.exited
}
