package catalog

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Bounds of what is installed. The largest agents with models beside them have some ten megabytes.
const (
	maxFetched  = 512 << 20 // bytes of an archive or a program
	maxUnpacked = 1 << 30   // bytes of all files
	maxFiles    = 2000
	maxName     = 255 // bytes of a path
	maxManifest = 64 << 10
)

// manifestName is the file of an archive that says what it is.
const manifestName = "manifest.json"

// Manifest of an archive.
type Manifest struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Program string `json:"program"` // the file that is run
}

// unpacker writes the files of an entry.
type unpacker struct {
	dir      string
	root     *os.Root
	files    []File
	size     int64
	program  string
	manifest *Manifest // nil: it was no archive
	seen     map[string]bool
}

// unpack writes what a file holds: the files of an archive, or itself under a name.
func (u *unpacker) unpack(path, name string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("it is not a file")
	}
	if u.root, err = os.OpenRoot(u.dir); err != nil {
		return err
	}
	defer u.root.Close()
	u.seen = map[string]bool{}
	head := make([]byte, 4)
	if _, err := io.ReadFull(f, head); err != nil {
		return errors.New("it is neither a program nor an archive: it is too short")
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		err = u.tarball(f)
	case string(head) == "PK\x03\x04":
		err = u.zipped(f, info.Size())
	case string(head) == "\x7fELF", bytes.HasPrefix(head, []byte("#!")):
		u.program = name
		return u.file(name, info.Size(), true, f)
	default:
		return errors.New("it is neither a program, nor a .tar.gz or .zip archive of one")
	}
	if err != nil {
		return err
	}
	return u.readManifest()
}

func (u *unpacker) tarball(r io.Reader) error {
	packed, err := gzip.NewReader(r)
	if err != nil {
		return fmt.Errorf("reading the archive: %w", err)
	}
	defer packed.Close()
	for archive := tar.NewReader(packed); ; {
		h, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the archive: %w", err)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			continue // those that files need are made
		case tar.TypeReg:
		default:
			return fmt.Errorf("the archive holds %q, which is neither a file nor a folder; links and devices are not unpacked", h.Name)
		}
		if err := u.file(h.Name, h.Size, h.Mode&0o111 != 0, archive); err != nil {
			return err
		}
	}
}

func (u *unpacker) zipped(r io.ReaderAt, size int64) error {
	archive, err := zip.NewReader(r, size)
	if err != nil {
		return fmt.Errorf("reading the archive: %w", err)
	}
	for _, one := range archive.File {
		switch mode := one.Mode(); {
		case mode.IsDir():
			continue
		case !mode.IsRegular():
			return fmt.Errorf("the archive holds %q, which is neither a file nor a folder; links and devices are not unpacked", one.Name)
		}
		if err := u.zippedFile(one); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacker) zippedFile(one *zip.File) error {
	if one.UncompressedSize64 > maxUnpacked {
		return errTooLarge
	}
	r, err := one.Open()
	if err != nil {
		return fmt.Errorf("reading the archive: %w", err)
	}
	defer r.Close()
	return u.file(one.Name, int64(one.UncompressedSize64), one.Mode().Perm()&0o111 != 0, r)
}

var errTooLarge = fmt.Errorf("its files have more than %d MiB", maxUnpacked>>20)

// file writes one file, of the size that was announced.
func (u *unpacker) file(name string, size int64, executable bool, r io.Reader) error {
	local, err := localName(name)
	if err != nil {
		return err
	}
	if u.size += size; size < 0 || u.size > maxUnpacked {
		return errTooLarge
	}
	if u.seen[local] {
		return fmt.Errorf("the archive holds %q twice", name)
	}
	if u.seen[local] = true; len(u.seen) > maxFiles {
		return fmt.Errorf("the archive holds more than %d files", maxFiles)
	}
	sum, err := u.write(local, size, executable, r)
	if err != nil {
		return fmt.Errorf("unpacking %s: %w", name, err)
	}
	u.files = append(u.files, File{Path: local, SHA256: sum, Size: size, Executable: executable})
	return nil
}

// localName is a name of an archive that leads nowhere but below.
func localName(name string) (string, error) {
	local := path.Clean(name)
	if !filepath.IsLocal(name) || local == "." || len(local) > maxName || strings.ContainsAny(local, "\x00\n\\") {
		return "", fmt.Errorf("the archive holds a file with the name %q, which is not unpacked", name)
	}
	return local, nil
}

// write writes and syncs a file, and answers with its digest.
func (u *unpacker) write(name string, size int64, executable bool, r io.Reader) (string, error) {
	if err := u.root.MkdirAll(path.Dir(name), folderMode); err != nil {
		return "", err
	}
	var mode fs.FileMode = plainMode
	if executable {
		mode = execMode
	}
	f, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(r, size+1))
	if err == nil && n != size {
		err = errors.New("it has another size than was announced")
	}
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// readManifest reads the manifest of an archive, which names the program.
func (u *unpacker) readManifest() error {
	raw, err := readBounded(filepath.Join(u.dir, manifestName), maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf(`the archive holds no %s at its top: {"name": "...", "version": "1.2.0", "program": "..."}`, manifestName)
	}
	if err != nil {
		return err
	}
	u.manifest = &Manifest{}
	if err := json.Unmarshal(raw, u.manifest); err != nil {
		return fmt.Errorf("%s of the archive: %w", manifestName, err)
	}
	u.program = path.Clean(u.manifest.Program)
	for _, f := range u.files {
		if f.Path == u.program && f.Executable {
			return nil
		}
	}
	return fmt.Errorf("%s of the archive names the program %q, which is not an executable file in it", manifestName, u.manifest.Program)
}
