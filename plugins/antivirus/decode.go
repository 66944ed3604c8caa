package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"io"

	"github.com/posternmail/postern/sdk/mime"
)

// This file undoes encodings the way the most lenient reader of mail does: what is malformed is passed over, never the end.

// inAlphabet of base64.
var inAlphabet = func() (is [256]bool) {
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" {
		is[c] = true
	}
	return is
}()

// decodeBase64 decodes up to the first padding, or with all also what follows it. It reports whether something does.
func decodeBase64(w io.Writer, r io.Reader, all bool) (more bool, err error) {
	d := unbase64{w: w, out: make([]byte, 24<<10)}
	in, padded := make([]byte, 32<<10), false
	for {
		n, err := r.Read(in)
		for _, c := range in[:n] {
			switch {
			case c == '=' && !padded:
				padded = true
				if err := d.flush(true); err != nil {
					return false, err
				}
			case !inAlphabet[c]:
			case padded && !all:
				return true, nil
			default:
				padded = false
				d.text = append(d.text, c)
			}
		}
		if err := d.flush(err != nil); err != nil {
			return false, err
		}
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// unbase64 decodes text that has only the alphabet.
type unbase64 struct {
	w    io.Writer
	text []byte
	out  []byte
}

// flush decodes the text in groups of four; at an end the rest as well.
func (d *unbase64) flush(end bool) error {
	n := len(d.text)
	if rest := n % 4; !end || rest == 1 { // six bits are no octet
		n -= rest
	}
	for from := 0; from < n; {
		part := d.text[from:min(n, from+len(d.out)/3*4)]
		m, err := base64.RawStdEncoding.Decode(d.out, part)
		if err != nil && m == 0 {
			return err
		}
		if _, err := d.w.Write(d.out[:m]); err != nil {
			return err
		}
		from += len(part)
	}
	d.text = append(d.text[:0], d.text[n:]...)
	if end {
		d.text = d.text[:0]
	}
	return nil
}

// decodeQuoted decodes quoted-printable (RFC 2045 section 6.7); what is no valid escape stands for itself.
func decodeQuoted(w io.Writer, r io.Reader) error {
	in, out := bufio.NewReaderSize(r, 64<<10), bufio.NewWriterSize(w, 32<<10)
	for {
		line, err := in.ReadSlice('\n')
		whole := err == nil
		text := bytes.TrimRight(line, "\r\n")
		if whole {
			text = bytes.TrimRight(text, " \t") // added on the way
		} else {
			text = line
		}
		soft := whole && len(text) > 0 && text[len(text)-1] == '='
		if soft {
			text = text[:len(text)-1]
		}
		unquote(out, text)
		if whole && !soft {
			out.WriteString("\r\n")
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if flushed := out.Flush(); flushed != nil || errors.Is(err, io.EOF) {
				return flushed
			}
			return err
		}
	}
}

func unquote(out *bufio.Writer, text []byte) {
	for i := 0; i < len(text); i++ {
		if text[i] == '=' && i+2 < len(text) && hexDigit(text[i+1]) >= 0 && hexDigit(text[i+2]) >= 0 {
			out.WriteByte(byte(hexDigit(text[i+1])<<4 | hexDigit(text[i+2])))
			i += 2
			continue
		}
		out.WriteByte(text[i])
	}
}

// hexDigit is the value of a digit, -1 if it is none.
func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}

// looksBase64: a long first line, and up to three more, have nothing but the alphabet.
func looksBase64(head []byte) bool {
	seen := 0
	for line := range bytes.Lines(bytes.TrimLeft(head, "\r\n")) {
		line = bytes.TrimRight(line, "\r\n=")
		if len(line) == 0 || seen == 4 {
			break
		}
		if seen == 0 && len(line) < 40 || bytes.ContainsFunc(line, func(c rune) bool { return c > 0x7f || !inAlphabet[c] }) {
			return false
		}
		seen++
	}
	return seen > 0
}

// uuBlocks finds uuencoded files in a text.
type uuBlocks struct {
	in  io.Reader
	buf *bufio.Reader
}

// next decodes the next file into w; it writes nothing when there is none.
func (b *uuBlocks) next(w io.Writer) error {
	if b.buf == nil {
		b.buf = bufio.NewReaderSize(b.in, 64<<10)
	}
	for inside := false; ; {
		line, err := b.buf.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			continue // no line of ours is that long
		}
		text := bytes.TrimRight(line, "\r\n")
		switch {
		case !inside:
			inside = beginsFile(text)
		case len(text) == 0, string(text) == "end", text[0] == '`', text[0] == ' ':
			if string(text) == "end" {
				return nil
			}
		default:
			if _, err := w.Write(uuLine(text)); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// beginsFile: "begin 644 name".
func beginsFile(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("begin "))
	mode, name, named := bytes.Cut(rest, []byte(" "))
	return ok && named && len(name) > 0 && len(mode) >= 3 && len(mode) <= 5 && len(bytes.Trim(mode, "01234567")) == 0
}

// uuLine decodes one line: a character for the number of octets, then groups of four for three.
func uuLine(line []byte) []byte {
	n := int(line[0]-' ') & 0x3f
	var out []byte
	for group := line[1:]; len(group) > 0 && len(out) < n; group = group[min(4, len(group)):] {
		var six [4]byte
		for i := range min(4, len(group)) {
			six[i] = (group[i] - ' ') & 0x3f
		}
		out = append(out, six[0]<<2|six[1]>>4, six[1]<<4|six[2]>>2, six[2]<<6|six[3])
	}
	return out[:min(n, len(out))]
}

// maxInnerHeader of a message that was encoded, in octets.
const maxInnerHeader = 256 << 10

// splitHeader finds where the body of a decoded message begins. Its lines may end with LF alone.
func splitHeader(content mime.Body) (header []byte, body int64, err error) {
	block := make([]byte, min(content.Size(), maxInnerHeader))
	if _, err := content.ReadAt(block, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, err
	}
	for rest := block; len(rest) > 0; {
		end := bytes.IndexByte(rest, '\n') + 1
		if end == 0 {
			break
		}
		at := len(block) - len(rest)
		if len(bytes.TrimRight(rest[:end], "\r\n")) == 0 {
			return block[:at], int64(at + end), nil
		}
		rest = rest[end:]
	}
	return block, int64(len(block)), nil
}
