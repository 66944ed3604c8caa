package privsep

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/host/internal/sandbox"
	"github.com/posternmail/postern/internal/lack"
)

// tester is the user of the host in these tests; nobody else has the number.
var tester = sandbox.Credential{UID: 61234, GID: 61235}

// scene is a parent with a host that is this test.
type scene struct {
	*testing.T
	dataDir string
	link    *Link
	raw     packets // the same connection
}

// newScene needs root, as a parent does.
func newScene(t *testing.T) *scene {
	t.Helper()
	if os.Geteuid() != 0 {
		lack.Of(t, "root: a parent starts processes as other users")
	}
	base, err := os.MkdirTemp("/tmp", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	s := &scene{T: t, dataDir: filepath.Join(base, "data")}
	s.must(os.Chmod(base, 0o755))
	s.must(PrepareDataDir(s.dataDir, tester))
	s.must(os.Chmod(s.dataDir, 0o755))
	s.owned(filepath.Join(s.dataDir, "agents"))
	p := &Parent{Options: Options{User: tester, DataDir: s.dataDir, Logger: hclog.NewNullLogger()}, hosts: map[*host]bool{}}
	if p.dataDir, err = os.Open(s.dataDir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.dataDir.Close() })
	ours, theirs, err := newPair()
	s.must(err)
	h := &host{parent: p, packets: ours, slots: make(chan struct{}, 64), processes: map[uint64]*started{}}
	go h.serve()
	t.Cleanup(h.killAll)
	s.raw, err = packetsOf(theirs)
	s.must(err)
	s.link = newLink(s.raw)
	return s
}

func (s *scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// owned makes a folder of the host's.
func (s *scene) owned(path string) string {
	s.Helper()
	s.must(os.Mkdir(path, 0o755))
	s.must(os.Chown(path, int(tester.UID), int(tester.GID)))
	return path
}

func (s *scene) temp() string {
	s.Helper()
	dir, err := os.MkdirTemp(s.dataDir, "t")
	s.must(err)
	s.must(os.Chown(dir, int(tester.UID), int(tester.GID)))
	return dir
}

// start asks for a shell that runs script, and reads what it prints.
func (s *scene) start(policy sandbox.Policy, args ...string) (p *Process, output string, err error) {
	s.Helper()
	if policy.Temp == "" {
		policy.Temp = s.temp()
	}
	out, theirs, err := os.Pipe()
	s.must(err)
	defer out.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	s.must(err)
	defer null.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Path, cmd.Err = args[0], nil
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = null, theirs, theirs, []*os.File{null, null}
	p, _, err = s.link.Start(cmd, policy)
	theirs.Close()
	if err != nil {
		return nil, "", err
	}
	text, _ := io.ReadAll(out)
	return p, string(text), nil
}

func ownerOf(t *testing.T, path string) uint32 {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Uid
}

// TestAgentsOwnUser: a process has the user of its state folder, no capability, and no way to gain one; its end is told.
func TestAgentsOwnUser(t *testing.T) {
	s := newScene(t)
	one, two := s.owned(filepath.Join(s.dataDir, "agents/one")), s.owned(filepath.Join(s.dataDir, "agents/two"))
	script := "while read -r line; do echo \"$line\"; done < /proc/self/status; exit 3"
	for i, state := range []string{one, two, one} {
		p, out, err := s.start(sandbox.Policy{State: state}, "/bin/sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprint(63000 + i%2)
		if !strings.Contains(out, "Uid:\t"+strings.Repeat(want+"\t", 3)+want+"\n") || !strings.Contains(out, "Groups:\t\n") && !strings.Contains(out, "Groups:\n") || !strings.Contains(out, "CapEff:\t0000000000000000") || !strings.Contains(out, "CapPrm:\t0000000000000000") ||
			!strings.Contains(out, "NoNewPrivs:\t1") {
			t.Errorf("user %s is wanted:\n%s", want, out)
		}
		<-p.Done
		if p.Exit.Text != "exit status 3" {
			t.Errorf("it ended: %+v", p.Exit)
		}
	}
}

// TestHostileHost: what a host that was taken over asks for to become root, or somebody else, is refused.
func TestHostileHost(t *testing.T) {
	s := newScene(t)
	state := s.owned(filepath.Join(s.dataDir, "agents/one"))
	foreign := filepath.Join(s.dataDir, "agents/foreign")
	s.must(os.Mkdir(foreign, 0o755)) // root's
	s.must(os.Symlink("/etc", filepath.Join(s.dataDir, "agents/link")))
	setuid := filepath.Join(s.dataDir, "setuid")
	text, err := os.ReadFile("/bin/true")
	s.must(err)
	s.must(os.WriteFile(setuid, text, 0o755))
	s.must(os.Chmod(setuid, 0o755|os.ModeSetuid))
	s.must(os.Symlink(setuid, setuid+"-link"))
	for _, c := range []struct {
		what   string
		policy sandbox.Policy
		args   []string
		want   string
	}{
		{"another user", sandbox.Policy{UID: 1}, nil, "not for the host to choose"},
		{"another group", sandbox.Policy{GID: 42}, nil, "not for the host to choose"},
		{"a better nice value", sandbox.Policy{Nice: -5}, nil, "nice value"},
		{"a limit below 0", sandbox.Policy{Memory: -1}, nil, "below 0"},
		{"a state folder elsewhere", sandbox.Policy{State: "/etc"}, nil, "not one of an agent's"},
		{"a state folder above", sandbox.Policy{State: s.dataDir + "/agents/.."}, nil, "not one of an agent's"},
		{"a way out of the state folders", sandbox.Policy{State: s.dataDir + "/agents/../../../etc"}, nil, "not one of an agent's"},
		{"a link as state folder", sandbox.Policy{State: s.dataDir + "/agents/link"}, nil, "opening link"},
		{"root's state folder", sandbox.Policy{State: foreign}, nil, "belongs to user 0"},
		{"root's folder for temporary files", sandbox.Policy{Temp: "/etc"}, nil, "belongs to user 0"},
		{"a file in place of a folder", sandbox.Policy{Temp: "/etc/passwd"}, nil, "not a folder"},
		{"a program that changes its user", sandbox.Policy{State: state}, []string{setuid}, "not a program"},
		{"a link to one", sandbox.Policy{State: state}, []string{setuid + "-link"}, "not a program"},
		{"the parent's own program", sandbox.Policy{State: state}, []string{"/proc/self/exe"}, "not a program"},
		{"a program without its path", sandbox.Policy{State: state}, []string{"sh"}, "not a program"},
		{"a path with dots", sandbox.Policy{State: state}, []string{"/bin/../bin/sh"}, "not a program"},
		{"a folder as program", sandbox.Policy{State: state}, []string{"/etc"}, "not a program"},
		{"a NUL", sandbox.Policy{State: state}, []string{"/bin/sh", "a\x00b"}, "NUL"},
	} {
		if c.args == nil {
			c.args = []string{"/bin/true"}
		}
		if _, _, err := s.start(c.policy, c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		}
	}
	for path, want := range map[string]uint32{"/etc": 0, foreign: 0, setuid: 0} {
		if got := ownerOf(t, path); got != want {
			t.Errorf("%s belongs to user %d now", path, got)
		}
	}
}

// TestForeignFiles: below a state folder nothing changes its owner but what is the host's.
func TestForeignFiles(t *testing.T) {
	s := newScene(t)
	state := s.owned(filepath.Join(s.dataDir, "agents/one"))
	roots := filepath.Join(s.dataDir, "roots")
	s.must(os.WriteFile(roots, nil, 0o600))
	s.must(os.Link(roots, state+"/hard"))
	s.must(os.Symlink(roots, state+"/soft"))
	s.must(os.WriteFile(state+"/own", nil, 0o600))
	s.must(os.Chown(state+"/own", int(tester.UID), int(tester.GID)))
	if _, _, err := s.start(sandbox.Policy{State: state}, "/bin/true"); err != nil {
		t.Fatal(err)
	}
	if got := ownerOf(t, roots); got != 0 {
		t.Errorf("root's file belongs to user %d now", got)
	}
	if got := ownerOf(t, state+"/own"); got != 63000 {
		t.Errorf("the host's file belongs to user %d", got)
	}
}

// TestNonsense: packets that are no request get an error, and the next one is served.
func TestNonsense(t *testing.T) {
	s := newScene(t)
	for what, packet := range map[string][]byte{
		"garbage":           {0, 1, 2, 0xff},
		"no object":         []byte(`[1]`),
		"an unknown field":  []byte(`{"id":7,"kind":"start","uid":0}`),
		"an unknown kind":   []byte(`{"id":7,"kind":"become root"}`),
		"nothing to start":  []byte(`{"id":7,"kind":"start"}`),
		"no channel":        []byte(`{"id":7,"kind":"host"}`),
		"a signal to all":   []byte(`{"id":7,"kind":"signal","process":0,"signal":99}`),
		"a strange process": []byte(`{"id":7,"kind":"dial","process":1,"path":"../../etc"}`),
		"too large":         []byte(`{"id":7,"kind":"` + strings.Repeat("x", maxPacket) + `"}`),
	} {
		to := make(chan reply, 2)
		s.link.mu.Lock()
		s.link.waiting[0], s.link.waiting[7] = to, to
		s.link.mu.Unlock()
		if _, err := s.raw.conn.Write(packet); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case r := <-to:
			if r.Error == "" {
				t.Errorf("%s: served", what)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s: no answer", what)
		}
	}
	if _, out, err := s.start(sandbox.Policy{}, "/bin/echo", "still here"); err != nil || out != "still here\n" {
		t.Errorf("then: %q %v", out, err)
	}
}

// TestSignals reach the process, and nothing when it has ended.
func TestSignals(t *testing.T) {
	s := newScene(t)
	p, _, err := s.start(sandbox.Policy{}, "/bin/sh", "-c", "exec 1>&- 2>&-; while :; do :; done")
	if err != nil {
		t.Fatal(err)
	}
	p.Signal(unix.SIGKILL)
	<-p.Done
	if p.Exit.Text != "signal: killed" || p.Status().Signal() != unix.SIGKILL {
		t.Errorf("it ended: %+v", p.Exit)
	}
	p.Signal(unix.SIGKILL)
}

// TestDialed: the parent connects to sockets of the agent's, below its folder, and to nothing else.
func TestDialed(t *testing.T) {
	s := newScene(t)
	temp := s.temp()
	p, _, err := s.start(sandbox.Policy{Temp: temp}, "/bin/sh", "-c", "exec 1>&- 2>&-; while :; do :; done")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Signal(unix.SIGKILL)
	s.must(os.Symlink("/run", temp+"/link"))
	s.must(os.WriteFile(temp+"/file", nil, 0o600))
	listener, err := net.Listen("unix", temp+"/roots")
	s.must(err)
	defer listener.Close()
	for path, want := range map[string]string{
		"/file": "not a socket of the agent", "/roots": "not a socket of the agent", "/link/x": "symbolic links", "/../roots": "cross-device", "/none": "no such file",
	} {
		if _, err := p.Dial(temp + path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// TestHostGone: with a host its agents end.
func TestHostGone(t *testing.T) {
	s := newScene(t)
	p, _, err := s.start(sandbox.Policy{}, "/bin/sh", "-c", "exec 1>&- 2>&-; while :; do :; done")
	if err != nil {
		t.Fatal(err)
	}
	s.must(s.raw.conn.Close())
	for until := time.Now().Add(20 * time.Second); !errors.Is(syscall.Kill(p.PID, 0), syscall.ESRCH); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the agent lives on")
		}
	}
}

// TestDataDir: only what is new, or root's and empty, is given to the user.
func TestDataDir(t *testing.T) {
	s := newScene(t)
	base := filepath.Dir(s.dataDir)
	if got := ownerOf(t, s.dataDir); got != tester.UID {
		t.Errorf("a new one belongs to user %d", got)
	}
	empty, full, link := filepath.Join(base, "empty"), filepath.Join(base, "full"), filepath.Join(base, "link")
	s.must(os.Mkdir(empty, 0o750))
	s.must(os.MkdirAll(full+"/queue", 0o750))
	s.must(os.Symlink(empty, link))
	if err := PrepareDataDir(link, tester); err == nil || ownerOf(t, empty) != 0 {
		t.Errorf("a symbolic link: %v", err)
	}
	if err := PrepareDataDir(full, tester); err == nil || !strings.Contains(err.Error(), "chown -hR --from=0 61234") || ownerOf(t, full) != 0 {
		t.Errorf("root's with something in it: %v", err)
	}
	if err := PrepareDataDir(empty, tester); err != nil || ownerOf(t, empty) != tester.UID {
		t.Errorf("root's and empty: %v", err)
	}
}
