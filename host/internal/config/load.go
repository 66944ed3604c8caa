package config

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty/function"

	"github.com/posternmail/postern/sdk/agentpb"
)

// Options of Load. The zero value reads everything but agents' config blocks.
type Options struct {
	// Describe asks an agent for its manifest, mostly for the schema of its config block. nil: config blocks are
	// not decoded and Agent.Config stays nil.
	Describe func(context.Context, Agent) (*agentpb.DescribeResponse, error)
	// Validate has an agent check its decoded configuration. nil: only the schema is checked.
	Validate func(context.Context, Agent, []byte) ([]*agentpb.Diagnostic, error)
	// Known is told the configuration without its agents before the first agent is asked, for what agents are told
	// of the host. It is not whole when there are errors. nil: nobody is told.
	Known func(*Config)
	// Override changes an agent from what its block says to what was ordered otherwise. One whose Config it sets keeps
	// that: its block is not decoded. nil: the blocks stand.
	Override func(Host, *Agent)
	// Installed finds the command of an installed version of an agent's plugin, for its version constraint, which is
	// in the agent. nil: agents that want one have no command.
	Installed func(Host, Agent) (command []string, err error)
	// Seal sets the digests of an agent's files, after Override. nil: they are not set.
	Seal func(Host, *Agent) error
	// Recall answers with what is known of an agent that has run before, nil where nothing is. What keeps such an agent
	// from being started or asked is only a warning: the host goes on without it. nil: it is an error.
	Recall func(Host, Agent) *Recalled
	// Only, if set, is the one agent whose config block is decoded.
	Only string
	// Sources are read in place of the files: those of a configuration that was loaded before.
	Sources Sources
	// Env looks up an environment variable for env(). nil: os.LookupEnv.
	Env func(string) (string, bool)
	// AgentDir holds the bundled agents, by name. "": the folder "agents" beside the host's binary.
	AgentDir string
	// Context bounds the calls of Describe and Validate. nil: the background.
	Context context.Context
}

// Recalled is an agent as it ran last.
type Recalled struct {
	Command   []string
	SHA256    map[string]string // of what Command runs
	Installed bool              // Command is of an installed version that the agent's constraint allows
	Manifest  *agentpb.DescribeResponse
}

// Load reads a file or a directory of *.hcl as one configuration. It finds every mistake it can in one run. With
// errors the Config is nil; the Diagnostics never are.
func Load(path string, o Options) (*Config, *Diagnostics) {
	l := newLoader(o)
	defer l.diags.sort()
	if o.Sources != nil {
		for _, name := range slices.Sorted(maps.Keys(o.Sources)) {
			l.parse(name, o.Sources[name])
		}
		return l.load(), l.diags
	}
	names, err := configFiles(path)
	if err != nil {
		l.diags.errorf(hcl.Range{Filename: path}, "%v", err)
		return nil, l.diags
	}
	for _, name := range names {
		l.read(name)
	}
	return l.load(), l.diags
}

// Sources is the text of each file of a configuration, by name.
type Sources map[string][]byte

// Sources of the configuration, to load it once more as it was. nil when it was not loaded.
func (c *Config) Sources() Sources {
	if c.sources == nil {
		return nil
	}
	return maps.Clone(c.sources.sources)
}

// DataDir finds the data directory in a configuration that may have errors elsewhere, "" when it cannot be known: whoever
// has mistyped something wants to look at the running host all the same. It asks no agent.
func DataDir(path string) string {
	l := newLoader(Options{})
	names, err := configFiles(path)
	if err != nil {
		return ""
	}
	for _, name := range names {
		l.read(name)
	}
	l.collectLocals()
	l.root = l.decodeRoot()
	if dir := l.root.one("host").value("data_dir"); dir.bad || l.broken && !dir.set {
		return ""
	}
	return l.root.one("host").str("data_dir")
}

type loader struct {
	opts   Options
	files  []*file
	locals map[string]*local
	diags  *Diagnostics
	broken bool // syntax errors: what is missing may be there, unread
	config *Config
	root   *node
	wasCut map[hcl.Range]bool // timeouts that were warned of

	missing map[string]*Recalled // agents whose program is not there and that are known from before, by label
	system  string               // the system\'s name, for a host that has none
}

// file is one source.
type file struct {
	name      string // as given and as shown
	dir       string // absolute
	body      *hclsyntax.Body
	functions map[string]function.Function
}

func newLoader(o Options) *loader {
	if o.Env == nil {
		o.Env = os.LookupEnv
	}
	if o.AgentDir == "" {
		o.AgentDir = bundledAgents()
	}
	if o.Context == nil {
		o.Context = context.Background()
	}
	return &loader{
		opts:   o,
		locals: map[string]*local{}, missing: map[string]*Recalled{},
		diags:  &Diagnostics{sources: map[string][]byte{}},
		config: &Config{TLS: map[string]TLS{}},
		system: systemName(),
	}
}

// configFiles lists what a path stands for, directories in the order of names.
func configFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration: %w", errors.Unwrap(err))
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	names, err := filepath.Glob(filepath.Join(globEscape(path), "*.hcl"))
	if err != nil {
		return nil, fmt.Errorf("cannot list the configuration: %w", err)
	}
	if len(names) == 0 {
		return nil, errors.New("the directory holds no file *.hcl")
	}
	sort.Strings(names)
	return names, nil
}

// globEscape keeps filepath.Glob from reading patterns in the name of the directory.
func globEscape(path string) string {
	var escaped []rune
	for _, r := range path {
		if r == '*' || r == '?' || r == '[' || r == '\\' {
			escaped = append(escaped, '\\')
		}
		escaped = append(escaped, r)
	}
	return string(escaped)
}

// maxSource bounds one file of configuration.
const maxSource = 4 << 20

// read takes in one source.
func (l *loader) read(name string) {
	f, err := os.Open(name)
	if err != nil {
		l.unreadable(name, err)
		return
	}
	defer f.Close()
	source, err := io.ReadAll(io.LimitReader(f, maxSource+1))
	if err == nil && len(source) > maxSource {
		err = fmt.Errorf("it has more than %d bytes", maxSource)
	}
	if err != nil {
		l.unreadable(name, err)
		return
	}
	l.parse(name, source)
}

func (l *loader) unreadable(name string, err error) {
	l.broken = true
	l.diags.errorf(hcl.Range{Filename: name}, "cannot be read: %v", err)
}

// parse reads one source. What stands behind a syntax error is still judged as far as it could be read.
func (l *loader) parse(name string, source []byte) {
	l.diags.sources[name] = source
	if at, deep := tooComplex(name, source); deep {
		l.broken = true
		l.diags.errorf(at, "this is too deep, long or large to be read")
		return
	}
	dir, err := filepath.Abs(filepath.Dir(name))
	if err != nil {
		l.unreadable(name, err)
		return
	}
	parsed, found := hclsyntax.ParseConfig(source, name, hcl.InitialPos)
	l.diags.addHCL(openQuoteOnce(found))
	l.broken = l.broken || found.HasErrors()
	body, ok := parsed.Body.(*hclsyntax.Body)
	if !ok {
		return
	}
	l.diags.noteSecrets(body)
	l.files = append(l.files, &file{name: name, dir: dir, body: body, functions: l.functions(dir)})
}

// openQuoteOnce leaves the first line of a quote that was never closed: the parser complains of each line behind it, too.
func openQuoteOnce(found hcl.Diagnostics) hcl.Diagnostics {
	seen := false
	return slices.DeleteFunc(found, func(one *hcl.Diagnostic) bool {
		if one.Summary != "Invalid multi-line string" {
			return false
		}
		again := seen
		seen = true
		return again
	})
}

// Bounds that keep the recursive parser and evaluator within their stack. People write a few levels and operators.
const (
	maxNesting   = 100
	maxOperators = 10000
)

func tooComplex(name string, source []byte) (hcl.Range, bool) {
	tokens, _ := hclsyntax.LexConfig(source, name, hcl.InitialPos)
	depth, operators := 0, 0
	for _, token := range tokens {
		switch token.Type {
		case hclsyntax.TokenOBrace, hclsyntax.TokenOBrack, hclsyntax.TokenOParen, hclsyntax.TokenOQuote,
			hclsyntax.TokenOHeredoc, hclsyntax.TokenTemplateInterp, hclsyntax.TokenTemplateControl:
			depth++
		case hclsyntax.TokenCBrace, hclsyntax.TokenCBrack, hclsyntax.TokenCParen, hclsyntax.TokenCQuote,
			hclsyntax.TokenCHeredoc, hclsyntax.TokenTemplateSeqEnd:
			depth--
		case hclsyntax.TokenBang, hclsyntax.TokenMinus, hclsyntax.TokenPlus, hclsyntax.TokenStar, hclsyntax.TokenSlash,
			hclsyntax.TokenPercent, hclsyntax.TokenAnd, hclsyntax.TokenOr, hclsyntax.TokenQuestion,
			hclsyntax.TokenEqualOp, hclsyntax.TokenNotEqual:
			operators++
		}
		if depth > maxNesting || operators > maxOperators || hugeNumber(token) {
			return token.Range, true
		}
	}
	return hcl.Range{}, false
}

// hugeNumber finds literals such as 1e999999999, whose digits would fill the memory.
func hugeNumber(token hclsyntax.Token) bool {
	if token.Type != hclsyntax.TokenNumberLit {
		return false
	}
	_, exponent, ok := strings.Cut(strings.ToLower(string(token.Bytes)), "e")
	return ok && len(strings.TrimLeft(exponent, "+-0")) > 3
}

// load judges what was read.
func (l *loader) load() *Config {
	l.collectLocals()
	l.root = l.decodeRoot()
	l.build()
	if l.diags.Errors() {
		return nil
	}
	l.config.tree, l.config.sources = l.root, l.diags
	return l.config
}
