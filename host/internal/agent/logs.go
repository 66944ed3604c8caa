package agent

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/go-hclog"
)

// Bounds of what an agent may write.
const (
	maxLine        = 64 << 10 // bytes of a line that are looked at; the rest of it is dropped
	maxLinesSecond = 1000     // lines logged in a second; the rest is counted
	keptLines      = 200      // lines kept as evidence
	keptLineBytes  = 1 << 10  // bytes kept of each
	maxPairs       = 32       // keys of a JSON line that are passed on
)

// logs passes the lines of one process on to the host's logger, and keeps the last ones as evidence. Whatever
// an agent writes, it neither fails nor blocks.
type logs struct {
	mu         sync.Mutex
	logger     hclog.Logger
	kept       []string // a ring once it is full
	oldest     int
	panicking  bool // a stack trace is being written
	second     time.Time
	lines      int
	suppressed int
	starved    bool // it said that it had got no memory
}

// newLogs makes a logs for a process that writes to logger.
func newLogs(logger hclog.Logger) *logs { return &logs{logger: logger} }

// with adds pairs to each line from now on.
func (l *logs) with(pairs ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.logger = l.logger.With(pairs...)
}

// readErrors reads a process's stderr to its end.
func (l *logs) readErrors(r io.Reader) {
	eachLine(r, maxLine, func(line []byte, cut bool) { l.write(l.parse(line, cut)) })
	l.flush()
}

// write keeps and logs one entry.
func (l *logs) write(e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keep(e.text)
	if !l.admit(time.Now()) {
		return
	}
	l.logger.Log(e.level, e.message, e.pairs...)
}

// keep puts a line into the ring.
func (l *logs) keep(line string) {
	line = cutString(line, keptLineBytes)
	l.starved = l.starved || wantOfMemory.MatchString(line)
	if len(l.kept) < keptLines {
		l.kept = append(l.kept, line)
		return
	}
	l.kept[l.oldest] = line
	l.oldest = (l.oldest + 1) % keptLines
}

// wantOfMemory are the last words of programs in Go, C++, C and Python that have got no memory. Much may follow them.
var wantOfMemory = regexp.MustCompile(`out of memory|annot allocate memory|bad_alloc|MemoryError`)

// outOfMemory reports whether the process said that it had got no memory.
func (l *logs) outOfMemory() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.starved
}

// admit says whether one more line may be logged now.
func (l *logs) admit(now time.Time) bool {
	if now.Sub(l.second) >= time.Second {
		l.report()
		l.second, l.lines = now, 0
	}
	if l.lines++; l.lines <= maxLinesSecond {
		return true
	}
	if l.suppressed++; l.suppressed == 1 {
		time.AfterFunc(time.Second, l.flush)
	}
	return false
}

// report logs how many lines were suppressed.
func (l *logs) report() {
	if l.suppressed > 0 {
		l.logger.Warn("lines of the agent suppressed, it writes too many", "lines", l.suppressed)
	}
	l.suppressed = 0
}

// flush reports what was suppressed last.
func (l *logs) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.report()
}

// tail answers with the last n lines, oldest first.
func (l *logs) tail(n int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := slices.Concat(l.kept[l.oldest:], l.kept[:l.oldest])
	return all[max(0, len(all)-n):]
}

// entry is one line understood.
type entry struct {
	level   hclog.Level
	message string
	pairs   []any
	text    string // the line itself, printable
}

// parse understands hclog's JSON, that of slog, zap and logrus, prefixes such as "[WARN]", and stack traces.
// Everything else is Info: Debug would hide real faults, Error would cry wolf.
func (l *logs) parse(line []byte, cut bool) entry {
	if e, ok := parseJSON(line); ok && !cut {
		l.panicking = false
		return e
	}
	text := printable(string(line))
	level, message := l.levelOf(text)
	e := entry{level: level, message: message, text: text}
	if cut {
		e.pairs = []any{"cut", true}
	}
	return e
}

// levelOf finds the level of a line of text and what follows it.
func (l *logs) levelOf(text string) (hclog.Level, string) {
	if rest, ok := strings.CutPrefix(text, "["); ok {
		if name, message, ok := strings.Cut(rest, "]"); ok {
			if level := hclog.LevelFromString(name); level != hclog.NoLevel {
				l.panicking = false
				return level, strings.TrimSpace(message)
			}
		}
	}
	for _, start := range []string{"panic: ", "fatal error: ", "Traceback (most recent call last)"} {
		l.panicking = l.panicking || strings.HasPrefix(text, start)
	}
	if l.panicking {
		return hclog.Error, text
	}
	return hclog.Info, text
}

// Keys by which loggers call what every line has.
var (
	levelKeys   = []string{"@level", "level", "lvl", "severity"}
	messageKeys = []string{"@message", "msg", "message"}
	timeKeys    = []string{"@timestamp", "time", "ts", "timestamp"}
	hostKeys    = []string{"agent", "version", "instance", "pid"} // the host knows better
)

// parseJSON understands one JSON object. Its values may be of any type.
func parseJSON(line []byte) (entry, bool) {
	line = bytes.TrimSpace(line)
	if len(line) == 0 || line[0] != '{' {
		return entry{}, false
	}
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.UseNumber()
	var object map[string]any
	if err := decoder.Decode(&object); err != nil || decoder.More() {
		return entry{}, false
	}
	e := entry{text: printable(string(line))}
	e.level = hclog.LevelFromString(take(object, levelKeys))
	if e.level == hclog.NoLevel || e.level == hclog.Off {
		e.level = hclog.Info
	}
	e.message = take(object, messageKeys)
	take(object, timeKeys)
	for _, key := range hostKeys {
		delete(object, key)
	}
	e.pairs = pairs(object)
	return e, true
}

// take removes the first of keys that is in an object, and answers with its text.
func take(object map[string]any, keys []string) string {
	for _, key := range keys {
		if value, ok := object[key]; ok {
			delete(object, key)
			return textOf(value)
		}
	}
	return ""
}

// pairs makes hclog's arguments of what is left of an object, in the order of the keys.
func pairs(object map[string]any) []any {
	keys := slices.Sorted(maps.Keys(object))
	out := make([]any, 0, 2*min(len(keys), maxPairs))
	for _, key := range keys[:min(len(keys), maxPairs)] {
		out = append(out, strings.TrimPrefix(printable(key), "@"), textOf(object[key]))
	}
	return out
}

// textOf is a JSON value as text.
func textOf(value any) string {
	switch value := value.(type) {
	case string:
		return printable(value)
	case json.Number:
		return value.String()
	}
	text, err := json.Marshal(value)
	if err != nil {
		return ""
	}
	return printable(string(text))
}

// printable takes the control characters out of a line, so that nothing an agent writes can forge a line of the
// log or move a terminal's cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case unicode.IsControl(r), r == '\u2028', r == '\u2029', r == utf8.RuneError:
			return -1
		}
		return r
	}, s)
}

// cutString cuts s to at most n bytes, at a character.
func cutString(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// eachLine calls f with each line of r until r ends. Of lines over limit bytes f gets the beginning, with cut
// set; it may not keep line.
func eachLine(r io.Reader, limit int, f func(line []byte, cut bool)) {
	reader := bufio.NewReaderSize(r, limit)
	for {
		line, err := reader.ReadSlice('\n')
		cut := errors.Is(err, bufio.ErrBufferFull)
		if len(line) > 0 {
			f(bytes.TrimRight(line, "\r\n"), cut)
		}
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = reader.ReadSlice('\n')
		}
		if err != nil {
			return
		}
	}
}
