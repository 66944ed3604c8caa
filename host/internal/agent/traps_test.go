package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"

	"github.com/posternmail/postern/internal/lack"
)

// What go-plugin by itself gets wrong. Each test fails without the remedy.

// go-plugin's parser of stderr panics at the first of these lines, and takes the host with it.
func TestHostileLogLines(t *testing.T) {
	o, out := options(t, "logs")
	lines := &output{}
	o.Logger = hclog.New(&hclog.LoggerOptions{Output: lines, Level: hclog.Trace, JSONFormat: true})
	a := launch(t, o)
	lines.waitFor(t, `{\"broken\":`)
	mustCall(t, a, event("e", ""))
	found := map[string]map[string]any{}
	for line := range strings.Lines(lines.String()) {
		entry := map[string]any{}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		found[entry["@message"].(string)] = entry
	}
	pid := float64(a.Status().Instances[0].PID)
	for message, want := range map[string]map[string]any{
		"5":                          {"@level": "info"},
		`{"a":1}`:                    {"@level": "info"},
		"from hclog":                 {"@level": "warn", "session": "s1", "message": "m1", "agent": "tester", "pid": pid},
		"from slog":                  {"@level": "error", "score": "7"},
		"by prefix":                  {"@level": "warn"},
		"just text":                  {"@level": "info", "agent": "tester"},
		"evil [31mredover":           {"@level": "info"},
		strings.Repeat("y", maxLine): {"cut": true},
	} {
		entry := found[message]
		if entry == nil {
			t.Errorf("no line %.40q in\n%.3000s", message, lines.String())
			continue
		}
		for key, value := range want {
			if entry[key] != value {
				t.Errorf("line %.40q: %s is %v, want %v", message, key, entry[key], value)
			}
		}
	}
	_ = out
}

func TestLogIsBounded(t *testing.T) {
	t.Parallel()
	o, out := options(t, "chatters")
	begin := time.Now()
	a := launch(t, o)
	out.waitFor(t, "suppressed")
	eventually(t, "the last line to be kept", func() bool {
		tail := a.Status().Instances[0].Stderr
		return len(tail) == shownLines && tail[shownLines-1] == "last words"
	})
	seconds := int(time.Since(begin)/time.Second) + 2 // with those begun
	if n := strings.Count(out.String(), "\n"); n > (seconds+1)*maxLinesSecond {
		t.Errorf("%d lines were logged in %d seconds", n, seconds)
	}
}

// go-plugin's Kill has no deadline: an agent that is stopped would hold it for ever.
func TestCloseOfAStoppedProcess(t *testing.T) {
	t.Parallel()
	o, _ := options(t, "")
	a, err := Launch(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	pid := a.Status().Instances[0].PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	closed := make(chan struct{})
	go func() {
		a.Close(ctx)
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Fatal("Close does not return")
	}
	if syscall.Kill(pid, 0) == nil {
		t.Error("the process lives")
	}
	nothingLeft(t, o)
}

// Its Kill gives a process two seconds and no SIGTERM.
func TestStopping(t *testing.T) {
	t.Parallel()
	t.Run("cleans up for long", func(t *testing.T) {
		o, out := options(t, "slow-exit")
		a, err := Launch(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		a.Close(context.Background())
		for _, want := range []string{"drained", "cleaned up"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("it never %s", want)
			}
		}
		nothingLeft(t, o)
	})
	t.Run("ignores everything", func(t *testing.T) {
		o, _ := options(t, "stubborn")
		a, err := Launch(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		pid := a.Status().Instances[0].PID
		a.Close(context.Background())
		if syscall.Kill(pid, 0) == nil {
			t.Error("the process lives")
		}
		nothingLeft(t, o)
	})
	// Shutdown fails what is in flight: Close waits for it first.
	t.Run("in flight", func(t *testing.T) {
		o, _ := options(t, "")
		a, err := Launch(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() {
			_, err := a.Call(context.Background(), event("e", "sleep 500ms"))
			done <- err
		}()
		eventually(t, "the event to be in flight", func() bool { return a.Status().InFlight == 1 })
		go a.Close(context.Background())
		if err := <-done; err != nil {
			t.Error(err)
		}
		mustFail(t, a, event("after", ""), Down)
		a.Close(context.Background())
	})
}

// Its Ping and its first connection have no deadline.
func TestStartIsBounded(t *testing.T) {
	t.Parallel()
	tests := []struct{ role, step, detail string }{
		{"mute", "starting", "start_timeout"},
		{"deaf", "starting", "start_timeout"},
		{"undescribed", "describing", "start_timeout"},
		{"unpinged", "waiting for the answer to a ping", "start_timeout"},
		{"exits", "starting", "cannot read /etc/needed.conf"},
		{"exits", "starting", "exit status 7"},
		{"babbles", "starting", "babble 0"},
		{"version-2", "starting", "it speaks agent protocol 2"},
		{"strays", "starting", "PLUGIN_UNIX_SOCKET_DIR"},
	}
	for _, test := range tests {
		t.Run(test.role, func(t *testing.T) {
			o, _ := options(t, test.role)
			if test.detail == "start_timeout" {
				o.Spec.StartTimeout = time.Second
			}
			a, err := Launch(context.Background(), o)
			if err == nil {
				a.Close(context.Background())
				t.Fatal("it started")
			}
			if text := err.Error(); !strings.HasPrefix(text, "agent tester: "+test.step+": ") || !strings.Contains(text, test.detail) {
				t.Errorf("error %q", text)
			}
			nothingLeft(t, o)
			noProcessLeft(t, o)
		})
	}
	t.Run("no such file", func(t *testing.T) {
		o, _ := options(t, "")
		o.Spec.Command = []string{"/nonexistent/agent"}
		if _, err := Launch(context.Background(), o); err == nil || !strings.Contains(err.Error(), "/nonexistent/agent") {
			t.Errorf("error %v", err)
		}
		nothingLeft(t, o)
	})
	t.Run("words of its own", func(t *testing.T) { // for logs and terminals
		o, _ := options(t, "rude")
		_, err := Launch(context.Background(), o)
		if err == nil {
			t.Fatal("it started")
		}
		if said, _, _ := strings.Cut(err.Error(), "; its last lines:"); !strings.Contains(said, "forged") || strings.ContainsAny(said, "\n\r\x1b") || len(said) > 2000 {
			t.Errorf("error %.3000q", said)
		}
		noProcessLeft(t, o)
	})
	t.Run("bad configuration", func(t *testing.T) {
		o, _ := options(t, "")
		o.Spec.Config = []byte("bad")
		_, err := Launch(context.Background(), o)
		if err == nil || !strings.Contains(err.Error(), "configuring: bad configuration: make it good") {
			t.Errorf("error %v", err)
		}
		noProcessLeft(t, o)
	})
}

// noProcessLeft asserts that no process has the state folder of o in its environment.
func noProcessLeft(t *testing.T, o Options) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		environ, _ := os.ReadFile(path)
		if bytes.Contains(environ, []byte("POSTERN_STATE_DIR="+o.StateDir)) {
			t.Errorf("process %s is left", filepath.Base(filepath.Dir(path)))
		}
	}
}

// It takes the first line of stdout for the handshake, and stops draining at a line over 64 KiB.
func TestStdout(t *testing.T) {
	t.Run("prints before the handshake", func(t *testing.T) {
		o, out := options(t, "prints")
		mustCall(t, launch(t, o), event("e", ""))
		out.waitFor(t, "hello from an initializer 4")
	})
	t.Run("floods after it", func(t *testing.T) {
		o, out := options(t, "floods")
		a := launch(t, o)
		out.waitFor(t, "flood is over") // the agent is not blocked in its write
		out.waitFor(t, "end of the flood")
		mustCall(t, a, event("e", ""))
	})
}

// What it says of a program that is no plugin is about itself.
func TestProgramThatIsNoAgent(t *testing.T) {
	for command, want := range map[string]string{
		"/bin/false":                  "/bin/false is not an agent of Postern, or it failed early: it printed no handshake line; the process ended: exit status 1",
		"/bin/echo nobody is at home": `it printed "nobody is at home" to stdout and no handshake line`,
	} {
		o, _ := options(t, "")
		o.Spec.Command = strings.Fields(command)
		_, err := Describe(t.Context(), o)
		if err == nil {
			t.Fatalf("%s is an agent", command)
		}
		if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "plugin") {
			t.Errorf("%s: %v", command, err)
		}
	}
}

// It gives plugins the host's stdin, process group and environment, and kills no children of theirs.
func TestProcessStandsAlone(t *testing.T) {
	t.Setenv("HOST_SECRET", "hunter2")
	t.Setenv("OPERATOR", "of the host")
	o, out := options(t, "forks")
	o.Spec.Sandbox.Off = true // which would not let it fork
	o.Spec.Env["OPERATOR"] = "of the agent block"
	o.Spec.Env["POSTERN_TOKEN"] = "forged"
	a := launch(t, o)
	got := data(mustCall(t, a, event("e", "environment")))
	pid := a.Status().Instances[0].PID
	for _, want := range []string{
		"stdin /dev/null", fmt.Sprintf("pgid %d pid %d", pid, pid), "\nOPERATOR=of the agent block\n",
		"\nPOSTERN_INSTANCE=tester\n", "\nPOSTERN_STATE_DIR=" + o.StateDir + "\n", "\nPLUGIN_PROTOCOL_VERSIONS=1\n",
		"\nPATH=" + fixedPath + "\n", "\nPOSTERN_LIFELINE_FD=3", "\nPOSTERN_SIDE_FD=4",
	} {
		if !strings.Contains(got+"\n", want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	for _, bad := range []string{"hunter2", "forged", "PLUGIN_CLIENT_CERT"} {
		if strings.Contains(got, bad) {
			t.Errorf("%q in\n%s", bad, got)
		}
	}
	out.waitFor(t, "forked")
	child, _ := strconv.Atoi(regexp.MustCompile(`child=(\d+)`).FindStringSubmatch(out.String())[1])
	_ = syscall.Kill(pid, syscall.SIGKILL)
	eventually(t, "the child of the dead process to be gone", func() bool { return !alive(child) })
}

// alive reports whether a process runs; a zombie does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	return !bytes.HasPrefix(rest, []byte("Z"))
}

// It lets plugins live on under pid 1 when the host is killed. Either remedy is enough.
func TestNoOrphans(t *testing.T) {
	t.Parallel()
	for _, role := range []string{"no-lifeline", "no-pdeathsig"} {
		t.Run(role, func(t *testing.T) {
			o, _ := options(t, "")
			host := exec.Command(os.Args[0])
			host.Env = append(os.Environ(), roleKey+"=host", "AGENT_ROLE="+role, "RUN_DIR="+o.RunDir)
			out, err := host.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := host.Start(); err != nil {
				t.Fatal(err)
			}
			var pid int
			if _, err := fmt.Fscanln(out, &pid); err != nil {
				t.Fatal(err)
			}
			if !alive(pid) {
				t.Fatal("the agent does not run")
			}
			_ = host.Process.Kill()
			_ = host.Wait()
			eventually(t, "the agent to follow its host", func() bool { return !alive(pid) })
		})
	}
}

// mainHost launches an agent, prints its pid and waits to be killed. Goroutines come and go meanwhile, so that
// threads do: Pdeathsig must not depend on the one that started the agent.
func mainHost() {
	o := Options{RunDir: os.Getenv("RUN_DIR"), Logger: hclog.New(&hclog.LoggerOptions{Output: os.Stderr})}
	o.Spec.Name, o.Spec.Command = "tester", []string{os.Args[0]}
	o.Spec.Env = map[string]string{roleKey: "agent " + os.Getenv("AGENT_ROLE")}
	a, err := Launch(context.Background(), o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(a.Status().Instances[0].PID)
	time.Sleep(time.Hour)
}

// Pdeathsig comes when the thread that started a process ends.
func TestProcessOutlivesTheThreadThatLaunchedIt(t *testing.T) {
	o, _ := options(t, "")
	launched := make(chan *Agent)
	go func() {
		lockAndEndThread(func() {
			a, err := Launch(context.Background(), o)
			if err != nil {
				t.Error(err)
			}
			launched <- a
		})
	}()
	a := <-launched
	defer a.Close(context.Background())
	pid := a.Status().Instances[0].PID
	time.Sleep(200 * time.Millisecond)
	mustCall(t, a, event("e", ""))
	if !alive(pid) || a.Status().Instances[0].PID != pid {
		t.Error("the process ended with the thread")
	}
}

// Its server side takes 4 MiB, its client side 2 GiB: ours takes 8 MiB, and not what is larger.
func TestMessageSizes(t *testing.T) {
	t.Parallel()
	o, _ := options(t, "")
	a := launch(t, o)
	c := event("large", "")
	c.Own = append(c.Own, make([]byte, 0)...)
	c.Own = appendHeader(c.Own, 4<<20-4096)
	mustCall(t, a, c)
	if got := len(data(mustCall(t, a, event("e", "large 6000000")))); got != 6000000 {
		t.Errorf("%d bytes", got)
	}
	f := mustFail(t, a, event("e", "large 9000000"), Poison)
	if !strings.Contains(f.Evidence, "ResourceExhausted") {
		t.Errorf("evidence %s", f.Evidence)
	}
}

// sockets: a long path makes a handshake error that nobody understands.
func TestLongRunDir(t *testing.T) {
	o, _ := options(t, "")
	o.RunDir = filepath.Join(o.RunDir, strings.Repeat("d", 80))
	if err := os.Mkdir(o.RunDir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := Launch(context.Background(), o)
	if err == nil || !strings.Contains(err.Error(), "bytes too long for a socket") {
		t.Errorf("error %v", err)
	}
	nothingLeft(t, o)
}

// Its list of managed clients only grows, and ends them all at once: ours are not in it.
func TestNotManaged(t *testing.T) {
	o, _ := options(t, "")
	a := launch(t, o)
	before := pids(a)[0]
	plugin.CleanupClients()
	mustCall(t, a, event("e", ""))
	if !alive(before) || pids(a)[0] != before {
		t.Error("the process was ended")
	}
}

// Reattaching loses the version and the logs: we attach without go-plugin.
func TestAttach(t *testing.T) {
	o, _ := options(t, "")
	path := o.RunDir + "/dev.sock"
	if err := os.WriteFile(path+".token", []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func() *exec.Cmd {
		_ = os.Remove(path)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), roleKey+"=agent attached", "ATTACH_PATH="+path, "POSTERN_TOKEN=s3cret")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		eventually(t, "the socket", func() bool {
			c, err := net.Dial("unix", path)
			if err != nil {
				return false
			}
			return c.Close() == nil
		})
		return cmd
	}
	first := start()
	o.Spec.Command, o.Spec.Attach = nil, "unix:"+path
	a, err := Launch(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	mustCall(t, a, event("e", ""))
	_ = first.Process.Kill()
	_ = first.Wait()
	second := start()
	if got := data(mustCall(t, a, event("e", "sleep 1ms"))); !strings.Contains(got, strconv.Itoa(second.Process.Pid)) {
		t.Errorf("answer %q", got)
	}
	a.Close(context.Background())
	if !alive(second.Process.Pid) {
		t.Error("the attached process was ended")
	}
}

func TestTokenIsWanted(t *testing.T) {
	o, _ := options(t, "")
	a := launch(t, o)
	p := a.slots[0].process
	other := &process{o: o, logs: p.logs, label: "other", token: "guessed"}
	other.o.Spec.Attach = "unix:" + filepath.Join(p.dir, "plugin"+strconv.Itoa(p.pid()))
	if err := other.attach(context.Background()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := other.describe(ctx); err == nil || !strings.Contains(err.Error(), "Unauthenticated") {
		t.Errorf("error %v", err)
	}
}

func TestDescribeValidateAndCommand(t *testing.T) {
	o, _ := options(t, "")
	manifest, err := Describe(context.Background(), o)
	if err != nil || manifest.GetName() != "test" {
		t.Errorf("%v %v", manifest, err)
	}
	diagnostics, err := Validate(context.Background(), o, []byte(`{"a":1}`))
	if err != nil || len(diagnostics) != 1 || diagnostics[0].GetSummary() != `seen {"a":1}` {
		t.Errorf("%v %v", diagnostics, err)
	}
	nothingLeft(t, o)
	noProcessLeft(t, o)

	o, _ = options(t, "command")
	o.Spec.Config = []byte(`{"b":2}`)
	var out bytes.Buffer
	code, err := RunCommand(context.Background(), o, []string{"train", "-x"}, strings.NewReader("mail"), &out, io.Discard)
	want := fmt.Sprintf("args [\"train\" \"-x\"] config {\"b\":2} state %s stdin \"mail\"\n", o.StateDir)
	if err != nil || code != 5 || out.String() != want {
		t.Errorf("%d %v %q", code, err, out.String())
	}
}

// A process that somebody kills while it is asked does not count: another one is asked, once.
func TestAskedProcessIsKilled(t *testing.T) {
	t.Parallel()
	for role, want := range map[string]string{"killed-once": "", "killed-at-work": "", "killed-always": "signal: killed"} {
		o, _ := options(t, role)
		diagnostics, err := Validate(context.Background(), o, []byte("{}"))
		if want == "" && (err != nil || len(diagnostics) != 1) {
			t.Errorf("%s: %v %v", role, diagnostics, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", role, err)
		}
		nothingLeft(t, o)
	}
}

// A process that closes its stream, or its whole server, and lives on is ended.
func TestHungUp(t *testing.T) {
	o, _ := options(t, "lingers")
	a := launch(t, o)
	before := pids(a)[0]
	f := mustFail(t, a, event("e", "hang-up"), Poison)
	if !strings.Contains(f.Evidence, "while the process lived") {
		t.Errorf("evidence %s", f.Evidence)
	}
	if alive(before) {
		t.Error("the process lives")
	}
}

// A process that the kernel ends for want of memory is reported as that. One that gets no more at its own limit says so
// itself; test/sandbox_test.go has that, since the race detector does not fit into a limit.
func TestOutOfMemory(t *testing.T) {
	group := memoryGroup(t, 64<<20)
	o, _ := options(t, "")
	a := launch(t, o)
	pid := a.Status().Instances[0].PID
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _ = a.Call(context.Background(), event("e", "eat 512"))
	eventually(t, "the reason to be known", func() bool {
		return strings.Contains(a.Status().Instances[0].LastExit, "signal: killed (out of memory: ")
	})
}

// memoryGroup makes a control group that may use so much memory.
func memoryGroup(t *testing.T, limit int) string {
	t.Helper()
	for parent, file := range map[string]string{"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"} {
		group := filepath.Join(parent, "postern-test-"+strconv.Itoa(os.Getpid()))
		if os.Mkdir(group, 0o755) != nil {
			continue
		}
		t.Cleanup(func() { _ = os.Remove(group) })
		if os.WriteFile(filepath.Join(group, file), []byte(strconv.Itoa(limit)), 0o600) == nil {
			return group
		}
	}
	lack.Of(t, "a control group with a limit of memory, which root can make: what the kernel ends cannot be tested")
	return ""
}
