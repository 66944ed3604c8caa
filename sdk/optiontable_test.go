package sdk

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type tableConfig struct {
	Must  string        `hcl:"must" doc:"A or | B."`
	Wait  time.Duration `hcl:"wait,optional" default:"2d" min:"1s" max:"3d" doc:"How long."`
	Size  Size          `hcl:"size,optional" default:"11 MB" doc:"How much." example:"\"1 MB\""`
	Files []string      `hcl:"files,optional" format:"path"`
	Mode  string        `hcl:"mode,optional" one_of:"a b"`
	Inner []tableInner  `hcl:"inner,block" doc:"Inside."`
}

type tableInner struct {
	Name string          `hcl:"name,label"`
	Deep *tableInnermost `hcl:"deep,block" doc:"Deeper."`
}

type tableInnermost struct {
	N int `hcl:"n,optional" default:"3"`
}

const wantTables = "| argument | type | default | range | |\n|---|---|---|---|---|\n" +
	"| `must` | string | required |  | A or \\| B. |\n" +
	"| `wait` | duration | `\"48h\"` | 1s to 3d | How long. |\n" +
	"| `size` | size | `\"11MiB\"` |  | How much. Example: `\"1 MB\"`. |\n" +
	"| `files` | list of path |  |  |  |\n" +
	"| `mode` | string |  | a, b |  |\n" +
	"\n### `inner \"NAME\"` in `config`\n\nInside. Any number.\n" +
	"\n### `deep` in `config inner`\n\nDeeper. At most once.\n" +
	"\n| argument | type | default | range | |\n|---|---|---|---|---|\n" +
	"| `n` | integer | `3` |  |  |\n"

func TestOptionTables(t *testing.T) {
	got, err := OptionTables[tableConfig]()
	if err != nil || got != wantTables {
		t.Errorf("got\n%s\n%v", got, err)
	}
}

type tableAgent struct{}

func newTableAgent(tableConfig, *Registrar) (*tableAgent, error) { return &tableAgent{}, nil }

// --options=FILE replaces what stands between the two lines, and nothing in a file without them.
func TestOptionsIntoFile(t *testing.T) {
	def := &definition{info: Info{Name: "table", Version: "1.0.0"}, typed: typedBuilder[tableConfig, *tableAgent]{newTableAgent}}
	path := filepath.Join(t.TempDir(), "README.md")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# table\n" + OptionsBegin + "\nold\n" + OptionsEnd + "\nend\n")
	for range 2 {
		if status := run(def, []string{"--options=" + path}); status != 0 {
			t.Fatalf("status %d", status)
		}
		got, _ := os.ReadFile(path)
		if want := "# table\n" + OptionsBegin + "\n" + wantTables + OptionsEnd + "\nend\n"; string(got) != want {
			t.Errorf("got\n%s", got)
		}
	}
	write("# table\n")
	if err := printOptions(def, path); err == nil || !strings.Contains(err.Error(), OptionsBegin) {
		t.Errorf("got %v", err)
	}
}
