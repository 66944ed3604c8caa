package envelope

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Body is the octets of a message after its empty line. It never changes. Small ones are in memory, large ones
// in a file; the file may have no name any more. One may be made around another. A Body is safe for concurrent use and is freed with its last
// reference.
type Body struct {
	mem  []byte
	file *os.File
	size int64

	before, after []byte // around inner
	inner         *Body

	copying sync.Once // of a body in memory, for Descriptor
	copied  *os.File
	copyErr error
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

// BodyAround makes a body of before, the octets of inner and after, none of which is copied.
func BodyAround(before []byte, inner *Body, after []byte) *Body {
	return &Body{before: before, inner: inner, after: after, size: int64(len(before)) + inner.size + int64(len(after))}
}

// Size in bytes.
func (b *Body) Size() int64 { return b.size }

// Bytes answers with the octets of a body in memory, and nil for another.
func (b *Body) Bytes() []byte { return b.mem }

// InMemory reports whether Bytes has the octets.
func (b *Body) InMemory() bool { return b.file == nil && b.inner == nil }

// ReadAt implements io.ReaderAt.
func (b *Body) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case b.inner != nil:
		return b.readAround(p, off)
	case b.file == nil:
		return bytes.NewReader(b.mem).ReadAt(p, off)
	}
	return io.NewSectionReader(b.file, 0, b.size).ReadAt(p, off)
}

// readAround reads from the three parts that p spans.
func (b *Body) readAround(p []byte, off int64) (n int, err error) {
	parts := [...]io.ReaderAt{bytes.NewReader(b.before), b.inner, bytes.NewReader(b.after)}
	for i, size := range [...]int64{int64(len(b.before)), b.inner.size, int64(len(b.after))} {
		if off >= size {
			off -= size
			continue
		}
		want := min(int64(len(p)-n), size-off)
		got, err := parts[i].ReadAt(p[n:n+int(want)], off)
		n += got
		if int64(got) < want {
			return n, err
		}
		if n == len(p) {
			return n, nil
		}
		off = 0
	}
	return n, io.EOF
}

// Reader reads the body from its start.
func (b *Body) Reader() *io.SectionReader { return io.NewSectionReader(b, 0, b.size) }

// Descriptor opens the body anew and read-only, to hand it to an agent. The caller closes it. The octets of a
// body that is in no file of its own are copied once, into memory that has a descriptor and cannot change any more:
// who maps it need not fear that it shrinks.
func (b *Body) Descriptor() (*os.File, error) {
	file := b.file
	if file == nil {
		b.copying.Do(b.copyToDescriptor)
		if b.copyErr != nil {
			return nil, b.copyErr
		}
		file = b.copied
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	runtime.KeepAlive(b)
	if err != nil {
		return nil, fmt.Errorf("opening body read-only: %w", err)
	}
	return f, nil
}

// copyToDescriptor copies the octets of a body that is in no file of its own.
func (b *Body) copyToDescriptor() {
	b.copied, b.copyErr = sealed(b.Reader())
	if b.copyErr == nil {
		runtime.AddCleanup(b, func(f *os.File) { _ = f.Close() }, b.copied)
	}
}

// sealed copies octets into memory that cannot be changed any more (memfd_create(2), fcntl(2) F_ADD_SEALS).
func sealed(octets io.Reader) (*os.File, error) {
	fd, err := unix.MemfdCreate("body", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("making a descriptor for a body: %w", err)
	}
	file := os.NewFile(uintptr(fd), "body")
	if _, err := io.Copy(file, octets); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("copying a body: %w", err)
	}
	seals := unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("sealing a body: %w", err)
	}
	return file, nil
}
