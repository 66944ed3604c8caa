package main

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"

	"github.com/nwaples/rardecode/v2"
	"github.com/ulikunitz/xz/lzma"
)

// openFunc looks into a file. depth counts archives in archives.
type openFunc func(s *scan, file string, r *bufio.Reader, depth int) error

// errEncrypted is for archives with a password.
var errEncrypted = errors.New("encrypted")

// maxDictionary is the memory that one decoder may take.
const maxDictionary = 64 << 20

// opener of a file; nil where there is nothing to look into. nests is true where there may be archives in it. A message
// is one by its type or name, all else by its content.
func opener(k kind, mediaType, file string) (open openFunc, nests bool) {
	known := map[kind]openFunc{
		"zip": openZip, "tar": openTar, "gz": openGzip, "bz2": openBzip2, "xz": openXZ, "rar": openRar, "7z": open7z,
		"tnef": openTNEF, "zst": openZstd,
	}
	switch {
	case known[k] != nil:
		return known[k], true
	case k == "" && (strings.EqualFold(path.Ext(file), ".zip") || strings.HasPrefix(mediaType, "application/zip")):
		return openZip, true // unpackers look for its directory at the end, whatever stands in front
	case k == "ole":
		return openOLE, false
	case strings.HasPrefix(mediaType, "message/"), strings.EqualFold(path.Ext(file), ".eml"):
		return openMessage, true
	case strings.HasPrefix(mediaType, "text/plain"):
		return openUU, false
	}
	return nil, false
}

// unopened are kinds of archives that are not looked into.
var unopened = map[kind]bool{
	"cab": true, "arj": true, "lzh": true, "ace": true, "lz4": true, "lz": true, "z": true, "cpio": true, "rpm": true, "deb": true,
	"wim": true, "xar": true, "iso": true, "vhd": true, "vhdx": true, "zoo": true, "hqx": true, "szdd": true,
}

// openMessage looks at the parts of a message that is a file, or that was encoded.
func openMessage(s *scan, file string, r *bufio.Reader, depth int) error {
	data, err := s.all(r)
	if err != nil {
		return err
	}
	header, body := splitMessage(data)
	return s.inner(header, bytes.NewReader(body), file, depth)
}

// splitMessage at its first empty line.
func splitMessage(data []byte) (header, body []byte) {
	crlf, lf := bytes.Index(data, []byte("\r\n\r\n")), bytes.Index(data, []byte("\n\n"))
	switch {
	case crlf >= 0 && (lf < 0 || crlf < lf):
		return data[:crlf+2], data[crlf+4:]
	case lf >= 0:
		return data[:lf+1], data[lf+2:]
	}
	return data, nil
}

// openUU finds files in text that old mail programs put there: "begin 644 name".
func openUU(s *scan, file string, r *bufio.Reader, _ int) error {
	for start := true; ; {
		line, err := r.ReadSlice('\n')
		if name, ok := uuName(line); ok && start {
			if err := s.member(file, name, 0, nil); err != nil {
				return err
			}
		}
		start = !errors.Is(err, bufio.ErrBufferFull)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && start:
			return err
		}
	}
}

// uuName is the name in a line that begins a uuencoded file.
func uuName(line []byte) (name string, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte("begin "))
	if !ok || len(line) > 500 {
		return "", false
	}
	mode, after, _ := bytes.Cut(rest, []byte(" "))
	if len(mode) < 3 || len(mode) > 4 || len(bytes.Trim(mode, "01234567")) > 0 {
		return "", false
	}
	name = strings.TrimSpace(string(after))
	return name, name != ""
}

func openZip(s *scan, file string, r *bufio.Reader, depth int) error {
	data, err := s.all(r)
	if err != nil {
		return err
	}
	// The reader of the standard library has all entries of the directory in memory before it answers.
	if n := bytes.Count(data, []byte("PK\x01\x02")); n > 4*s.MaxFiles {
		return fmt.Errorf("%w: %d files in %s", errLimit, n, file)
	}
	archive, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return errors.Join(err, s.zipLocals(file, data, depth, nil))
	}
	archive.RegisterDecompressor(zipBzip2, zipDecompressor(func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }))
	archive.RegisterDecompressor(zipOldZstd, zipDecompressor(newZstd))
	archive.RegisterDecompressor(zipZstd, zipDecompressor(newZstd))
	listed := map[int64]string{}
	for _, f := range archive.File {
		offset, err := f.DataOffset()
		if err == nil {
			listed[offset] = f.Name
		}
		if err := s.zipMember(file, f, depth); err != nil {
			return err
		}
	}
	return s.zipLocals(file, data, depth, listed)
}

// Methods of zip files beside those of the standard library (APPNOTE.TXT section 4.4.5).
const (
	zipBzip2     = 12
	zipLZMA      = 14
	zipOldZstd   = 20
	zipZstd      = 93
	zipEncrypted = 1 // of the flags
	zipLZMAEnds  = 2 // of the flags: the data says where it ends
)

// openLZMA reads the version and the properties in front, and the data up to their end (APPNOTE.TXT section 5.8).
func (s *scan) openLZMA(f *zip.File) (io.Reader, error) {
	raw, err := f.OpenRaw()
	if err != nil {
		return nil, err
	}
	var head [9]byte
	if _, err := io.ReadFull(raw, head[:]); err != nil {
		return nil, noEOF(err)
	}
	if binary.LittleEndian.Uint16(head[2:]) != 5 {
		return nil, zip.ErrAlgorithm
	}
	size := f.UncompressedSize64
	if f.Flags&zipLZMAEnds != 0 {
		size = math.MaxUint64
		if err := s.model(); err != nil {
			return nil, err
		}
	}
	header := binary.LittleEndian.AppendUint64(bytes.Clone(head[4:]), size)
	return lzma.ReaderConfig{DictCap: maxDictionary}.NewReader(io.MultiReader(bytes.NewReader(header), raw))
}

// zipDecompressor of a library.
func zipDecompressor(open func(io.Reader) (io.Reader, error)) zip.Decompressor {
	return func(r io.Reader) io.ReadCloser {
		in, err := open(r)
		if err != nil {
			in = failed{err}
		}
		return io.NopCloser(in)
	}
}

// failed reader.
type failed struct{ err error }

// Read implements io.Reader.
func (f failed) Read([]byte) (int, error) { return 0, f.err }

func (s *scan) zipMember(archive string, f *zip.File, depth int) error {
	if strings.HasSuffix(f.Name, "/") && f.UncompressedSize64 == 0 {
		return nil
	}
	if name := zipUnicodeName(f.Extra); name != "" && s.judge(archive+"/"+name, []string{baseOf(name)}, nil) {
		return nil
	}
	return s.member(archive, f.Name, depth, func() (io.Reader, error) {
		switch {
		case f.Flags&zipEncrypted != 0:
			s.noteEncrypted(archive)
			return strings.NewReader(""), nil
		case f.Method == zipLZMA:
			return s.openLZMA(f)
		}
		return f.Open()
	})
}

// zipUnicodeName is the name that many unpackers prefer to the one in the header (APPNOTE.TXT section 4.6.9): they ought to
// compare a checksum of that first, which is not believed here.
func zipUnicodeName(extra []byte) string {
	const id, fixed = 0x7075, 5 // version and checksum
	for len(extra) >= 4 {
		size := int(binary.LittleEndian.Uint16(extra[2:]))
		if len(extra) < 4+size {
			return ""
		}
		if binary.LittleEndian.Uint16(extra) == id && size > fixed {
			return string(extra[4+fixed : 4+size])
		}
		extra = extra[4+size:]
	}
	return ""
}

// zipLocals judges the names in local headers that the directory does not list, or lists by other names: unpackers that
// read from the start find these. listed has the names in the directory by where the content of the file is.
func (s *scan) zipLocals(archive string, data []byte, depth int, listed map[int64]string) error {
	const fixed = 30
	for at := 0; ; {
		i := bytes.Index(data[at:], []byte("PK\x03\x04"))
		if i < 0 || at+i+fixed > len(data) {
			return nil
		}
		at += i
		header := data[at : at+fixed]
		name := at + fixed
		end := name + int(binary.LittleEndian.Uint16(header[26:]))
		content := end + int(binary.LittleEndian.Uint16(header[28:]))
		at += 4
		if content > len(data) {
			continue
		}
		if binary.LittleEndian.Uint16(header[4:])&0xff > 63 { // no version of the format
			continue
		}
		for _, local := range []string{string(data[name:end]), zipUnicodeName(data[end:content])} {
			if local == "" || listed[int64(content)] == local {
				continue
			}
			if err := s.member(archive, local, depth, nil); err != nil {
				return err
			}
		}
	}
}

func openTar(s *scan, file string, r *bufio.Reader, depth int) error {
	archive := tar.NewReader(r)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		if err := s.member(file, header.Name, depth, func() (io.Reader, error) { return archive, nil }); err != nil {
			return err
		}
	}
}

// single looks at the one file in a compressed one, which is named after it.
func (s *scan) single(file string, r io.Reader, depth int) error {
	name := baseOf(file)
	if ext := path.Ext(name); strings.EqualFold(ext, ".tgz") || strings.EqualFold(ext, ".tbz2") {
		name = strings.TrimSuffix(name, ext) + ".tar"
	} else {
		name = strings.TrimSuffix(name, ext)
	}
	return s.member(file, name, depth, func() (io.Reader, error) { return r, nil })
}

func openGzip(s *scan, file string, r *bufio.Reader, depth int) error {
	in, err := gzip.NewReader(r)
	if err != nil {
		return err
	}
	if in.Name != "" && s.judge(file+"/"+in.Name, []string{baseOf(in.Name)}, nil) {
		return nil
	}
	return s.single(file, in, depth)
}

func openBzip2(s *scan, file string, r *bufio.Reader, depth int) error {
	return s.single(file, bzip2.NewReader(r), depth)
}

func openRar(s *scan, file string, r *bufio.Reader, depth int) (err error) {
	defer caught("rar", &err)
	archive, err := rardecode.NewReader(r, rardecode.MaxDictionarySize(maxDictionary), rardecode.SkipCheck)
	if err != nil {
		return rarError(err)
	}
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return rarError(err)
		}
		if err := s.rarMember(file, header, archive, depth); err != nil {
			return err
		}
	}
}

func (s *scan) rarMember(file string, header *rardecode.FileHeader, archive *rardecode.Reader, depth int) error {
	if header.IsDir {
		return nil
	}
	if header.Solid { // to get to the next file this one is unpacked, read or not
		if err := s.grow(max(header.UnPackedSize, 0)); err != nil {
			return err
		}
	}
	if header.PackedSize == 0 { // empty, or a link
		return s.member(file, header.Name, depth, nil)
	}
	return s.member(file, header.Name, depth, func() (io.Reader, error) {
		if header.Encrypted {
			s.noteEncrypted(file)
			return strings.NewReader(""), nil
		}
		return archive, nil
	})
}

func rarError(err error) error {
	if errors.Is(err, rardecode.ErrArchiveEncrypted) || errors.Is(err, rardecode.ErrArchivedFileEncrypted) {
		return errEncrypted
	}
	return err
}

// openOLE tells an installer from the other compound files: by the class of its root.
func openOLE(s *scan, file string, r *bufio.Reader, _ int) error {
	data, err := s.all(r)
	if err != nil {
		return err
	}
	if isInstaller(data) {
		s.judgeKind(file, "msi")
	}
	return nil
}

// isInstaller reads the class id in the first entry of the directory of a compound file ([MS-CFB] section 2.2).
func isInstaller(data []byte) bool {
	const header, clsid = 512, 80
	if len(data) < header {
		return false
	}
	shift := binary.LittleEndian.Uint16(data[30:])
	if shift != 9 && shift != 12 {
		return false
	}
	at := (int64(binary.LittleEndian.Uint32(data[48:])) + 1) << shift
	if at+clsid+16 > int64(len(data)) {
		return false
	}
	// {000C1084-0000-0000-C000-000000000046} and its like: installers, patches (86) and transforms (82).
	class := data[at+clsid : at+clsid+16]
	return class[1] == 0x10 && (class[0] == 0x84 || class[0] == 0x86 || class[0] == 0x82) &&
		bytes.Equal(class[2:], []byte("\x0c\x00\x00\x00\x00\x00\xc0\x00\x00\x00\x00\x00\x00\x46"))
}
