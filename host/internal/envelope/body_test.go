package envelope

import (
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Whoever gets a descriptor reads the body from its start and cannot change it, however often it is handed out.
func TestDescriptor(t *testing.T) {
	file, err := os.Create(t.TempDir() + "/body")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString("octets"); err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]*Body{"memory": MemoryBody([]byte("octets")), "file": FileBody(file, 6)} {
		for range 2 {
			f, err := body.Descriptor()
			if err != nil {
				t.Fatal(err)
			}
			octets, err := io.ReadAll(f)
			if err != nil || string(octets) != "octets" {
				t.Errorf("%s: %q %v", name, octets, err)
			}
			if _, err := f.WriteAt([]byte("x"), 0); err == nil {
				t.Errorf("%s: it can be written", name)
			}
			_ = f.Close()
		}
	}
}

// Even opened for writing, the copy of a body in memory stays as it is.
func TestSealed(t *testing.T) {
	f, err := sealed([]byte("octets"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("writing: %v", err)
	}
	if err := f.Truncate(0); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncating: %v", err)
	}
}
