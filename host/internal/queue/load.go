package queue

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Load implements Store.
func (s *diskStore) Load(id string) (*Item, error) {
	s.life.RLock()
	defer s.life.RUnlock()
	if err := s.usable(); err != nil {
		return nil, fmt.Errorf("loading %s: %w", id, err)
	}
	if c := s.cache.get(id); c != nil {
		return restore(id, c.record, func(versions) (contents, error) { return c.contents, nil })
	}
	value, closer, err := s.db.Get(itemKey(id))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, fmt.Errorf("loading %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, unreadable(id, err)
	}
	defer closer.Close()
	return restore(id, value, s.loadContents)
}

// restore makes an item of its record and its content.
func restore(id string, record []byte, content func(versions) (contents, error)) (*Item, error) {
	item, h, err := decodeItem(id, record)
	if err != nil {
		return nil, unreadable(id, err)
	}
	cs, err := content(h.versions)
	if err != nil {
		return nil, unreadable(id, err)
	}
	cs.attach(item.Mail, h.versions)
	item.stored = &stored{h.versions, cs}
	return item, nil
}

// Scan implements Store.
func (s *diskStore) Scan(fn func(Entry) error) error {
	s.life.RLock()
	defer s.life.RUnlock()
	if err := s.usable(); err != nil {
		return fmt.Errorf("scanning: %w", err)
	}
	err := s.each(spaceEntry, func(key, value []byte) error { return fn(s.readEntry(key, value)) })
	if err != nil {
		return fmt.Errorf("scanning: %w", err)
	}
	return nil
}

// readEntry parks what it cannot read: the entry then has its id and the reason, no more.
func (s *diskStore) readEntry(key, value []byte) Entry {
	next, id, ok := splitEntryKey(key)
	n := Entry{ID: id, Next: next}
	err := decodeEntry(&n, value)
	if !ok {
		err = errMalformed
	}
	if err == nil {
		return n
	}
	s.log.Error("unreadable entry parked", "item", id, "error", err)
	return Entry{ID: id, Message: id, Next: next, State: Parked, Reason: unreadable(id, err).Error()}
}
