package match

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Fold makes texts comparable as readers see them: compatibility forms as plain ones (Unicode NFKC: full width letters,
// ligatures, accents in one piece or two), lower case, any white space a single blank and none at the ends, invisible characters
// dropped.
func Fold(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) {
		s = norm.NFKC.String(s)
	}
	out := make([]byte, 0, len(s))
	blank := false
	for _, r := range s {
		switch {
		case unicode.IsSpace(r):
			blank = len(out) > 0
			continue
		case invisible(r):
			continue
		case blank:
			out = append(out, ' ')
			blank = false
		}
		out = utf8.AppendRune(out, unicode.ToLower(r))
	}
	return string(out)
}

// graphemeJoiner is invisible, whatever its category says.
const graphemeJoiner = '\u034F'

func invisible(r rune) bool {
	if r < utf8.RuneSelf {
		return r < ' ' || r == 0x7f
	}
	return unicode.In(r, unicode.Cf, unicode.Cc, unicode.Variation_Selector) || r == graphemeJoiner
}
