// Package classifier tells spam from wanted mail by what a message says and how it is made. It learns from mail that
// somebody has sorted: a linear model over hashed tokens (words, pairs of words, the shape of MIME parts, HTML and links),
// and weights for some eighty signs of forging, hiding and shouting, which have weights before anything was learnt. The
// two are added, and the sum becomes a probability that was calibrated on mail the model had not learnt from.
//
// No token is made of what tells where mail was collected instead of what it is: Received, Message-ID, Date, To and the
// like, addresses, host names in links, numbers. Of those fields the signs tell only whether they are in order. See
// TextFields for the fields whose text makes tokens, Fields for all that are looked at.
package classifier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/mail"
	"regexp"
	"strings"

	"github.com/posternmail/postern/sdk/match"
	"github.com/posternmail/postern/sdk/mime"
)

// TextFields of a message's header make tokens.
func TextFields() []string {
	return []string{"Subject", "From", "Reply-To", "Content-Type", "Content-Transfer-Encoding", "Content-Disposition"}
}

// Fields of a message's header that the classifier looks at, the others for their form alone. All others may be absent.
func Fields() []string { return append(TextFields(), signFields...) }

// How much decoded text of a part and of a message is looked at, in octets.
const (
	maxPart = 256 << 10
	maxText = 1 << 20
)

// What kept a part of the message from being looked at.
const (
	NoteTooLarge   = "TooLarge"   // the body was not read
	NoteOverLimits = "OverLimits" // so many parts, or so deep, that the body is looked at as it stands
)

// Document is a message as it is looked at: its texts are decoded and folded once.
type Document struct {
	Subject string // decoded and folded
	Texts   []Text
	Note    string // NoteTooLarge, NoteOverLimits or empty

	title      string // Subject, decoded, without the marks of others
	topic      string // title, folded
	header     mime.Header
	from       []*mail.Address // all that could be read
	fromParses bool
	tree       *mime.Tree // nil with a Note
}

// Text of one part, folded; see Fold.
type Text struct {
	Source  string // as it stands, decoded
	Visible string // what is seen of HTML; else empty
	Rest    string // the octets of a part whose encoding breaks off, where a reader may go on

	part *mime.Part // nil for a body whose structure was not read
	raw  string     // Source, not folded
	html *page      // nil unless HTML
}

// Read a message: the fields of its header, each ended by CRLF, and its body. Errors are those of reading and ctx's.
func Read(ctx context.Context, header []byte, body mime.Body) (*Document, error) {
	d := &Document{header: mime.ParseHeader(header)}
	subject := d.header.Decoded("Subject")
	d.title = topic(subject)
	d.from, d.fromParses = d.header.Addresses("From")
	d.Subject, d.topic = match.Fold(subject), match.Fold(d.title)
	if body == nil {
		d.Note = NoteTooLarge
		return d, nil
	}
	tree, err := mime.Parse(ctx, header, body, mime.Limits{})
	switch {
	case errors.Is(err, mime.ErrTooDeep), errors.Is(err, mime.ErrTooMany), errors.Is(err, mime.ErrTooLarge):
		d.Note = NoteOverLimits
		return d, d.readRaw(body)
	case err != nil:
		return nil, err
	}
	d.tree = tree
	return d, d.readParts()
}

// ReadBytes reads a message as it stands in a file: with LF or CRLF, with or without a "From " line in front.
func ReadBytes(ctx context.Context, message []byte) (*Document, error) {
	header, body := Split(message)
	return Read(ctx, header, bytes.NewReader(body))
}

// Split a message as it stands in a file into its header block and its body, with CRLF line ends.
func Split(message []byte) (header, body []byte) {
	if bytes.HasPrefix(message, []byte("From ")) {
		_, message, _ = bytes.Cut(message, []byte("\n"))
	}
	message = bytes.ReplaceAll(message, []byte("\r\n"), []byte("\n"))
	message = bytes.ReplaceAll(message, []byte("\n"), []byte("\r\n"))
	if bytes.HasPrefix(message, []byte("\r\n")) {
		return nil, message[2:]
	}
	header, body, found := bytes.Cut(message, []byte("\r\n\r\n"))
	if found {
		header = append(bytes.Clone(header), "\r\n"...)
	}
	return header, body
}

// filterMark is what a filter before us thought, in a subject.
var filterMark = regexp.MustCompile(`(?i)^\s*(\*+\s*spam\s*\*+|\(spam\?[^)]*\))`)

// topic of a subject: without the marks that others have put in front of it: the name of a mailing list, what a filter
// thought.
func topic(s string) string {
	s = filterMark.ReplaceAllString(s, "")
	for {
		trimmed := strings.TrimLeft(s, " \t")
		rest, marked := strings.CutPrefix(trimmed, "[")
		_, rest, closed := strings.Cut(rest, "]")
		if !marked || !closed || strings.TrimSpace(rest) == "" {
			break
		}
		s = rest
	}
	if before, after, ok := strings.Cut(s, ":"); ok && len(before) < 6 && strings.HasPrefix(strings.TrimLeft(after, " "), "[") {
		return before + ": " + topic(after)
	}
	return strings.TrimSpace(s)
}

// readRaw is for a body whose structure is made not to be read.
func (d *Document) readRaw(body mime.Body) error {
	b, err := io.ReadAll(io.NewSectionReader(body, 0, maxText))
	if err != nil {
		return fmt.Errorf("reading the body: %w", err)
	}
	text := strings.ToValidUTF8(string(b), "\uFFFD")
	d.Texts = []Text{{Source: match.Fold(text), raw: text}}
	return nil
}

// readParts reads the text of the leaves: of text parts, and of what should have parts but has none, which a reader
// shows as text.
func (d *Document) readParts() error {
	left := maxText
	for part := range d.tree.Leaves() {
		if left <= 0 {
			break
		}
		kind, _, _ := strings.Cut(part.Type, "/")
		if kind != "text" && kind != "multipart" && kind != "message" {
			continue
		}
		t, err := readText(part)
		if err != nil {
			return err
		}
		left -= len(t.raw)
		d.Texts = append(d.Texts, t)
	}
	return nil
}

func readText(part *mime.Part) (Text, error) {
	defects := len(part.Defects)
	s, _, err := part.DecodedText(maxPart)
	if err != nil {
		return Text{}, err
	}
	t := Text{part: part, raw: s, Source: match.Fold(s)}
	if part.Type == "text/html" {
		t.html = readPage(s)
		t.Visible = match.Fold(t.html.text)
	}
	if len(part.Defects) > defects {
		b, err := io.ReadAll(io.LimitReader(part.Raw(), maxPart))
		if err != nil {
			return Text{}, fmt.Errorf("reading a part: %w", err)
		}
		t.Rest = match.Fold(strings.ToValidUTF8(string(b), "\uFFFD"))
	}
	return t, nil
}

// All texts, folded: the subject, what stands in each part, and what is seen of it.
func (d *Document) All(yield func(string) bool) {
	if !yield(d.Subject) {
		return
	}
	for _, t := range d.Texts {
		for _, s := range []string{t.Source, t.Visible, t.Rest} {
			if s != "" && !yield(s) {
				return
			}
		}
	}
}
