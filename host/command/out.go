package command

// The rules of the terminal:
//
//   - What was asked for goes to standard output. Progress, notes and errors go to standard error, so that the
//     output can be piped.
//   - Notes and errors begin with "postern: ", in lower case and without a full stop; the line below says what
//     to do.
//   - Colours only on a terminal, and not where NO_COLOR is set (https://no-color.org).
//   - Mail is written by strangers: control characters are shown escaped, never sent to the terminal. Raw
//     messages (quarantine show --raw) are the exception that is asked for by name.
//   - Times are UTC, as in the ledger, and say so with a Z.

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// printable makes s safe for a terminal and for one line.
func printable(s string) string {
	clean := true
	for _, r := range s {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// printableText is printable for text of several lines.
func printableText(s string) string {
	lines := strings.Split(strings.ReplaceAll(s, "\r\n", "\n"), "\n")
	for i, line := range lines {
		lines[i] = printable(strings.ReplaceAll(line, "\t", "    "))
	}
	return strings.Join(lines, "\n")
}

// table has aligned columns. Columns of numbers are aligned to the right.
type table struct {
	head  []string
	right map[int]bool
	rows  [][]string
}

// columns makes a table with a head; a name that ends in ">" is of a column aligned to the right.
func columns(names ...string) *table {
	t := &table{right: map[int]bool{}}
	for i, name := range names {
		plain, right := strings.CutSuffix(name, ">")
		t.head = append(t.head, plain)
		t.right[i] = right
	}
	return t
}

func (t *table) row(cells ...string) {
	for i := range cells {
		cells[i] = printable(cells[i])
	}
	t.rows = append(t.rows, cells)
}

// print writes the table, lines cut at width where that is not 0.
func (t *table) print(w io.Writer, width int) {
	all := t.rows
	if t.head != nil {
		all = append([][]string{t.head}, t.rows...)
	}
	widths := map[int]int{}
	for _, row := range all {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range all {
		fmt.Fprintln(w, cut(t.line(row, widths), width))
	}
}

func (t *table) line(row []string, widths map[int]int) string {
	var b strings.Builder
	for i, cell := range row {
		if i > 0 {
			b.WriteString("  ")
		}
		padding := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
		if t.right[i] {
			b.WriteString(padding + cell)
		} else {
			b.WriteString(cell + padding)
		}
	}
	return strings.TrimRight(b.String(), " ")
}

func cut(line string, width int) string {
	if width < 20 || utf8.RuneCountInString(line) <= width {
		return line
	}
	return string([]rune(line)[:width-1]) + "…"
}

// list prints a table, or says that there is nothing.
func (a *app) list(t *table, nothing string) {
	if len(t.rows) == 0 {
		fmt.Fprintln(a.stderr, nothing)
		return
	}
	t.print(a.stdout, a.width)
}

// printBelow prints a table, if it has rows, with an empty line above it.
func (a *app) printBelow(t *table) {
	if len(t.rows) > 0 {
		a.printf("\n")
		t.print(a.stdout, a.width)
	}
}

// printJSON prints v for programs: the types of the admin package, with names that stay.
func (a *app) printJSON(v any) error {
	encoder := json.NewEncoder(a.stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	return nil
}

const (
	bold   = "\x1b[1m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
)

// paint colours text on a terminal.
func (a *app) paint(color, text string) string {
	if !a.color {
		return text
	}
	return color + text + "\x1b[0m"
}

func (a *app) printf(format string, args ...any) {
	fmt.Fprintf(a.stdout, format, args...)
}

// stamp writes a time.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

func stampOr(t *time.Time, without string) string {
	if t == nil {
		return without
	}
	return stamp(*t)
}

// span writes a duration with the two units that matter: "3d4h", "12m5s", "1.2s", "340ms", "80us".
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + span(-d)
	case d == 0:
		return "0s"
	case d < time.Millisecond:
		return fmt.Sprintf("%dus", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return strconv.FormatFloat(d.Round(100*time.Millisecond).Seconds(), 'f', -1, 64) + "s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return pair(d, time.Minute, "m", time.Second, "s")
	case d < 24*time.Hour:
		return pair(d, time.Hour, "h", time.Minute, "m")
	}
	return pair(d, 24*time.Hour, "d", time.Hour, "h")
}

func pair(d, big time.Duration, bigName string, small time.Duration, smallName string) string {
	text := fmt.Sprintf("%d%s", d/big, bigName)
	if rest := d % big / small; rest > 0 {
		text += fmt.Sprintf("%d%s", rest, smallName)
	}
	return text
}

// age is the time since t; "-" without t.
func (a *app) age(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "-"
	}
	return span(max(a.now().Sub(*t), 0))
}

// until is the time to t; "now" when it is past.
func (a *app) until(t time.Time) string {
	if !t.After(a.now()) {
		return "now"
	}
	return span(t.Sub(a.now()))
}

// number writes n; a dash for none keeps a listing readable.
func number[T int | uint64](n T) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// mailbox writes an envelope address; "<>" is the null sender.
func mailbox(s string) string {
	if s == "" {
		return "<>"
	}
	return s
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
