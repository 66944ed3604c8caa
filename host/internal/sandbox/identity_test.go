package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// compiled is a program of one line of text, as a script or a binary.
func compiled(t *testing.T, dir, name, words string, binary bool) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if !binary {
		must(t, os.WriteFile(path, []byte("#!/bin/sh\necho "+words+"\n"), 0o755))
		return path
	}
	copyFile(t, "/bin/"+words, path) // echo or true: what it prints tells them apart
	return path
}

// A program that is exchanged while it is started, over and over, is never the one that runs.
func TestOnlyWhatWasLookedIntoRuns(t *testing.T) {
	for name, test := range map[string]struct{ binary, off bool }{
		"binary": {true, false}, "script": {false, false}, "binary without a sandbox": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("/tmp", "p")
			must(t, err)
			defer os.RemoveAll(dir)
			must(t, os.Chmod(dir, 0o755))
			good := compiled(t, dir, "good", "true", test.binary)
			evil := compiled(t, dir, "evil", "echo", test.binary)
			link := filepath.Join(dir, "program")
			must(t, os.Symlink(good, link))
			f, err := os.Open(good)
			must(t, err)
			id, err := IdentityOf(f)
			must(t, err)
			f.Close()
			stop := exchange(t, dir, link, good, evil)
			ran := 0
			for range 60 {
				cmd := exec.Command(link, "evil")
				cmd.SysProcAttr = &syscall.SysProcAttr{}
				var out strings.Builder
				cmd.Stdout = &out
				if _, err := Start(cmd, Policy{Program: []string{link}, Sealed: []Sealed{{link, id}}, Off: test.off}); err != nil {
					continue // it was noticed
				}
				_ = cmd.Wait()
				if ran++; strings.Contains(out.String(), "evil") || strings.Contains(out.String(), "echo") {
					t.Fatalf("another program has run: %q", out.String())
				}
			}
			stop()
			t.Logf("%d of 60 ran", ran)
		})
	}
}

// exchange has a link lead now here, now there, until it is stopped.
func exchange(t *testing.T, dir, link, good, evil string) (stop func()) {
	var ended atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; !ended.Load(); i++ {
			next := filepath.Join(dir, "next")
			if os.Symlink([]string{good, evil}[i%2], next) != nil || os.Rename(next, link) != nil {
				t.Error("the link cannot be changed")
				return
			}
		}
	}()
	return func() { ended.Store(true); <-done }
}

// What has changed since it was looked into is not started, whatever has changed of it.
func TestChangedSinceItWasLookedInto(t *testing.T) {
	dir := t.TempDir()
	path := compiled(t, dir, "program", "hello", false)
	f, err := os.Open(path)
	must(t, err)
	id, err := IdentityOf(f)
	must(t, err)
	f.Close()
	for name, change := range map[string]func(*Identity){
		"device": func(i *Identity) { i.Device++ }, "inode": func(i *Identity) { i.Inode++ }, "size": func(i *Identity) { i.Size++ },
		"mtime": func(i *Identity) { i.Modified++ }, "ctime": func(i *Identity) { i.Changed++ },
	} {
		other := id
		change(&other)
		cmd := exec.Command(path)
		cmd.SysProcAttr = &syscall.SysProcAttr{}
		if _, err := Start(cmd, Policy{Program: []string{path}, Sealed: []Sealed{{path, other}}}); err == nil || !strings.Contains(err.Error(), "was changed while it was being started") {
			t.Errorf("%s: %v", name, err)
		}
	}
	folder, err := os.Open(dir)
	must(t, err)
	defer folder.Close()
	if _, err := IdentityOf(folder); err == nil {
		t.Error("a folder has an identity")
	}
}
