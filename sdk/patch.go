package sdk

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/posternmail/postern/sdk/agentpb"
	"github.com/posternmail/postern/sdk/mime"
)

// Patch is a change of the body: ranges of the stored octets, and new octets between them, whose lines end with
// CRLF. It is an Edit; an answer with it costs no more than what is new. Length and digest are computed when the verdict is answered.
type Patch struct {
	body    *BodyReader
	headers Header
	changes []change
	fields  []Edit // header edits that belong to it
}

// change replaces a range of the body.
type change struct {
	offset, length int64
	data           []byte
}

func newPatch(body *BodyReader, headers Header) *Patch { return &Patch{body: body, headers: headers} }

// Replace length octets at offset by data. Ranges must not overlap; their order is free.
func (p *Patch) Replace(offset, length int64, data []byte) {
	p.changes = append(p.changes, change{offset, length, data})
}

// Insert data at offset.
func (p *Patch) Insert(offset int64, data []byte) { p.Replace(offset, 0, data) }

// Append data to the body.
func (p *Patch) Append(data []byte) { p.Replace(p.body.Size(), 0, data) }

// ReplaceAll gives the message another body.
func (p *Patch) ReplaceAll(data []byte) { p.changes = []change{{0, p.body.Size(), data}} }

// ReplacePart puts another part in the place of one that package mime found: content is a header block (with
// Content-Type and the like), an empty line and the content, as mime.Text makes it. If the part is the message
// itself, its header fields of that kind are replaced with it, which needs MayChange(Headers).
func (p *Patch) ReplacePart(part *mime.Part, content []byte) {
	if part.Parent != nil {
		p.Replace(part.Start, part.End-part.Start, content)
		return
	}
	block, body, _ := bytes.Cut(content, []byte("\r\n\r\n"))
	p.ReplaceAll(body)
	p.fields = nil
	for _, name := range contentFields {
		if p.headers.Has(name) {
			p.fields = append(p.fields, RemoveHeader(name))
		}
	}
	p.fields = append(p.fields, AddRawHeader("MIME-Version", []byte("1.0")))
	for _, f := range mime.ParseHeader(block) {
		p.fields = append(p.fields, AddRawHeader(f.Name, []byte(strings.TrimSpace(f.Value))))
	}
}

// Empty reports whether nothing is changed.
func (p *Patch) Empty() bool { return len(p.changes) == 0 }

// protos implements Edit.
func (p *Patch) protos(e *Event) ([]*agentpb.Edit, error) {
	var list []*agentpb.Edit
	if len(p.changes) > 0 {
		body, err := p.bodyEdit()
		if err == nil {
			err = uploadLarge(e, body)
		}
		if err != nil {
			return nil, fmt.Errorf("patch of the body: %w", err)
		}
		list = append(list, &agentpb.Edit{Edit: &agentpb.Edit_Body{Body: body}})
	}
	for _, f := range p.fields {
		more, err := f.protos(e)
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	return list, nil
}

// bodyEdit turns the changes into segments and digests what they come to.
func (p *Patch) bodyEdit() (*agentpb.BodyEdit, error) {
	if p.body.Available() < p.body.Size() {
		return nil, errors.New("only a part of the body was asked for: use Body(Whole, Current)")
	}
	changes := slices.Clone(p.changes)
	slices.SortStableFunc(changes, func(a, b change) int { return cmp.Compare(a.offset, b.offset) })
	edit := new(agentpb.BodyEdit)
	at, data := int64(0), 0
	for _, c := range changes {
		if c.offset < at || c.length < 0 || c.offset+c.length > p.body.Size() {
			return nil, fmt.Errorf("range of %d octets at %d overlaps another or is outside the body", c.length, c.offset)
		}
		edit.Segments = appendRange(edit.Segments, at, c.offset)
		if len(c.data) > 0 {
			edit.Segments = append(edit.Segments, &agentpb.Segment{Source: &agentpb.Segment_Data{Data: c.data}})
		}
		at, data = c.offset+c.length, data+len(c.data)
	}
	if data > maxPatchData {
		return nil, fmt.Errorf("%d new octets, at most %d", data, maxPatchData)
	}
	edit.Segments = appendRange(edit.Segments, at, p.body.Size())
	return edit, digest(edit, p.body)
}

func appendRange(segments []*agentpb.Segment, from, to int64) []*agentpb.Segment {
	if from == to {
		return segments
	}
	return append(segments, &agentpb.Segment{Source: &agentpb.Segment_Original{
		Original: &agentpb.Range{Offset: uint64(from), Length: uint64(to - from)},
	}})
}

// digest streams the new body through SHA-256.
func digest(edit *agentpb.BodyEdit, body *BodyReader) error {
	hash := sha256.New()
	buffer := make([]byte, 64<<10)
	var size int64
	for _, s := range edit.Segments {
		if r := s.GetOriginal(); r != nil {
			section := io.NewSectionReader(body, int64(r.GetOffset()), int64(r.GetLength()))
			n, err := io.CopyBuffer(struct{ io.Writer }{hash}, struct{ io.Reader }{section}, buffer)
			if err != nil {
				return err
			}
			if n != int64(r.GetLength()) {
				return io.ErrUnexpectedEOF
			}
			size += n
			continue
		}
		hash.Write(s.GetData())
		size += int64(len(s.GetData()))
	}
	edit.Size, edit.Sha256 = uint64(size), hash.Sum(nil)
	return nil
}
