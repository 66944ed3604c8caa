package main

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/posternmail/postern/plugins/contentfilter/classifier"
)

// message of the corpora, without what gives its label away.
type message struct {
	name   string
	corpus string
	source string // collection: "easy-ham-1", a mailing list, "phishing-pot"
	spam   bool
	time   time.Time // of receipt
	header []byte
	body   []byte
}

// whole message with CRLF line ends.
func (m *message) whole() []byte { return bytes.Join([][]byte{m.header, m.body}, []byte("\r\n")) }

// names of the corpora that are read.
var corpora = []string{"mail-spamassassin-public", "mail-phishing-pot", "mail-public-lists-modern-ham"}

// load all messages of the corpora in a folder, unpacked below another.
func load(from, scratch string) ([]*message, error) {
	var all []*message
	for _, corpus := range corpora {
		to := filepath.Join(scratch, corpus)
		if err := unpack(filepath.Join(from, corpus, "handout.tar.xz"), to); err != nil {
			return nil, err
		}
		rows, err := labels(filepath.Join(from, corpus, "labels.handout.tsv"))
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			m, err := read(corpus, to, row)
			if err != nil {
				return nil, err
			}
			all = append(all, m)
		}
	}
	return all, nil
}

func unpack(archive, to string) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	if out, err := exec.Command("tar", "-xJf", archive, "-C", to).CombinedOutput(); err != nil {
		return fmt.Errorf("unpacking %s: %w\n%s", archive, err, out)
	}
	return nil
}

func labels(path string) ([][]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := csv.NewReader(f)
	r.Comma, r.LazyQuotes, r.FieldsPerRecord = '\t', true, -1
	rows, err := r.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return rows[1:], nil
}

func read(corpus, folder string, row []string) (*message, error) {
	b, err := os.ReadFile(filepath.Join(folder, row[0]))
	if err != nil {
		return nil, err
	}
	m := &message{name: row[0], corpus: corpus, source: filepath.Dir(row[0]), spam: row[1] == "spam"}
	if m.source == "." {
		m.source = corpus
	}
	m.time = received(b)
	header, body := classifier.Split(b)
	m.header, m.body = withoutLeaks(header), body
	for _, leak := range leakedHosts {
		m.header, m.body = leak.pattern.ReplaceAll(m.header, leak.instead), leak.pattern.ReplaceAll(m.body, leak.instead)
	}
	return m, nil
}

var receivedDate = regexp.MustCompile(`(?s)\nReceived:.*?;\s*([^\n]*(?:\n[ \t][^\n]*)?)`)

// received is when the first Received field was written: by the collector, while Date is the sender's.
func received(b []byte) time.Time {
	if match := receivedDate.FindSubmatch(append([]byte("\n"), b...)); match != nil {
		text := strings.Join(strings.Fields(string(match[1])), " ")
		if t, err := mail.ParseDate(text); err == nil {
			return t
		}
	}
	return time.Time{}
}

// leaks are header fields in which the side that collected the mail wrote down what it thinks of it.
var leaks = regexp.MustCompile(`(?i)^(x-spam|x-forefront|x-microsoft-antispam|x-ms-|x-eop|x-incoming|x-sid-|authentication-results|arc-|received-spf|x-getmessage|x-keywords|x-status)`)

// leakedHosts occur in one kind of mail only, because of who collected it. What stands instead is as well formed as what
// stood there before the collector made it unrecognizable.
var leakedHosts = []struct {
	pattern *regexp.Regexp
	instead []byte
}{
	{regexp.MustCompile(`(?i)[a-z0-9.-]*\b(csmining\.org|taint\.org)\b`), []byte("example.org")},
	{regexp.MustCompile(`(?i)phishing@pot\b`), []byte("someone@example.org")},
}

// spamMark is what a filter put into a subject: [SPAM], ***SPAM***, (SPAM? 08.00).
var spamMark = regexp.MustCompile(`(?i)(\[|\*\*+)\s*spam\s*(\]|\*\*+)|\(spam\? [0-9.]*\)`)

// strays are posts to mailing lists that are spam, though the corpus has all posts as wanted mail: among the wanted mail
// that any of the filters rates worst, those of which a reader is in no doubt.
var strays = map[string]bool{
	"linux-tip-commits.vger.kernel.org/2021-937adf5539af.eml": true, // "Hi Dear"
	"kasan-dev.googlegroups.com/2019-d5f554961c98.eml":        true, // a money transfer
	"kasan-dev.googlegroups.com/2019-f6345de6248f.eml":        true, // an attorney general in Nigeria
	"kasan-dev.googlegroups.com/2024-ea7111fca55b.eml":        true, // "service provider"
	"linux-integrity.vger.kernel.org/2023-5c224c48caaa.eml":   true, // a used car, in Polish
	"usrp-users.lists.ettus.com/2019-690cee50cc7a.eml":        true, // an opportunity, in German
}

func withoutLeaks(header []byte) []byte {
	var out []byte
	drop := false
	for line := range bytes.Lines(header) {
		if line[0] != ' ' && line[0] != '\t' {
			drop = leaks.Match(line)
			if bytes.HasPrefix(bytes.ToLower(line), []byte("subject:")) {
				line = spamMark.ReplaceAll(line, nil)
			}
		}
		if !drop {
			out = append(out, line...)
		}
	}
	return out
}

// onlyFields of a header.
func onlyFields(header []byte, names []string) []byte {
	var out []byte
	keep := false
	for line := range bytes.Lines(header) {
		if line[0] != ' ' && line[0] != '\t' {
			keep = false
			name, _, _ := bytes.Cut(line, []byte(":"))
			for _, f := range names {
				keep = keep || strings.EqualFold(string(name), f)
			}
		}
		if keep {
			out = append(out, line...)
		}
	}
	return out
}
