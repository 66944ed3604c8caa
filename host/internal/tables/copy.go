package tables

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Copy makes a store in dir, which must not exist, of what s holds now, and opens it. Nearly all of it are hard links
// to the files of s, so that it takes milliseconds whatever the size; both go their own ways from then on.
func Copy(s Store, dir string) (Store, error) {
	d, ok := s.(*disk)
	if !ok {
		return nil, errors.New("copying the tables: they are not on disk")
	}
	d.mu.Lock() // nothing is half written meanwhile
	err := d.db.Checkpoint(dir, pebble.WithFlushedWAL())
	d.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("copying the tables: %w", err)
	}
	return Open(dir, d.options)
}
