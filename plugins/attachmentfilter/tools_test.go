package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/posternmail/postern/internal/lack"
)

// tool is a program that packs.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		lack.Of(t, "%s, whose archives are tried: %v", name, err)
	}
	return path
}

// workshop is a folder with a program that has a harmless name, and the harmless text notes.txt.
func workshop(t *testing.T) (dir string, program []byte) {
	t.Helper()
	dir = t.TempDir()
	real, err := os.ReadFile("/bin/ls") // of this machine: has calls and jumps in it
	if err != nil {
		t.Fatal(err)
	}
	program = append(bytes.Clone(executable), real...)
	for name, content := range map[string][]byte{"run.txt": program, "notes.txt": bytes.Repeat([]byte("all is well\n"), 1000)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, program
}

// pack runs a command in the folder and answers with the file that it writes.
func pack(t *testing.T, dir, file string, command ...string) []byte {
	t.Helper()
	c := exec.Command(command[0], command[1:]...)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", command, err, out)
	}
	content, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// Archives by 7-Zip, packed in every way that it has: the program in them is found by its content.
func TestRealSevenZip(t *testing.T) {
	pack7z := tool(t, "7z")
	const inside = "AttachmentContent a/run.txt"
	for name, c := range map[string]struct {
		options []string
		want    string
	}{
		"LZMA2":              {[]string{"-t7z", "-m0=LZMA2"}, inside},
		"LZMA":               {[]string{"-t7z", "-m0=LZMA"}, inside},
		"PPMd":               {[]string{"-t7z", "-m0=PPMd"}, inside},
		"BZip2":              {[]string{"-t7z", "-m0=BZip2"}, inside},
		"Deflate":            {[]string{"-t7z", "-m0=Deflate"}, inside},
		"Copy":               {[]string{"-t7z", "-m0=Copy"}, inside},
		"BCJ":                {[]string{"-t7z", "-m0=BCJ", "-m1=LZMA"}, inside},
		"BCJ2":               {[]string{"-t7z", "-m0=BCJ2", "-m1=LZMA", "-m2=LZMA", "-m3=LZMA", "-mb0:1", "-mb0s1:2", "-mb0s2:3"}, inside},
		"Delta":              {[]string{"-t7z", "-m0=Delta:4", "-m1=LZMA"}, inside},
		"not solid":          {[]string{"-t7z", "-ms=off"}, inside},
		"plain header":       {[]string{"-t7z", "-mhc=off"}, inside},
		"with a password":    {[]string{"-t7z", "-psecret"}, "ArchiveEncrypted a/notes.txt, encrypted a/notes.txt, encrypted a/run.txt"},
		"names, too":         {[]string{"-t7z", "-psecret", "-mhe=on"}, "ArchiveEncrypted a, encrypted a"},
		"zip":                {[]string{"-tzip"}, inside},
		"zip, BZip2":         {[]string{"-tzip", "-mm=BZip2"}, inside},
		"zip, LZMA":          {[]string{"-tzip", "-mm=LZMA"}, inside},
		"zip, Deflate64":     {[]string{"-tzip", "-mm=Deflate64"}, "ArchiveBroken a/notes.txt"},
		"zip, with password": {[]string{"-tzip", "-psecret"}, "ArchiveEncrypted a, encrypted a"},
		"zip, AES":           {[]string{"-tzip", "-psecret", "-mem=AES256"}, "ArchiveEncrypted a, encrypted a"},
		"tar":                {[]string{"-ttar"}, inside},
		"wim":                {[]string{"-twim"}, "ArchiveUnscannable a"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, _ := workshop(t)
			data := pack(t, dir, "out", slices.Concat([]string{pack7z, "a", "-bd"}, c.options, []string{"out.", "notes.txt", "run.txt"})...)
			f := filter(t)
			f.Unscannable, f.Encrypted, f.MaxRatio = "quarantine", "quarantine", 1000
			found, err := look(t, f, "a", data)
			if err != nil || !slices.Equal(found, strings.Split(c.want, ", ")) {
				t.Errorf("%q %v, want %q", found, err, c.want)
			}
		})
	}
}

// What goes through the filters for programs comes out as it went in.
func TestBCJ2(t *testing.T) {
	pack7z := tool(t, "7z")
	dir, program := workshop(t)
	for _, options := range [][]string{
		{"-m0=BCJ2", "-m1=LZMA", "-m2=LZMA", "-m3=LZMA", "-mb0:1", "-mb0s1:2", "-mb0s2:3"},
		{"-m0=PPMd"},
	} {
		data := pack(t, dir, "out", slices.Concat([]string{pack7z, "a", "-bd", "-t7z"}, options, []string{"out.", "run.txt"})...)
		s := filter(t).newScan(t.Context(), int64(len(data)))
		a := &archive7z{scan: s, data: data}
		if err := a.open(); err != nil {
			t.Fatal(err)
		}
		in, err := a.reader(&a.main, 0)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.all(in)
		if err != nil || !bytes.HasPrefix(got, program) || len(got) > len(program)+4 {
			t.Errorf("%v: %d octets of %d, %v", options, len(got), len(program), err)
		}
		if err := os.Remove(filepath.Join(dir, "out")); err != nil {
			t.Fatal(err)
		}
	}
}

// Archives by the programs that others use, one in the other.
func TestRealNested(t *testing.T) {
	dir, _ := workshop(t)
	script := `tar cf a.tar notes.txt run.txt && gzip -k a.tar && xz -k a.tar && bzip2 -k a.tar && tar czf b.tgz a.tar.xz && tar cf c.tar b.tgz a.tar.bz2`
	data := pack(t, dir, "c.tar", "sh", "-c", script)
	for name, want := range map[string]string{
		"a.tar": "a.tar/run.txt", "a.tar.gz": "a.tar.gz/a.tar/run.txt", "a.tar.xz": "a.tar.xz/a.tar/run.txt", "a.tar.bz2": "a.tar.bz2/a.tar/run.txt",
	} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if found, err := look(t, filter(t), name, content); err != nil || !slices.Equal(found, []string{"AttachmentContent " + want}) {
			t.Errorf("%s: %q %v", name, found, err)
		}
	}
	if found, err := look(t, filter(t), "c.tar", data); err != nil || len(found) != 1 || found[0] != "AttachmentContent c.tar/b.tgz/b.tar/a.tar.xz/a.tar/run.txt" {
		t.Errorf("%q %v", found, err)
	}
}

// What is not looked into is known for what it is.
func TestUnscannable(t *testing.T) {
	f := filter(t)
	f.Unscannable = "quarantine"
	for name, content := range map[string]string{
		"a.cab": "MSCF\x00\x00\x00\x00", "a.arj": "\x60\xea\x2c\x00", "a.lzh": "\x22\xae-lh5-aaaaaaaaaaaaaaaaa", "a.ace": "\x00\x00\x00\x00\x00\x00\x00**ACE**",
		"a.iso": "\x00\x00", "A.IMG": "\x00", "a.deb": "!<arch>\ndebian-binary", "a.rpm": "\xed\xab\xee\xdb\x03",
		"a.cpio": "070701", "a.vhdx": "vhdxfile", "a.hqx": "(This file must be converted with BinHex 4.0)",
	} {
		if found, err := look(t, f, name, []byte(content)); err != nil || !slices.Equal(found, []string{"ArchiveUnscannable " + name}) {
			t.Errorf("%s: %q %v", name, found, err)
		}
	}
}
