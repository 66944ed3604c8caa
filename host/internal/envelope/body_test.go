package envelope

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"

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
	for name, body := range map[string]*Body{"memory": MemoryBody([]byte("octets")), "file": FileBody(file, 6),
		"around": BodyAround([]byte("oc"), MemoryBody([]byte("te")), []byte("ts"))} {
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
	f, err := sealed(strings.NewReader("octets"))
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

// A body around another reads like one, wherever a read begins and ends.
func TestBodyAround(t *testing.T) {
	for _, parts := range [][3]string{{"one ", "two ", "three"}, {"", "two", ""}, {"one", "", "three"}, {"", "", ""}} {
		b := BodyAround([]byte(parts[0]), MemoryBody([]byte(parts[1])), []byte(parts[2]))
		want := parts[0] + parts[1] + parts[2]
		if b.Size() != int64(len(want)) || b.InMemory() || b.Bytes() != nil {
			t.Errorf("%q: size %d", want, b.Size())
		}
		if err := iotest.TestReader(b.Reader(), []byte(want)); err != nil {
			t.Errorf("%q: %v", want, err)
		}
		for from := range len(want) + 1 {
			for to := from; to <= len(want); to++ {
				p := make([]byte, to-from)
				if n, err := b.ReadAt(p, int64(from)); n != len(p) || string(p) != want[from:to] || err != nil && (err != io.EOF || to < len(want)) {
					t.Errorf("%q[%d:%d] is %q, %v", want, from, to, p[:n], err)
				}
			}
		}
	}
}
