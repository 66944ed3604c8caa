package tables

import (
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	defaultReserve = 256 << 20
	spaceEvery     = time.Second // how often the free space is found out
	spaceWarnEvery = time.Minute
)

// space tells whether the disk has room. Pebble does not survive a disk that is full: it panics with locks held.
// So nothing is written any more long before that; what is there is still read.
type space struct {
	dir     string
	reserve uint64 // bytes that must be free
	looked  time.Time
	full    bool
	warned  time.Time
}

// hasRoom reports whether rows may change. Under mu.
func (d *disk) hasRoom() bool {
	s := &d.space
	now := time.Now()
	if now.Sub(s.looked) >= spaceEvery {
		usage, err := vfs.Default.GetDiskUsage(s.dir)
		s.looked, s.full = now, err != nil || usage.AvailBytes < s.reserve
	}
	if s.full && now.Sub(s.warned) >= spaceWarnEvery {
		s.warned = now
		d.options.Logger.Error("not enough disk space: the tables stay as they are", "reserve_bytes", s.reserve)
	}
	return !s.full
}
