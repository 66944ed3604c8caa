package main

import (
	"bytes"
	"encoding/binary"
	"path"
	"strings"
)

// sniffed is how much of a file tells what it is: the octets that are looked at.
const sniffed = 4 << 10

// kind of content: the extension that such a file has. Empty: not known.
type kind string

// signatures of kinds at the start of a file. The longer ones that begin alike stand first.
var signatures = [...]struct {
	magic string
	kind  kind
}{
	{"L\x00\x00\x00\x01\x14\x02\x00", "lnk"},
	{"ITSF\x03\x00\x00\x00", "chm"},
	{"\x00\x01\x00\x00Standard Jet DB", "mdb"},
	{"\x00\x01\x00\x00Standard ACE DB", "accdb"},
	{"?_\x03\x00", "hlp"},
	{"REGEDIT4", "reg"},
	{"Windows Registry Editor", "reg"},
	{"\xff\xfeW\x00i\x00n\x00d\x00o\x00w\x00s\x00 \x00R\x00e\x00g\x00", "reg"},
	{"[InternetShortcut]", "url"},
	{"\x7fELF", "elf"},
	{"\xcf\xfa\xed\xfe", "macho"},
	{"\xce\xfa\xed\xfe", "macho"},
	{"#@~^", "vbe"}, // encoded script
	{"PK\x03\x04", "zip"},
	{"PK\x05\x06", "zip"},
	{"PK00PK\x03\x04", "zip"},
	{"\x1f\x8b\x08", "gz"},
	{"BZh", "bz2"},
	{"\xfd7zXZ\x00", "xz"},
	{"Rar!\x1a\x07", "rar"},
	{"7z\xbc\xaf\x27\x1c", "7z"},
	{"x\x9f\x3e\x22", "tnef"},
	{"MSCF\x00\x00\x00\x00", "cab"},
	{"%PDF-", "pdf"},
	{"\x60\xea", "arj"},
	{"\x28\xb5\x2f\xfd", "zst"},
	{"\x04\x22\x4d\x18", "lz4"},
	{"LZIP\x01", "lz"},
	{"\x1f\x9d", "z"},
	{"\x1f\xa0", "lzh"},
	{"070701", "cpio"},
	{"070702", "cpio"},
	{"070707", "cpio"},
	{"\xc7\x71", "cpio"},
	{"\x71\xc7", "cpio"},
	{"SZDD\x88\xf0\x27\x33", "szdd"},
	{"\xed\xab\xee\xdb", "rpm"},
	{"!<arch>\ndebian", "deb"},
	{"MSWIM\x00\x00\x00", "wim"},
	{"xar!", "xar"},
	{"conectix", "vhd"},
	{"vhdxfile", "vhdx"},
	{"(This file must be converted with BinHex", "hqx"},
}

// sniff tells the kind of content by its first octets.
func sniff(head []byte) kind {
	for _, s := range signatures {
		if bytes.HasPrefix(head, []byte(s.magic)) {
			return s.kind
		}
	}
	switch {
	case isExecutable(head):
		return "exe"
	case isLZH(head):
		return "lzh"
	case isAt(head, 7, "**ACE**"):
		return "ace"
	case isAt(head, 20, "\xdc\xa7\xc4\xfd"):
		return "zoo"
	case bytes.HasPrefix(head, []byte("\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")):
		return "ole"
	case isTar(head):
		return "tar"
	case bytes.Contains(bytes.ToLower(head), []byte("<hta:application")):
		return "hta"
	}
	return ""
}

// isExecutable: MZ with the offset of a newer header that is there, or none, as of DOS. Text that begins with MZ is
// none.
func isExecutable(head []byte) bool {
	if len(head) < 64 || !bytes.HasPrefix(head, []byte("MZ")) && !bytes.HasPrefix(head, []byte("ZM")) {
		return false
	}
	at := int(binary.LittleEndian.Uint32(head[60:]))
	if at >= 0 && at <= len(head)-4 {
		if next := head[at : at+2]; string(next) == "PE" || string(next) == "NE" || string(next) == "LE" || string(next) == "LX" {
			return true
		}
	}
	for _, b := range head[2:64] {
		if b < ' ' && b != '\t' && b != '\r' && b != '\n' {
			return true
		}
	}
	return false
}

func isAt(head []byte, offset int, magic string) bool {
	return len(head) >= offset+len(magic) && string(head[offset:offset+len(magic)]) == magic
}

// isLZH: the method "-lh5-" and its like, at its place.
func isLZH(head []byte) bool {
	return len(head) > 21 && head[2] == '-' && head[3] == 'l' && (head[4] == 'h' || head[4] == 'z') && head[6] == '-'
}

// isTar: "ustar" at its place, or a header block whose checksum is right, as of older ones.
func isTar(head []byte) bool {
	const block = 512
	if len(head) < block || head[0] == 0 {
		return false
	}
	if string(head[257:262]) == "ustar" {
		return true
	}
	sum, want := 0, 0
	for i, b := range head[:block] {
		if i >= 148 && i < 156 {
			b = ' '
		}
		sum += int(b)
	}
	for _, b := range bytes.Trim(head[148:156], " \x00") {
		if b < '0' || b > '7' {
			return false
		}
		want = want*8 + int(b-'0')
	}
	return want == sum
}

// isDisk: images of disks are known by their names alone, which a Windows computer goes by, too: what tells their content
// stands far behind the octets that are looked at.
func isDisk(file string) bool {
	switch strings.ToLower(path.Ext(baseOf(file))) {
	case ".iso", ".img", ".udf":
		return true
	}
	return false
}
