package test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// hostileAgent is a block of test/hostile, built into the host's folder, where every user may run it.
func hostileAgent(t *testing.T, h *rig.Host, sandbox string) string {
	t.Helper()
	build := exec.Command("go", "build", "-o", filepath.Join(h.Dir, "hostile"), "github.com/posternmail/postern/test/hostile")
	if built := filepath.Join(rig.Bin(t), "hostile"); os.Getenv("POSTERN_BIN") != "" { // where there is no compiler
		build = exec.Command("cp", built, h.Dir)
	}
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the hostile agent: %v\n%s", err, out)
	}
	return `
agent "hostile" {
  priority = 20
  command  = ["{dir}/hostile"]
` + unhurried + `
  timeout {
    message = "60s"
  }
  sandbox {
` + sandbox + `
  }
}
`
}

// attack has the hostile agent make attempts, and answers with how each ended.
func attack(t *testing.T, h *rig.Host, attempts []string) map[string]string {
	t.Helper()
	state := filepath.Join(h.Dir, "data/agents/hostile")
	_ = os.Remove(state + "/answers")
	if err := os.WriteFile(state+"/orders", []byte(strings.Join(attempts, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", large)
	answers, err := os.ReadFile(state + "/answers")
	if err != nil {
		t.Fatal(err)
	}
	ended := map[string]string{}
	for line := range strings.Lines(string(answers)) {
		what, how, _ := strings.Cut(strings.TrimSpace(line), " ")
		ended[what] = how
	}
	return ended
}

// large is a message whose body is a file of the queue's and reaches the agent as a descriptor.
var large = "From: a@sender.example\r\nSubject: large\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 5000)

// TestHostileAgent: an agent that has turned against the host reaches nothing but its own, whether it has a user of its
// own or that of the host.
func TestHostileAgent(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Run("a user of its own", func(t *testing.T) {
			h, out := hostileScene(t, 0o711, "")
			testHostile(t, h, out, "permission denied", "permission denied")
		})
		t.Run("a user of its own, under a host that has given up root", func(t *testing.T) {
			h, out := newHostileScene(t, newDropped(t, ""), dropped, 0o711, "")
			testHostile(t, h, out, "permission denied", "permission denied")
		})
	}
	// Strangers may not enter the folder, so root gives none.
	t.Run("the user of the host", func(t *testing.T) {
		h, out := hostileScene(t, 0o700, "")
		testHostile(t, h, out, "403 Forbidden", "Unauthenticated")
	})
}

func testHostile(t *testing.T, h *rig.Host, out, control, token string) {
	neighbour := processes(h, "victim")[0]
	attempts := []struct{ what, words, by string }{
		{"reads the users file", "read#users {dir}/users", "permission denied"},
		{"reads the configuration", "read#config {dir}/config.hcl", "permission denied"},
		{"reads another agent's state", "read#state {dir}/data/agents/victim/secret", "permission denied"},
		{"looks for other messages", "list#queue {dir}/data/queue", "permission denied"},
		{"looks for other agents' sockets", "list#run {dir}/data/run", "permission denied"},
		{"reads a neighbour's launch token", fmt.Sprintf("read#token /proc/%d/environ", neighbour), "permission denied"},
		{"connects out", "connect " + out, "permission denied"},
		{"controls the host", "control {dir}/data/control.sock", control},
		{"calls another agent", "agent " + socketOf(t, neighbour), token},
		{"forks away", "fork", "operation not permitted"},
		{"kills the process that was started", fmt.Sprintf("kill#parent %d", h.Pid()), "operation not permitted"},
		{"kills the host", fmt.Sprintf("kill#host %d", owningPid(t, h)), "operation not permitted"},
		{"kills another agent", fmt.Sprintf("kill#agent %d", neighbour), "operation not permitted"},
		{"traces a neighbour", fmt.Sprintf("ptrace %d", neighbour), "operation not permitted"},
		{"lives on without the host", "immortal", "operation not permitted"},
		{"changes the message where it is stored", "forge", "permission denied"},
	}
	var words []string
	for _, a := range attempts {
		words = append(words, strings.ReplaceAll(a.words, "{dir}", h.Dir))
	}
	ended := attack(t, h, words)
	for _, a := range attempts {
		name, _, _ := strings.Cut(a.words, " ")
		got := ended[name]
		if !strings.HasPrefix(got, "failed: ") || !strings.Contains(got, a.by) {
			t.Errorf("it %s: %s", a.what, got)
		}
		t.Logf("it %s: %s", a.what, got)
	}
	for _, m := range h.WaitDropped(2) {
		if strings.Contains(m, "forged") {
			t.Error("a message is forged")
		}
	}
	if pid := processes(h, "victim")[0]; pid != neighbour {
		t.Errorf("the victim was process %d and is %d", neighbour, pid)
	}
	own := processes(h, "hostile")[0]
	h.Kill()
	h.WaitFor("the hostile agent to end with the host", func() bool { return syscall.Kill(own, 0) != nil })
}

// TestHostileUnbound shows what the sandbox is for: without it, as an agent of the host's user, the same attempts succeed.
func TestHostileUnbound(t *testing.T) {
	h, out := hostileScene(t, 0o700, "enabled = false")
	ended := attack(t, h, []string{
		"read#users " + h.Dir + "/users", "read#state " + h.Dir + "/data/agents/victim/secret", "list#queue " + h.Dir + "/data/queue",
		"connect " + out, "control " + h.Dir + "/data/control.sock", "immortal", "forge",
	})
	if len(ended) != 7 {
		t.Errorf("%d answers", len(ended))
	}
	for what, got := range ended {
		if got != "succeeded" {
			t.Errorf("%s %s", what, got)
		}
	}
}

// TestFullDisk: an agent that fills its state folder is ended, and says why; others go on.
func TestFullDisk(t *testing.T) {
	h, _ := hostileScene(t, 0o711, `disk = "8 MB"`)
	if got := attack(t, h, []string{"fill 6"})["fill"]; got != "succeeded" {
		t.Errorf("within its bounds: %s", got)
	}
	attack(t, h, []string{"fill 20"})
	h.WaitFor("the agent to be ended", func() bool {
		return strings.Contains(h.MustPostern("agent", "show", "hostile"), "its sandbox allows 8 MB")
	})
	if len(processes(h, "victim")) != 1 {
		t.Error("the victim does not run")
	}
}

// TestMemory: an agent that takes more memory than it may ends, is started again, and its exit says why.
func TestMemory(t *testing.T) {
	h, _ := hostileScene(t, 0o711, `memory = "256 MB"`)
	orders := filepath.Join(h.Dir, "data/agents/hostile/orders")
	if err := os.WriteFile(orders, []byte("eat 1000\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := processes(h, "hostile")
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage) // it has ended two processes, and is parked
	h.WaitFor("the reason to be shown", func() bool {
		return strings.Contains(h.MustPostern("agent", "show", "hostile"), "out of memory: it may have 256 MB")
	})
	if err := os.Remove(orders); err != nil {
		t.Fatal(err)
	}
	h.WaitFor("another process", func() bool {
		now := processes(h, "hostile")
		return len(now) == 1 && now[0] != before[0]
	})
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
}

// unhurried are agents on a machine that may be emulated, with much else to do.
const unhurried = `  start_timeout = "2m"
`

// hostileScene is a host with a victim that has written something and the hostile agent, and an address to connect to.
func hostileScene(t *testing.T, mode os.FileMode, sandbox string) (h *rig.Host, out string) {
	t.Helper()
	return newHostileScene(t, rig.New(t, ""), plain, mode, sandbox)
}

// newHostileScene is hostileScene with a host that was not started yet, and its configuration.
func newHostileScene(t *testing.T, h *rig.Host, config string, mode os.FileMode, sandbox string) (_ *rig.Host, out string) {
	t.Helper()
	block := hostileAgent(t, h, sandbox)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	if err := os.WriteFile(filepath.Join(h.Dir, "users"), []byte("somebody:hash\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(h.Dir, mode); err != nil {
		t.Fatal(err)
	}
	h.Write(config + mockWith("victim", 10, unhurried, "record = \"secret\"\nevents = [\"OnConnect\", \"OnRcpt\"]\n") + block)
	h.Start()
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	return h, listener.Addr().String()
}

// socketOf is the path of the socket that an agent listens at.
func socketOf(t *testing.T, pid int) string {
	t.Helper()
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, variable := range strings.Split(string(environ), "\x00") {
		if dir, ok := strings.CutPrefix(variable, "PLUGIN_UNIX_SOCKET_DIR="); ok {
			found, err := filepath.Glob(dir + "/*/s")
			if err != nil || len(found) != 1 {
				t.Fatalf("sockets in %s: %v %v", dir, found, err)
			}
			return found[0]
		}
	}
	t.Fatalf("process %d has no folder for its socket", pid)
	return ""
}

// TestGrants: an agent does what its operator grants and nothing else, whatever it declares. What it may not do is a
// breach, of which nothing is applied.
func TestGrants(t *testing.T) {
	h := rig.Start(t, plain+mockWith("capped", 10, "grants = [\"headers\", \"defer\"]\non_failure = \"skip\"\n", `
    on "OnEndOfData" {
      sender = "^refused@"
      action = "reject"
      text   = "not granted"
      add_header = { X-Capped = "with a refusal" }
    }
    on "OnEndOfData" {
      add_header = { X-Capped = "granted" }
    }`))
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	id := accepted(t, h.Greeted(), "refused@sender.example", "b@example.org", helloMessage)
	all := strings.Join(h.WaitDropped(2), "\n")
	if strings.Count(all, "X-Capped: ") != 1 || !strings.Contains(all, "X-Capped: granted") {
		t.Errorf("messages\n%s", all)
	}
	steps := waitRecord(h, id, "RECEIVE").steps("capped", "OnEndOfData")
	if len(steps) != 1 || steps[0].Failure == "" {
		t.Errorf("steps %+v", steps)
	}
}
