// Package directory fills the tables recipients, groups and safelist from files and answers what they say.
package directory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/tables"
)

// pollInterval of Watch.
const pollInterval = 2 * time.Second

// Directory keeps the tables equal to the files of the directory blocks.
type Directory struct {
	store  tables.Store
	log    hclog.Logger
	hashes atomic.Pointer[[]hashing]

	mu      sync.Mutex
	sources []config.Directory
	seen    []version // of each file, when it was read last
}

// version tells whether a file has changed.
type version struct {
	modified time.Time
	size     int64
	err      string
}

// New makes a Directory over what the tables hold from before; Load reads the files.
func New(sources []config.Directory, store tables.Store, log hclog.Logger) *Directory {
	d := &Directory{sources: sources, store: store, log: log, seen: make([]version, len(sources))}
	hashes := storedHashes(store)
	d.hashes.Store(&hashes)
	return d
}

// Load reads all files and replaces the tables. On an error, which names every mistake with file, line and
// column, the tables keep what they had. Without directory blocks it leaves the tables alone, and goes by what they
// hold from before.
func (d *Directory) Load() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.load()
}

// load is Load, under mu.
func (d *Directory) load() error {
	if len(d.sources) == 0 {
		hashes := storedHashes(d.store)
		d.hashes.Store(&hashes)
		return nil
	}
	rows := newRows()
	var problems []error
	for i, s := range d.sources {
		d.seen[i] = look(s.File)
		doc, err := read(s)
		if err == nil {
			err = rows.add(doc)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("directory %q: %w", s.Name, err))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	rows.replace(d.store)
	hashes := rows.hashes
	d.hashes.Store(&hashes)
	d.log.Info("directory loaded", "recipients", len(rows.recipients), "groups", len(rows.groups), "safelist", len(rows.safelist))
	return nil
}

// SetSources reads other files from now on, and reads them at once. On an error everything stays as it was.
func (d *Directory) SetSources(sources []config.Directory) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	before, seen := d.sources, d.seen
	d.sources, d.seen = sources, make([]version, len(sources))
	if err := d.load(); err != nil {
		d.sources, d.seen = before, seen
		return err
	}
	return nil
}

// read one file; its name says which form it has.
func read(s config.Directory) (*document, error) {
	data, err := os.ReadFile(s.File)
	if err != nil {
		return nil, err
	}
	doc := &document{file: s.File, hashed: s.Hashed}
	if strings.EqualFold(filepath.Ext(s.File), ".json") {
		err = doc.parseJSON(data)
	} else {
		err = doc.parseCSV(data)
	}
	if err == nil && s.Hashed && len(doc.key) == 0 {
		err = doc.fault(position{1, 1}, "a hashed directory names its key: in CSV the first line is \"# hash-key: HEX\", in JSON \"hash_key\"")
	}
	return doc, err
}

func look(file string) version {
	info, err := os.Stat(file)
	if err != nil {
		return version{err: err.Error()}
	}
	return version{modified: info.ModTime(), size: info.Size()}
}

// Watch looks every two seconds whether a file has changed, and loads again, until ctx ends. What is wrong with a
// broken file is said in the log, once for each of its versions.
func (d *Directory) Watch(ctx context.Context) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			d.poll()
		}
	}
}

func (d *Directory) poll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, s := range d.sources {
		if look(s.File) == d.seen[i] {
			continue
		}
		if err := d.load(); err != nil {
			d.log.Error("directory keeps its former content", "error", err)
		}
		return
	}
}

// Tables is the store as agents and the categorizer must see it: rows of hashed directories are found by their
// plain keys.
func (d *Directory) Tables() tables.Store { return &view{Store: d.store, directory: d} }

// view finds hashed rows.
type view struct {
	tables.Store
	directory *Directory
}

// Get implements tables.Store.
func (v *view) Get(table, key string) (tables.Row, bool) {
	row, ok := v.Store.Get(table, key)
	if ok || table != recipientsTable && table != groupsTable && table != safelistTable {
		return row, ok
	}
	for _, h := range *v.directory.hashes.Load() {
		if row, ok = v.Store.Get(table, h.of(key)); ok {
			row.Key = key
			return row, true
		}
	}
	return row, false
}
