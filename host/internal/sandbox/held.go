package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const (
	// leastFile is what a file, folder or link counts at least: one without content has an inode all the same, and those
	// of a file system can be used up.
	leastFile = 4096
	// maxDepth of folders in folders. What is deeper costs more to look at than it could be for.
	maxDepth = 64
)

// Held is the disk space of what is in folders, in octets, and of the files that a process and those it has started have
// open though they are in no folder any more. pid 0: no process. An error says what of the folders cannot be looked at;
// folders that do not exist hold nothing.
func Held(pid int, folders ...string) (size int64, err error) {
	devices := map[uint64]bool{}
	for _, dir := range folders {
		if dir == "" {
			continue
		}
		one, err := heldIn(dir, devices)
		if err != nil {
			return 0, err
		}
		size += one
	}
	return size + heldOpen(pid, devices), nil
}

// heldIn adds up a folder, and notes the file system that it is on.
func heldIn(dir string, devices map[uint64]bool) (size int64, err error) {
	root, err := os.OpenRoot(dir) // a path would be too long for the kernel long before there are maxDepth folders
	if err != nil {
		return 0, unlessGone(err)
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return unlessGone(err)
		}
		if strings.Count(name, "/") > maxDepth {
			return fmt.Errorf("more than %d folders in each other", maxDepth)
		}
		info, err := entry.Info()
		if err != nil {
			return unlessGone(err)
		}
		stat := info.Sys().(*syscall.Stat_t)
		if name == "." {
			devices[uint64(stat.Dev)] = true
			return nil
		}
		size += max(spaceOf(stat), leastFile)
		return nil
	})
	return size, err
}

// unlessGone is err, unless it says that something was removed meanwhile.
func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// spaceOf is what a file takes on the disk: a hole in it takes none.
func spaceOf(stat *syscall.Stat_t) int64 {
	return stat.Blocks * 512 // whatever the file system's blocks are, see stat(2)
}

// heldOpen adds up the files on devices that a process and its descendants have open and that have no name any more.
func heldOpen(pid int, devices map[uint64]bool) (size int64) {
	if pid == 0 {
		return 0
	}
	type file struct{ device, inode uint64 }
	seen := map[file]bool{}
	for _, p := range family(pid) {
		open, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p)) // none: it has ended
		for _, path := range open {
			info, err := os.Stat(path)
			if err != nil || !info.Mode().IsRegular() {
				continue
			}
			stat := info.Sys().(*syscall.Stat_t)
			f := file{uint64(stat.Dev), stat.Ino}
			if stat.Nlink > 0 || seen[f] || !devices[f.device] {
				continue
			}
			seen[f] = true
			size += max(spaceOf(stat), leastFile)
		}
	}
	return size
}

// family is a process and all that it and its children have started, as far as they have not left it.
func family(pid int) []int {
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", all[i]))
		for _, path := range lists {
			text, _ := os.ReadFile(path)
			for _, word := range strings.Fields(string(text)) {
				if child, err := strconv.Atoi(word); err == nil {
					all = append(all, child)
				}
			}
		}
	}
	return all
}
