package match

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/sdk/address"
)

// addressFile is a list of addresses in one file.
func addressFile(t *testing.T, path string) *Files[Addresses] {
	t.Helper()
	f, _, err := OpenFiles([]string{path}, func(list *Addresses, line string) error {
		entry, _ := CutComment(line, "#")
		if entry == "" {
			return nil
		}
		return list.Add(entry)
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// A file is read again once it has changed and stands still; a mistake or its absence leaves the list as it was.
func TestFilesFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("\uFEFFa.example # why\r\n\r\n# nothing\n")
	f := addressFile(t, path)
	has := func(domain string) bool {
		_, ok := f.List().Match(address.Mailbox{Local: "x", Domain: domain})
		return ok
	}
	look := func(changes, fails bool) {
		t.Helper()
		changed, err := f.Look()
		if changed != changes || (err != nil) != fails {
			t.Errorf("changed %v, error %v", changed, err)
		}
	}
	if !has("a.example") || f.Empty() {
		t.Error("the file was not read")
	}
	look(false, false)
	write("bb.example\n")
	look(false, false) // it may still be written
	look(true, false)
	if has("a.example") || !has("bb.example") {
		t.Error("the new file is not in force")
	}
	write("c.example\nnot an entry @\n")
	look(false, false)
	look(false, true)
	look(false, false) // said once
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	look(false, false)
	look(false, true)
	if !has("bb.example") || has("c.example") {
		t.Error("a mistake has changed the list")
	}
}

// The mistake is named by file and line, and by the index of its file.
func TestFilesMistake(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good"), filepath.Join(dir, "bad")
	for path, text := range map[string]string{good: "a.example", bad: "\n\nb c\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, missing := range []bool{false, true} {
		if missing {
			bad += "-gone"
		}
		_, i, err := OpenFiles([]string{good, bad}, (*Addresses).Add)
		if err == nil || i != 1 || !strings.Contains(err.Error(), bad) || !missing && !strings.Contains(err.Error(), bad+":3: ") {
			t.Errorf("index %d, %v", i, err)
		}
	}
}

func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(path, []byte("a.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := addressFile(t, path)
	none, _, err := OpenFiles(nil, (*Addresses).Add)
	if err != nil {
		t.Fatal(err)
	}
	stop := Follow(hclog.NewNullLogger(), map[string]Followed{"senders": f, "none": none})
	defer stop()
	if err := os.WriteFile(path, []byte("other.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, ok := f.List().Match(address.Mailbox{Local: "x", Domain: "other.example"}); ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the file was not followed")
		}
	}
}

func FuzzReadLines(f *testing.F) {
	for _, s := range []string{"a.example # x", "\uFEFFb@c.example\r\n\r\n", "#", "\x00\n@", "*.d.example\nlast"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		n := 0
		number, err := ReadLines(bytes.NewReader(text), func(line string) error {
			n++
			if line == "" || line != strings.TrimSpace(line) {
				t.Errorf("line %q", line)
			}
			return nil
		})
		if lines := bytes.Count(text, []byte("\n")) + 1; err == nil && (n > lines || number > lines+1) {
			t.Errorf("%d entries in %d lines", n, lines)
		}
	})
}
