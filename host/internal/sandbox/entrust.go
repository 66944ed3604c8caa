package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Blocked is what keeps an agent of this host, which has another process start it, from having a user of its own: the
// first path that a stranger may not read or enter, "" without one. It lets strangers through the Ways first.
func (p *Policy) Blocked() string {
	letThrough(p.Ways)
	uid := uint32(noState)
	if p.State != "" {
		if owner, err := ownerOf(p.State); err == nil && isUser(owner) {
			uid = owner
		}
	}
	return p.closedTo(uid)
}

// Reserved reports whether a number is for users of agents, and so for nobody else.
func Reserved(id uint32) bool { return id >= firstUser && id <= noState }

// Entrust gives an agent its user: it makes that one, or the one it is of already, the owner of its folders, which are
// open. Nothing is given away but what belongs to the host's user or to an agent; paths play no part, since all of
// them may have been put there by somebody who wants root to follow them. names is the folder of state folders.
func Entrust(names, state, temp *os.File, host Credential) (uid uint32, err error) {
	choosing.Lock()
	defer choosing.Unlock()
	uid = noState
	if state != nil {
		if uid, err = userAmong(names, state, host); err != nil {
			return 0, err
		}
		if err := giveOpen(state, uid, host); err != nil {
			return 0, fmt.Errorf("the state folder: %w", err)
		}
	}
	info, err := statOf(temp)
	if err == nil && info.Uid != host.UID {
		err = fmt.Errorf("it belongs to user %d", info.Uid)
	}
	if err == nil {
		err = giveOpen(temp, uid, host)
	}
	if err != nil {
		return 0, fmt.Errorf("the folder for temporary files: %w", err)
	}
	return uid, nil
}

func statOf(f *os.File) (info unix.Stat_t, err error) {
	err = unix.Fstat(int(f.Fd()), &info)
	if err == nil && info.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = errors.New("not a folder")
	}
	return info, err
}

// userAmong is the owner of a state folder if it is an agent, else a number that owns none of the folders beside it.
func userAmong(names, state *os.File, host Credential) (uint32, error) {
	info, err := statOf(state)
	if err != nil || isUser(info.Uid) {
		return info.Uid, err
	}
	if info.Uid != host.UID {
		return 0, fmt.Errorf("the state folder belongs to user %d", info.Uid)
	}
	entries, err := os.ReadDir(openPath(names))
	if err != nil {
		return 0, fmt.Errorf("choosing a user: %w", err)
	}
	taken := map[uint32]bool{}
	for _, entry := range entries {
		if owner, err := ownerOf(filepath.Join(openPath(names), entry.Name())); err == nil {
			taken[owner] = true
		}
	}
	for uid := uint32(firstUser); uid <= lastUser; uid++ {
		if _, err := user.LookupId(strconv.Itoa(int(uid))); err != nil && !taken[uid] {
			return uid, nil
		}
	}
	return 0, fmt.Errorf("all users from %d to %d have a state folder already", firstUser, lastUser)
}

// openPath leads to what is open, whatever its name leads to now.
func openPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// giveOpen makes uid the owner of a folder and of what is below and is the host's.
func giveOpen(dir *os.File, uid uint32, host Credential) error {
	info, err := statOf(dir)
	if err != nil || info.Uid == uid {
		return err
	}
	root, err := os.OpenRoot(openPath(dir))
	if err != nil {
		return err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		return giveEntry(dir, name, uid, host)
	})
	if err != nil {
		return err
	}
	if err := dir.Chown(int(uid), int(host.GID)); err != nil {
		return err
	}
	return dir.Chmod(0o770 | fs.ModeSetgid)
}

// giveEntry looks and changes by one descriptor: a name may mean another file, such as a hard link to one of root's, the
// next time.
func giveEntry(dir *os.File, name string, uid uint32, host Credential) error {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	fd, err := unix.Openat2(int(dir.Fd()), name, &how)
	if err != nil {
		return &os.PathError{Op: "opening", Path: name, Err: err}
	}
	defer unix.Close(fd)
	var info unix.Stat_t
	if err := unix.Fstat(fd, &info); err != nil {
		return &os.PathError{Op: "looking at", Path: name, Err: err}
	}
	if info.Uid != host.UID {
		return nil
	}
	return unix.Fchownat(fd, "", int(uid), int(host.GID), unix.AT_EMPTY_PATH)
}
