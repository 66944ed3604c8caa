//go:build vm

package cgroup

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestLimits: memory and tasks are those of all processes together, and who used up the memory is known.
func TestLimits(t *testing.T) {
	dir := delegation(t)
	played(t, dir, "")
	have := list(filepath.Join(dir, agentsName, "cgroup.subtree_control"))
	for _, one := range []struct{ controller, words, want string }{
		{"memory", "eat", `shortage: "own"`},
		{"pids", "bomb", "printed: 4"},
	} {
		t.Run(one.controller, func(t *testing.T) {
			if len(intersection([]string{one.controller}, have)) == 0 {
				t.Fatalf("no controller %s in %v", one.controller, have)
			}
			if out := played(t, filepath.Join(dir, hostName), one.words); !strings.Contains(out, one.want) {
				t.Errorf("%s", out)
			}
		})
	}
}
