package classifier

import (
	"regexp"
	"strings"
	"unicode"
)

var (
	lastWord = regexp.MustCompile(`(?:\s|[\[({<#-]\s*)([a-zA-Z0-9]{4,})\s*[\])}>]?\s*$`)
	spread   = regexp.MustCompile(`(?:^|[\s(])(?:\pL[\s._*-]{1,3}){4,}\pL(?:$|[\s).!?])`)
)

// gap in a subject that pushes what follows out of sight.
const gap = "     "

func (s *inspector) subject() {
	raw := s.header.Get("Subject")
	s.note(subjectMissing, s.title == "")
	s.note(subjectRaw, !isASCII(raw))
	s.note(subjectEncoded, strings.Contains(raw, "=?") && isASCII(s.title))
	s.note(subjectGap, strings.Contains(s.title, gap))
	title := s.title[:min(len(s.title), maxTitle)]
	s.note(subjectSpread, spread.MatchString(title))
	m := measures{}
	m.count(title)
	s.note(subjectCapitals, m.letters > 8 && m.upper == m.letters && strings.Contains(title, " "))
	s.note(subjectExclaims, m.exclaims > 0)
	s.note(subjectMoney, m.money > 0 || strings.Contains(title, "%"))
	if tail := lastWord.FindStringSubmatch(title); tail != nil {
		w := tail[1]
		s.note(subjectRandom, changes(w) >= 2 || w == strings.ToLower(w) && len(w) >= 5 && consonants(w) == len(w))
	}
	for _, a := range s.to {
		local, _, _ := cutLast(strings.ToLower(a.Address), "@")
		s.note(subjectRecipient, len(local) >= 4 && hasWord(s.topic, local))
	}
}

// maxTitle is how much of a subject is looked at, in octets.
const maxTitle = 1000

// hasWord reports whether a folded text has a word with no letters or digits around it.
func hasWord(text, word string) bool {
	for {
		before, after, found := strings.Cut(text, word)
		if !found {
			return false
		}
		if (before == "" || !alphanumeric(before[len(before)-1])) && (after == "" || !alphanumeric(after[0])) {
			return true
		}
		text = after
	}
}

func alphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

// changes between letters and digits within a word.
func changes(s string) int {
	n, before := 0, rune(0)
	for _, r := range s {
		kind := rune(0)
		switch {
		case r >= '0' && r <= '9':
			kind = '0'
		case unicode.IsLetter(r):
			kind = 'a'
		}
		if kind != 0 && before != 0 && kind != before {
			n++
		}
		before = kind
	}
	return n
}

// consonants in a row, the most of them, of Latin letters.
func consonants(s string) int {
	run, most := 0, 0
	for i := range len(s) {
		c := asciiLower(s[i])
		if c < 'a' || c > 'z' || strings.IndexByte("aeiouy", c) >= 0 {
			run = 0
			continue
		}
		run++
		most = max(most, run)
	}
	return most
}
