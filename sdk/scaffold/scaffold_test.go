package scaffold

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// run a go command in a module outside of the repository, without a network.
func run(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOPROXY=off", "GOFLAGS=", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// A new agent builds, passes its test and explains itself, outside of the repository.
func TestNewAgentWorks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "agent")
	if err := New(dir, "fix-linux", "agents.example/fix", "../.."); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "vet", "./...")
	if out := run(t, dir, "test", "-count=1", "./..."); !strings.Contains(out, "ok") {
		t.Errorf("go test: %s", out)
	}
	run(t, dir, "build", "-o", "agent", ".")
	out, err := exec.Command(filepath.Join(dir, "agent"), "--describe").Output()
	if err != nil || !strings.Contains(string(out), `"name": "fix-linux"`) {
		t.Errorf("--describe: %v\n%s", err, out)
	}
	if out, err := exec.Command("gofmt", "-l", dir).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("gofmt: %v\n%s", err, out)
	}
}

// Names that are files of the module already, or packages of Go's own.
func TestNewAgentOfAnyName(t *testing.T) {
	for _, name := range []string{"config", "main", "type", "net"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), name)
			if err := New(dir, name, "", "../.."); err != nil {
				t.Fatal(err)
			}
			run(t, dir, "vet", "./...")
		})
	}
}

func TestRefusals(t *testing.T) {
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ dir, name, replace, want string }{
		{t.TempDir(), "Bad Name", "", "an agent's name"},
		{t.TempDir(), "good", "/nowhere", "the folder of the SDK"},
		{full, "good", "", "is not empty"},
	} {
		if err := New(c.dir, c.name, "m.example/x", c.replace); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
}

func TestPublished(t *testing.T) {
	dir := t.TempDir()
	if err := New(dir, "good", "", ""); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil || strings.Contains(string(text), "replace") || !strings.Contains(string(text), "require "+sdkModule+" v") {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestTypeName(t *testing.T) {
	for name, want := range map[string]string{
		"tag": "Tag", "subject-tag": "SubjectTag", "a-": "A", "config": "ConfigAgent", "x--y2": "XY2",
	} {
		if got := typeName(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
