package match

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Files is a list that an operator keeps in files, an entry a line, and that follows them when they change. T is the
// list, ready for look-ups; its zero value is empty.
type Files[T any] struct {
	paths   []string
	add     func(list *T, line string) error
	current atomic.Pointer[T]
	watch   *Watch
}

// OpenFiles reads files into one list. add is given each line that is not blank, without white space around it; CutComment
// is there for what stands behind the entry. The error names file and line, and comes with the index of the path.
func OpenFiles[T any](paths []string, add func(list *T, line string) error) (*Files[T], int, error) {
	f := &Files[T]{paths: paths, add: add, watch: NewWatch(paths...)}
	list, i, err := f.load()
	if err != nil {
		return nil, i, err
	}
	f.current.Store(list)
	return f, 0, nil
}

// List is what the files held when they were last read without a mistake. It does not change any more.
func (f *Files[T]) List() *T { return f.current.Load() }

// Empty reports whether there is no file to follow.
func (f *Files[T]) Empty() bool { return len(f.paths) == 0 }

// Look at the files once. What has changed is read at the second look that finds the same files, so that one being written
// is not read half way. With a mistake in one of them the list stays as it was, and the error is given once.
func (f *Files[T]) Look() (changed bool, err error) {
	if !f.watch.Changed() {
		return false, nil
	}
	list, _, err := f.load()
	if err != nil {
		return false, err
	}
	f.current.Store(list)
	return true, nil
}

// load reads all files. The error comes with the index of the path.
func (f *Files[T]) load() (*T, int, error) {
	list := new(T)
	for i, path := range f.paths {
		if err := f.loadFile(list, path); err != nil {
			return nil, i, err
		}
	}
	return list, 0, nil
}

func (f *Files[T]) loadFile(list *T, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err // it names the path
	}
	defer file.Close()
	number, err := ReadLines(file, func(line string) error { return f.add(list, line) })
	if err != nil {
		return fmt.Errorf("%s:%d: %w", path, number, err)
	}
	return nil
}

// ReadLines calls add for each line that is not blank, without white space around it and without a byte order mark. It ends
// at the first error, which comes with the number of the line, from 1. Lines are up to 64 KiB long.
func ReadLines(r io.Reader, add func(line string) error) (number int, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		number++
		line := strings.TrimSpace(strings.TrimPrefix(lines.Text(), "\uFEFF"))
		if line == "" {
			continue
		}
		if err := add(line); err != nil {
			return number, err
		}
	}
	return number + 1, lines.Err()
}

// CutComment splits a line at the first of the characters that begin a comment ("#", or "#;" for files as operators of DNS
// lists hand them out). Neither part has white space around it; entry is empty where the line is all comment.
func CutComment(line, characters string) (entry, comment string) {
	if i := strings.IndexAny(line, characters); i >= 0 {
		line, comment = line[:i], strings.TrimSpace(line[i+1:])
	}
	return strings.TrimSpace(line), comment
}

// Watch tells whether files have changed since they were read. A folder changes when a file in it comes or goes.
type Watch struct {
	paths      []string
	read, seen []fileState // when they were read, and when they were last looked at
}

// NewWatch takes the files as they are now for read. It is called before they are, so that no change is missed; they need
// not be there.
func NewWatch(paths ...string) *Watch {
	states := statesOf(paths)
	return &Watch{paths: paths, read: states, seen: states}
}

// Changed looks at the files once. It reports a change once, at the second look that finds the same files, so that one
// being written is not read half way.
func (w *Watch) Changed() bool {
	states := statesOf(w.paths)
	settled := slices.Equal(states, w.seen)
	w.seen = states
	if !settled || slices.Equal(states, w.read) {
		return false
	}
	w.read = states
	return true
}

// fileState tells one version of a file from another. It is zero for a file that is not there.
type fileState struct {
	modified time.Time
	size     int64
}

func statesOf(paths []string) []fileState {
	states := make([]fileState, len(paths))
	for i, path := range paths {
		if info, err := os.Stat(path); err == nil {
			states[i] = fileState{info.ModTime(), info.Size()}
		}
	}
	return states
}

// Followed is what is kept in files and read again when they change: a Files of any list.
type Followed interface {
	Look() (changed bool, err error)
	Empty() bool
}

// lookEvery is how often files are looked at.
const lookEvery = 2 * time.Second

// Follow looks at the files of lists every two seconds, beside whatever else goes on, and tells the log what became of it.
// The caller must call stop when it is done with them.
func Follow(logger hclog.Logger, lists map[string]Followed) (stop func()) {
	followed := map[string]Followed{}
	for name, list := range lists {
		if !list.Empty() {
			followed[name] = list
		}
	}
	if len(followed) == 0 {
		return func() {}
	}
	return LookEvery(func() { lookAt(logger, followed) })
}

// LookEvery calls look every two seconds, beside whatever else goes on. The caller must call stop, once; a look may be under
// way then.
func LookEvery(look func()) (stop func()) {
	done := make(chan struct{})
	go func() {
		ticker := time.NewTicker(lookEvery)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				look()
			}
		}
	}()
	return func() { close(done) }
}

func lookAt(logger hclog.Logger, lists map[string]Followed) {
	for name, list := range lists {
		switch changed, err := list.Look(); {
		case err != nil:
			logger.Error("list not read again; it stays as it was", "list", name, "error", err)
		case changed:
			logger.Info("list read again", "list", name)
		}
	}
}
