package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
)

// Users of agents are numbers without an entry in the system's files. The owner of its state folder is an agent's
// user: so it stays the same, and no two have the same, without another record of it.
const (
	firstUser = 63000
	lastUser  = 63999
	noState   = 64000 // of processes that are asked something and have no state
)

// choosing keeps two agents of this host from the same free number.
var choosing sync.Mutex

// own gives an agent its user, and the folders that are its own. It answers with why it has none, "" when it has.
func (p *Policy) own() (lack string, err error) {
	uid := uint32(noState)
	if p.State != "" {
		choosing.Lock()
		defer choosing.Unlock()
		if uid, err = userOf(p.State); err != nil {
			return "", err
		}
	}
	letThrough(p.Ways)
	if path := p.closedTo(uid); path != "" {
		return fmt.Sprintf("it runs as the host's user, root, though without its capabilities: a user of its own, %d, has no access to %s", uid, path), nil
	}
	for _, dir := range []string{p.State, p.Temp} {
		if dir == "" {
			continue
		}
		if err := give(dir, uid); err != nil {
			return "", fmt.Errorf("giving %s to user %d: %w", dir, uid, err)
		}
	}
	p.UID, p.GID = uid, uid
	return "", nil
}

// letThrough lets everybody enter folders of this user, without seeing what is there.
func letThrough(dirs []string) {
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
			continue
		}
		if info.Mode().Perm()&0o001 == 0 {
			_ = os.Chmod(dir, info.Mode()|0o001) // what comes of it is looked at next
		}
	}
}

// closedTo is the first file or folder that a user needs and may not read or enter, "" without one.
func (p *Policy) closedTo(uid uint32) string {
	files := slices.Concat(p.Program, p.Read)
	for _, dir := range ancestors(slices.Concat(files, p.Write, p.Sockets, []string{p.State, p.Temp})...) {
		if !open(dir, uid, 0o001) {
			return dir
		}
	}
	for _, path := range files {
		if !open(path, uid, 0o004) {
			return path
		}
	}
	for _, path := range p.Write {
		if !open(path, uid, 0o002) {
			return path
		}
	}
	return ""
}

// userOf is the user of a state folder, which exists: its owner, or one that owns none of the folders beside it.
func userOf(dir string) (uint32, error) {
	if owner, err := ownerOf(dir); err != nil || isUser(owner) {
		return owner, err
	}
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil {
		return 0, fmt.Errorf("choosing a user: %w", err)
	}
	taken := map[uint32]bool{}
	for _, entry := range entries {
		if owner, err := ownerOf(filepath.Join(filepath.Dir(dir), entry.Name())); err == nil {
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

func isUser(uid uint32) bool { return uid >= firstUser && uid <= lastUser }

func ownerOf(path string) (uint32, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	return info.Sys().(*syscall.Stat_t).Uid, nil
}

// ancestors are the folders on the way to paths.
func ancestors(paths ...string) []string {
	var list []string
	for _, path := range paths {
		if !filepath.IsAbs(path) {
			continue
		}
		for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
			list = append(list, dir)
			if dir == "/" {
				break
			}
		}
	}
	return list
}

// open reports whether a file or folder gives a user who is in no group a right. What does not exist hinders nobody.
func open(path string, uid uint32, right fs.FileMode) bool {
	info, err := os.Stat(path)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	return info.Mode().Perm()&right != 0 || info.Sys().(*syscall.Stat_t).Uid == uid
}

// give makes a user the owner of a folder with all below. The host keeps its way in by the group, which what is
// made there later inherits.
func give(dir string, uid uint32) error {
	root, err := os.OpenRoot(dir) // nothing below leads out, whatever is put there meanwhile
	if err != nil {
		return err
	}
	defer root.Close()
	if owner, err := ownerOf(dir); err == nil && owner == uid {
		return nil
	}
	gid := os.Getegid()
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		return root.Lchown(name, int(uid), gid)
	})
	if err != nil {
		return err
	}
	if err := os.Chown(dir, int(uid), gid); err != nil {
		return err
	}
	return os.Chmod(dir, 0o770|fs.ModeSetgid)
}

// umask of the agent's files: with a user of its own, the host gets at them by their group.
func (p Policy) umask() int {
	if p.UID != 0 {
		return 0o007
	}
	return 0o077
}
