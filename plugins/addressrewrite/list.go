package main

import (
	"bytes"
	"strings"

	"github.com/posternmail/postern/sdk/address"
)

// kind of a token.
type kind uint8

const (
	blank   kind = iota // spaces, tabs, folds
	comment             // with its parentheses
	quoted              // string with its quotes
	word                // all that is none of the others, dots included
	literal             // domain literal with its brackets
	special             // one of < > , ; : @
)

// token of a structured field (RFC 5322 section 3.2). Joined, the tokens are the value again.
type token struct {
	kind kind
	text []byte
}

// tokens of a value. What is not closed reaches to its end.
func tokens(value []byte) []token {
	var all []token
	for len(value) > 0 {
		k, n := nextToken(value)
		all = append(all, token{k, value[:n]})
		value = value[n:]
	}
	return all
}

func nextToken(v []byte) (kind, int) {
	switch c := v[0]; {
	case isBlank(c):
		return blank, spanOf(v, isBlank)
	case c == '(':
		return comment, commentEnd(v)
	case c == '"':
		return quoted, closed(v, '"')
	case c == '[':
		return literal, closed(v, ']')
	case isSpecial(c):
		return special, 1
	}
	return word, spanOf(v, func(c byte) bool { return !isBlank(c) && !isSpecial(c) && c != '(' && c != '"' && c != '[' })
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

func isSpecial(c byte) bool { return strings.IndexByte("<>,;:@", c) >= 0 }

func spanOf(v []byte, in func(byte) bool) int {
	for i, c := range v {
		if !in(c) {
			return i
		}
	}
	return len(v)
}

// commentEnd finds the end of a comment, which may hold others.
func commentEnd(v []byte) int {
	depth := 0
	for i := 0; i < len(v); i++ {
		switch v[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return len(v)
}

// closed finds the end of what stands between the first octet and end.
func closed(v []byte, end byte) int {
	for i := 1; i < len(v); i++ {
		switch v[i] {
		case '\\':
			i++
		case end:
			return i + 1
		}
	}
	return len(v)
}

// maxLine of a header field: RFC 5322 section 2.1.1 says 78 octets, and 998 at the most.
const (
	wantedLine = 78
	maxLine    = 998
)

// rewriteList rewrites the addresses of an address list (RFC 5322 section 3.4) that translate has another one
// for, and answers with their number. Display names, comments, groups, spaces and folds stay as they are, but a
// line that grows too long is folded at a space that it has. used is what stands before the value on its line.
func rewriteList(used int, value []byte, translate func(address.Mailbox) (address.Mailbox, bool)) ([]byte, int) {
	all := tokens(value)
	old := make([][]byte, len(all))
	for i := range all {
		old[i] = all[i].text
	}
	n := 0
	for _, spec := range addrSpecs(all) {
		from, ok := spec.mailbox(all)
		if !ok {
			continue
		}
		if to, ok := translate(from); ok {
			spec.set(all, from, to)
			n++
		}
	}
	if n == 0 {
		return value, 0
	}
	out, ok := lay(used, all, func(i int) bool { return !bytes.Equal(old[i], all[i].text) })
	if !ok {
		return value, 0
	}
	return out, n
}

// addrSpec is an address in a list: the indexes of the tokens of its two sides.
type addrSpec struct{ local, domain []int }

// addrSpecs of a list. What is none is left out.
func addrSpecs(all []token) []addrSpec {
	var specs []addrSpec
	start := 0
	angle := false
	add := func(end int) {
		if s, ok := specOf(all, start, end); ok {
			specs = append(specs, s)
		}
		start, angle = end+1, false
	}
	for i, t := range all {
		if t.kind != special {
			continue
		}
		switch c := t.text[0]; {
		case c == '<':
			start, angle = i+1, true
		case c == '>' && angle:
			add(i)
			start = len(all) // what follows up to the comma is no address
		case c == ',' && !angle, c == ';' && !angle:
			add(i)
		case c == ':' && !angle:
			start = i + 1 // a group begins
		}
	}
	if !angle {
		add(len(all))
	}
	return specs
}

// specOf reads the tokens from start to end as local@domain, with spaces and comments anywhere (RFC 5322 section
// 4.4), behind a source route.
func specOf(all []token, start, end int) (addrSpec, bool) {
	var s addrSpec
	at := false
	for i := start; i < end; i++ {
		switch t := all[i]; {
		case t.kind == blank || t.kind == comment:
		case t.kind == special && t.text[0] == ':' && at && len(s.local) == 0:
			s, at = addrSpec{}, false // the route ends
		case t.kind == special && t.text[0] == ',' && at && len(s.local) == 0: // a hop of the route ends
		case t.kind == special && t.text[0] == '@' && (!at || len(s.local) == 0):
			at = true
		case t.kind == special, t.kind == literal && !at, t.kind == quoted && at:
			return addrSpec{}, false
		case at:
			s.domain = append(s.domain, i)
		default:
			s.local = append(s.local, i)
		}
	}
	return s, at && len(s.local) > 0 && len(s.domain) > 0
}

// mailbox that s means; false if it is no address.
func (s addrSpec) mailbox(all []token) (address.Mailbox, bool) {
	local, ok := join(all, s.local)
	domain, dotted := join(all, s.domain)
	if !ok || !dotted || strings.ContainsAny(local, "\r\n\x00") {
		return address.Mailbox{}, false
	}
	name, err := address.ParseDomain(domain)
	return address.Mailbox{Local: local, Domain: name}, err == nil
}

// join the tokens of one side. Between two there must be a dot: "a b@c" is no address.
func join(all []token, side []int) (string, bool) {
	var b strings.Builder
	for i, at := range side {
		t := all[at]
		if i > 0 {
			before := all[side[i-1]].text
			if before[len(before)-1] != '.' && t.text[0] != '.' {
				return "", false
			}
		}
		if t.kind == quoted {
			b.WriteString(unquote(t.text))
			continue
		}
		b.Write(t.text)
	}
	return b.String(), true
}

func unquote(text []byte) string {
	text = bytes.TrimPrefix(text, []byte(`"`))
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\\' && i+1 < len(text):
			i++
		case text[i] == '"':
			continue
		}
		b.WriteByte(text[i])
	}
	return b.String()
}

// set puts to in the place of from: only the side that differs changes.
func (s addrSpec) set(all []token, from, to address.Mailbox) {
	if to.Local != from.Local {
		text := to.String()
		replace(all, s.local, text[:len(text)-len(to.Domain)-1])
	}
	if to.Domain != from.Domain {
		replace(all, s.domain, to.Domain)
	}
}

// replace the tokens of one side by text; comments between them stay.
func replace(all []token, side []int, text string) {
	for i, at := range side {
		all[at].text = nil
		if i == 0 {
			all[at].text = []byte(text)
		}
	}
}

// lay joins the tokens. A line with a change in it that is too long gets a fold before its last space that a fold
// may stand at. It is false if a line is over the limit all the same.
func lay(used int, all []token, changed func(int) bool) ([]byte, bool) {
	var out []byte
	lineStart, space := -used, -1 // positions in out
	for i, t := range all {
		if text := tidy(t.text); t.kind == blank {
			if at := bytes.LastIndex(text, []byte("\r\n")); at >= 0 {
				out = append(out, text...)
				lineStart, space = len(out)-len(text)+at+2, -1
				continue
			}
			if len(out) > 0 {
				space = len(out)
			}
			out = append(out, text...)
			continue
		}
		out = append(out, t.text...)
		if at := bytes.LastIndex(t.text, []byte("\r\n")); at >= 0 { // a comment or string with a fold in it
			lineStart, space = len(out)-len(t.text)+at+2, -1
		}
		limit := maxLine
		if changed(i) {
			limit = wantedLine
		}
		if space > 0 && len(out)-lineStart > limit {
			out = append(out[:space], append([]byte("\r\n"), out[space:]...)...)
			lineStart, space = space+2, -1
		}
	}
	return trim(out), sane(used, out)
}

// tidy makes the blanks between two tokens what may stand in a field: no line that holds nothing else, and no lone
// CR or LF.
func tidy(text []byte) []byte {
	if bytes.IndexByte(text, '\r') < 0 && bytes.IndexByte(text, '\n') < 0 {
		return text
	}
	if at := bytes.LastIndex(text, []byte("\r\n")); at >= 0 && at+2 < len(text) {
		if rest := text[at+2:]; bytes.IndexByte(rest, '\r') < 0 {
			first := bytes.Index(text, []byte("\r\n"))
			if !bytes.ContainsAny(text[:first], "\r\n") {
				return append(append(bytes.Clone(text[:first]), "\r\n"...), rest...)
			}
		}
	}
	return []byte(" ")
}

// trim takes off the space that the host writes behind the colon.
func trim(value []byte) []byte {
	if len(value) > 1 && value[0] == ' ' && !isBlank(value[1]) {
		return value[1:]
	}
	return value
}

// sane reports whether value may stand in a header: folds, but no other line ends, no NUL, no line too long.
func sane(used int, value []byte) bool {
	for i, line := range bytes.Split(value, []byte("\r\n")) {
		if i > 0 {
			used = 0
		}
		folded := i == 0 || len(line) > 0 && isBlank(line[0]) && len(bytes.TrimLeft(line, " \t")) > 0
		if !folded || bytes.ContainsAny(line, "\r\n\x00") || used+1+len(line) > maxLine {
			return false
		}
	}
	return true
}
