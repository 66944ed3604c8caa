// Package catalog keeps versions of agents that were installed, and what is known of the programs that run: their
// digests, and the lock file that names them.
//
// A version is a folder named by the digest of its content. It is made aside and renamed, never changed, so whoever
// reads the catalog needs no lock; installing and removing exclude each other by flock(2).
package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-version"
	"golang.org/x/sys/unix"
)

// Folders and files of a catalog.
const (
	catalogDir = "catalog"    // in the data directory
	lockName   = "lock"       // flock(2): who changes the catalog
	newPrefix  = ".new-"      // of what is in the making
	oldPrefix  = ".old-"      // of what is being removed
	entryName  = "sha256-"    // of an entry, before its digest
	describes  = "about.json" // in an entry: what it is
	contentDir = "content"    // in an entry: its files
	folderMode = 0o755        // agents may have users of their own
	plainMode  = 0o444        // of files, which are never changed
	execMode   = 0o555        // of programs
	aboutLimit = 16 << 20     // bytes of an entry's description
	lockPoll   = 50 * time.Millisecond
)

// Catalog of one data directory.
type Catalog struct{ dir string }

// In is the catalog of a data directory. It need not exist.
func In(dataDir string) *Catalog { return &Catalog{filepath.Join(dataDir, catalogDir)} }

// Entry is one installed version.
type Entry struct {
	Plugin    string    `json:"plugin"` // the name that the agent has given
	Version   string    `json:"version"`
	Protocol  int       `json:"protocol"` // of the handshake
	Category  string    `json:"category,omitempty"`
	Summary   string    `json:"summary,omitempty"`
	SDK       string    `json:"sdk,omitempty"`
	SHA256    string    `json:"sha256"`  // of the program; of the list of files where there are several, see digest
	Program   string    `json:"program"` // name of the file that is run
	Files     []File    `json:"files"`
	Installed time.Time `json:"installed"`
	Source    string    `json:"source"` // where it came from

	dir     string
	version *version.Version
}

// File of an entry.
type File struct {
	Path       string `json:"path"` // below the content, with slashes
	SHA256     string `json:"sha256"`
	Size       int64  `json:"size"`
	Executable bool   `json:"executable,omitempty"`
}

// Command runs an entry.
func (e *Entry) Command() []string { return []string{filepath.Join(e.dir, contentDir, e.Program)} }

// Sums are the digests of its files, by absolute path.
func (e *Entry) Sums() map[string]string {
	sums := map[string]string{}
	for _, f := range e.Files {
		sums[filepath.Join(e.dir, contentDir, filepath.FromSlash(f.Path))] = f.SHA256
	}
	return sums
}

// Content is the folder of its files.
func (e *Entry) Content() string { return filepath.Join(e.dir, contentDir) }

// digest names a content: the SHA-256 of the file, or, of several, of a list of their modes, digests and names.
func digest(files []File) string {
	if len(files) == 1 {
		return files[0].SHA256
	}
	var list strings.Builder
	for _, f := range files {
		mode := "-"
		if f.Executable {
			mode = "x"
		}
		fmt.Fprintf(&list, "%s %s %s\n", mode, f.SHA256, f.Path)
	}
	sum := sha256.Sum256([]byte(list.String()))
	return hex.EncodeToString(sum[:])
}

// Broken is an entry that cannot be used.
type Broken struct {
	Dir string
	Err error
}

// List answers with the entries, by name and then from the newest version to the oldest, and with those that cannot be
// used. Their files are not read; that is done when they are started.
func (c *Catalog) List() (entries []*Entry, broken []Broken, err error) {
	names, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("catalog of agents: %w", err)
	}
	for _, one := range names {
		if !strings.HasPrefix(one.Name(), entryName) {
			continue
		}
		dir := filepath.Join(c.dir, one.Name())
		e, err := readEntry(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !exists(dir): // it was removed meanwhile
		case err != nil:
			broken = append(broken, Broken{dir, err})
		default:
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b *Entry) int {
		if n := strings.Compare(a.Plugin, b.Plugin); n != 0 {
			return n
		}
		return b.version.Compare(a.version)
	})
	return entries, broken, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// readEntry reads what an entry is and holds it against the name of its folder.
func readEntry(dir string) (*Entry, error) {
	raw, err := readBounded(filepath.Join(dir, describes), aboutLimit)
	if err != nil {
		return nil, err
	}
	e := &Entry{dir: dir}
	if err := json.Unmarshal(raw, e); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, describes), err)
	}
	for _, f := range e.Files {
		if !filepath.IsLocal(f.Path) {
			return nil, fmt.Errorf("%s: %q leads out of it", dir, f.Path)
		}
	}
	if want := strings.TrimPrefix(filepath.Base(dir), entryName); digest(e.Files) != want || e.SHA256 != want {
		return nil, fmt.Errorf("%s: it describes another content, %s", dir, digest(e.Files))
	}
	if !slices.ContainsFunc(e.Files, func(f File) bool { return f.Path == e.Program }) {
		return nil, fmt.Errorf("%s: its program %q is not among its files", dir, e.Program)
	}
	if e.version, err = version.NewSemver(e.Version); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return e, nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("%s is no file of up to %d bytes", path, limit)
	}
	return os.ReadFile(path)
}

// Of is the entry that a program belongs to, nil when it is not one of the catalog's.
func (c *Catalog) Of(program string) (*Entry, error) {
	below, err := filepath.Rel(c.dir, program)
	if err != nil || !filepath.IsLocal(below) {
		return nil, nil
	}
	name, _, _ := strings.Cut(filepath.ToSlash(below), "/")
	if !strings.HasPrefix(name, entryName) {
		return nil, nil
	}
	return readEntry(filepath.Join(c.dir, name))
}

var contentPath = regexp.MustCompile(`^(/.*/` + catalogDir + `/(?:` + entryName + `[0-9a-f]{64}|\` + newPrefix + `[0-9]+)/` + contentDir + `)/`)

// ContentOf is the folder of the files of the installed version that a command runs, by its path; "" of others.
func ContentOf(command []string) string {
	if len(command) == 0 {
		return ""
	}
	if found := contentPath.FindStringSubmatch(command[0]); found != nil {
		return found[1]
	}
	return ""
}

// ErrNone is the error of a constraint that no installed version satisfies.
var ErrNone = errors.New("no installed version satisfies it")

// Resolve finds the newest installed version of a plugin that satisfies a constraint, such as "1.2.3", "~> 1.2" or
// ">= 1.2, < 2.0"; where locked, a digest, is among those that satisfy it, that one. A pre-release is found only by a
// constraint that names one. The error says what is installed.
func (c *Catalog) Resolve(plugin, constraint, locked string) (*Entry, error) {
	wanted, err := Constraint(constraint)
	if err != nil {
		return nil, err
	}
	entries, _, err := c.List()
	if err != nil {
		return nil, err
	}
	var newest *Entry
	var others []string
	for _, e := range entries {
		switch {
		case e.Plugin != plugin:
		case !admits(wanted, e.version):
			others = append(others, e.Version)
		case e.SHA256 == locked:
			return e, nil
		case newest == nil:
			newest = e
		}
	}
	if newest != nil {
		return newest, nil
	}
	installed := "none is installed"
	if len(others) > 0 {
		installed = "installed: " + strings.Join(others, ", ")
	}
	return nil, fmt.Errorf("version %q of agent %q: %w; %s", constraint, plugin, ErrNone, installed)
}

// Constraint reads a constraint on versions.
func Constraint(text string) (version.Constraints, error) {
	wanted, err := version.NewConstraint(text)
	if err != nil {
		return nil, fmt.Errorf(`%q is no constraint on versions; write one as "1.2.3", "~> 1.2" or ">= 1.2, < 2.0"`, text)
	}
	return wanted, nil
}

// admits reports whether a version satisfies a constraint. The library lets every pre-release pass a "!=".
func admits(wanted version.Constraints, v *version.Version) bool {
	named := func(one *version.Constraint) bool { return one.Prerelease() }
	return wanted.Check(v) && (v.Prerelease() == "" || slices.ContainsFunc(wanted, named))
}

// Satisfies reports whether a version satisfies a constraint.
func Satisfies(number, constraint string) bool {
	wanted, err := Constraint(constraint)
	if err != nil {
		return false
	}
	v, err := version.NewSemver(number)
	return err == nil && admits(wanted, v)
}

// hold keeps others from changing the catalog until release is called, or fails when ctx ends first.
func (c *Catalog) hold(ctx context.Context) (release func(), err error) {
	if err := os.MkdirAll(c.dir, folderMode); err != nil {
		return nil, fmt.Errorf("catalog of agents: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(c.dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("catalog of agents: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("locking the catalog of agents: %w", err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("another command is changing the catalog of agents: %w", context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
	if err := c.clear(); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// clear removes what commands have left that were killed. The caller holds the catalog.
func (c *Catalog) clear() error {
	names, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("catalog of agents: %w", err)
	}
	for _, one := range names {
		if strings.HasPrefix(one.Name(), newPrefix) || strings.HasPrefix(one.Name(), oldPrefix) {
			if err := removeTree(filepath.Join(c.dir, one.Name())); err != nil {
				return fmt.Errorf("catalog of agents: removing what is left of another command: %w", err)
			}
		}
	}
	return nil
}

// removeTree removes a folder, whose own folders may have become read-only.
func removeTree(dir string) error {
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// Prune removes the entries that unused chooses, and what is broken. With dryRun it only says what it would remove.
// What a process runs stays until it ends: the kernel keeps it.
func (c *Catalog) Prune(ctx context.Context, dryRun bool, unused func(*Entry) bool) (gone []*Entry, broken []Broken, err error) {
	if !exists(c.dir) {
		return nil, nil, nil
	}
	release, err := c.hold(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	entries, broken, err := c.List()
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if unused(e) {
			gone = append(gone, e)
		}
	}
	if dryRun {
		return gone, broken, nil
	}
	for _, e := range gone {
		if err := c.remove(e.dir); err != nil {
			return nil, nil, err
		}
	}
	for _, b := range broken {
		if err := c.remove(b.Dir); err != nil {
			return nil, nil, err
		}
	}
	return gone, broken, syncPath(c.dir)
}

// remove takes an entry away at once: nobody finds a half of it.
func (c *Catalog) remove(dir string) error {
	aside := filepath.Join(c.dir, oldPrefix+filepath.Base(dir))
	if err := os.Rename(dir, aside); err != nil {
		return fmt.Errorf("removing from the catalog of agents: %w", err)
	}
	if err := removeTree(aside); err != nil {
		return fmt.Errorf("removing from the catalog of agents: %w", err)
	}
	return nil
}

// syncPath brings a file or folder to the disk.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
