package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/posternmail/postern/sdk/mime"
)

// errLimit is wrapped where a message goes over a limit.
var errLimit = errors.New("over the limit")

// ratioFrom is the size from which max_ratio counts: small files may well be packed a thousandfold.
const ratioFrom = 16 << 20

// scan of one message. All limits are for the message as a whole.
type scan struct {
	*Filter
	ctx       context.Context
	size      int64 // of the message
	part      *mime.Part
	files     int
	expanded  int64
	models    int // see model
	findings  []finding
	fates     map[fate]bool // that findings stand for
	encrypted []string
}

// fate of a part.
type fate struct {
	part   *mime.Part
	action string
}

func (f *Filter) newScan(ctx context.Context, size int64) *scan {
	return &scan{Filter: f, ctx: ctx, size: size, fates: map[fate]bool{}}
}

// add a finding. The first with its action is enough for a part, so that there are no more than parts.
func (s *scan) add(x finding) {
	key := fate{x.part, x.action}
	if x.action == "allow" || s.fates[key] {
		return
	}
	s.fates[key] = true
	s.findings = append(s.findings, x)
}

// message looks at each leaf of a message, and at what other readers of mail might take its multiparts for.
func (s *scan) message(header []byte, body mime.Body) error {
	tree, err := s.parse(header, body)
	if err != nil {
		return err
	}
	for p := range tree.All() {
		s.part = p
		if len(p.Parts) == 0 {
			err = s.leaf(p, "", 0)
		}
		if err == nil {
			err = s.hidden(p, "", 0)
		}
		if err != nil {
			return err
		}
	}
	s.part = nil
	return nil
}

// hidden looks at the other readings of a multipart, and at theirs. They count like archives.
func (s *scan) hidden(p *mime.Part, inside string, depth int) error {
	readings, err := p.Hidden()
	if err != nil {
		return err
	}
	for _, r := range readings {
		if err := s.grow(r.Body.Size()); err != nil {
			return err
		}
		if depth >= s.MaxDepth {
			return fmt.Errorf("%w: multiparts that can be read in more than %d ways", errLimit, s.MaxDepth)
		}
		if err := s.inner(r.Header, r.Body, inside, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// inner looks at a message in a message. inside is where it was found.
func (s *scan) inner(header []byte, body mime.Body, inside string, depth int) error {
	tree, err := s.parse(header, body)
	if err != nil {
		return err
	}
	for p := range tree.All() {
		if len(p.Parts) == 0 {
			if s.files++; s.files > s.MaxFiles {
				return fmt.Errorf("%w: more than %d files", errLimit, s.MaxFiles)
			}
			err = s.leaf(p, inside, depth)
		}
		if err == nil {
			err = s.hidden(p, inside, depth)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *scan) parse(header []byte, body mime.Body) (*mime.Tree, error) {
	tree, err := mime.Parse(s.ctx, header, body, mime.Limits{Parts: s.MaxParts})
	if errors.Is(err, mime.ErrTooDeep) || errors.Is(err, mime.ErrTooMany) || errors.Is(err, mime.ErrTooLarge) {
		return nil, fmt.Errorf("%w: %w", errLimit, err)
	}
	return tree, err
}

// leaf judges a part by its names, its type and its content. inside is the path of the archive it came from.
func (s *scan) leaf(p *mime.Part, inside string, depth int) error {
	names := p.Names()
	if len(names) == 0 {
		names = []string{p.Type}
	}
	file := path.Join(inside, names[0])
	if s.judge(file, names, p.Types()) {
		return nil
	}
	if strings.HasPrefix(p.Type, "multipart/") && (p.Encoding == "base64" || p.Encoding == "quoted-printable") {
		return s.encoded(p, file, depth)
	}
	return s.content(file, p.Decoded(), depth, p.Type)
}

// encoded looks into a multipart that was encoded, which RFC 2045 section 6.4 forbids.
func (s *scan) encoded(p *mime.Part, file string, depth int) error {
	if depth >= s.MaxDepth {
		return fmt.Errorf("%w: encoded multiparts more than %d deep at %s", errLimit, s.MaxDepth, file)
	}
	data, err := s.all(&meter{s, p.Decoded()})
	if errors.Is(err, errLimit) || s.ctx.Err() != nil {
		return err
	}
	return s.inner(p.TypeField(), bytes.NewReader(data), file, depth+1)
}

// judge a file by its names and types. It reports whether a rule has decided.
func (s *scan) judge(file string, names, types []string) bool {
	for _, r := range s.rules {
		for _, name := range names {
			for _, variant := range variants(name) {
				if pattern, ok := r.names.Match(variant); ok {
					s.add(finding{s.part, file, reasonName, pattern, r.action, r.response})
					return true
				}
			}
		}
		for _, t := range types {
			major, _, _ := strings.Cut(t, "/")
			if r.types[t] || r.types[major+"/*"] {
				s.add(finding{s.part, file, reasonType, t, r.action, r.response})
				return true
			}
		}
	}
	return false
}

// judgeKind judges content by what it is: as if the file had the extension of its kind. It reports whether a rule
// has decided.
func (s *scan) judgeKind(file string, k kind) bool {
	if k == "" {
		return false
	}
	for _, r := range s.rules {
		if pattern, ok := r.names.Match("content." + string(k)); ok && strings.HasPrefix(pattern, "*.") {
			s.add(finding{s.part, file, reasonContent, "content of " + pattern, r.action, r.response})
			return true
		}
	}
	return false
}

// content looks at what a file is, and into it where it is an archive.
func (s *scan) content(file string, r io.Reader, depth int, mediaType string) error {
	in := bufio.NewReaderSize(&meter{s, r}, sniffed)
	head, err := in.Peek(sniffed)
	k := sniff(head)
	if k == "" && isDisk(file) {
		k = "iso"
	}
	if s.judgeKind(file, k) {
		return nil
	}
	if err != nil && !errors.Is(err, io.EOF) && (depth > 0 || errors.Is(err, errLimit) || s.ctx.Err() != nil) {
		return s.unread(file, err) // of a part that is badly encoded, what can be read is judged
	}
	if unopened[k] {
		s.add(finding{s.part, file, reasonUnscannable, "archive of kind " + string(k), s.Unscannable, s.Response})
		return nil
	}
	open, nests := opener(k, mediaType, file)
	if open == nil {
		return nil
	}
	if nests && depth >= s.MaxDepth {
		return fmt.Errorf("%w: archives more than %d deep at %s", errLimit, s.MaxDepth, file)
	}
	return s.unread(file, open(s, file, in, depth+1))
}

// unread is what an error in one file means: a limit or the end of the time ends the scan, anything else is noted.
func (s *scan) unread(file string, err error) error {
	switch {
	case err == nil:
		return nil
	case s.ctx.Err() != nil:
		return s.ctx.Err()
	case errors.Is(err, errLimit):
		return err
	case errors.Is(err, errEncrypted):
		s.noteEncrypted(file)
		return nil
	}
	s.add(finding{s.part, file, reasonBroken, err.Error(), s.Broken, s.Response})
	return nil
}

func (s *scan) noteEncrypted(file string) {
	if len(s.encrypted) < 20 && !slices.Contains(s.encrypted, file) {
		s.encrypted = append(s.encrypted, file)
	}
	s.add(finding{s.part, file, reasonEncrypted, "encrypted", s.Encrypted, s.Response})
}

// member of an archive: judged by its name, then by its content. open may be nil where that cannot be read.
func (s *scan) member(archive, name string, depth int, open func() (io.Reader, error)) error {
	if s.files++; s.files > s.MaxFiles {
		return fmt.Errorf("%w: more than %d files", errLimit, s.MaxFiles)
	}
	file := archive + "/" + name
	if s.judge(file, []string{baseOf(name)}, nil) || open == nil {
		return nil
	}
	r, err := open()
	if err != nil {
		return s.unread(file, err)
	}
	return s.content(file, r, depth, "")
}

// all reads the rest of a file into memory, within the limits.
func (s *scan) all(r io.Reader) ([]byte, error) {
	var b bytes.Buffer
	_, err := b.ReadFrom(r)
	return b.Bytes(), err
}

// meter counts what is unpacked and stops at the limits.
type meter struct {
	s *scan
	r io.Reader
}

func (m *meter) Read(p []byte) (int, error) {
	if err := m.s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := m.r.Read(p)
	if limit := m.s.grow(int64(n)); limit != nil {
		return n, limit
	}
	return n, err
}

// grow counts n more octets.
func (s *scan) grow(n int64) error {
	s.expanded += n
	switch {
	case s.expanded > s.size+int64(s.MaxExpanded):
		return fmt.Errorf("%w: more than %d octets unpacked", errLimit, s.MaxExpanded)
	case s.expanded > ratioFrom && s.expanded/int64(s.MaxRatio) > s.size:
		return fmt.Errorf("%w: unpacked more than %d times its size", errLimit, s.MaxRatio)
	}
	return nil
}

// variants of a name that a Windows computer takes for it: NUL ends a name, and a colon begins a stream of the file.
func variants(name string) []string {
	all := []string{name}
	if i := strings.IndexAny(name, "\x00:"); i > 0 {
		all = append(all, name[:i])
	}
	return all
}

// baseOf the name in an archive.
func baseOf(name string) string {
	name = strings.TrimRight(name, "/\\")
	return name[strings.LastIndexAny(name, "/\\")+1:]
}
