// Package users knows who may authenticate: a file of "name:hash" lines with bcrypt or argon2id hashes.
package users

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// pollInterval is how often Watch looks at the file.
const pollInterval = 2 * time.Second

// File is a users file as it was last read. Safe for concurrent use.
type File struct {
	path   string
	logger hclog.Logger
	hashes atomic.Pointer[map[string]string]
	stamp  fileStamp
	turns  chan struct{} // bounds how many passwords are hashed at once: each takes a core, and argon2 much memory
}

// fileStamp tells one version of a file from another.
type fileStamp struct {
	modified time.Time
	size     int64
}

// Open reads a users file. A line is "name:hash", empty, or a comment after "#". The error names the line.
func Open(path string, logger hclog.Logger) (*File, error) {
	f := &File{path: path, logger: logger, turns: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)))}
	if err := f.load(); err != nil {
		return nil, err
	}
	return f, nil
}

// Watch reads the file again when it changes, until ctx ends. A file with a mistake leaves the users as they were.
func (f *File) Watch(ctx context.Context) {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			f.reload()
		}
	}
}

// reload reads the file if it has changed.
func (f *File) reload() {
	stamp, err := stampOf(f.path)
	if err == nil && stamp == f.stamp {
		return
	}
	if err == nil {
		err = f.load()
	}
	if err != nil {
		f.stamp = stamp // said once, not at every look
		f.logger.Error("users file not read again; the users stay as they were", "error", err)
		return
	}
	f.logger.Info("users file read again", "users", len(*f.hashes.Load()))
}

func stampOf(path string) (fileStamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}, fmt.Errorf("users file: %w", err)
	}
	return fileStamp{info.ModTime(), info.Size()}, nil
}

func (f *File) load() error {
	stamp, err := stampOf(f.path)
	if err != nil {
		return err
	}
	in, err := os.Open(f.path)
	if err != nil {
		return fmt.Errorf("users file: %w", err)
	}
	defer in.Close()
	hashes := map[string]string{}
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, hash, ok := strings.Cut(line, ":")
		if !ok || name == "" {
			return fmt.Errorf("%s:%d: a line is name:hash", f.path, n)
		}
		if err := known(hash); err != nil {
			return fmt.Errorf("%s:%d: %w", f.path, n, err)
		}
		if _, twice := hashes[name]; twice {
			return fmt.Errorf("%s:%d: %q is there already", f.path, n, name)
		}
		hashes[name] = hash
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading users file: %w", err)
	}
	f.hashes.Store(&hashes)
	f.stamp = stamp
	return nil
}

// Authenticate reports whether the password is the user's. The error says that it could not be checked.
func (f *File) Authenticate(user, password string) (bool, error) {
	f.turns <- struct{}{}
	defer func() { <-f.turns }()
	hash, ok := (*f.hashes.Load())[user]
	if !ok {
		// An unknown name takes as long as a known one.
		_, _ = Check(nobody, password)
		return false, nil
	}
	return Check(hash, password)
}
