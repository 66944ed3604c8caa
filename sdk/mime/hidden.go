package mime

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// Reading is another way to read the content of a multipart: a header block that makes it one, and what is its content then.
type Reading struct {
	Header []byte
	Body   *io.SectionReader
}

// maxOthers is how many boundaries beside the one that counts are tried.
const maxOthers = 4

// Hidden finds how other readers of mail might take p apart: by a boundary of a second Content-Type, one that was given
// twice, is missing or does not match, and what goes on behind the closing boundary. Parts are found by parsing each
// reading. The error is one of reading the body.
func (p *Part) Hidden() ([]Reading, error) {
	types := strings.Join(p.Header.All("Content-Type"), " ; ")
	if !strings.Contains(strings.ToLower(types), "multipart/") {
		return nil, nil
	}
	var found []Reading
	others, err := p.otherBoundaries(types)
	for _, b := range others {
		if err == nil {
			found, err = p.reading(found, b, p.Content)
		}
	}
	if own := p.Params["boundary"]; err == nil && own != "" && len(p.Parts) > 0 {
		found, err = p.reading(found, own, p.Parts[len(p.Parts)-1].End)
	}
	if err != nil {
		return nil, fmt.Errorf("reading a part: %w", err)
	}
	return found, nil
}

func (p *Part) otherBoundaries(types string) (others []string, err error) {
	for _, b := range boundariesIn(types) {
		if b != p.Params["boundary"] && len(others) < maxOthers {
			others = append(others, b)
		}
	}
	if len(p.Parts) > 0 {
		return others, nil
	}
	guess, err := guessBoundary(p.Raw())
	if guess != "" && !slices.Contains(others, guess) {
		others = append(others, guess)
	}
	return others, err
}

// reading adds that of the content from start on as a multipart with a boundary, if it has any parts by it.
func (p *Part) reading(found []Reading, boundary string, start int64) ([]Reading, error) {
	at, err := opening(io.NewSectionReader(p.body, start, p.End-start), boundary)
	if err != nil || at < 0 {
		return found, err
	}
	header := "Content-Type: multipart/mixed; boundary=\"" + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(boundary) + "\"\r\n"
	return append(found, Reading{[]byte(header), io.NewSectionReader(p.body, start+at, p.End-start-at)}), nil
}

// TypeField is a header block of p's Content-Type alone, to parse its content by where that had to be decoded first, which RFC
// 2045 section 6.4 forbids for a multipart.
func (p *Part) TypeField() []byte {
	return []byte("Content-Type: " + p.Header.Get("Content-Type") + "\r\n")
}

var boundaryParameter = regexp.MustCompile(`(?i)boundary\s*=\s*(?:"([^"\r\n]{1,200})"|([^\s;"]{1,200}))`)

// boundariesIn the text of Content-Type fields.
func boundariesIn(types string) (list []string) {
	for _, m := range boundaryParameter.FindAllStringSubmatch(types, 8) {
		if b := m[1] + m[2]; !slices.Contains(list, b) {
			list = append(list, b)
		}
	}
	return list
}

// eachLine calls each for every line of r with its end, until it answers false; lines longer than 64 KiB come in pieces.
func eachLine(r io.Reader, each func(line []byte) bool) error {
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := in.ReadSlice('\n')
		if len(line) > 0 && !each(line) {
			return nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// opening is where the first delimiter that begins a part stands in r, -1 if there is none.
func opening(r io.Reader, boundary string) (at int64, err error) {
	delimiter, found := []byte("--"+boundary), false
	err = eachLine(r, func(line []byte) bool {
		rest, ok := bytes.CutPrefix(line, delimiter)
		if found = ok && len(bytes.TrimRight(rest, " \t\r\n")) == 0; !found {
			at += int64(len(line))
		}
		return !found
	})
	if !found {
		at = -1
	}
	return at, err
}

// guessBoundary of a multipart that does not name one that stands in it: the first line that begins with "--" and is
// followed by a header field.
func guessBoundary(r io.Reader) (boundary string, err error) {
	var candidate []byte
	err = eachLine(r, func(line []byte) bool {
		if candidate != nil && len(line) > 8 && bytes.EqualFold(line[:8], []byte("content-")) {
			boundary = string(candidate)
			return false
		}
		candidate = nil
		if rest, ok := bytes.CutPrefix(bytes.TrimRight(line, " \t\r\n"), []byte("--")); ok && len(rest) > 0 && len(rest) <= 200 {
			candidate = bytes.Clone(rest)
		}
		return true
	})
	return boundary, err
}
