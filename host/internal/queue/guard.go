package queue

import (
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// guard is the file layer under the record engine. The engine does not survive a failure to write: it ends the
// process, panics with locks held, or tries again without end. So at the first failure guard trips: it keeps the error
// for the store, which refuses everything from then on, and pretends to the engine that all goes well while nothing
// reaches the disk any more. What the disk holds is then what a power cut at that moment would have left. The engine is
// given up, not closed.
type guard struct {
	vfs.FS
	tripped func(error) // called once
	done    chan struct{}

	mu      sync.Mutex
	cause   error
	locks   []io.Closer
	givenUp bool
}

// givenUpPause is how long an engine that has been given up rests before it tries something again.
const givenUpPause = time.Second

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

// change runs one change of the disk.
func (g *guard) change(op func() error) error {
	if g.err() != nil {
		return nil
	}
	if err := op(); err != nil {
		g.trip(err)
	}
	return nil
}

// pause slows down an engine that has been given up, and would try the same thing again and again without a rest.
func (g *guard) pause() bool {
	if g.err() == nil {
		return false
	}
	time.Sleep(givenUpPause)
	return true
}

// open runs an op that makes a file; after a failure the file is one that swallows what is written.
func (g *guard) open(op func() (vfs.File, error)) (vfs.File, error) {
	f := &guardedFile{g: g}
	err := g.change(func() (err error) { f.File, err = op(); return err })
	if g.err() != nil {
		f.File = nil
	}
	return f, err
}

// Create implements vfs.FS.
func (g *guard) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasSuffix(name, ".sst") && g.pause() {
		return nil, g.err()
	}
	return g.open(func() (vfs.File, error) { return g.FS.Create(name, c) })
}

// ReuseForWrite implements vfs.FS.
func (g *guard) ReuseForWrite(from, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return g.open(func() (vfs.File, error) { return g.FS.ReuseForWrite(from, name, c) })
}

// OpenReadWrite implements vfs.FS.
func (g *guard) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return g.open(func() (vfs.File, error) { return g.FS.OpenReadWrite(name, c, o...) })
}

// OpenDir implements vfs.FS. The directory is opened to be synced.
func (g *guard) OpenDir(name string) (vfs.File, error) {
	return g.open(func() (vfs.File, error) { return g.FS.OpenDir(name) })
}

// Link implements vfs.FS.
func (g *guard) Link(from, to string) error {
	return g.change(func() error { return g.FS.Link(from, to) })
}

// Rename implements vfs.FS.
func (g *guard) Rename(from, to string) error {
	return g.change(func() error { return g.FS.Rename(from, to) })
}

// MkdirAll implements vfs.FS.
func (g *guard) MkdirAll(name string, perm os.FileMode) error {
	return g.change(func() error { return g.FS.MkdirAll(name, perm) })
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
	g *guard
}

// Write implements vfs.File.
func (f *guardedFile) Write(p []byte) (int, error) {
	return len(p), f.g.change(func() error { _, err := f.File.Write(p); return err })
}

// WriteAt implements vfs.File.
func (f *guardedFile) WriteAt(p []byte, off int64) (int, error) {
	return len(p), f.g.change(func() error { _, err := f.File.WriteAt(p, off); return err })
}

// Sync implements vfs.File.
func (f *guardedFile) Sync() error { return f.g.change(func() error { return f.File.Sync() }) }

// SyncData implements vfs.File.
func (f *guardedFile) SyncData() error {
	return f.g.change(func() error { return f.File.SyncData() })
}

// SyncTo implements vfs.File.
func (f *guardedFile) SyncTo(n int64) (full bool, err error) {
	err = f.g.change(func() (err error) { full, err = f.File.SyncTo(n); return err })
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
	return f.g.change(func() error { return err })
}

// Fd implements vfs.File.
func (f *guardedFile) Fd() uintptr {
	if f.File == nil {
		return vfs.InvalidFd
	}
	return f.File.Fd()
}
