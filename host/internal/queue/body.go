package queue

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"weak"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/posternmail/postern/host/internal/envelope"
)

// inlineLimit is the size up to which content stays in memory and in the record engine. Larger content is a file.
const inlineLimit = 64 << 10

// writeCategory of body files in the file layer's statistics, which nobody reads.
const writeCategory = vfs.WriteCategoryUnspecified

// bodyName is the name of the file of a content in the store's directory for bodies.
func bodyName(id contentID) string { return fmt.Sprintf("%016x", uint64(id)) }

func parseBodyName(name string) (contentID, bool) {
	n, err := strconv.ParseUint(name, 16, 64)
	return contentID(n), err == nil && len(name) == 16
}

// bodyPath is where the file of content id is.
func (s *diskStore) bodyPath(id contentID) string { return s.files.PathJoin(s.bodies, bodyName(id)) }

// bodyWriter collects a body in memory and moves to a file of the store when it grows. The file has its final name
// from the start, so that Commit has nothing to copy and nothing to rename.
type bodyWriter struct {
	store *diskStore // nil for a loose one
	loose string     // directory of a loose one
	mem   []byte
	spool *spool
	size  int64
	done  bool
}

// spool is a body file that no record names yet.
type spool struct {
	id    contentID // 0: it is loose, its file has no name
	file  bodyFile  // nil once it is closed
	taken atomic.Bool
}

// bodyFile is what is needed of a vfs.File or an *os.File.
type bodyFile interface {
	io.WriteCloser
	Sync() error
	Fd() uintptr
}

// NewBody implements Store.
func (s *diskStore) NewBody() (BodyWriter, error) {
	if err := s.usable(); err != nil {
		return nil, err
	}
	return &bodyWriter{store: s}, nil
}

var errBodyDone = errors.New("body is finished")

// Write implements io.Writer.
func (w *bodyWriter) Write(p []byte) (int, error) {
	if w.done {
		return 0, errBodyDone
	}
	if w.spool == nil && len(w.mem)+len(p) <= inlineLimit {
		w.mem = append(w.mem, p...)
		w.size += int64(len(p))
		return len(p), nil
	}
	if err := w.spill(); err != nil {
		return 0, err
	}
	n, err := w.spool.file.Write(p)
	w.size += int64(n)
	if err != nil {
		return n, fmt.Errorf("writing body: %w", err)
	}
	return n, nil
}

// spill moves to a file what is in memory.
func (w *bodyWriter) spill() error {
	if w.spool != nil {
		return nil
	}
	sp, err := w.newSpool()
	if err != nil {
		return err
	}
	if _, err := sp.file.Write(w.mem); err != nil {
		w.discard(sp)
		return fmt.Errorf("writing body: %w", err)
	}
	w.spool, w.mem = sp, nil
	return nil
}

// newSpool makes the file of a body. A store that is closed gives no names away any more: its directory may be another
// process's by now.
func (w *bodyWriter) newSpool() (*spool, error) {
	if w.store == nil {
		return looseSpool(w.loose)
	}
	w.store.life.RLock()
	defer w.store.life.RUnlock()
	if w.store.closed.Load() {
		return looseSpool(w.store.bodies)
	}
	return w.store.newSpool()
}

func looseSpool(dir string) (*spool, error) {
	f, err := os.CreateTemp(dir, loosePrefix)
	if err != nil {
		return nil, fmt.Errorf("creating body file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("creating body file: %w", err), f.Close())
	}
	return &spool{file: f}, nil
}

// loosePrefix begins the name that the file of a loose body has for a moment.
const loosePrefix = "loose-"

func (w *bodyWriter) discard(sp *spool) {
	if w.store == nil || sp.id == 0 {
		_ = sp.file.Close()
		return
	}
	w.store.discard(sp)
}

func (s *diskStore) newSpool() (*spool, error) {
	id := s.newContentID(true)
	f, err := s.files.Create(s.bodyPath(id), writeCategory)
	if err != nil {
		return nil, fmt.Errorf("creating body file: %w", err)
	}
	return &spool{id: id, file: f}, nil
}

// Finish implements BodyWriter.
func (w *bodyWriter) Finish() (*envelope.Body, error) {
	if w.done {
		return nil, errBodyDone
	}
	w.done = true
	if w.spool == nil {
		return envelope.MemoryBody(w.mem), nil
	}
	if w.spool.id == 0 {
		return w.finishLoose()
	}
	body, err := w.openBody()
	if err != nil {
		w.discard(w.spool)
		return nil, err
	}
	w.store.spooled.Store(weak.Make(body), w.spool)
	runtime.AddCleanup(body, w.store.forget, forgotten{weak.Make(body), w.spool})
	return body, nil
}

// finishLoose makes a body of a file without a name.
func (w *bodyWriter) finishLoose() (*envelope.Body, error) {
	defer w.discard(w.spool)
	return reopened(w.spool.file.Fd(), w.size)
}

// openBody opens the file that was written. After the store was closed another one may have removed it, and may even
// have given its name to another body: the descriptor is the same file whatever has become of the name.
func (w *bodyWriter) openBody() (*envelope.Body, error) {
	if fd := w.spool.file.Fd(); fd != vfs.InvalidFd {
		return reopened(fd, w.size)
	}
	return w.store.openBody(w.spool.id, w.size)
}

// reopened opens the file behind a descriptor anew, for reading.
func reopened(fd uintptr, size int64) (*envelope.Body, error) {
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, fmt.Errorf("opening body file: %w", err)
	}
	return envelope.FileBody(f, size), nil
}

// Abort implements BodyWriter.
func (w *bodyWriter) Abort() {
	if !w.done && w.spool != nil {
		w.discard(w.spool)
	}
	w.done, w.mem = true, nil
}

type forgotten struct {
	body  weak.Pointer[envelope.Body]
	spool *spool
}

// forget cleans up after a body that nobody refers to any more.
func (s *diskStore) forget(f forgotten) {
	s.spooled.Delete(f.body)
	if f.spool.taken.CompareAndSwap(false, true) {
		s.discard(f.spool)
	}
}

// discard removes a body file that no record names. What cannot be removed is swept at the next start.
func (s *diskStore) discard(sp *spool) {
	if sp.file != nil {
		_ = sp.file.Close()
		sp.file = nil
	}
	s.removeBody(sp.id)
}

func (s *diskStore) removeBody(id contentID) {
	if s.closed.Load() {
		return // another store may have the directory by now, and it sweeps
	}
	if err := s.files.Remove(s.bodyPath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Warn("removing body file", "file", bodyName(id), "error", err)
	}
}

// openBody opens the file of a content for reading.
func (s *diskStore) openBody(id contentID, size int64) (*envelope.Body, error) {
	f, err := os.Open(s.bodyPath(id))
	if err != nil {
		return nil, fmt.Errorf("opening body file: %w", err)
	}
	if info, err := f.Stat(); err != nil || info.Size() != size {
		return nil, errors.Join(fmt.Errorf("body file %s is not of %d bytes", bodyName(id), size), err, f.Close())
	}
	return envelope.FileBody(f, size), nil
}
