package tracking

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
)

const (
	// flushAfter is how long a record may wait in memory.
	flushAfter = 250 * time.Millisecond
	// flushBytes of waiting records are written at once.
	flushBytes = 256 << 10
	// maxPending bytes wait for a slow disk; records beyond it are dropped and counted.
	maxPending = 8 << 20
	// largestFile in bytes; smaller where the whole ledger is small.
	largestFile = 64 << 20
	// tidyEvery is how often files are looked at for their age.
	tidyEvery = time.Hour
)

// Options of a File.
type Options struct {
	Config config.Ledger // bounds; 0 is none
	Logger hclog.Logger
	Now    func() time.Time // default time.Now
}

// File is the ledger on disk: JSON lines, a file a day (UTC) and another whenever one is full. It implements
// Ledger. Records wait in memory for at most 250 ms and are written by one goroutine, so that no caller waits
// for the disk.
type File struct {
	dir     string
	options Options
	full    bool

	mu      sync.Mutex
	pending []byte // records waiting
	count   int    // how many
	closed  bool

	buffers sync.Pool // *[]byte, for a record each
	written atomic.Uint64
	dropped atomic.Uint64

	kick    chan struct{} // something is pending
	flushes chan chan error
	stop    chan struct{}
	stopped chan error

	// The goroutine's own.
	out      segment
	reported time.Time // when trouble was last said
}

var _ Ledger = (*File)(nil)

// Dir is the folder of the ledger below a host's data directory.
func Dir(dataDir string) string { return filepath.Join(dataDir, "ledger") }

// Open opens the ledger in dir and makes the folder where it is missing. Only one process may have it open.
func Open(dir string, o Options) (*File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening ledger: %w", err)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	f := &File{
		dir: dir, options: o, full: o.Config.Full,
		kick:    make(chan struct{}, 1),
		flushes: make(chan chan error),
		stop:    make(chan struct{}),
		stopped: make(chan error, 1),
		out:     segment{dir: dir, limit: segmentLimit(o.Config.MaxBytes)},
	}
	if err := f.out.open(o.Now()); err != nil {
		return nil, err
	}
	if err := f.tidy(); err != nil {
		return nil, err
	}
	go f.run()
	return f, nil
}

// Full implements Ledger.
func (f *File) Full() bool { return f.full }

// Dropped is the number of records lost because the disk was slow or failed.
func (f *File) Dropped() uint64 { return f.dropped.Load() }

// Written is the number of records on disk since Open.
func (f *File) Written() uint64 { return f.written.Load() }

// Write implements Ledger.
func (f *File) Write(r *Record) {
	if r.Time.IsZero() {
		r.Time = f.options.Now()
	}
	buf, _ := f.buffers.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	*buf = appendRecord((*buf)[:0], r)
	f.add(*buf)
	f.buffers.Put(buf)
}

func (f *File) add(line []byte) { f.addLines(line, 1) }

func (f *File) addLines(lines []byte, count int) {
	f.mu.Lock()
	if f.closed || len(f.pending)+len(lines) > maxPending {
		f.mu.Unlock()
		f.dropped.Add(uint64(count))
		return
	}
	before := len(f.pending)
	f.pending = append(f.pending, lines...)
	f.count += count
	wake := before == 0 || before < flushBytes && len(f.pending) >= flushBytes
	f.mu.Unlock()
	if wake {
		select {
		case f.kick <- struct{}{}:
		default: // it will look anyway
		}
	}
}

// Flush writes what waits, and returns when it can be read.
func (f *File) Flush() error {
	done := make(chan error, 1)
	select {
	case f.flushes <- done:
		return <-done
	case <-f.stop:
		return nil
	}
}

// Close writes what waits, syncs and closes the file. Records that come later are dropped.
func (f *File) Close() error {
	f.mu.Lock()
	closed := f.closed
	f.closed = true
	f.mu.Unlock()
	if closed {
		return nil
	}
	close(f.stop)
	return <-f.stopped
}

// run is the goroutine that owns the disk.
func (f *File) run() {
	var spare []byte
	tidy := time.NewTicker(tidyEvery)
	defer tidy.Stop()
	gather := time.NewTimer(0)
	defer gather.Stop()
	<-gather.C
	for {
		select {
		case <-f.kick:
			if f.waiting() < flushBytes {
				gather.Reset(flushAfter)
				continue
			}
			spare, _ = f.write(spare)
		case <-gather.C:
			spare, _ = f.write(spare)
		case done := <-f.flushes:
			var err error
			spare, err = f.write(spare)
			done <- err
		case <-tidy.C:
			f.report(f.tidy())
		case <-f.stop:
			_, err := f.write(spare)
			f.stopped <- errors.Join(err, f.out.close())
			return
		}
	}
}

func (f *File) waiting() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.pending)
}

// write writes what is pending and gives back a buffer for the next time.
func (f *File) write(spare []byte) ([]byte, error) {
	f.mu.Lock()
	lines, count := f.pending, f.count
	f.pending, f.count = spare[:0], 0
	f.mu.Unlock()
	if count == 0 {
		return lines, nil
	}
	turned, err := f.out.write(lines, f.options.Now())
	if err != nil {
		f.dropped.Add(uint64(count))
		f.report(err)
		return lines, err
	}
	f.written.Add(uint64(count))
	if turned {
		f.report(f.tidy())
	}
	return lines, nil
}

// report says in the log that the ledger has trouble, once a minute: a full disk fails every write.
func (f *File) report(err error) {
	now := f.options.Now()
	if err == nil || now.Sub(f.reported) < time.Minute {
		return
	}
	f.reported = now
	f.options.Logger.Error("ledger cannot be written", "error", err, "records_dropped", f.dropped.Load())
}

// segmentLimit keeps at least 16 files in the ledger, so that the oldest one that leaves is a small part of it.
func segmentLimit(total int64) int64 {
	if total <= 0 {
		return largestFile
	}
	return min(max(total/16, 4<<10), largestFile)
}
