package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unsafe"
	"weak"

	"github.com/cockroachdb/pebble/v2"

	"github.com/posternmail/postern/host/internal/envelope"
)

// content is a header block or a body with its name in the store. Exactly one of octets and body is set; a header
// is never nil octets, since an empty one has no content.
type content struct {
	id     contentID
	header []byte
	body   *envelope.Body
}

// contents are those of one item, at most four.
type contents []content

func (cs contents) findHeader(h []byte) contentID {
	for _, c := range cs {
		if c.body == nil && len(c.header) == len(h) &&
			(unsafe.SliceData(c.header) == unsafe.SliceData(h) || bytes.Equal(c.header, h)) {
			return c.id
		}
	}
	return 0
}

func (cs contents) findBody(b *envelope.Body) contentID {
	for _, c := range cs {
		if c.body == b || c.body != nil && sameInMemory(c.body, b) {
			return c.id
		}
	}
	return 0
}

func sameInMemory(a, b *envelope.Body) bool {
	return a.InMemory() && b.InMemory() && bytes.Equal(a.Bytes(), b.Bytes())
}

// size in memory, roughly.
func (cs contents) size() int64 {
	var n int64
	for _, c := range cs {
		n += int64(len(c.header)) + 64
		if c.body != nil && c.body.InMemory() {
			n += c.body.Size()
		}
	}
	return n
}

// newContents collects the content that a change adds to the store.
type newContents struct {
	store *diskStore
	known contents // of the item that is replaced, already stored
	added contents
	files []*spool // those of added whose octets are in a file
}

func (n *newContents) versionsOf(m *envelope.Mail) (v versions, err error) {
	headers := []struct {
		id     *contentID
		octets []byte
	}{{&v.header, m.Header}, {&v.originalHeader, m.OriginalHeader}}
	for _, h := range headers {
		if *h.id, err = n.header(h.octets); err != nil {
			return v, err
		}
	}
	if v.body, err = n.body(m.Body); err != nil {
		return v, err
	}
	v.originalBody, err = n.body(m.OriginalBody)
	return v, err
}

func (n *newContents) header(h []byte) (contentID, error) {
	if len(h) == 0 {
		return 0, nil
	}
	if id := n.known.findHeader(h); id != 0 {
		return id, nil
	}
	if id := n.added.findHeader(h); id != 0 {
		return id, nil
	}
	c := content{header: h}
	if len(h) <= inlineLimit {
		c.id = n.store.newContentID(false)
	} else if err := n.copyToFile(&c, bytes.NewReader(h)); err != nil {
		return 0, err
	}
	n.added = append(n.added, c)
	return c.id, nil
}

func (n *newContents) body(b *envelope.Body) (contentID, error) {
	if b == nil {
		return 0, nil
	}
	if id := n.known.findBody(b); id != 0 {
		return id, nil
	}
	if id := n.added.findBody(b); id != 0 {
		return id, nil
	}
	c := content{body: b}
	if err := n.place(&c); err != nil {
		return 0, err
	}
	n.added = append(n.added, c)
	return c.id, nil
}

// place decides where the octets of a new body go: to the record engine, to the file they are in already, or to a
// new one.
func (n *newContents) place(c *content) error {
	if sp, ok := n.store.spooled.Load(weak.Make(c.body)); ok && sp.(*spool).taken.CompareAndSwap(false, true) {
		c.id = sp.(*spool).id
		n.files = append(n.files, sp.(*spool))
		return nil
	}
	if c.body.Size() <= inlineLimit {
		c.id = n.store.newContentID(false)
		return nil
	}
	return n.copyToFile(c, c.body.Reader())
}

func (n *newContents) copyToFile(c *content, r io.Reader) error {
	sp, err := n.store.newSpool()
	if err != nil {
		return err
	}
	sp.taken.Store(true)
	n.files = append(n.files, sp)
	c.id = sp.id
	if _, err := io.Copy(struct{ io.Writer }{sp.file}, r); err != nil {
		return fmt.Errorf("writing body file: %w", err)
	}
	return nil
}

// sync makes the files safe: their octets and then their names.
func (n *newContents) sync() error {
	if len(n.files) == 0 {
		return nil
	}
	for _, sp := range n.files {
		if err := errors.Join(sp.file.Sync(), sp.file.Close()); err != nil {
			return fmt.Errorf("syncing body file: %w", err)
		}
		sp.file = nil
	}
	if err := syncDir(n.store.files, n.store.bodies); err != nil {
		return fmt.Errorf("syncing directory of bodies: %w", err)
	}
	return nil
}

// drop removes the files of content that was not stored after all. A body whose file is dropped can still be read,
// and is copied should it be committed once more.
func (n *newContents) drop(stored func(contentID) bool) {
	for _, sp := range n.files {
		if !stored(sp.id) {
			n.store.discard(sp)
		}
	}
}

// put adds the record of c to batch.
func (n *newContents) put(batch *pebble.Batch, c content) error {
	key := contentKey(spaceContent, c.id)
	switch {
	case c.id.inFile():
		return batch.Set(key, fileRecord(c), nil)
	case c.body != nil:
		return putBody(batch, key, c.body)
	}
	op := batch.SetDeferred(len(key), 1+len(c.header))
	copy(op.Key, key)
	op.Value[0] = contentInline
	copy(op.Value[1:], c.header)
	return op.Finish()
}

func putBody(batch *pebble.Batch, key []byte, b *envelope.Body) error {
	op := batch.SetDeferred(len(key), 1+int(b.Size()))
	copy(op.Key, key)
	op.Value[0] = contentInline
	if n, err := b.ReadAt(op.Value[1:], 0); err != nil && !(errors.Is(err, io.EOF) && int64(n) == b.Size()) {
		return fmt.Errorf("reading body: %w", err)
	}
	return op.Finish()
}

// First octet of a content record, and which kind of content is in a file.
const (
	contentInline = iota
	contentFile
)

func fileRecord(c content) []byte {
	size := int64(len(c.header))
	if c.body != nil {
		size = c.body.Size()
	}
	return binary.BigEndian.AppendUint64([]byte{contentFile}, uint64(size))
}

// loadContent reads content from the store: its octets, or a body in a file.
func (s *diskStore) loadContent(id contentID) ([]byte, *envelope.Body, error) {
	value, closer, err := s.db.Get(contentKey(spaceContent, id))
	if err != nil {
		return nil, nil, fmt.Errorf("content %s: %w", bodyName(id), err)
	}
	defer closer.Close()
	switch {
	case len(value) > 0 && value[0] == contentInline:
		return append(make([]byte, 0, len(value)-1), value[1:]...), nil, nil
	case len(value) == 9 && value[0] == contentFile:
		b, err := s.openBody(id, int64(binary.BigEndian.Uint64(value[1:])))
		return nil, b, err
	}
	return nil, nil, fmt.Errorf("content %s: %w", bodyName(id), errMalformed)
}

// loadContents reads the content that v names.
func (s *diskStore) loadContents(v versions) (contents, error) {
	var cs contents
	var failed error
	v.distinct(func(id contentID) {
		octets, body, err := s.loadContent(id)
		failed = errors.Join(failed, err)
		isHeader := id == v.header || id == v.originalHeader
		switch {
		case err != nil:
		case isHeader && body != nil:
			octets = make([]byte, body.Size())
			_, err := io.ReadFull(body.Reader(), octets)
			failed = errors.Join(failed, err)
			cs = append(cs, content{id: id, header: octets})
		case isHeader:
			cs = append(cs, content{id: id, header: octets})
		case body == nil:
			cs = append(cs, content{id: id, body: envelope.MemoryBody(octets)})
		default:
			cs = append(cs, content{id: id, body: body})
		}
	})
	return cs, failed
}

// attach gives m the content that v names.
func (cs contents) attach(m *envelope.Mail, v versions) {
	for _, c := range cs {
		if c.id == v.header {
			m.Header = c.header
		}
		if c.id == v.originalHeader {
			m.OriginalHeader = c.header
		}
		if c.id == v.body {
			m.Body = c.body
		}
		if c.id == v.originalBody {
			m.OriginalBody = c.body
		}
	}
}
