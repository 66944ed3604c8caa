package main

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/match"
)

// entry is what is known of a network.
type entry struct {
	comment string
	expires time.Time // zero: never
}

// over reports whether the entry is disabled at a time.
func (e entry) over(now time.Time) bool { return !e.expires.IsZero() && !now.Before(e.expires) }

// outlasts reports whether e is in force when other is no more.
func (e entry) outlasts(other entry) bool {
	return !other.expires.IsZero() && (e.expires.IsZero() || e.expires.After(other.expires))
}

// networks ready for look-ups.
type networks struct{ match.Prefixes[entry] }

// put a network. Of two entries for the same one the one that lasts longer stays.
func (n *networks) put(text string, e entry) error {
	prefixes, err := match.ParseNetwork(text)
	if err != nil {
		return err
	}
	for _, p := range prefixes {
		if old, there := n.At(p); !there || e.outlasts(old) {
			n.Put(p, e)
		}
	}
	return nil
}

// find the closest entry that is in force.
func (n *networks) find(ip netip.Addr, now time.Time) (netip.Prefix, entry, bool) {
	for p, e := range n.Holding(ip) {
		if !e.over(now) {
			return p, e, true
		}
	}
	return netip.Prefix{}, entry{}, false
}

// list is a List at work. What its files hold is swapped when they change; the rest stays.
type list struct {
	name  string
	fixed networks
	paths []string
	files atomic.Pointer[networks]

	read, seen []fileState // of paths when they were read, and when they were last looked at
}

// openList reads a list. A nil one is empty.
func openList(r *sdk.Registrar, name string, config *List) (*list, error) {
	l := &list{name: name}
	l.files.Store(new(networks))
	if config == nil {
		return l, nil
	}
	for i, text := range config.Networks {
		if err := l.fixed.put(text, entry{}); err != nil {
			return nil, r.At(name, "networks", i).Error(err)
		}
	}
	for i, e := range config.Entries {
		if err := l.add(r, i, e); err != nil {
			return nil, err
		}
	}
	l.paths = config.Files
	l.read = statesOf(l.paths)
	l.seen = l.read
	files, i, err := readFiles(l.paths)
	if err != nil {
		return nil, r.At(name, "files", i).Error(err)
	}
	l.files.Store(files)
	return l, nil
}

func (l *list) add(r *sdk.Registrar, i int, config Entry) error {
	expires, err := parseExpiry(config.Expires)
	if err != nil {
		return r.At(l.name, "entry", i, "expires").Error(err)
	}
	e := entry{comment: config.Comment, expires: expires}
	if err := l.fixed.put(config.Network, e); err != nil {
		return r.At(l.name, "entry", i).Error(err)
	}
	if e.over(time.Now()) {
		r.At(l.name, "entry", i, "expires").Warn("this entry has expired and does nothing any more")
	}
	return nil
}

// find the entry in force that holds ip.
func (l *list) find(ip netip.Addr, now time.Time) (netip.Prefix, entry, bool) {
	if p, e, ok := l.fixed.find(ip, now); ok {
		return p, e, true
	}
	return l.files.Load().find(ip, now)
}

// parseExpiry reads a date, which includes that day, or a time. Empty: never.
func parseExpiry(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.DateOnly, s); err == nil {
		return t.AddDate(0, 0, 1), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a date (2026-12-31) nor a time (2026-12-31T18:00:00Z)", s)
	}
	return t, nil
}

// readFiles reads files into one table. The error comes with the index of the path.
func readFiles(paths []string) (*networks, int, error) {
	n := new(networks)
	for i, path := range paths {
		if err := n.readFile(path); err != nil {
			return nil, i, err
		}
	}
	return n, 0, nil
}

func (n *networks) readFile(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err // it names the path
	}
	defer file.Close()
	if number, err := n.readLines(file); err != nil {
		return fmt.Errorf("%s:%d: %w", path, number, err)
	}
	return nil
}

// readLines reads a network a line. The error comes with the number of the line.
func (n *networks) readLines(r io.Reader) (number int, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		number++
		if err := n.readLine(strings.TrimPrefix(lines.Text(), "\uFEFF")); err != nil {
			return number, err
		}
	}
	return number + 1, lines.Err()
}

// readLine reads "192.0.2.0/24 expires=2026-12-31 # comment"; ";" starts a comment too, as in the files that
// operators of DNS lists hand out.
func (n *networks) readLine(line string) error {
	text, comment := line, ""
	if i := strings.IndexAny(line, "#;"); i >= 0 {
		text, comment = line[:i], strings.TrimSpace(line[i+1:])
	}
	words := strings.Fields(text)
	if len(words) == 0 {
		return nil
	}
	e := entry{comment: comment}
	for _, word := range words[1:] {
		date, ok := strings.CutPrefix(word, "expires=")
		if !ok || date == "" {
			return fmt.Errorf("%q is not understood: a line is a network, expires=DATE, # and a comment", word)
		}
		var err error
		if e.expires, err = parseExpiry(date); err != nil {
			return err
		}
	}
	return n.put(words[0], e)
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

// watch reads the files of lists again when they change, beside the events, until stop is called.
func watch(logger hclog.Logger, lists ...*list) (stop func()) {
	lists = slices.DeleteFunc(lists, func(l *list) bool { return len(l.paths) == 0 })
	done := make(chan struct{})
	if len(lists) > 0 {
		go func() {
			ticker := time.NewTicker(lookEvery)
			defer ticker.Stop()
			for {
				select {
				case <-done:
					return
				case <-ticker.C:
					for _, l := range lists {
						l.look(logger)
					}
				}
			}
		}()
	}
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
		logger.Error("list not read again; it stays as it was", "list", l.name, "error", err)
		return
	}
	l.files.Store(files)
	logger.Info("list read again", "list", l.name, "networks", files.Len())
}
