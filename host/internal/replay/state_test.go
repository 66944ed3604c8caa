package replay

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCopyState(t *testing.T) {
	from, err := os.MkdirTemp("/tmp", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(from) })
	if err := os.Mkdir(filepath.Join(from, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"model": strings.Repeat("m", 1000), "below/more": "x"} {
		if err := os.WriteFile(filepath.Join(from, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// What an agent leaves beside its state does not keep a dry run from starting.
	socket, err := net.Listen("unix", filepath.Join(from, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := os.Symlink("/etc/passwd", filepath.Join(from, "link")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		from   string
		limit  int64
		copied bool
		files  int
	}{{from, 2000, true, 2}, {from, 1000, false, 0}, {from + "/none", 1000, true, 0}} {
		to := filepath.Join(t.TempDir(), "state", "agent")
		copied, err := copyState(to, tt.from, tt.limit)
		if err != nil || copied != tt.copied {
			t.Errorf("%s, %d: copied %v, %v", tt.from, tt.limit, copied, err)
		}
		n := 0
		for _, name := range []string{"model", "below/more", "socket", "link"} {
			if _, err := os.Lstat(filepath.Join(to, name)); err == nil {
				n++
			}
		}
		if info, err := os.Stat(to); err != nil || !info.IsDir() || n != tt.files {
			t.Errorf("%s, %d: %d files, %v", tt.from, tt.limit, n, err)
		}
	}
}
