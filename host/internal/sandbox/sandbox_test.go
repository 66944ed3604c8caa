package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/internal/lack"
)

const attemptKey = "POSTERN_ATTEMPT"

func TestMain(m *testing.M) {
	if words := os.Getenv(attemptKey); words != "" {
		hostile(strings.Split(words, "\n"))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func unsafePointer(b *[120]byte) unsafe.Pointer { return unsafe.Pointer(b) }

func notifyFileSize(c chan os.Signal) { signal.Notify(c, syscall.SIGXFSZ) }

// scene is what a hostile program finds around it.
type scene struct {
	dir       string
	program   string // a copy of the test binary that everybody may run
	users     string // a file that is none of its business
	other     string // state of another agent
	state     string
	temp      string
	body      *os.File
	neighbour int    // a process in a sandbox of its own
	port      string // a TCP listener
	datagrams string // a UDP socket
	abstract  string
}

// newScene makes the folders of two agents. A folder that strangers may not enter keeps the agent from having a
// user of its own, where the test runs as root.
func newScene(t *testing.T, mode os.FileMode) *scene {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "p")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &scene{dir: dir, program: dir + "/program", users: dir + "/users", other: dir + "/agents/other",
		state: dir + "/agents/own", temp: dir + "/temp"}
	for _, folder := range []string{"agents", "agents/other", "agents/own", "temp"} {
		must(t, os.Mkdir(filepath.Join(dir, folder), 0o711))
	}
	copyFile(t, os.Args[0], s.program)
	must(t, os.WriteFile(s.users, []byte("somebody:hash"), 0o644))
	must(t, os.WriteFile(s.other+"/secret", []byte("secret"), 0o644))
	must(t, os.WriteFile(dir+"/body", []byte("a message"), 0o600))
	s.body, err = os.Open(dir + "/body")
	must(t, err)
	t.Cleanup(func() { s.body.Close() })
	must(t, os.Chmod(dir, mode))
	s.port, s.datagrams, s.abstract = serveAll(t, dir)
	s.neighbour = s.start(t, s.policy(), "sleep").Process.Pid
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, content, 0o755))
}

// serveAll has something to connect to.
func serveAll(t *testing.T, dir string) (tcp, udp, abstract string) {
	t.Helper()
	stream, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	datagram, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	abstract = "@" + filepath.Base(dir)
	hidden, err := net.Listen("unix", abstract)
	must(t, err)
	for _, c := range []io.Closer{stream, datagram, hidden} {
		t.Cleanup(func() { c.Close() })
	}
	return stream.Addr().String(), datagram.LocalAddr().String(), abstract
}

func (s *scene) policy() Policy {
	return Policy{Program: []string{s.program}, State: s.state, Temp: s.temp}
}

// start starts an attempt and leaves it to run.
func (s *scene) start(t *testing.T, p Policy, words ...string) *exec.Cmd {
	t.Helper()
	cmd := s.command(words...)
	_, err := Start(cmd, p)
	must(t, err)
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func (s *scene) command(words ...string) *exec.Cmd {
	cmd := exec.Command(s.program)
	cmd.Env = []string{attemptKey + "=" + strings.Join(words, "\n"), "PATH=/usr/bin:/bin", "GORACE=atexit_sleep_ms=0"}
	cmd.ExtraFiles = []*os.File{s.body}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// try makes an attempt under a policy and answers with what came of it.
func (s *scene) try(t *testing.T, p Policy, words ...string) string {
	t.Helper()
	cmd := s.command(words...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	warnings, err := Start(cmd, p)
	must(t, err)
	for _, w := range warnings {
		t.Log("warning:", w)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Sprintf("ended: %v\n%s", err, out.String())
	}
	return strings.TrimSpace(out.String())
}

// modes are who may run it: root with a user for each agent, root without, and whoever is not root.
func modes(t *testing.T, f func(t *testing.T, s *scene)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Run("ordinary user", func(t *testing.T) { f(t, newScene(t, 0o755)) })
		return
	}
	t.Run("a user for each agent", func(t *testing.T) { f(t, newScene(t, 0o755)) })
	t.Run("root without capabilities", func(t *testing.T) { f(t, newScene(t, 0o700)) })
}

// needLandlock fails loudly where the kernel cannot do what is tested: a green test that tested nothing is worse.
func needLandlock(t *testing.T) {
	t.Helper()
	abi, err := landlockABI()
	if err != nil || abi < 6 {
		t.Fatalf("this kernel's Landlock is of version %d (%v), and 6 is needed (Linux 6.12): the sandbox cannot be tested here", abi, err)
	}
}

// Each attempt is made without the sandbox too, where it must succeed: else it would prove nothing.
func TestAttempts(t *testing.T) {
	needLandlock(t)
	modes(t, func(t *testing.T, s *scene) {
		host, neighbour := strconv.Itoa(os.Getpid()), strconv.Itoa(s.neighbour)
		for _, a := range []struct {
			what  string
			words []string
			by    string // what the answer holds
			when  string // "": without the sandbox everybody could; "root": root; "machine": where the machine allows it
		}{
			{"the users file", []string{"read", s.users}, "permission denied", ""},
			{"the folder of the host", []string{"list", s.dir}, "permission denied", ""},
			{"another agent's state", []string{"read", s.other + "/secret"}, "permission denied", ""},
			{"another agent's state through a link in its own", []string{"symlink", s.users, s.state + "/link"}, "permission denied", ""},
			{"a hard link to a file of the host", []string{"link", s.users, s.state + "/hard"}, "", "machine"},
			{"changing a file of the host", []string{"write", s.users}, "permission denied", ""},
			{"emptying a file of the host", []string{"truncate", s.users}, "permission denied", ""},
			{"a file in the host's folder", []string{"make", s.dir}, "permission denied", ""},
			{"moving a file of the host", []string{"rename", s.users, s.state + "/moved"}, "", ""},
			{"removing a file of the host", []string{"remove", s.users}, "permission denied", ""},
			{"opening a file of the host for everybody", []string{"chmod", s.users}, "operation not permitted", ""},
			{"closing a body to the host", []string{"fchmod"}, "operation not permitted", ""},
			{"writing to a body that was given for reading", []string{"reopen"}, "permission denied", ""},
			{"a TCP port that is not listed", []string{"tcp", s.port}, "permission denied", ""},
			{"TCP by another protocol", []string{"multipath", s.port}, "permission denied", "machine"},
			{"TCP without connecting", []string{"fast-open", s.port}, "permission denied", ""},
			{"listening", []string{"serve", "127.0.0.1:0"}, "permission denied", ""},
			{"a datagram", []string{"udp", s.datagrams}, "permission denied", ""},
			{"an abstract socket", []string{"abstract", s.abstract}, "operation not permitted", ""},
			{"all that the network carries", []string{"packet"}, "address family not supported", "machine"},
			{"raw IP", []string{"raw"}, "permission denied", "root"},
			{"a process of its own", []string{"fork"}, "operation not permitted", ""},
			{"a process that leaves it", []string{"fork-away", s.state + "/pid"}, "operation not permitted", ""},
			{"a signal to the host", []string{"signal", host}, "operation not permitted", ""},
			{"a signal to everybody", []string{"signal-all"}, "operation not permitted", ""},
			{"signals to the host whenever a socket has something", []string{"socket-owner", host}, "operation not permitted", ""},
			{"tracing a neighbour", []string{"ptrace", neighbour}, "operation not permitted", "machine"},
			{"a neighbour's memory", []string{"peek", neighbour}, "operation not permitted", "machine"},
			{"a neighbour's environment, where its token is", []string{"environ", neighbour}, "permission denied", "machine"},
			{"a neighbour's descriptor", []string{"descriptor", neighbour}, "operation not permitted", "machine"},
			{"limiting the host", []string{"limit", host}, "operation not permitted", ""},
			{"slowing the host down", []string{"slow", neighbour}, "operation not permitted", ""},
			{"living on without the host", []string{"immortal"}, "operation not permitted", ""},
			{"namespaces, to be root in", []string{"namespace"}, "operation not permitted", "machine"},
			{"calls past the filter", []string{"uring"}, "operation not permitted", "machine"},
			{"a program in the kernel", []string{"bpf"}, "operation not permitted", "machine"},
			{"privileges", []string{"privileges"}, "no capability, no new privileges", ""},
		} {
			t.Run(a.what, func(t *testing.T) {
				s.arrange(t)
				got := s.try(t, s.policy(), a.words...)
				if !strings.HasPrefix(got, "failed: ") || !strings.Contains(got, a.by) {
					t.Errorf("in the sandbox: %s", got)
				}
				t.Logf("%s: stopped: %s", strings.Join(a.words, " "), strings.TrimPrefix(got, "failed: "))
				s.control(t, a.when, a.words)
			})
		}
	})
}

// arrange puts everything back to where earlier attempts without the sandbox have not touched it.
func (s *scene) arrange(t *testing.T) {
	t.Helper()
	must(t, os.WriteFile(s.users, []byte("somebody:hash"), 0o644))
	must(t, os.Chmod(s.users, 0o644))
	must(t, os.Chmod(s.dir+"/body", 0o600))
	entries, err := os.ReadDir(s.state)
	must(t, err)
	for _, entry := range entries {
		must(t, os.RemoveAll(filepath.Join(s.state, entry.Name())))
	}
}

// control makes an attempt without the sandbox.
func (s *scene) control(t *testing.T, when string, words []string) {
	t.Helper()
	if when == "root" && os.Geteuid() != 0 {
		return
	}
	s.arrange(t)
	out, err := s.command(words...).CombinedOutput()
	if text, err := os.ReadFile(s.state + "/pid"); err == nil {
		_ = syscall.Kill(number(strings.TrimSpace(string(text))), syscall.SIGKILL)
	}
	switch got := strings.TrimSpace(string(out)); {
	case err == nil && got == "succeeded":
	case when == "machine":
		t.Logf("this machine does not allow it without the sandbox either: %v %s", err, got)
	default:
		t.Errorf("without the sandbox it must succeed: %v %s", err, got)
	}
}

// What an agent needs works, and what its policy allows.
func TestAllowed(t *testing.T) {
	needLandlock(t)
	modes(t, func(t *testing.T, s *scene) {
		portOf := func(address string) uint16 { return uint16(number(address[strings.LastIndex(address, ":")+1:])) }
		port := portOf(s.port)
		socket := s.dir + "/served"
		l, err := net.Listen("unix", socket)
		must(t, err)
		defer l.Close()
		must(t, os.Chmod(socket, 0o777))
		for _, a := range []struct {
			what  string
			allow func(p *Policy)
			words []string
		}{
			{"its state", nil, []string{"make", s.state}},
			{"its temporary files", nil, []string{"make", s.temp}},
			{"the body it was given", nil, []string{"body"}},
			{"names of hosts", nil, []string{"resolve"}},
			{"itself", nil, []string{"self"}},
			{"a file to read", func(p *Policy) { p.Read = []string{s.users} }, []string{"read", s.users}},
			{"a folder to write", func(p *Policy) { p.Write = []string{s.other} }, []string{"read", s.other + "/secret"}},
			{"a port", func(p *Policy) { p.Connect = []uint16{port} }, []string{"tcp", s.port}},
			{"a Unix socket", func(p *Policy) { p.Sockets = []string{socket} }, []string{"unix", socket}},
			{"datagrams", func(p *Policy) { p.Datagrams = true; p.DatagramPorts = []uint16{portOf(s.datagrams)} }, []string{"udp", s.datagrams}},
			{"processes", func(p *Policy) { p.Processes = 3 }, []string{"fork"}},
			{"all", func(p *Policy) { p.Off = true }, []string{"fork"}},
		} {
			t.Run(a.what, func(t *testing.T) {
				s.arrange(t)
				p := s.policy()
				if a.allow != nil {
					a.allow(&p)
				}
				if got := s.try(t, p, a.words...); got != "succeeded" {
					t.Error(got)
				}
			})
		}
	})
}

func TestLimits(t *testing.T) {
	modes(t, func(t *testing.T, s *scene) {
		type limited struct {
			what  string
			limit func(p *Policy)
			words []string
			by    string
		}
		all := []limited{
			{"descriptors", func(p *Policy) { p.Files = 64 }, []string{"descriptors", "100"}, "too many open files"},
			{"a file that fills the disk", func(p *Policy) { p.FileSize = 1 << 20 }, []string{"large-file", s.state + "/large", "2000000"}, "file too large"},
		}
		if !raceEnabled { // the detector needs more than any limit here: TestMemory of the whole is without it
			all = append(all, limited{"memory", func(p *Policy) { p.Memory = 256 << 20 }, []string{"memory"}, "out of memory"})
		}
		for _, a := range all {
			t.Run(a.what, func(t *testing.T) {
				p := s.policy()
				if got := s.try(t, p, a.words...); got != "succeeded" {
					t.Errorf("without a limit: %s", got)
				}
				a.limit(&p)
				if got := s.try(t, p, a.words...); !strings.Contains(got, a.by) {
					t.Error(got)
				}
			})
		}
	})
}

// An agent that has the host's user leaves it threads to start: without any the host would end.
func TestTasksAreLeftToTheHost(t *testing.T) {
	if os.Geteuid() == 0 {
		return // for whom there is no limit; see TestAsOrdinaryUser
	}
	limit := syscall.Rlimit{Cur: 4000, Max: 4000}
	must(t, syscall.Setrlimit(unix.RLIMIT_NPROC, &limit))
	s := newScene(t, 0o755)
	if got := s.try(t, s.policy(), "tasks", "3000"); got != "succeeded" {
		t.Errorf("one process: %s", got)
	}
	p := s.policy()
	p.Processes = 10
	if got := s.try(t, p, "tasks", "3000"); got != "succeeded" {
		t.Errorf("with others: %s", got)
	}
}

// A process that leaves its session and its parent ends with the one that started it.
func TestForkedAway(t *testing.T) {
	modes(t, func(t *testing.T, s *scene) {
		p := s.policy()
		p.Processes = 10
		cmd := s.start(t, p, "fork-away", s.state+"/pid", "stay")
		left := func() int { return running(t, "sleep\x001000\x00", cmd.Process.Pid) }
		eventually(t, "it to fork", func() bool { return left() > 0 })
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		eventually(t, "what it started to end", func() bool { return left() == 0 })
	})
}

// running counts the processes with a command line that are in the same process namespace as pid was.
func running(t *testing.T, commandLine string, pid int) (n int) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, path := range lines {
		text, _ := os.ReadFile(path)
		status, _ := os.ReadFile(filepath.Dir(path) + "/status")
		if string(text) == commandLine && strings.Contains(string(status), "NoNewPrivs:\t1") && later(path, pid) {
			n++
		}
	}
	return n
}

// later reports whether the process of a file below /proc began after pid.
func later(path string, pid int) bool { return number(filepath.Base(filepath.Dir(path))) > pid }

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// It ends with its host, however that ends and whatever user it has, in a process namespace or not.
func TestEndsWithHost(t *testing.T) {
	modes(t, func(t *testing.T, s *scene) {
		for _, processes := range []int{0, 5} {
			t.Run(fmt.Sprintf("%d processes", processes), func(t *testing.T) {
				p := s.policy()
				p.Processes = processes
				text, err := json.Marshal(p)
				must(t, err)
				host := s.command("host", string(text), s.program, "sleep")
				out, err := host.StdoutPipe()
				must(t, err)
				must(t, host.Start())
				var pid int
				_, err = fmt.Fscanf(out, "pid %d", &pid)
				_ = host.Process.Kill()
				_ = host.Wait()
				must(t, err)
				eventually(t, "the agent to end", func() bool { return syscall.Kill(pid, 0) != nil })
			})
		}
	})
}

// What the kernel lacks is said, or nothing starts.
func TestRequired(t *testing.T) {
	if os.Geteuid() != 0 {
		lack.Of(t, "root: what is lacking here is a user of its own, which only root can give")
	}
	s := newScene(t, 0o700)
	p := s.policy()
	warnings, err := Start(s.command("self"), p)
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "has no access to "+s.dir) {
		t.Errorf("%v %v", warnings, err)
	}
	p.Required = true
	if _, err := Start(s.command("self"), p); err == nil || !strings.Contains(err.Error(), "has no access to "+s.dir) {
		t.Errorf("%v", err)
	}
}

func TestStartFails(t *testing.T) {
	s := newScene(t, 0o755)
	must(t, os.WriteFile(s.dir+"/script", []byte("#!/missing/interpreter\n"), 0o755))
	for _, path := range []string{s.dir + "/missing", s.dir + "/script", s.users} {
		cmd := exec.Command(path)
		cmd.SysProcAttr = &syscall.SysProcAttr{}
		p := s.policy()
		p.Program = []string{path}
		if _, err := Start(cmd, p); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// Two agents have two users, each keeps its own, and what an earlier user left is given to it.
func TestUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		lack.Of(t, "root: only root gives agents users")
	}
	s := newScene(t, 0o755)
	own := s.policy()
	own.State = s.dir + "/agents/third"
	must(t, os.Mkdir(own.State, 0o700))
	must(t, os.WriteFile(own.State+"/old", nil, 0o600))
	if got := s.try(t, own, "read", own.State+"/old"); got != "succeeded" {
		t.Error(got)
	}
	other := Policy{Program: own.Program, State: s.other}
	if got := s.try(t, other, "read", s.other+"/secret"); got != "succeeded" {
		t.Error(got)
	}
	first, err := ownerOf(own.State)
	must(t, err)
	second, err := ownerOf(s.other)
	must(t, err)
	if !isUser(first) || !isUser(second) || first == second {
		t.Errorf("users %d and %d", first, second)
	}
	for range 2 {
		uid, err := userOf(own.State)
		if err != nil || uid != first {
			t.Errorf("%d, then %d: %v", first, uid, err)
		}
	}
	// Without the rest of the sandbox, the users alone keep them apart.
	must(t, os.Chmod(s.other, 0o700))
	own.Off = true
	if got := s.try(t, own, "read", s.other+"/secret"); !strings.Contains(got, "permission denied") {
		t.Error(got)
	}
}

// All of it once more as a user who is not root, where root runs the tests.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		return // so they ran already
	}
	s := newScene(t, 0o755)
	cmd := exec.Command(s.program, "-test.run=TestAttempts|TestAllowed|TestLimits|TestTasksAreLeft|TestForkedAway|TestEndsWithHost|TestStartFails", "-test.v")
	cmd.Env = []string{"PATH=/usr/bin:/bin", "TMPDIR=/tmp", "HOME=/tmp", "GORACE=atexit_sleep_ms=0"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{}}}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || strings.Contains(string(out), "no tests to run") {
		t.Error(err)
	}
}
