package main

import (
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.mau.fi/util/confusable"
	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"

	"github.com/posternmail/postern/plugins/contentfilter/classifier"
	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/mime"
)

// Phishing confidence levels (PCL), as Exchange has them: 1 to 3 neutral, 4 to 8 suspicious.
const (
	pclNeutral    = 1
	pclSuspicious = 4
	pclMost       = 8
)

// sign of phishing, as the ledger names it.
type sign string

// Signs of phishing. None of them depends on a language.
const (
	signNameAddress  sign = "NameAddress"  // the sender's name shows an address of another organization
	signNameDomain   sign = "NameDomain"   // it shows the domain name of another organization
	signNameScript   sign = "NameScript"   // letters of several scripts in one word of it, or signs that turn the direction of text
	signLookalike    sign = "Lookalike"    // the sender's domain, or that of a link, looks like one that is known
	signMixedScript  sign = "MixedScript"  // such a domain is made of letters that look like others
	signLinkText     sign = "LinkText"     // a link shows another organization's domain than it leads to
	signLinkAddress  sign = "LinkAddress"  // a link leads to an IP address
	signLinkUser     sign = "LinkUser"     // a domain name in front of the @ of a link
	signLinkBorrowed sign = "LinkBorrowed" // a known domain within the subdomains of another
)

// weights of the signs, which are added to pclNeutral: one is suspicious alone where wanted mail hardly has it.
var weights = map[sign]int{
	signNameAddress: 4, signNameDomain: 2, signNameScript: 3, signLookalike: 5, signMixedScript: 4,
	signLinkText: 2, signLinkAddress: 2, signLinkUser: 3, signLinkBorrowed: 3,
}

// maxJudgedLinks bounds the work on one message.
const maxJudgedLinks = 500

// phish looks at one message.
type phish struct {
	known []domain // that are imitated: those of recipients, and of the configuration
	from  domain   // of the sender
	signs []sign
}

// domain name in its forms.
type domain struct {
	ascii    string // whole, with A-labels, in lower case
	org      string // what was registered: one label and the public suffix
	name     string // that label, with U-labels
	skeleton string // what name looks like
}

// phishing tells the level of a message, and the signs of it.
func (f *Filter) phishing(e *sdk.DataEvent, d *classifier.Document) (level int, signs []sign) {
	p := &phish{known: f.protected, from: domainOf(e.Message.From.Domain)}
	for _, r := range e.Recipients {
		if own := domainOf(r.Mailbox.Domain); own.org != "" && !slices.ContainsFunc(p.known, own.same) {
			p.known = append(p.known[:len(p.known):len(p.known)], own)
		}
	}
	p.sender(e.Headers.Block())
	p.links(d)
	level = pclNeutral
	for _, s := range p.signs {
		level += weights[s]
	}
	return min(level, pclMost), p.signs
}

func (p *phish) add(s sign) {
	if !slices.Contains(p.signs, s) {
		p.signs = append(p.signs, s)
	}
}

// sender looks at the name and the domain in From.
func (p *phish) sender(header []byte) {
	p.imitates(p.from)
	list, _ := mime.ParseHeader(header).Addresses("From")
	if len(list) == 0 {
		return
	}
	name := list[0].Name
	if disguised(name) {
		p.add(signNameScript)
	}
	for _, found := range shown.FindAllStringIndex(name, maxShown) {
		d := domainOf(name[found[0]:found[1]])
		if d.org == "" || d.same(p.from) {
			continue
		}
		if found[0] > 0 && name[found[0]-1] == '@' {
			p.add(signNameAddress)
		} else {
			p.add(signNameDomain)
		}
	}
}

// shown finds what looks like a domain name.
var shown = regexp.MustCompile(`[\p{L}\p{N}](?:[\p{L}\p{M}\p{N}-]*[\p{L}\p{M}\p{N}])?(?:\.[\p{L}\p{N}](?:[\p{L}\p{M}\p{N}-]*[\p{L}\p{M}\p{N}])?)+`)

// maxShown is how many domain names in a text are looked at.
const maxShown = 10

// links looks at where links lead.
func (p *phish) links(d *classifier.Document) {
	count := 0
	for target, label := range d.Links {
		if count++; count > maxJudgedLinks {
			return
		}
		p.link(target, label)
	}
}

func (p *phish) link(target, label string) {
	u, ok := webAddress(target)
	if !ok {
		return
	}
	if user := u.User.Username(); user != "" && domainOf(user).org != "" {
		p.add(signLinkUser)
	}
	if _, err := netip.ParseAddr(u.Hostname()); err == nil {
		p.add(signLinkAddress)
		return
	}
	to := domainOf(u.Hostname())
	if to.org == "" {
		return
	}
	p.imitates(to)
	if p.borrows(to) {
		p.add(signLinkBorrowed)
	}
	if says := domainShown(label); says.org != "" && !says.same(to) && !to.same(p.from) {
		p.add(signLinkText)
	}
}

// webAddress parses the target of a link like a browser, which passes over white space and takes \ for /.
func webAddress(target string) (*url.URL, bool) {
	target = strings.Map(func(r rune) rune {
		switch {
		case r == '\\':
			return '/'
		case r <= ' ' || r == 0x7f:
			return -1
		}
		return r
	}, target)
	if strings.HasPrefix(target, "//") {
		target = "http:" + target
	}
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "ftp" {
		return nil, false
	}
	return u, true
}

// domainShown is the domain that a link shows as its text: the text is an address of the web or a name alone.
func domainShown(label string) domain {
	label = strings.TrimSpace(label)
	if strings.ContainsFunc(label, unicode.IsSpace) {
		return domain{}
	}
	if u, ok := webAddress(label); ok {
		return domainOf(u.Hostname())
	}
	host, _, _ := strings.Cut(label, "/")
	if found := shown.FindString(host); found == "" || found != host {
		return domain{}
	}
	return domainOf(host)
}

// imitates looks at a domain that is not a known one, but looks like it.
func (p *phish) imitates(d domain) {
	if d.org == "" || slices.ContainsFunc(p.known, d.same) {
		return
	}
	if deceptive(d) {
		p.add(signMixedScript)
	}
	for _, k := range p.known {
		if d.name != k.name && (d.skeleton == k.skeleton || near(d.name, k.name)) {
			p.add(signLookalike)
		}
	}
}

// borrows reports whether a known domain stands within the subdomains of another: "example.org.login.example".
func (p *phish) borrows(d domain) bool {
	sub := strings.TrimSuffix(d.ascii, d.org)
	for _, k := range p.known {
		if !k.same(d) && (strings.HasPrefix(sub, k.org+".") || strings.Contains(sub, "."+k.org+".")) {
			return true
		}
	}
	return false
}

// maxName is the longest domain name with U-labels, in octets: 253 of ASCII, each from four of UTF-8 at most.
const maxName = 4 * 253

// domainOf reads a name under a public suffix of the root zone; anything else, such as a file name, is none.
func domainOf(name string) domain {
	if len(name) > maxName { // Punycode costs more than its length
		return domain{}
	}
	ascii, err := idna.Lookup.ToASCII(strings.ToLower(strings.Trim(name, ".")))
	if err != nil || len(ascii) > 253 {
		return domain{}
	}
	suffix, icann := publicsuffix.PublicSuffix(ascii)
	if !icann && !strings.Contains(suffix, ".") {
		return domain{}
	}
	org, err := publicsuffix.EffectiveTLDPlusOne(ascii)
	if err != nil {
		return domain{}
	}
	label, _, _ := strings.Cut(org, ".")
	if u, err := idna.ToUnicode(label); err == nil {
		label = u
	}
	return domain{ascii: ascii, org: org, name: label, skeleton: looksLike(label)}
}

// same organization.
func (d domain) same(other domain) bool { return d.org == other.org }

// looksLike is the skeleton of UTS #39, without regard to case.
func looksLike(name string) string { return strings.ToLower(confusable.Skeleton(name)) }

// deceptive reports whether a domain is made of letters that look like others: Latin mixed with a script that has
// look-alikes of it, or another script alone that spells what looks like ASCII, under a suffix of ASCII.
func deceptive(d domain) bool {
	if isASCII(d.name) {
		return false
	}
	if mixed(d.name) {
		return true
	}
	_, suffix, _ := strings.Cut(d.org, ".")
	return isASCII(d.skeleton) && !hasScript(d.name, unicode.Latin) && !strings.Contains("."+suffix, ".xn--")
}

// lookalikes are the scripts with letters that look like Latin ones.
var lookalikes = [...]*unicode.RangeTable{unicode.Cyrillic, unicode.Greek, unicode.Armenian, unicode.Cherokee, unicode.Coptic, unicode.Lisu}

// mixed reports whether a word has Latin letters and those of a script that looks like it.
func mixed(word string) bool {
	return hasScript(word, unicode.Latin) && slices.ContainsFunc(lookalikes[:], func(t *unicode.RangeTable) bool { return hasScript(word, t) })
}

func hasScript(s string, t *unicode.RangeTable) bool {
	return strings.ContainsFunc(s, func(r rune) bool {
		return r > unicode.MaxASCII && unicode.Is(t, r) || r <= unicode.MaxASCII && t == unicode.Latin && unicode.IsLetter(r)
	})
}

// disguised reports whether a name has a word of mixed scripts, or signs that turn the direction of what follows.
func disguised(name string) bool {
	if strings.ContainsAny(name, "\u202a\u202b\u202d\u202e\u2066\u2067\u2068") {
		return true
	}
	words := strings.FieldsFunc(name, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsMark(r) && !unicode.IsDigit(r) })
	return slices.ContainsFunc(words, mixed)
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > unicode.MaxASCII })
}

// leastNear is how long names are of which a wrong letter is no accident.
const leastNear = 6

// near reports whether two names differ by one letter: another, one more, one less, or two that changed places.
func near(a, b string) bool {
	x, y := []rune(a), []rune(b)
	if len(x) > len(y) {
		x, y = y, x
	}
	if len(x) < leastNear || len(y)-len(x) > 1 || utf8.RuneCountInString(a) > 63 {
		return false
	}
	i := 0
	for i < len(x) && x[i] == y[i] {
		i++
	}
	if len(x) < len(y) {
		return slices.Equal(x[i:], y[i+1:])
	}
	if i == len(x) || slices.Equal(x[i+1:], y[i+1:]) {
		return i < len(x)
	}
	return i+1 < len(x) && x[i] == y[i+1] && x[i+1] == y[i] && slices.Equal(x[i+2:], y[i+2:])
}
