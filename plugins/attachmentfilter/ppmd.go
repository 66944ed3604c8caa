package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/stangelandcl/ppmd"
)

// maxModels is how many decoders a message may need that take as much memory as the archive says, whatever is in it.
const maxModels = 16

// model counts such a decoder.
func (s *scan) model() error {
	if s.models++; s.models > maxModels {
		return fmt.Errorf("%w: more than %d large decoders", errLimit, maxModels)
	}
	return nil
}

// ppmdReader reads what PPMd has packed. The library is not made for hostile input: a model that does not add up makes it
// panic, which is an error here.
type ppmdReader struct{ r ppmd.Reader }

func (s *scan) newPPMd(props []byte, size uint64, in io.Reader) (r io.Reader, err error) {
	defer caught("ppmd", &err)
	if len(props) != 5 || size > math.MaxInt64 {
		return nil, err7z
	}
	memory := binary.LittleEndian.Uint32(props[1:])
	if memory > maxDictionary {
		return nil, errUnknown7z
	}
	if err := s.model(); err != nil {
		return nil, err
	}
	decoder, err := ppmd.NewH7zReader(in, int(props[0]), int(memory), int(size))
	return &ppmdReader{decoder}, err
}

// Read implements io.Reader.
func (p *ppmdReader) Read(b []byte) (n int, err error) {
	defer caught("ppmd", &err)
	return p.r.Read(b)
}

// caught turns a panic of a library that reads what an attacker wrote into an error. It is deferred.
func caught(library string, err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%s: %v", library, p)
	}
}
