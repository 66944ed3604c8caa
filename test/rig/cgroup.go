package rig

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// hostGroup is where a host is started in its cgroup: not above, where it would put itself at its first start, since a
// cgroup that gives controllers to others takes no process.
const hostGroup = "host"

// newCgroup makes a cgroup for a host below the one that POSTERN_CGROUP names, as a service manager does that delegates
// it; "" without the variable. It ends with the test, and all that is in it.
func newCgroup(t testing.TB) string {
	t.Helper()
	above := os.Getenv("POSTERN_CGROUP")
	if above == "" {
		return ""
	}
	dir, err := os.MkdirTemp(above, "host-")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{hostGroup, "agents"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
		for range 1000 {
			if removeCgroup(dir) == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("processes in %s cannot be ended", dir)
	})
	return dir
}

// removeCgroup removes a cgroup without processes, with those in it.
func removeCgroup(dir string) error {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			_ = removeCgroup(filepath.Join(dir, e.Name()))
		}
	}
	return os.Remove(dir)
}
