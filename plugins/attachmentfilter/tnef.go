package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"unicode/utf16"
)

// errTNEF is for TNEF that ends too early.
var errTNEF = errors.New("TNEF is cut off")

// Attributes of TNEF ([MS-OXTNEF] section 2.1.3.3).
const (
	attachRendData = 0x9002 // begins an attachment
	attachTitle    = 0x8010 // its short name
	attachData     = 0x800f // its content
	attachProps    = 0x9005 // its MAPI properties
)

// tnefFile is an attachment of TNEF.
type tnefFile struct {
	names []string
	data  [][]byte // what may be its content
}

// openTNEF looks at the attachments in a winmail.dat.
func openTNEF(s *scan, file string, r *bufio.Reader, depth int) error {
	data, err := s.all(r)
	if err != nil {
		return err
	}
	files, broken := parseTNEF(data)
	for _, f := range files {
		if err := s.tnefMember(file, f, depth); err != nil {
			return err
		}
	}
	return broken
}

// tnefMember judges an attachment by both of its names.
func (s *scan) tnefMember(archive string, f *tnefFile, depth int) error {
	if len(f.names) == 0 {
		f.names = []string{"attachment"}
	}
	for _, name := range f.names[1:] {
		if s.judge(archive+"/"+name, []string{baseOf(name)}, nil) {
			return nil
		}
	}
	if len(f.data) == 0 {
		return s.member(archive, f.names[0], depth, nil)
	}
	for _, data := range f.data {
		if err := s.member(archive, f.names[0], depth, func() (io.Reader, error) { return bytes.NewReader(data), nil }); err != nil {
			return err
		}
	}
	return nil
}

// parseTNEF finds the attachments, up to where it is cut off.
func parseTNEF(data []byte) (files []*tnefFile, err error) {
	const header, attribute, checksum = 6, 9, 2
	var current *tnefFile
	at := header
	for at+attribute <= len(data) {
		tag := binary.LittleEndian.Uint16(data[at+1:])
		length := int64(binary.LittleEndian.Uint32(data[at+5:]))
		start := int64(at + attribute)
		if start+length+checksum > int64(len(data)) {
			return files, errTNEF
		}
		value := data[start : start+length]
		at = int(start + length + checksum)
		if tag == attachRendData || current == nil && (tag == attachTitle || tag == attachData || tag == attachProps) {
			current = &tnefFile{}
			files = append(files, current)
		}
		current.take(tag, value)
	}
	if at != len(data) {
		return files, errTNEF
	}
	return files, nil
}

func (f *tnefFile) take(tag uint16, value []byte) {
	switch tag {
	case attachTitle:
		f.names = append(f.names, strings.TrimRight(string(value), "\x00"))
	case attachData:
		f.data = append(f.data, value)
	case attachProps:
		f.takeProperties(value)
	}
}

// MAPI properties that hold names of an attachment, or its content.
const (
	propData         = 0x3701
	propFilename     = 0x3704
	propLongFilename = 0x3707
	propPathname     = 0x3708
	propDisplayName  = 0x3001
)

// takeProperties finds names and content in a list of MAPI properties ([MS-OXTNEF] section 2.1.3.4), up to a type that is
// not known.
func (f *tnefFile) takeProperties(b []byte) {
	r := &littleEndian{b: b}
	for n := r.u32(); n > 0 && !r.short; n-- {
		typ, id := r.u16(), r.u16()
		if id >= 0x8000 {
			r.skipName()
		}
		for _, v := range r.property(typ) {
			f.takeProperty(typ, id, v)
		}
	}
}

func (f *tnefFile) takeProperty(typ, id uint16, v []byte) {
	switch id {
	case propFilename, propLongFilename, propPathname, propDisplayName:
		f.names = append(f.names, textOf(typ, v))
	case propData:
		if typ == typeObject && len(v) > 16 { // the id of an interface, then a message as TNEF or a compound file
			v = v[16:]
		}
		f.data = append(f.data, v)
	}
}

// Types of MAPI properties.
const (
	typeMulti   = 0x1000
	typeObject  = 0x000d
	typeString8 = 0x001e
	typeUnicode = 0x001f
)

func textOf(typ uint16, v []byte) string {
	if typ&^typeMulti == typeUnicode {
		return utf16Text(v)
	}
	return strings.TrimRight(string(v), "\x00")
}

// utf16Text reads little-endian UTF-16 up to a NUL.
func utf16Text(v []byte) string {
	units := make([]uint16, 0, len(v)/2)
	for ; len(v) >= 2; v = v[2:] {
		u := binary.LittleEndian.Uint16(v)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}

// littleEndian reads numbers and remembers that there were too few octets.
type littleEndian struct {
	b     []byte
	short bool
}

func (r *littleEndian) take(n int64) []byte {
	if r.short || n < 0 || n > int64(len(r.b)) {
		r.short = true
		return nil
	}
	taken := r.b[:n]
	r.b = r.b[n:]
	return taken
}

func (r *littleEndian) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *littleEndian) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// skipName of a named property: a GUID, then a number or a text.
func (r *littleEndian) skipName() {
	r.take(16)
	if r.u32() == 0 {
		r.take(4)
		return
	}
	n := int64(r.u32())
	r.take(n + (4-n%4)%4)
}

// property reads the values of one property.
func (r *littleEndian) property(typ uint16) (values [][]byte) {
	count := uint32(1)
	if typ&typeMulti != 0 {
		count = r.u32()
	}
	for ; count > 0 && !r.short; count-- {
		switch typ &^ typeMulti {
		case 0x02, 0x03, 0x04, 0x0a, 0x0b: // short numbers are padded to four octets
			r.take(4)
		case 0x05, 0x06, 0x07, 0x14, 0x40:
			r.take(8)
		case 0x48:
			r.take(16)
		case typeString8, typeUnicode, typeObject, 0x0102:
			values = append(values, r.sized(typ))
		default:
			r.short = true
		}
	}
	return values
}

// sized reads a value with its length before it; where it is not repeated, the number of values too.
func (r *littleEndian) sized(typ uint16) []byte {
	if typ&typeMulti == 0 {
		r.u32()
	}
	n := int64(r.u32())
	v := r.take(n)
	r.take((4 - n%4) % 4)
	return v
}
