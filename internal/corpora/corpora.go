// Package corpora finds the mail and the test vectors of others that tests are run against. They stand beside the
// repository and are no part of it. Only tests use it.
package corpora

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/posternmail/postern/internal/lack"
)

// Path of a file or folder in the corpora. Where it is absent the test cannot run.
func Path(t testing.TB, elem ...string) string {
	t.Helper()
	name := filepath.Join(elem...)
	path := filepath.Join(filepath.Dir(root(t)), "shared", "corpora", name)
	if _, err := os.Stat(path); err != nil {
		lack.Of(t, "the corpora beside the repository: %v", err)
	}
	return path
}

// root is the top folder of the repository.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod above the working folder")
		}
		dir = parent
	}
}
