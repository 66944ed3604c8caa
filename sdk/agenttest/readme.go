package agenttest

import (
	"os"
	"strings"
	"testing"

	"github.com/posternmail/postern/sdk"
)

// CheckReadme fails the test when the file lacks the options of the agent that build makes as they are now:
// between sdk.OptionsBegin and sdk.OptionsEnd, where `AGENT --options=FILE` writes them.
func CheckReadme[C, A any](t *testing.T, _ func(C, *sdk.Registrar) (A, error), path string) {
	t.Helper()
	tables, err := sdk.OptionTables[C]()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), sdk.OptionsBegin+"\n"+tables+sdk.OptionsEnd+"\n") {
		t.Errorf("%s does not hold the options as they are; go generate writes them:\n%s", path, tables)
	}
}
