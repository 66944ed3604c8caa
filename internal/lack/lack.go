// Package lack has tests end that cannot run where they are. Only tests use it.
package lack

import (
	"fmt"
	"os"
	"testing"
)

// Of something that a test needs, which is named in the manner of fmt.Sprintf: the test is skipped and says so, but where all
// must run (CI=true) that is a failure.
func Of(t testing.TB, format string, args ...any) {
	t.Helper()
	what := "needs " + fmt.Sprintf(format, args...)
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
}
