package tracking

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Query says which records are wanted. A zero field does not matter.
type Query struct {
	ID        string    // of a session, message or item: all records about it and about what came of it
	Session   string    // id of a session
	Message   string    // id of a message, or its Message-ID field
	Sender    string    // an address, or a domain; "<>" is the null sender
	Recipient string    // an address, or a domain
	Event     string    // RECEIVE, REJECT, ...
	Agent     string    // decided it, or gave a verdict in it
	From, To  time.Time // from From on, before To
	Limit     int       // the newest so many; 0: all
}

// Search finds records in the ledger, what waits in memory included, oldest first. more says that Limit left
// some out. What cannot be written, to a full disk, is counted by Dropped; what is there can still be read then.
func (f *File) Search(ctx context.Context, q Query) (records []Record, more bool, err error) {
	_ = f.Flush() // the writer has logged its error
	return Search(ctx, f.dir, q)
}

// Search finds records in the ledger in dir, which a host may be writing, oldest first. more says that
// q.Limit left some out.
func Search(ctx context.Context, dir string, q Query) (records []Record, more bool, err error) {
	names, err := files(dir)
	if err != nil {
		return nil, false, err
	}
	m := newMatcher(q)
	for _, name := range slices.Backward(names) {
		if !m.mayHold(name) {
			continue
		}
		found, err := scanFile(ctx, filepath.Join(dir, name), m)
		if err != nil {
			return nil, false, err
		}
		records = append(found, records...)
		if q.Limit > 0 && len(records) > q.Limit {
			return records[len(records)-q.Limit:], true, nil
		}
	}
	return records, false, nil
}

func scanFile(ctx context.Context, path string, m *matcher) ([]Record, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // removed for its age since it was listed
	}
	if err != nil {
		return nil, fmt.Errorf("reading ledger: %w", err)
	}
	defer file.Close()
	var records []Record
	_, err = scan(ctx, file, m, func(r Record) error {
		records = append(records, r)
		if m.Limit > 0 && len(records)/4 > m.Limit {
			records = append(records[:0], records[len(records)-m.Limit-1:]...)
		}
		return nil
	})
	return records, err
}

// scan calls fn for each matching record in r and answers with the octets of whole lines it has read.
func scan(ctx context.Context, r io.Reader, m *matcher, fn func(Record) error) (int64, error) {
	lines := bufio.NewReaderSize(r, 256<<10)
	var read int64
	for n := 0; ; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return read, ctx.Err()
		}
		line, err := readLine(lines)
		if errors.Is(err, io.EOF) {
			return read, nil // what follows the last line end is still being written
		}
		if err != nil {
			return read, fmt.Errorf("reading ledger: %w", err)
		}
		read += int64(len(line))
		record, ok := m.match(line)
		if !ok {
			continue
		}
		if err := fn(record); err != nil {
			return read, err
		}
	}
}

// readLine reads to the line end, however far it is. The line is valid until the next read.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return line, err
	}
	long := slices.Clone(line)
	for errors.Is(err, bufio.ErrBufferFull) {
		line, err = r.ReadSlice('\n')
		long = append(long, line...)
	}
	return long, err
}

// Follow calls fn for each matching record written from now on, until ctx ends or fn fails. It looks four times
// a second and goes on in the next file when there is one.
func Follow(ctx context.Context, dir string, q Query, fn func(Record) error) error {
	t := &tail{dir: dir, m: newMatcher(q), fn: fn}
	if err := t.toEnd(); err != nil {
		return err
	}
	return t.run(ctx)
}

// run reads on until ctx ends.
func (t *tail) run(ctx context.Context) error {
	tick := time.NewTicker(flushAfter)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := t.poll(ctx); err != nil {
			return err
		}
	}
}

// Follow calls fn for each matching record written from now on; see the function of this name.
func (f *File) Follow(ctx context.Context, q Query, fn func(Record) error) error {
	return Follow(ctx, f.dir, q, fn)
}

// tail reads on where it has stopped.
type tail struct {
	dir    string
	m      *matcher
	fn     func(Record) error
	name   string
	offset int64
}

func (t *tail) toEnd() error {
	names, err := files(t.dir)
	if err != nil || len(names) == 0 {
		return err
	}
	t.name = names[len(names)-1]
	info, err := os.Stat(filepath.Join(t.dir, t.name))
	if err != nil {
		return fmt.Errorf("following ledger: %w", err)
	}
	t.offset = info.Size()
	return nil
}

func (t *tail) poll(ctx context.Context) error {
	names, err := files(t.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name < t.name {
			continue
		}
		if name > t.name {
			t.name, t.offset = name, 0
		}
		if err := t.read(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (t *tail) read(ctx context.Context) error {
	file, err := os.Open(filepath.Join(t.dir, t.name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("following ledger: %w", err)
	}
	defer file.Close()
	if _, err := file.Seek(t.offset, io.SeekStart); err != nil {
		return fmt.Errorf("following ledger: %w", err)
	}
	n, err := scan(ctx, file, t.m, t.fn)
	t.offset += n
	return err
}

// matcher judges lines. What a line must contain as text is looked for first: decoding is dear.
type matcher struct {
	Query
	base    string   // of ID: the session, with the message where ID names one
	needles [][]byte // lower case
	lower   []byte   // buffer
}

func newMatcher(q Query) *matcher {
	m := &matcher{Query: q, base: baseOf(q.ID)}
	null := q.Sender == "<>"
	for _, text := range []string{m.base, q.Session, q.Message, q.Sender, q.Recipient, q.Agent, q.Event} {
		if text == "" || text == "<>" && null {
			continue
		}
		quoted := appendString(nil, strings.ToLower(text))
		m.needles = append(m.needles, quoted[1:len(quoted)-1])
	}
	return m
}

// baseOf cuts the part off that names one copy: "<session>.1-ab" is about message "<session>.1".
func baseOf(id string) string {
	if strings.HasPrefix(id, "<") {
		return id // a Message-ID field
	}
	base, _, _ := strings.Cut(id, "-")
	return base
}

// mayHold reports whether a file of that name can have records of the time asked for. A record may be in the
// file of the day after its own: it waits a moment before it is written.
func (m *matcher) mayHold(name string) bool {
	day, err := time.Parse(dayLayout, dayOf(name))
	if err != nil {
		return false
	}
	if !m.From.IsZero() && !day.AddDate(0, 0, 1).After(m.From) {
		return false
	}
	return m.To.IsZero() || day.Add(-time.Minute).Before(m.To)
}

func (m *matcher) match(line []byte) (Record, bool) {
	var r Record
	if len(m.needles) > 0 {
		m.lower = appendLower(m.lower[:0], line)
		for _, needle := range m.needles {
			if !bytes.Contains(m.lower, needle) {
				return r, false
			}
		}
	}
	// A line torn by a crash is no record; the ones around it are.
	if json.Unmarshal(line, &r) != nil {
		return r, false
	}
	return r, m.wants(&r)
}

// appendLower lowers ASCII letters only: the length must stay.
func appendLower(b, line []byte) []byte {
	for _, c := range line {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return b
}

func (m *matcher) wants(r *Record) bool {
	switch {
	case !m.From.IsZero() && r.Time.Before(m.From),
		!m.To.IsZero() && !r.Time.Before(m.To),
		m.Event != "" && !strings.EqualFold(r.Event, m.Event),
		m.Session != "" && r.Session != m.Session,
		m.Message != "" && r.Message != m.Message && r.MessageID != m.Message,
		m.base != "" && !isAbout(r, m.base),
		m.Sender != "" && !isFrom(r, m.Sender),
		m.Recipient != "" && !isTo(r, m.Recipient),
		m.Agent != "" && !isBy(r, m.Agent):
		return false
	}
	return true
}

// isAbout reports whether r is about the session, the message or what came of them.
func isAbout(r *Record, base string) bool {
	if r.MessageID == base {
		return true
	}
	for _, id := range []string{r.Session, r.Message, r.Item, r.Parent} {
		if belongs(id, base) {
			return true
		}
	}
	return false
}

// belongs reports whether id is base or was derived from it: "<base>.1", "<base>-ab".
func belongs(id, base string) bool {
	rest, found := strings.CutPrefix(id, base)
	return found && (rest == "" || rest[0] == '.' || rest[0] == '-')
}

func isFrom(r *Record, sender string) bool {
	if r.Sender == nil {
		return false
	}
	if sender == "<>" {
		return *r.Sender == ""
	}
	return isAddress(*r.Sender, sender)
}

func isTo(r *Record, recipient string) bool {
	return slices.ContainsFunc(r.Recipients, func(to Recipient) bool { return isAddress(to.Address, recipient) })
}

// isAddress reports whether address is wanted: the same mailbox, or in the domain that is wanted.
func isAddress(address, wanted string) bool {
	if strings.EqualFold(address, wanted) {
		return true
	}
	if at := strings.LastIndexByte(wanted, '@'); at > 0 {
		return false
	}
	at := strings.LastIndexByte(address, '@')
	return at >= 0 && strings.EqualFold(address[at+1:], strings.TrimPrefix(wanted, "@"))
}

func isBy(r *Record, agent string) bool {
	return r.Agent == agent || slices.ContainsFunc(r.Verdicts, func(v Verdict) bool { return v.Agent == agent })
}
