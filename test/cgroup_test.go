//go:build vm

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

	"github.com/posternmail/postern/test/rig"
)

// needCgroup: these tests need hosts that have a cgroup v2 with all controllers to themselves. `make vm` runs them in a
// virtual machine.
func needCgroup(t *testing.T) {
	t.Helper()
	if os.Getenv("POSTERN_CGROUP") == "" {
		t.Fatal("POSTERN_CGROUP names no cgroup v2 for hosts: make vm runs this in a machine that has one")
	}
}

// groups are the cgroups of agents of a host, by name.
func groups(t *testing.T, h *rig.Host) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(h.Cgroup, "agents"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// groupOf is the folder of the cgroup that a process is in.
func groupOf(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, path, _ := strings.Cut(strings.TrimSpace(string(text)), "::")
	return filepath.Join("/sys/fs/cgroup", path)
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// order has the hostile agent do things with the next message, until it is taken back.
func order(t *testing.T, h *rig.Host, lines string) (takeBack func()) {
	t.Helper()
	path := filepath.Join(h.Dir, "data/agents/hostile/orders")
	if err := os.WriteFile(path, []byte(lines), 0o644); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCgroupLimits: an agent's processes have a cgroup of their own with what its sandbox block says, out of which it
// cannot go.
func TestCgroupLimits(t *testing.T) {
	needCgroup(t)
	h, _ := hostileScene(t, 0o711, "memory = \"96 MB\"\nprocesses = 4\nnice = 3")
	group := groupOf(t, processes(h, "hostile")[0])
	if !strings.HasPrefix(group, filepath.Join(h.Cgroup, "agents", "hostile."+strconv.Itoa(h.Pid())+".")) {
		t.Errorf("it is in %s, the host has %s", group, h.Cgroup)
	}
	if host := groupOf(t, h.Pid()); host != filepath.Join(h.Cgroup, "host") {
		t.Errorf("the host is in %s", host)
	}
	for file, want := range map[string]string{"memory.max": "100663296", "memory.oom.group": "1", "pids.max": "1280", "cpu.weight": "51"} {
		if got := read(t, filepath.Join(group, file)); got != want {
			t.Errorf("%s is %s, want %s", file, got, want)
		}
	}
	const limits = "by cgroup: 96 MB of memory, 1280 threads and processes, processor time as for nice 3"
	if shown := h.MustPostern("agent", "show", "hostile"); !strings.Contains(shown, limits) {
		t.Errorf("shown:\n%s", shown)
	}
	if limited := statuses(t, processes(h, "hostile")[0])[0]["VmData"]; limited == "" {
		t.Error("no VmData")
	}
	if text := read(t, fmt.Sprintf("/proc/%d/limits", processes(h, "hostile")[0])); !strings.Contains(text, "Max data size             unlimited") {
		t.Errorf("RLIMIT_DATA is set beside the cgroup\n%s", text)
	}
	for what, path := range map[string]string{"join#host": filepath.Join(h.Cgroup, "host/cgroup.procs"), "join#top": "/sys/fs/cgroup/cgroup.procs", "join#limit": filepath.Join(group, "memory.max")} {
		if got := attack(t, h, []string{what + " " + path})[what]; !strings.Contains(got, "permission denied") {
			t.Errorf("%s: %s", what, got)
		}
	}
}

// TestCgroupMemory: an agent that has used up its memory is ended, and everybody says why; a message that has it do so twice
// is poison. Others notice nothing.
func TestCgroupMemory(t *testing.T) {
	needCgroup(t)
	h, _ := hostileScene(t, 0o711, "memory = \"96 MB\"")
	victim := processes(h, "victim")[0]
	takeBack := order(t, h, "eat 300\n")
	id := accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage) // parked: it ended two processes
	takeBack()
	h.WaitFor("the reason to be shown", func() bool { return strings.Contains(h.MustPostern("agent", "show", "hostile"), outOfMemory) })
	if !strings.Contains(h.Log(), outOfMemory) {
		t.Error("the log does not have it")
	}
	list := queued(h, "--state", "parked")
	if len(list) != 1 || list[0].Message != id {
		t.Fatalf("parked: %+v", list)
	}
	var shown item
	h.JSON(&shown, "queue", "show", list[0].ID)
	if strings.Count(shown.Evidence, outOfMemory) != 2 {
		t.Errorf("evidence:\n%s", shown.Evidence)
	}
	h.WaitFor("another process", func() bool { return len(processes(h, "hostile")) == 1 })
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	if now := processes(h, "victim"); len(now) != 1 || now[0] != victim {
		t.Errorf("the victim was process %d and is %v", victim, now)
	}
	h.WaitFor("the cgroups of what has ended to be removed", func() bool { return len(groups(t, h)) == 2 })
}

// outOfMemory is how an agent ends that may have so much.
const outOfMemory = "signal: killed (out of memory: it may have 96 MB, and the kernel has ended it)"

// TestCgroupMemoryTogether: memory is that of all processes of an agent, none of which has used up as much by itself, and
// all of them end.
func TestCgroupMemoryTogether(t *testing.T) {
	needCgroup(t)
	h, _ := hostileScene(t, 0o711, "memory = \"96 MB\"\nprocesses = 12")
	group := groupOf(t, processes(h, "hostile")[0])
	order(t, h, "feast 45000000\n")
	h.Greeted().Message("a@sender.example", "b@example.org", helloMessage) // whatever becomes of it
	h.WaitFor("the reason to be shown", func() bool { return strings.Contains(h.MustPostern("agent", "show", "hostile"), outOfMemory) })
	h.WaitFor("its cgroup to be removed", func() bool { _, err := os.Stat(group); return err != nil })
}

// TestCgroupForkBomb: an agent that may start processes is stopped at their number, and costs nobody else any.
func TestCgroupForkBomb(t *testing.T) {
	needCgroup(t)
	h, _ := hostileScene(t, 0o711, "processes = 4")
	group := groupOf(t, processes(h, "hostile")[0])
	if got := attack(t, h, []string{"bomb"})["bomb"]; got != "succeeded" {
		t.Fatal(got)
	}
	takeBack := order(t, h, "")
	h.WaitFor("it to be refused another process", func() bool { return !strings.HasSuffix(read(t, group+"/pids.events"), "max 0") })
	if peak, err := strconv.Atoi(read(t, group+"/pids.peak")); err == nil && peak != 1280 { // Linux 6.13 has it
		t.Errorf("it had %d threads and processes", peak)
	}
	takeBack()
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	if now := groups(t, h); len(now) != 2 {
		t.Errorf("cgroups %v", now)
	}
	if err := syscall.Kill(processes(h, "hostile")[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.WaitFor("all of them to end", func() bool { _, err := os.Stat(group); return err != nil })
}

// TestCgroupForkedAway: what has left its session and process group ends with the agent.
func TestCgroupForkedAway(t *testing.T) {
	needCgroup(t)
	h, _ := hostileScene(t, 0o711, "enabled = false")
	pid := processes(h, "hostile")[0]
	group := groupOf(t, pid)
	if got := attack(t, h, []string{"fork"})["fork"]; got != "succeeded" {
		t.Fatal(got)
	}
	away := strings.Fields(read(t, filepath.Join(group, "cgroup.procs")))
	if len(away) != 2 {
		t.Fatalf("processes %v", away)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, one := range away {
		pid, _ := strconv.Atoi(one)
		h.WaitFor("process "+one+" to end", func() bool { return !alive(pid) })
	}
	h.WaitFor("the cgroup to be removed", func() bool { _, err := os.Stat(group); return err != nil })
}

// TestCgroupRestart: two hosts share the cgroup while one replaces the other, each with its agents; what the one that has
// gone had is removed, and after a crash what was left.
func TestCgroupRestart(t *testing.T) {
	needCgroup(t)
	h := startRestarting(t, plain+mockWith("stamper", 10, unhurried, "events = [\"OnConnect\", \"OnRcpt\"]\n"))
	old, session := h.owner(), h.Greeted()
	had := groups(t, h.Host)
	next := h.restarts()
	now := groups(t, h.Host)
	if len(had) != 1 || len(now) != 2 {
		t.Errorf("cgroups %v, then %v", had, now)
	}
	for _, pid := range []int{old, next} {
		if groupOf(t, pid) != filepath.Join(h.Cgroup, "host") {
			t.Errorf("process %d is in %s", pid, groupOf(t, pid))
		}
	}
	accepted(t, session, "a@sender.example", "b@example.org", helloMessage) // by the old host and its agent
	session.Do("QUIT", "221")
	h.WaitFor("the old host to end", func() bool { return !alive(old) })
	if left := groups(t, h.Host); len(left) != 1 || left[0] == had[0] {
		t.Errorf("cgroups %v after %v", left, had)
	}
	crashed := groups(t, h.Host)
	if err := syscall.Kill(next, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.WaitFor("the host to end, and its listener", func() bool {
		c, err := net.Dial("tcp", h.Addr)
		if err == nil {
			_ = c.Close()
		}
		return !alive(next) && err != nil
	})
	h.Host.Start()
	if left := groups(t, h.Host); len(left) != 1 || left[0] == crashed[0] {
		t.Errorf("cgroups %v after %v", left, crashed)
	}
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
}

// restarts replaces the host, and answers with the process that it is now.
func (r *restarting) restarts() int {
	r.t.Helper()
	var done restarted
	r.JSON(&done, "restart")
	return done.PID
}

// TestCgroupOfRoot: where the host gives up root, the process that does not has the cgroups, and says what has become of
// those in them.
func TestCgroupOfRoot(t *testing.T) {
	needCgroup(t)
	h := newDropped(t, "")
	block := hostileAgent(t, h, "memory = \"96 MB\"")
	h.Write(dropped + block)
	share(t, h.Config)
	h.Start()
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	pid := processes(h, "hostile")[0]
	group := groupOf(t, pid)
	if !strings.HasPrefix(group, filepath.Join(h.Cgroup, "agents", "hostile."+strconv.Itoa(h.Pid())+".")) {
		t.Errorf("it is in %s", group)
	}
	for _, dir := range []string{h.Cgroup, group, filepath.Join(h.Cgroup, "host")} {
		var info syscall.Stat_t
		if err := syscall.Stat(dir, &info); err != nil || info.Uid != 0 || info.Mode&0o022 != 0 {
			t.Errorf("%s belongs to %d, mode %o (%v)", dir, info.Uid, info.Mode, err)
		}
	}
	takeBack := order(t, h, "eat 300\n")
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	takeBack()
	h.WaitFor("the reason to be shown", func() bool {
		return strings.Contains(h.MustPostern("agent", "show", "hostile"), "out of memory: it may have 96 MB, and the kernel has ended it")
	})
	h.WaitFor("another process", func() bool { return len(processes(h, "hostile")) == 1 })
	var done restarted
	h.JSON(&done, "restart")
	h.WaitFor("the old host to end", func() bool { return !alive(done.FormerPID) })
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	h.WaitFor("one cgroup to be left", func() bool { return len(groups(t, h)) == 1 })
	if limits := h.MustPostern("agent", "show", "hostile"); !strings.Contains(limits, "by cgroup: 96 MB of memory, 1024 threads") {
		t.Errorf("shown:\n%s", limits)
	}
}
