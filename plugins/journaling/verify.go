package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"io"
	"maps"
	stdmime "mime"
	"slices"
	"strings"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/mailfile"
	"github.com/posternmail/postern/sdk/mime"
)

// verify is the command: it reads the archives named and says what is missing in them, and what was altered.
func verify(ctx context.Context, c *sdk.Invocation) error {
	if len(c.Args) == 0 {
		return errors.New("name the archives: Maildirs, mbox files, or folders of messages")
	}
	var cfg Config
	if err := c.Config(&cfg); err != nil {
		return err
	}
	a := newArchive(cfg.Key)
	for _, path := range c.Args {
		if err := a.read(ctx, path); err != nil {
			return err
		}
	}
	return a.tell(c.Out)
}

// archive is what was found in all places together.
type archive struct {
	key       string
	sets      map[string]*found
	turns     map[string]map[string]*turn // by journal mailbox and time
	reports   int
	manifests int
	others    int
	altered   []string
}

func newArchive(key string) *archive {
	return &archive{key: key, sets: map[string]*found{}, turns: map[string]map[string]*turn{}}
}

// maxParts is more than a message can have reports.
const maxParts = 1_000_000

// found parts of a set.
type found struct {
	message string
	parts   map[int]bool
	of      int // 0: only a manifest names the set
}

// turn is what was found of the manifest of one turn.
type turn struct {
	pages map[int]bool
	of    int    // 0: its last page was not found
	after string // the turn before it; "": there was none
	head  bool   // page 1 was found
}

func (a *archive) turn(mailbox, time string) *turn {
	if a.turns[mailbox] == nil {
		a.turns[mailbox] = map[string]*turn{}
	}
	if a.turns[mailbox][time] == nil {
		a.turns[mailbox][time] = &turn{pages: map[int]bool{}}
	}
	return a.turns[mailbox][time]
}

func (a *archive) set(id string) *found {
	if a.sets[id] == nil {
		a.sets[id] = &found{parts: map[int]bool{}}
	}
	return a.sets[id]
}

// read a mbox file, or all messages below a folder. In a Maildir tmp is left out.
func (a *archive) read(ctx context.Context, path string) error {
	return mailfile.Walk(ctx, path, func(name string, message []byte) error {
		a.message(ctx, name, message)
		return nil
	})
}

// message looks at one message of the archive. Its line ends may be LF, and a mbox may have quoted its From lines.
func (a *archive) message(ctx context.Context, where string, raw []byte) {
	raw = bytes.ReplaceAll(bytes.ReplaceAll(raw, []byte("\r\n"), []byte("\n")), []byte("\n"), []byte("\r\n"))
	block, body, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
	h := mime.ParseHeader(append(block, "\r\n"...))
	switch {
	case h.Get(setField) != "":
		a.reports++
		a.note(where, a.checkReport(ctx, h, body))
	case h.Get(manifestField) != "":
		a.manifests++
		a.note(where, a.checkManifest(h, body))
	default:
		a.others++
	}
}

func (a *archive) note(where, fault string) {
	if fault != "" {
		a.altered = append(a.altered, where+": "+fault)
	}
}

// checkReport answers with what is wrong with a report, and counts it.
func (a *archive) checkReport(ctx context.Context, h mime.Header, body []byte) string {
	id, part := h.Get(setField), h.Get(partField)
	var i, n int
	if _, err := fmt.Sscanf(part, "%d of %d", &i, &n); err != nil || i < 1 || i > n || n > maxParts {
		return fmt.Sprintf("set %s: %q is no part", id, part)
	}
	s := a.set(id)
	s.message, s.parts[i] = h.Get(messageField), true
	if s.of != 0 && s.of != n {
		return fmt.Sprintf("set %s has %d parts here and %d elsewhere", id, n, s.of)
	}
	s.of = n
	name := fmt.Sprintf("set %s part %s (message %s): ", id, part, s.message)
	want := h.Get(digestsField)
	if fault := a.checkSeal(h, id, part, s.message, want); fault != "" {
		return name + fault
	}
	if fault := sameDigests(want, body, func(b []byte) (string, error) { return reportDigests(ctx, h, b, want) }); fault != "" {
		return name + fault
	}
	return ""
}

func (a *archive) checkSeal(h mime.Header, values ...string) string {
	if a.key == "" {
		return ""
	}
	given := h.Get(sealField)
	switch {
	case given == "":
		return "not sealed"
	case !hmac.Equal([]byte(given), []byte(seal(a.key, values...))):
		return "the seal is wrong"
	}
	return ""
}

// sameDigests compares, with From lines unquoted if they do not agree as they stand. The answer is a fault.
func sameDigests(want string, body []byte, digests func([]byte) (string, error)) string {
	got, err := digests(body)
	if err == nil && got == want {
		return ""
	}
	if plain := unquoteFrom(body); !bytes.Equal(plain, body) {
		if again, err := digests(plain); err == nil && again == want {
			return ""
		}
	}
	if err != nil {
		return err.Error()
	}
	return difference(want, got)
}

// unquoteFrom takes the > of the lines that a mbox had to quote.
func unquoteFrom(body []byte) []byte {
	lines := bytes.SplitAfter(body, []byte("\r\n"))
	for i, line := range lines {
		if rest := bytes.TrimLeft(line, ">"); len(rest) < len(line) && bytes.HasPrefix(rest, []byte("From ")) {
			lines[i] = line[1:]
		}
	}
	return bytes.Join(lines, nil)
}

// difference names the digests that do not agree.
func difference(want, got string) string {
	var names []string
	have := strings.Fields(got)
	for i, w := range strings.Fields(want) {
		if i >= len(have) || strings.TrimSuffix(have[i], ";") != strings.TrimSuffix(w, ";") {
			name, _, _ := strings.Cut(w, "=")
			names = append(names, name)
		}
	}
	return "altered: " + strings.Join(names, ", ")
}

// reportDigests of a report as it stands, in the form of its field. A header that could not be told then is not
// told now.
func reportDigests(ctx context.Context, h mime.Header, body []byte, want string) (string, error) {
	envelope, original, ok := halves(h, body)
	if !ok {
		return "", errors.New("altered: it is not two parts, envelope and message")
	}
	block, content, _ := bytes.Cut(envelope, []byte("\r\n\r\n"))
	tree, err := mime.Parse(ctx, block, bytes.NewReader(content), mime.Limits{})
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(tree.Root.Decoded())
	if err != nil {
		return "", fmt.Errorf("altered: the envelope does not decode: %w", err)
	}
	_, original, _ = bytes.Cut(original, []byte("\r\n\r\n"))
	header, content, _ := bytes.Cut(original, []byte("\r\n\r\n"))
	headerSum := hexSum(fieldsOf(append(bytes.Clone(header), "\r\n"...)))
	if strings.Contains(want, "header=none") {
		headerSum = "none"
	}
	return fmt.Sprintf("envelope=%s; header=%s; body=%s", hexSum(text), headerSum, hexSum(content)), nil
}

// fieldsOf a header block as agents see them: lines that are no field, with the folds behind them, are left out.
func fieldsOf(block []byte) (fields []byte) {
	inField := false
	for line := range bytes.Lines(block) {
		if line[0] != ' ' && line[0] != '\t' {
			name, _, ok := bytes.Cut(line, []byte(":"))
			name = bytes.TrimRight(name, " \t")
			inField = ok && len(name) > 0 && !bytes.ContainsFunc(name, func(r rune) bool { return r < 33 || r > 126 })
		}
		if inField {
			fields = append(fields, line...)
		}
	}
	return fields
}

// halves of a report: its two parts. The message is not parsed: it may be anything.
func halves(h mime.Header, body []byte) (envelope, message []byte, ok bool) {
	_, params, err := stdmime.ParseMediaType(h.Get("Content-Type"))
	if err != nil || params["boundary"] == "" {
		return nil, nil, false
	}
	parts := bytes.Split(append([]byte("\r\n"), body...), []byte("\r\n--"+params["boundary"]))
	if len(parts) != 4 {
		return nil, nil, false
	}
	return bytes.TrimPrefix(parts[1], []byte("\r\n")), bytes.TrimPrefix(parts[2], []byte("\r\n")), true
}

// checkManifest answers with what is wrong with a manifest, and counts the sets in it.
func (a *archive) checkManifest(h mime.Header, body []byte) string {
	id, want := h.Get(manifestField), h.Get(digestsField)
	sealed := []string{id, want}
	if h.Get(turnField) != "" { // those before version 0.3 have none
		sealed = []string{id, h.Get(turnField), want}
	}
	if fault := a.checkSeal(h, sealed...); fault != "" {
		return "manifest " + id + ": " + fault
	}
	if err := a.countPage(h); err != nil {
		return "manifest " + id + ": " + err.Error()
	}
	if fault := sameDigests(want, body, func(b []byte) (string, error) { return "body=" + hexSum(b), nil }); fault != "" {
		return "manifest " + id + ": " + fault
	}
	for line := range strings.Lines(string(body)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		s := a.set(fields[0])
		if len(fields) > 2 && s.message == "" {
			s.message = fields[2]
		}
	}
	return ""
}

// countPage notes which part of which turn a manifest is.
func (a *archive) countPage(h mime.Header) error {
	text := h.Get(turnField)
	if text == "" {
		return nil
	}
	p, err := parsePage(text)
	if err != nil {
		return fmt.Errorf("%q is no turn", text)
	}
	t := a.turn(strings.Trim(h.Get("To"), "<> "), p.turn)
	t.pages[p.number] = true
	if !p.more {
		t.of = p.number
	}
	if p.number == 1 {
		t.head, t.after = true, p.after
	}
	return nil
}

// missingManifests, a line each. The oldest of a mailbox may follow one that was not given: that is where the archive begins.
func (a *archive) missingManifests() (lines []string) {
	for mailbox, turns := range a.turns {
		for i, time := range slices.Sorted(maps.Keys(turns)) {
			t := turns[time]
			of := t.of
			if of == 0 {
				of = slices.Max(slices.Collect(maps.Keys(t.pages))) + 1
			}
			for page := 1; page <= of; page++ {
				if !t.pages[page] {
					lines = append(lines, fmt.Sprintf("missing: page %d of the manifest of turn %s to %s", page, time, mailbox))
				}
			}
			if i > 0 && t.head && turns[t.after] == nil {
				lines = append(lines, fmt.Sprintf("missing: the manifest of turn %s to %s, which the one of turn %s follows", t.after, mailbox, time))
			}
		}
	}
	return lines
}

// tell what was found. The error makes the exit status.
func (a *archive) tell(w io.Writer) error {
	missing := append(a.missing(), a.missingManifests()...)
	slices.Sort(missing)
	for _, line := range slices.Concat(missing, a.altered) {
		fmt.Fprintln(w, line)
	}
	sets := 0
	for _, s := range a.sets {
		if s.of > 0 {
			sets++
		}
	}
	fmt.Fprintf(w, "%d reports of %d sets, %d manifests, %d other messages\n", a.reports, sets, a.manifests, a.others)
	if len(missing)+len(a.altered) > 0 {
		return fmt.Errorf("the archive is not whole: %d missing, %d altered", len(missing), len(a.altered))
	}
	return nil
}

// missing reports and sets, a line each.
func (a *archive) missing() []string {
	var lines []string
	for id, s := range a.sets {
		if s.of == 0 {
			lines = append(lines, fmt.Sprintf("missing: set %s (message %s), which a manifest lists", id, s.message))
		}
		for i := 1; i <= s.of; i++ {
			if !s.parts[i] {
				lines = append(lines, fmt.Sprintf("missing: set %s part %d of %d (message %s)", id, i, s.of, s.message))
			}
		}
	}
	return lines
}
