// Package scaffold writes the first version of a new agent: a module of its own that builds and passes its test.
package scaffold

import (
	"bufio"
	"bytes"
	"embed"
	"errors"
	"fmt"
	"go/format"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"

	"github.com/posternmail/postern/sdk"
)

//go:embed templates
var templates embed.FS

// sdkModule is what an agent imports.
const sdkModule = "github.com/posternmail/postern"

// goVersion that the SDK asks for at least.
const goVersion = "1.26.0"

// files of the new module by template.
var files = map[string]string{
	"go.mod.tmpl": "go.mod", "main.go.tmpl": "main.go", "config.go.tmpl": "config.go", "agent.go.tmpl": "NAME.go",
	"agent_test.go.tmpl": "NAME_test.go", "README.md.tmpl": "README.md", "gitignore.tmpl": ".gitignore",
}

// validName of an agent.
var validName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}$`)

// data for the templates.
type data struct {
	Name     string // "subject-tag"
	Type     string // "SubjectTag"
	Module   string
	SDK      string
	Version  string
	Replace  string // folder of the SDK's module; empty: the published one
	Requires []string
	Go       string
}

// New writes an agent called name into dir, which must not exist or be empty, as a Go module with the path
// module. While the SDK is not published, replace is the folder of its module, whose requirements and checksums
// are copied, so that the agent builds without a network; else it is "" and `go mod tidy` fetches the SDK.
func New(dir, name, module string, replace string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("%q: an agent's name is a letter a-z, then up to 63 of a-z, 0-9 and -", name)
	}
	if module == "" {
		module = "agents.example/" + name // names without a dot are those of Go's own packages and of its tools
	}
	d := data{
		Name: name, Type: typeName(name), Module: module, SDK: sdkModule, Version: "v" + sdk.Version,
		Go: goVersion,
	}
	if err := d.useReplace(replace); err != nil {
		return err
	}
	if err := emptyDir(dir); err != nil {
		return err
	}
	return d.writeAll(dir, replace)
}

// useReplace copies the requirements of the SDK's module.
func (d *data) useReplace(folder string) error {
	if folder == "" {
		return nil
	}
	absolute, err := filepath.Abs(folder)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(absolute, "go.mod"))
	if err != nil {
		return fmt.Errorf("the folder of the SDK: %w", err)
	}
	if !bytes.Contains(text, []byte("module "+sdkModule+"\n")) {
		return fmt.Errorf("%s is not the module %s", absolute, sdkModule)
	}
	d.Replace, d.Version = absolute, "v0.0.0-00010101000000-000000000000"
	d.Requires = requirements(text)
	return nil
}

// requirements of a go.mod, one "path version" each.
func requirements(text []byte) []string {
	var list []string
	inBlock := false
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "//")
		line = strings.TrimSpace(line)
		switch {
		case line == "require (":
			inBlock = true
		case line == ")":
			inBlock = false
		case inBlock && line != "":
			list = append(list, line)
		case strings.HasPrefix(line, "require "):
			list = append(list, strings.TrimPrefix(line, "require "))
		}
	}
	return list
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return os.MkdirAll(dir, 0o777)
	case err != nil:
		return err
	case len(entries) > 0:
		return fmt.Errorf("%s is not empty", dir)
	}
	return nil
}

func (d *data) writeAll(dir, replace string) error {
	for source, target := range files {
		text, err := d.render(source)
		if err != nil {
			return fmt.Errorf("template %s: %w", source, err)
		}
		target = strings.Replace(target, "NAME", d.FileName(), 1)
		if err := os.WriteFile(filepath.Join(dir, target), text, 0o666); err != nil {
			return err
		}
	}
	if replace == "" {
		return nil
	}
	sums, err := os.ReadFile(filepath.Join(d.Replace, "go.sum"))
	if err != nil {
		return fmt.Errorf("the folder of the SDK: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, "go.sum"), sums, 0o666)
}

// FileName of the handlers and their test. It has no separators: "x_linux.go" would be built on one system only.
func (d *data) FileName() string {
	name := strings.ReplaceAll(d.Name, "-", "")
	if name == "main" || name == "config" {
		return name + "agent"
	}
	return name
}

func (d *data) render(source string) ([]byte, error) {
	t, err := template.ParseFS(templates, "templates/"+source)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, d); err != nil {
		return nil, err
	}
	if strings.HasSuffix(source, ".go.tmpl") {
		return format.Source(out.Bytes())
	}
	return out.Bytes(), nil
}

// typeName of an agent: "subject-tag" becomes "SubjectTag". Config is taken.
func typeName(name string) string {
	var b strings.Builder
	for word := range strings.SplitSeq(name, "-") {
		if word != "" {
			b.WriteString(strings.ToUpper(word[:1]) + word[1:])
		}
	}
	if t := b.String(); t != "Config" && t != "New" && t != "Info" {
		return t
	}
	return b.String() + "Agent"
}
