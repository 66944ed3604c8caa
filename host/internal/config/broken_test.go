package config

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the expected output anew")

// TestBroken compares what is printed for each broken configuration, to the column, with the file beside it. A case
// is read with base.hcl, unless it begins with "# alone", and with the files of the folder of its name.
func TestBroken(t *testing.T) {
	source, err := filepath.Abs("testdata/broken")
	if err != nil {
		t.Fatal(err)
	}
	cases, err := filepath.Glob("testdata/broken/[0-9]*.hcl")
	if err != nil || len(cases) < 60 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	o := fakeOptions(t)
	work := brokenFolder(t, source)
	t.Chdir(work)
	for _, path := range cases {
		name := filepath.Base(path)
		t.Run(strings.TrimSuffix(name, ".hcl"), func(t *testing.T) {
			got := printBroken(t, name, o, work)
			compareGolden(t, filepath.Join(source, strings.TrimSuffix(name, ".hcl")+".want"), got)
		})
	}
}

// brokenFolder copies the cases to where certificates can be made and modes be set.
func brokenFolder(t *testing.T, source string) string {
	work, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(work, os.DirFS(source)); err != nil {
		t.Fatal(err)
	}
	writeCertificates(t, filepath.Join(work, "tls"))
	if err := os.Mkdir(filepath.Join(work, "shared"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(work, "shared"), 0o777); err != nil {
		t.Fatal(err)
	}
	return work
}

func printBroken(t *testing.T, name string, o Options, work string) string {
	l := newLoader(o)
	l.system = "edge.example.org"
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(text, []byte("# alone")) {
		l.read("base.hcl")
	}
	l.read(name)
	more, err := filepath.Glob(strings.TrimSuffix(name, ".hcl") + "/*.hcl")
	if err != nil {
		t.Fatal(err)
	}
	for _, extra := range more {
		l.read(extra)
	}
	config := l.load()
	l.diags.sort()
	if (config == nil) != l.diags.Errors() {
		t.Errorf("a configuration beside errors, or none without")
	}
	var b bytes.Buffer
	l.diags.Print(&b, 0, false)
	return strings.NewReplacer(work, "/WORK", o.AgentDir, "/AGENTS").Replace(b.String())
}

func compareGolden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", filepath.Base(path), got, want)
	}
	if got == "" {
		t.Error("nothing is said about it")
	}
}
