package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/go-hclog"
)

// Errors of a store.
var (
	// ErrFull refuses new mail because the disk has less room than the reserve. It passes when there is room again.
	ErrFull = errors.New("not enough disk space")
	// ErrBroken is wrapped by all that a store answers after a write or sync has failed: what the disk then holds is
	// known only by opening the store anew.
	ErrBroken = errors.New("store is broken until it is opened again")
	// ErrUnreadable is wrapped by Load for an item whose record or content cannot be read. Trying again is in vain.
	ErrUnreadable = errors.New("unreadable record")
	// ErrLocked is wrapped by OpenStore when another process uses the directory.
	ErrLocked = errors.New("directory is in use")
	// ErrVersion is wrapped by OpenStore for a directory that another version of Postern has written.
	ErrVersion = errors.New("unknown version of the store")
)

// StoreOptions of OpenStore. The zero value is good for use.
type StoreOptions struct {
	// Files is the file layer; nil is the disk. Its paths are the disk's own: bodies are read past it.
	Files vfs.FS
	// Logger is told of unreadable records and of failures; nil is silence.
	Logger hclog.Logger
	// CacheBytes bounds the memory that recently committed items may hold; 0 is 64 MiB.
	CacheBytes int64
	// ReserveBytes of disk space must be free for new mail to be taken; 0 is 256 MiB, negative is none.
	ReserveBytes int64
	// OnBroken is called once, in a goroutine of its own, when a write or sync has failed. The process should end:
	// the store refuses all from then on.
	OnBroken func(error)
}

// The directory of a store:
//
//	VERSION   what wrote it
//	LOCK      held by the process that has it open
//	records/  the record engine: items, entries, content up to 64 KiB
//	bodies/   larger content, a file each
const (
	versionName = "VERSION"
	versionText = "postern queue 1\n"
	lockName    = "LOCK"
	recordsName = "records"
	bodiesName  = "bodies"

	defaultCacheBytes   = 64 << 20
	defaultReserveBytes = 256 << 20
	spaceCheckInterval  = time.Second
)

// diskStore is the Store of one host, on Pebble. A plain log with group commit and an index in memory, written for
// comparison, took 24 us of CPU for a commit of 4 KB with 32 senders where Pebble took 79, and 18 against 33 us where
// each message was removed again, which is how mail lives. That is inside the budget of 100 us, and such a log would
// still need compaction, an index on disk to start with a million items, and years of use.
type diskStore struct {
	log     hclog.Logger
	files   vfs.FS
	guard   *guard
	bodies  string // directory
	records string // directory
	db      *pebble.DB
	lock    io.Closer
	cache   *itemCache
	reserve uint64
	broken  func(error)

	life    sync.RWMutex // held for reading by every operation, for writing by Close
	closed  atomic.Bool
	space   spaceCheck
	spooled sync.Map      // weak.Pointer[envelope.Body] to *spool
	lastID  atomic.Uint64 // number of the newest content

	mu     sync.Mutex           // orders the changes of items; not held during syncs
	shared map[contentID]uint64 // how many items name it, where more than one does
}

var _ Store = (*diskStore)(nil)

// OpenStore opens the store in directory dir, or makes one there. One process at a time may have it open.
func OpenStore(dir string, o StoreOptions) (Store, error) {
	s := newDiskStore(dir, o)
	if err := s.open(dir); err != nil {
		s.release()
		return nil, fmt.Errorf("opening store %s: %w", dir, err)
	}
	return s, nil
}

func newDiskStore(dir string, o StoreOptions) *diskStore {
	s := &diskStore{log: o.Logger, files: o.Files, broken: o.OnBroken, shared: map[contentID]uint64{}}
	if s.log == nil {
		s.log = hclog.NewNullLogger()
	}
	if s.files == nil {
		s.files = vfs.Default
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = defaultCacheBytes
	}
	switch {
	case o.ReserveBytes == 0:
		s.reserve = defaultReserveBytes
	case o.ReserveBytes > 0:
		s.reserve = uint64(o.ReserveBytes)
	}
	s.cache = newItemCache(o.CacheBytes)
	s.bodies = s.files.PathJoin(dir, bodiesName)
	s.records = s.files.PathJoin(dir, recordsName)
	s.guard = newGuard(s.files, s.brokenBy)
	return s
}

func (s *diskStore) brokenBy(err error) {
	s.log.Error("the store is broken and refuses everything until it is opened again", "error", err)
	if s.broken != nil {
		go s.broken(fmt.Errorf("%w: %w", ErrBroken, err))
	}
}

func (s *diskStore) open(dir string) error {
	if err := makeDirs(s.files, dir, s.records, s.bodies); err != nil {
		return err
	}
	if err := s.acquire(dir); err != nil {
		return err
	}
	if err := s.checkVersion(dir); err != nil {
		return err
	}
	if err := syncDir(s.files, dir); err != nil {
		return err
	}
	if err := s.openRecords(); err != nil {
		return err
	}
	if err := s.loadShared(); err != nil {
		return err
	}
	return s.sweep()
}

// makeDirs makes directories and sees to it that a power cut leaves dir there: every name on the way to it is synced.
// Directories above that may not be opened were not made by us.
func makeDirs(files vfs.FS, dir string, below ...string) error {
	for _, d := range append([]string{dir}, below...) {
		if err := files.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	for up := files.PathDir(dir); ; up = files.PathDir(up) {
		err := syncDir(files, up)
		if err != nil && !errors.Is(err, os.ErrPermission) {
			return err
		}
		if up == files.PathDir(up) {
			return nil
		}
	}
}

func syncDir(files vfs.FS, dir string) error {
	d, err := files.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (s *diskStore) acquire(dir string) error {
	lock, err := s.files.Lock(s.files.PathJoin(dir, lockName))
	if err != nil {
		return fmt.Errorf("%w: another host runs on it; stop that one, or give this one a data_dir of its own (%v)",
			ErrLocked, err)
	}
	s.lock = lock
	return nil
}

// checkVersion refuses a directory that it does not know. One without a version was left before its first record.
func (s *diskStore) checkVersion(dir string) error {
	path := s.files.PathJoin(dir, versionName)
	f, err := s.files.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return s.writeVersion(path)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 100))
	if err != nil {
		return err
	}
	if string(text) != versionText {
		return fmt.Errorf("%w: %s says %q and this program knows %q; let the version that wrote it deliver what is there, "+
			"or give this one a data_dir of its own", ErrVersion, path, strings.TrimSpace(string(text)),
			strings.TrimSpace(versionText))
	}
	return nil
}

func (s *diskStore) writeVersion(path string) error {
	f, err := s.files.Create(path+".new", writeCategory)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, versionText)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return s.files.Rename(path+".new", path)
}

// openRecords opens the record engine, in a goroutine that is given up when the disk fails.
func (s *diskStore) openRecords() error {
	type result struct {
		db  *pebble.DB
		err error
	}
	opened := make(chan result, 1)
	go func() {
		r := result{err: errors.New("the record engine gave up")}
		defer func() {
			if v := recover(); v != nil {
				r.err = fmt.Errorf("%v", v)
			}
			opened <- r
		}()
		cache := pebble.NewCache(16 << 20)
		defer cache.Unref()
		r.db, r.err = pebble.Open(s.records, s.engineOptions(cache))
	}()
	select {
	case r := <-opened:
		s.db = r.db
		return errors.Join(r.err, s.guard.err())
	case <-s.guard.done:
		return s.guard.err()
	}
}

func (s *diskStore) engineOptions(cache *pebble.Cache) *pebble.Options {
	o := &pebble.Options{
		FS:                          s.guard,
		Logger:                      engineLog{s},
		Cache:                       cache,
		FormatMajorVersion:          pebble.FormatValueSeparation,
		MemTableSize:                32 << 20, // most mail is gone before it is written anywhere but to the log
		MemTableStopWritesThreshold: 4,
		MaxOpenFiles:                500,
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) { s.log.Error("record engine", "error", err) },
			DataCorruption:  func(i pebble.DataCorruptionInfo) { s.log.Error("record engine", "corrupt", i.String()) },
		},
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	return o
}

// engineLog hands the engine's messages to the log.
type engineLog struct{ s *diskStore }

// Infof implements pebble.Logger.
func (l engineLog) Infof(format string, args ...any) { l.s.log.Trace(fmt.Sprintf(format, args...)) }

// Errorf implements pebble.Logger.
func (l engineLog) Errorf(format string, args ...any) { l.s.log.Error(fmt.Sprintf(format, args...)) }

// Fatalf implements pebble.Logger. It must not return, and must not end the process either.
func (l engineLog) Fatalf(format string, args ...any) {
	l.s.guard.trip(fmt.Errorf(format, args...))
	select {}
}

// loadShared reads which content is shared, and where content ids go on.
func (s *diskStore) loadShared() error {
	last, err := s.lastContent()
	if err != nil {
		return err
	}
	s.lastID.Store(uint64(last >> 1))
	return s.each(spaceShared, func(key, value []byte) error {
		n, size := binary.Uvarint(value)
		if len(key) != 9 || size <= 0 {
			return fmt.Errorf("count of shared content: %w", errMalformed)
		}
		s.shared[contentID(binary.BigEndian.Uint64(key[1:]))] = n
		return nil
	})
}

func (s *diskStore) lastContent() (contentID, error) {
	it, err := s.db.NewIter(spaceBounds(spaceContent))
	if err != nil {
		return 0, err
	}
	var last contentID
	if it.Last() && len(it.Key()) == 9 {
		last = contentID(binary.BigEndian.Uint64(it.Key()[1:]))
	}
	return last, errors.Join(it.Error(), it.Close())
}

func spaceBounds(space byte) *pebble.IterOptions {
	return &pebble.IterOptions{LowerBound: []byte{space}, UpperBound: []byte{space + 1}}
}

// each calls fn for the records of a space in their order.
func (s *diskStore) each(space byte, fn func(key, value []byte) error) error {
	it, err := s.db.NewIter(spaceBounds(space))
	if err != nil {
		return err
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		err = fn(it.Key(), it.Value())
	}
	return errors.Join(err, it.Error(), it.Close())
}

// sweep removes body files that no record names: of messages that were never committed, or whose removal a crash
// has cut short.
func (s *diskStore) sweep() error {
	names, err := s.files.List(s.bodies)
	if err != nil {
		return err
	}
	for _, name := range names {
		id, ok := parseBodyName(name)
		if strings.HasPrefix(name, loosePrefix) {
			_ = s.files.Remove(s.files.PathJoin(s.bodies, name)) // of a process that died just then
			continue
		}
		if !ok {
			s.log.Warn("not a file of ours among the bodies", "file", name)
			continue
		}
		if err := s.sweepBody(id); err != nil {
			return err
		}
	}
	return nil
}

func (s *diskStore) sweepBody(id contentID) error {
	s.lastID.Store(max(s.lastID.Load(), uint64(id>>1)))
	_, closer, err := s.db.Get(contentKey(spaceContent, id))
	switch {
	case err == nil:
		return closer.Close()
	case errors.Is(err, pebble.ErrNotFound):
		s.removeBody(id)
		return nil
	}
	return err
}

func (s *diskStore) newContentID(inFile bool) contentID {
	id := contentID(s.lastID.Add(1) << 1)
	if inFile {
		id |= 1
	}
	return id
}

// usable tells why nothing can be done, or nil.
func (s *diskStore) usable() error {
	if s.closed.Load() {
		return errors.New("store is closed")
	}
	if err := s.guard.err(); err != nil {
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
	return nil
}

// spaceCheck remembers how much of the disk is free, and since when that is too little.
type spaceCheck struct {
	mu      sync.Mutex
	at      time.Time
	free    uint64
	low     time.Time // since when new mail is refused; zero: it is not
	refused int       // since then
}

// Room tells whether new mail may be taken; its error wraps ErrFull. Changes of what is there are always taken: they are
// the way to room.
func (s *diskStore) Room() error {
	s.space.mu.Lock()
	defer s.space.mu.Unlock()
	return s.room(0)
}

// RoomFor is Room for a message that comes in now, of size octets or, with 0, of a size that is not known. That there is
// no room is logged once, and when it is over how many were refused meanwhile.
func (s *diskStore) RoomFor(size int64) error {
	s.space.mu.Lock()
	defer s.space.mu.Unlock()
	err := s.room(size)
	if err != nil {
		s.space.refused++
	}
	return err
}

// room looks at the disk, at most once a second.
func (s *diskStore) room(size int64) error {
	if s.reserve == 0 {
		return nil
	}
	if now := time.Now(); now.Sub(s.space.at) >= spaceCheckInterval {
		usage, err := s.files.GetDiskUsage(s.records)
		if err != nil {
			return fmt.Errorf("finding out free disk space: %w", err)
		}
		s.space.at, s.space.free = now, usage.AvailBytes
		s.tellSpace()
	}
	if needed := s.reserve + uint64(max(size, 0)); s.space.free < needed {
		return fmt.Errorf("%w: %d MiB free, %d MiB needed", ErrFull, s.space.free>>20, needed>>20)
	}
	return nil
}

// tellSpace logs that the disk has become too full for new mail, or is no longer.
func (s *diskStore) tellSpace() {
	switch low := s.space.free < s.reserve; {
	case low && s.space.low.IsZero():
		s.space.low, s.space.refused = s.space.at, 0
		s.log.Error("no new mail is taken (452): not enough disk space", "free_mib", s.space.free>>20, "reserve_mib", s.reserve>>20, "folder", s.records)
	case !low && !s.space.low.IsZero():
		s.log.Warn("new mail is taken again: there is disk space", "free_mib", s.space.free>>20, "refused", s.space.refused,
			"after", s.space.at.Sub(s.space.low).Round(time.Second))
		s.space.low = time.Time{}
	}
}

// Close implements Store. It does not wait for those who got stuck in an engine that was given up.
func (s *diskStore) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	if s.guard.err() == nil {
		s.life.Lock()
		defer s.life.Unlock()
	}
	return s.release()
}

func (s *diskStore) release() (err error) {
	if s.db != nil && s.guard.err() == nil {
		err = s.closeRecords()
	}
	if s.guard.err() != nil {
		err = errors.Join(err, s.guard.giveUp())
	}
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// closeRecords closes the engine, or gives it up when the disk fails meanwhile.
func (s *diskStore) closeRecords() error {
	closed := make(chan error, 1)
	go func() { closed <- s.db.Close() }()
	select {
	case err := <-closed:
		return err
	case <-s.guard.done:
		return fmt.Errorf("%w: %w", ErrBroken, s.guard.err())
	}
}
