package sdk

import (
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/sdk/agentpb"
)

// A descriptor that was handed on is good for longer than the body it came from.
func TestBodyFile(t *testing.T) {
	path := t.TempDir() + "/body"
	if err := os.WriteFile(path, []byte("the body, and more"), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	side := &sideSocket{arrived: map[string]int{"t": fd}, taken: map[string]struct{}{}}
	b := side.body(nil, &agentpb.Body{Size: 8, Ticket: "t"})
	file, err := b.File()
	if err != nil || file == nil {
		t.Fatalf("File: %v, %v", file, err)
	}
	defer file.Close()
	b.end()
	if got, err := io.ReadAll(io.NewSectionReader(file, 0, 8)); string(got) != "the body" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Errorf("the own descriptor is still open: %v", err)
	}
	if _, err := b.File(); !errors.Is(err, ErrBodyClosed) {
		t.Errorf("File after the end: %v", err)
	}
	inline := &BodyReader{size: 1, have: 1, data: []byte("x")}
	if file, err := inline.File(); file != nil || err != nil {
		t.Errorf("File of a body without one: %v, %v", file, err)
	}
}
