// Package rig starts the real host with real agent processes for the end-to-end tests: it builds the binaries
// once, writes a configuration, and drives the host from outside, as its users do.
package rig

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var (
	buildOnce sync.Once
	buildErr  error
	binDir    string
)

// Bin builds the host and all agents once a test run and answers with the folder they are in.
func Bin(t testing.TB) string {
	t.Helper()
	buildOnce.Do(func() {
		binDir, buildErr = build()
	})
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	return binDir
}

// build puts the binaries where `make build` does, so that a test run and a user run the same files. POSTERN_BIN names a
// folder of binaries that are there already.
func build() (string, error) {
	if dir := os.Getenv("POSTERN_BIN"); dir != "" {
		return dir, nil
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("make", "-s", "build")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make build: %w\n%s", err, out)
	}
	return filepath.Join(root, "bin"), nil
}

// Root is the top folder of the repository.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("no go.mod above the working folder")
		}
		dir = parent
	}
}

// Host is a running host process.
type Host struct {
	Dir    string // its folder: config.hcl, data, drop
	Addr   string // of its first receive connector
	Config string // path of its configuration
	Binary string // the program it is started as; "" is the one of the test run
	Cgroup string // folder of the cgroup that it is started in; "": that of the tests

	t   testing.TB
	bin string
	mu  sync.Mutex
	cmd *exec.Cmd
	log *lockedBuffer
}

// New writes a configuration and answers with a host that is not started yet. In the text, {addr} is the
// listening address, {dir} the host's folder, {bin} the folder of the binaries.
func New(t testing.TB, hcl string) *Host {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "p")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { // for agents with users of their own, where root runs the tests
		t.Fatal(err)
	}
	h := &Host{Dir: dir, Addr: FreeAddr(t), Config: filepath.Join(dir, "config.hcl"), t: t, bin: Bin(t), log: new(lockedBuffer)}
	h.Write(hcl)
	h.Cgroup = newCgroup(t)
	t.Cleanup(func() {
		h.Kill()
		if t.Failed() {
			t.Logf("host's log:\n%s", tail(h.log.String(), 12000))
		}
		_ = os.RemoveAll(dir)
	})
	return h
}

// Start starts a host with the configuration and waits until it listens.
func Start(t testing.TB, hcl string) *Host {
	t.Helper()
	h := New(t, hcl)
	h.Start()
	return h
}

// Write replaces the configuration file.
func (h *Host) Write(hcl string) {
	h.t.Helper()
	hcl = strings.NewReplacer("{addr}", h.Addr, "{dir}", h.Dir, "{bin}", h.bin).Replace(hcl)
	if err := os.WriteFile(h.Config, []byte(hcl), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// Patience is how long anything may take: 30 seconds, or what POSTERN_PATIENCE says, on a machine that is emulated.
func Patience() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("POSTERN_PATIENCE")); err == nil {
		return d
	}
	return 30 * time.Second
}

// Start starts the process and waits until it listens.
func (h *Host) Start() {
	h.t.Helper()
	cmd := exec.Command(cmp.Or(h.Binary, filepath.Join(h.bin, "postern")), "serve", "--config", h.Config)
	cmd.Dir = h.Dir
	cmd.Stdout, cmd.Stderr = h.log, h.log
	if h.Cgroup != "" {
		dir, err := os.Open(filepath.Join(h.Cgroup, hostGroup))
		if err != nil {
			h.t.Fatal(err)
		}
		defer dir.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	h.cmd = cmd
	h.mu.Unlock()
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	deadline := time.Now().Add(Patience())
	for time.Now().Before(deadline) {
		select {
		case err := <-exited:
			h.t.Fatalf("host ended at start: %v\n%s", err, h.log.String())
		default:
		}
		if c, err := net.Dial("tcp", h.Addr); err == nil {
			_ = c.Close()
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	h.t.Fatalf("host does not listen\n%s", h.log.String())
}

// Pid of the host process.
func (h *Host) Pid() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cmd.Process.Pid
}

// Kill ends the process with SIGKILL, as a crash does.
func (h *Host) Kill() { h.end(syscall.SIGKILL) }

// Stop ends the process with SIGTERM and waits for it.
func (h *Host) Stop() { h.end(syscall.SIGTERM) }

func (h *Host) end(sig syscall.Signal) {
	h.mu.Lock()
	cmd := h.cmd
	h.cmd = nil
	h.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(sig)
	for i := 0; i < 1500; i++ {
		if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	_ = cmd.Process.Kill()
}

// Postern runs a subcommand against the host and answers with what it printed on both outputs.
func (h *Host) Postern(args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(h.bin, "postern"), withConfig(args, h.Config)...)
	cmd.Dir = h.Dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// MustPostern is Postern for a subcommand that must succeed.
func (h *Host) MustPostern(args ...string) string {
	h.t.Helper()
	out, err := h.Postern(args...)
	if err != nil {
		h.t.Fatalf("postern %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// JSON runs a subcommand with --json and decodes what it printed.
func (h *Host) JSON(v any, args ...string) {
	h.t.Helper()
	out := h.MustPrintJSON(args...)
	if err := json.Unmarshal(out, v); err != nil {
		h.t.Fatalf("postern %s --json: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// MustPrintJSON runs a subcommand with --json, which must succeed, and answers with its standard output alone: programs
// that read JSON do not read the log beside it.
func (h *Host) MustPrintJSON(args ...string) []byte {
	h.t.Helper()
	cmd := exec.Command(filepath.Join(h.bin, "postern"), withConfig(append(args, "--json"), h.Config)...)
	cmd.Dir = h.Dir
	out, err := cmd.Output()
	if err != nil {
		h.t.Fatalf("postern %s --json: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// withConfig puts --config behind the words of the command, before its flags.
func withConfig(args []string, path string) []string {
	i := 0
	for i < len(args) && !strings.HasPrefix(args[i], "-") {
		i++
	}
	out := append([]string{}, args[:i]...)
	out = append(out, "--config", path)
	return append(out, args[i:]...)
}

// Log is what the host has printed so far.
func (h *Host) Log() string { return h.log.String() }

// Dropped lists the messages in the drop directory "drop" below the host's folder.
func (h *Host) Dropped() []string {
	h.t.Helper()
	files, err := filepath.Glob(filepath.Join(h.Dir, "drop", "*.eml"))
	if err != nil {
		h.t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			h.t.Fatal(err)
		}
		out = append(out, string(b))
	}
	return out
}

// WaitDropped waits until n messages are in the drop directory.
func (h *Host) WaitDropped(n int) []string {
	h.t.Helper()
	var got []string
	h.WaitFor(fmt.Sprintf("%d delivered messages", n), func() bool {
		got = h.Dropped()
		return len(got) >= n
	})
	return got
}

// WaitFor waits with Patience for what must come true.
func (h *Host) WaitFor(what string, ok func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(Patience()); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	h.t.Fatalf("waited %s for %s", Patience(), what)
}

// lastPort is the port that FreeAddr has handed out last.
var lastPort atomic.Uint32

// FreeAddr finds a loopback address that nobody listens on. Its port is below those that the kernel gives to clients, and is
// handed out once: what runs beside cannot take it before the host does.
func FreeAddr(t testing.TB) string {
	t.Helper()
	const first, ports = 10_000, 20_000
	lastPort.CompareAndSwap(0, uint32(os.Getpid()*131)) // another process begins elsewhere
	for range ports {
		addr := fmt.Sprintf("127.0.0.1:%d", first+lastPort.Add(1)%ports)
		if l, err := net.Listen("tcp", addr); err == nil {
			_ = l.Close()
			return addr
		}
	}
	t.Fatal("no port is free")
	return ""
}

func tail(s string, n int) string {
	if len(s) > n {
		return "..." + s[len(s)-n:]
	}
	return s
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
