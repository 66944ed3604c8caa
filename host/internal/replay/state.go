package replay

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// maxState in bytes is how much of an agent's state is copied. Agents write to it whatever the occasion, so a dry run can
// neither share it nor go without; a model or a set of signatures fits, an archive need not.
const maxState = 1 << 30

// copyState copies a state folder, which need not exist. One of more than limit bytes is left out as a whole, since an
// agent knows what to do without a state, but not with half of one.
func copyState(to, from string, limit int64) (copied bool, err error) {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return false, err
	}
	size, err := stateSize(from)
	if err != nil || size > limit {
		return false, err
	}
	source, err := os.OpenRoot(from)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer source.Close()
	return true, eachState(from, func(path string, d fs.DirEntry) error {
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, path), 0o700)
		}
		return copyFile(filepath.Join(to, path), source, path)
	})
}

// stateSize of the files in a folder, in bytes.
func stateSize(folder string) (size int64, err error) {
	err = eachState(folder, func(_ string, d fs.DirEntry) error {
		info, err := d.Info()
		if err == nil && !d.IsDir() {
			size += info.Size()
		}
		return ignoreGone(err)
	})
	return size, err
}

// eachState calls fn for each folder and file below a folder. Sockets, pipes and links are no state; what the agent, which
// goes on running, removes meanwhile is none either.
func eachState(folder string, fn func(path string, d fs.DirEntry) error) error {
	return filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return ignoreGone(err)
		}
		if !d.IsDir() && !d.Type().IsRegular() {
			return nil
		}
		below, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		return ignoreGone(fn(below, d))
	})
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// copyFile copies in the kernel, and where the file system can, without moving an octet (copy_file_range(2)).
func copyFile(to string, source *os.Root, path string) (err error) {
	in, err := source.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return fmt.Errorf("copying %s: %w", path, err)
	}
	return nil
}
