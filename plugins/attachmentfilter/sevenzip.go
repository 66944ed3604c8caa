package main

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/ulikunitz/xz/lzma"
)

// The container of 7z is read here: the well-kept library for it takes the number of files from the archive and
// allocates as many entries, so an archive of a hundred octets ends the process. The decoders are libraries.

var (
	err7z        = errors.New("7z: header cannot be read")
	errUnknown7z = errors.New("7z: packed in a way that is not known")
)

// max7zHeader is how large a header may be, packed or unpacked.
const max7zHeader = 4 << 20

// open7z looks into a 7z archive.
func open7z(s *scan, file string, r *bufio.Reader, depth int) error {
	data, err := s.all(r)
	if err != nil {
		return err
	}
	a := &archive7z{scan: s, data: data}
	if err := a.open(); err != nil {
		return err
	}
	return a.members(file, depth)
}

// archive7z is an archive with the directory that was found in it.
type archive7z struct {
	*scan
	data  []byte
	main  streams7z
	names []string
	empty []bool // without content
}

// streams7z are packed streams and how they are unpacked.
type streams7z struct {
	packPos   uint64
	packSizes []uint64
	folders   []folder7z
}

// folder7z is a chain of coders that unpacks some files at a time.
type folder7z struct {
	coders []coder7z
	binds  []bind7z
	packed []uint64 // inputs that packed streams go to
	sizes  []uint64 // of what each coder makes
	files  []uint64 // sizes of the files in it
	digest bool     // its checksum is known, so that of its only file is not listed again
}

type coder7z struct {
	id      string
	props   []byte
	in, out uint64
}

type bind7z struct{ in, out uint64 }

// open reads the directory, which may be packed itself.
func (a *archive7z) open() error {
	const signature = 32
	if len(a.data) < signature {
		return err7z
	}
	offset, size := binary.LittleEndian.Uint64(a.data[12:]), binary.LittleEndian.Uint64(a.data[20:])
	if offset > uint64(len(a.data)-signature) || size > uint64(len(a.data)-signature)-offset || size > max7zHeader {
		return err7z
	}
	if size == 0 {
		return nil // an archive of no files
	}
	header := a.data[signature+offset:][:size]
	for range 4 {
		r := &reader7z{b: header}
		switch r.byte() {
		case 0x01:
			return a.directory(r)
		case 0x17:
			next, err := a.unpackHeader(r)
			if err != nil {
				return err
			}
			header = next
		default:
			return err7z
		}
	}
	return err7z
}

func (a *archive7z) unpackHeader(r *reader7z) ([]byte, error) {
	streams := r.streams()
	if r.bad || len(streams.folders) == 0 {
		return nil, err7z
	}
	in, err := a.reader(&streams, 0)
	if err != nil {
		return nil, err
	}
	header, err := io.ReadAll(io.LimitReader(&meter{a.scan, in}, max7zHeader+1))
	if err == nil && len(header) > max7zHeader {
		err = fmt.Errorf("%w: 7z header of more than %d octets", errLimit, max7zHeader)
	}
	return header, err
}

// directory reads streams and names.
func (a *archive7z) directory(r *reader7z) error {
	for !r.bad {
		switch r.byte() {
		case 0x02:
			for r.byte() != 0 { // properties of the archive
				r.take(r.number())
			}
		case 0x04:
			a.main = r.streams()
		case 0x05:
			return a.fileList(r)
		case 0x00:
			return nil
		default:
			return err7z
		}
	}
	return err7z
}

func (a *archive7z) fileList(r *reader7z) error {
	count := r.number()
	if count > uint64(a.MaxFiles) {
		return fmt.Errorf("%w: %d files in a 7z archive", errLimit, count)
	}
	a.empty = make([]bool, count)
	for !r.bad {
		kind := r.byte()
		if kind == 0 {
			break
		}
		property := &reader7z{b: r.take(r.number())}
		switch kind {
		case 0x0e:
			a.empty = property.bits(count)
		case 0x11:
			a.names = property.names(count)
		}
	}
	if r.bad || len(a.empty) != int(count) {
		return err7z
	}
	return nil
}

// members judges the files, in the order in which they are packed.
func (a *archive7z) members(file string, depth int) error {
	folder, index := 0, 0
	var in io.Reader
	var left uint64 // of the file before, still to be read
	for i, name := range a.names {
		for folder < len(a.main.folders) && index >= len(a.main.folders[folder].files) {
			folder, index, in, left = folder+1, 0, nil, 0
		}
		if a.empty[i] || folder >= len(a.main.folders) {
			if err := a.member(file, name, depth, nil); err != nil {
				return err
			}
			continue
		}
		size := a.main.folders[folder].files[index]
		index++
		var content *io.LimitedReader
		err := a.member(file, name, depth, func() (r io.Reader, err error) {
			if in == nil {
				if in, err = a.reader(&a.main, folder); err != nil {
					return nil, err
				}
			}
			if _, err := io.CopyN(io.Discard, &meter{a.scan, in}, int64(left)); err != nil {
				return nil, err
			}
			content = &io.LimitedReader{R: in, N: int64(size)}
			return content, nil
		})
		if err != nil {
			return err
		}
		if content != nil {
			left = uint64(content.N)
		} else {
			left += size
		}
	}
	return nil
}

// reader of what a folder holds.
func (a *archive7z) reader(streams *streams7z, index int) (io.Reader, error) {
	first := 0
	for _, f := range streams.folders[:index] {
		first += len(f.packed)
	}
	f := &streams.folders[index]
	for i, c := range f.coders {
		switch {
		case c.id == "\x06\xf1\x07\x01":
			return nil, errEncrypted
		case c.out != 1 || c.in != 1 && (c.id != idBCJ2 || c.in != 4):
			return nil, errUnknown7z
		}
		if _, bound := f.next(uint64(i)); !bound {
			return a.output(streams, &unpacking7z{folder: f, first: first}, i)
		}
	}
	return nil, err7z
}

// idBCJ2 is the one coder with more than one input.
const idBCJ2 = "\x03\x03\x01\x1b"

// unpacking7z is the way through the coders of a folder.
type unpacking7z struct {
	folder *folder7z
	first  int // packed stream of the folder
	steps  int
}

// output of a coder, by way of those that its inputs come from.
func (a *archive7z) output(streams *streams7z, u *unpacking7z, coder int) (io.Reader, error) {
	if u.steps++; u.steps > len(u.folder.coders) || coder >= len(u.folder.coders) || coder >= len(u.folder.sizes) {
		return nil, err7z // in a circle, or nowhere
	}
	c, at := &u.folder.coders[coder], uint64(0)
	for _, before := range u.folder.coders[:coder] {
		at += before.in
	}
	inputs := make([]io.Reader, c.in)
	for i := range inputs {
		var err error
		if inputs[i], err = a.input(streams, u, at+uint64(i)); err != nil {
			return nil, err
		}
	}
	if c.id == idBCJ2 {
		return newBCJ2(inputs)
	}
	return a.decoder7z(c, u.folder.sizes[coder], inputs[0])
}

// input of that number: the output of another coder, or a packed stream.
func (a *archive7z) input(streams *streams7z, u *unpacking7z, number uint64) (io.Reader, error) {
	for _, b := range u.folder.binds {
		if b.in == number {
			if b.out >= uint64(len(u.folder.coders)) {
				return nil, err7z
			}
			return a.output(streams, u, int(b.out))
		}
	}
	i := slices.Index(u.folder.packed, number)
	if i < 0 || u.first+i >= len(streams.packSizes) {
		return nil, err7z
	}
	return a.packed(streams, u.first+i)
}

// next coder, that the output of one goes to.
func (f *folder7z) next(out uint64) (coder uint64, bound bool) {
	for _, b := range f.binds {
		if b.out == out {
			return b.in, true
		}
	}
	return 0, false
}

// packed stream of that index.
func (a *archive7z) packed(streams *streams7z, index int) (io.Reader, error) {
	at := 32 + streams.packPos
	for _, n := range streams.packSizes[:index] {
		if n > uint64(len(a.data)) {
			return nil, err7z
		}
		at += n
	}
	size := streams.packSizes[index]
	if at > uint64(len(a.data)) || size > uint64(len(a.data))-at {
		return nil, err7z
	}
	return bytes.NewReader(a.data[at : at+size]), nil
}

// decoder7z undoes one coder. The filters for machine code change addresses in it alone, which matters little to
// what is looked for, so they are passed over.
func (a *archive7z) decoder7z(c *coder7z, size uint64, in io.Reader) (io.Reader, error) {
	switch c.id {
	case "\x00", "\x03\x03\x01\x03", "\x03\x03\x02\x05", "\x03\x03\x05\x01", "\x03\x03\x07\x01", "\x03\x03\x08\x05", "\x0a", "\x0b":
		return in, nil
	case "\x03":
		return newDelta(c.props, in)
	case "\x04\xf7\x11\x01":
		return newZstd(in)
	case "\x03\x01\x01":
		header := binary.LittleEndian.AppendUint64(bytes.Clone(c.props), size)
		if len(header) != 13 {
			return nil, err7z
		}
		return lzma.ReaderConfig{DictCap: maxDictionary}.NewReader(io.MultiReader(bytes.NewReader(header), in))
	case "\x21":
		if len(c.props) != 1 || c.props[0] > 40 {
			return nil, err7z
		}
		dictionary := uint64(2|c.props[0]&1) << (c.props[0]/2 + 11)
		dictionary = min(dictionary, max(size, lzma.MinDictCap)) // no more than there is to unpack
		if dictionary > maxDictionary {
			return nil, errUnknown7z
		}
		return lzma.Reader2Config{DictCap: int(dictionary)}.NewReader2(in)
	case "\x03\x04\x01":
		return a.newPPMd(c.props, size, in)
	case "\x04\x01\x08":
		return flate.NewReader(in), nil
	case "\x04\x02\x02":
		return bzip2.NewReader(in), nil
	}
	return nil, errUnknown7z
}

// reader7z reads the directory and remembers that something was wrong.
type reader7z struct {
	b   []byte
	bad bool
}

func (r *reader7z) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	taken := r.b[:n]
	r.b = r.b[n:]
	return taken
}

func (r *reader7z) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

// number of one to nine octets: the leading ones of the first say how many follow.
func (r *reader7z) number() uint64 {
	first := r.byte()
	var value uint64
	for i, mask := 0, byte(0x80); i < 8; i, mask = i+1, mask>>1 {
		if first&mask == 0 {
			return value | uint64(first&(mask-1))<<(8*i)
		}
		value |= uint64(r.byte()) << (8 * i)
	}
	return value
}

// count is a number of things that take at least one octet each.
func (r *reader7z) count() uint64 {
	n := r.number()
	if n > uint64(len(r.b)) {
		r.bad = true
		return 0
	}
	return n
}

func (r *reader7z) numbers(n uint64) []uint64 {
	var list []uint64
	for ; n > 0 && !r.bad; n-- {
		list = append(list, r.number())
	}
	return list
}

func (r *reader7z) bits(n uint64) []bool {
	b := r.take((n + 7) / 8)
	if b == nil {
		return nil
	}
	list := make([]bool, n)
	for i := range list {
		list[i] = b[i/8]&(0x80>>(i%8)) != 0
	}
	return list
}

// skipDigests of n things. It answers with those that have one.
func (r *reader7z) skipDigests(n uint64) (defined []bool) {
	if r.byte() == 0 {
		defined = r.bits(n)
	} else if n <= uint64(len(r.b)) {
		defined = slices.Repeat([]bool{true}, int(n))
	} else {
		r.bad = true
	}
	for _, there := range defined {
		if there {
			r.take(4)
		}
	}
	return defined
}

func (r *reader7z) names(n uint64) []string {
	if r.byte() != 0 { // names in a stream of their own: never written
		r.bad = true
		return nil
	}
	var list []string
	for ; n > 0 && len(r.b) >= 2; n-- {
		end := 0
		for end+1 < len(r.b) && (r.b[end] != 0 || r.b[end+1] != 0) {
			end += 2
		}
		list = append(list, utf16Text(r.b[:min(end, len(r.b))]))
		r.b = r.b[min(end+2, len(r.b)):]
	}
	return list
}

// streams reads StreamsInfo.
func (r *reader7z) streams() (s streams7z) {
	for !r.bad {
		switch r.byte() {
		case 0x00:
			for i := range s.folders {
				if s.folders[i].files == nil {
					s.folders[i].files = s.folders[i].whole()
				}
			}
			return s
		case 0x06:
			r.packInfo(&s)
		case 0x07:
			r.folderInfo(&s)
		case 0x08:
			r.fileSizes(&s)
		default:
			r.bad = true
		}
	}
	return s
}

func (r *reader7z) packInfo(s *streams7z) {
	s.packPos = r.number()
	n := r.count()
	for !r.bad {
		switch r.byte() {
		case 0x00:
			return
		case 0x09:
			s.packSizes = r.numbers(n)
		case 0x0a:
			r.skipDigests(n)
		default:
			r.bad = true
		}
	}
}

func (r *reader7z) folderInfo(s *streams7z) {
	if r.byte() != 0x0b {
		r.bad = true
	}
	n := r.count()
	if r.byte() != 0 { // folders in a stream of their own: never written
		r.bad = true
	}
	for ; n > 0 && !r.bad; n-- {
		s.folders = append(s.folders, r.folder())
	}
	for !r.bad {
		switch r.byte() {
		case 0x00:
			return
		case 0x0c:
			for i := range s.folders {
				s.folders[i].sizes = r.numbers(uint64(len(s.folders[i].coders)))
			}
		case 0x0a:
			for i, there := range r.skipDigests(uint64(len(s.folders))) {
				s.folders[i].digest = there
			}
		default:
			r.bad = true
		}
	}
}

func (r *reader7z) folder() (f folder7z) {
	const maxCoders = 32
	n := r.count()
	if n == 0 || n > maxCoders {
		r.bad = true
	}
	var in, out uint64
	for ; n > 0 && !r.bad; n-- {
		c := r.coder()
		in, out = in+c.in, out+c.out
		f.coders = append(f.coders, c)
	}
	if r.bad || in > maxCoders || out > maxCoders || out == 0 || in < out-1 {
		r.bad = true
		return f
	}
	for range out - 1 {
		f.binds = append(f.binds, bind7z{r.number(), r.number()})
	}
	if packed := in - (out - 1); packed > 1 {
		f.packed = r.numbers(packed)
	} else {
		f.packed = []uint64{f.unbound(in)}
	}
	return f
}

// unbound is the input that no output goes to.
func (f *folder7z) unbound(inputs uint64) uint64 {
	for i := range inputs {
		taken := false
		for _, b := range f.binds {
			taken = taken || b.in == i
		}
		if !taken {
			return i
		}
	}
	return inputs
}

// whole is the size of all that the folder holds, as of one file: what the coder makes whose output is not bound.
func (f *folder7z) whole() []uint64 {
	for i, size := range f.sizes {
		if _, bound := f.next(uint64(i)); !bound {
			return []uint64{size}
		}
	}
	return nil
}

func (r *reader7z) coder() coder7z {
	flags := r.byte()
	c := coder7z{id: string(r.take(uint64(flags & 0x0f))), in: 1, out: 1}
	if flags&0x10 != 0 {
		c.in, c.out = r.number(), r.number()
	}
	if flags&0x20 != 0 {
		c.props = r.take(r.number())
	}
	if flags&0xc0 != 0 || c.in > 32 || c.out > 32 {
		r.bad = true
	}
	return c
}

// fileSizes reads SubStreamsInfo: how many files each folder holds and how large they are. The size of the last one
// is what the others leave.
func (r *reader7z) fileSizes(s *streams7z) {
	counts := make([]uint64, len(s.folders))
	for i := range counts {
		counts[i] = 1
	}
	kind := r.byte()
	if kind == 0x0d {
		for i := range counts {
			counts[i] = r.number()
		}
		kind = r.byte()
	}
	for i := range s.folders {
		r.sizesOf(&s.folders[i], counts[i], kind == 0x09)
	}
	if kind == 0x09 {
		kind = r.byte()
	}
	if kind == 0x0a {
		r.skipDigests(s.undigested(counts))
		kind = r.byte()
	}
	r.bad = r.bad || kind != 0
}

// undigested is how many files have their checksum listed: all but the only one of a folder that has its own.
func (s *streams7z) undigested(counts []uint64) (n uint64) {
	for i, c := range counts {
		if c != 1 || !s.folders[i].digest {
			n += c
		}
	}
	return n
}

func (r *reader7z) sizesOf(f *folder7z, count uint64, listed bool) {
	f.files = []uint64{}
	whole := f.whole()
	if count == 0 || len(whole) == 0 || r.bad {
		return
	}
	rest := whole[0]
	if count > 1 && !listed || count > uint64(len(r.b))+1 {
		r.bad = true
		return
	}
	for ; count > 1 && !r.bad; count-- {
		n := r.number()
		if n > rest {
			r.bad = true
			return
		}
		f.files, rest = append(f.files, n), rest-n
	}
	f.files = append(f.files, rest)
}
