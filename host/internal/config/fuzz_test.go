package config

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// FuzzLoad: no text crashes the reader, and whatever it finds can be printed and shown.
func FuzzLoad(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*/*.hcl")
	if err != nil {
		f.Fatal(err)
	}
	more, err := filepath.Glob("testdata/valid/*/*.hcl")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range append(seeds, more...) {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	for _, text := range []string{"a", "\"", "${", "a {", "locals { a = 1e99999999999 }", "log { level = <<X\n", "\xff\x00", "agent \"a\" \"b"} {
		f.Add([]byte(text))
	}
	o := fakeOptions(f)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		l := newLoader(o)
		l.parse(filepath.Join(dir, "config.hcl"), text)
		c := l.load()
		l.diags.sort()
		var b bytes.Buffer
		l.diags.Print(&b, 80, true)
		if _, err := json.Marshal(l.diags); err != nil {
			t.Error(err)
		}
		if c == nil && !l.diags.Errors() {
			t.Error("no configuration and no error")
		}
		if c != nil {
			if err := c.Effective().Print(&b); err != nil {
				t.Error(err)
			}
		}
	})
}
