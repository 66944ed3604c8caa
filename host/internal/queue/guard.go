package queue

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// guard is the file layer under the record engine. The engine ends the process, or panics with locks held, when it
// cannot write its log or its manifest. So at the first such failure guard trips: it keeps the error for the store,
// which refuses everything from then on, and from there on pretends to the engine that all goes well while nothing
// reaches the disk any more. What the disk holds is then what a power cut at that moment would have left.
type guard struct {
	vfs.FS
	cause   atomic.Pointer[error]
	tripped func(error) // called once
}

// err answers with the failure that tripped g, or nil.
func (g *guard) err() error {
	if p := g.cause.Load(); p != nil {
		return *p
	}
	return nil
}

func (g *guard) trip(err error) {
	if g.cause.CompareAndSwap(nil, &err) {
		g.tripped(err)
	}
}

// change runs one change of the disk. Tables are the exception: the engine survives a failure there and tries again.
func (g *guard) change(name string, op func() error) error {
	if g.err() != nil {
		return nil
	}
	err := op()
	if err == nil || isTable(name) {
		return err
	}
	g.trip(err)
	return nil
}

func isTable(name string) bool { return strings.HasSuffix(filepath.Base(name), ".sst") }

// open runs an op that makes a file; after a failure the file is one that swallows what is written.
func (g *guard) open(name string, op func() (vfs.File, error)) (vfs.File, error) {
	var f vfs.File
	err := g.change(name, func() (err error) { f, err = op(); return err })
	if err != nil {
		return nil, err
	}
	if f == nil {
		return &guardedFile{g: g, name: name}, nil
	}
	return &guardedFile{File: f, g: g, name: name}, nil
}

// Create implements vfs.FS.
func (g *guard) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return g.open(name, func() (vfs.File, error) { return g.FS.Create(name, c) })
}

// ReuseForWrite implements vfs.FS.
func (g *guard) ReuseForWrite(from, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return g.open(name, func() (vfs.File, error) { return g.FS.ReuseForWrite(from, name, c) })
}

// OpenReadWrite implements vfs.FS.
func (g *guard) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return g.open(name, func() (vfs.File, error) { return g.FS.OpenReadWrite(name, c, o...) })
}

// OpenDir implements vfs.FS. The directory is opened to be synced.
func (g *guard) OpenDir(name string) (vfs.File, error) {
	return g.open(name, func() (vfs.File, error) { return g.FS.OpenDir(name) })
}

// Link implements vfs.FS.
func (g *guard) Link(from, to string) error {
	return g.change(to, func() error { return g.FS.Link(from, to) })
}

// Rename implements vfs.FS.
func (g *guard) Rename(from, to string) error {
	return g.change(to, func() error { return g.FS.Rename(from, to) })
}

// MkdirAll implements vfs.FS.
func (g *guard) MkdirAll(name string, perm os.FileMode) error {
	return g.change(name, func() error { return g.FS.MkdirAll(name, perm) })
}

// Remove implements vfs.FS. A file that stays is no failure, but none may go once g has tripped.
func (g *guard) Remove(name string) error {
	if g.err() != nil {
		return nil
	}
	return g.FS.Remove(name)
}

// RemoveAll implements vfs.FS, like Remove.
func (g *guard) RemoveAll(name string) error {
	if g.err() != nil {
		return nil
	}
	return g.FS.RemoveAll(name)
}

// guardedFile passes on what changes the disk through its guard. File is nil if it was opened after the failure.
type guardedFile struct {
	vfs.File
	g    *guard
	name string
}

// Write implements vfs.File.
func (f *guardedFile) Write(p []byte) (int, error) {
	return len(p), f.g.change(f.name, func() error { _, err := f.File.Write(p); return err })
}

// WriteAt implements vfs.File.
func (f *guardedFile) WriteAt(p []byte, off int64) (int, error) {
	return len(p), f.g.change(f.name, func() error { _, err := f.File.WriteAt(p, off); return err })
}

// Sync implements vfs.File.
func (f *guardedFile) Sync() error { return f.g.change(f.name, func() error { return f.File.Sync() }) }

// SyncData implements vfs.File.
func (f *guardedFile) SyncData() error {
	return f.g.change(f.name, func() error { return f.File.SyncData() })
}

// SyncTo implements vfs.File.
func (f *guardedFile) SyncTo(n int64) (full bool, err error) {
	err = f.g.change(f.name, func() (err error) { full, err = f.File.SyncTo(n); return err })
	return full, err
}

// Preallocate implements vfs.File. It is an optimization: failing at it is left to the write that follows.
func (f *guardedFile) Preallocate(off, n int64) error {
	if f.g.err() == nil {
		_ = f.File.Preallocate(off, n)
	}
	return nil
}

// Close implements vfs.File.
func (f *guardedFile) Close() error {
	if f.File == nil {
		return nil
	}
	err := f.File.Close()
	return f.g.change(f.name, func() error { return err })
}

// Fd implements vfs.File.
func (f *guardedFile) Fd() uintptr {
	if f.File == nil {
		return vfs.InvalidFd
	}
	return f.File.Fd()
}
