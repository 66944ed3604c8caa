package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What an agent keeps on the disk counts however it keeps it.
func TestHeld(t *testing.T) {
	size := func(t *testing.T, pid int, dir string) int64 {
		t.Helper()
		n, err := Held(pid, dir, filepath.Join(dir, "is-not-there"), "")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	t.Run("files", func(t *testing.T) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "a"), make([]byte, 1<<20))
		if n := size(t, 0, dir); n < 1<<20 || n > 1<<20+64<<10 {
			t.Errorf("%d octets", n)
		}
	})
	t.Run("files without content", func(t *testing.T) {
		dir := t.TempDir()
		for _, name := range strings.Fields("a b c d e f g h i j") {
			write(t, filepath.Join(dir, name), nil)
		}
		if n := size(t, 0, dir); n != 10*4096 {
			t.Errorf("%d octets", n)
		}
	})
	t.Run("files that were removed and are open, in a child too", func(t *testing.T) {
		dir := t.TempDir()
		cmd := exec.Command("/bin/sh", "-c", `cd "$0" && exec 5>x && head -c 1048576 /dev/zero >&5 && rm x && { sh -c 'exec 6>y && head -c 1048576 /dev/zero >&6 && rm y && echo && cat; true' | cat; true; }`, dir)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = in.Close(); _ = cmd.Wait() }()
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if n := size(t, cmd.Process.Pid, dir); n < 2<<20 || n > 2<<20+128<<10 {
			t.Errorf("%d octets", n)
		}
		if n := size(t, 0, dir); n != 0 {
			t.Errorf("without the process %d octets", n)
		}
	})
	t.Run("files behind a path that is too long", func(t *testing.T) {
		dir := t.TempDir()
		name := strings.Repeat("d", 200)
		at, err := unix.Open(dir, unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		for range 30 { // 6,000 octets; a path has 4,096
			if err := unix.Mkdirat(at, name, 0o700); err != nil {
				t.Fatal(err)
			}
			next, err := unix.Openat(at, name, unix.O_DIRECTORY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_ = unix.Close(at)
			at = next
		}
		defer unix.Close(at)
		f, err := unix.Openat(at, "f", unix.O_CREAT|unix.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(f, make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(f)
		if n := size(t, 0, dir); n < 1<<20 {
			t.Errorf("%d octets", n)
		}
	})
	t.Run("folders without end", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, strings.Repeat("d/", 70)), 0o700); err != nil {
			t.Fatal(err)
		}
		if n, err := Held(0, dir); err == nil || !strings.Contains(err.Error(), "more than 64 folders in each other") {
			t.Errorf("%d octets, %v", n, err)
		}
	})
	t.Run("a closed folder", func(t *testing.T) {
		dir := t.TempDir()
		closed := filepath.Join(dir, "closed")
		if err := os.Mkdir(closed, 0o300); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(closed, "a"), make([]byte, 1<<20))
		n, err := Held(0, dir)
		if os.Geteuid() == 0 { // may look into all
			if err != nil || n < 1<<20 {
				t.Errorf("%d octets, %v", n, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("%d octets, %v", n, err)
		}
	})
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
