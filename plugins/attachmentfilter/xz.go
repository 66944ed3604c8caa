package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// The container of xz is read here, since its library gives a block the dictionary that its header asks for, up to
// 4 GiB. Checksums are not looked at: what a program might unpack is what counts.

var errXZ = errors.New("xz: cannot be read")

func openXZ(s *scan, file string, r *bufio.Reader, depth int) error {
	return s.single(file, &xzReader{in: &counted{r: r}}, depth)
}

// xzReader unpacks the blocks of all streams, one after the other.
type xzReader struct {
	in    *counted
	check int64     // octets of checksum after each block
	block io.Reader // nil: between blocks
	start int64     // of the block
	known bool      // the header of a stream was read
}

func (x *xzReader) Read(p []byte) (int, error) {
	for {
		if x.block == nil {
			if err := x.next(); err != nil {
				return 0, err
			}
		}
		n, err := x.block.Read(p)
		if err == nil || n > 0 || !errors.Is(err, io.EOF) {
			return n, err
		}
		x.block = nil
		if err := x.in.skip((4 - (x.in.n-x.start)%4) % 4); err != nil {
			return 0, err
		}
		if err := x.in.skip(x.check); err != nil {
			return 0, err
		}
	}
}

// next block. At the end of a stream another one may follow.
func (x *xzReader) next() error {
	for {
		if !x.known {
			if err := x.streamHeader(); err != nil {
				return err
			}
		}
		x.start = x.in.n
		size, err := x.in.ReadByte()
		if err != nil {
			return noEOF(err)
		}
		if size != 0 {
			return x.blockHeader(int(size)*4 + 4)
		}
		if err := x.index(); err != nil {
			return err
		}
		x.known = false
	}
}

// streamHeader reads the header of a stream, after padding of zeros. io.EOF means that no stream follows.
func (x *xzReader) streamHeader() error {
	const magic = "\xfd7zXZ\x00"
	var header [12]byte
	for {
		if _, err := io.ReadFull(x.in, header[:4]); err != nil {
			return err // io.EOF where the last stream ended
		}
		if binary.LittleEndian.Uint32(header[:]) != 0 {
			break
		}
	}
	if _, err := io.ReadFull(x.in, header[4:]); err != nil {
		return noEOF(err)
	}
	if string(header[:6]) != magic {
		return errXZ
	}
	sizes := [16]int64{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}
	x.check, x.known = sizes[header[7]&0x0f], true
	return nil
}

// blockHeader reads the rest of a header of that size and makes the reader of the block.
func (x *xzReader) blockHeader(size int) error {
	header := make([]byte, size-1)
	if _, err := io.ReadFull(x.in, header); err != nil {
		return noEOF(err)
	}
	r := &vlis{b: header[1:]}
	for _, flag := range []byte{0x40, 0x80} { // packed size, unpacked size
		if header[0]&flag != 0 {
			r.next()
		}
	}
	for range header[0] & 3 { // filters before the last one change addresses of machine code
		r.next()
		r.skip(r.next())
	}
	const lzma2 = 0x21
	if r.next() != lzma2 || r.next() != 1 || len(r.b) == 0 || r.b[0] > 40 {
		return errXZ
	}
	dictionary := int64(2|r.b[0]&1) << (r.b[0]/2 + 11)
	if dictionary > maxDictionary {
		return fmt.Errorf("xz: dictionary of %d octets, at most %d", dictionary, maxDictionary)
	}
	var err error
	x.block, err = lzma.Reader2Config{DictCap: int(dictionary)}.NewReader2(x.in)
	return err
}

// index and footer of a stream are passed over.
func (x *xzReader) index() error {
	records, err := x.in.vli()
	for ; err == nil && records > 0; records-- {
		if _, err = x.in.vli(); err == nil {
			_, err = x.in.vli()
		}
	}
	if err != nil {
		return err
	}
	const checksum, footer = 4, 12
	return x.in.skip((4-(x.in.n-x.start)%4)%4 + checksum + footer)
}

// counted is a reader that knows how much it read.
type counted struct {
	r *bufio.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// ReadByte implements io.ByteReader.
func (c *counted) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

func (c *counted) skip(n int64) error {
	_, err := io.CopyN(io.Discard, c, n)
	return noEOF(err)
}

// vli is a number of up to nine octets, the low ones first.
func (c *counted) vli() (value uint64, err error) {
	for i := range 9 {
		b, err := c.ReadByte()
		if err != nil {
			return 0, noEOF(err)
		}
		value |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			return value, nil
		}
	}
	return 0, errXZ
}

// noEOF: an end where none should be.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// vlis are numbers in memory. What is not there reads as the largest, which is nothing that is known.
type vlis struct{ b []byte }

func (v *vlis) next() (value uint64) {
	for i, b := range v.b[:min(9, len(v.b))] {
		value |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			v.b = v.b[i+1:]
			return value
		}
	}
	v.b = nil
	return ^uint64(0)
}

func (v *vlis) skip(n uint64) { v.b = v.b[min(n, uint64(len(v.b))):] }
