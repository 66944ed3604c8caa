// Package plugins holds the agents that come with Postern, each a program of its own in a folder of its own.
package plugins

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var summary = regexp.MustCompile(`(?m)^\s+Summary:\s+"([^"]+)",$`)

// TestReadmeNamesTheAgents holds the list in the repository's README to what the agents say of themselves.
func TestReadmeNamesTheAgents(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	programs, err := filepath.Glob("*/main.go")
	if err != nil || len(programs) < 13 {
		t.Fatalf("programs %v: %v", programs, err)
	}
	for _, path := range programs {
		name := filepath.Dir(path)
		if name == "mock" {
			continue // for tests
		}
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		said := summary.FindSubmatch(source)
		if said == nil {
			t.Fatalf("%s has no summary", path)
		}
		if row := fmt.Sprintf("| [`%s`](plugins/%s) | %s |", name, name, said[1]); !strings.Contains(string(readme), row) {
			t.Errorf("README.md lacks %s", row)
		}
	}
}
