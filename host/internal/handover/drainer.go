package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/host/internal/tracking"
)

// Kinds of files in the folder of a drainer.
const (
	kindMail   = ".mail"   // a parcel of items, see package queue
	kindRows   = ".rows"   // writes to tables, JSON
	kindLedger = ".ledger" // lines of the ledger
)

// copyName is the folder of a drainer's copy of the tables.
const copyName = "tables"

// Drainer is what a host has in place of queue, tables and ledger when another process owns them.
type Drainer struct {
	folder *Folder
	owner  owner
	log    hclog.Logger
	full   bool // the ledger wants plain "continue" verdicts too

	rows   tables.Store // the copy
	writes atomic.Uint64

	mu      sync.Mutex
	lines   []byte // for the ledger, not in a file yet
	flusher sync.WaitGroup
	left    chan struct{} // something is in the folder that the owner does not know of
	quit    chan struct{}
}

// DrainerOptions of NewDrainer.
type DrainerOptions struct {
	Incoming string       // the folder that owners pick up from
	Socket   string       // the owner's control socket
	Tables   tables.Store // copied
	Full     bool         // the ledger wants plain "continue" verdicts too
	Logger   hclog.Logger
}

// NewDrainer makes the folder of a drainer and its copy of the tables.
func NewDrainer(o DrainerOptions) (*Drainer, error) {
	folder, err := NewFolder(o.Incoming)
	if err != nil {
		return nil, fmt.Errorf("folder of what is still accepted: %w", err)
	}
	rows, err := tables.Copy(o.Tables, filepath.Join(folder.Path, copyName))
	if err != nil {
		return nil, errors.Join(err, folder.Remove())
	}
	d := &Drainer{folder: folder, owner: owner{socket: o.Socket}, log: o.Logger, full: o.Full, rows: rows,
		left: make(chan struct{}, 1), quit: make(chan struct{})}
	d.flusher.Go(d.run)
	return d, nil
}

// Stopped reports whether the owner has told this process to end.
func (d *Drainer) Stopped() bool { return d.folder.Stopped() }

// Close writes what is in memory and leaves the folder to the owner.
func (d *Drainer) Close() error {
	close(d.quit)
	d.flusher.Wait()
	err := errors.Join(d.rows.Close(), d.folder.Release())
	d.owner.wake()
	return err
}

// flushEvery is how long a line of the ledger may be in memory only.
const flushEvery = 50 * time.Millisecond

// run writes the lines of the ledger to files, and wakes the owner, until Close.
func (d *Drainer) run() {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-d.quit:
			d.flush()
			return
		case <-d.left:
			d.owner.wake()
		case <-tick.C:
			if d.flush() {
				d.owner.wake()
			}
		}
	}
}

// flush reports whether there was something.
func (d *Drainer) flush() bool {
	d.mu.Lock()
	lines := d.lines
	d.lines = nil
	d.mu.Unlock()
	if len(lines) == 0 {
		return false
	}
	if err := d.folder.put(kindLedger, false, func(w io.Writer) error { _, err := w.Write(lines); return err }); err != nil {
		d.log.Error("ledger cannot be written", "error", err)
	}
	return true
}

// Write implements tracking.Ledger.
func (d *Drainer) Write(r *tracking.Record) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = tracking.AppendLine(d.lines, r)
}

// Full implements tracking.Ledger.
func (d *Drainer) Full() bool { return d.full }

// NewBody starts the body of a message that is being received.
func (d *Drainer) NewBody() (queue.BodyWriter, error) { return queue.NewLooseBody(d.folder.Path), nil }

// Commit promises items: when it returns they are synced, and the owner of now or a later one adopts them. Disk space
// below the reserve is queue.ErrFull.
func (d *Drainer) Commit(items ...*queue.Item) error {
	if err := d.RoomFor(0); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	if err := d.folder.put(kindMail, true, func(w io.Writer) error { return queue.WriteParcel(w, items...) }); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	select {
	case d.left <- struct{}{}:
	default: // it will be told anyway
	}
	return nil
}

// reserve of disk space must be free for new mail to be taken, as the store has it.
const reserve = 256 << 20

// RoomFor tells whether new mail of size octets (0: not known) may be taken; its error wraps queue.ErrFull.
func (d *Drainer) RoomFor(size int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(d.folder.Path, &fs); err != nil {
		return fmt.Errorf("finding out free disk space: %w", err)
	}
	needed := reserve + uint64(max(size, 0))
	if free := fs.Bavail * uint64(min(max(fs.Bsize, 0), math.MaxInt32)); free < needed {
		return fmt.Errorf("%w: %d MiB free, %d MiB needed", queue.ErrFull, free>>20, needed>>20)
	}
	return nil
}

// Tables are the owner's tables, and the copy where the owner does not answer. A write is in both when Apply returns,
// or will be in the owner's when there is one.
func (d *Drainer) Tables() tables.Store { return &forwarded{Store: d.rows, d: d} }

// forwarded asks the owner for rows. List, Names and Replace are the copy's: sessions need none of them, and the
// directory is watched by the owner.
type forwarded struct {
	tables.Store
	d *Drainer
}

// filled are the tables of the directory. They are read from the copy: what the owner has may be of another
// configuration, with keys hashed in another way.
var filled = []string{"recipients", "groups", "safelist"}

// Get implements tables.Store.
func (f *forwarded) Get(table, key string) (tables.Row, bool) {
	if !slices.Contains(filled, table) {
		if row, found, err := f.d.owner.row(table, url.Values{"key": {key}, "exact": {"1"}}); err == nil {
			row.Key = key
			return row, found
		}
	}
	return f.Store.Get(table, key)
}

// Match implements tables.Store.
func (f *forwarded) Match(table string, addr netip.Addr) (tables.Row, bool) {
	if !slices.Contains(filled, table) {
		if row, found, err := f.d.owner.row(table, url.Values{"key": {addr.Unmap().String()}}); err == nil {
			return row, found
		}
	}
	return f.Store.Match(table, addr)
}

// rowWrite is a tables.Write as it stands in a file: keys are octets, not always text.
type rowWrite struct {
	tables.Write
	Key []byte
}

// Apply implements tables.Store.
func (f *forwarded) Apply(writes []tables.Write) {
	list := make([]rowWrite, 0, len(writes))
	for _, w := range writes {
		if w.EventID == "" { // one of its own, so that it is done once however often the file is picked up
			w.EventID = fmt.Sprintf("%s %d", f.d.folder.Path, f.d.writes.Add(1))
		}
		list = append(list, rowWrite{w, []byte(w.Key)})
	}
	err := f.d.folder.put(kindRows, false, func(w io.Writer) error { return json.NewEncoder(w).Encode(list) })
	if err != nil {
		f.d.log.Error("rows are not written to the owner's tables", "error", err)
	}
	f.Store.Apply(writes)
	f.d.owner.order("/v1/incoming/adopt-rows")
}

// owner is the process that owns the tables, whoever that is at the moment.
type owner struct{ socket string }

// ownerWait is how long the owner may take for an answer.
const ownerWait = time.Second

// wake has the owner pick up what is there.
func (o owner) wake() { o.order("/v1/incoming/adopt") }

// order has the owner do something. One that does not answer does it by itself.
func (o owner) order(path string) {
	ctx, cancel := context.WithTimeout(context.Background(), ownerWait)
	defer cancel()
	client := admin.NewClient(o.socket)
	defer client.Close()
	var nothing struct{}
	_ = client.Post(ctx, path, struct{}{}, &nothing)
}

// row reads a row. An error says that the owner could not be asked.
func (o owner) row(table string, query url.Values) (tables.Row, bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), ownerWait)
	defer cancel()
	client := admin.NewClient(o.socket)
	defer client.Close()
	var row admin.Row
	err := client.Get(ctx, "/v1/tables/"+url.PathEscape(table)+"/row", query, &row)
	var refused *admin.RemoteError
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		return tables.Row{}, false, nil
	}
	if err != nil {
		return tables.Row{}, false, err
	}
	found := tables.Row{Key: row.Key, Value: []byte(row.Value), Created: row.Created}
	if row.Expires != nil {
		found.Expires = *row.Expires
	}
	return found, true, nil
}
