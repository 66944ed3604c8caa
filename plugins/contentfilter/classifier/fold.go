package classifier

import (
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Fold makes texts comparable: compatibility forms as plain ones (Unicode NFKC: full width letters, ligatures),
// lower case, any white space a single space, invisible characters dropped.
func Fold(s string) string {
	if !isASCII(s) {
		s = norm.NFKC.String(s)
	}
	out := make([]byte, 0, len(s))
	space := false
	for i := 0; i < len(s); {
		r, size := rune(s[i]), 1
		if r >= utf8.RuneSelf {
			r, size = utf8.DecodeRuneInString(s[i:])
		}
		i += size
		switch {
		case isSpace(r):
			space = len(out) > 0
			continue
		case invisible(r):
			continue
		case space:
			out = append(out, ' ')
			space = false
		}
		if r < utf8.RuneSelf {
			out = append(out, asciiLower(byte(r)))
		} else {
			out = utf8.AppendRune(out, unicode.ToLower(r))
		}
	}
	return string(out)
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

func asciiLower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

func isSpace(r rune) bool {
	if r < utf8.RuneSelf {
		return r == ' ' || r >= '\t' && r <= '\r'
	}
	return unicode.IsSpace(r)
}

// graphemeJoiner is invisible, whatever its category says.
const graphemeJoiner = '\u034F'

func invisible(r rune) bool {
	if r < utf8.RuneSelf {
		return r < ' ' || r == 0x7F
	}
	return unicode.In(r, unicode.Cf, unicode.Cc, unicode.Variation_Selector) || r == graphemeJoiner
}

// unspaced are scripts that put no spaces between words, or none before what hangs on to a word.
var unspaced = []*unicode.RangeTable{
	unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Hangul, unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar,
}

// IsWord reports whether a folded character is of a word that stands between spaces or signs.
func IsWord(r rune) bool {
	if r < utf8.RuneSelf {
		return r >= 'a' && r <= 'z' || r >= '0' && r <= '9'
	}
	return r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsDigit(r)) && !unicode.In(r, unspaced...)
}
