package match

import (
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Fold makes texts comparable as readers see them: compatibility forms as plain ones (Unicode NFKC: full width letters,
// ligatures, accents in one piece or two), lower case, any white space a single blank and none at the ends, invisible characters
// dropped.
func Fold(s string) string {
	if !isASCII(s) {
		s = norm.NFKC.String(s)
	}
	out := make([]byte, 0, len(s))
	blank := false
	for i := 0; i < len(s); { // by octets where they are characters: most texts are long and plain
		r, size := rune(s[i]), 1
		if r >= utf8.RuneSelf {
			r, size = utf8.DecodeRuneInString(s[i:])
		}
		i += size
		switch {
		case isSpace(r):
			blank = len(out) > 0
			continue
		case Invisible(r):
			continue
		case blank:
			out = append(out, ' ')
			blank = false
		}
		switch {
		case r >= utf8.RuneSelf:
			out = utf8.AppendRune(out, unicode.ToLower(r))
		case r >= 'A' && r <= 'Z':
			out = append(out, byte(r)+'a'-'A')
		default:
			out = append(out, byte(r))
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

func isSpace(r rune) bool {
	if r < utf8.RuneSelf {
		return r == ' ' || r >= '\t' && r <= '\r'
	}
	return unicode.IsSpace(r)
}

// graphemeJoiner is invisible, whatever its category says.
const graphemeJoiner = '\u034F'

// Invisible reports whether readers do not see a character: controls, formatting, variation selectors.
func Invisible(r rune) bool {
	if r < utf8.RuneSelf {
		return r < ' ' || r == 0x7f
	}
	return unicode.In(r, unicode.Cf, unicode.Cc, unicode.Variation_Selector) || r == graphemeJoiner
}
