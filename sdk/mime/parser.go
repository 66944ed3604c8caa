package mime

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
)

// parser walks the body once, line by line, with the boundaries that are open kept in the parts themselves.
type parser struct {
	ctx    context.Context
	limits Limits
	lines  lineScanner
	count  int
}

// content parses what is inside p, whose content starts where the scanner stands. It reads up to p.End or to a
// boundary of one of p's ancestors, whichever comes first.
func (p *parser) content(part *Part) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	switch {
	case strings.HasPrefix(part.Type, "multipart/") && part.Params["boundary"] != "":
		return p.multipart(part)
	case part.Type == "message/rfc822" || part.Type == "message/global" || part.Type == "message/news":
		if part.Encoding == "base64" || part.Encoding == "quoted-printable" {
			part.defect("encoded message") // RFC 2046 section 5.2.1 forbids it; the agent may decode the leaf
			return p.skip(part)
		}
		return p.message(part)
	case strings.HasPrefix(part.Type, "multipart/"):
		part.defect("multipart without boundary")
	}
	return p.skip(part)
}

// multipart parses the parts between the boundaries of part.
func (p *parser) multipart(part *Part) error {
	for {
		stop, end, err := p.until(part)
		if err != nil {
			return err
		}
		switch stop {
		case stopAncestor, stopEnd:
			part.End = max(end, part.Content)
			if n := len(part.Parts); n == 0 {
				part.defect("boundary never stands in the body")
			} else {
				part.End = max(part.End, part.Parts[n-1].End)
				part.defect("closing boundary missing")
			}
			return nil
		case stopClose:
			return p.skip(part) // the epilogue
		case stopOpen:
			child, err := p.open(part)
			if err != nil {
				return err
			}
			if err := p.content(child); err != nil {
				return err
			}
		}
	}
}

// message parses the message inside a message/rfc822.
func (p *parser) message(part *Part) error {
	child, err := p.open(part)
	if err != nil {
		return err
	}
	if err := p.content(child); err != nil {
		return err
	}
	part.End = child.End
	return nil
}

// open starts a child of parent: it reads the child's header block.
func (p *parser) open(parent *Part) (*Part, error) {
	p.count++
	if p.count > p.limits.Parts {
		return nil, fmt.Errorf("%w: more than %d", ErrTooMany, p.limits.Parts)
	}
	child := &Part{Parent: parent, Depth: parent.Depth + 1, Start: p.lines.offset, body: parent.body}
	if child.Depth > p.limits.Depth {
		return nil, fmt.Errorf("%w: more than %d", ErrTooDeep, p.limits.Depth)
	}
	block, err := p.headerBlock(child)
	if err != nil {
		return nil, err
	}
	child.Header = ParseHeader(block)
	child.Content, child.End = p.lines.offset, p.lines.offset
	child.describe(parent)
	parent.Parts = append(parent.Parts, child)
	return child, nil
}

// headerBlock reads lines up to the empty one, or up to a boundary, which ends a part without content.
func (p *parser) headerBlock(child *Part) ([]byte, error) {
	var block []byte
	for {
		line, err := p.lines.peek()
		if err != nil {
			return nil, err
		}
		if line == nil || boundaryOf(child.Parent, line) != nil {
			child.defect("no empty line behind the header")
			return block, nil
		}
		p.lines.next()
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			return block, nil
		}
		block = append(block, line...)
		if int64(len(block)) > p.limits.HeaderBytes {
			return nil, fmt.Errorf("%w: more than %d octets", ErrTooLarge, p.limits.HeaderBytes)
		}
	}
}

// skip reads to the end of part's content: to a boundary of an ancestor or to the end of the body.
func (p *parser) skip(part *Part) error {
	_, end, err := p.scan(part.Parent, nil)
	part.End = max(end, part.Content)
	return err
}

// Why a scan stopped.
const (
	stopEnd      = iota // end of the body
	stopAncestor        // a boundary of an ancestor; not consumed
	stopOpen            // the own delimiter; consumed
	stopClose           // the own closing delimiter; consumed
)

// until reads to the next boundary of part or of an ancestor.
func (p *parser) until(part *Part) (stop int, end int64, err error) {
	return p.scan(part.Parent, part)
}

// scan reads lines until one is a boundary of own, or of from or one of its ancestors. end is where the content
// before it ends: the line end in front of a boundary belongs to the boundary (RFC 2046 section 5.1.1).
func (p *parser) scan(from, own *Part) (stop int, end int64, err error) {
	for n := 0; ; n++ {
		if n&0xFFF == 0xFFF {
			if err := p.ctx.Err(); err != nil {
				return 0, 0, err
			}
		}
		line, err := p.lines.peek()
		if err != nil {
			return 0, 0, err
		}
		if line == nil {
			return stopEnd, p.lines.offset, nil
		}
		if len(line) > 2 && line[0] == '-' && line[1] == '-' {
			end = p.lines.offset - int64(p.lines.lastEnd)
			if own != nil {
				if closing, ok := isBoundary(line, own.Params["boundary"]); ok {
					p.lines.next()
					if closing {
						return stopClose, end, nil
					}
					return stopOpen, end, nil
				}
			}
			if boundaryOf(from, line) != nil {
				return stopAncestor, end, nil
			}
		}
		p.lines.next()
	}
}

// boundaryOf finds the part, from p upwards, whose boundary line is.
func boundaryOf(p *Part, line []byte) *Part {
	if len(line) < 3 || line[0] != '-' || line[1] != '-' {
		return nil
	}
	for ; p != nil; p = p.Parent {
		if b := p.Params["boundary"]; b != "" && strings.HasPrefix(p.Type, "multipart/") {
			if _, ok := isBoundary(line, b); ok {
				return p
			}
		}
	}
	return nil
}

// isBoundary reports whether line is the delimiter of boundary, and whether it is the closing one. White space
// may follow (RFC 2046 section 5.1.1, transport padding), and anything behind that, which some readers pass over.
func isBoundary(line []byte, boundary string) (closing, ok bool) {
	rest, ok := bytes.CutPrefix(line[2:], []byte(boundary))
	if !ok {
		return false, false
	}
	rest, closing = bytes.CutPrefix(rest, []byte("--"))
	rest = bytes.TrimRight(rest, "\r\n")
	return closing, len(rest) == 0 || rest[0] == ' ' || rest[0] == '\t'
}

// lineScanner hands out the lines of a body with their line ends. A line longer than the buffer comes in
// pieces, which is harmless: no boundary or header line that counts is that long.
type lineScanner struct {
	body    Body
	offset  int64 // of the line that peek shows
	lastEnd int   // length of the line end before that line

	buf   []byte
	start int   // first octet of buf not handed out
	line  int   // length of the line that peek showed, 0 when there is none
	at    int64 // offset of the end of buf in the body
}

const scanBuffer = 64 << 10

// peek shows the next line; nil at the end. It stays valid until the next call of peek.
func (s *lineScanner) peek() ([]byte, error) {
	if s.line > 0 {
		return s.buf[s.start : s.start+s.line], nil
	}
	i := bytes.IndexByte(s.buf[s.start:], '\n')
	if i < 0 {
		if err := s.fill(); err != nil {
			return nil, err
		}
		i = bytes.IndexByte(s.buf[s.start:], '\n')
	}
	if i < 0 {
		i = len(s.buf) - s.start - 1
	}
	if i < 0 {
		return nil, nil
	}
	s.line = i + 1
	return s.buf[s.start : s.start+s.line], nil
}

// next moves behind the line that peek showed.
func (s *lineScanner) next() {
	line := s.buf[s.start : s.start+s.line]
	s.lastEnd = len(line) - len(bytes.TrimRight(line, "\r\n"))
	if s.lastEnd > 2 {
		s.lastEnd = 2
	}
	s.start += s.line
	s.offset += int64(s.line)
	s.line = 0
}

func (s *lineScanner) fill() error {
	if s.buf == nil {
		s.buf = make([]byte, 0, scanBuffer)
	}
	n := copy(s.buf[:cap(s.buf)], s.buf[s.start:])
	s.buf, s.start = s.buf[:n], 0
	for len(s.buf) < cap(s.buf) && s.at < s.body.Size() {
		m, err := s.body.ReadAt(s.buf[len(s.buf):cap(s.buf)], s.at)
		s.buf = s.buf[:len(s.buf)+m]
		s.at += int64(m)
		if err != nil && err != io.EOF {
			return fmt.Errorf("reading the body: %w", err)
		}
		if m == 0 {
			break
		}
	}
	return nil
}
