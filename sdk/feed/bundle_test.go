package feed

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"
)

// publisher of bundles.
type publisher struct {
	t      testing.TB
	secret minisign.PrivateKey
	key    Key
}

func newPublisher(t testing.TB) publisher {
	t.Helper()
	public, secret, err := minisign.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return publisher{t, secret, Key{public}}
}

var created = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// bundle of one list.
func (p publisher) bundle(serial uint64, list string) (archive, signature []byte) {
	p.t.Helper()
	return p.pack(Manifest{Name: "lists", Serial: serial, Created: created}, Content{"a.txt", "list", []byte(list)})
}

func (p publisher) pack(m Manifest, files ...Content) (archive, signature []byte) {
	p.t.Helper()
	archive, err := Pack(m, files)
	if err != nil {
		p.t.Fatal(err)
	}
	return archive, p.sign(archive)
}

func (p publisher) sign(archive []byte) []byte {
	p.t.Helper()
	signature, err := Sign(archive, p.secret, Manifest{Name: "lists", Created: created})
	if err != nil {
		p.t.Fatal(err)
	}
	return signature
}

const size = 1 << 20

func TestVerify(t *testing.T) {
	p := newPublisher(t)
	archive, signature := p.bundle(7, "one\ntwo\n")
	for name, signature := range map[string][]byte{"prehashed": signature, "legacy": minisign.Sign(p.secret, archive)} {
		b, err := Verify(archive, signature, []Key{newPublisher(t).key, p.key}, size)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for file, content := range b.Files("list") {
			if file != "a.txt" || string(content) != "one\ntwo\n" {
				t.Errorf("%s: %s holds %q", name, file, content)
			}
		}
		if b.Manifest.Serial != 7 || !b.Has("other", "list") || b.Has("other") {
			t.Errorf("%s: %+v", name, b.Manifest)
		}
	}
}

// TestMinisign verifies what the program minisign has made: signatures of "test" that other implementations test with, too.
func TestMinisign(t *testing.T) {
	var key Key
	if err := key.UnmarshalText([]byte("RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3")); err != nil {
		t.Fatal(err)
	}
	for name, signature := range map[string]string{
		"legacy": "untrusted comment: signature from minisign secret key\n" +
			"RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=\n" +
			"trusted comment: timestamp:1555779966\tfile:test\n" +
			"QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==",
		"prehashed": "untrusted comment: signature from minisign secret key\n" +
			"RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=\n" +
			"trusted comment: timestamp:1633700835\tfile:test\tprehashed\n" +
			"wLMDjy9FLAuxZ3q4NlEvkgtyhrr0gtTu6KC4KBJdITbbOeAi1zBIYo0v4iTgt8jJpIidRJnp94ABQkJAgAooBQ==",
	} {
		if err := verifySignature([]byte("test"), []byte(signature), []Key{key}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := verifySignature([]byte("test"), []byte(strings.Replace(signature, "file:test", "file:rest", 1)), []Key{key}); err == nil {
			t.Errorf("%s: a changed trusted comment passes", name)
		}
	}
}

// tarEntry of a hand-made archive.
type tarEntry struct {
	name string
	kind byte
	text string
}

// handmade archive, as no publisher's tool makes it.
func handmade(t testing.TB, entries ...tarEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	packed := gzip.NewWriter(&b)
	archive := tar.NewWriter(packed)
	for _, e := range entries {
		h := &tar.Header{Typeflag: e.kind, Name: e.name, Size: int64(len(e.text)), Mode: 0o644}
		if e.kind != tar.TypeReg {
			h.Size, h.Linkname = 0, "/etc/passwd"
		}
		if err := archive.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if e.kind == tar.TypeReg {
			if _, err := archive.Write([]byte(e.text)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	if err := packed.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// manifestOf one file of the content "x".
func manifestOf(name string) tarEntry {
	const sumOfX = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
	return tarEntry{manifestName, tar.TypeReg, fmt.Sprintf(
		`{"name":"lists","serial":1,"created":"2026-01-01T00:00:00Z","files":[{"name":%q,"kind":"list","sha256":%q}]}`, name, sumOfX)}
}

func TestVerifyRefuses(t *testing.T) {
	p, other := newPublisher(t), newPublisher(t)
	archive, signature := p.bundle(7, "one")
	x := tarEntry{"a.txt", tar.TypeReg, "x"}
	changed := slices.Clone(archive)
	changed[len(changed)-1]++
	cases := map[string]struct {
		archive, signature []byte
		want               string
	}{
		"changed":         {changed, signature, "is wrong: the bundle was changed"},
		"cut off":         {archive[:len(archive)/2], signature, "is wrong: the bundle was changed"},
		"another key":     {archive, other.sign(archive), "which is none of this feed"},
		"no signature":    {archive, nil, "no signature of minisign"},
		"not base64":      {archive, []byte("untrusted comment: x\n!!\ntrusted comment: y\n!!\n"), "no signature of minisign"},
		"of other octets": {archive, p.sign([]byte("x")), "is wrong: the bundle was changed"},
		"huge signature":  {archive, bytes.Repeat([]byte("x"), maxSignature+1), "the signature has more than"},
		"too large":       {make([]byte, size+1), signature, "more than 1048576 octets"},
		"bomb":            {handmade(t, manifestOf("a.txt"), tarEntry{"a.txt", tar.TypeReg, strings.Repeat("x", 2*size)}), nil, "unpacks to more than"},
		"no archive":      {[]byte("hello"), nil, "no gzipped archive"},
		"cut off by its maker": {func() []byte { b := handmade(t, manifestOf("a.txt"), x); return b[:len(b)-30] }(), nil,
			"unexpected EOF"},
		"empty":               {handmade(t), nil, "empty or broken"},
		"no manifest":         {handmade(t, x), nil, "its first file is not manifest.json"},
		"climbs out":          {handmade(t, manifestOf("a.txt"), tarEntry{"../../etc/cron.d/a.txt", tar.TypeReg, "x"}), nil, "is not a file of the manifest"},
		"climbs, listed":      {handmade(t, manifestOf("../a.txt"), tarEntry{"../a.txt", tar.TypeReg, "x"}), nil, "a name is of a-z"},
		"absolute, listed":    {handmade(t, manifestOf("/etc/a"), tarEntry{"/etc/a", tar.TypeReg, "x"}), nil, "a name is of a-z"},
		"link":                {handmade(t, manifestOf("a.txt"), tarEntry{"a.txt", tar.TypeSymlink, ""}), nil, "is not a file of the manifest"},
		"other content":       {handmade(t, manifestOf("a.txt"), tarEntry{"a.txt", tar.TypeReg, "y"}), nil, "SHA-256 differs"},
		"twice":               {handmade(t, manifestOf("a.txt"), x, x), nil, "or comes twice"},
		"missing":             {handmade(t, manifestOf("a.txt")), nil, "a.txt is missing"},
		"manifest is no JSON": {handmade(t, tarEntry{manifestName, tar.TypeReg, "{"}), nil, "manifest.json: unexpected end"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if c.signature == nil && name != "no signature" {
				c.signature = p.sign(c.archive)
			}
			if _, err := Verify(c.archive, c.signature, []Key{p.key}, size); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want ... %s ...", err, c.want)
			}
		})
	}
}

// manifests that are seeds of the fuzzer, and what is wrong with them.
var manifests = map[string]string{
	`{"name":"a","serial":1,"created":"2026-01-01T00:00:00Z","files":[{"name":"b","kind":"c","sha256":""}]}`:           "",
	`{"name":"a","serial":1,"created":"2026-01-01T00:00:00Z","files":[{"name":"b","kind":"c","sha256":""}],"later":1}`: "",
	`{"name":"A b","serial":1,"created":"2026-01-01T00:00:00Z","files":[{"name":"b","kind":"c","sha256":""}]}`:         "no name of a feed",
	`{"name":"a","serial":-1}`: "manifest.json: json",
	`{"name":"a","serial":0,"created":"2026-01-01T00:00:00Z","files":[{"name":"b","kind":"c","sha256":""}]}`:                      "a serial begins with 1",
	`{"name":"a","serial":1,"files":[{"name":"b","kind":"c","sha256":""}]}`:                                                       "when it was created",
	`{"name":"a","serial":1,"created":"2026-01-01T00:00:00Z","files":[]}`:                                                         "0 files",
	`{"name":"a","serial":1,"created":"2026-01-02T00:00:00Z","expires":"2026-01-01T00:00:00Z","files":[{"name":"b","kind":"c"}]}`: "expires before",
	`{"name":"a","serial":1,"created":"2026-01-01T00:00:00Z","files":[{"name":"b","kind":"c"},{"name":"b","kind":"c"}]}`:          "comes twice",
	`{"name":"a","serial":1,"created":"2026-01-01T00:00:00Z","files":[{"name":"manifest.json","kind":"c"}]}`:                      "comes twice",
	`{"name":"a","serial":1,"created":"2026-01-01T00:00:00Z","files":[{"name":"..","kind":"c"}]}`:                                 "a name is of",
	`[]`: "manifest.json: json",
}

func TestParseManifest(t *testing.T) {
	for text, want := range manifests {
		_, err := ParseManifest([]byte(text))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// FuzzParseManifest: what is taken can be packed, and is taken again.
func FuzzParseManifest(f *testing.F) {
	for text := range manifests {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := ParseManifest(text)
		if err != nil {
			return
		}
		var files []Content
		for _, file := range m.Files {
			files = append(files, Content{file.Name, file.Kind, []byte(file.Name)})
		}
		archive, err := Pack(m, files)
		if err != nil {
			if m.Created.Year() > 9999 || m.Created.Year() < 1 {
				return
			}
			t.Fatalf("%+v cannot be packed: %v", m, err)
		}
		b, err := unpack(archive, 64<<20)
		if err != nil || b.Manifest.id() != m.id() {
			t.Fatalf("%+v is unpacked as %+v, %v", m, b, err)
		}
	})
}

// FuzzSignature: no signature that was not made with the key passes.
func FuzzSignature(f *testing.F) {
	p := newPublisher(f)
	archive, signature := p.bundle(1, "x")
	f.Add(signature)
	f.Add(minisign.Sign(p.secret, archive))
	f.Add([]byte("untrusted comment: x\nRWQ=\ntrusted comment: y\nAA==\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if verifySignature([]byte("something else"), text, []Key{p.key}) == nil {
			t.Fatalf("%q passes", text)
		}
	})
}

// FuzzUnpack: an archive is refused or whole, in bounded memory.
func FuzzUnpack(f *testing.F) {
	p := newPublisher(f)
	archive, _ := p.bundle(1, "x")
	f.Add(archive)
	f.Add(handmade(f, manifestOf("a.txt"), tarEntry{"a.txt", tar.TypeReg, "x"}))
	f.Add(handmade(f, manifestOf("a.txt"), tarEntry{"a.txt", tar.TypeSymlink, ""}))
	f.Fuzz(func(t *testing.T, archive []byte) {
		b, err := unpack(archive, size)
		if err != nil {
			return
		}
		for _, file := range b.Manifest.Files {
			if b.content[file.Name] == nil && file.SHA256 != digestOf(nil) {
				t.Fatalf("%s is not there", file.Name)
			}
		}
	})
}
