package classifier

import (
	"net/url"
	"strconv"
	"strings"
	"unicode"

	"github.com/posternmail/postern/sdk/match"
)

// hiding styles of a page.
var hiding = []string{"display:none", "visibility:hidden", "opacity:0", "max-height:0", "text-indent:-"}

// pages: what their HTML hides, and where their links lead.
func (s *inspector) pages() {
	away := false
	for i := range s.Texts {
		p := s.Texts[i].html
		if p == nil {
			continue
		}
		for _, style := range hiding {
			s.note(hiddenText, p.signs[style])
		}
		s.note(cutWord, p.cuts > 0)
		s.note(unknownElements, p.unknown > 1)
		s.note(elsewhereByItself, p.signs["refresh"] || p.elements["base"] > 0)
		for _, l := range p.links {
			away = s.anchor(l) || away
		}
		for _, image := range p.images {
			s.link(image)
		}
	}
	for _, u := range s.measures.urls {
		s.link(u)
	}
	s.note(linksElsewhere, away && !s.found[linksHome])
}

// anchor is a link that a reader may follow; away reports whether it leads to others than the sender.
func (s *inspector) anchor(l link) (away bool) {
	host := s.link(l.target)
	if host == "" {
		return false
	}
	org := organization(host)
	s.note(linksHome, org == s.home)
	if text := strings.ToLower(l.label); isURL(text) {
		if !strings.Contains(text, "://") {
			text = "http://" + text
		}
		shown, err := url.Parse(text)
		s.note(linkShowsOther, err == nil && organization(shown.Hostname()) != org)
	}
	return org != s.home
}

// link looks at how a URL is written (RFC 3986), and answers with its host.
func (s *inspector) link(text string) (host string) {
	_, rest, ok := strings.Cut(strings.ToLower(strings.TrimSpace(text)), "://")
	if !ok {
		return ""
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority, path := rest[:end], rest[end:]
	user, place, named := cutLast(authority, "@")
	if !named {
		user, place = "", authority
	}
	s.note(linkUser, user != "")
	s.note(linkEscapes, strings.Contains(authority, "%") || escapesForNothing(path))
	if strings.HasPrefix(place, "[") {
		s.note(linkAddress, true)
		return place
	}
	host, port, _ := strings.Cut(place, ":")
	s.note(linkPort, port != "" && port != "80" && port != "443")
	first, _, _ := strings.Cut(host, ".")
	switch _, err := strconv.ParseUint(host, 0, 64); {
	case isIP(host):
		s.note(linkAddress, true)
	case err == nil: // resolvers take it for an address
		s.note(linkNumber, true)
	default:
		s.note(linkRandom, digitsIn(host) >= 4 && changes(first) >= 2 || strings.Count(host, ".") >= 5)
	}
	return host
}

// escapesForNothing: more than one letter or digit, which stand for themselves (RFC 3986 section 2.3).
func escapesForNothing(s string) bool {
	n := 0
	for {
		_, after, found := strings.Cut(s, "%")
		if !found || len(after) < 2 {
			return n > 1
		}
		if c, err := strconv.ParseUint(after[:2], 16, 8); err == nil && c < 0x80 && alphanumeric(byte(c)) {
			n++
		}
		s = after
	}
}

// texts: how they are written.
func (s *inspector) texts() {
	m := s.measures
	s.note(textMissing, m.chunks < 5)
	s.note(textCapitals, m.letters > 100 && m.upper*4 > m.letters)
	invisibles := 0
	for i := range s.Texts {
		t := &s.Texts[i]
		text := t.raw
		if t.html != nil {
			text = t.html.text
		}
		s.note(textExclaims, strings.Contains(text, "!!"))
		s.note(textSpread, isSpread(text))
		s.note(textRandom, endsAtRandom(text))
		if !isASCII(text) {
			invisibles += s.script(text)
		}
	}
	s.note(textInvisible, invisibles > 3)
}

// isSpread reports whether single Latin letters stand in a row.
func isSpread(text string) bool {
	run, length, letter := 0, 0, false
	for i := range len(text) {
		c := text[i]
		if c > ' ' {
			length++
			letter = c < 0x80 && asciiLower(c) >= 'a' && asciiLower(c) <= 'z'
			continue
		}
		if length == 1 && letter {
			run++
		} else if length > 0 {
			run = 0
		}
		if length = 0; run >= 5 {
			return true
		}
	}
	return false
}

// endsAtRandom reports whether the last line is one word that is none of any language.
func endsAtRandom(text string) bool {
	text = strings.TrimSpace(text)
	w := text[strings.LastIndexByte(text, '\n')+1:]
	if len(w) < 6 || len(w) > maxWord || strings.ContainsAny(w, " \t./:@_-=*#~") || !isASCII(w) {
		return false
	}
	return changes(w) >= 3 || consonants(w) >= 5
}

// script of a text with more than ASCII: letters of several scripts in a word, letters in disguise. It answers with the
// number of invisible characters.
func (s *inspector) script(text string) (invisibles int) {
	latin, other := false, false
	for _, r := range text {
		switch {
		case r <= ' ':
			latin, other = false, false
		case asciiLower(byte(r)) >= 'a' && asciiLower(byte(r)) <= 'z' && r < 0x80, r >= 0xC0 && r < 0x250:
			latin = true
		case r < 0x250:
		case unicode.In(r, unicode.Greek, unicode.Cyrillic):
			other = true
		case disguised(r):
			s.note(textDisguised, true)
		case match.Invisible(r):
			invisibles++
		}
		s.note(textMixed, latin && other)
	}
	return invisibles
}

// disguised letters are signs of mathematics, full width ones and those in circles.
func disguised(r rune) bool {
	return r >= 0x1D400 && r < 0x1D800 || r >= 0xFF21 && r <= 0xFF5A || r >= 0x2460 && r < 0x2500
}
