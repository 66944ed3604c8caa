package queue_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// recorder is a file layer that works on a real directory and writes down every change of it, so that the test can
// make what a power cut leaves at any moment: of a file the octets of its last sync, of a directory the names of its
// last sync, and nothing else. It syncs nothing itself.
type recorder struct {
	vfs.FS
	root string
	// fail is asked before each change; its error is the result of the change.
	fail func(step op) error

	mu     sync.Mutex
	log    []op
	inodes map[string]int // by path below root
	last   int
}

// op is one change of the disk, or a sync.
type op struct {
	kind   string // "create", "mkdir", "link", "rename", "remove", "write", "sync"
	path   string // below root; "." is root
	from   string // of link and rename
	inode  int    // of create, mkdir, write, sync
	offset int64
	data   []byte
}

func (o op) String() string { return o.kind + " " + class(o.path) }

var digits = regexp.MustCompile(`[0-9a-f]*[0-9][0-9a-f]*`)

// class is a path without what differs from file to file.
func class(path string) string {
	return digits.ReplaceAllString(strings.TrimPrefix(path, "data/"), "N")
}

func newRecorder(root string) *recorder {
	return &recorder{FS: vfs.Default, root: root, inodes: map[string]int{".": 0}}
}

// below is path below root; ok is false for what lies outside.
func (r *recorder) below(path string) (string, bool) {
	rel, err := filepath.Rel(r.root, path)
	return rel, err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// change does one change and writes it down, in one step.
func (r *recorder) change(o op, do func() error) error {
	rel, ok := r.below(o.path)
	if !ok {
		return nil // ancestors of root were there before
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	o.path = rel
	if o.from != "" {
		o.from, _ = r.below(o.from)
	}
	if r.fail != nil {
		if err := r.fail(o); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	r.log = append(r.log, r.number(o))
	return nil
}

// number gives o its inode, and keeps track of which path is which.
func (r *recorder) number(o op) op {
	switch o.kind {
	case "create", "mkdir":
		r.last++
		r.inodes[o.path] = r.last
		o.inode = r.last
	case "rename":
		r.inodes[o.path] = r.inodes[o.from]
		delete(r.inodes, o.from)
	case "link":
		r.inodes[o.path] = r.inodes[o.from]
	case "remove":
		delete(r.inodes, o.path)
	}
	return o
}

// length of the log so far.
func (r *recorder) length() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.log)
}

func (r *recorder) file(path string, f vfs.File) vfs.File {
	rel, ok := r.below(path)
	if !ok {
		return f
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return &recordedFile{File: f, r: r, path: path, inode: r.inodes[rel]}
}

func (r *recorder) Create(path string, c vfs.DiskWriteCategory) (f vfs.File, err error) {
	err = r.change(op{kind: "create", path: path}, func() (err error) { f, err = r.FS.Create(path, c); return err })
	if err != nil {
		return nil, err
	}
	return r.file(path, f), nil
}

func (r *recorder) ReuseForWrite(from, path string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if err := r.Rename(from, path); err != nil {
		return nil, err
	}
	f, err := r.FS.OpenReadWrite(path, c)
	if err != nil {
		return nil, err
	}
	return r.file(path, f), nil
}

func (r *recorder) OpenReadWrite(path string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return nil, fmt.Errorf("the recorder does not know OpenReadWrite")
}

func (r *recorder) OpenDir(path string) (vfs.File, error) {
	f, err := r.FS.OpenDir(path)
	if err != nil {
		return nil, err
	}
	if _, ok := r.below(path); !ok {
		return unsynced{f}, nil
	}
	return r.file(path, f), nil
}

func (r *recorder) Link(from, path string) error {
	return r.change(op{kind: "link", path: path, from: from}, func() error { return r.FS.Link(from, path) })
}

func (r *recorder) Rename(from, path string) error {
	return r.change(op{kind: "rename", path: path, from: from}, func() error { return r.FS.Rename(from, path) })
}

func (r *recorder) Remove(path string) error {
	return r.change(op{kind: "remove", path: path}, func() error { return r.FS.Remove(path) })
}

func (r *recorder) RemoveAll(string) error { return fmt.Errorf("the recorder does not know RemoveAll") }

func (r *recorder) MkdirAll(path string, perm os.FileMode) error {
	if _, ok := r.below(path); !ok {
		return nil
	}
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := r.MkdirAll(filepath.Dir(path), perm); err != nil {
		return err
	}
	return r.change(op{kind: "mkdir", path: path}, func() error { return os.Mkdir(path, perm) })
}

// recordedFile writes down what happens to a file or directory.
type recordedFile struct {
	vfs.File
	r      *recorder
	path   string // when it was opened
	inode  int
	offset int64
}

func (f *recordedFile) Write(p []byte) (n int, err error) {
	o := op{kind: "write", path: f.path, inode: f.inode, offset: f.offset, data: slices.Clone(p)}
	err = f.r.change(o, func() (err error) { n, err = f.File.Write(p); return err })
	f.offset += int64(n)
	return n, err
}

func (f *recordedFile) WriteAt([]byte, int64) (int, error) {
	return 0, fmt.Errorf("the recorder does not know WriteAt")
}

func (f *recordedFile) Sync() error {
	return f.r.change(op{kind: "sync", path: f.path, inode: f.inode}, func() error { return nil })
}

func (f *recordedFile) SyncData() error                { return f.Sync() }
func (f *recordedFile) SyncTo(int64) (bool, error)     { return false, nil }
func (f *recordedFile) Preallocate(int64, int64) error { return nil }
func (f *recordedFile) Fd() uintptr                    { return vfs.InvalidFd }

// unsynced is a file whose syncs do nothing, for stores that are opened only to look at them.
type unsynced struct{ vfs.File }

func (f unsynced) Sync() error                { return nil }
func (f unsynced) SyncData() error            { return nil }
func (f unsynced) SyncTo(int64) (bool, error) { return false, nil }
func (f unsynced) Fd() uintptr                { return vfs.InvalidFd }

type unsyncedFiles struct{ vfs.FS }

func (u unsyncedFiles) Create(path string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := u.FS.Create(path, c)
	if err != nil {
		return nil, err
	}
	return unsynced{f}, nil
}

func (u unsyncedFiles) OpenDir(path string) (vfs.File, error) {
	f, err := u.FS.OpenDir(path)
	if err != nil {
		return nil, err
	}
	return unsynced{f}, nil
}

// disk is what the log of a recorder has made of a disk: as the processes saw it, and as a power cut leaves it.
type disk struct {
	names, syncedNames map[int]map[string]int // by inode of the directory
	data, syncedData   map[int][]byte         // by inode of the file
}

func newDisk() *disk {
	return &disk{
		names: map[int]map[string]int{0: {}}, syncedNames: map[int]map[string]int{0: {}},
		data: map[int][]byte{}, syncedData: map[int][]byte{},
	}
}

// lookup finds the directory and name of path among the names as the processes see them.
func (d *disk) lookup(path string) (map[string]int, string) {
	dir := d.names[0]
	elems := strings.Split(path, "/")
	for _, e := range elems[:len(elems)-1] {
		dir = d.names[dir[e]]
	}
	return dir, elems[len(elems)-1]
}

func (d *disk) apply(o op) {
	switch o.kind {
	case "write":
		if short := o.offset + int64(len(o.data)) - int64(len(d.data[o.inode])); short > 0 {
			d.data[o.inode] = append(d.data[o.inode], make([]byte, short)...)
		}
		copy(d.data[o.inode][o.offset:], o.data)
		return
	case "sync":
		if names, ok := d.names[o.inode]; ok {
			d.syncedNames[o.inode] = maps.Clone(names)
		} else {
			d.syncedData[o.inode] = append(d.syncedData[o.inode][:0], d.data[o.inode]...)
		}
		return
	}
	dir, name := d.lookup(o.path)
	switch o.kind {
	case "create":
		dir[name] = o.inode
	case "mkdir":
		dir[name] = o.inode
		d.names[o.inode], d.syncedNames[o.inode] = map[string]int{}, map[string]int{}
	case "remove":
		delete(dir, name)
	case "link", "rename":
		from, old := d.lookup(o.from)
		dir[name] = from[old]
		if o.kind == "rename" {
			delete(from, old)
		}
	}
}

// loss is what a power cut takes besides, or leaves: the disk may have written what nobody synced.
type loss int

const (
	loseAll   loss = iota // all that was not synced
	keepNames             // octets only: names are on the disk, what they name is not
	keepTorn              // names, and of what each file has grown by since its sync the first half
)

// leave writes to dir what a power cut leaves.
func (d *disk) leave(dir string, l loss) error { return d.leaveDir(0, dir, l) }

func (d *disk) leaveDir(inode int, path string, l loss) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	names := d.syncedNames[inode]
	if l != loseAll {
		names = d.names[inode]
	}
	for name, child := range names {
		path := filepath.Join(path, name)
		var err error
		if _, isDir := d.names[child]; isDir {
			err = d.leaveDir(child, path, l)
		} else {
			err = os.WriteFile(path, d.octets(child, l), 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *disk) octets(inode int, l loss) []byte {
	synced, all := d.syncedData[inode], d.data[inode]
	if grown := len(all) - len(synced); l == keepTorn && grown > 0 {
		return append(slices.Clone(synced), all[len(synced):len(synced)+grown/2]...)
	}
	return synced
}
