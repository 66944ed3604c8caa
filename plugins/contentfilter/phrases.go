package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/posternmail/postern/plugins/contentfilter/classifier"
	"github.com/posternmail/postern/sdk/match"
)

// phrases to look for in a text. They are folded, like the text.
type phrases struct {
	by     map[[2]byte][]string // by their first two octets; the second is 0 where there is none
	starts [256]bool            // whether one begins with this octet
}

// add a phrase. One that folds to nothing is not added.
func (p *phrases) add(text string) bool {
	folded := match.Fold(text)
	if folded == "" {
		return false
	}
	if p.by == nil {
		p.by = map[[2]byte][]string{}
	}
	key := [2]byte([]byte(folded + "\x00"))
	p.by[key] = append(p.by[key], folded)
	p.starts[folded[0]] = true
	return true
}

// find the phrase that comes first in the text; "" if there is none. Phrases are found as whole words, as
// Exchange finds them: "cialis" is not in "specialist".
func (p *phrases) find(text string) string {
	for i := range len(text) {
		if !p.starts[text[i]] || withinWord(text, i) {
			continue
		}
		if phrase := p.at(text, i, [2]byte{text[i], 0}); phrase != "" {
			return phrase
		}
		if i+1 == len(text) {
			break
		}
		if phrase := p.at(text, i, [2]byte{text[i], text[i+1]}); phrase != "" {
			return phrase
		}
	}
	return ""
}

// at finds the phrase of that key that stands at position i.
func (p *phrases) at(text string, i int, key [2]byte) string {
	for _, phrase := range p.by[key] {
		if strings.HasPrefix(text[i:], phrase) && !withinWord(text, i+len(phrase)) {
			return phrase
		}
	}
	return ""
}

// withinWord reports whether the characters on both sides of position i are of one word.
func withinWord(text string, i int) bool {
	before, _ := utf8.DecodeLastRuneInString(text[:i])
	if !classifier.IsWord(before) {
		return false
	}
	after, _ := utf8.DecodeRuneInString(text[i:])
	return classifier.IsWord(after)
}

// readFile adds the phrases of a file: one a line; empty lines and those that begin with # are passed over.
func (p *phrases) readFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		if length := utf8.RuneCountInString(text); length > maxPhrase {
			return fmt.Errorf("%s, line %d: phrase of %d characters, at most %d", path, n, length, maxPhrase)
		}
		if !p.add(text) {
			return fmt.Errorf("%s, line %d: an empty phrase is in every message", path, n)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
