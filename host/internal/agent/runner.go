package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/host/internal/sandbox"
)

// maxForeignLines is how many lines a process may print before its handshake line. A print in an initializer is
// common and harmless.
const maxForeignLines = 20

// handshakeLine is what go-plugin understands: core version, protocol version, network, address, protocol and,
// optionally, more.
var handshakeLine = regexp.MustCompile(`^\d+\|\d+\|(unix|tcp)\|[^|]+\|grpc(\|.*)?$`)

// agentRunner starts a process for go-plugin, which sees nothing of it but the handshake line. It closes what
// go-plugin by itself leaves open; docs/protocol.md names the dangers.
type agentRunner struct {
	command []string
	env     []string // beside what go-plugin adds
	dir     string   // folder for the socket
	policy  sandbox.Policy
	starter starter
	beside  bool // what the sandbox lacks is said elsewhere
	logs    *logs

	handshake *io.PipeReader // to go-plugin
	stdout    *io.PipeWriter
	stderr    *io.PipeReader // to go-plugin: empty, ends with the process
	ended     *io.PipeWriter

	protocol atomic.Int64 // of the handshake, 0 before it

	mu       sync.Mutex
	socket   string // of the handshake
	child    *child
	stopped  bool // Start is refused from now on
	noise    string
	tooNoisy bool
}

var _ runner.Runner = (*agentRunner)(nil)

// newRunner makes a runner. go-plugin's part of the environment comes with Start.
func newRunner(command, env []string, dir string, logs *logs) *agentRunner {
	r := &agentRunner{command: command, env: env, dir: dir, logs: logs}
	r.handshake, r.stdout = io.Pipe()
	r.stderr, r.ended = io.Pipe()
	return r
}

// Start implements runner.Runner.
func (r *agentRunner) Start(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return errors.New("stopped before it started")
	}
	c, err := r.starter.spawn(r.command, r.env, r.policy, r.outOfMemory)
	if err != nil {
		return err
	}
	level := hclog.Warn
	if r.beside {
		level = hclog.Debug
	}
	for _, text := range c.warnings {
		r.logs.write(entry{level: level, message: "sandbox: " + text, text: "sandbox: " + text})
	}
	r.child = c
	r.logs.with("pid", c.pid)
	c.read(c.stdout, r.readStdout)
	c.read(c.stderr, func(f *os.File) { r.logs.readErrors(f) })
	go r.watchDisk(c)
	go func() {
		<-c.exited
		_ = r.ended.Close()
		_ = r.stdout.Close()
	}()
	return nil
}

// Between looks at what an agent has written. A file by itself cannot become too large; that many do is noticed late, and
// what the disk can take in that time is lost. The looks take diskShare of the host's time at most.
const (
	diskInterval = 2 * time.Second
	diskShare    = 20
)

// watchDisk ends a process that has come to hold more disk than it may. One with a user of its own, whoever started it as
// that user looks at.
func (r *agentRunner) watchDisk(c *child) {
	if r.policy.FileSize == 0 || c.foreign != nil {
		return
	}
	for wait := diskInterval; ; {
		select {
		case <-c.exited:
			return
		case <-time.After(wait):
		}
		began := time.Now()
		size, err := sandbox.Held(c.pid, r.policy.State, r.policy.Temp)
		switch {
		case err != nil:
			c.kill("ended by the host: its folders cannot be looked at: " + err.Error())
			return
		case size > r.policy.FileSize:
			c.kill(fmt.Sprintf("ended by the host: its folders hold %d bytes, and its sandbox allows %s", size, sandbox.Size(r.policy.FileSize)))
			return
		}
		wait = max(diskInterval, diskShare*time.Since(began))
	}
}

// outOfMemory says so where the process has ended for want of memory, which the kernel refuses rather than ends it.
func (r *agentRunner) outOfMemory() string {
	if r.policy.Memory == 0 || !r.logs.outOfMemory() {
		return ""
	}
	return "out of memory: it may have " + sandbox.Size(r.policy.Memory)
}

// readStdout passes the handshake line on to go-plugin, skips what a process prints before it, and drains what
// follows it, however long its lines are: a process that fills a pipe nobody reads stands still.
func (r *agentRunner) readStdout(f *os.File) {
	foreign, shaken := 0, false
	eachLine(f, 4<<10, func(line []byte, _ bool) {
		switch text := printable(string(line)); {
		case shaken:
			r.logs.write(entry{level: hclog.Debug, message: text, text: "stdout: " + text})
		case foreign < maxForeignLines && handshakeLine.MatchString(strings.TrimSpace(text)):
			shaken = true
			r.protocol.Store(protocolOf(text))
			_, _ = fmt.Fprintln(r.stdout, text)
		default:
			foreign++
			r.foreign(text, foreign)
		}
	})
	_ = r.stdout.Close()
}

// protocolOf is the protocol in a handshake line, the second of its fields.
func protocolOf(line string) int64 {
	version, _ := strconv.ParseInt(strings.Split(line, "|")[1], 10, 32)
	return version
}

// foreign handles a line before the handshake line.
func (r *agentRunner) foreign(text string, count int) {
	r.logs.write(entry{level: hclog.Warn, message: text, text: "stdout: " + text,
		pairs: []any{"reason", "printed to stdout before the handshake line"}})
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.noise == "" {
		r.noise = text
	}
	if count == maxForeignLines {
		r.tooNoisy = true
		_ = r.stdout.Close() // go-plugin gives up now instead of at the end of its timeout
	}
}

// Diagnose implements runner.Runner.
func (r *agentRunner) Diagnose(context.Context) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.tooNoisy:
		return fmt.Sprintf("it printed %d lines to stdout and none was the handshake line; the first was %q",
			maxForeignLines, r.noise)
	case r.noise != "":
		return fmt.Sprintf("it printed %q to stdout and no handshake line", r.noise)
	}
	return ""
}

// Stdout implements runner.Runner.
func (r *agentRunner) Stdout() io.ReadCloser { return r.handshake }

// Stderr implements runner.Runner. go-plugin's own parser can be crashed by a line, so it gets none.
func (r *agentRunner) Stderr() io.ReadCloser { return r.stderr }

// Name implements runner.Runner.
func (r *agentRunner) Name() string { return filepath.Base(r.command[0]) }

// started answers with the process, nil before Start.
func (r *agentRunner) started() *child {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.child
}

// Wait implements runner.AttachedRunner.
func (r *agentRunner) Wait(context.Context) error {
	if c := r.started(); c != nil {
		<-c.exited
	}
	return nil
}

// Kill implements runner.AttachedRunner. It does nothing: go-plugin calls it two seconds after it asked the
// process to end, which is short for one that cleans up. process.stop knows better, and is never without end.
func (r *agentRunner) Kill(context.Context) error { return nil }

// destroy ends the process at once, or keeps it from being started.
func (r *agentRunner) destroy() {
	r.mu.Lock()
	r.stopped = true
	c := r.child
	r.mu.Unlock()
	if c == nil {
		_ = r.stdout.Close()
		_ = r.ended.Close()
		return
	}
	c.signal(unix.SIGKILL)
}

// ID implements runner.AttachedRunner.
func (r *agentRunner) ID() string {
	if c := r.started(); c != nil {
		return strconv.Itoa(c.pid)
	}
	return ""
}

// PluginToHost implements runner.AddrTranslator. Only a socket below the folder of this process is accepted: an
// agent may not have the host talk to another agent's socket.
func (r *agentRunner) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" || !strings.HasPrefix(filepath.Clean(address), r.dir+"/") {
		return "", "", fmt.Errorf("it listens at %s %s instead of a socket in PLUGIN_UNIX_SOCKET_DIR", network, address)
	}
	r.mu.Lock()
	r.socket = address
	c := r.child
	r.mu.Unlock()
	if c != nil && c.foreign != nil { // whose folder this process may not enter; its parent looks what it is
		return network, address, nil
	}
	info, err := os.Lstat(address)
	if err != nil {
		return "", "", fmt.Errorf("its socket: %w", err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return "", "", fmt.Errorf("%s is not a socket", address)
	}
	return network, address, nil
}

// dial connects to the socket of the process.
func (r *agentRunner) dial(ctx context.Context, _ string) (net.Conn, error) {
	r.mu.Lock()
	c, address := r.child, r.socket
	r.mu.Unlock()
	if c != nil && c.foreign != nil {
		return c.foreign.Dial(address)
	}
	return (&net.Dialer{}).DialContext(ctx, "unix", address)
}

// HostToPlugin implements runner.AddrTranslator.
func (r *agentRunner) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}
