//go:build vm

package test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/posternmail/postern/test/rig"
)

// service is Postern as a unit of systemd.
type service struct {
	*rig.Host
	t *testing.T
}

// newService installs the units of docs/operations.md, word for word, and a configuration at the place they name.
func newService(t *testing.T, user string) *service {
	t.Helper()
	if os.Getenv("POSTERN_VM") != "systemd" {
		t.Fatal("it installs units into the systemd of the machine: make vm has one for it")
	}
	s := &service{rig.New(t, ""), t}
	s.Addr, s.Config = "127.0.0.1:25", "/etc/postern/config.hcl"
	s.put("/etc/systemd/system/postern.service", documented(t, "postern.service"))
	block := hostileAgent(t, s.Host, "memory = \"256 MB\"")
	s.run("mkdir", "-p", filepath.Dir(s.Config), s.Dir+"/drop")
	s.Write(fmt.Sprintf(`
host {
  name     = "edge.example"
  data_dir = "/var/lib/postern"
  %s
}
receive_connector "in" {
  listen = ["{addr}"]
  limits {
    inactivity_timeout = "10m"
    timeout            = "30m"
  }
}
accepted_domain "example.org" {
  type = "authoritative"
}
send_connector "drop" {
  address_spaces = ["*"]
  drop_directory = "{dir}/drop"
}
`, user) + mockWith("stamper", 10, unhurried, "on \"OnEndOfData\" {\n add_header = { X-Seen = \"by the agent\" }\n}\n") + block)
	if user != "" {
		_ = exec.Command("useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", "postern").Run() // it may exist
		s.run("chgrp", "postern", s.Config)
		s.run("chmod", "640", s.Config)
		s.run("chown", "postern", s.Dir+"/drop")
	}
	s.run("systemctl", "daemon-reload")
	t.Cleanup(func() {
		_ = exec.Command("systemctl", "stop", "postern.socket", "postern.service").Run()
		if t.Failed() {
			out, _ := exec.Command("journalctl", "-u", "postern", "--no-pager", "-n", "80").CombinedOutput()
			t.Logf("%s", out)
		}
		_ = os.RemoveAll("/var/lib/postern")
	})
	return s
}

// documented is a unit as the documentation has it.
func documented(t *testing.T, name string) string {
	t.Helper()
	text := read(t, "../docs/operations.md")
	_, rest, found := strings.Cut(text, "```ini\n# /etc/systemd/system/"+name+"\n")
	unit, _, ended := strings.Cut(rest, "```")
	if !found || !ended {
		t.Fatalf("docs/operations.md has no %s", name)
	}
	return unit
}

func (s *service) put(path, text string) {
	s.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func (s *service) run(words ...string) string {
	s.t.Helper()
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// property of the unit, as systemd sees it.
func (s *service) property(name string) string {
	return s.run("systemctl", "show", "--value", "--property", name, "postern.service")
}

func (s *service) mainPID() int {
	pid, _ := strconv.Atoi(s.property("MainPID"))
	return pid
}

func (s *service) owner() int {
	pid, _ := strconv.Atoi(strings.TrimSpace(string(must(os.ReadFile("/var/lib/postern/owner.lock")))))
	return pid
}

func must(text []byte, _ error) []byte { return text }

// cgroup of the unit, as a folder.
func (s *service) cgroup() string { return "/sys/fs/cgroup" + s.property("ControlGroup") }

// sends is a client that sends one message after the other, over sessions of their own.
type sends struct {
	stop   chan struct{}
	once   sync.Once
	done   chan struct{}
	tally  tally
	number int
}

func (s *service) sending() *sends {
	c := &sends{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(c.done)
		for {
			select {
			case <-c.stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			o := (&fire{addr: s.Addr}).once(fmt.Sprintf("<%d@fire.example>", c.number), 1)
			if c.tally.count(o); o.taken {
				c.number++
			}
		}
	}()
	return c
}

// halt stops the client, and waits until it has.
func (c *sends) halt() {
	c.once.Do(func() { close(c.stop) })
	<-c.done
}

// ends stops the client, which must have met with nothing but success, and answers with the number of its messages.
func (c *sends) ends(t *testing.T) int {
	t.Helper()
	c.halt()
	c.tally.mustBeClean(t)
	if c.number == 0 {
		t.Error("nothing was sent")
	}
	return c.number
}

// controllers reports whether systemd has what limits groups: in a container of a machine that keeps them in the first
// version of cgroups it has not.
func (s *service) controllers() bool {
	return strings.Contains(read(s.t, "/sys/fs/cgroup/cgroup.controllers"), "memory")
}

// grouped looks whether an agent has a cgroup of the unit, or says why not.
func (s *service) grouped(agent string) {
	s.t.Helper()
	want := "by cgroup: "
	if !s.controllers() {
		want = "has none of the controllers memory, pids, cpu"
	} else if group := groupOf(s.t, processes(s.Host, agent)[0]); filepath.Dir(group) != s.cgroup()+"/agents" {
		s.t.Errorf("agent %s is in %s", agent, group)
	}
	shown := strings.Join(strings.Fields(s.MustPostern("agent", "show", agent)), " ")
	if !strings.Contains(shown, want) {
		s.t.Errorf("%q is not in\n%s", want, shown)
	}
}

// runsOutOfMemory has an agent use up what it may have.
func (s *service) runsOutOfMemory() {
	path := "/var/lib/postern/agents/hostile/orders"
	s.put(path, "eat 400\n")
	accepted(s.t, s.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	if err := os.Remove(path); err != nil {
		s.t.Fatal(err)
	}
	s.WaitFor("the reason to be shown", func() bool {
		return strings.Contains(s.MustPostern("agent", "show", "hostile"), "out of memory: it may have 256 MB, and the kernel has ended it")
	})
	s.WaitFor("another process", func() bool { return len(processes(s.Host, "hostile")) == 1 })
}

// TestService: the unit of the documentation starts a host that systemd follows through restarts, whose agents have
// cgroups, and that comes back after a crash; mail is taken throughout.
func TestService(t *testing.T) {
	for name, user := range map[string]string{"as root": "", "as a user": `user = "postern"`} {
		t.Run(name, func(t *testing.T) { testService(t, newService(t, user), user != "") })
	}
}

func testService(t *testing.T, s *service, drops bool) {
	s.run("systemctl", "start", "postern.service") // returns when mail is taken
	sent := 1
	accepted(t, s.Greeted(), "a@sender.example", "b@example.org", large)
	first, owner := s.mainPID(), s.owner()
	if drops == (first == owner) {
		t.Errorf("the main process is %d, the host %d", first, owner)
	}
	if drops && statuses(t, owner)[0]["NoNewPrivs"] != "1" {
		t.Errorf("the host: %v", statuses(t, owner)[0])
	}
	s.grouped("stamper")
	s.grouped("hostile")

	// A reload through systemd, and one of systemd itself, which leaves the cgroups alone.
	s.run("systemctl", "reload", "postern.service")
	s.run("systemctl", "daemon-reload")
	s.MustPostern("agent", "restart", "stamper")
	s.grouped("stamper")

	// An agent without memory ends alone: neither the unit nor another agent notices.
	if got := s.property("OOMPolicy"); got != "continue" {
		t.Errorf("OOMPolicy is %s", got)
	}
	if s.controllers() {
		s.runsOutOfMemory()
	}

	// Restarts: before, during and after them a client sends, and a session goes on from before to after.
	session := s.Greeted()
	client := s.sending()
	for range 2 {
		var done restarted
		s.JSON(&done, "restart")
		s.WaitFor("systemd to know the main process", func() bool { return s.mainPID() == done.PID || drops && s.mainPID() == first })
		if s.owner() != done.PID {
			t.Errorf("process %d owns the data, %d was started", s.owner(), done.PID)
		}
	}
	accepted(t, session, "a@sender.example", "b@example.org", helloMessage)
	session.Do("QUIT", "221")
	sent += 1 + client.ends(t)
	if state := s.property("ActiveState") + " " + s.property("SubState"); state != "active running" {
		t.Errorf("the unit is %s", state)
	}

	// A crash: systemd starts it again, in the cgroup that the crashed one had divided.
	crashed := s.mainPID()
	if err := syscall.Kill(crashed, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.WaitFor("systemd to start it again", func() bool {
		return s.mainPID() != crashed && s.property("SubState") == "running"
	})
	accepted(t, s.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	sent++
	s.grouped("stamper")
	s.WaitDropped(sent)

	group := s.cgroup()
	s.run("systemctl", "stop", "postern.service")
	if result := s.property("Result"); result != "success" {
		t.Errorf("it ended with %s", result)
	}
	if _, err := os.Stat(group); err == nil {
		t.Errorf("%s is still there", group)
	}
}

// TestServiceSocket: with the socket unit of the documentation systemctl restart, which ends the host and starts another
// one, refuses nobody.
func TestServiceSocket(t *testing.T) {
	s := newService(t, `user = "postern"`)
	addresses := "ListenStream=" + s.Addr
	var unit []string
	for line := range strings.Lines(documented(t, "postern.socket")) {
		if strings.HasPrefix(line, "ListenStream=") {
			line, addresses = addresses, ""
		}
		unit = append(unit, strings.TrimSpace(line))
	}
	s.put("/etc/systemd/system/postern.socket", strings.Join(unit, "\n")+"\n")
	s.run("systemctl", "daemon-reload")
	s.run("systemctl", "start", "postern.socket")
	c, err := net.Dial("tcp", s.Addr) // starts the service
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	s.WaitFor("the service", func() bool { return s.property("SubState") == "running" })
	client := s.sending()
	before := s.mainPID()
	s.run("systemctl", "restart", "postern.service")
	accepted(t, s.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	if s.mainPID() == before {
		t.Error("it was not restarted")
	}
	client.halt()
	// A session that is under way when the host ends is told 421 after its message, and a connection that was not greeted yet
	// may be closed: neither is a refusal, and no message is under way.
	negative, dropped := client.tally.negative, client.tally.dropped
	client.tally.negative, client.tally.dropped = nil, nil
	for _, one := range append(negative, dropped...) {
		if !strings.Contains(one, ": 421 ") && !strings.Contains(one, " banner: ") {
			t.Error(one)
		}
		t.Log(one)
	}
	s.WaitDropped(client.ends(t) + 1)
}
