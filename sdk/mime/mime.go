// Package mime parses a message into its MIME structure without copying it: every part knows where its octets
// stand, so that an agent can read one part and replace another. It is made for hostile mail: it never fails on
// bad MIME, it says what is wrong with it, and it stops at limits.
//
// It is our own because an agent needs octet ranges to edit a stored body; the well-kept Go libraries
// (emersion/go-message, jhillyerd/enmime, the standard library) hand out readers and forget the positions.
package mime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
)

// Limits bound the work on one message. A zero field has the default in parentheses.
type Limits struct {
	Depth       int   // nesting of multiparts and messages (20)
	Parts       int   // parts in all (1000)
	HeaderBytes int64 // of one part's header block (256 KiB)
}

// Errors that Parse wraps. The tree is nil with them.
var (
	ErrTooDeep  = errors.New("MIME nesting over the limit")
	ErrTooMany  = errors.New("MIME parts over the limit")
	ErrTooLarge = errors.New("MIME part header over the limit")
)

// Body is what a message's octets are read from. *io.SectionReader and the SDK's bodies are such.
type Body interface {
	io.ReaderAt
	Size() int64
}

// Part is one MIME entity. Offsets count octets of the body that was parsed; the root part's header is not in
// it, so its Start is 0 and equals its Content.
type Part struct {
	Header      Header
	Type        string            // media type in lower case; "text/plain" where none was given (RFC 2045 section 5.2)
	Params      map[string]string // parameters of Content-Type, names in lower case
	Disposition string            // "inline", "attachment" or "", in lower case
	Filename    string            // from Content-Disposition, else Content-Type's name; decoded
	Encoding    string            // content transfer encoding in lower case; "7bit" where none was given
	Start       int64             // first octet of the part's header
	Content     int64             // first octet of the part's content
	End         int64             // behind the last octet of the content, without the line end before a boundary
	Parts       []*Part           // of a multipart, or the one message inside a message/rfc822
	Parent      *Part             // nil for the root
	Depth       int               // 0 for the root
	Defects     []string          // what is wrong with it, in a few words each

	body Body
}

// Tree is the structure of a message.
type Tree struct {
	Root  *Part
	Count int // parts in all, the root included
}

// Parse reads the structure of a message: header is the message's header block, body what follows the empty
// line. Errors are ErrTooDeep, ErrTooMany, ErrTooLarge, those of reading, and ctx's.
func Parse(ctx context.Context, header []byte, body Body, limits Limits) (*Tree, error) {
	p := &parser{ctx: ctx, limits: limits.withDefaults(), lines: lineScanner{body: body}}
	root := &Part{Header: ParseHeader(header), End: body.Size(), body: body}
	root.describe(nil)
	p.count = 1
	if err := p.content(root); err != nil {
		return nil, err
	}
	return &Tree{Root: root, Count: p.count}, nil
}

func (l Limits) withDefaults() Limits {
	if l.Depth == 0 {
		l.Depth = 20
	}
	if l.Parts == 0 {
		l.Parts = 1000
	}
	if l.HeaderBytes == 0 {
		l.HeaderBytes = 256 << 10
	}
	return l
}

// All walks the tree from the root, a part before its children.
func (t *Tree) All() iter.Seq[*Part] {
	return func(yield func(*Part) bool) { t.Root.walk(yield) }
}

// Leaves walks the parts that have no parts of their own.
func (t *Tree) Leaves() iter.Seq[*Part] {
	return func(yield func(*Part) bool) {
		t.Root.walk(func(p *Part) bool { return len(p.Parts) > 0 || yield(p) })
	}
}

func (p *Part) walk(yield func(*Part) bool) bool {
	if !yield(p) {
		return false
	}
	for _, c := range p.Parts {
		if !c.walk(yield) {
			return false
		}
	}
	return true
}

// IsAttachment reports whether p is a leaf that a reader would be offered as a file.
func (p *Part) IsAttachment() bool {
	return len(p.Parts) == 0 && (p.Disposition == "attachment" || p.Filename != "")
}

// Raw reads the content as it stands, still encoded.
func (p *Part) Raw() *io.SectionReader {
	return io.NewSectionReader(p.body, p.Content, p.End-p.Content)
}

// describe fills the fields that follow from the header. inside is the multipart it stands in.
func (p *Part) describe(inside *Part) {
	p.Type, p.Params = "text/plain", map[string]string{}
	if inside != nil && inside.Type == "multipart/digest" {
		p.Type = "message/rfc822" // RFC 2046 section 5.1.5
	}
	if v := p.Header.Get("Content-Type"); v != "" {
		typ, params, ok := parseMediaType(v)
		if !ok {
			p.defect("Content-Type does not parse")
		}
		if strings.Contains(typ, "/") {
			p.Type = typ
		}
		p.Params = params
	}
	if n := len(p.Header.All("Content-Type")); n > 1 {
		p.defect(fmt.Sprintf("%d Content-Type fields", n))
	}
	if v := p.Header.Get("Content-Disposition"); v != "" {
		disposition, params, _ := parseMediaType(v)
		p.Disposition, p.Filename = disposition, params["filename"]
	}
	if p.Filename == "" {
		p.Filename = p.Params["name"]
	}
	p.Encoding = "7bit"
	if v := strings.Trim(strings.ToLower(stripComments(p.Header.Get("Content-Transfer-Encoding"))), " \t\""); v != "" {
		p.Encoding = v
	}
}

func (p *Part) defect(text string) { p.Defects = append(p.Defects, text) }

// Text makes a text/plain part (UTF-8, base64) with its header, to stand in the place of another one.
func Text(s string) []byte {
	s = strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\n", "\r\n")
	return append([]byte("Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: inline\r\nContent-Transfer-Encoding: base64\r\n\r\n"),
		wrapBase64([]byte(s))...)
}
