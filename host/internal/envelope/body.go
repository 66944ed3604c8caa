package envelope

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
)

// Body is the octets of a message after its empty line. It never changes. Small ones are in memory, large ones
// in a file; the file may have no name any more. A Body is safe for concurrent use and is freed with its last
// reference.
type Body struct {
	mem  []byte
	file *os.File
	size int64
}

// MemoryBody makes a body of b, which must not be changed afterwards.
func MemoryBody(b []byte) *Body { return &Body{mem: b, size: int64(len(b))} }

// FileBody makes a body of the first size bytes of f, and owns f from then on: it is closed when the body is
// not referenced any more.
func FileBody(f *os.File, size int64) *Body {
	b := &Body{file: f, size: size}
	runtime.AddCleanup(b, func(f *os.File) { _ = f.Close() }, f)
	return b
}

// Size in bytes.
func (b *Body) Size() int64 { return b.size }

// Bytes answers with the octets of a body in memory, and nil for one in a file.
func (b *Body) Bytes() []byte { return b.mem }

// InMemory reports whether Bytes has the octets.
func (b *Body) InMemory() bool { return b.file == nil }

// ReadAt implements io.ReaderAt.
func (b *Body) ReadAt(p []byte, off int64) (int, error) {
	if b.file == nil {
		return bytes.NewReader(b.mem).ReadAt(p, off)
	}
	return io.NewSectionReader(b.file, 0, b.size).ReadAt(p, off)
}

// Reader reads the body from its start.
func (b *Body) Reader() *io.SectionReader { return io.NewSectionReader(b, 0, b.size) }

// Descriptor opens the file of a body anew and read-only, to hand it to an agent. The caller closes it. It is
// an error for a body in memory.
func (b *Body) Descriptor() (*os.File, error) {
	if b.file == nil {
		return nil, fmt.Errorf("body is in memory")
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", b.file.Fd()))
	if err != nil {
		return nil, fmt.Errorf("opening body read-only: %w", err)
	}
	return f, nil
}
