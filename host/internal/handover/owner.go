package handover

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Ownership is the lock on a data directory, in its file owner.lock: the one process that has it owns schedule,
// tables, ledger and control socket. It can be handed to another process without a moment in which nobody has it.
type Ownership struct{ file *os.File }

// ErrOwned is wrapped by Own when another process owns the data directory.
var ErrOwned = errors.New("another host runs on it")

// Own takes the ownership of a data directory.
func Own(dataDir string) (*Ownership, error) {
	path := filepath.Join(dataDir, "owner.lock")
	file, err := lockFile(path)
	if errors.Is(err, errHeld) {
		pid, _ := os.ReadFile(path) // of the other one, if it had the time to write it
		return nil, fmt.Errorf("%s: %w (pid %s); stop that one, or give this one a data_dir of its own",
			dataDir, ErrOwned, strings.TrimSpace(string(pid)))
	}
	if err != nil {
		return nil, fmt.Errorf("owner.lock: %w", err)
	}
	o := &Ownership{file}
	o.sign()
	return o, nil
}

// sign writes down whose it is, for people.
func (o *Ownership) sign() {
	if o.file.Truncate(0) == nil {
		_, _ = o.file.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
}

// Close gives the ownership up, or this process's part in it where it was handed on.
func (o *Ownership) Close() error { return o.file.Close() }
