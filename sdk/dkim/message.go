// Package dkim verifies and writes DKIM signatures (RFC 6376, with RFC 8301 and RFC 8463) and holds what
// ARC shares with DKIM: tag lists, canonical forms and keys. See package arc.
//
// It works on the octets of the message as they are, asks for keys by a function, and takes the time from its
// caller, so that a message can be judged again later with the same result.
package dkim

import (
	"bytes"
	"fmt"
	"hash"
	"io"
	"strings"
	"sync"
)

// Message to verify or to sign. It is safe for concurrent use.
type Message struct {
	fields map[string][]string // by name in lower case; as they stand, without the final line end
	body   io.ReaderAt
	size   int64

	mu     sync.Mutex
	hashes map[bodyForm]*bodyHash
}

// bodyForm is what the hash of a body depends on.
type bodyForm struct {
	relaxed bool
	sha1    bool
	limit   int64 // of the canonical body; negative: none
}

type bodyHash struct {
	once  sync.Once
	sum   []byte
	total int64 // octets of the canonical body
	err   error
}

// NewMessage of a header block, each line ended by CRLF (an empty line at the end does not matter), and the
// octets of the body.
func NewMessage(header []byte, body io.ReaderAt, size int64) *Message {
	m := &Message{fields: map[string][]string{}, body: body, size: size, hashes: map[bodyForm]*bodyHash{}}
	for _, f := range splitFields(header) {
		name := strings.ToLower(fieldName(f))
		m.fields[name] = append(m.fields[name], f)
	}
	return m
}

// splitFields of a header block; a line that begins with a space or tab belongs to the field before it.
func splitFields(header []byte) []string {
	var fields []string
	var field []byte // the one that lines are added to, so that many folds cost no more than few
	for line := range bytes.SplitSeq(header, []byte("\r\n")) {
		switch {
		case len(line) == 0:
		case len(field) > 0 && (line[0] == ' ' || line[0] == '\t'):
			field = append(append(field, "\r\n"...), line...)
		default:
			if len(field) > 0 {
				fields = append(fields, string(field))
			}
			field = append(field[:0], line...)
		}
	}
	if len(field) > 0 {
		fields = append(fields, string(field))
	}
	return fields
}

// Fields of that name from the top, each "Name: value" with its folds, without the final line end.
func (m *Message) Fields(name string) []string { return m.fields[strings.ToLower(name)] }

// fieldName is empty for a line without a colon, which no signature covers.
func fieldName(field string) string {
	name, _, found := strings.Cut(field, ":")
	if !found {
		return ""
	}
	return strings.TrimRight(name, " \t")
}

// FieldValue is what stands behind the colon.
func FieldValue(field string) string {
	_, value, _ := strings.Cut(field, ":")
	return value
}

// hashBody answers with the hash of the canonical body and its size in octets. Signatures that want the same form
// share it.
func (m *Message) hashBody(f bodyForm) (sum []byte, total int64, err error) {
	m.mu.Lock()
	b := m.hashes[f]
	if b == nil {
		b = new(bodyHash)
		m.hashes[f] = b
	}
	m.mu.Unlock()
	b.once.Do(func() {
		h := newHash(f.sha1)
		w := &limitedHash{hash: h, left: f.limit}
		c := &canonicalBody{w: w, relaxed: f.relaxed}
		if _, b.err = io.Copy(c, io.NewSectionReader(m.body, 0, m.size)); b.err != nil {
			b.err = fmt.Errorf("reading the body: %w", b.err)
			return
		}
		c.end()
		b.sum, b.total = h.Sum(nil), w.total
	})
	return b.sum, b.total, b.err
}

// limitedHash hashes the first octets only (RFC 6376 section 3.4.5).
type limitedHash struct {
	hash  hash.Hash
	left  int64 // negative: no limit
	total int64
}

func (l *limitedHash) write(p []byte) {
	l.total += int64(len(p))
	if l.left >= 0 {
		p = p[:min(int64(len(p)), l.left)]
		l.left -= int64(len(p))
	}
	l.hash.Write(p) // a hash never fails
}
