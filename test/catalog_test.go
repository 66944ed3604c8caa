package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/posternmail/postern/test/rig"
)

// versioned is an agent "judge" that runs an installed version of the mock.
func versioned(constraint string) string {
	return fmt.Sprintf("agent \"judge\" {\n  plugin = \"mock\"\n  priority = 10\n  version = %q\n  config {\n%s\n  }\n}\n", constraint, judge("a"))
}

// install puts the mock of a version into the catalog of a host.
func install(t *testing.T, h *rig.Host, version string) {
	t.Helper()
	if out := h.MustPostern("agent", "install", mockVersion(t, version)); !strings.Contains(out, "mock "+version+" installed") {
		t.Fatalf("install said %q", out)
	}
}

// catalogEntry is one of `agent list --installed --json`.
type catalogEntry struct {
	Plugin, Version, SHA256 string
	Protocol                int
	Command                 []string
	Used                    bool
}

func installedNow(h *rig.Host) (list []catalogEntry) {
	h.JSON(&list, "agent", "list", "--installed")
	return list
}

// lockText is the lock file of a host.
func lockText(t *testing.T, h *rig.Host) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(h.Dir, "data", "agents.lock.hcl"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The life of versions: what satisfies the constraint runs, and stays until it is told otherwise, over restarts; nothing
// of that is drift. What the constraint does not admit is.
func TestVersionsFromTheCatalog(t *testing.T) {
	t.Parallel()
	h := rig.New(t, plain+versioned("~> 1.1"))
	if out, err := h.Postern("check"); err == nil || !strings.Contains(out, `no installed version satisfies it; none is installed`) || !strings.Contains(out, "config.hcl:") {
		t.Errorf("check without a version: %v\n%s", err, out)
	}
	install(t, h, "1.1.0")
	h.Start()
	runs := func(when, version string) {
		t.Helper()
		one := agentNow(h, "judge")
		if one.Version != version || one.Drift != "" || !strings.Contains(one.Command[0], "/catalog/sha256-") {
			t.Errorf("%s: %+v, want version %s without drift", when, one, version)
		}
		if text := lockText(t, h); !strings.Contains(text, fmt.Sprintf("version = %q", version)) || !strings.Contains(text, one.Command[0]) {
			t.Errorf("%s: the lock file says\n%s", when, text)
		}
	}
	runs("at first", "1.1.0")
	install(t, h, "1.2.0")
	h.MustPostern("reload")
	h.Stop()
	h.Start()
	runs("a newer one was installed", "1.1.0")
	if out := h.MustPostern("agent", "list"); !strings.Contains(strings.Join(strings.Fields(out), " "), "judge 1.1.0 1 1.2.0 other") {
		t.Errorf("agent list shows no version that is available:\n%s", out)
	}
	h.MustPostern("agent", "upgrade", "judge")
	runs("after the upgrade", "1.2.0")
	if out := h.MustPostern("agent", "prune"); !strings.Contains(out, "nothing is unused") {
		t.Errorf("prune took what rollback goes back to:\n%s", out)
	}
	h.Stop()
	h.Start()
	runs("after the upgrade and a restart", "1.2.0")

	h.Write(plain + versioned("1.2.0"))
	h.MustPostern("reload")
	if out := h.MustPostern("agent", "upgrade", "judge", "--version", "1.1.0"); !strings.Contains(out, "judge 1.1.0 has followed 1.2.0") {
		t.Errorf("upgrade said %q", out)
	}
	h.MustPostern("reload")
	if one := agentNow(h, "judge"); one.Version != "1.1.0" || !strings.Contains(one.Drift, "by postern agent upgrade") {
		t.Errorf("what the constraint does not admit: %+v", one)
	}
	h.MustPostern("agent", "reset", "judge")
	runs("after reset", "1.2.0")
	h.Write(plain + versioned("~> 3.0"))
	if out, err := h.Postern("reload"); err == nil || !strings.Contains(out, "installed: 1.2.0, 1.1.0") || !strings.Contains(out, "config.hcl:") {
		t.Errorf("reload with a version that is not there: %v\n%s", err, out)
	}
	runs("after a reload that failed", "1.2.0")
	if out, err := h.Postern("agent", "upgrade", "judge", "--version", "1.9.0"); err == nil || !strings.Contains(out, "installed: 1.2.0, 1.1.0") {
		t.Errorf("upgrade to a version that is not there: %v\n%s", err, out)
	}
}

// Two versions of one agent run side by side, and each answers its own sessions.
func TestTwoInstalledVersionsAtOnce(t *testing.T) {
	t.Parallel()
	h := rig.New(t, plain+versioned("~> 1.1"))
	install(t, h, "1.1.0")
	h.Start()
	install(t, h, "1.2.0")
	h.MustPostern("agent", "upgrade", "judge", "--version", "1.2.0", "--canary", "50%")
	seen := map[string]bool{}
	h.WaitFor("answers of both versions", func() bool {
		id := accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
		for _, version := range waitRecord(h, id, "RECEIVE").versionsAt("judge", "OnEndOfData") {
			seen[version] = true
		}
		return seen["1.1.0"] && seen["1.2.0"]
	})
	h.MustPostern("agent", "promote", "judge")
	if one := agentNow(h, "judge"); one.Version != "1.2.0" {
		t.Errorf("after promote: %+v", one)
	}
}

// What is not used is removed; what runs, and what rollback goes back to, stays.
func TestPrune(t *testing.T) {
	t.Parallel()
	h := rig.New(t, plain+versioned("~> 1.2"))
	install(t, h, "1.1.0")
	install(t, h, "1.2.0")
	h.Start()
	if out := h.MustPostern("agent", "prune", "--dry-run"); !strings.Contains(out, "mock 1.1.0 would be removed") || strings.Contains(out, "1.2.0") {
		t.Errorf("prune --dry-run said\n%s", out)
	}
	if n := len(installedNow(h)); n != 2 {
		t.Errorf("after --dry-run %d versions are left", n)
	}
	h.MustPostern("agent", "prune")
	if left := installedNow(h); len(left) != 1 || left[0].Version != "1.2.0" || !left[0].Used {
		t.Errorf("after prune: %+v", left)
	}
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	h.Write(plain + versioned("~> 7.0"))
	if out, err := h.Postern("agent", "prune"); err == nil || !strings.Contains(out, "nothing is removed") {
		t.Errorf("prune with a configuration that comes to nothing: %v\n%s", err, out)
	}
}

// One version has one content.
func TestVersionsNeverChange(t *testing.T) {
	t.Parallel()
	h := rig.New(t, plain)
	install(t, h, "1.1.0")
	before := installedNow(h)[0]
	other := filepath.Join(h.Dir, "other")
	content, err := os.ReadFile(mockVersion(t, "1.1.0"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, append(content, 0), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := h.Postern("agent", "install", other)
	if err == nil || !strings.Contains(out, before.SHA256) || strings.Count(out, "SHA-256") != 1 || len(hexNumbers(out)) != 2 {
		t.Errorf("the same version with another content: %v\n%s", err, out)
	}
	if now := installedNow(h); len(now) != 1 || now[0].SHA256 != before.SHA256 {
		t.Errorf("the catalog has %+v", now)
	}
	if out := h.MustPostern("agent", "install", "file://"+mockPath("1.1.0")); !strings.Contains(out, "installed already") {
		t.Errorf("the same content again: %s", out)
	}
}

// hexNumbers are the different SHA-256 digests in a text.
func hexNumbers(text string) map[string]bool {
	found := map[string]bool{}
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) }) {
		if len(word) == 64 {
			found[word] = true
		}
	}
	return found
}

// judgeFails waits until the agent has no process, and has said why.
func judgeFails(t *testing.T, h *rig.Host, why ...string) {
	t.Helper()
	h.WaitFor("an agent that is not started", func() bool {
		out := h.MustPostern("agent", "show", "judge")
		for _, text := range why {
			if !strings.Contains(out, text) {
				return false
			}
		}
		return true
	})
	if out := h.MustPostern("status"); !strings.Contains(out, "judge is not running") || !strings.Contains(out, why[0]) {
		t.Errorf("status does not say why:\n%s", out)
	}
	c := h.Greeted()
	c.Do("MAIL FROM:<a@sender.example>", "451")
}

func killJudge(t *testing.T, h *rig.Host) {
	t.Helper()
	if err := syscall.Kill(agentNow(h, "judge").Instances[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// A file of the catalog that has changed on the disk is not started; mail follows on_failure until it is mended.
func TestDamagedVersionDoesNotStart(t *testing.T) {
	t.Parallel()
	h := rig.New(t, plain+versioned("~> 1.1"))
	install(t, h, "1.1.0")
	h.Start()
	program := agentNow(h, "judge").Command[0]
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/2] ^= 1
	// As a disk does it, or root: nobody else can write there, and not while it runs.
	if err := os.Chmod(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, content, 0o755); err != nil {
		t.Fatal(err)
	}
	killJudge(t, h)
	judgeFails(t, h, "is not what it was", "mended by postern agent install")
	if out, err := h.Postern("agent", "restart", "judge"); err == nil || !strings.Contains(out, "is not what it was") {
		t.Errorf("restart: %v\n%s", err, out)
	}
	if out, err := h.Postern("check"); err == nil || !strings.Contains(out, "is not what it was") {
		t.Errorf("check: %v\n%s", err, out)
	}
	install(t, h, "1.1.0")
	h.MustPostern("agent", "restart", "judge")
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
}

// The program of a command is not started when it was changed in place, until somebody has said that it is meant.
func TestChangedProgramDoesNotStart(t *testing.T) {
	t.Parallel()
	h := rig.New(t, plain+strings.Replace(mockAgent("judge", 10, judge("a")), "priority", "command = [\"./program\"]\n  priority", 1))
	program := filepath.Join(h.Dir, "program")
	replace := func(version string) {
		t.Helper()
		content, err := os.ReadFile(mockVersion(t, version))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(program+".new", content, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(program+".new", program); err != nil {
			t.Fatal(err)
		}
	}
	replace("1.1.0")
	h.Start()
	replace("1.2.0")
	killJudge(t, h)
	judgeFails(t, h, "is not what it was", "postern agent upgrade judge")
	h.MustPostern("agent", "upgrade", "judge")
	if one := agentNow(h, "judge"); one.Version != "1.2.0" || one.Drift != "" {
		t.Errorf("after upgrade: %+v", one)
	}
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	killJudge(t, h)
	waitVersion(h, "judge", "1.2.0")

	if out, err := h.Postern("agent", "lock", "judge"); err == nil || !strings.Contains(out, "agent upgrade") {
		t.Errorf("lock beside a running host: %v\n%s", err, out)
	}
	h.Stop()
	replace("1.1.0")
	h.Start()
	judgeFails(t, h, "is not what it was", "postern agent lock judge")
	h.Stop()
	h.MustPostern("agent", "lock", "judge")
	h.Start()
	if one := agentNow(h, "judge"); one.Version != "1.1.0" {
		t.Errorf("after lock: %+v", one)
	}
}

// A bundled program changes with the host: it is held to what it was at the start, and a reload takes the new one.
func TestBundledProgramsAreTakenByAReload(t *testing.T) {
	t.Parallel()
	h := rig.New(t, plain+mockAgent("judge", 10, judge("a")))
	h.Binary = filepath.Join(h.Dir, "bin", "postern")
	put := func(from, to string) {
		t.Helper()
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to+".new", content, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(to+".new", to); err != nil {
			t.Fatal(err)
		}
	}
	bundled := filepath.Join(h.Dir, "bin", "agents", "mock")
	if err := os.MkdirAll(filepath.Dir(bundled), 0o755); err != nil {
		t.Fatal(err)
	}
	put(filepath.Join(rig.Bin(t), "postern"), h.Binary)
	put(mockVersion(t, "1.1.0"), bundled)
	h.Start()
	put(mockVersion(t, "1.2.0"), bundled)
	killJudge(t, h)
	judgeFails(t, h, "is not what it was")
	if out := h.MustPostern("reload"); !strings.Contains(out, `agent "judge"`) {
		t.Errorf("reload said\n%s", out)
	}
	if one := agentNow(h, "judge"); one.Version != "1.2.0" || one.Drift != "" {
		t.Errorf("after the reload: %+v", one)
	}
	put(mockVersion(t, "1.1.0"), bundled)
	h.Stop()
	h.Start()
	if one := agentNow(h, "judge"); one.Version != "1.1.0" {
		t.Errorf("after a start: %+v", one)
	}
}

// Whenever an installation is killed, the version is there as a whole or not at all, and nothing else is left.
func TestKilledInstallLeavesNothingHalf(t *testing.T) {
	t.Parallel()
	h := rig.New(t, plain)
	program := mockVersion(t, "1.1.0")
	for i := range 12 {
		cmd := exec.Command(filepath.Join(rig.Bin(t), "postern"), "agent", "install", program, "--config", h.Config)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i*40) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for _, one := range installedNow(h) {
			if out, err := exec.Command(one.Command[0], "--version").CombinedOutput(); err != nil || !strings.Contains(string(out), "1.1.0") {
				t.Fatalf("round %d: what is installed does not run: %v\n%s", i, err, out)
			}
		}
	}
	h.MustPostern("agent", "install", program)
	if left := catalogFiles(t, h); len(left) != 2 {
		t.Errorf("the catalog holds %v", left)
	}
}

// catalogFiles are the names in the catalog.
func catalogFiles(t *testing.T, h *rig.Host) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(h.Dir, "data", "catalog"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Commands that install at once do not disturb each other.
func TestConcurrentInstalls(t *testing.T) {
	h := rig.New(t, plain)
	programs := []string{mockVersion(t, "1.1.0"), mockVersion(t, "1.2.0"), mockVersion(t, "1.1.0"), mockVersion(t, "1.2.0")}
	var done sync.WaitGroup
	for _, program := range programs {
		done.Go(func() {
			if out, err := h.Postern("agent", "install", program); err != nil {
				t.Errorf("%s: %v\n%s", program, err, out)
			}
		})
	}
	done.Wait()
	if n := len(installedNow(h)); n != 2 {
		t.Errorf("%d versions are installed", n)
	}
	if left := catalogFiles(t, h); len(left) != 3 {
		t.Errorf("the catalog holds %v", left)
	}
}

// A full disk is an error that leaves the catalog as it was.
func TestInstallOnAFullDisk(t *testing.T) {
	h := rig.New(t, plain)
	script := `mkdir -p data && mount -t tmpfs -o size=4m none data && "$0" agent install "$1" --config config.hcl; echo exit $?; ls -A data/catalog`
	flags := "-rm"
	if os.Geteuid() == 0 {
		flags = "-m"
	}
	cmd := exec.Command("unshare", flags, "sh", "-c", script, filepath.Join(rig.Bin(t), "postern"), mockVersion(t, "1.1.0"))
	cmd.Dir = h.Dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if text := string(out); !strings.Contains(text, "no space left on device") || !strings.HasSuffix(text, "exit 1\nlock\n") {
		t.Errorf("got\n%s", text)
	}
}

// A program comes from a web server of this machine, and not from one of the internet.
func TestInstallFromAServer(t *testing.T) {
	h := rig.New(t, plain)
	mockVersion(t, "1.1.0")
	server := httptest.NewServer(http.FileServer(http.Dir(versions.dir)))
	defer server.Close()
	if out := h.MustPostern("agent", "install", server.URL+"/mock-1.1.0"); !strings.Contains(out, "mock 1.1.0 installed") {
		t.Errorf("install said %q", out)
	}
	if out, err := h.Postern("agent", "install", server.URL+"/nothing"); err == nil || !strings.Contains(out, "404") {
		t.Errorf("what is not there: %v\n%s", err, out)
	}
	away := httptest.NewServer(http.RedirectHandler("http://192.0.2.1/agent", http.StatusFound))
	defer away.Close()
	if out, err := h.Postern("agent", "install", away.URL); err == nil || !strings.Contains(out, "192.0.2.1 is not on this machine or a local network") {
		t.Errorf("a server elsewhere: %v\n%s", err, out)
	}
}

// packed is a .tar.gz of files; a name that ends in "*" is executable.
func packed(t *testing.T, files map[string][]byte) string {
	t.Helper()
	var raw bytes.Buffer
	zipped := gzip.NewWriter(&raw)
	w := tar.NewWriter(zipped)
	for name, content := range files {
		name, executable := strings.CutSuffix(name, "*")
		mode := int64(0o644)
		if executable {
			mode = 0o755
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: mode}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zipped.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "agent.tar.gz")
	if err := os.WriteFile(path, raw.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// An agent built from the protocol as it was first released works in this host: here the one in Python, whose messages
// are generated from that, installed from an archive of several files.
func TestAgentOfTheReleasedProtocol(t *testing.T) {
	t.Parallel()
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("protoc", "-I", filepath.Join(root, "sdk/released/1.0/postern/agent/v1"), "--python_out="+dir, "agent.proto")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("generating the messages: %v\n%s", err, out)
	}
	files := map[string][]byte{"manifest.json": []byte(`{"name": "tagger", "version": "1.0.0", "program": "agent.py"}`)}
	for name, path := range map[string]string{
		"agent.py*": filepath.Join(root, "examples/python/agent.py"), "serve.py": filepath.Join(root, "examples/python/serve.py"),
		"agent_pb2.py": filepath.Join(dir, "agent_pb2.py"),
	} {
		if files[name], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	if bytes.Contains(files["agent_pb2.py"], []byte("Degradation")) {
		t.Fatal("the released protocol is not the one without Health")
	}
	h := rig.New(t, plain+`
agent "tagger" {
  priority = 10
  version  = "1.0.0"
  config {
    words   = ["lottery"]
    refused = ["nobody@example.org"]
  }
}
`)
	h.MustPostern("agent", "install", packed(t, files))
	h.Start()
	c := h.Greeted()
	c.Do("MAIL FROM:<a@sender.example>", "250")
	c.Do("RCPT TO:<nobody@example.org>", "550")
	c.Do("RCPT TO:<b@example.org>", "250")
	if got := c.Data("Subject: hello\r\n\r\nYou won the lottery.\r\n"); !strings.HasPrefix(got, "250") {
		t.Fatalf("got %q", got)
	}
	if got := h.WaitDropped(1)[0]; !strings.Contains(got, "\r\nSubject: [word] hello\r\n") {
		t.Errorf("the subject is not marked in\n%.2000s", got)
	}
	library := filepath.Join(filepath.Dir(agentNow(h, "tagger").Command[0]), "serve.py")
	if err := os.Chmod(library, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(library, append(files["serve.py"], '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := h.Postern("agent", "restart", "tagger"); err == nil || !strings.Contains(out, "serve.py is not what it was") {
		t.Errorf("a changed file beside the program: %v\n%s", err, out)
	}
}

// A protocol that this host does not speak is refused in words, wherever such a program turns up.
func TestUnknownProtocolIsRefused(t *testing.T) {
	h := rig.New(t, plain)
	future := filepath.Join(h.Dir, "future")
	script := "#!/bin/sh\necho \"1|2|unix|$PLUGIN_UNIX_SOCKET_DIR/s|grpc|\"\nexec cat <&3\n"
	if err := os.WriteFile(future, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	const want = "it speaks agent protocol 2, and this host speaks 1"
	if out, err := h.Postern("agent", "install", future); err == nil || !strings.Contains(out, want) {
		t.Errorf("install: %v\n%s", err, out)
	}
	h.Write(plain + "agent \"future\" {\n  priority = 10\n  command = [\"./future\"]\n}\n")
	if out, err := h.Postern("check"); err == nil || !strings.Contains(out, want) || !strings.Contains(out, "config.hcl:") {
		t.Errorf("check: %v\n%s", err, out)
	}
}
