package main

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Where readers of mail differ about a message, a file that one of them offers is judged.
func TestReadersDiffer(t *testing.T) {
	const octets = "Content-Type: application/octet-stream"
	part := func(fields string) string {
		return "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nhi\n--b\n" + fields + "\n\nvar x\n--b--\n"
	}
	const evil = octets + "; name=x.js\n\nvar x\n"
	const good = "--b\n\nhi\n--b--\n"
	a := start(t, ``)
	for name, text := range map[string]string{
		"a name twice":                 part(octets + `; name="x.txt"; name="x.js"`),
		"no semicolon":                 part(octets + ` name="x.js"`),
		"a comma":                      part(octets + `, name="x.js"`),
		"apostrophes":                  part(octets + `; name='x.js'`),
		"no disposition":               part(`Content-Disposition: filename=x.js`),
		"UTF-16":                       part(octets + "\nContent-Disposition: attachment; filename*=utf-16be''%00x%00.%00j%00s"),
		"UTF-7":                        part(octets + `; name="=?utf-7?Q?x+AC4-js?="`),
		"base64 without padding":       part(octets + `; name="=?utf-8?B?eC5qcw?="`),
		"a gap between sections":       part(octets + "\nContent-Disposition: attachment; filename*0=\"x.\"; filename*2=\"js\""),
		"blanks in a type":             part("Content-Type: text / javascript"),
		"a quoted encoding":            part(octets + "; name=a.txt\nContent-Transfer-Encoding: \"base64\"\n\n" + lines(executable)),
		"behind the end":               "Content-Type: multipart/mixed; boundary=b\n\n" + good + "--b\n" + evil,
		"a second boundary":            "Content-Type: multipart/mixed; boundary=b; boundary=c\n\n--c\n" + evil + "--c--\n" + good,
		"a second Content-Type":        "Content-Type: multipart/mixed; boundary=b\nContent-Type: multipart/mixed; boundary=c\n\n--c\n" + evil + "--c--\n" + good,
		"encoded multipart":            "Content-Type: multipart/mixed; boundary=c\nContent-Transfer-Encoding: base64\n\n" + lines([]byte("--c\r\n"+strings.ReplaceAll(evil, "\n", "\r\n")+"--c--\r\n")),
		"no boundary":                  "Content-Type: multipart/mixed\n\n--c\n" + evil + "--c--\n",
		"behind the end, in a message": part("Content-Type: message/rfc822\n\nContent-Type: multipart/mixed; boundary=d\n\n--d\n\nhi\n--d--\n--d\n" + evil),
	} {
		t.Run(name, func(t *testing.T) { send(a, text).Want(550, "5.7.1") })
	}
}

// What other readers find in a multipart is stripped with it, also where parts of it are stripped anyhow.
func TestStripHidden(t *testing.T) {
	const evil = "Content-Type: application/octet-stream; name=x.js\n\nvar x\n"
	a := start(t, `action = "strip"`)
	inner := "Content-Type: multipart/mixed; boundary=i\n\n--i\n" + evil + "--i--\n--i\n" + evil
	o := send(a, "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nhello\n--b\n"+inner+"--b--\n").WantContinue().WantCount("stripped", 1)
	if body := o.Message(); strings.Contains(body, "x.js\r\n") || !strings.Contains(body, "hello") || !strings.Contains(body, "--b--") {
		t.Errorf("what is left:\n%s", body)
	}
}

// More readings of readings than are archives in archives are over the limit.
func TestManyReadings(t *testing.T) {
	var b strings.Builder
	b.WriteString("Content-Type: multipart/mixed; boundary=b\n\n")
	for range 200 {
		b.WriteString("--b\n\nhi\n--b--\n")
	}
	send(start(t, ``), b.String()).Want(550, "5.7.1").WantReason(reasonLimit)
}

// zipNamed is an archive with one file that has other names in its directory, its local header and in the field for
// Unicode; empty: the same, and no field.
func zipNamed(t *testing.T, listed, local, unicode string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	h := &zip.FileHeader{Name: listed}
	if unicode != "" {
		h.Extra = append(binary.LittleEndian.AppendUint16([]byte{0x75, 0x70}, uint16(5+len(unicode))), "\x01cccc"+unicode...)
	}
	if _, err := w.CreateHeader(h); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if local == "" {
		return b.Bytes()
	}
	if len(local) != len(listed) {
		t.Fatal("names of different lengths")
	}
	return bytes.Replace(b.Bytes(), []byte(listed), []byte(local), 1)
}

// Unpackers differ in which of the names of a file in a zip archive they believe, and in where they look for it.
func TestZipNames(t *testing.T) {
	for name, data := range map[string][]byte{
		"local":          zipNamed(t, "a.txt", "ab.js", ""),
		"directory":      zipNamed(t, "ab.js", "a.txt", ""),
		"Unicode":        zipNamed(t, "a.txt", "", "b.js"),
		"behind rubbish": append(bytes.Repeat([]byte("rubbish "), 1000), zipped(t, file{"b.js", []byte("x")})...),
	} {
		found, err := look(t, filter(t), "a.zip", data)
		if err != nil || !slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, "AttachmentName a.zip/") }) {
			t.Errorf("%s: %q %v", name, found, err)
		}
	}
	found, err := look(t, filter(t), "a.zip", zipNamed(t, "a.txt", "", "ü.txt"))
	if err != nil || len(found) > 0 {
		t.Errorf("a file with three good names: %q %v", found, err)
	}
	found, _ = look(t, filter(t), "a.zip", []byte("this is no archive"))
	if fmt.Sprint(found) != "[ArchiveBroken a.zip]" {
		t.Errorf("what is named so and is none: %q", found)
	}
}
