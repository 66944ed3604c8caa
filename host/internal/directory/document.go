package directory

import (
	"bytes"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// document is a directory file, read but not yet checked.
type document struct {
	file    string
	hashed  bool
	key     []byte
	entries []entry
}

// entry is a recipient, a group (with members) or a domain ("@" and its name).
type entry struct {
	address value
	group   bool
	lists   map[string][]value // by column
}

// value with its place in the file.
type value struct {
	text string
	at   position
}

type position struct{ line, column int }

// Columns of a CSV file, and names in a JSON file. The first is required.
const (
	addressColumn = "address"
	aliasesColumn = "aliases"
	membersColumn = "members"
	safeColumn    = "safe_senders"
	blockedColumn = "blocked_senders"
)

var columns = []string{addressColumn, aliasesColumn, membersColumn, safeColumn, blockedColumn}

// fault is an error at a place of the file.
func (d *document) fault(at position, format string, args ...any) error {
	return fmt.Errorf("%s:%d:%d: %s", d.file, at.line, at.column, fmt.Sprintf(format, args...))
}

func (d *document) setKey(text string, at position) error {
	key, err := hex.DecodeString(text)
	if err != nil || len(key) < 16 {
		return d.fault(at, "the hash key is at least 32 hexadecimal digits")
	}
	d.key = key
	return nil
}

// parseCSV reads a file whose first record names the columns. Values of a list are separated by spaces or
// semicolons; lines that start with "#" are comments, but for the key of a hashed directory.
func (d *document) parseCSV(data []byte) error {
	first, _, _ := bytes.Cut(bytes.TrimPrefix(data, []byte("\ufeff")), []byte("\n"))
	if text, ok := strings.CutPrefix(strings.TrimSpace(string(first)), "# hash-key:"); ok {
		if err := d.setKey(strings.TrimSpace(text), position{1, 1}); err != nil {
			return err
		}
	}
	r := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(data, []byte("\ufeff"))))
	r.Comment, r.TrimLeadingSpace, r.FieldsPerRecord = '#', true, -1
	names, err := r.Read()
	if errors.Is(err, io.EOF) {
		return d.fault(position{1, 1}, "the first line names the columns: %s", strings.Join(columns, ","))
	}
	if err != nil {
		return d.csvFault(err)
	}
	names = slices.Clone(names)
	if err := d.checkColumns(r, names); err != nil {
		return err
	}
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return d.csvFault(err)
		}
		if len(record) > len(names) {
			line, column := r.FieldPos(len(names))
			return d.fault(position{line, column}, "more fields than columns")
		}
		d.entries = append(d.entries, csvEntry(r, names, record))
	}
}

func (d *document) checkColumns(r *csv.Reader, names []string) error {
	for i, n := range names {
		line, column := r.FieldPos(i)
		switch {
		case !slices.Contains(columns, n):
			return d.fault(position{line, column}, "unknown column %q; there are %s", n, strings.Join(columns, ", "))
		case slices.Contains(names[:i], n):
			return d.fault(position{line, column}, "column %q is there twice", n)
		}
	}
	if !slices.Contains(names, addressColumn) {
		return d.fault(position{1, 1}, "there is no column %q", addressColumn)
	}
	return nil
}

func (d *document) csvFault(err error) error {
	var p *csv.ParseError
	if !errors.As(err, &p) {
		return fmt.Errorf("%s: %w", d.file, err)
	}
	return d.fault(position{p.Line, max(p.Column, 1)}, "%s", p.Err)
}

func csvEntry(r *csv.Reader, names, record []string) entry {
	e := entry{lists: map[string][]value{}}
	for i, text := range record {
		line, column := r.FieldPos(i)
		if names[i] == addressColumn {
			e.address = value{strings.TrimSpace(text), position{line, column}}
			continue
		}
		for start, n := 0, 0; start < len(text); start += n + 1 {
			if n = strings.IndexAny(text[start:], " ;"); n < 0 {
				n = len(text) - start
			}
			if n > 0 {
				e.lists[names[i]] = append(e.lists[names[i]], value{text[start : start+n], position{line, column + start}})
			}
		}
	}
	e.group = len(e.lists[membersColumn]) > 0
	return e
}

// parseJSON reads {"hash_key": "...", "recipients": [{"address": ..., "aliases": [...], ...}], "groups":
// [{"address": ..., "members": [...]}]}.
func (d *document) parseJSON(data []byte) error {
	p := &jsonParser{document: d, data: data, dec: json.NewDecoder(bytes.NewReader(data))}
	err := p.object(func(name string) error {
		switch name {
		case "hash_key":
			v, err := p.text()
			if err != nil {
				return err
			}
			return d.setKey(v.text, v.at)
		case "recipients":
			return p.array(func() error { return p.entry(false) })
		case "groups":
			return p.array(func() error { return p.entry(true) })
		}
		return p.unknown(name, "hash_key, recipients, groups")
	})
	if err != nil {
		return err
	}
	if at := p.place(); p.dec.More() {
		return d.fault(at, "there is more behind the end")
	}
	return nil
}

// jsonParser reads tokens and knows where they stand.
type jsonParser struct {
	*document
	data []byte
	dec  *json.Decoder
	last position // of the token read last

	counted   int // octets of data whose lines are counted
	lines     int // line ends in them
	lineStart int // behind the last of these
}

// place of the next token.
func (p *jsonParser) place() position {
	offset := int(p.dec.InputOffset())
	for offset < len(p.data) && bytes.IndexByte([]byte(" \t\r\n,:"), p.data[offset]) >= 0 {
		offset++
	}
	return p.positionOf(offset)
}

// positionOf an octet. It goes on counting where it was last: the tokens of a large file come one behind the other.
func (p *jsonParser) positionOf(offset int) position {
	offset = min(max(offset, 0), len(p.data))
	if offset < p.counted {
		p.counted, p.lines, p.lineStart = 0, 0, 0
	}
	for {
		end := bytes.IndexByte(p.data[p.counted:offset], '\n')
		if end < 0 {
			break
		}
		p.counted += end + 1
		p.lines, p.lineStart = p.lines+1, p.counted
	}
	p.counted = offset
	return position{1 + p.lines, 1 + offset - p.lineStart}
}

func (p *jsonParser) token() (json.Token, error) {
	p.last = p.place()
	t, err := p.dec.Token()
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		at := p.positionOf(int(syntax.Offset) - 1)
		if at.line < p.last.line { // it counts from the token before
			at = p.last
		}
		return nil, p.fault(at, "%s", syntax)
	case err != nil:
		return nil, p.fault(p.positionOf(len(p.data)), "the file ends too early")
	}
	return t, nil
}

func (p *jsonParser) open(delim json.Delim, what string) error {
	t, err := p.token()
	if err != nil {
		return err
	}
	if t != delim {
		return p.fault(p.last, "here is to be %s", what)
	}
	return nil
}

// object calls fn for each name of an object; fn reads the value.
func (p *jsonParser) object(fn func(name string) error) error {
	if err := p.open('{', "an object, {...}"); err != nil {
		return err
	}
	for p.dec.More() {
		t, err := p.token()
		if err != nil {
			return err
		}
		name, _ := t.(string)
		if err := fn(name); err != nil {
			return err
		}
	}
	_, err := p.token()
	return err
}

// array calls fn for each element, which it reads.
func (p *jsonParser) array(fn func() error) error {
	if err := p.open('[', "a list, [...]"); err != nil {
		return err
	}
	for p.dec.More() {
		if err := fn(); err != nil {
			return err
		}
	}
	_, err := p.token()
	return err
}

func (p *jsonParser) text() (value, error) {
	t, err := p.token()
	if err != nil {
		return value{}, err
	}
	s, ok := t.(string)
	if !ok {
		return value{}, p.fault(p.last, "here is to be a string")
	}
	return value{s, p.last}, nil
}

func (p *jsonParser) unknown(name, known string) error {
	return p.fault(p.last, "unknown name %q; there are %s", name, known)
}

func (p *jsonParser) entry(group bool) error {
	e := entry{group: group, lists: map[string][]value{}}
	e.address.at = p.place()
	err := p.object(func(name string) error {
		switch {
		case name == addressColumn:
			var err error
			e.address, err = p.text()
			return err
		case !slices.Contains(columns, name), name == membersColumn && !group:
			return p.unknown(name, strings.Join(columns, ", ")+" (members of groups only)")
		}
		return p.array(func() error {
			v, err := p.text()
			e.lists[name] = append(e.lists[name], v)
			return err
		})
	})
	p.entries = append(p.entries, e)
	return err
}
