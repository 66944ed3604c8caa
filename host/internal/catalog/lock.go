package catalog

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclwrite"
)

// lockFile is in the data directory. Terraform's stands beside the configuration, and people keep it there in version
// control; this one is written by the host, whose configuration is often not its to write, holds what runs on this
// machine, and is not the same on the others that share the configuration.
const lockFile = "agents.lock.hcl"

// Lock is what runs.
type Lock struct {
	Agents []Locked `hcl:"agent,block"`
}

// Locked is one agent that runs.
type Locked struct {
	Name    string            `hcl:"name,label"`
	Plugin  string            `hcl:"plugin"`
	Version string            `hcl:"version"`
	Source  string            `hcl:"source"` // "catalog", "command" or "bundled"
	SHA256  map[string]string `hcl:"sha256"` // of the program and what files its command names, by path
}

// lockLimit bounds a lock file in bytes.
const lockLimit = 16 << 20

// ReadLock reads the lock file of a data directory. Without one nothing is locked.
func ReadLock(dataDir string) (*Lock, error) {
	path := filepath.Join(dataDir, lockFile)
	raw, err := readBounded(path, lockLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return &Lock{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lock file of the agents: %w", err)
	}
	lock := &Lock{}
	file, found := hclparse.NewParser().ParseHCL(raw, path)
	if !found.HasErrors() {
		found = gohcl.DecodeBody(file.Body, nil, lock)
	}
	if found.HasErrors() {
		return nil, fmt.Errorf("lock file of the agents: %w; remove it to lock what is there now", found)
	}
	return lock, nil
}

// Of is what is locked of an agent; the zero Locked when nothing is.
func (l *Lock) Of(name string) Locked {
	for _, one := range l.Agents {
		if one.Name == name {
			return one
		}
	}
	return Locked{}
}

// Without is the lock with an agent unlocked.
func (l *Lock) Without(name string) *Lock {
	return &Lock{slices.DeleteFunc(slices.Clone(l.Agents), func(one Locked) bool { return one.Name == name })}
}

// Same reports whether two locks say the same.
func (l *Lock) Same(other *Lock) bool {
	return slices.EqualFunc(l.Agents, other.Agents, func(a, b Locked) bool {
		return a.Name == b.Name && a.Plugin == b.Plugin && a.Version == b.Version && a.Source == b.Source && maps.Equal(a.SHA256, b.SHA256)
	})
}

const lockHead = `# The programs of the agents that run, written by postern. A program whose content is not what stands here is not started.
# postern agent upgrade takes another one in, and postern agent lock what has been changed while the host did not run.

`

// Write replaces the lock file of a data directory.
func (l *Lock) Write(dataDir string) error {
	file := hclwrite.NewEmptyFile()
	gohcl.EncodeIntoBody(l, file.Body())
	path := filepath.Join(dataDir, lockFile)
	temp := path + ".new"
	_ = os.Remove(temp)
	err := writeSynced(temp, append([]byte(lockHead), hclwrite.Format(file.Bytes())...), 0o640)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err == nil {
		err = syncPath(dataDir)
	}
	if err != nil {
		return fmt.Errorf("lock file of the agents: %w", err)
	}
	return nil
}
