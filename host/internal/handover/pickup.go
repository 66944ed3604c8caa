package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/host/internal/tracking"
)

// parkedName is the folder below incoming/ of files that cannot be read.
const parkedName = "unreadable"

// Pickup is the owner's side of drainers: it adopts what they leave in their folders.
type Pickup struct {
	Incoming string // the folder of their folders
	Queue    *queue.Queue
	Tables   tables.Store
	Ledger   *tracking.File
	Logger   hclog.Logger

	mu     sync.Mutex
	looked bool // at what was there at the start
	unsure bool // lines that stand in the ledger may be there once more

	applying sync.Mutex // held while rows are applied, which keep their order
}

// pickupEvery is how often an owner looks that nobody wakes.
const pickupEvery = time.Second

// Run adopts until ctx ends.
func (p *Pickup) Run(ctx context.Context) {
	tick := time.NewTicker(pickupEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.Adopt()
		}
	}
}

// Adopt takes what is there now. The first time must be before anything is delivered: only then are items whose parcel
// was not removed, because the owner before this one died, still in the store to be known again.
func (p *Pickup) Adopt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, folder := range folders(p.Incoming) {
		over := !held(folder) // before looking: nothing comes later
		p.adoptFolder(folder)
		if over && isEmpty(folder) {
			if err := os.RemoveAll(folder); err != nil {
				p.Logger.Warn("folder of a former host cannot be removed", "folder", folder, "error", err)
			}
		}
	}
	p.looked = true
}

// adopters is how many messages are adopted at once: they share the syncs of the disk.
const adopters = 32

func (p *Pickup) adoptFolder(folder string) {
	p.adoptRows(folder)
	var work sync.WaitGroup
	room := make(chan struct{}, adopters)
	for _, path := range p.files(folder, kindMail) {
		room <- struct{}{}
		work.Go(func() {
			p.adoptFile(path, p.mail)
			<-room
		})
	}
	work.Wait()
	p.adoptLines(folder)
}

// linesAtOnce is how many octets of the ledger are adopted at once. At the start each time costs a look at what the
// ledger has already.
const linesAtOnce = 4 << 20

// adoptLines adopts the lines for the ledger.
func (p *Pickup) adoptLines(folder string) {
	var lines []byte
	var from []string
	paths := p.files(folder, kindLedger)
	for i, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			p.Logger.Error("ledger lines of a former host cannot be read now", "file", path, "error", err)
		} else {
			lines, from = append(lines, text...), append(from, path)
		}
		if len(from) == 0 || len(lines) < linesAtOnce && i < len(paths)-1 {
			continue
		}
		if err := p.Ledger.Adopt(lines, !p.looked || p.unsure); err != nil {
			p.Logger.Error("ledger lines of a former host cannot be taken now", "folder", folder, "error", err)
			return
		}
		for _, path := range from {
			p.unsure = os.Remove(path) != nil || p.unsure
		}
		lines, from = nil, nil
	}
}

// isEmpty reports whether nothing is left in a folder that an owner would adopt.
func isEmpty(folder string) bool {
	entries, err := os.ReadDir(folder)
	return err == nil && !slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		return slices.Contains([]string{kindMail, kindRows, kindLedger}, filepath.Ext(e.Name())) && !strings.HasPrefix(e.Name(), hiddenPrefix)
	})
}

// AdoptRows takes the rows that are there now, for a drainer that wants to read what it has written.
func (p *Pickup) AdoptRows() {
	for _, folder := range folders(p.Incoming) {
		p.adoptRows(folder)
	}
}

func (p *Pickup) adoptRows(folder string) {
	p.applying.Lock()
	defer p.applying.Unlock()
	for _, path := range p.files(folder, kindRows) {
		p.adoptFile(path, p.rows)
	}
}

// files of a kind in a folder, in the order of their numbers. Those that were cut short are not among them: for them
// nobody was promised anything.
func (p *Pickup) files(folder, kind string) (paths []string) {
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.Logger.Error("what a former host has accepted cannot be read now", "folder", folder, "error", err)
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) == kind && !strings.HasPrefix(e.Name(), hiddenPrefix) {
			paths = append(paths, filepath.Join(folder, e.Name()))
		}
	}
	return paths
}

// adoptFile takes one file. What cannot be read is parked; what cannot be taken now stays.
func (p *Pickup) adoptFile(path string, adopt func(*os.File) error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err == nil {
		err = adopt(file)
		_ = file.Close()
	}
	if errors.Is(err, queue.ErrUnreadable) {
		err = p.park(path, err)
	}
	if err != nil {
		p.Logger.Error("what a former host has accepted cannot be taken now", "file", path, "error", err)
	}
}

// removeFile removes a file for good.
func removeFile(path string) error {
	return errors.Join(os.Remove(path), syncDir(filepath.Dir(path)))
}

func (p *Pickup) mail(file *os.File) error {
	return p.Queue.Adopt(file, func() error { return removeFile(file.Name()) })
}

func (p *Pickup) rows(file *os.File) error {
	text, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	var list []rowWrite
	if err := json.Unmarshal(text, &list); err != nil {
		return fmt.Errorf("%w: %w", queue.ErrUnreadable, err)
	}
	writes := make([]tables.Write, 0, len(list))
	for _, w := range list {
		w.Write.Key = string(w.Key)
		writes = append(writes, w.Write)
	}
	p.Tables.Apply(writes)
	return os.Remove(file.Name())
}

// park keeps a file for an operator.
func (p *Pickup) park(path string, why error) error {
	dir := p.Parked()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	to := filepath.Join(dir, filepath.Base(filepath.Dir(path))+"-"+filepath.Base(path))
	if err := os.Rename(path, to); err != nil {
		return err
	}
	p.Logger.Error("what a former host has accepted is unreadable and was put aside", "file", to, "error", why)
	return errors.Join(syncDir(dir), syncDir(filepath.Dir(path)))
}

// Parked is the folder of the files that were put aside.
func (p *Pickup) Parked() string { return filepath.Join(p.Incoming, parkedName) }

// Unreadable is how many files were put aside.
func (p *Pickup) Unreadable() int {
	entries, _ := os.ReadDir(p.Parked()) // usually it does not exist
	return len(entries)
}

// pause waits a moment, less where ctx ends.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Millisecond):
	}
}
