package feed

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"aead.dev/minisign"

	"github.com/posternmail/postern/sdk"
)

// A bundle is a gzipped tar archive of plain files with a manifest as its first, beside a detached signature in the format
// of minisign. The signature is over the archive as it is, so nothing in it is looked at before it is known whose it is.

// Manifest says what a bundle is.
type Manifest struct {
	Name    string    `json:"name"`              // of the feed; the one that the operator has given the feed, too
	Serial  uint64    `json:"serial"`            // grows with every bundle
	Created time.Time `json:"created"`           //
	Expires time.Time `json:"expires,omitzero"`  // after which the bundle counts as old; zero: never
	Comment string    `json:"comment,omitempty"` // for people
	Files   []File    `json:"files"`
}

// File of a bundle.
type File struct {
	Name   string `json:"name"`
	Kind   string `json:"kind"` // what it is for: "ip-block"; an agent passes over the kinds that it does not know
	SHA256 string `json:"sha256"`
}

// id of the bundle: what its files are named after on disk.
func (m Manifest) id() string { return fmt.Sprintf("%020d", m.Serial) }

// Bundle is a verified bundle.
type Bundle struct {
	Manifest Manifest
	content  map[string][]byte // by name
}

// Files of a kind, by their names, in the order of the manifest.
func (b *Bundle) Files(kind string) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for _, f := range b.Manifest.Files {
			if f.Kind == kind && !yield(f.Name, b.content[f.Name]) {
				return
			}
		}
	}
}

// Has reports whether there is a file of one of the kinds.
func (b *Bundle) Has(kinds ...string) bool {
	for _, kind := range kinds {
		for range b.Files(kind) {
			return true
		}
	}
	return false
}

// Limits of bundles.
const (
	manifestName = "manifest.json"
	maxManifest  = 1 << 20
	maxFiles     = 1000
	maxName      = 100      // octets of the name of a feed, a file or a kind
	maxSignature = 16 << 10 // octets of a signature file
)

// Key is a public key of minisign: the line of its file that begins with "RW".
type Key struct{ minisign.PublicKey }

// Verify opens a bundle whose signature is by one of the keys. Nothing of the archive is unpacked before. size bounds the
// archive and what is in it, each, in octets.
func Verify(archive, signature []byte, keys []Key, size sdk.Size) (*Bundle, error) {
	if int64(len(archive)) > int64(size) {
		return nil, fmt.Errorf("the bundle has more than %d octets", size)
	}
	if err := verifySignature(archive, signature, keys); err != nil {
		return nil, err
	}
	return unpack(archive, int64(size))
}

func verifySignature(archive, signature []byte, keys []Key) error {
	var s minisign.Signature
	if len(signature) > maxSignature {
		return fmt.Errorf("the signature has more than %d octets", maxSignature)
	}
	if err := s.UnmarshalText(signature); err != nil {
		return fmt.Errorf("no signature of minisign: %w", err)
	}
	for _, key := range keys {
		if key.ID() != s.KeyID {
			continue
		}
		if minisign.Verify(key.PublicKey, archive, signature) {
			return nil
		}
		return fmt.Errorf("the signature by the key %016X is wrong: the bundle was changed, or it is the signature of another", s.KeyID)
	}
	return fmt.Errorf("signed by the key %016X, which is none of this feed", s.KeyID)
}

// unpack an archive into memory: at no name in it anything is written.
func unpack(archive []byte, size int64) (*Bundle, error) {
	packed, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return nil, fmt.Errorf("the bundle is no gzipped archive: %w", err)
	}
	limited := &io.LimitedReader{R: packed, N: size + 1}
	b := &Bundle{content: map[string][]byte{}}
	err = b.read(tar.NewReader(limited))
	if limited.N == 0 {
		return nil, fmt.Errorf("the bundle unpacks to more than %d octets", size)
	}
	if err != nil {
		return nil, fmt.Errorf("the bundle: %w", err)
	}
	return b, nil
}

func (b *Bundle) read(archive *tar.Reader) error {
	header, err := archive.Next()
	if err != nil {
		return fmt.Errorf("the archive is empty or broken: %w", err)
	}
	if header.Name != manifestName || header.Typeflag != tar.TypeReg || header.Size > maxManifest {
		return fmt.Errorf("its first file is not %s of up to %d octets", manifestName, maxManifest)
	}
	text, err := io.ReadAll(archive)
	if err != nil {
		return err
	}
	if b.Manifest, err = ParseManifest(text); err != nil {
		return err
	}
	return b.readFiles(archive)
}

// readFiles: those of the manifest, each once, and no others.
func (b *Bundle) readFiles(archive *tar.Reader) error {
	want := map[string]string{}
	for _, f := range b.Manifest.Files {
		want[f.Name] = f.SHA256
	}
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		sum, listed := want[header.Name]
		if !listed || header.Typeflag != tar.TypeReg {
			return fmt.Errorf("%q is not a file of the manifest, or comes twice", header.Name)
		}
		delete(want, header.Name)
		content, err := io.ReadAll(archive)
		if err != nil {
			return err
		}
		if got := sha256.Sum256(content); hex.EncodeToString(got[:]) != sum {
			return fmt.Errorf("%s is not the file of the manifest: its SHA-256 differs", header.Name)
		}
		b.content[header.Name] = content
	}
	for name := range want {
		return fmt.Errorf("%s is missing", name)
	}
	return nil
}

// ParseManifest reads and checks a manifest. Fields of a later version are passed over.
func ParseManifest(text []byte) (Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fmt.Errorf("%s: %w", manifestName, err)
	}
	if err := m.check(); err != nil {
		return m, fmt.Errorf("%s: %w", manifestName, err)
	}
	return m, nil
}

func (m Manifest) check() error {
	switch {
	case !isName(m.Name):
		return fmt.Errorf("%q is no name of a feed: a-z, 0-9, - and _, up to %d", m.Name, maxName)
	case m.Serial == 0:
		return errors.New("a serial begins with 1")
	case m.Created.IsZero():
		return errors.New("when it was created is missing")
	case !m.Expires.IsZero() && !m.Expires.After(m.Created):
		return errors.New("it expires before it was created")
	case len(m.Files) == 0 || len(m.Files) > maxFiles:
		return fmt.Errorf("%d files; 1 to %d may be", len(m.Files), maxFiles)
	}
	seen := map[string]bool{manifestName: true}
	for _, f := range m.Files {
		switch {
		case !isFileName(f.Name) || !isName(f.Kind):
			return fmt.Errorf("%q of the kind %q: a name is of a-z, 0-9, -, _ and ., a kind without dots", f.Name, f.Kind)
		case seen[f.Name]:
			return fmt.Errorf("%s comes twice", f.Name)
		}
		seen[f.Name] = true
	}
	return nil
}

// isName: lower-case letters, digits, - and _.
func isName(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

// isFileName: a name with dots in between.
func isFileName(s string) bool {
	if s == "" || s[0] == '.' || len(s) > maxName {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// Content of a file that is to be packed.
type Content struct {
	Name, Kind string
	Octets     []byte
}

// Pack makes the archive of a bundle. The manifest's files are those given; the rest of it is the caller's.
func Pack(m Manifest, files []Content) ([]byte, error) {
	m.Files = nil
	for _, f := range files {
		sum := sha256.Sum256(f.Octets)
		m.Files = append(m.Files, File{f.Name, f.Kind, hex.EncodeToString(sum[:])})
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	packed := gzip.NewWriter(&b)
	archive := tar.NewWriter(packed)
	err = put(archive, m.Created, manifestName, text)
	for _, f := range files {
		err = errors.Join(err, put(archive, m.Created, f.Name, f.Octets))
	}
	if err := errors.Join(err, archive.Close(), packed.Close()); err != nil {
		return nil, fmt.Errorf("packing: %w", err)
	}
	return b.Bytes(), nil
}

func put(archive *tar.Writer, at time.Time, name string, octets []byte) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(octets)), Mode: 0o644, ModTime: at}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := archive.Write(octets)
	return err
}

// Sign answers with the detached signature of an archive, prehashed as minisign does it.
func Sign(archive []byte, key minisign.PrivateKey, m Manifest) ([]byte, error) {
	r := minisign.NewReader(bytes.NewReader(archive))
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	trusted := fmt.Sprintf("timestamp:%d\tfile:%s\tserial:%d", m.Created.Unix(), archiveName(m.Name), m.Serial)
	return r.SignWithComments(key, trusted, fmt.Sprintf("signature from minisign secret key %016X", key.ID())), nil
}

// archiveName is the file of a feed's bundle where it is published.
func archiveName(feed string) string { return feed + ".tar.gz" }

// signatureSuffix of the file beside it.
const signatureSuffix = ".minisig"
