package classifier

import (
	"strings"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// page is what HTML shows, links to and is made of.
type page struct {
	text     string
	links    []link
	images   []string       // their sources
	elements map[string]int // how often each occurs
	signs    map[string]bool
	hidden   int // octets of text that a reader does not see
	cuts     int // comments in the middle of a word
	unknown  int // elements that HTML does not have
}

// link of a page.
type link struct {
	target string
	label  string // its text
}

// block elements stand on lines of their own; all others, unknown ones included, do not part what is around them.
var block = map[string]bool{
	"address": true, "article": true, "blockquote": true, "body": true, "br": true, "center": true, "dd": true, "div": true,
	"dl": true, "dt": true, "fieldset": true, "footer": true, "form": true, "h1": true, "h2": true, "h3": true, "h4": true,
	"h5": true, "h6": true, "head": true, "header": true, "hr": true, "html": true, "li": true, "main": true, "nav": true,
	"ol": true, "option": true, "p": true, "pre": true, "section": true, "select": true, "table": true, "tbody": true,
	"td": true, "tfoot": true, "th": true, "thead": true, "title": true, "tr": true, "ul": true,
}

// Bounds of what is kept of a page; its text is bounded by that of the part.
const (
	maxLinks    = 200
	maxElements = 100
	maxLabel    = 200
	maxTarget   = 500
)

// reader of a page.
type pageReader struct {
	page
	z     *html.Tokenizer
	b     strings.Builder
	mute  bool // within style or script
	open  int  // where the text of the open link begins
	label bool // a link is open
	last  byte // of the text before a comment, with nothing between them; else 0
	cut   bool // the comment stands behind a letter
}

// readPage reads HTML as it is seen, so that a phrase cut up by tags, comments and entities is found.
func readPage(source string) *page {
	r := &pageReader{z: html.NewTokenizer(strings.NewReader(source)), page: page{elements: map[string]int{}, signs: map[string]bool{}}}
	for {
		switch kind := r.z.Next(); kind {
		case html.ErrorToken: // the end; the tokenizer takes all else as it comes
			r.closeLink()
			r.text = r.b.String()
			return &r.page
		case html.TextToken:
			r.textToken()
		case html.CommentToken:
			r.comment()
		case html.StartTagToken, html.EndTagToken, html.SelfClosingTagToken:
			r.tag(kind)
		}
	}
}

func (r *pageReader) textToken() {
	if r.mute {
		r.hidden += len(r.z.Raw())
		return
	}
	raw := r.z.Raw()
	if len(raw) == 0 {
		return
	}
	if r.cut && asciiLetter(raw[0]) {
		r.cuts++
	}
	r.cut, r.last = false, raw[len(raw)-1]
	r.b.Write(r.z.Text())
}

func (r *pageReader) comment() {
	r.signs["comment"] = true
	r.cut, r.last = asciiLetter(r.last), 0
}

func asciiLetter(c byte) bool { return asciiLower(c) >= 'a' && asciiLower(c) <= 'z' }

func (r *pageReader) tag(kind html.TokenType) {
	nameBytes, more := r.z.TagName()
	name := string(nameBytes)
	r.cut, r.last = false, 0
	if block[name] {
		r.b.WriteByte(' ')
	}
	r.mute = kind == html.StartTagToken && (name == "style" || name == "script")
	if kind == html.EndTagToken {
		if name == "a" {
			r.closeLink()
		}
		return
	}
	if atom.Lookup(nameBytes) == 0 && !strings.Contains(name, ":") { // with a colon they are of another vocabulary
		r.unknown++
	}
	if n := r.elements[name]; n > 0 || len(r.elements) < maxElements && len(name) < 20 {
		r.elements[name] = n + 1
	}
	if name == "a" {
		r.closeLink()
	}
	for more {
		var key, value []byte
		key, value, more = r.z.TagAttr()
		r.attribute(name, string(key), value)
	}
}

// attribute of an element.
func (r *pageReader) attribute(element, key string, value []byte) {
	switch key {
	case "href":
		if element == "a" || element == "area" {
			r.openLink(value)
		}
	case "src", "background":
		if len(r.images) < maxLinks {
			r.images = append(r.images, clip(value, maxTarget))
		}
	case "action":
		r.signs["form"] = true
		r.openLink(value)
		r.closeLink()
	case "http-equiv":
		if strings.EqualFold(string(value), "refresh") {
			r.signs["refresh"] = true
		}
	case "style":
		r.style(strings.ToLower(clip(value, maxTarget)))
	case "width", "height":
		if v := string(value); v == "0" || v == "1" {
			r.signs["tiny"] = true
		}
	case "hidden":
		r.signs["hidden"] = true
	case "color", "bgcolor", "align", "class", "id", "face", "lang", "dir", "role", "title", "alt":
		r.signs["@"+key] = true
	default:
		if strings.HasPrefix(key, "on") {
			r.signs["event"] = true
		}
	}
}

// styles that hide or shout, without white space.
var styles = []string{
	"display:none", "visibility:hidden", "font-size:0", "font-size:1px", "opacity:0", "max-height:0", "mso-hide", "color:#fff", "color:white",
	"line-height:0", "overflow:hidden", "position:absolute", "text-indent:-", "background-image", "border-radius", "text-transform:uppercase",
}

func (r *pageReader) style(text string) {
	text = strings.ReplaceAll(text, " ", "")
	for _, s := range styles {
		if strings.Contains(text, s) {
			r.signs[s] = true
		}
	}
}

func (r *pageReader) openLink(target []byte) {
	r.closeLink()
	if len(r.links) < maxLinks {
		r.links = append(r.links, link{target: clip(target, maxTarget)})
		r.open, r.label = r.b.Len(), true
	}
}

func (r *pageReader) closeLink() {
	if !r.label {
		return
	}
	r.label = false
	text := r.b.String()[r.open:]
	r.links[len(r.links)-1].label = strings.TrimSpace(text[:min(len(text), maxLabel)])
}

func clip(b []byte, n int) string { return string(b[:min(len(b), n)]) }
