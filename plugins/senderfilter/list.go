package main

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

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/match"
)

// list of senders. What its files hold is swapped when they change; the rest stays.
type list struct {
	fixed *match.Addresses
	paths []string
	files atomic.Pointer[match.Addresses]

	read, seen []fileState // of paths when they were read, and when they were last looked at
}

func openList(r *sdk.Registrar, cfg Config) (*list, error) {
	fixed, i, err := match.NewAddresses(cfg.BlockedSenders)
	if err != nil {
		return nil, r.At("blocked_senders", i).Error(err)
	}
	l := &list{fixed: fixed, paths: cfg.BlockedSendersFiles}
	l.read = statesOf(l.paths)
	l.seen = l.read
	files, i, err := readFiles(l.paths)
	if err != nil {
		return nil, r.At("blocked_senders_files", i).Error(err)
	}
	l.files.Store(files)
	return l, nil
}

// find the closest entry for a sender.
func (l *list) find(m address.Mailbox) (entry string, ok bool) {
	if entry, ok := l.fixed.Match(m); ok {
		return entry, true
	}
	return l.files.Load().Match(m)
}

// readFiles reads files into one list. The error comes with the index of the path.
func readFiles(paths []string) (*match.Addresses, int, error) {
	var all []string
	for i, path := range paths {
		entries, err := readFile(path)
		if err != nil {
			return nil, i, err
		}
		all = append(all, entries...)
	}
	list, _, err := match.NewAddresses(all)
	return list, 0, err
}

func readFile(path string) ([]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err // it names the path
	}
	defer file.Close()
	entries, number, err := readLines(file)
	if err != nil {
		return nil, fmt.Errorf("%s:%d: %w", path, number, err)
	}
	return entries, nil
}

// readLines reads an entry a line. The error comes with the number of the line.
func readLines(r io.Reader) (entries []string, number int, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		number++
		entry, _, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "\uFEFF"), "#")
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		if _, _, err := match.NewAddresses([]string{entry}); err != nil {
			return nil, number, err
		}
		entries = append(entries, entry)
	}
	return entries, number + 1, lines.Err()
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

// lookEvery is how often files are looked at. A change is read at the second look that finds the same file, so
// that one being written is not read half way.
const lookEvery = 2 * time.Second

// watch reads the files again when they change, beside the events, until stop is called.
func (l *list) watch(logger hclog.Logger) (stop func()) {
	if len(l.paths) == 0 {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		ticker := time.NewTicker(lookEvery)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				l.look(logger)
			}
		}
	}()
	return func() { close(done) }
}

// look at the files once. With a mistake in one of them the list stays as it was, which is said once.
func (l *list) look(logger hclog.Logger) {
	states := statesOf(l.paths)
	settled := slices.Equal(states, l.seen)
	l.seen = states
	if !settled || slices.Equal(states, l.read) {
		return
	}
	l.read = states
	files, _, err := readFiles(l.paths)
	if err != nil {
		logger.Error("blocked senders not read again; they stay as they were", "error", err)
		return
	}
	l.files.Store(files)
	logger.Info("blocked senders read again", "entries", files.Len())
}
