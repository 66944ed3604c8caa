package queue

import (
	"errors"

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

// OpenStore opens the store in directory dir, or makes one there. One process at a time may have it open.
func OpenStore(dir string, o StoreOptions) (Store, error) {
	return nil, errors.New("opening store: not implemented")
}
