package cgroup

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/internal/lack"
)

// asKey of the environment makes the test binary another program: one of those below.
const asKey = "POSTERN_CGROUP_TEST"

func TestMain(m *testing.M) {
	if as := os.Getenv(asKey); as != "" {
		os.Exit(become(strings.Fields(as)))
	}
	os.Exit(m.Run())
}

// become is a host, or a process of an agent.
func become(words []string) int {
	switch words[0] {
	case "host":
		return beHost(words[1:])
	case "where":
		text, _ := os.ReadFile("/proc/self/cgroup")
		fmt.Printf("%s", text)
	case "fork": // one that leaves the session
		cmd := exec.Command("sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(cmd.Process.Pid)
	case "eat":
		var eaten [][]byte
		for range 1 << 10 {
			eaten = append(eaten, bytes.Repeat([]byte("x"), 1<<20))
		}
		fmt.Println(len(eaten))
	case "bomb":
		n := 0
		for ; n < 500; n++ {
			if exec.Command("sleep", "1000").Start() != nil {
				break
			}
		}
		fmt.Println(n)
	case "stay":
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
	return 0
}

// beHost divides its cgroup, has a program run in a group with limits, and says how that ended. "stay" and its like leave the
// group to whoever comes after.
func beHost(words []string) int {
	own, err := ownFolder()
	if err == nil {
		var t *Tree
		if t, err = divide(own, given(own)); err == nil {
			defer t.Close()
			err = t.play(words)
		}
	}
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return 0
}

// given are the controllers that can be had, which may be none at all: most can be tested without.
func given(own string) []string {
	if filepath.Base(own) == hostName {
		own = filepath.Dir(own)
	}
	return intersection(wanted, list(filepath.Join(own, "cgroup.controllers")))
}

func (t *Tree) play(words []string) error {
	if len(words) == 0 {
		t.Close()
		entries, err := os.ReadDir(t.agents)
		for _, e := range entries {
			if e.IsDir() {
				fmt.Println("left:", e.Name())
			}
		}
		fmt.Println("ready")
		return err
	}
	g, err := t.New("an/agent", Limits{Memory: 64 << 20, Tasks: 50, Nice: 5})
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{asKey + "=" + words[0], "PATH=/usr/bin:/bin", "GORACE=atexit_sleep_ms=0"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	g.Place(cmd.SysProcAttr)
	if words[0] == "stay" {
		if _, err := cmd.StdinPipe(); err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		fmt.Println("runs:", cmd.Process.Pid, g.path)
		_ = cmd.Wait()
		return nil
	}
	out, err := cmd.Output()
	fmt.Printf("printed: %s\nended: %v, shortage: %q\n", strings.TrimSpace(string(out)), err, g.Shortage())
	g.End()
	t.Close()
	if _, err := os.Stat(g.path); err == nil {
		fmt.Println("the group is still there")
	}
	return nil
}

// delegation is a cgroup for one test. Where there can be none, it says so, and fails where nothing may be left out.
func delegation(t *testing.T) string {
	t.Helper()
	own, err := ownFolder()
	dir := ""
	if err == nil {
		if dir, err = os.MkdirTemp(top(own), "postern-test-"); err == nil {
			t.Cleanup(func() {
				_ = write(dir, "cgroup.kill", "1")
				for range 1000 {
					if remove(dir) == nil {
						return
					}
					time.Sleep(10 * time.Millisecond)
				}
				t.Errorf("%s cannot be removed", dir)
			})
			return dir
		}
	}
	lack.Of(t, "a cgroup v2 to make others in, as root has: %v", err)
	return ""
}

// top is the mount that a cgroup is below of: there, controllers can be handed down though processes are in it.
func top(own string) string {
	for dir := own; ; dir = filepath.Dir(dir) {
		if isFolder(dir) && !isFolder(filepath.Join(filepath.Dir(dir), "cgroup.procs")) && unix.Access(filepath.Join(filepath.Dir(dir), "cgroup.procs"), unix.F_OK) != nil {
			return dir
		}
	}
}

// host starts the test binary as a host in a cgroup, for a program.
func host(t *testing.T, dir string, words string) *exec.Cmd {
	t.Helper()
	for _, name := range wanted { // where there are any; v1 hierarchies may have taken them
		_ = write(filepath.Dir(dir), "cgroup.subtree_control", "+"+name)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{asKey + "=host " + words, "PATH=/usr/bin:/bin", "GORACE=atexit_sleep_ms=0"}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	return cmd
}

// played is what such a host has printed.
func played(t *testing.T, dir, words string) string {
	t.Helper()
	out, err := host(t, dir, words).Output()
	if err != nil {
		t.Fatalf("host %s: %v\n%s", words, err, out)
	}
	if bytes.Contains(out, []byte("still there")) {
		t.Errorf("%s", out)
	}
	return string(out)
}

// staying is a host with a process that stays, of which it prints where it is.
func staying(t *testing.T, dir string) (cmd *exec.Cmd, pid int, group string) {
	t.Helper()
	cmd = host(t, dir, "stay")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, _ := bufio.NewReader(out).ReadString('\n')
	words := strings.Fields(line)
	if len(words) != 3 || words[0] != "runs:" {
		t.Fatalf("host: %q", line)
	}
	pid, _ = strconv.Atoi(words[1])
	return cmd, pid, words[2]
}

// TestPlace: a process runs in a cgroup of its own from the first moment, and what it has forked away ends with it.
func TestPlace(t *testing.T) {
	dir := delegation(t)
	if out := played(t, dir, "where"); !strings.Contains(out, "/"+filepath.Base(dir)+"/agents/an-agent.") {
		t.Errorf("it is in\n%s", out)
	}
	out := played(t, filepath.Join(dir, hostName), "fork") // as a host that another one has started
	text, _, _ := strings.Cut(strings.TrimPrefix(out, "printed: "), "\n")
	pid, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s", out)
	}
	gone(t, pid)
}

// gone waits for the end of a process. Whoever is to take note of it may do that late.
func gone(t *testing.T, pid int) {
	t.Helper()
	for range 1000 {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if _, state, _ := strings.Cut(string(stat), ") "); err != nil || strings.HasPrefix(state, "Z") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %d lives", pid)
}

// TestLeftovers: what a killed host leaves is ended by the next one, and what one that lives has is not.
func TestLeftovers(t *testing.T) {
	dir := delegation(t)
	first, pid, group := staying(t, dir)
	next := filepath.Join(dir, hostName)
	if out := played(t, next, ""); !strings.Contains(out, "left: "+filepath.Base(group)) || unix.Kill(pid, 0) != nil {
		t.Errorf("beside a host that lives: %s", out)
	}
	_ = first.Process.Kill()
	_ = first.Wait()
	if out := played(t, next, ""); strings.Contains(out, "left: ") {
		t.Errorf("after a host that was killed: %s", out)
	}
	gone(t, pid)
}

// TestShared: a cgroup that others are in is left as it is.
func TestShared(t *testing.T) {
	dir := delegation(t)
	other, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	sleep := exec.Command("sleep", "1000")
	sleep.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(other.Fd())}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sleep.Process.Kill(); _ = sleep.Wait() }()
	out, _ := host(t, dir, "where").Output()
	if !strings.Contains(string(out), fmt.Sprintf("has other processes in it, such as %d", sleep.Process.Pid)) {
		t.Errorf("%s", out)
	}
	if isFolder(filepath.Join(dir, hostName)) || isFolder(filepath.Join(dir, agentsName)) {
		t.Error("it was divided")
	}
}

func TestNone(t *testing.T) {
	for _, tree := range []*Tree{nil, {lack: "no reason"}} {
		g, err := tree.New("agent", Limits{Memory: 1})
		if g != nil || err != nil {
			t.Errorf("group %v, %v", g, err)
		}
		attr := &syscall.SysProcAttr{}
		g.Place(attr)
		g.End()
		tree.Close()
		if attr.UseCgroupFD || g.Has("memory") || g.Shortage() != NoShortage || tree.Lack() == "" {
			t.Errorf("%+v", attr)
		}
	}
}

func TestFolderOf(t *testing.T) {
	const v1 = "33 24 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
	const unified = "42 24 0:31 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
	const beside = v1 + "43 24 0:32 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
	const bound = "44 24 0:31 /machine/one /cgroups\\040here rw master:1 shared:2 - cgroup2 cgroup2 rw\n"
	for _, c := range []struct{ cgroups, mounts, want string }{
		{"0::/\n", unified, "/sys/fs/cgroup"},
		{"0::/system.slice/postern.service\n", unified, "/sys/fs/cgroup/system.slice/postern.service"},
		{"9:name=systemd:/\n4:memory:/a/b\n0::/x\n", beside, "/sys/fs/cgroup/unified/x"},
		{"0::/machine/one/two\n", bound, "/cgroups here/two"},
		{"0::/machine/other\n", bound, ""},
		{"0::/../outside\n", unified, ""},
		{"0::/x\n", v1, ""},
		{"4:memory:/a\n", unified, ""},
		{"", "", ""},
		{"0::/x", "nonsense\n - cgroup2 \n", ""},
	} {
		if got, err := folderOf(c.cgroups, c.mounts); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q in %q: %q, %v", c.cgroups, c.mounts, got, err)
		}
	}
}

func TestShortageOf(t *testing.T) {
	for _, c := range []struct {
		events string
		want   Shortage
	}{
		{"low 0\nhigh 0\nmax 31\noom 1\noom_kill 1\noom_group_kill 1\n", Own},
		{"low 0\nhigh 0\nmax 31\noom 2\noom_kill 0\noom_group_kill 0\n", NoShortage}, // it got some back in time
		{"low 0\nhigh 0\nmax 0\noom 0\noom_kill 1\n", Elsewhere},
		{"low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n", NoShortage},
		{"", NoShortage},
	} {
		if got := shortageOf(c.events); got != c.want {
			t.Errorf("%q: %q", c.events, got)
		}
	}
}

func TestWeight(t *testing.T) {
	for nice, want := range map[int]int{0: 100, 5: 33, 19: 1, -20: 8674} {
		if got := weight(nice); got != want {
			t.Errorf("nice %d: %d", nice, got)
		}
	}
}
