package handover

import (
	"errors"
	"net/netip"
	"sync"

	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/host/internal/tracking"
)

// Back is what is behind a Front: the queue, ledger and tables of the owner, or a *Drainer.
type Back interface {
	tracking.Ledger
	RoomFor(size int64) error
	NewBody() (queue.BodyWriter, error)
	Commit(items ...*queue.Item) error
	Tables() tables.Store
}

// Owned is the Back of the owner.
type Owned struct {
	*queue.Queue
	tracking.Ledger
	Rows tables.Store
}

// Tables implements Back.
func (o Owned) Tables() tables.Store { return o.Rows }

// Front is queue, ledger and tables as sessions and agents use them, who need not know whether this process owns them.
// Its zero value has nothing behind it: it finds no rows and accepts no mail.
type Front struct {
	mu   sync.RWMutex
	back Back // nil: none
}

// Change puts what makeBack makes behind the front. What was begun before has ended when makeBack is called, and what
// comes meanwhile waits. On an error everything stays as it was.
func (f *Front) Change(makeBack func() (Back, error)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := makeBack()
	if err == nil {
		f.back = b
	}
	return err
}

var errNoBack = errors.New("the store is not open")

// RoomFor tells whether new mail of size octets (0: not known) may be taken; its error wraps queue.ErrFull where the disk
// is too full.
func (f *Front) RoomFor(size int64) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.back == nil {
		return errNoBack
	}
	return f.back.RoomFor(size)
}

// NewBody starts the body of a message that is being received.
func (f *Front) NewBody() (queue.BodyWriter, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.back == nil {
		return nil, errNoBack
	}
	return f.back.NewBody()
}

// Commit promises items. They are synced when it returns.
func (f *Front) Commit(items ...*queue.Item) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.back == nil {
		return errNoBack
	}
	return f.back.Commit(items...)
}

// Write implements tracking.Ledger.
func (f *Front) Write(r *tracking.Record) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.back != nil {
		f.back.Write(r)
	}
}

// Full implements tracking.Ledger.
func (f *Front) Full() bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.back != nil && f.back.Full()
}

// Tables are the tables behind the front, whichever they are at the time of each call.
func (f *Front) Tables() tables.Store { return (*rows)(f) }

// rows implements tables.Store.
type rows Front

// Get implements tables.Store.
func (r *rows) Get(table, key string) (tables.Row, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.back == nil {
		return tables.Row{}, false
	}
	return r.back.Tables().Get(table, key)
}

// Match implements tables.Store.
func (r *rows) Match(table string, addr netip.Addr) (tables.Row, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.back == nil {
		return tables.Row{}, false
	}
	return r.back.Tables().Match(table, addr)
}

// Apply implements tables.Store.
func (r *rows) Apply(writes []tables.Write) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.back != nil {
		r.back.Tables().Apply(writes)
	}
}

// List implements tables.Store. It does not keep a change from happening, since fn may use the front itself.
func (r *rows) List(table, after string, fn func(tables.Row) bool) {
	if store := r.now(); store != nil {
		store.List(table, after, fn)
	}
}

// Names implements tables.Store.
func (r *rows) Names() map[string]int {
	if store := r.now(); store != nil {
		return store.Names()
	}
	return nil
}

// Replace implements tables.Store.
func (r *rows) Replace(table string, list []tables.Row) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.back != nil {
		r.back.Tables().Replace(table, list)
	}
}

// Close does nothing: who has put the tables behind the front closes them.
func (r *rows) Close() error { return nil }

func (r *rows) now() tables.Store {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.back == nil {
		return nil
	}
	return r.back.Tables()
}
