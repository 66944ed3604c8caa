package feed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// store is the folder of a feed, which all processes of the agent share: state.json, and the bundle in use and the one
// before it, each with its signature. The state is replaced in one step, and names the bundle: whoever reads it finds
// either the old one or the new one, whole.
type store struct{ dir string }

func storeOf(stateDir, name string) store { return store{folder(stateDir, name)} }

func (s store) statePath() string { return filepath.Join(s.dir, "state.json") }

// state of a feed.
type state struct {
	Source      string    `json:"source"`                // digest of where Seen, ETag and the troubles are from
	Checked     time.Time `json:"checked,omitzero"`      // when the source was looked at
	Seen        string    `json:"seen,omitempty"`        // digest of the signature that was judged last
	ETag        string    `json:"etag,omitempty"`        // of that signature
	Applied     string    `json:"applied,omitempty"`     // id of the bundle in use
	Previous    string    `json:"previous,omitempty"`    // of the one before it
	Serial      uint64    `json:"serial"`                // the highest that was ever in use
	Unreachable string    `json:"unreachable,omitempty"` // why the source could not be looked at
	Refused     string    `json:"refused,omitempty"`     // why what it has was not taken
}

// due reports whether it is time to look at the source.
func (s state) due(every time.Duration, now time.Time) bool {
	if s.Unreachable != "" {
		every = min(every, retryAfter)
	}
	return now.Sub(s.Checked) >= every || now.Before(s.Checked)
}

// read the state. A feed that was never looked at has the zero one.
func (s store) read() (state, error) {
	var st state
	text, err := os.ReadFile(s.statePath())
	if errors.Is(err, fs.ErrNotExist) {
		return st, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &st)
	}
	if err != nil {
		return state{}, fmt.Errorf("reading the state of the feed: %w", err)
	}
	return st, nil
}

// write the state.
func (s store) write(st state) error {
	text, err := json.MarshalIndent(st, "", "  ")
	if err == nil {
		err = replace(s.statePath(), text)
	}
	if err != nil {
		return fmt.Errorf("writing the state of the feed: %w", err)
	}
	return nil
}

// replace a file in one step.
func replace(path string, content []byte) error {
	temp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(content)
	if err := errors.Join(err, temp.Chmod(0o644), temp.Sync(), temp.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

func syncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// errBusy: somebody else has the lock.
var errBusy = errors.New("another process looks at this feed; try again in a minute")

// lock the folder against other processes; it is made if need be.
func (s store) lock() (unlock func(), err error) {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.Open(s.dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = dir.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errBusy
		}
		return nil, fmt.Errorf("locking %s: %w", s.dir, err)
	}
	return func() { _ = dir.Close() }, nil
}

func (s store) archive(id string) string { return filepath.Join(s.dir, id+".tar.gz") }

// bundle on disk.
func (s store) bundle(id string) (archive, signature []byte, err error) {
	archive, err = os.ReadFile(s.archive(id))
	if err != nil {
		return nil, nil, err
	}
	signature, err = os.ReadFile(s.archive(id) + signatureSuffix)
	return archive, signature, err
}

// put a bundle on disk and name it in the state, which is not written yet. Older ones than the last two are removed.
func (s store) put(st *state, m Manifest, archive, signature []byte) error {
	path := s.archive(m.id())
	if err := errors.Join(replace(path, archive), replace(path+signatureSuffix, signature)); err != nil {
		return fmt.Errorf("keeping the bundle: %w", err)
	}
	st.Previous, st.Applied, st.Serial = st.Applied, m.id(), m.Serial
	return s.prune(*st)
}

// prune bundles that the state does not name.
func (s store) prune(st state) error {
	paths, err := filepath.Glob(filepath.Join(s.dir, "*.tar.gz"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range paths {
		if path != s.archive(st.Applied) && path != s.archive(st.Previous) {
			errs = append(errs, os.Remove(path), os.Remove(path+signatureSuffix))
		}
	}
	return errors.Join(errs...)
}
