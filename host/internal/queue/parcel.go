package queue

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math"

	"github.com/posternmail/postern/host/internal/envelope"
)

// A parcel is items with their content in one stream of octets, on their way from a process that took mail to the one
// that owns the store. It begins with parcelVersion; then come sections, each a letter, a length of 8 octets and that
// many octets; the last one holds the CRC-32C of all before it, so that one cut short is told from a whole one.
const (
	parcelVersion = "postern parcel 1\n"

	sectionHeader = 'h' // a header block; contents are numbered from 1 in their order
	sectionBody   = 'b' // a body
	sectionItem   = 'i' // id, 0 octet, item record that names contents by their number
	sectionEnd    = 'z' // CRC-32C
)

// maxParcelRecord bounds what of a section is read into memory: an item record, or a header block.
const maxParcelRecord = 256 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// WriteParcel writes items with their content. Received, Next and Expires are left as they are: the queue that adopts
// them fills in what is not set.
func WriteParcel(w io.Writer, items ...*Item) error {
	p := &parcelWriter{out: bufio.NewWriterSize(w, 64<<10), sum: crc32.New(castagnoli)}
	p.write([]byte(parcelVersion))
	for _, item := range items {
		p.item(item)
	}
	p.section(sectionEnd, p.sum.Sum(nil))
	if p.err == nil {
		p.err = p.out.Flush()
	}
	if p.err != nil {
		return fmt.Errorf("writing items: %w", p.err)
	}
	return nil
}

// parcelWriter keeps its first error.
type parcelWriter struct {
	out   *bufio.Writer
	sum   hash.Hash32
	named contents // written so far; their ids are their numbers
	err   error
}

func (p *parcelWriter) write(b []byte) {
	if p.err == nil {
		_, p.err = p.out.Write(b)
		_, _ = p.sum.Write(b) // never fails, see hash.Hash
	}
}

func (p *parcelWriter) begin(kind byte, size int64) {
	p.write(binary.BigEndian.AppendUint64([]byte{kind}, uint64(size)))
}

func (p *parcelWriter) section(kind byte, octets []byte) {
	p.begin(kind, int64(len(octets)))
	p.write(octets)
}

func (p *parcelWriter) item(item *Item) {
	m := item.Mail
	v := versions{header: p.header(m.Header), body: p.body(m.Body), originalHeader: p.header(m.OriginalHeader),
		originalBody: p.body(m.OriginalBody)}
	record := append([]byte(item.ID), 0)
	p.section(sectionItem, append(record, encodeItem(item, v)...))
}

func (p *parcelWriter) header(octets []byte) contentID {
	if len(octets) == 0 {
		return 0
	}
	if id := p.named.findHeader(octets); id != 0 {
		return id
	}
	p.section(sectionHeader, octets)
	return p.name(content{header: octets})
}

func (p *parcelWriter) body(b *envelope.Body) contentID {
	if b == nil {
		return 0
	}
	if id := p.named.findBody(b); id != 0 {
		return id
	}
	p.begin(sectionBody, b.Size())
	if p.err == nil {
		_, p.err = io.Copy(io.MultiWriter(p.out, p.sum), b.Reader())
	}
	return p.name(content{body: b})
}

func (p *parcelWriter) name(c content) contentID {
	c.id = contentID(len(p.named) + 1)
	p.named = append(p.named, c)
	return c.id
}

// ReadParcel reads what WriteParcel has written. newBody makes the place of each body. What is wrong with the octets
// is ErrUnreadable; other errors may pass.
func ReadParcel(r io.Reader, newBody func() (BodyWriter, error)) ([]*Item, error) {
	p := &parcelReader{in: bufio.NewReaderSize(r, 64<<10), sum: crc32.New(castagnoli), newBody: newBody}
	version := make([]byte, len(parcelVersion))
	if err := p.fill(version); err != nil {
		return nil, err
	}
	if string(version) != parcelVersion {
		return nil, fmt.Errorf("%w: %q is not what this program writes", ErrUnreadable, version)
	}
	for {
		ended, err := p.section()
		if err != nil || ended {
			return p.items, err
		}
	}
}

type parcelReader struct {
	in      *bufio.Reader
	sum     hash.Hash32
	newBody func() (BodyWriter, error)
	named   contents
	items   []*Item
}

// fill reads exactly len(b) octets.
func (p *parcelReader) fill(b []byte) error {
	if _, err := io.ReadFull(p.in, b); err != nil {
		return cutShort(err)
	}
	_, _ = p.sum.Write(b)
	return nil
}

// cutShort takes the end of the octets for damage; other errors are the disk's.
func cutShort(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends too early", ErrUnreadable)
	}
	return fmt.Errorf("reading items: %w", err)
}

// section reads the next section; ended tells that it was the last.
func (p *parcelReader) section() (ended bool, err error) {
	var head [9]byte
	before := p.sum.Sum32()
	if err := p.fill(head[:]); err != nil {
		return false, err
	}
	size := binary.BigEndian.Uint64(head[1:])
	if head[0] == sectionBody {
		return false, p.body(size)
	}
	octets, err := p.octets(size)
	if err != nil {
		return false, err
	}
	switch head[0] {
	case sectionHeader:
		p.name(content{header: octets})
	case sectionItem:
		return false, p.item(octets)
	case sectionEnd:
		return true, p.end(octets, before)
	default:
		return false, fmt.Errorf("%w: section %q", ErrUnreadable, head[0])
	}
	return false, nil
}

// octets reads a section into memory, which grows only with what is really there.
func (p *parcelReader) octets(size uint64) ([]byte, error) {
	if size > maxParcelRecord {
		return nil, fmt.Errorf("%w: a section of %d octets", ErrUnreadable, size)
	}
	octets, err := io.ReadAll(io.LimitReader(p.in, int64(size)))
	if err != nil {
		return nil, cutShort(err)
	}
	if uint64(len(octets)) < size {
		return nil, cutShort(io.EOF)
	}
	_, _ = p.sum.Write(octets)
	return octets, nil
}

func (p *parcelReader) name(c content) {
	c.id = contentID(len(p.named) + 1)
	p.named = append(p.named, c)
}

func (p *parcelReader) body(size uint64) error {
	if size > math.MaxInt64 {
		return fmt.Errorf("%w: a body of %d octets", ErrUnreadable, size)
	}
	w, err := p.newBody()
	if err != nil {
		return err
	}
	defer w.Abort()
	n, err := io.Copy(io.MultiWriter(w, p.sum), io.LimitReader(p.in, int64(size)))
	switch {
	case err != nil:
		return fmt.Errorf("reading a body: %w", err)
	case n < int64(size):
		return cutShort(io.EOF)
	}
	b, err := w.Finish()
	if err != nil {
		return err
	}
	p.name(content{body: b})
	return nil
}

func (p *parcelReader) item(octets []byte) error {
	for i, c := range octets {
		if c == 0 && i > 0 {
			return p.decode(string(octets[:i]), octets[i+1:])
		}
	}
	return fmt.Errorf("%w: an item without id", ErrUnreadable)
}

func (p *parcelReader) decode(id string, record []byte) error {
	item, h, err := decodeItem(id, record)
	if err != nil {
		return unreadable(id, err)
	}
	missing := false
	h.versions.distinct(func(id contentID) { missing = missing || id > contentID(len(p.named)) })
	if missing {
		return fmt.Errorf("%w: item %s names content that is not there", ErrUnreadable, id)
	}
	p.named.attach(item.Mail, h.versions)
	p.items = append(p.items, item)
	return nil
}

func (p *parcelReader) end(octets []byte, want uint32) error {
	if len(octets) != crc32.Size || binary.BigEndian.Uint32(octets) != want {
		return fmt.Errorf("%w: the checksum is wrong", ErrUnreadable)
	}
	return nil
}

// Adopt takes the items of a parcel that another process has written and promised to its clients. They are in the
// store when it calls taken, which must remove the parcel for good: only then are they scheduled, so that an item
// cannot have left the store while its parcel is still there to be adopted once more. An id that is in the store is
// left as it is.
func (q *Queue) Adopt(parcel io.Reader, taken func() error) error {
	items, err := ReadParcel(parcel, q.store.NewBody)
	if err != nil {
		return err
	}
	q.complete(items)
	if err := q.store.Commit(items...); err != nil {
		return err
	}
	if err := taken(); err != nil {
		return err
	}
	added := entriesOf(items)
	q.tell(func() { q.add(added) })
	return nil
}

// NewLooseBody starts a body that belongs to no store: it is in memory, and from 64 KiB on in a file in dir, which has
// no name from its first moment and goes with its last reader.
func NewLooseBody(dir string) BodyWriter { return &bodyWriter{loose: dir} }
