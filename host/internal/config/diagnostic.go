package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/mitchellh/go-wordwrap"
)

// Severity of a Diagnostic.
type Severity string

// Severities.
const (
	SeverityError   Severity = "error"   // the configuration cannot be used
	SeverityWarning Severity = "warning" // it can be used, with a surprise
)

// Diagnostic is one finding. Lines and columns count from 1; a column is a character as seen on the screen; the
// end is the place behind the last character. File is empty where a finding belongs to no place.
type Diagnostic struct {
	Severity  Severity `json:"severity"`
	File      string   `json:"file"`
	Line      int      `json:"line"`
	Column    int      `json:"column"`
	EndLine   int      `json:"end_line"`
	EndColumn int      `json:"end_column"`
	Summary   string   `json:"summary"`
	Detail    string   `json:"detail,omitempty"`
	secret    bool     // the source holds a secret: not to be shown
}

// Diagnostics are all findings of one run, in the order of their places.
type Diagnostics struct {
	list    []Diagnostic
	sources map[string][]byte
	secrets []hcl.Range // where secrets are written in the sources
}

// All findings, ordered by file and place.
func (d *Diagnostics) All() []Diagnostic { return d.list }

// Errors tells whether the configuration cannot be used.
func (d *Diagnostics) Errors() bool { return d.count(SeverityError) > 0 }

// Warnings tells whether there is something to be said about a usable configuration.
func (d *Diagnostics) Warnings() bool { return d.count(SeverityWarning) > 0 }

// Count of errors and of warnings.
func (d *Diagnostics) Count() (errors, warnings int) {
	return d.count(SeverityError), d.count(SeverityWarning)
}

func (d *Diagnostics) count(severity Severity) int {
	n := 0
	for _, one := range d.list {
		if one.Severity == severity {
			n++
		}
	}
	return n
}

// Warn adds a finding that belongs to no place.
func (d *Diagnostics) Warn(summary string) {
	d.list = append(d.list, Diagnostic{Severity: SeverityWarning, Summary: summary})
}

// Err is the errors on a line each, for callers that want an error; nil without.
func (d *Diagnostics) Err() error {
	if !d.Errors() {
		return nil
	}
	var lines []string
	for _, one := range d.list {
		if one.Severity == SeverityError {
			lines = append(lines, one.String())
		}
	}
	return fmt.Errorf("%s", strings.Join(lines, "\n"))
}

// MarshalJSON writes the list; the names of its fields are stable.
func (d *Diagnostics) MarshalJSON() ([]byte, error) {
	if d.list == nil {
		return []byte("[]"), nil
	}
	return json.Marshal(d.list)
}

// String is the finding on one line: `config.hcl:41,5-13: unsupported argument "treshold"; did you mean "threshold"?`
func (d Diagnostic) String() string {
	text := d.Summary
	if d.Severity == SeverityWarning {
		text = "warning: " + text
	}
	if place := d.place(); place != "" {
		return place + ": " + text
	}
	return text
}

func (d Diagnostic) place() string {
	switch {
	case d.File == "":
		return ""
	case d.Line == 0:
		return d.File
	case d.Line == d.EndLine:
		return fmt.Sprintf("%s:%d,%d-%d", d.File, d.Line, d.Column, d.EndColumn)
	}
	return fmt.Sprintf("%s:%d,%d-%d,%d", d.File, d.Line, d.Column, d.EndLine, d.EndColumn)
}

// Escape sequences of Print.
const (
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
	bold   = "\x1b[1m"
	reset  = "\x1b[0m"
)

// Print writes each finding with the line it is about and carets below the offending characters. Details and
// lines are fitted to width columns; 0 leaves them as they are.
func (d *Diagnostics) Print(w io.Writer, width int, color bool) {
	for i, one := range d.list {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, paint(one.String(), bold, color))
		d.printSnippet(w, one, width, color)
		if one.Detail != "" {
			fmt.Fprintln(w, indented(one.Detail, width))
		}
	}
}

func (d *Diagnostics) printSnippet(w io.Writer, one Diagnostic, width int, color bool) {
	line, ok := sourceLine(d.sources[one.File], one.Line)
	if !ok {
		return
	}
	if one.secret {
		line, one.Column, one.EndColumn = "(not shown: sensitive)", 0, 0
	}
	gutter := fmt.Sprintf("%5d | ", one.Line)
	margin := strings.Repeat(" ", len(gutter)-2) + "| "
	line, under := underlined(line, one, width-len(gutter))
	fmt.Fprintf(w, "%s%s\n", gutter, line)
	if strings.TrimSpace(under) == "" {
		return
	}
	hue := red
	if one.Severity == SeverityWarning {
		hue = yellow
	}
	fmt.Fprintf(w, "%s%s\n", margin, paint(under, hue, color))
}

func paint(text, code string, color bool) string {
	if !color {
		return text
	}
	return code + text + reset
}

func sourceLine(source []byte, number int) (string, bool) {
	if number < 1 || source == nil {
		return "", false
	}
	rest := string(source)
	for ; number > 1; number-- {
		_, after, found := strings.Cut(rest, "\n")
		if !found {
			return "", false
		}
		rest = after
	}
	line, _, _ := strings.Cut(rest, "\n")
	return printable(strings.TrimSuffix(line, "\r")), true
}

// printable keeps a broken file from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return ' '
		}
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}

// underlined returns the line and the carets for it, both cut to width columns around the place; width < 20
// is no limit.
func underlined(line string, one Diagnostic, width int) (string, string) {
	if one.Column < 1 {
		return line, ""
	}
	runes := []rune(line)
	from := min(one.Column-1, len(runes))
	to := len(runes)
	if one.EndLine == one.Line {
		to = min(one.EndColumn-1, len(runes))
	}
	to = max(to, from+1) // an empty range is shown as one place
	if start := from - width/3; width >= 20 && len(runes) > width && start > 0 {
		runes = append([]rune("..."), runes[start:]...)
		from, to = from-start+3, to-start+3
	}
	if width >= 20 && len(runes) > width {
		runes = append(runes[:width-3:width-3], []rune("...")...)
		to = max(min(to, width), from+1)
	}
	return string(runes), strings.Repeat(" ", from) + strings.Repeat("^", to-from)
}

func indented(text string, width int) string {
	if width >= 20 {
		text = wordwrap.WrapString(text, uint(width-8))
	}
	return "        " + strings.ReplaceAll(text, "\n", "\n        ")
}

// add files a finding at a place.
func (d *Diagnostics) add(severity Severity, at hcl.Range, summary, detail string) *Diagnostic {
	d.list = append(d.list, Diagnostic{
		Severity: severity, File: at.Filename, Summary: summary, Detail: detail,
		Line: at.Start.Line, Column: at.Start.Column, EndLine: at.End.Line, EndColumn: at.End.Column,
	})
	return &d.list[len(d.list)-1]
}

func (d *Diagnostics) errorf(at hcl.Range, format string, args ...any) *Diagnostic {
	return d.add(SeverityError, at, fmt.Sprintf(format, args...), "")
}

func (d *Diagnostics) warnf(at hcl.Range, format string, args ...any) *Diagnostic {
	return d.add(SeverityWarning, at, fmt.Sprintf(format, args...), "")
}

// addHCL takes over what the HCL library found.
func (d *Diagnostics) addHCL(found hcl.Diagnostics) {
	for _, one := range found {
		var at hcl.Range
		if one.Subject != nil {
			at = *one.Subject
		}
		if text, ok := failedCall(one); ok {
			d.errorf(wholeCall(one, at), "%s", text)
			continue
		}
		d.add(SeverityError, at, lowerFirst(strings.TrimSuffix(one.Summary, ".")), one.Detail)
	}
}

// failedCall says what a function said that failed (`file: open x: no such file or directory`), or that there is
// no such function.
func failedCall(one *hcl.Diagnostic) (string, bool) {
	if call, ok := hcl.DiagnosticExtra[hclsyntax.FunctionCallUnknownDiagExtra](one); ok {
		name := call.CalledFunctionName()
		return fmt.Sprintf("there is no function %q%s", name, Suggestion(name, functionNames())), true
	}
	call, ok := hcl.DiagnosticExtra[hclsyntax.FunctionCallDiagExtra](one)
	if !ok || call.FunctionCallError() == nil {
		return "", false
	}
	return fmt.Sprintf("%s: %v", call.CalledFunctionName(), call.FunctionCallError()), true
}

// wholeCall is the range of the call with its arguments, where the library names only its beginning.
func wholeCall(one *hcl.Diagnostic, at hcl.Range) hcl.Range {
	call, ok := one.Expression.(*hclsyntax.FunctionCallExpr)
	if _, unknown := hcl.DiagnosticExtra[hclsyntax.FunctionCallUnknownDiagExtra](one); !ok || unknown {
		return at
	}
	if _, argument := hcl.DiagnosticExtra[hclsyntax.FunctionCallDiagExtra](one); argument && one.Summary == "Invalid function argument" {
		return at
	}
	return call.Range()
}

// sort orders findings by place and drops repeated ones: a local that is used twice is wrong once.
func (d *Diagnostics) sort() {
	slices.SortStableFunc(d.list, func(a, b Diagnostic) int {
		return cmp.Or(strings.Compare(a.File, b.File), a.Line-b.Line, a.Column-b.Column, strings.Compare(a.Summary, b.Summary))
	})
	d.list = slices.Compact(d.list)
	for i := range d.list {
		d.list[i].secret = d.showsSecret(d.list[i])
	}
}

// showsSecret tells whether the line that would be printed holds a secret.
func (d *Diagnostics) showsSecret(one Diagnostic) bool {
	return slices.ContainsFunc(d.secrets, func(at hcl.Range) bool {
		return at.Filename == one.File && at.Start.Line <= one.Line && one.Line <= at.End.Line
	})
}

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

// noteSecrets finds what is written inside sensitive(), other than the names of files and variables.
func (d *Diagnostics) noteSecrets(body *hclsyntax.Body) {
	_ = hclsyntax.VisitAll(body, func(n hclsyntax.Node) hcl.Diagnostics {
		if call, ok := n.(*hclsyntax.FunctionCallExpr); ok && call.Name == "sensitive" {
			for _, arg := range call.Args {
				d.noteSecret(arg)
			}
		}
		return nil
	})
}

// noteSecret takes an expression whose value is secret. A reference to where it comes from is not.
func (d *Diagnostics) noteSecret(expr hclsyntax.Expression) {
	switch expr.(type) {
	case *hclsyntax.FunctionCallExpr, *hclsyntax.ScopeTraversalExpr:
	default:
		d.secrets = append(d.secrets, expr.Range())
	}
}

// Suggestion is `; did you mean "x"?` when a known name is near the given one, otherwise empty.
func Suggestion(given string, known []string) string {
	best, distance := "", len(given)/3+2
	for _, name := range known {
		if n := levenshtein.Distance(strings.ToLower(given), name, nil); n < distance {
			best, distance = name, n
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// short is a range as file:line for use inside a sentence.
func short(at hcl.Range) string { return fmt.Sprintf("%s:%d", at.Filename, at.Start.Line) }
