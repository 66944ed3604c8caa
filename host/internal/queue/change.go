package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
)

// stored is what the store has put on an item that it was given or has given out: the content the item had then,
// so that content which is still the same is found without reading it again.
type stored struct {
	versions versions
	contents contents
}

// change is one atomic change of the store: old makes way for items, of which it may be one itself.
type change struct {
	s     *diskStore
	old   *Item // nil: none
	keep  bool  // old stays, in its new state
	items []*Item

	known   stored // of old
	new     newContents
	records []pending // of items
	freed   []contentID
}

// pending is an item on its way into the store.
type pending struct {
	item     *Item
	versions versions
	record   []byte
	stored   bool // false: an item of that id was there
}

// errStale tells that old was changed by somebody else meanwhile.
var errStale = errors.New("item has changed meanwhile")

// Commit implements Store.
func (s *diskStore) Commit(items ...*Item) error {
	if err := s.RoomFor(0); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	c := &change{s: s, items: items}
	if err := c.run(); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	return nil
}

// Replace implements Store.
func (s *diskStore) Replace(parent *Item, children ...*Item) error {
	c := &change{s: s, old: parent, items: children}
	err := c.run()
	if errors.Is(err, ErrNotFound) {
		err = s.barrier()
	}
	if err != nil {
		return fmt.Errorf("replacing %s: %w", parent.ID, err)
	}
	return nil
}

// Record implements Store.
func (s *diskStore) Record(item *Item, children ...*Item) error {
	c := &change{s: s, old: item, items: children}
	if item.State != Done {
		c.keep = true
		c.items = append([]*Item{item}, children...)
	}
	if err := c.run(); err != nil {
		return fmt.Errorf("recording %s: %w", item.ID, err)
	}
	return nil
}

// barrier returns when everything that was visible before it is synced.
func (s *diskStore) barrier() error {
	c := &change{s: s}
	return c.run()
}

// run prepares the change outside the lock, stages it under the lock, and waits for its sync without it.
func (c *change) run() error {
	c.s.life.RLock()
	defer c.s.life.RUnlock()
	if err := c.s.usable(); err != nil {
		return err
	}
	var batch *pebble.Batch
	err := errStale
	for trust := true; errors.Is(err, errStale); trust = false {
		if err = c.prepare(trust); err == nil {
			batch, err = c.stage()
		}
		if err != nil {
			c.new.drop(func(contentID) bool { return false })
		}
	}
	if err != nil {
		return err
	}
	return c.finish(batch)
}

// prepare encodes items and makes their large content safe. With trust it believes what old carries of its content.
func (c *change) prepare(trust bool) error {
	if err := c.learn(trust); err != nil {
		return err
	}
	c.new = newContents{store: c.s, known: c.known.contents}
	c.records = make([]pending, 0, len(c.items))
	for _, item := range c.items {
		if item.State == Done {
			continue
		}
		v, err := c.new.versionsOf(item.Mail)
		if err != nil {
			return err
		}
		c.records = append(c.records, pending{item: item, versions: v, record: encodeItem(item, v)})
	}
	return c.new.sync()
}

// learn finds out the content of old.
func (c *change) learn(trust bool) error {
	c.known = stored{}
	if c.old == nil || len(c.items) == 0 {
		return nil
	}
	if trust && c.old.stored != nil {
		c.known = *c.old.stored
		return nil
	}
	h, err := c.s.head(c.old.ID)
	if errors.Is(err, ErrUnreadable) {
		return nil // what of it is unreadable cannot be named again
	}
	if err != nil {
		return err
	}
	known, err := c.s.loadContents(h.versions)
	if err != nil {
		c.s.log.Warn("content of a changed item", "item", c.old.ID, "error", err)
	}
	c.known = stored{h.versions, known}
	return nil
}

// head reads the head of an item's record.
func (s *diskStore) head(id string) (head, error) {
	value, closer, err := s.db.Get(itemKey(id))
	if errors.Is(err, pebble.ErrNotFound) {
		return head{}, ErrNotFound
	}
	if err != nil {
		return head{}, unreadable(id, err)
	}
	defer closer.Close()
	h, err := decodeHead(value)
	if err != nil {
		return head{}, unreadable(id, err)
	}
	return h, nil
}

// unreadable takes err for damage, unless the system has run out of something: that passes.
func unreadable(id string, err error) error {
	for _, short := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		if errors.Is(err, short) {
			return fmt.Errorf("reading %s: %w", id, err)
		}
	}
	return fmt.Errorf("%w %s: %w", ErrUnreadable, id, err)
}

// stage puts the change into the engine, in an order with all others. It is not synced yet.
func (c *change) stage() (batch *pebble.Batch, err error) {
	batch = c.s.db.NewBatchWithSize(c.size())
	counts := references{s: c.s, added: c.new.added, delta: make(map[contentID]int, 4)}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if err := c.removeOld(batch, &counts); err != nil {
		return nil, errors.Join(err, batch.Close())
	}
	if err := c.putItems(batch, &counts); err != nil {
		return nil, errors.Join(err, batch.Close())
	}
	if err := counts.write(batch); err != nil {
		return nil, errors.Join(err, batch.Close())
	}
	if batch.Empty() {
		_ = batch.LogData([]byte{0}, nil) // something to sync, for the changes of others that we rely on
	}
	if err := c.s.applied(batch); err != nil {
		return nil, err
	}
	c.freed = counts.commit()
	c.remember()
	return batch, nil
}

// size of the batch, estimated so that it is allocated once.
func (c *change) size() int {
	n := 256
	for _, p := range c.records {
		n += len(p.record) + len(p.item.ID)*4 + 300
	}
	return n + int(c.new.added.size())
}

func (c *change) removeOld(batch *pebble.Batch, counts *references) error {
	if c.old == nil {
		return nil
	}
	h, err := c.s.head(c.old.ID)
	if errors.Is(err, ErrUnreadable) {
		return c.removeUnreadable(batch)
	}
	if err != nil {
		return err
	}
	if len(c.items) > 0 && h.versions != c.known.versions {
		return errStale
	}
	h.versions.distinct(func(id contentID) { counts.delta[id]-- })
	return errors.Join(batch.Delete(itemKey(c.old.ID), nil), batch.Delete(entryKey(h.next, c.old.ID), nil))
}

// removeUnreadable removes an item whose record does not tell the key of its entry. Its content stays, since the
// record does not tell that either.
func (c *change) removeUnreadable(batch *pebble.Batch) error {
	c.s.log.Warn("unreadable record removed; its content stays in the store", "item", c.old.ID)
	err := c.s.each(spaceEntry, func(key, _ []byte) error {
		if _, id, _ := splitEntryKey(key); id == c.old.ID {
			return batch.Delete(key, nil)
		}
		return nil
	})
	return errors.Join(err, batch.Delete(itemKey(c.old.ID), nil))
}

func (c *change) putItems(batch *pebble.Batch, counts *references) error {
	for i := range c.records {
		p := &c.records[i]
		exists, err := c.exists(i)
		if err != nil {
			return err
		}
		if exists {
			continue
		}
		p.stored = true
		p.versions.distinct(func(id contentID) { counts.delta[id]++ })
		err = errors.Join(batch.Set(itemKey(p.item.ID), p.record, nil),
			batch.Set(entryKey(p.item.Next, p.item.ID), encodeEntry(p.item), nil))
		if err != nil {
			return err
		}
	}
	for _, content := range c.new.added {
		if counts.delta[content.id] == 0 {
			continue // only an item that was there already names it
		}
		if err := c.new.put(batch, content); err != nil {
			return err
		}
	}
	return nil
}

// exists tells whether item i is in the store, or came earlier in this change.
func (c *change) exists(i int) (bool, error) {
	id := c.records[i].item.ID
	for _, p := range c.records[:i] {
		if p.item.ID == id {
			return true, nil
		}
	}
	if c.old != nil && c.old.ID == id {
		return false, nil
	}
	_, closer, err := c.s.db.Get(itemKey(id))
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, closer.Close()
}

// applied hands batch to the engine.
func (s *diskStore) applied(batch *pebble.Batch) (err error) {
	defer func() {
		if r := recover(); r != nil {
			s.guard.trip(fmt.Errorf("%v", r))
			err = s.usable()
		}
	}()
	return s.db.ApplyNoSyncWait(batch, pebble.Sync)
}

// remember keeps the cache in step. Items that were deferred leave it, since they are not needed soon.
func (c *change) remember() {
	if c.old != nil {
		c.s.cache.remove(c.old.ID)
	}
	for _, p := range c.records {
		if !p.stored {
			continue
		}
		cs := c.contentsOf(p.versions)
		p.item.stored = &stored{p.versions, cs}
		if !c.keep || p.item != c.old {
			c.s.cache.put(&cachedItem{id: p.item.ID, record: p.record, contents: cs})
		}
	}
}

func (c *change) contentsOf(v versions) contents {
	cs := make(contents, 0, 4)
	v.distinct(func(id contentID) {
		for _, from := range []contents{c.known.contents, c.new.added} {
			for _, content := range from {
				if content.id == id {
					cs = append(cs, content)
				}
			}
		}
	})
	return cs
}

// finish waits for the sync. Only then may files go: before it, a crash would bring back the record that names them.
func (c *change) finish(batch *pebble.Batch) error {
	err := batch.SyncWait()
	if err != nil {
		c.s.guard.trip(err)
	}
	if err := c.s.usable(); err != nil {
		return err
	}
	c.new.drop(func(id contentID) bool { return c.names(id) })
	for _, id := range c.freed {
		c.s.removeBody(id)
	}
	return batch.Close()
}

// names tells whether an item of this change that was stored names content id.
func (c *change) names(id contentID) bool {
	found := false
	for _, p := range c.records {
		p.versions.distinct(func(named contentID) { found = found || p.stored && named == id })
	}
	return found
}

// references counts the items that name a content. It is used under diskStore.mu.
type references struct {
	s     *diskStore
	added contents          // had no item before
	delta map[contentID]int // what the change adds
}

// write puts the new counts into batch, and deletes content that no item names any more. Most content has one item
// all its life, which no record says.
func (r *references) write(batch *pebble.Batch) error {
	for id, delta := range r.delta {
		if delta == 0 {
			continue
		}
		old := r.before(id)
		if err := r.writeOne(batch, id, old, uint64(int64(old)+int64(delta))); err != nil {
			return err
		}
	}
	return nil
}

// before is how many items have named id until now.
func (r *references) before(id contentID) uint64 {
	if n := r.s.shared[id]; n != 0 {
		return n
	}
	for _, c := range r.added {
		if c.id == id {
			return 0
		}
	}
	return 1
}

func (r *references) writeOne(batch *pebble.Batch, id contentID, old, now uint64) error {
	if now > 1 {
		return batch.Set(contentKey(spaceShared, id), binary.AppendUvarint(nil, now), nil)
	}
	var err error
	if old > 1 {
		err = batch.Delete(contentKey(spaceShared, id), nil)
	}
	if now == 0 {
		err = errors.Join(err, batch.Delete(contentKey(spaceContent, id), nil))
	}
	return err
}

// commit makes the new counts the valid ones, and answers with the content files that nobody names any more.
func (r *references) commit() (freed []contentID) {
	for id, delta := range r.delta {
		now := uint64(int64(r.before(id)) + int64(delta))
		if now > 1 {
			r.s.shared[id] = now
			continue
		}
		delete(r.s.shared, id)
		if now == 0 && delta < 0 && id.inFile() {
			freed = append(freed, id)
		}
	}
	return freed
}
