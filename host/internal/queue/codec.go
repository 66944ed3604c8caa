package queue

import (
	"encoding/binary"
	"errors"
	"time"
)

// The disk format of records: a version byte, then fields. A field is a key (tag<<1 | kind, as uvarint) and a
// value: a uvarint (kind 0) or a length and octets (kind 1). Fields with their zero value are left out, unknown
// ones are skipped, tags are never given out anew. Octets stay what they are, since mail is not UTF-8: that, and
// a seventh of the CPU (BenchmarkRecord), is why records are not JSON.

const (
	kindNumber = 0
	kindOctets = 1
	// lengthRoom is what begin leaves for the length of a nested record: a uvarint padded to 4 octets.
	lengthRoom = 4
	maxNested  = 1<<28 - 1
)

var errMalformed = errors.New("malformed record")

// encoder appends fields to a record.
type encoder struct{ b []byte }

func (e *encoder) number(tag int, v uint64) {
	if v != 0 {
		e.b = binary.AppendUvarint(e.b, uint64(tag)<<1|kindNumber)
		e.b = binary.AppendUvarint(e.b, v)
	}
}

func (e *encoder) flag(tag int, v bool) {
	if v {
		e.number(tag, 1)
	}
}

func (e *encoder) text(tag int, s string) {
	if s != "" {
		e.element(tag, s)
	}
}

// element writes s even when it is empty, for lists.
func (e *encoder) element(tag int, s string) {
	e.b = binary.AppendUvarint(e.b, uint64(tag)<<1|kindOctets)
	e.b = binary.AppendUvarint(e.b, uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) octets(tag int, p []byte) {
	if len(p) > 0 {
		e.b = binary.AppendUvarint(e.b, uint64(tag)<<1|kindOctets)
		e.b = binary.AppendUvarint(e.b, uint64(len(p)))
		e.b = append(e.b, p...)
	}
}

// time writes nanoseconds since 1970; the zero time is left out.
func (e *encoder) time(tag int, t time.Time) {
	if !t.IsZero() {
		e.b = binary.AppendUvarint(e.b, uint64(tag)<<1|kindNumber)
		e.b = binary.AppendUvarint(e.b, zigzag(t.UnixNano()))
	}
}

// begin starts a nested record, which end closes.
func (e *encoder) begin(tag int) (mark int) {
	e.b = binary.AppendUvarint(e.b, uint64(tag)<<1|kindOctets)
	e.b = append(e.b, 0, 0, 0, 0)
	return len(e.b)
}

// end fills in the length that begin has left room for. No nested record comes near maxNested: SMTP's limits on
// commands, stamps and recipients keep all of them below a few MB.
func (e *encoder) end(mark int) {
	n := len(e.b) - mark
	p := e.b[mark-lengthRoom : mark]
	for i := range p {
		p[i] = byte(n>>(7*i))&0x7f | 0x80
	}
	p[lengthRoom-1] &^= 0x80
}

func zigzag(v int64) uint64   { return uint64(v<<1) ^ uint64(v>>63) }
func unzigzag(v uint64) int64 { return int64(v>>1) ^ -int64(v&1) }

// decoder reads fields one after another. After the last, or at the first malformed one, next answers false.
type decoder struct {
	rest  []byte
	tag   int
	value uint64 // of a number
	data  []byte // of octets; part of the record
	err   error
}

func (d *decoder) next() bool {
	if d.err != nil || len(d.rest) == 0 {
		return false
	}
	key, v := d.uvarint(), d.uvarint()
	d.tag, d.value, d.data = int(key>>1), v, nil
	if d.err == nil && key&1 == kindOctets {
		d.take(v)
	}
	return d.err == nil
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.err, d.rest = errMalformed, nil
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) take(n uint64) {
	if n > uint64(len(d.rest)) {
		d.err, d.rest = errMalformed, nil
		return
	}
	d.data, d.rest = d.rest[:n:n], d.rest[n:]
}

func (d *decoder) text() string { return string(d.data) }
func (d *decoder) flag() bool   { return d.value != 0 }
func (d *decoder) time() time.Time {
	return time.Unix(0, unzigzag(d.value)).UTC()
}

// nested reads the fields of a nested record with field, called once for each.
func (d *decoder) nested(field func(*decoder)) {
	inner := decoder{rest: d.data}
	for inner.next() {
		field(&inner)
	}
	if inner.err != nil {
		d.err = inner.err
	}
}
