package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/posternmail/postern/sdk/mime"
)

// Limits that a message can go over. All are for the message as a whole, so that no nesting multiplies them.
var (
	errLimit    = errors.New("over the limit")
	errUnpacked = fmt.Errorf("%w: too much unpacked", errLimit)
)

// unpacker takes a message to pieces. Where readers of mail differ in how they understand a message it takes every way:
// what one engine passes over in a malformed message another program shows to its user.
type unpacker struct {
	*Scanner
	ctx     context.Context
	left    int   // parts
	room    int64 // octets
	objects []*object
	seen    map[[sha256.Size]byte]*object
	sinks   []*sink // that objects are read from
}

// unpack a message. The objects are there with an error, too: as far as it came.
func (s *Scanner) unpack(ctx context.Context, header []byte, body mime.Body) (*unpacker, error) {
	u := &unpacker{Scanner: s, ctx: ctx, left: s.MaxParts, room: int64(s.MaxUnpacked), seen: map[[sha256.Size]byte]*object{}}
	u.objects = []*object{wholeMessage(header, body)}
	return u, u.message(header, body, nil, s.MaxDepth)
}

// close lets go of all objects.
func (u *unpacker) close() {
	for _, o := range u.objects {
		o.close()
	}
	for _, s := range u.sinks {
		s.close()
	}
}

// message takes one to pieces, depth deep at most. inside is the part of the message that it was found in, where it
// was decoded first.
func (u *unpacker) message(header []byte, body mime.Body, inside *mime.Part, depth int) error {
	if depth <= 0 || u.left <= 0 {
		return fmt.Errorf("%w: MIME nesting or parts", errLimit)
	}
	tree, err := mime.Parse(u.ctx, header, body, mime.Limits{Depth: depth, Parts: u.left})
	if errors.Is(err, mime.ErrTooDeep) || errors.Is(err, mime.ErrTooMany) || errors.Is(err, mime.ErrTooLarge) {
		return fmt.Errorf("%w: %w", errLimit, err)
	}
	if err != nil {
		return err
	}
	u.left -= tree.Count
	for p := range tree.All() {
		r := reading{unpacker: u, part: p, target: p, body: body, depth: depth - p.Depth - 1}
		if inside != nil {
			r.target = inside
		}
		if err := r.read(); err != nil {
			return err
		}
	}
	return nil
}

// reading of one part. target is what is stripped for it.
type reading struct {
	*unpacker
	part, target *mime.Part
	body         mime.Body
	depth        int // what is left
}

// read the part in every way.
func (r *reading) read() error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if len(r.part.Parts) == 0 {
		if err := r.leaf(); err != nil {
			return err
		}
	}
	return r.hidden()
}

// leaf decodes the content in all ways that its header and its looks allow.
func (r *reading) leaf() error {
	plain := false
	for _, encoding := range encodings(r.part) {
		var err error
		switch encoding {
		case "base64":
			err = r.base64()
		case "quoted-printable":
			_, err = r.decoded(func(w io.Writer) error { return decodeQuoted(w, r.part.Raw()) })
		default:
			plain = true
		}
		if err != nil {
			return err
		}
	}
	if !plain {
		return nil
	}
	if err := r.plain(); err != nil {
		return err
	}
	return r.looks()
}

// encodings that the header names, the one that counts first.
func encodings(p *mime.Part) []string {
	all := []string{p.Encoding}
	for _, value := range p.Header.All("Content-Transfer-Encoding") {
		value, _, _ = strings.Cut(strings.ToLower(value), ";")
		if value = strings.Trim(value, " \t\""); !slices.Contains(all, value) && len(all) < 4 {
			all = append(all, value)
		}
	}
	return all
}

// plain is the content as it stands.
func (r *reading) plain() error {
	p := r.part
	hash := sha256.New()
	if _, err := io.Copy(hash, p.Raw()); err != nil {
		return fmt.Errorf("reading a part: %w", err)
	}
	o := &object{size: p.End - p.Content, open: section(r.body, p.Content, p.End-p.Content)}
	hash.Sum(o.sum[:0])
	if body, ok := r.body.(interface{ File() (*os.File, error) }); ok && o.size == r.body.Size() {
		o.given = body.File // nothing needs to be copied
	}
	return r.add(o)
}

// base64 decodes up to the first padding, as the standard says, and what follows as well, as some programs do.
func (r *reading) base64() error {
	var more bool
	decode := func(all bool) func(io.Writer) error {
		return func(w io.Writer) (err error) {
			more, err = decodeBase64(w, r.part.Raw(), all)
			return err
		}
	}
	if _, err := r.decoded(decode(false)); err != nil || !more {
		return err
	}
	_, err := r.decoded(decode(true))
	return err
}

// looks finds what is encoded although the header does not say so.
func (r *reading) looks() error {
	head := make([]byte, 4<<10)
	n, err := r.part.Raw().ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return fmt.Errorf("reading a part: %w", err)
	}
	if looksBase64(head[:n]) {
		if err := r.base64(); err != nil {
			return err
		}
	}
	blocks := uuBlocks{in: r.part.Raw()}
	for {
		found, err := r.decoded(blocks.next)
		if err != nil || found == nil {
			return err
		}
	}
}

// decoded adds what decode writes. It answers with nothing where that writes nothing.
func (r *reading) decoded(decode func(io.Writer) error) (*sink, error) {
	s := newSink(r.room)
	r.sinks = append(r.sinks, s)
	if err := decode(s); err != nil || s.size == 0 {
		return nil, err
	}
	if err := r.encoded(s); err != nil {
		return nil, err
	}
	return s, r.add(s.object())
}

// encoded looks into what must not be encoded: messages (RFC 2046 section 5.2.1) and multiparts (RFC 2045 section 6.4).
func (r *reading) encoded(s *sink) error {
	switch {
	case strings.HasPrefix(r.part.Type, "message/"):
		return r.inner(s)
	case strings.HasPrefix(r.part.Type, "multipart/"):
		return r.message(r.part.TypeField(), s.content(), r.target, r.depth)
	}
	return nil
}

// inner takes a decoded message to pieces.
func (r *reading) inner(s *sink) error {
	content := s.content()
	header, start, err := splitHeader(content)
	if err != nil {
		return err
	}
	return r.message(header, io.NewSectionReader(content, start, content.Size()-start), r.target, r.depth)
}

// add an object unless an equal one is there.
func (r *reading) add(o *object) error {
	if o.size == 0 {
		return nil
	}
	if r.room -= o.size; r.room < 0 {
		return errUnpacked
	}
	if same := r.seen[o.sum]; same != nil {
		same.parts = append(same.parts, r.target)
		return nil
	}
	o.name, o.parts = nameOf(r.part), []*mime.Part{r.target}
	r.seen[o.sum] = o
	r.objects = append(r.objects, o)
	return nil
}

// hidden reads a part as other readers of mail might.
func (r *reading) hidden() error {
	found, err := r.part.Hidden()
	if err != nil {
		return err
	}
	for _, other := range found {
		if r.room -= other.Body.Size(); r.room < 0 {
			return errUnpacked
		}
		if err := r.message(other.Header, other.Body, r.target, r.depth); err != nil {
			return err
		}
	}
	return nil
}
