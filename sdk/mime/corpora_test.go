package mime

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/posternmail/postern/internal/corpora"
)

// expected is an element of what mime4j says of a message.
type expected struct {
	XMLName   xml.Name
	Body      *string `xml:"body"`
	Multipart *struct {
		Parts []expected `xml:"body-part"`
	} `xml:"multipart"`
	Message *expected `xml:"message"`
}

// shape of what is expected: "body", "message(...)", "multipart(...)" with its parts.
func (e *expected) shape() string {
	switch {
	case e.Multipart != nil && len(e.Multipart.Parts) > 0:
		var parts []string
		for _, p := range e.Multipart.Parts {
			parts = append(parts, p.shape())
		}
		return "multipart(" + strings.Join(parts, " ") + ")"
	case e.Message != nil:
		return "message(" + e.Message.shape() + ")"
	}
	return "body"
}

// bodies in their order; nil for a multipart without parts.
func (e *expected) bodies() (all []*string) {
	switch {
	case e.Multipart != nil && len(e.Multipart.Parts) > 0:
		for _, p := range e.Multipart.Parts {
			all = append(all, p.bodies()...)
		}
		return all
	case e.Message != nil:
		return e.Message.bodies()
	}
	return []*string{e.Body}
}

func shape(p *Part) string {
	if len(p.Parts) == 0 {
		return "body"
	}
	var parts []string
	for _, c := range p.Parts {
		parts = append(parts, shape(c))
	}
	if strings.HasPrefix(p.Type, "multipart/") {
		return "multipart(" + strings.Join(parts, " ") + ")"
	}
	return "message(" + strings.Join(parts, " ") + ")"
}

// mime4jDiffers are messages that mime4j reads otherwise, and why we do as we do.
var mime4jDiffers = map[string]string{
	// RFC 2046 section 5.2.1 forbids to encode a message: it is a leaf, with a defect, and who looks into files decodes it.
	"multi-2gifs-base64":                 "encoded message",
	"bad-newlines-multiple-parts-base64": "encoded message",
	"base64encoded-rfc822message":        "encoded message",
	"base64encoded-rfc822message-nested": "encoded message",
	// A line of the header that is no field is dropped, and the header goes on up to the empty line, where the host, too,
	// takes it to end; mime4j begins the body with that line.
	"malformedHeaderStartsBody-nocrlfcrlf": "line that is no field",
	"malformedHeaderStartsBody-noheader":   "line that is no field",
}

// latin1 as UTF-8, so that XML may hold any octets.
func latin1(b []byte) []byte {
	var out []byte
	for _, c := range b {
		out = utf8.AppendRune(out, rune(c))
	}
	return out
}

// expectation that stands beside a message; nil where there is none.
func expectation(t *testing.T, file string) *expected {
	t.Helper()
	data, err := os.ReadFile(strings.TrimSuffix(file, ".msg") + ".xml")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	want := new(expected)
	if err := xml.NewDecoder(bytes.NewReader(latin1(data))).Decode(want); err != nil {
		t.Fatal(err)
	}
	return want
}

// The structure and the content of each message are those that mime4j gives, but for the differences above.
func TestMime4j(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(corpora.Path(t, "mime-mime4j"), "core/src/test/resources/*/*.msg"))
	if err != nil {
		t.Fatal(err)
	}
	compared, differ := 0, 0
	for _, file := range files {
		want := expectation(t, file)
		if want == nil {
			continue
		}
		compared++
		problem := disagreement(t, file, want)
		why, known := mime4jDiffers[strings.TrimSuffix(filepath.Base(file), ".msg")]
		switch {
		case known && problem == "":
			t.Errorf("%s agrees: not %s any more", file, why)
		case known:
			differ++
		case problem != "":
			t.Errorf("%s: %s", file, problem)
		}
	}
	if compared < 75 || differ != len(mime4jDiffers) {
		t.Errorf("%d messages compared, %d differ", compared, differ)
	}
}

// disagreement of our parser and what is expected; "" is none.
func disagreement(t *testing.T, file string, want *expected) string {
	t.Helper()
	msg, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := parse(t, string(msg), Limits{})
	if err != nil {
		return err.Error()
	}
	if got := shape(tree.Root); got != want.shape() {
		return "got " + got + ", want " + want.shape()
	}
	bodies := want.bodies()
	for p := range tree.Leaves() {
		raw, err := io.ReadAll(p.Raw())
		if err != nil {
			return err.Error()
		}
		got := strings.TrimSpace(strings.ReplaceAll(string(latin1(raw)), "\r\n", "\n"))
		if body := bodies[0]; body != nil && got != strings.TrimSpace(strings.ReplaceAll(*body, "\r\n", "\n")) {
			return fmt.Sprintf("got %q, want %q", got, *body)
		}
		bodies = bodies[1:]
	}
	return ""
}

// Every file of the MIME corpora, a message or not, is read to its end, with parts that lie in each other, within bounds of memory.
func TestEveryFixture(t *testing.T) {
	for _, name := range []string{"mime-mime4j", "mime-mimekit", "mime-ruby-mail", "mime-python-email", "mime-horde", "mime-laminas",
		"mime-django-mailbox", "mime-notmuch-corpora", "mime-mu"} {
		t.Run(name, func(t *testing.T) {
			count := 0
			err := filepath.WalkDir(corpora.Path(t, name), func(path string, d fs.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() {
					return err
				}
				count++
				return readFixture(path)
			})
			if err != nil || count < 10 {
				t.Errorf("%d files, %v", count, err)
			}
		})
	}
}

// readFixture parses one file and reads its leaves. Only what is made to be too much may be.
func readFixture(path string) error {
	msg, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	msg = bytes.ReplaceAll(bytes.ReplaceAll(msg, []byte("\r\n"), []byte("\n")), []byte("\n"), []byte("\r\n"))
	header, body, _ := bytes.Cut(msg, []byte("\r\n\r\n"))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	tree, err := Parse(context.Background(), append(header, "\r\n"...), bytes.NewReader(body), Limits{})
	if errors.Is(err, ErrTooDeep) && filepath.Base(path) == "deeply_nested.txt" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for p := range tree.All() {
		if p.Start > p.Content || p.Content > p.End || p.Parent != nil && (p.Start < p.Parent.Content || p.End > p.Parent.End) {
			return fmt.Errorf("%s: part %d-%d-%d", path, p.Start, p.Content, p.End)
		}
		_, _ = p.Names(), p.Types()
		if _, _, err := p.DecodedText(1 << 20); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	runtime.ReadMemStats(&after)
	if used, most := after.TotalAlloc-before.TotalAlloc, uint64(1<<20+40*len(msg)+tree.Count*(64<<10)); used > most {
		return fmt.Errorf("%s: %d octets allocated for %d, at most %d", path, used, len(msg), most)
	}
	return nil
}
