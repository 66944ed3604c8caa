package privsep

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/host/internal/sandbox"
)

// PrepareDataDir makes the data directory of a host that will run as a user, or gives it an empty one of root's. What
// holds something already is left as it is, and refused where it is somebody else's: no tree changes its owner unasked.
func PrepareDataDir(path string, c sandbox.Credential) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	made := os.Mkdir(path, 0o750)
	if made != nil && !errors.Is(made, fs.ErrExist) {
		return made
	}
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("%s is not a folder, or a symbolic link: name the folder itself", path)
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	var info unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &info); err != nil {
		return err
	}
	if info.Uid == c.UID {
		return nil
	}
	entries, err := dir.ReadDir(1)
	if info.Uid != 0 || err == nil && len(entries) > 0 {
		return fmt.Errorf("%s belongs to user %d, and the host runs as user %d: chown -hR --from=%d %d %s && chgrp -hR %d %s (agents' own users, 63000 to 63999, keep theirs)",
			path, info.Uid, c.UID, info.Uid, c.UID, path, c.GID, path)
	}
	return dir.Chown(int(c.UID), int(c.GID))
}
