package sandbox

import (
	"fmt"
	"os"
	"syscall"
)

// Identity is what a file is recognized by without reading it: while it stays the same, so does the content.
type Identity struct {
	Device, Inode     uint64
	Size              int64
	Modified, Changed int64 // in nanoseconds since 1970: st_mtim and st_ctim (inode(7))
}

// Sealed is a file that must be as it was when somebody looked into it.
type Sealed struct {
	Path string
	Identity
}

// IdentityOf an open file.
func IdentityOf(f *os.File) (Identity, error) {
	info, err := f.Stat()
	if err != nil {
		return Identity{}, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return Identity{}, fmt.Errorf("%s is not a file", f.Name())
	}
	return Identity{
		Device: uint64(stat.Dev), Inode: stat.Ino, Size: stat.Size,
		Modified: stat.Mtim.Nano(), Changed: stat.Ctim.Nano(),
	}, nil
}
