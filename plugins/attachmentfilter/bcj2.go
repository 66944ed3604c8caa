package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

// bcj2 undoes the filter that 7-Zip puts before the packing of programs for x86: it takes the targets of calls and jumps
// out of the code, as absolute addresses in two streams of their own. A range coder says after which instructions one is
// missing.
type bcj2 struct {
	main, call, jump, rc *bufio.Reader

	probs     [2 + 256]uint16 // of a missing target: of conditional jumps, of E9, of E8 by the octet before it
	rng, code uint32
	before    byte   // the octet before
	at        uint32 // octets written, modulo 2^32
	pending   []byte // of a target
	buffer    [4]byte
}

// Figures of the range coder.
const (
	bcj2Bits  = 11
	bcj2Shift = 5
	bcj2Top   = 1 << 24
)

func newBCJ2(inputs []io.Reader) (io.Reader, error) {
	if len(inputs) != 4 {
		return nil, err7z
	}
	b := &bcj2{rng: 0xffffffff}
	for i, to := range []**bufio.Reader{&b.main, &b.call, &b.jump, &b.rc} {
		*to = bufio.NewReaderSize(inputs[i], 4<<10)
	}
	for i := range b.probs {
		b.probs[i] = 1 << (bcj2Bits - 1)
	}
	for range 5 {
		octet, err := b.rc.ReadByte()
		if err != nil {
			return nil, noEOF(err)
		}
		b.code = b.code<<8 | uint32(octet)
	}
	return b, nil
}

// Read implements io.Reader.
func (b *bcj2) Read(p []byte) (n int, err error) {
	for n < len(p) {
		octet, err := b.next()
		if err != nil {
			if n > 0 && errors.Is(err, io.EOF) {
				return n, nil
			}
			return n, err
		}
		p[n] = octet
		n++
	}
	return n, nil
}

func (b *bcj2) next() (byte, error) {
	if len(b.pending) > 0 {
		octet := b.pending[0]
		b.pending = b.pending[1:]
		return octet, nil
	}
	octet, err := b.main.ReadByte()
	if err != nil {
		return 0, err
	}
	b.at++
	before := b.before
	b.before = octet
	if octet&0xfe != 0xe8 && (before != 0x0f || octet&0xf0 != 0x80) {
		return octet, nil
	}
	missing, err := b.bit(b.prob(before, octet))
	if err != nil || !missing {
		return octet, err
	}
	return octet, b.target(octet == 0xe8)
}

func (b *bcj2) prob(before, octet byte) *uint16 {
	switch octet {
	case 0xe8:
		return &b.probs[2+int(before)]
	case 0xe9:
		return &b.probs[1]
	}
	return &b.probs[0]
}

// bit of the range coder.
func (b *bcj2) bit(prob *uint16) (set bool, err error) {
	bound := b.rng >> bcj2Bits * uint32(*prob)
	if b.code < bound {
		b.rng = bound
		*prob += (1<<bcj2Bits - *prob) >> bcj2Shift
	} else {
		set = true
		b.rng, b.code = b.rng-bound, b.code-bound
		*prob -= *prob >> bcj2Shift
	}
	if b.rng < bcj2Top {
		octet, err := b.rc.ReadByte()
		if err != nil {
			return false, noEOF(err)
		}
		b.rng, b.code = b.rng<<8, b.code<<8|uint32(octet)
	}
	return set, nil
}

// target writes the one that is missing: from where the instruction ends.
func (b *bcj2) target(call bool) error {
	in := b.jump
	if call {
		in = b.call
	}
	if _, err := io.ReadFull(in, b.buffer[:]); err != nil {
		return noEOF(err)
	}
	b.at += 4
	target := binary.BigEndian.Uint32(b.buffer[:]) - b.at
	binary.LittleEndian.PutUint32(b.buffer[:], target)
	b.before, b.pending = byte(target>>24), b.buffer[:]
	return nil
}
