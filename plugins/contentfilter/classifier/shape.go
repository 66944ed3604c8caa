package classifier

import (
	"maps"
	"math/bits"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/posternmail/postern/sdk/mime"
)

// measures of the text, taken while it is read.
type measures struct {
	urls                                           []string
	chunks, octets, longest                        int
	letters, upper, digits, signs, foreign, quotes int
	exclaims, money                                int
	scripts                                        [len(scripts)]bool
}

// scripts that are told apart.
var scripts = [...]struct {
	name  string
	table *unicode.RangeTable
}{
	{"Latin", unicode.Latin}, {"Cyrillic", unicode.Cyrillic}, {"Greek", unicode.Greek}, {"Arabic", unicode.Arabic}, {"Hebrew", unicode.Hebrew},
	{"Han", unicode.Han}, {"Kana", unicode.Katakana}, {"Hiragana", unicode.Hiragana}, {"Hangul", unicode.Hangul}, {"Thai", unicode.Thai},
	{"Devanagari", unicode.Devanagari},
}

// chunk counts text between white space, folded.
func (m *measures) chunk(s string) {
	m.chunks++
	m.octets += len(s)
	m.longest = max(m.longest, len(s))
	if s != "" && s[0] == '>' {
		m.quotes++
	}
}

// count the characters of a text as it stands.
func (m *measures) count(s string) {
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z':
			m.letters++
		case r >= 'A' && r <= 'Z':
			m.letters++
			m.upper++
		case r >= '0' && r <= '9':
			m.digits++
		case r == '!':
			m.exclaims++
		case r == '$':
			m.money++
		case r >= utf8.RuneSelf:
			m.rune(r)
		case r > ' ':
			m.signs++
		}
	}
}

func (m *measures) rune(r rune) {
	m.foreign++
	if unicode.Is(unicode.Sc, r) {
		m.money++
	}
	if r < 0x250 {
		return
	}
	for i, s := range scripts {
		if !m.scripts[i] && unicode.Is(s.table, r) {
			m.scripts[i] = true
		}
	}
}

// sizeOf is a number on a scale of powers of two.
func sizeOf(n int) string { return strconv.Itoa(bits.Len(uint(n))) }

// share of a in b in eighths, coarse below: "0" is none.
func share(a, b int) string {
	switch {
	case a == 0 || b == 0:
		return "0"
	case a*100 < b:
		return "<1%"
	case a*20 < b:
		return "<5%"
	case a*10 < b:
		return "<10%"
	}
	return strconv.Itoa(a * 8 / b)
}

// shapes adds what is known of the structure.
func (c *collector) shapes(d *Document, m *measures) {
	c.shape("note=", d.Note)
	c.sender(d)
	c.measures(m)
	if d.tree != nil {
		c.parts(d.tree)
	}
	links := 0
	for i := range d.Texts {
		t := &d.Texts[i]
		if t.html == nil {
			continue
		}
		c.page(t.html, len(t.raw))
		links += len(t.html.links)
		for _, l := range t.html.links {
			c.url("href", l.target)
			c.label(l)
		}
		for _, image := range t.html.images {
			c.url("image", image)
		}
	}
	c.shape("links=", sizeOf(links+len(m.urls)))
	for _, u := range m.urls {
		c.url("text", u)
	}
}

// sender: whether the name shown passes itself off as something, and whether answers go elsewhere. No address.
func (c *collector) sender(d *Document) {
	from := d.from
	c.shape("from parses=", strconv.FormatBool(d.fromParses && len(from) > 0))
	if d.title != "" {
		m := measures{}
		m.count(d.title)
		c.shape("subject words=", sizeOf(strings.Count(d.title, " ")))
		c.shape("subject encoded=", strconv.FormatBool(strings.Contains(d.header.Get("Subject"), "=?")))
		c.shape("subject upper=", share(m.upper, m.letters))
		c.shape("subject exclaims=", sizeOf(m.exclaims))
	}
	if len(from) == 0 {
		return
	}
	c.shape("from name=", strconv.FormatBool(from[0].Name != ""))
	c.shape("from name address=", strconv.FormatBool(strings.Contains(from[0].Name, "@")))
	if reply, _ := d.header.Addresses("Reply-To"); len(reply) > 0 {
		c.shape("reply elsewhere=", strconv.FormatBool(!strings.EqualFold(domainOf(reply[0].Address), domainOf(from[0].Address))))
	}
}

func domainOf(address string) string { return address[strings.LastIndexByte(address, '@')+1:] }

func (c *collector) measures(m *measures) {
	c.shape("text=", sizeOf(m.octets))
	c.shape("longest=", sizeOf(m.longest))
	c.shape("upper=", share(m.upper, m.letters))
	c.shape("digits=", share(m.digits, m.octets))
	c.shape("signs=", share(m.signs, m.octets))
	c.shape("foreign=", share(m.foreign, m.octets))
	c.shape("exclaims=", share(m.exclaims*10, m.chunks))
	c.shape("money=", sizeOf(m.money))
	c.shape("quotes=", share(m.quotes, m.chunks))
	n := 0
	for i, s := range scripts {
		if m.scripts[i] {
			n++
			c.shape("script=", s.name)
		}
	}
	c.shape("scripts=", strconv.Itoa(n))
}

// parts of the message: their types, encodings, charsets and names.
func (c *collector) parts(tree *mime.Tree) {
	c.shape("parts=", sizeOf(tree.Count))
	attachments := 0
	for p := range tree.All() {
		where := "root"
		if p.Parent != nil {
			where = p.Parent.Type
		}
		c.shape("type=", where, ">", p.Type)
		c.shape("charset=", p.Type, " ", strings.ToLower(p.Params["charset"]))
		c.shape("encoding=", p.Type, " ", p.Encoding)
		for _, defect := range p.Defects {
			c.shape("defect=", defect)
		}
		if p.IsAttachment() {
			attachments++
			c.shape("file=", strings.ToLower(path.Ext(p.Filename)))
		}
	}
	c.shape("attachments=", sizeOf(attachments))
}

// page adds what HTML is made of.
func (c *collector) page(p *page, size int) {
	for _, name := range slices.Sorted(maps.Keys(p.elements)) { // the same features in the same order each time
		c.shape("element=", name)
		if n := p.elements[name]; n > 3 {
			c.shape("elements=", name, sizeOf(n))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.signs)) {
		c.shape("sign=", name)
	}
	c.shape("seen=", share(len(p.text)-strings.Count(p.text, " "), size))
	c.shape("images=", sizeOf(len(p.images)))
	c.shape("muted=", sizeOf(p.hidden))
}

// url adds how a link is built: not where it leads to, which tells the source of the mail.
func (c *collector) url(kind, text string) {
	u, err := url.Parse(strings.TrimSpace(text))
	if err != nil {
		c.shape(kind, " not parsed")
		return
	}
	c.shape(kind, " scheme=", u.Scheme)
	if u.Host == "" {
		return
	}
	host := strings.ToLower(u.Hostname())
	if _, err := netip.ParseAddr(host); err == nil {
		c.shape(kind, " host is an address")
	} else {
		c.shape(kind, " top=", host[strings.LastIndexByte(host, '.')+1:])
		c.shape(kind, " labels=", strconv.Itoa(strings.Count(host, ".")+1))
		c.shape(kind, " host=", sizeOf(len(host)), share(digitsIn(host), len(host)))
	}
	c.shape(kind, " port=", u.Port())
	c.shape(kind, " user=", strconv.FormatBool(u.User != nil))
	c.shape(kind, " path=", sizeOf(len(u.Path)), strconv.FormatBool(u.RawQuery != ""))
	c.shape(kind, " file=", path.Ext(u.Path))
	c.shape(kind, " punycode=", strconv.FormatBool(strings.Contains(host, "xn--")))
}

func digitsIn(s string) int {
	n := 0
	for i := range len(s) {
		if s[i] >= '0' && s[i] <= '9' {
			n++
		}
	}
	return n
}

// label compares what a link says with where it leads.
func (c *collector) label(l link) {
	text := strings.ToLower(l.label)
	switch {
	case text == "":
		c.shape("link without text")
	case !isURL(text):
		c.shape("link with words")
	default:
		shown, err := url.Parse(strings.TrimSpace(text))
		target, err2 := url.Parse(l.target)
		same := err == nil && err2 == nil && strings.EqualFold(shown.Hostname(), target.Hostname())
		c.shape("link shows its target=", strconv.FormatBool(same))
	}
}
