package main

import (
	"encoding/binary"
	"hash/crc32"
	"unicode/utf16"
)

// vint is a number as RAR 5 writes it.
func vint(n int) []byte {
	var b []byte
	for ; n > 0x7f; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

// rarBlock is a header of RAR 5 with its checksum and size.
func rarBlock(body []byte) []byte {
	sized := append(vint(len(body)), body...)
	return append(binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(sized)), sized...)
}

// rar5 is an archive of one stored file.
func rar5(name string, content []byte) []byte {
	out := []byte("Rar!\x1a\x07\x01\x00")
	out = append(out, rarBlock([]byte{1, 0, 0})...)
	body := []byte{2, 2}                       // file, with data behind it
	body = append(body, vint(len(content))...) // packed size
	body = append(body, 4)                     // with a checksum
	body = append(body, vint(len(content))...) // size
	body = append(body, 0x20)                  // attributes
	body = binary.LittleEndian.AppendUint32(body, crc32.ChecksumIEEE(content))
	body = append(body, 0, 1) // stored, on Unix
	body = append(append(body, vint(len(name))...), name...)
	out = append(append(out, rarBlock(body)...), content...)
	return append(out, rarBlock([]byte{5, 0, 0})...)
}

// number7z writes a number below 2^14.
func number7z(n int) []byte {
	if n < 0x80 {
		return []byte{byte(n)}
	}
	return []byte{0x80 | byte(n>>8), byte(n)}
}

// sevenZip is an archive of one file, packed by the coder of that id.
func sevenZip(name string, content []byte, coder string) []byte {
	h := []byte{1, 4, 6, 0, 1, 9}
	h = append(append(h, number7z(len(content))...), 0)
	h = append(h, 7, 0x0b, 1, 0, 1, byte(len(coder)))
	h = append(append(h, coder...), 0x0c)
	h = append(append(h, number7z(len(content))...), 0x0a, 1, 0, 0, 0, 0, 0)
	h = append(h, 8, 0x0a, 1, 0, 0) // no sizes, no checksums beyond the folder's
	var names []byte
	for _, u := range utf16.Encode([]rune(name + "\x00")) {
		names = binary.LittleEndian.AppendUint16(names, u)
	}
	h = append(append(h, 5, 1, 0x11), number7z(len(names)+1)...)
	h = append(append(append(h, 0), names...), 0, 0)
	return container7z(content, h)
}

// sevenZipOf so many files, it says.
func sevenZipOf(files uint32) []byte {
	h := append([]byte{1, 5, 0xf0}, binary.LittleEndian.AppendUint32(nil, files)...)
	return container7z(nil, append(h, 0, 0))
}

func container7z(content, header []byte) []byte {
	out := append([]byte("7z\xbc\xaf\x27\x1c\x00\x04"), 0, 0, 0, 0)
	out = binary.LittleEndian.AppendUint64(out, uint64(len(content)))
	out = binary.LittleEndian.AppendUint64(out, uint64(len(header)))
	out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(header))
	return append(append(out, content...), header...)
}
