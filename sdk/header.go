package sdk

import (
	"bytes"
	"iter"
	"mime"
	"strings"

	"github.com/posternmail/postern/sdk/agentpb"
	sdkmime "github.com/posternmail/postern/sdk/mime"
)

// Header holds the fields that the subscription asked for, in the order of the message.
type Header struct{ fields []*agentpb.HeaderField }

// Field is one header field.
type Field struct {
	// Name as it stands in the message, without the blanks that RFC 5322 section 4.5 allows before the colon.
	Name string
	// Raw value: the octets after the colon with folds, without the final line end.
	Raw []byte
	// Index in the header block; what ReplaceHeader and RemoveField go by.
	Index int
}

// Text is the value unfolded, with encoded words (RFC 2047) decoded.
func (f Field) Text() string { return decodeText(f.Raw) }

// Get answers with the text of the first field of that name, "" if there is none.
func (h Header) Get(name string) string {
	for _, f := range h.fields {
		if sameName(f.Name, name) {
			return decodeText(f.Value)
		}
	}
	return ""
}

// Has reports whether a field of that name is there.
func (h Header) Has(name string) bool {
	for _, f := range h.fields {
		if sameName(f.Name, name) {
			return true
		}
	}
	return false
}

// All fields of that name.
func (h Header) All(name string) iter.Seq[Field] {
	return func(yield func(Field) bool) {
		for _, f := range h.fields {
			if sameName(f.Name, name) && !yield(fieldOf(f)) {
				return
			}
		}
	}
}

// Fields are all fields.
func (h Header) Fields() iter.Seq[Field] {
	return func(yield func(Field) bool) {
		for _, f := range h.fields {
			if !yield(fieldOf(f)) {
				return
			}
		}
	}
}

// Len is the number of fields.
func (h Header) Len() int { return len(h.fields) }

// Block writes the fields as they stand in the message, each line ended by CRLF: what mime.Parse takes.
func (h Header) Block() []byte {
	var b []byte
	for _, f := range h.fields {
		b = append(append(append(append(b, f.Name...), ':'), f.Value...), "\r\n"...)
	}
	return b
}

func fieldOf(p *agentpb.HeaderField) Field {
	return Field{Name: string(trimBlanks(p.Name)), Raw: p.Value, Index: int(p.Index)}
}

func trimBlanks(name []byte) []byte { return bytes.TrimRight(name, " \t") }

func sameName(have []byte, want string) bool {
	have = trimBlanks(have)
	return len(have) == len(want) && strings.EqualFold(string(have), want)
}

// decodeText unfolds a value (RFC 5322 section 2.2.3) and decodes its encoded words. What cannot be decoded
// stays as it is.
func decodeText(raw []byte) string {
	text := strings.TrimSpace(string(unfold(raw)))
	if !strings.Contains(text, "=?") {
		return text
	}
	return sdkmime.DecodeWords(text)
}

func unfold(raw []byte) []byte {
	if bytes.IndexByte(raw, '\n') < 0 {
		return raw
	}
	return bytes.ReplaceAll(bytes.ReplaceAll(raw, []byte("\r\n"), nil), []byte("\n"), nil)
}

// maxLine of a header field that we write: RFC 5322 section 2.1.1 recommends 78 without the line end.
const maxLine = 78

// encodeText writes text as the value of an unstructured field: encoded words where it is not printable ASCII,
// folded at spaces. Line ends in text become spaces, so that a value never becomes a field.
func encodeText(name, text string) []byte {
	text = strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	if encoded := mime.QEncoding.Encode("utf-8", text); encoded != text {
		return []byte(encoded)
	}
	return fold(len(name)+2, text)
}

// fold breaks a long value at spaces; used is how much of the first line is taken.
func fold(used int, text string) []byte {
	var out []byte
	for used+len(text) > maxLine {
		at := strings.LastIndexByte(text[:min(len(text), max(maxLine-used, 1))], ' ')
		if at <= 0 {
			at = nextSpace(text)
		}
		if at <= 0 {
			break
		}
		out = append(out, text[:at]...)
		out = append(out, "\r\n"...)
		text, used = text[at:], 0
	}
	return append(out, text...)
}

// nextSpace after the first octet, -1 if there is none.
func nextSpace(text string) int {
	if len(text) < 2 {
		return -1
	}
	i := strings.IndexByte(text[1:], ' ')
	if i < 0 {
		return -1
	}
	return i + 1
}
