package dkim

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Tags is a tag list (RFC 6376 section 3.2) by tag name.
type Tags map[string]string

// ParseTags reads a tag list: a header field's value, or a key record.
func ParseTags(text string) (Tags, error) {
	tags := Tags{}
	specs := strings.Split(text, ";")
	if last := len(specs) - 1; strings.Trim(specs[last], whitespace) == "" {
		specs = specs[:last] // the last one may end with a semicolon
	}
	for _, spec := range specs {
		name, value, found := strings.Cut(spec, "=")
		name = strings.Trim(name, whitespace)
		switch {
		case !found || !isTagName(name):
			return nil, fmt.Errorf("malformed tag %q", clip(spec))
		}
		if _, twice := tags[name]; twice {
			return nil, fmt.Errorf("tag %s stands twice", name)
		}
		tags[name] = strings.Trim(value, whitespace)
	}
	return tags, nil
}

// whitespace of RFC 6376, folds included.
const whitespace = " \t\r\n"

func clip(s string) string {
	s = strings.Trim(s, whitespace)
	return s[:min(len(s), 40)]
}

func isTagName(s string) bool {
	for i := range len(s) {
		c := s[i] | 0x20
		if !(c >= 'a' && c <= 'z' || i > 0 && (s[i] >= '0' && s[i] <= '9' || s[i] == '_')) {
			return false
		}
	}
	return s != ""
}

// Compact is a tag's value without any white space, "" if there is none.
func (t Tags) Compact(name string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(whitespace, r) {
			return -1
		}
		return r
	}, t[name])
}

// List of a value that is separated by colons.
func (t Tags) List(name string) []string {
	if t.Compact(name) == "" {
		return nil
	}
	return strings.Split(t.Compact(name), ":")
}

// Need answers with an error that names the first tag that is missing or empty.
func (t Tags) Need(names ...string) error {
	for _, name := range names {
		if t.Compact(name) == "" {
			return fmt.Errorf("tag %s is missing", name)
		}
	}
	return nil
}

// octets of a value in base64.
func (t Tags) octets(name string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(t.Compact(name))
	if err != nil {
		return nil, fmt.Errorf("tag %s is not base64", name)
	}
	return b, nil
}

// identity is i= with its quoted octets (RFC 6376 section 2.11) decoded, "" if there is none.
func (t Tags) identity() string {
	text := t.Compact("i")
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '=' && i+2 < len(text) {
			if n, err := strconv.ParseUint(text[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}

// identityDomain is the domain of i=, "" without one.
func (t Tags) identityDomain() string {
	i := t.identity()
	return i[strings.LastIndexByte(i, '@')+1:]
}

// Time of a value in seconds; zero without the tag. RFC 6376 section 3.5: up to 12 digits.
func (t Tags) Time(name string) (time.Time, error) {
	text, found := t[name]
	if !found {
		return time.Time{}, nil
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || len(text) > 12 {
		return time.Time{}, fmt.Errorf("tag %s is no time", name)
	}
	return time.Unix(int64(n), 0), nil
}

// canonicalization of c=; simple/simple without it.
func (t Tags) canonicalization() (header, body bool, err error) {
	if c, found := t["c"]; found && c == "" {
		return false, false, errors.New("tag c is empty")
	}
	h, b, _ := strings.Cut(t.Compact("c"), "/")
	header, errHeader := relaxedName(h)
	body, errBody := relaxedName(b)
	return header, body, errors.Join(errHeader, errBody)
}

func relaxedName(name string) (bool, error) {
	switch name {
	case "", "simple":
		return false, nil
	case "relaxed":
		return true, nil
	}
	return false, fmt.Errorf("unknown canonicalization %q", clip(name))
}

// WithoutSignature empties the b tag of a signature's field, and changes nothing else (RFC 6376 section 3.7).
func WithoutSignature(field string) string {
	start := strings.IndexByte(field, ':') + 1
	for at := start; at < len(field); {
		end := len(field)
		if i := strings.IndexByte(field[at:], ';'); i >= 0 {
			end = at + i
		}
		if name, _, found := strings.Cut(field[at:end], "="); found && strings.Trim(name, whitespace) == "b" {
			return field[:at+len(name)+1] + field[end:]
		}
		at = end + 1
	}
	return field
}
