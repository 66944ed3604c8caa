package mime

import (
	"cmp"
	"encoding/base64"
	"io"
	"mime"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Names are all file names that a reader might take for p's, the most likely one first: those of each Content-Disposition
// and Content-Type, whether encoded by RFC 2047 or RFC 2231, however malformed, and each where there are several. None if
// there is none.
func (p *Part) Names() []string {
	all := []string{p.Filename, p.Params["name"]}
	for _, field := range []string{"Content-Disposition", "Content-Type"} {
		for _, value := range p.Header.All(field) {
			_, params, err := mime.ParseMediaType(value)
			all = append(all, looseWords(params["filename"]), looseWords(params["name"]))
			if err != nil || strings.ContainsAny(value, "*'") { // malformed, or in sections or a charset that few know
				all = append(all, looseNames(value)...)
			}
		}
	}
	return distinct(all)
}

// Types are all media types that a reader might take for p's, in lower case: Type, and that of each Content-Type field.
func (p *Part) Types() []string {
	types := []string{p.Type}
	for _, value := range p.Header.All("Content-Type") {
		t, _, _ := strings.Cut(value, ";")
		types = append(types, strings.ToLower(strings.TrimSpace(t)), withoutSpace(stripComments(t)))
	}
	return distinct(types)
}

func withoutSpace(s string) string { return strings.ToLower(strings.Join(strings.Fields(s), "")) }

// distinct texts of a list, in order, without empty ones. There may be thousands.
func distinct(list []string) (left []string) {
	seen := make(map[string]bool, len(list))
	for _, s := range list {
		if s != "" && !seen[s] {
			seen[s] = true
			left = append(left, s)
		}
	}
	return left
}

// Bounds of what is looked at beyond the grammar.
const (
	maxNames = 2000 // in a field
	maxValue = 300  // octets of a value: more than any system takes for a name
)

// section of a name in pieces (RFC 2231 section 3).
type section struct {
	number  int
	encoded bool
	text    string
}

// looseNames finds the names in a field that does not follow the grammar, or says them more than once: anything that a
// lenient reader may take for "name" or "filename".
func looseNames(field string) (names []string) {
	var pieces [2][]section // of name and filename
	lower := asciiLower(field)
	for _, start := range mentions(lower) {
		one, numbered, ok := parameter(field[start+len("name"):])
		which := 0
		if strings.HasSuffix(lower[:start], "file") {
			which, start = 1, start-len("file")
		}
		switch {
		case !ok, start > 0 && strings.IndexByte(" \t\r\n;,\"'", field[start-1]) < 0:
		case numbered:
			pieces[which] = append(pieces[which], one)
		case one.encoded:
			names = append(names, joined([]section{{text: unquote(one.text), encoded: true}}))
		default:
			names = append(names, plainNames(one.text)...)
		}
	}
	return append(names, joined(pieces[1]), joined(pieces[0]))
}

// mentions of "name", of very many the first and the last: those that readers take.
func mentions(lower string) (places []int) {
	for at := 0; ; at += len("name") {
		i := strings.Index(lower[at:], "name")
		if i < 0 {
			break
		}
		at += i
		places = append(places, at)
	}
	if len(places) > maxNames {
		places = append(places[:maxNames/2], places[len(places)-maxNames/2:]...)
	}
	return places
}

// asciiLower keeps the places of all octets.
func asciiLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// parameter reads what follows a name: the number of a section, the mark of an encoded one, and the value up to the end of its
// quotes or to a semicolon.
func parameter(rest string) (one section, numbered, ok bool) {
	const longest = len("*1234* ") + 10 // with white space
	i := strings.IndexByte(rest[:min(len(rest), longest)], '=')
	if i < 0 {
		return one, false, false
	}
	mark, value := strings.TrimSpace(rest[:i]), rest[i+1:]
	one.encoded = len(mark) > 1 && strings.HasSuffix(mark, "*") || mark == "*"
	if mark = strings.Trim(mark, "*"); mark != "" {
		n, err := strconv.ParseUint(mark, 10, 16)
		if err != nil {
			return one, false, false
		}
		one.number, numbered = int(n), true
	}
	value = strings.TrimLeft(value, " \t\r\n")
	one.text = strings.TrimSpace(valueOf(value[:min(len(value), maxValue)]))
	if numbered {
		one.text = unquote(one.text)
	}
	return one, numbered, true
}

func valueOf(s string) string {
	if !strings.HasPrefix(s, `"`) {
		value, _, _ := strings.Cut(s, ";")
		return value
	}
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return s[:i+1]
		}
	}
	return s
}

// plainNames of a value: as a whole, and up to the first blank or comma where it is not quoted.
func plainNames(text string) []string {
	if strings.HasPrefix(text, `"`) {
		return []string{looseWords(unquote(text))}
	}
	whole := strings.TrimSpace(stripComments(text))
	first, _, _ := strings.Cut(strings.ReplaceAll(whole, ",", " "), " ")
	return []string{looseWords(whole), looseWords(strings.Trim(whole, "'\"")), looseWords(strings.Trim(first, "'\""))}
}

// joined is the name that sections make in the order of their numbers, with gaps. The first one names the charset.
func joined(sections []section) string {
	if len(sections) == 0 {
		return ""
	}
	slices.SortStableFunc(sections, func(a, b section) int { return cmp.Compare(a.number, b.number) })
	charset := ""
	var b strings.Builder
	for i, s := range sections {
		text := s.text
		if s.encoded {
			if parts := strings.SplitN(text, "'", 3); i == 0 && len(parts) == 3 {
				charset, text = parts[0], parts[2]
			}
			text = unescape(text)
		}
		b.WriteString(text)
	}
	return looseWords(inCharset(b.String(), charset))
}

// unescape undoes the escapes of RFC 2231 section 4; what is none stays.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(v))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// inCharset reads text, or leaves it where that is UTF-8 or cannot be done.
func inCharset(text, charset string) string {
	switch strings.ToLower(charset) {
	case "", "utf-8", "us-ascii":
		return text
	}
	r, err := charsetReader(strings.ToLower(charset), strings.NewReader(text))
	if err != nil {
		return text
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return text
	}
	return string(b)
}

var looseWord = regexp.MustCompile(`=\?([^?\s]{1,40})\?([bBqQ])\?([^?]*)\?=(?:\s+(=\?))?`)

// looseWords decodes encoded words (RFC 2047) as the most lenient reader does: DecodeWords leaves those that are malformed,
// such as base64 without its padding.
func looseWords(s string) string {
	if decoded := DecodeWords(s); !strings.Contains(decoded, "=?") {
		return decoded
	}
	var b strings.Builder
	for {
		m := looseWord.FindStringSubmatchIndex(s)
		if m == nil {
			return b.String() + s
		}
		b.WriteString(s[:m[0]])
		charset, _, _ := strings.Cut(s[m[2]:m[3]], "*") // RFC 2231 section 5: a language may follow
		b.WriteString(inCharset(looseWordText(s[m[4]], s[m[6]:m[7]]), charset))
		end := m[1]
		if m[8] >= 0 {
			end = m[8] // white space between two words is not shown
		}
		s = s[end:]
	}
}

func looseWordText(encoding byte, text string) string {
	if encoding == 'q' || encoding == 'Q' {
		return unescape(strings.NewReplacer("=", "%", "%", "%25", "_", " ").Replace(text))
	}
	text = strings.Map(func(r rune) rune {
		if r < 0x80 && isBase64(byte(r)) {
			return r
		}
		return -1
	}, text)
	if len(text)%4 == 1 { // six bits are no octet
		text = text[:len(text)-1]
	}
	b, _ := base64.RawStdEncoding.DecodeString(text) // it has only the alphabet
	return string(b)
}
