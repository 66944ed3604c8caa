package test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/posternmail/postern/internal/lack"
	"github.com/posternmail/postern/test/rig"
)

// User and group that a dropped host runs as in these tests; the system knows no names for them.
const (
	droppedUser  = 61234
	droppedGroup = 61235
)

// dropped is a configuration of a host that gives up root.
var dropped = strings.Replace(plain, `data_dir = "{dir}/data"`, fmt.Sprintf("data_dir = \"{dir}/data\"\n  user = \"%d:%d\"", droppedUser, droppedGroup), 1)

// newDropped is a host that is to run as a user of its own. Its files are the group's to read.
func newDropped(t *testing.T, hcl string) *rig.Host {
	t.Helper()
	if os.Geteuid() != 0 {
		lack.Of(t, "root, which the host gives up")
	}
	h := rig.New(t, hcl)
	drop := filepath.Join(h.Dir, "drop")
	if err := os.Mkdir(drop, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(drop, droppedUser, droppedGroup); err != nil {
		t.Fatal(err)
	}
	share(t, h.Config)
	return h
}

// share lets the host's group read a file of root's.
func share(t *testing.T, path string) {
	t.Helper()
	if err := os.Chown(path, 0, droppedGroup); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
}

// owningPid is the process that has the data directory, and reads from the network.
func owningPid(t *testing.T, h *rig.Host) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(h.Dir, "data", "owner.lock"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatalf("owner.lock holds %q", text)
	}
	return pid
}

// statuses are what the kernel tells of each thread of a process (proc_pid_status(5)), by name.
func statuses(t *testing.T, pid int) (all []map[string]string) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("process %d: %v", pid, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		one := map[string]string{}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			one[name] = strings.Join(strings.Fields(value), " ")
		}
		all = append(all, one)
	}
	return all
}

// hasDropped checks that a process is of the user and can do nothing of what root can but open low ports.
func hasDropped(t *testing.T, pid int) {
	t.Helper()
	bind := fmt.Sprintf("%016x", 1<<10) // CAP_NET_BIND_SERVICE
	for _, got := range statuses(t, pid) {
		for name, want := range map[string]string{
			"Uid": strings.TrimSpace(strings.Repeat(fmt.Sprint(droppedUser, " "), 4)), "Gid": strings.TrimSpace(strings.Repeat(fmt.Sprint(droppedGroup, " "), 4)),
			"Groups": "", "NoNewPrivs": "1", "CapInh": bind, "CapPrm": bind, "CapEff": bind, "CapBnd": bind, "CapAmb": bind,
		} {
			if got[name] != want {
				t.Errorf("process %d: %s is %q, want %q", pid, name, got[name], want)
			}
		}
	}
}

// agentUser is the user of the only process of an agent, which must be one of agents.
func agentUser(t *testing.T, h *rig.Host, agent string) (pid int, user string) {
	t.Helper()
	pid = processes(h, agent)[0]
	status := statuses(t, pid)[0]
	user, _, _ = strings.Cut(status["Uid"], " ")
	if uid, _ := strconv.Atoi(user); uid < 63000 || uid > 63999 {
		t.Errorf("agent %s is user %s", agent, user)
	}
	if status["CapEff"] != strings.Repeat("0", 16) || status["NoNewPrivs"] != "1" {
		t.Errorf("agent %s: %v", agent, status)
	}
	return pid, user
}

// lowAddr is a free address that takes a privilege to listen at.
func lowAddr(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		t.Fatal(err)
	}
	first, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	for port := first - 1; port > max(first-400, 0); port-- {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = l.Close()
			return l.Addr().String()
		}
	}
	t.Logf("here every port can be opened without a privilege (ip_unprivileged_port_start is %d)", first)
	return rig.FreeAddr(t)
}

// TestGivesUpRoot: what reads from the network has the user's rights alone, and all else is as ever: low ports, mail,
// agents with users of their own that come back, reload, restart.
func TestGivesUpRoot(t *testing.T) {
	stamper := mockAgent("stamper", 10, "on \"OnEndOfData\" {\n add_header = { X-Seen = \"by the agent\" }\n}\n")
	h := newDropped(t, "")
	h.Addr = lowAddr(t)
	h.Write(dropped + stamper)
	h.Start()
	first := owningPid(t, h)
	if first == h.Pid() {
		t.Fatal("the process that was started is the host")
	}
	hasDropped(t, first)
	send := func(n int) {
		t.Helper()
		c := h.Greeted()
		accepted(t, c, "a@sender.example", "b@example.org", large)
		c.Do("QUIT", "221")
		for _, m := range h.WaitDropped(n) {
			if !strings.Contains(m, "X-Seen: by the agent\r\n") {
				t.Errorf("the agent has not seen\n%.300s", m)
			}
		}
	}
	send(1)
	pid, user := agentUser(t, h, "stamper")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.WaitFor("another process of the agent", func() bool {
		now := processes(h, "stamper")
		return len(now) == 1 && now[0] != pid
	})
	if _, again := agentUser(t, h, "stamper"); again != user {
		t.Errorf("the agent was user %s and is %s", user, again)
	}
	send(2)

	h.Write(dropped + stamper + mockAgent("second", 20, "record = \"record\"\nevents = [\"OnConnect\"]\n"))
	share(t, h.Config)
	if err := syscall.Kill(h.Pid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	h.WaitFor("the second agent", func() bool { return strings.Contains(h.MustPostern("agent", "list"), "second") })
	if _, other := agentUser(t, h, "second"); other == user {
		t.Errorf("two agents are user %s", user)
	}

	h.MustPostern("restart")
	second := owningPid(t, h)
	if second == first || second == h.Pid() {
		t.Errorf("process %d was the host, and %d is", first, second)
	}
	hasDropped(t, second)
	send(3)
	h.WaitFor("the former host to end", func() bool { return !alive(first) })
	agentUser(t, h, "stamper")

	agents := append(processes(h, "stamper"), processes(h, "second")...)
	h.Kill() // the parent
	h.WaitFor("host and agents to end with the parent", func() bool {
		for _, pid := range append(agents, second) {
			if alive(pid) {
				return false
			}
		}
		return true
	})
}

// TestDroppedHostEnds: SIGTERM to the parent is for the host, and a host that dies takes parent and agents with it, for
// the service manager to start all anew.
func TestDroppedHostEnds(t *testing.T) {
	h := newDropped(t, dropped+mockAgent("idle", 10, "events = [\"OnConnect\"]\n"))
	h.Start()
	agent := processes(h, "idle")[0]
	h.Stop()
	if !strings.Contains(h.Log(), "host has stopped") || alive(agent) {
		t.Errorf("it was killed:\n%s", h.Log())
	}
	h.Start()
	parent := h.Pid()
	agent = processes(h, "idle")[0]
	if err := syscall.Kill(owningPid(t, h), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.WaitFor("parent and agent to end with the host", func() bool { return !alive(parent) && !alive(agent) })
}

// TestParentKilled: what agents have left below data_dir, which only root can remove, does not keep the next host from
// starting.
func TestParentKilled(t *testing.T) {
	h := newDropped(t, dropped+mockAgent("stamper", 10, "events = [\"OnConnect\", \"OnRcpt\"]\n"))
	h.Start()
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	left, err := filepath.Glob(filepath.Join(h.Dir, "data", "run", "*", "*", "*"))
	if err != nil || len(left) == 0 {
		t.Fatalf("%v %v", left, err)
	}
	owner := owningPid(t, h)
	h.Kill()
	h.WaitFor("the host to end with its parent", func() bool { return !alive(owner) })
	h.Start()
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	for _, path := range left {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
}

// TestRootOnlyFile: a file that only root may read cannot be read any more, and the host says so instead of starting.
func TestRootOnlyFile(t *testing.T) {
	h := newDropped(t, dropped+"users {\n  file = \"{dir}/users\"\n}\n")
	users := filepath.Join(h.Dir, "users")
	if err := os.WriteFile(users, []byte("somebody:$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := h.Postern("serve")
	if err == nil || !strings.Contains(out, "permission denied") || !strings.Contains(out, "must be readable for it") {
		t.Fatalf("%v\n%s", err, out)
	}
	share(t, users)
	h.Start()
	h.Greeted().Do("QUIT", "221")
}

// TestUnusableUser: a user that cannot be had, or would be no better than root, keeps the host from starting.
func TestUnusableUser(t *testing.T) {
	for user, want := range map[string]string{
		"no-such-user": "useradd", "root": "leave user out", "0:5": "leave user out", "61234:0": "leave user out", "61234": "61234:GROUP",
		"63000:61235": "are for agents", "61234:no-such-group": "no group",
	} {
		h := newDropped(t, strings.Replace(dropped, fmt.Sprintf("%d:%d", droppedUser, droppedGroup), user, 1))
		for _, command := range []string{"check", "serve"} {
			if out, err := h.Postern(command); err == nil || !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
				t.Errorf("%s with user %s: %v, want %q\n%s", command, user, err, want, out)
			}
		}
	}
}

// TestStaysRoot: a host that stays root says so, and what to do.
func TestStaysRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		lack.Of(t, "root: nobody else can stay root")
	}
	h := rig.Start(t, plain)
	if want := "runs as root: host { user"; !strings.Contains(h.Log(), want) || !strings.Contains(h.MustPostern("check"), want) {
		t.Errorf("%q is said neither by serve nor check:\n%s", want, h.Log())
	}
}
