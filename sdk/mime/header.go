package mime

import (
	"bytes"
	"io"
	"mime"
	"net/mail"
	"regexp"
	"strings"

	"golang.org/x/text/encoding/htmlindex"
)

// Field is one header field as it stands.
type Field struct {
	Name  string // as it stands
	Value string // after the colon, with its folds, without the last line end
}

// Header is a header block in order.
type Header []Field

// ParseHeader splits a header block into fields. Lines that are none are dropped.
func ParseHeader(block []byte) Header {
	var h Header
	var value []byte // of the last field; put into it when the next one begins, so that many folds cost no more than few
	end := func() {
		if len(h) > 0 {
			h[len(h)-1].Value = string(value)
		}
	}
	for len(block) > 0 {
		line, rest := cutLine(block)
		block = rest
		if (line[0] == ' ' || line[0] == '\t') && len(h) > 0 {
			value = append(append(value, "\r\n"...), trimEnd(line)...)
			continue
		}
		name, first, ok := bytes.Cut(line, []byte(":"))
		if name = bytes.TrimRight(name, " \t"); ok && len(name) > 0 {
			end()
			h = append(h, Field{Name: string(name)})
			value = append(value[:0], trimEnd(first)...)
		}
	}
	end()
	return h
}

func cutLine(b []byte) (line, rest []byte) {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		return b[:i+1], b[i+1:]
	}
	return b, nil
}

func trimEnd(b []byte) []byte { return bytes.TrimRight(b, "\r\n") }

// Get answers with the first field of a name, unfolded and trimmed; "" when there is none.
func (h Header) Get(name string) string {
	for _, f := range h {
		if strings.EqualFold(f.Name, name) {
			return unfold(f.Value)
		}
	}
	return ""
}

// All answers with every field of a name, unfolded and trimmed.
func (h Header) All(name string) []string {
	var out []string
	for _, f := range h {
		if strings.EqualFold(f.Name, name) {
			out = append(out, unfold(f.Value))
		}
	}
	return out
}

// Decoded is Get with encoded words (RFC 2047) as UTF-8.
func (h Header) Decoded(name string) string { return DecodeWords(h.Get(name)) }

// Addresses answers with the mailboxes of all fields of a name, groups flattened, and whether all of it parsed.
func (h Header) Addresses(name string) (list []*mail.Address, ok bool) {
	ok = true
	parser := mail.AddressParser{WordDecoder: &wordDecoder}
	for _, v := range h.All(name) {
		got, err := parser.ParseList(v)
		if err != nil {
			ok = false
			continue
		}
		list = append(list, got...)
	}
	return list, ok
}

// AddressLike finds what readers of mail may take for addresses in the text of a field that does not parse, at most 50:
// "local@domain", the local part empty where none can be made out. Encoded words are decoded, comments and blanks around
// dots are left out.
func AddressLike(text string) (list []string) {
	text = comments.ReplaceAllString(DecodeWords(unfold(text)), "")
	for _, m := range likeDomain.FindAllStringSubmatchIndex(text, 50) {
		local := strings.TrimRight(text[:m[0]], " \t\"")
		local = local[strings.LastIndexAny(local, " \t<>\"(),;:@\\")+1:]
		list = append(list, local+"@"+blanks.ReplaceAllString(text[m[2]:m[3]], ""))
	}
	return list
}

var (
	comments   = regexp.MustCompile(`\([^()]*\)`)
	blanks     = regexp.MustCompile(`\s+`)
	likeDomain = regexp.MustCompile(`@\s*([\pL\pN][\pL\pN_-]*(?:\s*\.\s*[\pL\pN][\pL\pN_-]*)+)`)
)

func unfold(v string) string {
	return strings.TrimSpace(strings.NewReplacer("\r\n", "", "\n", "", "\r", "").Replace(v))
}

var wordDecoder = mime.WordDecoder{CharsetReader: charsetReader}

// DecodeWords turns encoded words (RFC 2047) into UTF-8; what cannot be decoded stays as it is.
func DecodeWords(s string) string {
	if !strings.Contains(s, "=?") {
		return s
	}
	if d, err := wordDecoder.DecodeHeader(s); err == nil {
		return d
	}
	return s
}

// charsetReader reads an unknown charset as ISO 8859-1, as DecodedText does, so that one such word hides no others.
func charsetReader(charset string, r io.Reader) (io.Reader, error) {
	if isUTF7(charset) {
		return utf7Reader(r)
	}
	enc, err := htmlindex.Get(charset)
	if err != nil {
		enc, err = htmlindex.Get("windows-1252")
	}
	if err != nil {
		return nil, err
	}
	return enc.NewDecoder().Reader(r), nil
}

// parseMediaType is tolerant: what the standard library refuses is read for its type and the parameters that
// can be made out, since hostile mail is malformed on purpose.
func parseMediaType(v string) (typ string, params map[string]string, ok bool) {
	typ, params, err := mime.ParseMediaType(v)
	if err == nil {
		for k, p := range params {
			params[k] = DecodeWords(p)
		}
		return typ, params, true
	}
	typ, rest, _ := strings.Cut(stripComments(v), ";")
	params = map[string]string{}
	for _, p := range splitParams(rest) {
		name, value, has := strings.Cut(p, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		if has && name != "" && params[name] == "" {
			params[name] = DecodeWords(unquote(strings.TrimSpace(value)))
		}
	}
	return strings.ToLower(strings.TrimSpace(typ)), params, false
}

// splitParams splits at semicolons outside of quotes.
func splitParams(s string) []string {
	var out []string
	quoted, start := false, 0
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == ';' && !quoted:
			out = append(out, s[start:i])
			start = i + 1
		}
	}
	return append(out, s[start:])
}

func unquote(s string) string {
	if len(s) < 2 || s[0] != '"' {
		return s
	}
	s = strings.TrimSuffix(s[1:], `"`)
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// stripComments drops what stands in parentheses (RFC 5322 section 3.2.2), outside of quotes.
func stripComments(s string) string {
	if !strings.Contains(s, "(") {
		return s
	}
	var b strings.Builder
	depth, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' && depth == 0:
			quoted = !quoted
			b.WriteByte(c)
		case c == '(' && !quoted:
			depth++
		case c == ')' && depth > 0:
			depth--
		case depth == 0:
			b.WriteByte(c)
		}
	}
	return b.String()
}
