package spf

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// record of a domain, parsed as a whole before anything of it counts (RFC 7208 section 4.6).
type record struct {
	directives  []directive
	redirect    string // domain-spec
	explanation string // domain-spec of exp=
}

// directive is a mechanism with its qualifier.
type directive struct {
	result  Result
	name    string // lower case
	domain  string // domain-spec, "" where the current domain is meant
	network netip.Prefix
	bits4   int // of a and mx
	bits6   int
}

// isRecord reports whether a text is one of this version (RFC 7208 section 4.5).
func isRecord(text string) bool {
	version, _, _ := strings.Cut(text, " ")
	return strings.EqualFold(version, "v=spf1")
}

var (
	modifierName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]*=`)
	cidr         = regexp.MustCompile(`^(.*?)(?:/(0|[1-9][0-9]?))?(?://(0|[1-9][0-9]{0,2}))?$`)
	cidrOne      = regexp.MustCompile(`^([^/]*)(?:/(0|[1-9][0-9]{0,2}))?$`)
	macros       = regexp.MustCompile(`^(?:%\{[A-Za-z][0-9]*[rR]?[-.+,/_=]*\}|%[%_-]|[!-$&-~])*$`)
	macro        = regexp.MustCompile(`%\{([A-Za-z])([0-9]*)([rR]?)([-.+,/_=]*)\}|%[%_-]`)
	topLabel     = regexp.MustCompile(`^(?:[0-9A-Za-z]*[A-Za-z][0-9A-Za-z]*|[0-9A-Za-z]+-[0-9A-Za-z-]*[0-9A-Za-z])$`)
	macroEnd     = regexp.MustCompile(`(?:%\{[^}]*\}|%[%_-])$`)
)

func parse(text string) (*record, error) {
	_, rest, _ := strings.Cut(text, " ")
	r := new(record)
	for term := range strings.SplitSeq(rest, " ") {
		if term == "" {
			continue
		}
		if err := r.add(term); err != nil {
			return nil, fmt.Errorf("%w: %q", err, term[:min(len(term), 60)])
		}
	}
	return r, nil
}

func (r *record) add(term string) error {
	if m := modifierName.FindString(term); m != "" {
		return r.addModifier(strings.ToLower(m[:len(m)-1]), term[len(m):])
	}
	d, err := parseDirective(term)
	if err == nil {
		r.directives = append(r.directives, d)
	}
	return err
}

// addModifier; redirect and exp may stand once (RFC 7208 section 6).
func (r *record) addModifier(name, value string) error {
	at := map[string]*string{"redirect": &r.redirect, "exp": &r.explanation}[name]
	switch {
	case at == nil:
		return checkMacros(value, false)
	case *at != "":
		return errors.New("modifier stands twice")
	}
	*at = value
	return checkDomainSpec(value)
}

var qualifiers = map[byte]Result{'+': Pass, '-': Fail, '~': SoftFail, '?': Neutral}

func parseDirective(term string) (directive, error) {
	d := directive{result: Pass, bits4: 32, bits6: 128}
	if q, ok := qualifiers[term[0]]; ok {
		d.result, term = q, term[1:]
	}
	end := strings.IndexAny(term, ":/")
	if end < 0 {
		end = len(term)
	}
	d.name = strings.ToLower(term[:end])
	return d, d.parseArgument(term[end:])
}

// parseArgument is what stands behind the mechanism's name, with its colon or slash.
func (d *directive) parseArgument(text string) (err error) {
	switch d.name {
	case "all":
		if text != "" {
			return errors.New("all has no argument")
		}
	case "include", "exists":
		if !strings.HasPrefix(text, ":") {
			return errors.New("domain is missing")
		}
		return d.parseDomain(text)
	case "ptr":
		return d.parseDomain(text)
	case "a", "mx":
		m := cidr.FindStringSubmatch(text)
		if m == nil { // an end of line in it
			return errors.New("syntax error")
		}
		if d.bits4, err = bits(m[2], 32); err != nil {
			return err
		}
		if d.bits6, err = bits(m[3], 128); err != nil {
			return err
		}
		return d.parseDomain(m[1])
	case "ip4", "ip6":
		return d.parseNetwork(text)
	default:
		return errors.New("unknown mechanism")
	}
	return nil
}

func (d *directive) parseDomain(text string) error {
	if text == "" {
		return nil
	}
	if text[0] != ':' {
		return errors.New("syntax error")
	}
	d.domain = text[1:]
	return checkDomainSpec(d.domain)
}

func (d *directive) parseNetwork(text string) error {
	m := cidrOne.FindStringSubmatch(strings.TrimPrefix(text, ":"))
	if m == nil || !strings.HasPrefix(text, ":") {
		return errors.New("syntax error")
	}
	ip, err := netip.ParseAddr(m[1])
	if err != nil || ip.Zone() != "" || ip.Is4() != (d.name == "ip4") {
		return errors.New("no address")
	}
	n, err := bits(m[2], ip.BitLen())
	d.network = netip.PrefixFrom(ip, n)
	return err
}

// bits of a prefix; all without text.
func bits(text string, all int) (int, error) {
	if text == "" {
		return all, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n > all {
		return 0, errors.New("prefix is too long")
	}
	return n, nil
}

// checkMacros of a macro-string (RFC 7208 section 7.1); c, r and t may stand in explanations only.
func checkMacros(text string, explanation bool) error {
	if !macros.MatchString(text) {
		return errors.New("syntax error")
	}
	letters := "slodiphv"
	if explanation {
		letters += "crt"
	}
	for _, m := range macro.FindAllStringSubmatch(text, -1) {
		if m[1] == "" {
			continue
		}
		if !strings.Contains(letters, strings.ToLower(m[1])) {
			return errors.New("unknown macro")
		}
		if n, err := strconv.Atoi(m[2]); m[2] != "" && (err != nil || n == 0) {
			return errors.New("macro with a wrong number")
		}
	}
	return nil
}

// checkDomainSpec: a macro-string that ends with a macro or a top label behind a dot.
func checkDomainSpec(text string) error {
	if err := checkMacros(text, false); err != nil {
		return err
	}
	if macroEnd.MatchString(text) {
		return nil
	}
	name := strings.TrimSuffix(text, ".")
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 || !topLabel.MatchString(name[dot+1:]) {
		return errors.New("no domain")
	}
	return nil
}
