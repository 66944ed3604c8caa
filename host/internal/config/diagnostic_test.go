package config

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
)

func diagnosticsOf(source string, line, from, to int) *Diagnostics {
	d := &Diagnostics{sources: map[string][]byte{"a.hcl": []byte(source)}}
	at := hcl.Range{Filename: "a.hcl", Start: hcl.Pos{Line: line, Column: from}, End: hcl.Pos{Line: line, Column: to}}
	d.add(SeverityError, at, "a mistake", "What to do about it, in a line that is longer than the width.")
	return d
}

func TestPrintFitsWidth(t *testing.T) {
	line := "x = \"" + strings.Repeat("a", 100) + "MISTAKE" + strings.Repeat("b", 100) + "\""
	var b bytes.Buffer
	diagnosticsOf(line, 1, 106, 113).Print(&b, 60, false)
	lines := strings.Split(b.String(), "\n")
	for _, line := range lines {
		if len(line) > 60 {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
	at := strings.Index(lines[2], "^^^^^^^")
	if at < 0 || lines[1][at:at+7] != "MISTAKE" || strings.Count(lines[2], "^") != 7 {
		t.Errorf("the carets miss:\n%s", b.String())
	}
}

func TestPrintColor(t *testing.T) {
	var plain, colored bytes.Buffer
	d := diagnosticsOf("x = 1", 1, 5, 6)
	d.Print(&plain, 0, false)
	d.Print(&colored, 0, true)
	if strings.Contains(plain.String(), "\x1b") || !strings.Contains(colored.String(), red+"    ^"+reset) {
		t.Errorf("%q\n%q", plain.String(), colored.String())
	}
}

// Ranges of the library may lie behind the end of a line or of the file.
func TestPrintOddPlaces(t *testing.T) {
	for _, place := range [][3]int{{1, 6, 6}, {1, 90, 95}, {9, 1, 2}, {0, 0, 0}, {2, 1, 1}, {1, 3, 1}} {
		var b bytes.Buffer
		d := diagnosticsOf("x = 1\n", place[0], place[1], place[2])
		d.Print(&b, 20, false)
		d.Print(&b, 0, false)
		if !strings.Contains(b.String(), "a mistake") {
			t.Errorf("%v: %q", place, b.String())
		}
	}
}

func TestDiagnosticJSON(t *testing.T) {
	data, err := json.Marshal(diagnosticsOf("x = 1", 1, 5, 6))
	if err != nil {
		t.Fatal(err)
	}
	equalJSON(t, data, `[{"severity":"error","file":"a.hcl","line":1,"column":5,"end_line":1,"end_column":6,
"summary":"a mistake","detail":"What to do about it, in a line that is longer than the width."}]`)
	if data, err = json.Marshal(&Diagnostics{}); err != nil || string(data) != "[]" {
		t.Errorf("%s, %v", data, err)
	}
}

// A secret that stands in the file is not printed with a mistake in its line, whatever the mistake.
func TestSecretsAreNotPrinted(t *testing.T) {
	for _, text := range []string{
		"send_connector \"x\" {\n  password = \"hunter2\" + 1\n}",
		"send_connector \"x\" {\n  password = [\"hunter2\"]\n}",
		"send_connector \"x\" {\n  passwort = sensitive(\"hunter2\")\n}",
		"locals {\n  a = sensitive(\"hunter2\") + missing()\n}",
		"log {\n  level = sensitive(\"hunter2\")\n}",
		"agent \"fake\" {\n  priority = 1\n  config {\n    token = { a = \"hunter2\" }\n  }\n}",
		"agent \"fake\" {\n  priority = 1\n  environment = { \"A B\" = sensitive(\"hunter2\") }\n}",
		"locals {\n  s = sensitive(\"hunter2\")\n}\nagent \"fake\" {\n  priority = 1\n  config {\n    mode = \"x${local.s}\"\n    sender = local.s\n    names = [local.s]\n  }\n}",
	} {
		path := filepath.Join(t.TempDir(), "config.hcl")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, diags := Load(path, fakeOptions(t))
		var b bytes.Buffer
		diags.Print(&b, 0, false)
		data, _ := json.Marshal(diags)
		if !diags.Errors() || strings.Contains(b.String()+string(data), "hunter2") {
			t.Errorf("%s\ngives\n%s", text, b.String())
		}
	}
}
