package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/sdk/mime"
)

// object is what engines look at: the whole message, or a part of it decoded in one way. Several engines may read it at once.
type object struct {
	name  string       // for people
	parts []*mime.Part // that have it; none: it is the whole message
	size  int64
	sum   [sha256.Size]byte // of a part

	open  func() io.Reader         // from its start
	given func() (*os.File, error) // a descriptor that is there already; nil: none

	copying sync.Once
	file    *os.File
	err     error
}

// whole reports whether this is the whole message.
func (o *object) whole() bool { return len(o.parts) == 0 }

// descriptor of the object, to be handed on. It belongs to the object. Where there is none yet the octets are copied, once,
// into memory that has one.
func (o *object) descriptor() (*os.File, error) {
	o.copying.Do(func() {
		if o.file == nil && o.given != nil {
			o.file, o.err = o.given()
		}
		if o.file != nil || o.err != nil {
			return
		}
		if o.file, o.err = memoryFile(); o.err == nil {
			_, o.err = io.Copy(o.file, o.open())
		}
	})
	return o.file, o.err
}

// close lets go of the descriptor. That of a sink may be closed a second time, which does nothing.
func (o *object) close() {
	if o.file != nil {
		o.file.Close()
	}
}

// memoryFile is a file that is nowhere but in memory (memfd_create(2)).
func memoryFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("part", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making a file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), "part"), nil
}

// section of octets that are there already.
func section(from io.ReaderAt, start, size int64) func() io.Reader {
	return func() io.Reader { return io.NewSectionReader(from, start, size) }
}

// sink keeps decoded octets: few in the heap, many in a file, so that an engine can be given its descriptor.
type sink struct {
	room int64 // that is left
	mem  bytes.Buffer
	file *os.File
	hash hash.Hash
	size int64
}

// inHeap is up to how many octets a sink keeps in the heap.
const inHeap = 256 << 10

func newSink(room int64) *sink { return &sink{room: room, hash: sha256.New()} }

// Write implements io.Writer. It fails where there is no room left.
func (s *sink) Write(p []byte) (int, error) {
	if s.room -= int64(len(p)); s.room < 0 {
		return 0, errUnpacked
	}
	s.hash.Write(p)
	s.size += int64(len(p))
	if s.file == nil && s.size <= inHeap {
		return s.mem.Write(p)
	}
	if s.file == nil {
		if err := s.spill(); err != nil {
			return 0, err
		}
	}
	return s.file.Write(p)
}

// spill moves what is in the heap to a file.
func (s *sink) spill() (err error) {
	if s.file, err = memoryFile(); err != nil {
		return err
	}
	_, err = s.mem.WriteTo(s.file)
	s.mem = bytes.Buffer{}
	return err
}

// close lets go of the file.
func (s *sink) close() {
	if s.file != nil {
		s.file.Close()
	}
}

// object of what was written.
func (s *sink) object() *object {
	o := &object{size: s.size, file: s.file}
	s.hash.Sum(o.sum[:0])
	if s.file != nil {
		o.open = section(s.file, 0, s.size)
	} else {
		o.open = section(bytes.NewReader(s.mem.Bytes()), 0, s.size)
	}
	return o
}

// content is the octets of a part that were decoded.
func (s *sink) content() mime.Body {
	if s.file != nil {
		return io.NewSectionReader(s.file, 0, s.size)
	}
	return bytes.NewReader(s.mem.Bytes())
}

// nameOf a part for people: its file name, else its type.
func nameOf(p *mime.Part) string {
	if p.Filename != "" {
		return clip(p.Filename, maxName)
	}
	return clip(p.Type, maxName)
}

// Bounds of what goes into stamps and the ledger, in octets.
const (
	maxName = 80
	maxData = 300
)

// clip makes one printable line of at most n octets and a few.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// wholeMessage is header and body together.
func wholeMessage(header []byte, body mime.Body) *object {
	head := append(header[:len(header):len(header)], "\r\n"...)
	return &object{
		name: "the message", size: int64(len(head)) + body.Size(),
		open: func() io.Reader {
			return io.MultiReader(bytes.NewReader(head), io.NewSectionReader(body, 0, body.Size()))
		},
	}
}
