package catalog

import (
	"context"
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

// Described is what a program says of itself.
type Described struct {
	Name, Version          string
	Protocol               int
	Category, Summary, SDK string
}

// Describe starts a program, shut in, for what it says of itself. content is the folder of its files.
type Describe func(ctx context.Context, command []string, content string) (Described, error)

var pluginName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}$`)

// Install takes a program, or an archive of one, into the catalog: from a path, or a URL (see fetch). It is there as a
// whole or not at all, whatever happens meanwhile. What is there already is not an error; fresh reports whether it was
// not. The same version with another content is refused.
func (c *Catalog) Install(ctx context.Context, source string, describe Describe) (e *Entry, fresh bool, err error) {
	release, err := c.hold(ctx)
	if err != nil {
		return nil, false, err
	}
	defer release()
	dir, err := os.MkdirTemp(c.dir, newPrefix)
	if err != nil {
		return nil, false, fmt.Errorf("catalog of agents: %w", err)
	}
	defer func() { _ = removeTree(dir) }()
	if e, err = prepare(ctx, dir, source, describe); err != nil {
		return nil, false, fmt.Errorf("%s: %w", source, err)
	}
	there, err := c.same(e)
	if err != nil || there != nil {
		return there, false, err
	}
	if err := c.publish(e, dir); err != nil {
		return nil, false, fmt.Errorf("%s: %w", source, err)
	}
	return e, true, nil
}

// prepare makes an entry aside.
func prepare(ctx context.Context, dir, source string, describe Describe) (*Entry, error) {
	if err := os.Chmod(dir, folderMode); err != nil {
		return nil, err
	}
	content := filepath.Join(dir, contentDir)
	if err := os.Mkdir(content, folderMode); err != nil {
		return nil, err
	}
	fetched, err := fetch(ctx, source, filepath.Join(dir, "fetched"))
	if err != nil {
		return nil, err
	}
	u := &unpacker{dir: content}
	if err := u.unpack(fetched.path, fetched.name); err != nil {
		return nil, err
	}
	if fetched.remove {
		if err := os.Remove(fetched.path); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(u.files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	e := &Entry{Program: u.program, Files: u.files, SHA256: digest(u.files), Installed: time.Now().UTC(), Source: source, dir: dir}
	return e, e.ask(ctx, u.manifest, describe)
}

// ask has the program say what it is, and holds it against the manifest of its archive, if it had one.
func (e *Entry) ask(ctx context.Context, m *Manifest, describe Describe) error {
	said, err := describe(ctx, e.Command(), e.Content())
	if err != nil {
		return fmt.Errorf("it does not say what it is: %w", err)
	}
	if !pluginName.MatchString(said.Name) {
		return fmt.Errorf("it calls itself %q, which is no name of an agent", said.Name)
	}
	if e.version, err = version.NewSemver(said.Version); err != nil || strings.HasPrefix(said.Version, "v") {
		return fmt.Errorf("it says that its version is %q; wanted is one such as 1.2.0", said.Version)
	}
	if m != nil && (m.Name != said.Name || m.Version != said.Version) {
		return fmt.Errorf("its manifest says %s %s, and the program says %s %s", m.Name, m.Version, said.Name, said.Version)
	}
	e.Plugin, e.Version, e.Protocol = said.Name, said.Version, said.Protocol
	e.Category, e.Summary, e.SDK = said.Category, said.Summary, said.SDK
	return nil
}

// same is the entry of that content, which is there already, or an error where the version is there with another one.
// An entry whose files have changed on the disk does not count: it will be replaced.
func (c *Catalog) same(e *Entry) (*Entry, error) {
	entries, _, err := c.List()
	if err != nil {
		return nil, err
	}
	for _, other := range entries {
		if other.Plugin != e.Plugin || !other.version.Equal(e.version) {
			continue
		}
		if other.SHA256 != e.SHA256 {
			return nil, fmt.Errorf("version %s of agent %q is installed with another content: SHA-256 %s is there, %s is to be installed. "+
				"A version never changes: give the new one a number of its own", other.Version, e.Plugin, other.SHA256, e.SHA256)
		}
		if _, err := new(Sums).Verify(other.Sums()); err == nil {
			return other, nil
		}
	}
	return nil, nil
}

// publish describes an entry and gives it its name.
func (c *Catalog) publish(e *Entry, dir string) error {
	about, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(dir, describes), append(about, '\n'), plainMode); err != nil {
		return err
	}
	if err := syncFolders(dir); err != nil {
		return err
	}
	final := filepath.Join(c.dir, entryName+e.SHA256)
	err = os.Rename(dir, final)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		// A damaged one. It changes places with the new one, and is removed under the name of that.
		err = unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, final, unix.RENAME_EXCHANGE)
	}
	if err != nil {
		return fmt.Errorf("catalog of agents: %w", err)
	}
	e.dir = final
	return syncPath(c.dir)
}

// syncFolders brings a folder and those below to the disk, and lets nobody change what is in them.
func syncFolders(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		if path != dir { // which is still to be renamed
			if err := os.Chmod(path, 0o555); err != nil {
				return err
			}
		}
		return syncPath(path)
	})
}

func writeSynced(path string, content []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}
