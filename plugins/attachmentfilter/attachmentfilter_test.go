package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/posternmail/postern/internal/corpora"
	"github.com/posternmail/postern/sdk/agenttest"
	"github.com/posternmail/postern/sdk/match"
	"github.com/posternmail/postern/sdk/mime"
)

// executable is what sniff takes for one.
var executable = append([]byte("MZ\x90\x00\x03\x00\x00\x00\x04\x00"), make([]byte, 200)...)

type file struct {
	name string
	data []byte
}

// message with attachments.
func message(files ...file) string {
	var b strings.Builder
	b.WriteString("From: a@x.example\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nhello\n")
	for _, f := range files {
		fmt.Fprintf(&b, "--b\nContent-Type: application/octet-stream; name=%q\nContent-Disposition: attachment; filename=%q\nContent-Transfer-Encoding: base64\n\n%s\n",
			f.name, f.name, lines(f.data))
	}
	b.WriteString("--b--\n")
	return b.String()
}

func lines(data []byte) string {
	text := base64.StdEncoding.EncodeToString(data)
	var b strings.Builder
	for len(text) > 76 {
		b.WriteString(text[:76] + "\n")
		text = text[76:]
	}
	return b.String() + text
}

func zipped(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, f := range files {
		to, err := w.Create(f.name)
		if err == nil {
			_, err = to.Write(f.data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func tarred(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		err := w.WriteHeader(&tar.Header{Name: f.name, Size: int64(len(f.data)), Mode: 0o600})
		if err == nil {
			_, err = w.Write(f.data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstandard(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

func start(t *testing.T, config string, options ...agenttest.Option) *agenttest.Agent {
	t.Helper()
	return agenttest.Start(t, New, config, append(options, agenttest.WithInfo(info()))...)
}

// send a message to one recipient.
func send(a *agenttest.Agent, text string) *agenttest.Outcome {
	s := a.From("192.0.2.1")
	s.Mail("s@x.example")
	s.To("r@y.example")
	return s.Data(text)
}

func data(o *agenttest.Outcome) string { return o.Answer().GetVerdicts()[0].GetData() }

func TestDefaultRejects(t *testing.T) {
	a := start(t, ``, agenttest.KillBetween())
	o := send(a, message(file{"Invoice.PDF.exe", []byte("x")})).Want(550, "5.7.1").WantVerdict("reject").WantReason(reasonName)
	if text := o.Answer().GetVerdicts()[0].GetReply().GetText(); text != "Message rejected due to unacceptable attachments" {
		t.Errorf("text %q", text)
	}
	if got := data(o); got != "Invoice.PDF.exe (*.exe)" {
		t.Errorf("data %q", got)
	}
	send(a, message(file{"picture.jpg", executable})).Want(550, "5.7.1").WantReason(reasonContent)
	send(a, message(file{"a.zip", zipped(t, file{"dir/run.vbs", nil})})).Want(550, "5.7.1").WantReason(reasonName)
	send(a, "Content-Type: application/x-msdownload\n\nx\n").Want(550, "5.7.1").WantReason(reasonType)
	send(a, "Content-Type: message/partial; id=1; number=1\n\nx\n").Want(550, "5.7.1").WantReason(reasonType)
	send(a, message(file{"a.pdf", []byte("%PDF-1.4")}, file{"b.zip", zipped(t, file{"c.txt", []byte("hi")})})).WantVerdict("continue")
	send(a, "Subject: plain\n\nbegin the day\n").WantVerdict("continue")
	send(a, "\n").WantVerdict("continue")
}

// Larger bodies come as a file.
func TestLargeBody(t *testing.T) {
	a := start(t, ``)
	noise := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
	send(a, message(file{"a.bin", noise}, file{"b.scr", nil})).Want(550, "5.7.1")
	send(a, message(file{"a.bin", noise})).WantVerdict("continue")
}

func TestNames(t *testing.T) {
	a := start(t, ``)
	for _, header := range []string{
		`Content-Disposition: attachment; filename="a.EXE"`,
		`Content-Disposition: attachment; filename="a.exe. "`,
		`Content-Disposition: attachment; filename="a.exe:x.txt"`,
		`Content-Disposition: attachment; filename*=utf-8''a%2Eexe`,
		`Content-Disposition: attachment; filename*0="a.e"; filename*1="xe"`,
		`Content-Disposition: attachment; filename="=?utf-8?b?YS5leGU=?="`,
		`Content-Type: application/pdf; name="a.exe"`,
		"Content-Type: application/pdf; name=a.exe\nContent-Disposition: attachment; filename=a.pdf",
		"Content-Disposition: attachment; filename=a.pdf\nContent-Disposition: attachment; filename=a.exe",
		`Content-Disposition: inline; filename=a.exe`,
		`Content-Disposition: attachment; filename="a.exe`,
		"Content-Type: text/plain\nContent-Type: application/hta",
	} {
		send(a, "MIME-Version: 1.0\n"+header+"\n\nx\n").Want(550, "5.7.1")
	}
	for _, header := range []string{"Content-Disposition: attachment; filename=a.exe.txt", "Content-Disposition: attachment; filename=exe",
		"Content-Type: application/pdf; name=a.pdf", "X-Name: a.exe"} {
		send(a, header+"\n\nx\n").WantVerdict("continue")
	}
}

func TestActions(t *testing.T) {
	a := start(t, `
		action = "quarantine"
		names  = ["*.iso"]
		types  = ["image/*"]
		entry {
			names  = ["setup.exe"]
			action = "allow"
		}
		entry {
			names    = ["*.js"]
			types    = ["text/calendar"]
			action   = "reject"
			response = "No scripts, please"
		}
		entry {
			names  = ["*.pif"]
			action = "silent_delete"
		}`)
	send(a, message(file{"a.exe", nil})).WantVerdict("quarantine").WantReason(reasonName).WantCount("quarantined", 1)
	send(a, message(file{"a.iso", nil})).WantVerdict("quarantine")
	send(a, "Content-Type: image/png\n\nx\n").WantVerdict("quarantine").WantReason(reasonType)
	send(a, message(file{"SETUP.EXE", executable})).WantVerdict("continue")
	o := send(a, message(file{"a.exe", nil}, file{"a.js", nil})).Want(550, "5.7.1")
	if text := o.Answer().GetVerdicts()[0].GetReply().GetText(); text != "No scripts, please" {
		t.Errorf("text %q", text)
	}
	send(a, "Content-Type: text/calendar\n\nx\n").Want(550, "5.7.1")
	send(a, message(file{"a.js", nil}, file{"a.pif", nil})).WantVerdict("discard").WantCount("deleted", 1)
}

// What was stripped leaves a notice, and the message is as valid as it was.
func TestStrip(t *testing.T) {
	a := start(t, `action = "strip"`)
	o := send(a, message(file{"keep.txt", []byte("kept")}, file{"a.exe", []byte("x")}, file{"z.zip", zipped(t, file{"b.js", nil})})).
		WantContinue().WantReason(reasonName).WantCount("stripped", 2)
	header, body := splitMessage([]byte(o.Message()))
	tree, err := mime.Parse(context.Background(), header, bytes.NewReader(body), mime.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for p := range tree.Leaves() {
		text, _, _ := p.DecodedText(1000)
		got = append(got, fmt.Sprintf("%s %s %s %v", p.Type, p.Filename, strings.TrimSpace(text), p.Defects))
	}
	want := []string{
		"text/plain  hello []", "application/octet-stream keep.txt kept []",
		"text/plain  The attachment a.exe was removed by the mail server: files of this kind are not allowed here (*.exe). []",
		"text/plain  The attachment z.zip/b.js was removed by the mail server: files of this kind are not allowed here (*.js). []",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// A message that is nothing but the file keeps its header and becomes the notice.
func TestStripRoot(t *testing.T) {
	a := start(t, "action = \"strip\"\nnotice = \"Gone: {name}\"")
	o := send(a, "From: a@x.example\nMIME-Version: 1.0\nContent-Type: application/octet-stream; name=a.exe\nContent-Transfer-Encoding: base64\n\n"+
		lines(executable)+"\n").WantContinue()
	text := o.Message()
	if !strings.Contains(text, "From: a@x.example\r\n") || strings.Contains(text, "octet-stream") ||
		strings.Count(text, "MIME-Version:") != 1 || !strings.Contains(text, "Content-Type: text/plain; charset=utf-8\r\n") ||
		!strings.Contains(text, base64.StdEncoding.EncodeToString([]byte("Gone: a.exe\r\n"))) {
		t.Errorf("message %q", text)
	}
}

// look at one file by a scan, and tell what was found: "reason path" each.
func look(t testing.TB, f *Filter, name string, content []byte) (found []string, err error) {
	t.Helper()
	s := f.newScan(context.Background(), int64(len(content)))
	err = s.content(name, bytes.NewReader(content), 0, "")
	for _, x := range s.findings {
		found = append(found, x.reason+" "+x.file)
	}
	for _, e := range s.encrypted {
		found = append(found, "encrypted "+e)
	}
	return found, err
}

// filter with the defaults.
func filter(t testing.TB) *Filter {
	t.Helper()
	names, err := match.NewNames(defaultNames())
	if err != nil {
		t.Fatal(err)
	}
	return &Filter{
		Config: Config{Broken: "quarantine", Encrypted: "allow", MaxDepth: 8, MaxFiles: 2000, MaxExpanded: 100 << 20, MaxRatio: 200, MaxParts: 1000},
		rules:  []*rule{{names: names, types: map[string]bool{}, action: "reject"}},
	}
}

func TestArchives(t *testing.T) {
	bad := file{"run.exe", executable}
	hidden := file{"run.txt", executable}
	tests := map[string]struct {
		data []byte
		want string
	}{
		"a.zip":      {zipped(t, file{"a.txt", []byte("a")}, bad), "AttachmentName a.zip/run.exe"},
		"b.bin":      {zipped(t, hidden), "AttachmentContent b.bin/run.txt"},
		"c.tar":      {tarred(t, file{"a.txt", []byte("a")}, hidden, bad), "AttachmentContent c.tar/run.txt"},
		"d.tar.gz":   {gzipped(t, tarred(t, bad)), "AttachmentName d.tar.gz/d.tar/run.exe"},
		"e.tgz":      {gzipped(t, tarred(t, hidden)), "AttachmentContent e.tgz/e.tar/run.txt"},
		"f.exe.gz":   {gzipped(t, []byte("x")), "AttachmentName f.exe.gz/f.exe"},
		"h.tar.zst":  {zstandard(t, tarred(t, hidden)), "AttachmentContent h.tar.zst/h.tar/run.txt"},
		"g.gz":       {gzipped(t, executable), "AttachmentContent g.gz/g"},
		"nested.zip": {zipped(t, file{"in.zip", zipped(t, file{"deep.tar.gz", gzipped(t, tarred(t, bad))})}), "AttachmentName nested.zip/in.zip/deep.tar.gz/deep.tar/run.exe"},
		"sfx.bin":    {append([]byte("junk in front, as of a self-extracting file\n"), zipped(t, bad)...), ""},
		"mail.eml":   {[]byte(message(bad)), "AttachmentName mail.eml/run.exe"},
		"ok.zip":     {zipped(t, file{"a.txt", []byte("a")}, file{"dir/", nil}), ""},
		"cut.zip":    {zipped(t, bad)[:60], "AttachmentName cut.zip/run.exe, ArchiveBroken cut.zip"},
		"rar5.rar":   {rar5("run.exe", executable), "AttachmentName rar5.rar/run.exe"},
		"rar5b.rar":  {rar5("run.txt", executable), "AttachmentContent rar5b.rar/run.txt"},
		"rar5c.rar":  {rar5("a.txt", []byte("fine")), ""},
		"7z.7z":      {sevenZip("run.exe", executable, "\x00"), "AttachmentName 7z.7z/run.exe"},
		"7zb.7z":     {sevenZip("run.txt", executable, "\x00"), "AttachmentContent 7zb.7z/run.txt"},
		"7zc.7z":     {sevenZip("a.txt", []byte("fine"), "\x00"), ""},
		"7zd.7z":     {sevenZip("a.txt", []byte("secret"), "\x06\xf1\x07\x01"), "encrypted 7zd.7z/a.txt"},
		"7ze.7z":     {sevenZip("a.txt", []byte("odd"), "\x7f"), "ArchiveBroken 7ze.7z/a.txt"},
	}
	for name, tt := range tests {
		found, err := look(t, filter(t), name, tt.data)
		if err != nil || strings.Join(found, ", ") != tt.want && (tt.want != "" || len(found) > 0) {
			t.Errorf("%s: %q %v, want %q", name, found, err, tt.want)
		}
	}
}

// xzText is "MZ", NULs and more, packed by two runs of xz: two streams, the second of which holds the program.
const xzText = "/Td6WFoAAATm1rRGAgAhARwAAAAQz1jM4AP/AD1dADCLiofEDvKXpPh1PcWp7dmXqRAJTWgy0e2BMYqKr7u8EIDNfVzrMV6UO0zsxdRBblw7yMqDSmmUbRE3+QAAAAAAViVnTcDijYMAAVmACAAAAJ8VhpyxxGf7AgAAAAAEWVoAAAAA/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4CP/AGFdADkdSfv8gF8PYh15P5psorWA8E2gfhUE+hvOh/knJNYAYBL96oJ8fa1wxPARbf5Hg4Gj9trRSjMa/QruAdFMhuATp1E+PR1NQVIni33qc+MF+koCXuKkzTXZlANrQBpnjQAAAAAA+d6XK/y+6t4AAX2ASAAAAIIKr5uxxGf7AgAAAAAEWVo="

func TestXZ(t *testing.T) {
	packed, err := base64.StdEncoding.DecodeString(xzText)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := look(t, filter(t), "a.tar.xz", packed); err != nil || !slices.Equal(found, []string{"AttachmentName a.tar.xz/a.tar/run.exe"}) {
		t.Errorf("%q %v", found, err)
	}
	packed[15], packed[16] = 40, 40 // wherever the size of the dictionary stands
	if found, _ := look(t, filter(t), "a.tar.xz", packed); len(found) > 0 && found[0] != "ArchiveBroken a.tar.xz/a.tar" {
		t.Errorf("%q", found)
	}
}

// A file that only the local headers name is found too.
func TestZipLocalHeader(t *testing.T) {
	one, two := zipped(t, file{"run.exe", executable}), zipped(t, file{"a.txt", []byte("a")})
	local := one[:bytes.Index(one, []byte("PK\x01\x02"))]
	found, err := look(t, filter(t), "a.zip", append(bytes.Clone(local), two...))
	if err != nil || !slices.Equal(found, []string{"AttachmentName a.zip/run.exe"}) {
		t.Errorf("%q %v", found, err)
	}
}

func TestEncryptedZip(t *testing.T) {
	data := zipped(t, file{"a.txt", []byte("secret")}, file{"b.exe", []byte("x")})
	for at := 0; ; { // set the flag in all headers
		i := bytes.Index(data[at:], []byte("PK"))
		if i < 0 {
			break
		}
		at += i + 4
		switch string(data[at-2 : at]) {
		case "\x03\x04":
			data[at+2] |= 1
		case "\x01\x02":
			data[at+4] |= 1
		}
	}
	found, err := look(t, filter(t), "a.zip", data)
	if err != nil || !slices.Equal(found, []string{"AttachmentName a.zip/b.exe", "encrypted a.zip"}) {
		t.Errorf("%q %v", found, err)
	}
	secret := bytes.ReplaceAll(data, []byte("b.exe"), []byte("b.txt"))
	a := start(t, ``)
	send(a, message(file{"a.zip", secret})).WantVerdict("continue").WantStamp("encrypted", "a.zip")
	f := filter(t)
	f.Encrypted = "quarantine"
	if found, err := look(t, f, "a.zip", secret); err != nil || !slices.Equal(found, []string{"ArchiveEncrypted a.zip", "encrypted a.zip"}) {
		t.Errorf("%q %v", found, err)
	}
}

func TestLimits(t *testing.T) {
	zeros := make([]byte, 17<<20)
	bomb := gzipped(t, tarred(t, file{"a", zeros}))
	large := gzipped(t, zeros)
	many := make([]file, 2500)
	for i := range many {
		many[i].name = fmt.Sprintf("f%d.txt", i)
	}
	deep := []byte("x")
	for range 10 {
		deep = zipped(t, file{"a.zip", deep})
	}
	for name, content := range map[string][]byte{
		"many.zip":   zipped(t, many...),
		"many.tar":   tarred(t, many...),
		"deep.zip":   deep,
		"ratio.tgz":  bomb,
		"nested.zip": zipped(t, file{"a.tar.gz", bomb}),
		"count.7z":   sevenZipOf(4_000_000_000),
	} {
		if found, err := look(t, filter(t), name, content); err == nil || !strings.Contains(err.Error(), "over the limit") {
			t.Errorf("%s: %v %v", name, found, err)
		}
	}
	// Files that are no archives are not unpacked to their end.
	if found, err := look(t, filter(t), "large.gz", large); err != nil || len(found) > 0 {
		t.Errorf("large: %v %v", found, err)
	}
}

// Decoders that take memory as the archive says are counted.
func TestModels(t *testing.T) {
	s := filter(t).newScan(context.Background(), 1)
	props := binary.LittleEndian.AppendUint32([]byte{6}, 64<<20)
	for range maxModels {
		if _, err := s.newPPMd(props, 10, bytes.NewReader(make([]byte, 100))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.newPPMd(props, 10, bytes.NewReader(make([]byte, 100))); !errors.Is(err, errLimit) {
		t.Errorf("got %v", err)
	}
	large := binary.LittleEndian.AppendUint32([]byte{6}, 64<<20+1)
	if _, err := s.newPPMd(large, 10, bytes.NewReader(nil)); !errors.Is(err, errUnknown7z) {
		t.Errorf("got %v", err)
	}
}

// What a decoder gives before it breaks off is judged.
func TestBrokenOff(t *testing.T) {
	packed := gzipped(t, append(bytes.Clone(executable), make([]byte, 100)...))
	found, err := look(t, filter(t), "a.gz", packed[:len(packed)-8])
	if err != nil || !slices.Equal(found, []string{"AttachmentContent a.gz/a"}) {
		t.Errorf("%q %v", found, err)
	}
}

func TestOverLimitVerdict(t *testing.T) {
	deep := []byte("x")
	for range 10 {
		deep = zipped(t, file{"a.zip", deep})
	}
	a := start(t, ``)
	send(a, message(file{"a.zip", deep})).Want(550, "5.7.1").WantReason(reasonLimit)
	send(a, "Content-Type: multipart/mixed; boundary=b\n\n"+strings.Repeat("--b\n\nx\n", 10_000)).Want(550, "5.7.1").WantReason(reasonLimit)
	send(a, strings.Repeat("Content-Type: message/rfc822\n\n", 1000)).Want(550, "5.7.1").WantReason(reasonLimit)
}

func TestUU(t *testing.T) {
	a := start(t, ``)
	send(a, "Subject: x\n\nhello\nbegin 644 clam.exe\nM35J0\n`\nend\n").Want(550, "5.7.1").WantReason(reasonName)
	send(a, "Subject: x\n\nbegin 644 a.txt\nM35J0\n`\nend\nbegin with a.exe\n").WantVerdict("continue")
}

func TestTNEF(t *testing.T) {
	unicode := func(s string) []byte {
		var b []byte
		for _, c := range s + "\x00" {
			b = append(b, byte(c), 0)
		}
		return b
	}
	long := unicode("long name.exe")
	props := append(le32(1), append(append(le16(0x1f), le16(0x3707)...), append(append(le32(1), le32(uint32(len(long)))...), long...)...)...)
	message := tnef(tnefPart{attachRendData, nil}, tnefPart{attachTitle, []byte("a.txt\x00")}, tnefPart{attachData, []byte("text")},
		tnefPart{attachRendData, nil}, tnefPart{attachTitle, []byte("LONGNA~1.TXT\x00")}, tnefPart{attachProps, props})
	hidden := tnef(tnefPart{attachRendData, nil}, tnefPart{attachData, executable}, tnefPart{attachTitle, []byte("b.txt\x00")})
	object := slices.Concat(le32(1), le16(0x0d), le16(0x3701), le32(1), le32(uint32(16+len(message))), make([]byte, 16), message, make([]byte, (4-len(message)%4)%4))
	attached := tnef(tnefPart{attachRendData, nil}, tnefPart{attachTitle, []byte("Fwd\x00")}, tnefPart{attachProps, object})
	for want, content := range map[string][]byte{
		"AttachmentName winmail.dat/Fwd/long name.exe": attached,
		"AttachmentName winmail.dat/long name.exe":     message, "AttachmentContent winmail.dat/b.txt": hidden,
		"ArchiveBroken winmail.dat": tnef(tnefPart{attachData, []byte("cut off")})[:20],
	} {
		if found, err := look(t, filter(t), "winmail.dat", content); err != nil || !slices.Equal(found, []string{want}) {
			t.Errorf("%q %v, want %q", found, err, want)
		}
	}
}

type tnefPart struct {
	tag  uint16
	data []byte
}

func le16(n uint16) []byte { return []byte{byte(n), byte(n >> 8)} }
func le32(n uint32) []byte { return append(le16(uint16(n)), le16(uint16(n>>16))...) }

func tnef(parts ...tnefPart) []byte {
	out := append([]byte("x\x9f\x3e\x22"), 1, 0)
	for _, p := range parts {
		out = append(append(append(append(out, 2), le16(p.tag)...), 6, 0), le32(uint32(len(p.data)))...)
		out = append(append(out, p.data...), 0, 0)
	}
	return out
}

func TestConfiguration(t *testing.T) {
	for config, want := range map[string]string{
		``:                       "",
		`names = ["*.iso", "["]`: `names[1]: "[" is not a pattern`,
		`types = ["a b"]`:        `types[0]: "a b" is no media type`,
		`action = "drop"`:        `action: `,
		"entry {\n action = \"strip\"\n names = [\"*.x\"]\n}\nentry {\n action = \"strip\"\n types = [\"x;y\"]\n}": `entry[1].types[0]: "x;y" is no media type`,
		"entry {\n action = \"allow\"\n}": `entry[0]: it has neither names nor types`,
		"response = \"two\\nlines\"":      `response: a reply is one line of ASCII`,
		`max_depth = 0`:                   `max_depth: `,
	} {
		got := agenttest.Diagnostics(t, New, config)
		if want == "" && len(got) > 0 || want != "" && !slices.ContainsFunc(got, func(d string) bool { return strings.Contains(d, want) }) {
			t.Errorf("%s: %q, want %q", config, got, want)
		}
	}
}

func TestReadme(t *testing.T) { agenttest.CheckReadme(t, New, "README.md") }

// The containers that are looked into show the program in them, without the names.
func TestSamplePrograms(t *testing.T) {
	dir := filepath.Join(corpora.Path(t, "av-clamav-testfiles"), "files")
	for name, want := range map[string]string{
		"clam.exe": "", "clam.zip": "/clam.exe", "clam.7z": "/clam.exe", "clam.tar.gz": "/x/clam.exe", "clam.exe.bz2": "/x",
		"clam.bz2.zip": "/clam.exe", "clam.tnef": "/clam.exe", "clam-upx.exe": "",
	} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		found, err := look(t, filter(t), "x", content)
		if err != nil || !slices.ContainsFunc(found, func(f string) bool { return strings.Contains(f, " x"+want) }) {
			t.Errorf("%s: %q %v", name, found, err)
		}
	}
}

// What is in real TNEF is named; of a message in a message too.
func TestSampleTNEF(t *testing.T) {
	dir := filepath.Join(corpora.Path(t, "mime-mimekit"), "tnef")
	f := filter(t)
	names, err := match.NewNames([]string{"*.jpg", "*.bat", "*.doc", "*.dat", "*.mp3", "README", "*.cfg"})
	if err != nil {
		t.Fatal(err)
	}
	f.rules = []*rule{{names: names, types: map[string]bool{}, action: "reject"}}
	for name, want := range map[string]string{
		"attachments.tnef": "AttachmentName x/zappa_av1.jpg", "data-before-name.tnef": "AttachmentName x/AUTOEXEC.BAT",
		"long-filename.tnef": "AttachmentName x/allproductsmar2000.dat", "two-files.tnef": "AttachmentName x/README",
		"missing-filenames.tnef": "AttachmentName x/TechlibDEC99.doc", "multi-value-attribute.tnef": "AttachmentName x/208225__5_seconds__Voice_Mail.mp3",
		"unicode-mapi-attr-name.tnef": "AttachmentName x/spacon~1.cfg", "MAPI_ATTACH_DATA_OBJ.tnef": "AttachmentName x/VIA Nytt 1402.doc",
		"christmas.tnef": "AttachmentName x/kitten-playing-with-a-christmas-tree.jpg", "rtf.tnef": "", "body.tnef": "", "triples.tnef": "",
		"garbage-at-end.tnef": "ArchiveBroken x", "panic.tnef": "AttachmentName x/image001.jpg, ArchiveBroken x",
	} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if found, err := look(t, f, "x", content); err != nil || strings.Join(found, ", ") != want {
			t.Errorf("%s: %q %v, want %q", name, found, err, want)
		}
	}
}

func TestSampleKinds(t *testing.T) {
	dir := filepath.Join(corpora.Path(t, "attach-mimetype-samples"), "testdata")
	for name, want := range map[string]string{
		"msi.msi": "AttachmentContent x", "docx.docx": "", "xlsx.xlsx": "", "doc.doc": "", "xls.xls": "", "ppt.ppt": "", "pub.pub": "",
		"msg.msg": "", "gif.gif": "", "utf8.txt": "", "tar.tar": "", "jar_in_zip.zip": "ArchiveBroken x", // the sample is cut off

	} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if found, err := look(t, filter(t), "x", content); err != nil || strings.Join(found, ", ") != want {
			t.Errorf("%s: %q %v, want %q", name, found, err, want)
		}
	}
}

// Every message of the MIME samples gets a verdict.
func TestSampleMessages(t *testing.T) {
	for _, name := range []string{"mime-mime4j", "mime-mimekit", "mime-ruby-mail", "mime-python-email"} {
		n := 0
		err := filepath.WalkDir(corpora.Path(t, name), func(path string, d os.DirEntry, err error) error {
			info, infoErr := d.Info()
			if err != nil || infoErr != nil || !info.Mode().IsRegular() || info.Size() > 1<<20 {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			header, body := splitMessage(text)
			s := filter(t).newScan(context.Background(), int64(len(body)))
			if err := s.message(header, bytes.NewReader(body)); err != nil && !strings.Contains(err.Error(), "over the limit") {
				t.Errorf("%s: %v", path, err)
			}
			n++
			return nil
		})
		if err != nil || n == 0 {
			t.Errorf("%s: %d messages, %v", name, n, err)
		}
	}
}

// FuzzContent: whatever a file holds, the scan ends without a crash and within its limits.
func FuzzContent(f *testing.F) {
	f.Add("a.zip", zipped(f, file{"a.exe", executable}))
	f.Add("a.tgz", gzipped(f, tarred(f, file{"a.exe", executable})))
	f.Add("a.rar", rar5("a.exe", executable))
	f.Add("a.7z", sevenZip("a.exe", executable, "\x00"))
	f.Add("winmail.dat", tnef(tnefPart{attachTitle, []byte("a")}, tnefPart{attachData, executable}))
	f.Add("a.eml", []byte(message(file{"a.exe", executable})))
	f.Add("a.7z", sevenZip("a.exe", executable, idBCJ2))
	f.Add("a.7z", sevenZip("a.exe", executable, "\x03\x04\x01"))
	f.Add("a.tar.zst", zstandard(f, tarred(f, file{"a.exe", executable})))
	f.Add("a.arj", []byte("\x60\xea"))
	f.Add("a.xz", []byte("\xfd7zXZ\x00\x00\x04"))
	f.Add("a.msi", []byte("\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"))
	f.Fuzz(func(t *testing.T, name string, content []byte) {
		filter := filter(t)
		filter.MaxExpanded = 1 << 20
		s := filter.newScan(context.Background(), int64(len(content)))
		if err := s.content(name, bytes.NewReader(content), 0, ""); err != nil && s.expanded == 0 {
			t.Errorf("%v before anything was read", err)
		}
		if s.expanded > int64(len(content))+2<<20 || s.files > filter.MaxFiles+1 {
			t.Errorf("%d octets, %d files", s.expanded, s.files)
		}
	})
}
