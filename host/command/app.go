package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/agext/levenshtein"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/cgroup"
	"github.com/posternmail/postern/host/internal/fleet"
	"github.com/posternmail/postern/host/internal/privsep"
)

// Exit status of the commands.
const (
	exitDone   = 0
	exitFailed = 1
	exitMisuse = 2
)

// app is one run of the binary: what it reads and writes, and the options that many commands share.
type app struct {
	stdin    io.Reader
	stdout   io.Writer
	stderr   io.Writer
	terminal bool // stdout is one
	color    bool
	width    int // of the terminal, 0 without
	now      func() time.Time
	version  string

	config   string // --config
	socket   string // --socket
	json     bool   // --json
	dir      string // data directory, once it was looked for
	programs fleet.Programs
	running  *admin.Client
	parent   *privsep.Link // of the host that this process is; nil: it has none
	groups   *cgroup.Tree  // of the host that this process is; nil: it is none, or its parent has them
}

// command is a node of the tree: it has either run or subs.
type command struct {
	name   string
	args   string // "ID...", for the usage line
	short  string // one line for the listing
	long   string // more, for its own help; may be empty
	min    int    // arguments
	max    int    // -1: any number
	json   bool   // it takes --json
	host   bool   // it takes --config and --socket
	file   bool   // it takes --config
	hidden bool
	flags  func(f *flag.FlagSet)
	run    func(ctx context.Context, args []string) error
	subs   []*command
}

// misuse is an error of whoever typed the command.
type misuse struct {
	text string
	path string // of the command, for the hint
}

// Error implements error.
func (m *misuse) Error() string { return m.text }

// errSilent is a failure that has been told already.
var errSilent = errors.New("failed")

// hinted is an error with what to do about it.
type hinted struct {
	error
	hint string
}

// Unwrap gives the error below.
func (h *hinted) Unwrap() error { return h.error }

// main runs the command that args name and answers with the exit status.
func (a *app) main(ctx context.Context, root *command, args []string) int {
	err := a.dispatch(ctx, root, root.name, args)
	a.noteVersion()
	var wrong *misuse
	var code exitCode
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errSilent):
		return exitFailed
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &wrong):
		a.note("%s", wrong.text)
		fmt.Fprintf(a.stderr, "Help: %s --help\n", wrong.path)
		return exitMisuse
	}
	a.note("%s", printableText(err.Error()))
	if hint := hintOf(err); hint != "" {
		fmt.Fprintln(a.stderr, printable(hint))
	}
	return exitFailed
}

func hintOf(err error) string {
	var h *hinted
	if errors.As(err, &h) {
		return h.hint
	}
	var remote *admin.RemoteError
	if errors.As(err, &remote) {
		return remote.Hint
	}
	return ""
}

// note says something beside the output.
func (a *app) note(format string, args ...any) {
	fmt.Fprintf(a.stderr, "postern: "+format+"\n", args...)
}

// noteVersion says that the running host is not of this binary: its answers may lack what this one shows.
func (a *app) noteVersion() {
	if a.running == nil || a.running.Version() == "" || a.running.Version() == a.version {
		return
	}
	a.note("this command is version %s, the running host is %s", a.version, printable(a.running.Version()))
}

// dispatch finds the command below c and runs it.
func (a *app) dispatch(ctx context.Context, c *command, path string, args []string) error {
	if c.run != nil {
		return a.call(ctx, c, path, args)
	}
	if len(args) == 0 {
		a.help(a.stderr, c, path)
		return &misuse{text: "a command is missing", path: path}
	}
	name := args[0]
	switch name {
	case "help", "-h", "-help", "--help":
		return a.helpFor(c, path, args[1:])
	}
	if sub := c.sub(name); sub != nil {
		return a.dispatch(ctx, sub, path+" "+name, args[1:])
	}
	if strings.HasPrefix(name, "-") {
		return &misuse{text: fmt.Sprintf("%s: options stand behind the command", name), path: path}
	}
	return &misuse{text: fmt.Sprintf("unknown command %q%s", printable(path+" "+name), suggest(name, c.names())), path: path}
}

func (c *command) sub(name string) *command {
	for _, sub := range c.subs {
		if sub.name == name {
			return sub
		}
	}
	return nil
}

func (c *command) names() []string {
	var names []string
	for _, sub := range c.subs {
		names = append(names, sub.name)
	}
	return names
}

// call parses the options of a command, wherever they stand among its arguments, and runs it.
func (a *app) call(ctx context.Context, c *command, path string, args []string) error {
	f := a.flagSet(c)
	rest, err := parse(f, args)
	if errors.Is(err, flag.ErrHelp) {
		a.help(a.stdout, c, path)
		return nil
	}
	if err != nil {
		return &misuse{text: flagError(f, err), path: path}
	}
	switch {
	case len(rest) < c.min:
		return &misuse{text: missing(c, len(rest)) + " is missing", path: path}
	case c.max >= 0 && len(rest) > c.max:
		return &misuse{text: fmt.Sprintf("unexpected argument %q", rest[c.max]), path: path}
	}
	err = c.run(ctx, rest)
	var wrong *misuse
	if errors.As(err, &wrong) && wrong.path == "" {
		wrong.path = path
	}
	return err
}

func missing(c *command, given int) string {
	words := strings.Fields(c.args)
	if given < len(words) {
		return strings.TrimSuffix(words[given], "...")
	}
	return "an argument"
}

func (a *app) flagSet(c *command) *flag.FlagSet {
	f := flag.NewFlagSet(c.name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	if c.flags != nil {
		c.flags(f)
	}
	if c.host || c.file {
		f.StringVar(&a.config, "config", "config.hcl", "`FILE` or folder of the configuration")
	}
	if c.host {
		f.StringVar(&a.socket, "socket", "", "control socket `PATH` of the running host, instead of --config")
	}
	if c.json {
		f.BoolVar(&a.json, "json", false, "print JSON")
	}
	return f
}

// parse lets options stand before, between and behind arguments. What follows "--" is an argument.
func parse(f *flag.FlagSet, args []string) (rest []string, err error) {
	for len(args) > 0 {
		if err := f.Parse(args); err != nil {
			return nil, err
		}
		left := f.Args()
		if used := len(args) - len(left); used > 0 && args[used-1] == "--" {
			return append(rest, left...), nil
		}
		if len(left) == 0 {
			break
		}
		rest, args = append(rest, left[0]), left[1:]
	}
	return rest, nil
}

// flagError says what is wrong with an option in our own words.
func flagError(f *flag.FlagSet, err error) string {
	text := err.Error()
	if name, found := strings.CutPrefix(text, "flag provided but not defined: -"); found {
		var known []string
		f.VisitAll(func(one *flag.Flag) { known = append(known, one.Name) })
		return fmt.Sprintf("unknown option --%s%s", printable(strings.TrimPrefix(name, "-")), suggestOption(name, known))
	}
	if name, found := strings.CutPrefix(text, "flag needs an argument: -"); found {
		return fmt.Sprintf("option --%s needs a value", name)
	}
	text = strings.TrimSuffix(printable(text), ": parse error")
	for _, words := range []string{" for flag -", " for -"} {
		text = strings.Replace(text, words, " for option --", 1)
	}
	return strings.Replace(text, "invalid boolean value", "invalid value", 1)
}

func suggestOption(name string, known []string) string {
	best := closest(strings.TrimLeft(name, "-"), known)
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean --%s?", best)
}

func suggest(name string, known []string) string {
	best := closest(name, known)
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// closest is the known name that is a slip of the finger away from name, "" when none is.
func closest(name string, known []string) string {
	best, distance := "", 3
	for _, candidate := range known {
		d := levenshtein.Distance(name, candidate, nil)
		if strings.HasPrefix(candidate, name) && len(name) > 1 {
			d = 1
		}
		if d < distance && d < len(candidate) {
			best, distance = candidate, d
		}
	}
	return best
}

// helpFor serves `postern help queue list`.
func (a *app) helpFor(c *command, path string, names []string) error {
	for _, name := range names {
		sub := c.sub(name)
		if sub == nil {
			return &misuse{text: fmt.Sprintf("unknown command %q%s", printable(path+" "+name), suggest(name, c.names())), path: path}
		}
		c, path = sub, path+" "+name
	}
	a.help(a.stdout, c, path)
	return nil
}

// help prints what can be typed behind path.
func (a *app) help(w io.Writer, c *command, path string) {
	if c.run == nil {
		fmt.Fprintf(w, "Usage: %s COMMAND\n\n%s\n\n", path, c.short)
		list := &table{}
		for _, sub := range c.subs {
			if !sub.hidden {
				list.row("  "+strings.TrimSpace(sub.name+" "+sub.args), sub.short)
			}
		}
		list.print(w, 0)
		return
	}
	usage := path
	if c.args != "" {
		usage += " " + c.args
	}
	fmt.Fprintf(w, "Usage: %s\n\n%s\n", usage, c.short)
	if c.long != "" {
		fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(c.long))
	}
	a.helpOptions(w, c)
}

func (a *app) helpOptions(w io.Writer, c *command) {
	list := &table{}
	a.flagSet(c).VisitAll(func(f *flag.Flag) {
		value, text := flag.UnquoteUsage(f)
		name := strings.TrimSpace("--" + f.Name + " " + value)
		if !slices.Contains([]string{"", "false", "0", "0s"}, f.DefValue) {
			text += " (default " + f.DefValue + ")"
		}
		list.row("  "+name, text)
	})
	if len(list.rows) == 0 {
		return
	}
	fmt.Fprint(w, "\nOptions:\n")
	list.print(w, 0)
}
