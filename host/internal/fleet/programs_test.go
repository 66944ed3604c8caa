package fleet

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/catalog"
	"github.com/posternmail/postern/host/internal/config"
)

// files makes a folder of programs and data.
func files(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{
		"agent": 0o755, "python3": 0o755, "python3.13": 0o755, "main.py": 0o644, "hook": 0o755, "words.txt": 0o644,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestOwnFilesOfACommand(t *testing.T) {
	dir := files(t)
	for _, test := range []struct{ command, want []string }{
		{[]string{"agent"}, []string{"agent"}},
		{[]string{"agent", "--list", "words.txt"}, []string{"agent"}},
		{[]string{"agent", "hook"}, []string{"hook", "agent"}},
		{[]string{"python3", "main.py", "words.txt"}, []string{"main.py"}},
		{[]string{"python3.13", "-m", "module"}, []string{"python3.13"}},
	} {
		var command, want []string
		for _, word := range test.command {
			if path := filepath.Join(dir, word); filepath.Ext(word) != "" || word[0] != '-' && word != "module" {
				word = path
			}
			command = append(command, word)
		}
		for _, word := range test.want {
			want = append(want, filepath.Join(dir, word))
		}
		if got := own(command); !slices.Equal(got, want) {
			t.Errorf("%v: %v, want %v", test.command, got, want)
		}
	}
}

// A command is held to what was locked, a bundled program to what it is, and an order's to what it was then.
func TestSeal(t *testing.T) {
	dir, data := files(t), t.TempDir()
	program := filepath.Join(dir, "agent")
	lock := &catalog.Lock{Agents: []catalog.Locked{{Name: "judge", SHA256: map[string]string{program: "locked"}}}}
	if err := lock.Write(data); err != nil {
		t.Fatal(err)
	}
	now, _, err := (*catalog.Sums)(nil).Of(program)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		agent config.Agent
		want  string
	}{
		"locked":   {config.Agent{Name: "judge", Command: []string{program}}, "locked"},
		"unlocked": {config.Agent{Name: "other", Command: []string{program}}, now},
		"bundled":  {config.Agent{Name: "judge", Command: []string{program}, Bundled: true}, now},
		"ordered":  {config.Agent{Name: "judge", Command: []string{program}, SHA256: map[string]string{program: "ordered"}}, "ordered"},
	} {
		if err := new(Programs).Seal(config.Host{DataDir: data}, &test.agent); err != nil || test.agent.SHA256[program] != test.want {
			t.Errorf("%s: %v, %v; want %s", name, test.agent.SHA256, err, test.want)
		}
	}
	missing := config.Agent{Name: "judge", Command: []string{filepath.Join(dir, "none")}}
	if err := (*Programs)(nil).Seal(config.Host{DataDir: data}, &missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing program: %v", err)
	}
}

// lock forgets what is locked, and what an order has sealed.
func TestUnlock(t *testing.T) {
	data := t.TempDir()
	if err := Unlock(data, "judge"); err == nil {
		t.Error("what is not locked was unlocked")
	}
	lock := &catalog.Lock{Agents: []catalog.Locked{{Name: "judge", SHA256: map[string]string{"/p": "1"}}, {Name: "other"}}}
	if err := lock.Write(data); err != nil {
		t.Fatal(err)
	}
	records, err := openRecords(data)
	if err != nil {
		t.Fatal(err)
	}
	order := &override{Order: admin.OrderUpgrade, Command: []string{"/p"}, SHA256: map[string]string{"/p": "1"}}
	if err := records.change("judge", func(r *agentRecord) { r.Override = order }); err != nil {
		t.Fatal(err)
	}
	if err := Unlock(data, "judge"); err != nil {
		t.Fatal(err)
	}
	left, err := catalog.ReadLock(data)
	if err != nil || left.Of("judge").Name != "" || left.Of("other").Name == "" {
		t.Errorf("the lock file says %+v, %v", left, err)
	}
	if records, err = openRecords(data); err != nil || records.of("judge").Override.SHA256 != nil || !slices.Equal(records.of("judge").Override.Command, []string{"/p"}) {
		t.Errorf("the order is %+v, %v", records.of("judge").Override, err)
	}
}

// What rollback, an order or a trial may need is in use.
func TestInUse(t *testing.T) {
	data := t.TempDir()
	lock := &catalog.Lock{Agents: []catalog.Locked{{Name: "judge", SHA256: map[string]string{"/locked": "1"}}}}
	if err := lock.Write(data); err != nil {
		t.Fatal(err)
	}
	records, err := openRecords(data)
	if err != nil {
		t.Fatal(err)
	}
	of := func(path string) *override { return &override{Command: []string{path}} }
	err = records.change("judge", func(r *agentRecord) {
		r.Current, r.Previous = &generation{Command: []string{"/current"}}, &generation{Command: []string{"/previous"}}
		r.Override = &override{Command: []string{"/ordered"}, Instead: &generation{Command: []string{"/instead"}}}
		r.Trial = &trialOrder{Override: of("/tried")}
	})
	if err != nil {
		t.Fatal(err)
	}
	used, err := InUse(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/locked", "/current", "/previous", "/ordered", "/instead", "/tried"} {
		if !used[path] {
			t.Errorf("%s counts as unused", path)
		}
	}
	if len(used) != 6 {
		t.Errorf("in use are %v", used)
	}
}
