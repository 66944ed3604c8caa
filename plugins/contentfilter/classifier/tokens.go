package classifier

import (
	"math/bits"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/posternmail/postern/sdk/match"
)

// Recipe says of which kinds of tokens features are made.
type Recipe uint8

// Kinds of tokens.
const (
	Words Recipe = 1 << iota // each word of text, each character of scripts without spaces, each run of signs
	Pairs                    // two words in a row
	Skips                    // two words with one or two others between them (orthogonal sparse bigrams)
	Grams                    // four characters in a row
	Shape                    // structure, HTML, links, measures of the text
	Signs                    // of forging, hiding and shouting

	allKinds = Words | Pairs | Skips | Grams | Shape | Signs
)

// Standard is the recipe that measured best; see docs/contentfilter.md.
const Standard = Words | Pairs | Shape | Signs

// maxShape is how many tokens of shape are taken.
const maxShape = 1 << 11

// maxTokens different ones of text are looked at: the first, which is more than 100 kB of prose has.
const maxTokens = 1 << 15

// Features of a message: hashes of what is in it, and signs, each once.
type Features struct {
	Text  []uint64 // of text
	Shape []uint64 // of how it is built
	Signs []signID // found, in the order of their numbers
	names map[uint64]string
}

// Features of the document. With names they can be explained, which costs more.
func (d *Document) Features(recipe Recipe, names bool) *Features {
	c := &collector{recipe: recipe, seen: newHashSet()}
	if names {
		c.out.names = map[uint64]string{}
	}
	c.subject(d)
	m := measures{}
	for i := range d.Texts {
		t := &d.Texts[i]
		if t.html != nil {
			c.text(t.Visible, &m)
			m.count(t.html.text)
		} else {
			c.text(t.Source, &m)
			m.count(t.raw)
		}
		if t.Rest != "" {
			c.text(t.Rest, &m)
		}
	}
	if recipe&Shape != 0 {
		c.shapes(d, &m)
	}
	if recipe&Signs != 0 {
		c.out.Signs = d.signs(&m)
	}
	return &c.out
}

// collector of features.
type collector struct {
	recipe Recipe
	seen   hashSet
	out    Features
	prior  [3]word // words before, the last one first
}

type word struct {
	hash uint64
	text string // only for names
}

// kinds of tokens as they are hashed and named.
const (
	kindWord    = "w:"
	kindPair    = "p:"
	kindGram    = "c:"
	kindSubject = "s:"
	kindSender  = "f:"
	kindShape   = "m:"
	kindSign    = "h:"
)

// subject words count for themselves and as text.
func (c *collector) subject(d *Document) {
	m := measures{}
	recipe := c.recipe
	c.text(d.topic, &m)
	c.recipe = recipe & Words
	if c.recipe != 0 {
		c.marked(kindSubject, d.topic)
		if len(d.from) > 0 {
			c.marked(kindSender, match.Fold(d.from[0].Name))
		}
	}
	c.recipe = recipe
}

// marked words of a short text, such as the subject.
func (c *collector) marked(kind, text string) {
	for _, w := range strings.FieldsFunc(text, func(r rune) bool { return !IsWord(r) && !unicode.In(r, unspaced...) }) {
		c.add(kind, hashWord(kind, w), masked(w))
	}
}

// text adds the tokens of a folded text.
func (c *collector) text(s string, m *measures) {
	c.prior = [3]word{}
	for s != "" && len(c.out.Text) < maxTokens {
		var chunk string
		chunk, s, _ = strings.Cut(s, " ")
		m.chunk(chunk)
		switch {
		case isURL(chunk):
			c.word("<url>")
			if len(m.urls) < maxLinks {
				m.urls = append(m.urls, chunk)
			}
		case isAddress(chunk):
			c.word("<address>")
		default:
			c.chunk(chunk)
		}
	}
}

func isURL(chunk string) bool {
	return strings.Contains(chunk, "://") || strings.HasPrefix(chunk, "www.")
}

// isAddress reports whether a chunk holds a mail address, which says who wrote, not what.
func isAddress(chunk string) bool {
	at := strings.IndexByte(chunk, '@')
	return at > 0 && strings.IndexByte(chunk[at:], '.') > 1
}

// maxWord is how long a word may be, in octets; of a longer one the length counts.
const maxWord = 60

// chunk is text between white space: words and signs.
func (c *collector) chunk(s string) {
	if c.recipe&Grams != 0 {
		c.grams(s)
	}
	for s != "" {
		n := wordLength(s)
		c.word(s[:n])
		s = s[n:]
	}
}

// wordLength is the length of what s begins with: a word, a character of a script without spaces, or signs.
func wordLength(s string) int {
	r, n := utf8.DecodeRuneInString(s)
	kind := classOf(r)
	if kind == alone {
		return n
	}
	for n < len(s) {
		r, size := utf8.DecodeRuneInString(s[n:])
		if classOf(r) != kind {
			break
		}
		n += size
	}
	return n
}

type class byte

const (
	symbol class = iota
	letter
	alone
)

func classOf(r rune) class {
	switch {
	case r < utf8.RuneSelf:
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '\'' {
			return letter
		}
		return symbol
	case IsWord(r) || unicode.Is(unicode.M, r):
		return letter
	case unicode.IsLetter(r):
		return alone
	}
	return symbol
}

// word adds a word, and its pairs with those before it.
func (c *collector) word(text string) {
	if len(text) > maxWord {
		text = "<long " + sizeOf(len(text)) + ">"
	}
	w := word{hash: hashWord("", text)}
	if c.out.names != nil {
		text = masked(text)
		w.text = text
	}
	if c.recipe&Words != 0 {
		c.add(kindWord, mix(w.hash, 1), text)
	}
	for i, p := range c.prior {
		if p.hash == 0 {
			break
		}
		if i == 0 && c.recipe&Pairs != 0 || i > 0 && c.recipe&Skips != 0 {
			c.pair(p, w, i)
		}
	}
	c.prior[2], c.prior[1], c.prior[0] = c.prior[1], c.prior[0], w
}

func (c *collector) pair(a, b word, distance int) {
	hash := mix(a.hash+uint64(distance)+2, b.hash)
	if !c.fresh(hash) {
		return
	}
	if c.out.names != nil {
		c.out.names[hash] = kindPair + a.text + strings.Repeat(" _", distance) + " " + b.text
	}
}

// grams adds each run of four characters of a chunk with its borders.
func (c *collector) grams(s string) {
	window := uint64(' ')
	n := 1
	start := [4]int{} // where the last four characters begin, for names
	for i, r := range s {
		if r >= '0' && r <= '9' {
			r = '0'
		}
		window = window<<16 | uint64(r&0xFFFF)
		start[n%4] = i
		if n++; n >= 4 {
			c.gram(window, s, start[n%4], i+utf8.RuneLen(r))
		}
	}
	if n >= 3 {
		c.gram(window<<16|' ', s, start[(n+1)%4], len(s))
	}
}

func (c *collector) gram(window uint64, s string, from, to int) {
	hash := mix(window, 5)
	if !c.fresh(hash) {
		return
	}
	if c.out.names != nil {
		c.out.names[hash] = kindGram + masked(s[min(from, len(s)):min(to, len(s))])
	}
}

// fresh takes a token of text, and reports whether it is new.
func (c *collector) fresh(hash uint64) bool {
	if len(c.out.Text) >= maxTokens || !c.seen.add(hash) {
		return false
	}
	c.out.Text = append(c.out.Text, hash)
	return true
}

// add a token of text.
func (c *collector) add(kind string, hash uint64, text string) {
	if !c.fresh(hash) {
		return
	}
	if c.out.names != nil {
		c.out.names[hash] = kind + text
	}
}

// shape adds a token of how the message is built.
func (c *collector) shape(texts ...string) {
	hash := uint64(fnvBasis)
	for _, t := range texts {
		hash = fnv(hash, t)
	}
	hash = mix(hash, 7)
	if len(c.out.Shape) >= maxShape || !c.seen.add(hash) {
		return
	}
	c.out.Shape = append(c.out.Shape, hash)
	if c.out.names != nil {
		c.out.names[hash] = kindShape + strings.Join(texts, "")
	}
}

// FNV-1a.
const (
	fnvBasis = 14695981039346656037
	fnvPrime = 1099511628211
)

func fnv(hash uint64, s string) uint64 {
	for i := range len(s) {
		hash = (hash ^ uint64(s[i])) * fnvPrime
	}
	return hash
}

// hashWord hashes a word of a kind; digits are all alike, since numbers and years tell which mail was collected.
func hashWord(kind, s string) uint64 {
	hash := fnv(fnvBasis, kind)
	for i := range len(s) {
		b := s[i]
		if b >= '0' && b <= '9' {
			b = '0'
		}
		hash = (hash ^ uint64(b)) * fnvPrime
	}
	return hash | 1
}

// masked text has 0 for every digit, as it is hashed.
func masked(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return '0'
		}
		return r
	}, s)
}

// mix two numbers into a hash.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^0x9E3779B97F4A7C15, b^0xD6E8FEB86659FD93)
	h := hi ^ lo
	h ^= h >> 32
	h *= 0xD6E8FEB86659FD93
	return h ^ h>>29
}

// hashSet is a set of hashes.
type hashSet struct {
	slots []uint64
	n     int
}

func newHashSet() hashSet { return hashSet{slots: make([]uint64, 1<<11)} }

// add reports whether the hash is new.
func (s *hashSet) add(h uint64) bool {
	if h == 0 {
		h = 1
	}
	if s.n*2 >= len(s.slots) {
		s.grow()
	}
	if !s.put(h) {
		return false
	}
	s.n++
	return true
}

func (s *hashSet) put(h uint64) bool {
	mask := uint64(len(s.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		switch s.slots[i] {
		case 0:
			s.slots[i] = h
			return true
		case h:
			return false
		}
	}
}

func (s *hashSet) grow() {
	old := s.slots
	s.slots = make([]uint64, 4*len(old))
	for _, h := range old {
		if h != 0 {
			s.put(h)
		}
	}
}
