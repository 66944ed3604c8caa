package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"testing"
)

// keepsLimits fails unless a scan of content has kept to its limits.
func keepsLimits(t *testing.T, s *scan, size int) {
	t.Helper()
	if s.expanded > int64(size)+2<<20 || s.files > s.MaxFiles+1 {
		t.Errorf("%d octets, %d files of %d octets", s.expanded, s.files, size)
	}
}

// scanOf is a scan with little room.
func scanOf(t *testing.T, size int) *scan {
	f := filter(t)
	f.MaxExpanded, f.MaxFiles = 1<<20, 200
	return f.newScan(context.Background(), int64(size))
}

// FuzzTNEF: attachments and their properties, with lengths that lie.
func FuzzTNEF(f *testing.F) {
	f.Add(tnef(tnefPart{attachTitle, []byte("a.exe\x00")}, tnefPart{attachData, executable}))
	f.Add([]byte("\x78\x9f\x3e\x22\x01\x00\x02\x05\x90\x06\x00\x0c\x00\x00\x00\x01\x00\x00\x00\x1f\x00\x07\x37\xff\xff\xff\x7f\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := scanOf(t, len(data))
		_ = openTNEF(s, "winmail.dat", bufio.NewReader(bytes.NewReader(data)), 0) // an error is one of its findings
		keepsLimits(t, s, len(data))
	})
}

// FuzzSevenZip: directories in front of which nothing has to be right.
func FuzzSevenZip(f *testing.F) {
	for _, coder := range []string{"\x00", idBCJ2, "\x03\x04\x01", "\x03\x01\x01", "\x21", "\x03"} {
		archive := sevenZip("a.exe", executable, coder)
		f.Add(archive[32:len(archive)-1], archive[len(archive)-1:])
		f.Add(archive[32:40], archive[40:])
	}
	f.Fuzz(func(t *testing.T, packed, directory []byte) {
		s := scanOf(t, len(packed)+len(directory))
		a := &archive7z{scan: s, data: append(append(make([]byte, 32), packed...), directory...)}
		r := &reader7z{b: directory}
		if a.directory(r) == nil {
			_ = a.members("a.7z", 0)
		}
		r = &reader7z{b: directory}
		_, _ = a.unpackHeader(r)
		keepsLimits(t, s, len(packed)+len(directory))
	})
}

// FuzzRar: what stands behind the signatures of both formats.
func FuzzRar(f *testing.F) {
	f.Add(rar5("a.exe", executable)[8:], true)
	f.Add([]byte("\xcf\x90\x73\x00\x00\x0d\x00\x00\x00\x00\x00\x00\x00"), false)
	f.Fuzz(func(t *testing.T, data []byte, five bool) {
		signature := "Rar!\x1a\x07\x00"
		if five {
			signature = "Rar!\x1a\x07\x01\x00"
		}
		s := scanOf(t, len(data))
		_ = openRar(s, "a.rar", bufio.NewReader(io.MultiReader(bytes.NewReader([]byte(signature)), bytes.NewReader(data))), 0)
		keepsLimits(t, s, len(data))
	})
}

// FuzzPacked: each kind of packed stream, by its number.
func FuzzPacked(f *testing.F) {
	kinds := []openFunc{openGzip, openBzip2, openXZ, openZstd, openTar, openZip, openUU, openOLE, openMessage}
	f.Add(byte(0), gzipped(f, tarred(f, file{"a.exe", executable})))
	f.Add(byte(3), zstandard(f, executable))
	f.Add(byte(4), tarred(f, file{"a.exe", executable}))
	f.Add(byte(5), zipped(f, file{"a.exe", executable}))
	f.Add(byte(6), []byte("begin 644 x.exe\n#ABC\n`\nend\n"))
	f.Add(byte(8), []byte(message(file{"a.exe", executable})))
	f.Fuzz(func(t *testing.T, kind byte, data []byte) {
		s := scanOf(t, len(data))
		_ = kinds[int(kind)%len(kinds)](s, "a.x", bufio.NewReader(bytes.NewReader(data)), 0)
		keepsLimits(t, s, len(data))
	})
}
