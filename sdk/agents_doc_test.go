package sdk_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// goBlock is a Go code block of a Markdown file.
var goBlock = regexp.MustCompile("(?s)```go\n(.*?)```")

// preambles make a file of a block that is a part of one: what the text around it takes for granted.
const preamble = `package part

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
)

var (
	_ context.Context
	_ = fmt.Sprint
	_ = strconv.Itoa
	_ time.Time
	_ sdk.Verdict
	_ address.Mailbox
)
`

// missing declarations that a part may lack, by what they declare.
var missing = map[string]string{
	"type Config ": "type Config struct {\n\tDomains []string `hcl:\"domains,optional\"`\n\tLow, High int\n}\n",
	"type Agent ":  "type Agent struct{}\n",
	"type Row ":    "type Row struct{ Messages int64 }\n",
}

// The code of the author's guide compiles, and its first agent passes its test.
func TestGuide(t *testing.T) {
	text, err := os.ReadFile("../docs/agents.md")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(".", "_guide") // inside the module for its dependencies; "_" keeps it out of ./...
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	blocks := goBlock.FindAllStringSubmatch(string(text), -1)
	if len(blocks) < 6 {
		t.Fatalf("%d blocks of Go", len(blocks))
	}
	for i, block := range blocks {
		name, code := fileOf(i, block[1])
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(code), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, command := range [][]string{{"vet", "./..."}, {"test", "./agent"}} {
		cmd := exec.Command("go", command...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil || strings.Contains(string(out), "no packages") {
			t.Errorf("go %s: %v\n%s", strings.Join(command, " "), err, out)
		}
	}
}

// fileOf a block: one that names its file is the whole of it.
func fileOf(i int, code string) (name, text string) {
	if rest, ok := strings.CutPrefix(code, "// file: "); ok {
		name, text, _ = strings.Cut(rest, "\n")
		return filepath.Join("agent", name), text
	}
	text = preamble + code
	for declaration, declared := range missing {
		if !strings.Contains(code, declaration) {
			text += declared
		}
	}
	return fmt.Sprintf("part%d/part.go", i), text
}
