package queue

import (
	"errors"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// guard is the file layer under the record engine. The engine does not survive a failure to write: it ends the
// process, panics with locks held, or tries again without end. So at the first failure guard trips: it keeps the error
// for the store, which refuses everything from then on, and nothing reaches the disk any more. What the disk holds is
// then what a power cut at that moment would have left. The engine is given up, not closed: those who wait for its log
// are released by pretending that all goes well with it, and whatever else it does stops for good at the next file.
type guard struct {
	vfs.FS
	tripped func(error) // called once
	done    chan struct{}

	mu      sync.Mutex
	cause   error
	locks   []io.Closer
	givenUp bool
}

func newGuard(files vfs.FS, tripped func(error)) *guard {
	return &guard{FS: files, tripped: tripped, done: make(chan struct{})}
}

// err answers with the failure that tripped g, or nil.
func (g *guard) err() error {
	select {
	case <-g.done:
		return g.cause
	default:
		return nil
	}
}

func (g *guard) trip(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cause == nil {
		g.cause = err
		close(g.done)
		g.tripped(err)
	}
}

// giveUp lets go of the locks of an engine that is not closed.
func (g *guard) giveUp() (err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.givenUp = true
	for _, lock := range g.locks {
		err = errors.Join(err, lock.Close())
	}
	return err
}

// Lock implements vfs.FS.
func (g *guard) Lock(name string) (io.Closer, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.givenUp {
		return nil, g.cause
	}
	lock, err := g.FS.Lock(name)
	if err != nil {
		return nil, err
	}
	once := &closeOnce{Closer: lock}
	g.locks = append(g.locks, once)
	return once, nil
}

// closeOnce lets both giveUp and an engine that does end close a lock.
type closeOnce struct {
	io.Closer
	once sync.Once
}

// Close implements io.Closer.
func (c *closeOnce) Close() (err error) {
	c.once.Do(func() { err = c.Closer.Close() })
	return err
}

// change runs one change of file name.
func (g *guard) change(name string, op func() error) {
	if g.err() == nil {
		if err := op(); err != nil {
			g.trip(err)
		}
	}
	g.alive(name)
}

// alive does not return once g has tripped, unless name is a log.
func (g *guard) alive(name string) {
	if g.err() != nil && !strings.HasSuffix(name, ".log") {
		select {}
	}
}

// open runs an op that makes a file. A log that cannot be made any more swallows what is written.
func (g *guard) open(name string, op func() (vfs.File, error)) (vfs.File, error) {
	f := &guardedFile{g: g, name: name}
	g.change(name, func() (err error) {
		file, err := op()
		if err == nil {
			f.File = file
		}
		return err
	})
	return f, nil
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

// OpenDir implements vfs.FS. The directory is opened to be synced, which is a part of making a log.
func (g *guard) OpenDir(name string) (vfs.File, error) {
	return g.open(name+"/.log", func() (vfs.File, error) { return g.FS.OpenDir(name) })
}

// Open implements vfs.FS.
func (g *guard) Open(name string, o ...vfs.OpenOption) (vfs.File, error) {
	g.alive("")
	return g.FS.Open(name, o...)
}

// Link implements vfs.FS.
func (g *guard) Link(from, to string) error {
	g.change("", func() error { return g.FS.Link(from, to) })
	return nil
}

// Rename implements vfs.FS.
func (g *guard) Rename(from, to string) error {
	g.change("", func() error { return g.FS.Rename(from, to) })
	return nil
}

// MkdirAll implements vfs.FS.
func (g *guard) MkdirAll(name string, perm os.FileMode) error {
	g.change("", func() error { return g.FS.MkdirAll(name, perm) })
	return nil
}

// Remove implements vfs.FS. A file that stays is no failure.
func (g *guard) Remove(name string) error {
	g.alive("")
	return g.FS.Remove(name)
}

// RemoveAll implements vfs.FS, like Remove.
func (g *guard) RemoveAll(name string) error {
	g.alive("")
	return g.FS.RemoveAll(name)
}

// List implements vfs.FS.
func (g *guard) List(name string) ([]string, error) {
	g.alive("")
	return g.FS.List(name)
}

// Stat implements vfs.FS.
func (g *guard) Stat(name string) (vfs.FileInfo, error) {
	g.alive("")
	return g.FS.Stat(name)
}

// guardedFile passes on what changes the disk through its guard. File is nil in a log that was made after the failure.
type guardedFile struct {
	vfs.File
	g    *guard
	name string
}

// Write implements vfs.File.
func (f *guardedFile) Write(p []byte) (int, error) {
	f.g.change(f.name, func() error { _, err := f.File.Write(p); return err })
	return len(p), nil
}

// WriteAt implements vfs.File.
func (f *guardedFile) WriteAt(p []byte, off int64) (int, error) {
	f.g.change(f.name, func() error { _, err := f.File.WriteAt(p, off); return err })
	return len(p), nil
}

// Sync implements vfs.File.
func (f *guardedFile) Sync() error {
	f.g.change(f.name, func() error { return f.File.Sync() })
	return nil
}

// SyncData implements vfs.File.
func (f *guardedFile) SyncData() error {
	f.g.change(f.name, func() error { return f.File.SyncData() })
	return nil
}

// SyncTo implements vfs.File.
func (f *guardedFile) SyncTo(n int64) (full bool, err error) {
	f.g.change(f.name, func() (err error) { full, err = f.File.SyncTo(n); return err })
	return full, nil
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
	f.g.change(f.name, func() error { return err })
	return nil
}

// Fd implements vfs.File.
func (f *guardedFile) Fd() uintptr {
	if f.File == nil {
		return vfs.InvalidFd
	}
	return f.File.Fd()
}
