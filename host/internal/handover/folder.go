package handover

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Folder is a directory that belongs to one process, which holds a lock in it as long as it lives.
type Folder struct {
	Path string

	lock *os.File
	next atomic.Uint64 // number of the file put last
}

const lockName = "lock"

// NewFolder makes a folder of this process below parent, which is made where it is missing. The folder's name is there
// after a power cut.
func NewFolder(parent string) (*Folder, error) {
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, err
	}
	name := make([]byte, 4)
	_, _ = rand.Read(name) // never fails (crypto/rand)
	f := &Folder{Path: filepath.Join(parent, hex.EncodeToString(name))}
	// Another process may look for left-over folders at any moment: the lock is there before the folder's name.
	hidden := filepath.Join(parent, hiddenPrefix+filepath.Base(f.Path))
	if err := os.Mkdir(hidden, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockFile(filepath.Join(hidden, lockName))
	if err != nil {
		return nil, err
	}
	f.lock = lock
	if err := os.Rename(hidden, f.Path); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return f, errors.Join(syncDir(parent), syncDir(filepath.Dir(parent)))
}

// hiddenPrefix begins the name of a folder that is being made.
const hiddenPrefix = ".new-"

// errHeld tells that another process holds a lock.
var errHeld = errors.New("held by another process")

// lockFile opens or makes a file and locks it (flock(2)): the lock goes with the last descriptor of the opened file.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errHeld
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Remove ends the folder with all that is in it.
func (f *Folder) Remove() error {
	return errors.Join(os.RemoveAll(f.Path), f.lock.Close())
}

// Release gives the folder up. What is in it is left for the owner, who removes the folder when it is empty.
func (f *Folder) Release() error { return f.lock.Close() }

// put writes a file of this kind, in the order of the calls. With synced it is safe from a power cut when put returns.
// Others never see a part of it.
func (f *Folder) put(kind string, synced bool, write func(io.Writer) error) error {
	name := fmt.Sprintf("%016d%s", f.next.Add(1), kind)
	hidden := filepath.Join(f.Path, hiddenPrefix+name)
	err := writeFile(hidden, synced, write)
	if err == nil {
		err = os.Rename(hidden, filepath.Join(f.Path, name))
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(hidden))
	}
	if synced {
		return syncDir(f.Path)
	}
	return nil
}

func writeFile(path string, synced bool, write func(io.Writer) error) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = write(file)
	if err == nil && synced {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// RemoveLeftovers removes the folders below parent that no living process holds, and whatever else is there.
func RemoveLeftovers(parent string) error {
	entries, err := os.ReadDir(parent)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var failed []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), hiddenPrefix) {
			continue // it is being made just now, or costs nothing
		}
		path := filepath.Join(parent, e.Name())
		if !held(path) {
			failed = append(failed, os.RemoveAll(path))
		}
	}
	return errors.Join(append(failed, err)...)
}

// held reports whether a living process holds a folder.
func held(path string) bool {
	f, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// stopName is the file that tells the process of a folder to end.
const stopName = "stop"

// Stopped reports whether the owner has told this process to end.
func (f *Folder) Stopped() bool {
	_, err := os.Stat(filepath.Join(f.Path, stopName))
	return err == nil
}

// StopAll tells the living processes with folders below parent to end, and waits until they have or ctx ends.
func StopAll(ctx context.Context, parent string) {
	for _, path := range folders(parent) {
		if held(path) {
			_ = os.WriteFile(filepath.Join(path, stopName), nil, 0o600)
		}
	}
	for len(Living(parent)) > 0 && ctx.Err() == nil {
		pause(ctx)
	}
}

// Living are the folders below parent whose processes live.
func Living(parent string) (paths []string) {
	for _, path := range folders(parent) {
		if held(path) {
			paths = append(paths, path)
		}
	}
	return paths
}

// folders below parent; none when it is not there.
func folders(parent string) (paths []string) {
	entries, _ := os.ReadDir(parent) // what cannot be read now is tried again
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), hiddenPrefix) && e.Name() != parkedName {
			paths = append(paths, filepath.Join(parent, e.Name()))
		}
	}
	return paths
}
