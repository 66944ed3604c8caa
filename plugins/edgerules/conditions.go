package main

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/match"
)

// facts of a message, of an event or of a file.
type facts struct {
	from       []address.Mailbox
	inside     bool
	client     netip.Addr
	geo        *geography
	recipients []address.Mailbox
	subject    string
	header     func(name string) []string // texts of the fields of a name
	stamp      func(name string) (string, bool)
	size       int64
	load       func() (*content, error)

	loaded *content
}

// content of the body, read when a condition first wants it.
func (f *facts) content() (*content, error) {
	if f.loaded == nil {
		c, err := f.load()
		if err != nil {
			return nil, err
		}
		f.loaded = c
	}
	return f.loaded, nil
}

// condition of a rule.
type condition struct {
	name  string
	check func(f *facts) (what string, err error) // what made it hold; "" if it does not
	// to is set instead of check where the condition is about one recipient.
	to func(m address.Mailbox) (what string)
}

// conditions of a rule, or its exceptions.
type conditions struct {
	list    []condition
	stamps  []string // that are read
	content bool     // the body is read
}

func (c *conditions) add(name string, given bool, check func(f *facts) (string, error)) {
	if given {
		c.list = append(c.list, condition{name: name, check: check})
	}
}

// compile the conditions given.
func compile(r *sdk.Registrar, cfg *Conditions, at ...any) (conditions, error) {
	var c conditions
	if cfg == nil {
		return c, nil
	}
	if err := checkWords(r, cfg, at); err != nil {
		return c, err
	}
	c.addresses(cfg)
	c.texts(cfg)
	c.numbers(cfg)
	err := c.attachments(r, cfg, at)
	if err == nil && len(c.list) == 0 {
		return c, r.At(at...).Errorf("it has no condition")
	}
	return c, err
}

// checkWords: a condition that never holds is a mistake, and as an exception it would be one that nobody notices.
func checkWords(r *sdk.Registrar, cfg *Conditions, at []any) error {
	place := func(more ...any) sdk.Place { return r.At(slices.Concat(at, more)...) }
	var errs []error
	empty := func(words []string, more ...any) {
		if i := slices.Index(words, ""); i >= 0 {
			errs = append(errs, place(append(more, i)...).Errorf("an empty word is in no text"))
		}
	}
	empty(cfg.FromContains, "from_contains")
	empty(cfg.RecipientContains, "recipient_contains")
	empty(cfg.SubjectContains, "subject_contains")
	empty(cfg.SubjectBodyContains, "subject_or_body_contains")
	for i, h := range cfg.Headers {
		empty(h.Contains, "header", i, "contains")
		if !fieldName.MatchString(h.Name) {
			errs = append(errs, place("header", i).Errorf("%q is no name of a header field", h.Name))
		}
	}
	for i, s := range cfg.Stamps {
		if strings.TrimSpace(s.Name) == "" {
			errs = append(errs, place("stamp", i).Errorf("%q is no name of a stamp", s.Name))
		}
	}
	return errors.Join(errs...)
}

func (c *conditions) addresses(cfg *Conditions) {
	from := func(find func(string) string) func(*facts) (string, error) {
		return func(f *facts) (string, error) {
			for _, m := range f.from {
				if what := find(m.String()); what != "" && !m.IsNull() {
					return what + " in " + m.String(), nil
				}
			}
			return "", nil
		}
	}
	c.add("from_contains", len(cfg.FromContains) > 0, from(findWord(cfg.FromContains)))
	c.add("from_matches", len(cfg.FromMatches) > 0, from(findPattern(cfg.FromMatches)))
	c.add("from_scope", cfg.FromScope != "", func(f *facts) (string, error) {
		return said(f.inside == (cfg.FromScope == "inside"), cfg.FromScope), nil
	})
	c.add("clients", len(cfg.Clients) > 0, func(f *facts) (string, error) {
		i := slices.IndexFunc(cfg.Clients, func(p netip.Prefix) bool { return p.Contains(f.client) })
		return said(i >= 0, f.client.String()), nil
	})
	c.add("countries", len(cfg.Countries) > 0, func(f *facts) (string, error) {
		country := f.geo.country(f.client)
		return said(slices.Contains(cfg.Countries, country), fmt.Sprintf("%s in %s", f.client, country)), nil
	})
	c.add("systems", len(cfg.Systems) > 0, func(f *facts) (string, error) {
		system := f.geo.system(f.client)
		return said(slices.Contains(cfg.Systems, int(system)), fmt.Sprintf("%s in AS%d", f.client, system)), nil
	})
	for _, to := range []struct {
		name  string
		given bool
		find  func(string) string
	}{
		{"recipient_contains", len(cfg.RecipientContains) > 0, findWord(cfg.RecipientContains)},
		{"recipient_matches", len(cfg.RecipientMatches) > 0, findPattern(cfg.RecipientMatches)},
	} {
		if to.given {
			c.list = append(c.list, condition{name: to.name, to: func(m address.Mailbox) string { return to.find(m.String()) }})
		}
	}
}

func said(holds bool, what string) string {
	if !holds {
		return ""
	}
	return what
}

func (c *conditions) texts(cfg *Conditions) {
	subject := func(find func(string) string) func(*facts) (string, error) {
		return func(f *facts) (string, error) { return find(f.subject), nil }
	}
	all := func(find func(string) string) func(*facts) (string, error) {
		return func(f *facts) (string, error) {
			if what := find(f.subject); what != "" {
				return what, nil
			}
			body, err := f.content()
			if err != nil {
				return "", err
			}
			return find(body.text), nil
		}
	}
	c.add("subject_contains", len(cfg.SubjectContains) > 0, subject(findWord(cfg.SubjectContains)))
	c.add("subject_matches", len(cfg.SubjectMatches) > 0, subject(findPattern(cfg.SubjectMatches)))
	c.add("subject_or_body_contains", len(cfg.SubjectBodyContains) > 0, all(findWord(cfg.SubjectBodyContains)))
	c.add("subject_or_body_matches", len(cfg.SubjectBodyMatches) > 0, all(findPattern(cfg.SubjectBodyMatches)))
	c.content = c.content || len(cfg.SubjectBodyContains)+len(cfg.SubjectBodyMatches) > 0
	for _, h := range cfg.Headers {
		c.add("header "+h.Name, true, func(f *facts) (string, error) { return h.find(f.header(h.Name)), nil })
	}
}

func (h HeaderTest) find(texts []string) string {
	contains, matches := findWord(h.Contains), findPattern(h.Matches)
	for _, text := range texts {
		if len(h.Contains)+len(h.Matches) == 0 {
			return "it is there"
		}
		if what := contains(text); what != "" {
			return what
		}
		if what := matches(text); what != "" {
			return what
		}
	}
	return ""
}

func (c *conditions) numbers(cfg *Conditions) {
	stamps := slices.Clone(cfg.Stamps)
	if cfg.SCLOver != nil {
		stamps = append(stamps, StampTest{Name: "scl", Over: cfg.SCLOver})
	}
	for _, s := range stamps {
		c.stamps = append(c.stamps, s.Name)
		c.add("stamp "+s.Name, true, func(f *facts) (string, error) { return s.find(f.stamp(s.Name)), nil })
	}
	c.add("message_over", cfg.MessageOver > 0, func(f *facts) (string, error) {
		return said(f.size >= int64(cfg.MessageOver), fmt.Sprintf("%d bytes", f.size)), nil
	})
}

func (s StampTest) find(value string, ok bool) string {
	number, err := strconv.Atoi(value)
	switch {
	case !ok:
		return ""
	case s.Over != nil && err == nil && number >= *s.Over, slices.Contains(s.Is, value), s.Over == nil && len(s.Is) == 0:
		return strconv.Quote(value)
	}
	return ""
}

func (c *conditions) attachments(r *sdk.Registrar, cfg *Conditions, at []any) error {
	files, err := names(r, cfg.AttachmentNames, append(slices.Clone(at), "attachment_names")...)
	if err != nil {
		return err
	}
	if i, err := match.Check(cfg.AttachmentTypes); err != nil {
		return r.At(append(slices.Clone(at), "attachment_types", i)...).Error(err)
	}
	c.attachment("has_attachment", cfg.Attachments, func(a attachment) bool { return true })
	c.attachment("attachment_over", cfg.AttachmentOver > 0, func(a attachment) bool { return a.size >= int64(cfg.AttachmentOver) })
	c.attachment("attachment_names", len(cfg.AttachmentNames) > 0, func(a attachment) bool {
		return slices.ContainsFunc(a.names, func(name string) bool { _, ok := files.Match(name); return ok })
	})
	c.attachment("attachment_types", len(cfg.AttachmentTypes) > 0, func(a attachment) bool {
		return slices.ContainsFunc(cfg.AttachmentTypes, func(p string) bool {
			return slices.ContainsFunc(a.types, func(t string) bool { ok, _ := path.Match(strings.ToLower(p), t); return ok }) // checked
		})
	})
	return nil
}

func (c *conditions) attachment(name string, given bool, is func(attachment) bool) {
	c.content = c.content || given
	c.add(name, given, func(f *facts) (string, error) {
		body, err := f.content()
		if err != nil {
			return "", err
		}
		for _, a := range body.attachments {
			if is(a) {
				return fmt.Sprintf("%q (%s, %d bytes)", a.name, a.types[0], a.size), nil
			}
		}
		return "", nil
	})
}

func findPattern(patterns []*regexp.Regexp) func(string) string {
	return func(text string) string {
		for _, p := range patterns {
			if p.MatchString(text) {
				return "/" + p.String() + "/"
			}
		}
		return ""
	}
}

// findWord finds words or phrases as whole words, as readers see them: without regard to case, to how white space and accents
// are written, and to invisible characters. In scripts that put no spaces between words any place will do.
func findWord(words []string) func(string) string {
	folded := make([]string, len(words))
	for i, w := range words {
		folded[i] = match.Fold(w)
	}
	return func(text string) string {
		text = match.Fold(text)
		for i, w := range folded {
			if hasWord(text, w) {
				return strconv.Quote(words[i])
			}
		}
		return ""
	}
}

func hasWord(text, word string) bool {
	for at := 0; word != ""; {
		i := strings.Index(text[at:], word)
		if i < 0 {
			return false
		}
		start, end := at+i, at+i+len(word)
		before, _ := utf8.DecodeLastRuneInString(text[:start])
		after, _ := utf8.DecodeRuneInString(text[end:])
		first, _ := utf8.DecodeRuneInString(word)
		last, _ := utf8.DecodeLastRuneInString(word)
		if !(joins(before) && joins(first)) && !(joins(last) && joins(after)) {
			return true
		}
		_, size := utf8.DecodeRuneInString(text[start:])
		at = start + size
	}
	return false
}

// joins reports whether a rune goes on with a word.
func joins(r rune) bool {
	return (unicode.IsLetter(r) || unicode.IsDigit(r)) && r != utf8.RuneError &&
		!unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar)
}
