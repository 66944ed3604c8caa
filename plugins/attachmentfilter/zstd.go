package main

import (
	"bufio"
	"io"

	"github.com/klauspost/compress/zstd"
)

// maxWindow of Zstandard: what RFC 8878 section 3.1.1.1.2 wants of every decoder.
const maxWindow = 8 << 20

// newZstd reads Zstandard, with bounds for what one frame takes of memory, and without goroutines that outlive the scan.
func newZstd(in io.Reader) (io.Reader, error) {
	return zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
}

func openZstd(s *scan, file string, r *bufio.Reader, depth int) error {
	in, err := newZstd(r)
	if err != nil {
		return err
	}
	return s.single(file, in, depth)
}
