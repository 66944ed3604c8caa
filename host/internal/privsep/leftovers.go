package privsep

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// removeLeftovers removes the folders of sockets that hosts have left which live no more. When this process was killed
// with them, nobody has emptied what agents had made there, and a host that is not root cannot. A host that lives holds
// a lock in its folder (package handover). Nothing leads out of data_dir, whatever the host has put there.
func (p *Parent) removeLeftovers() error {
	run, err := openFolder(p.dataDir, "run")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer run.Close()
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", run.Fd()))
	if err != nil {
		return err
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), ".")
	failed := []error{err}
	for _, entry := range entries {
		if entry.IsDir() && !strings.HasPrefix(entry.Name(), ".") && !held(root, entry.Name()) {
			failed = append(failed, root.RemoveAll(entry.Name()))
		}
	}
	return errors.Join(failed...)
}

// held reports whether a living process holds the lock of a folder.
func held(root *os.Root, folder string) bool {
	lock, err := root.OpenFile(folder+"/lock", os.O_RDWR|unix.O_NONBLOCK, 0) // of a pipe, too, it returns at once
	if err != nil {
		return false
	}
	defer lock.Close()
	return errors.Is(unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}
