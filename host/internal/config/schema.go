package config

import (
	"encoding/json"
	"net/netip"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// blockType describes a block: how it is decoded, shown by `config show` and documented. The host's own blocks are
// tables of these; an agent's config block is one made from the schema that the agent describes.
type blockType struct {
	name     string
	labels   []string // names of the labels
	doc      string
	options  []option
	blocks   []*blockType
	min, max int  // how many may stand there; max 0: no limit
	unique   bool // no two with the same labels
	later    bool // documented, comes in a later version
	foreign  bool // decoded elsewhere, with an agent's schema
	asked    bool // in force only where it is written
}

// option describes one argument of a block.
type option struct {
	name      string
	typ       cty.Type
	format    format
	required  bool
	byDefault string    // HCL expression; "" when absent means absent
	fallback  cty.Value // a default that is a value already, from an agent's schema; cty.NilVal: none
	defaultIs string    // the default in words, where it is not a constant
	min, max  string    // bounds of a number, duration or size, as written in HCL
	oneOf     []string
	filled    bool // a list or string may not be empty
	sensitive bool
	later     bool // documented, comes in a later version
	doc       string
}

// format narrows the strings of an option, or the elements of a list.
type format int

const (
	formatAny format = iota
	formatDuration
	formatSize
	formatPrefix
	formatDomain
	formatMailbox
	formatRegexp
	formatPath
	formatInteger
	formatListen
	formatHostPort
	formatSmartHost
	formatLMTP
	formatAddress
	formatAddressSpace
	formatUnixSocket
	formatText
)

func (b *blockType) option(name string) *option {
	for i := range b.options {
		if b.options[i].name == name {
			return &b.options[i]
		}
	}
	return nil
}

func (b *blockType) block(name string) *blockType {
	for _, nested := range b.blocks {
		if nested.name == name {
			return nested
		}
	}
	return nil
}

func (b *blockType) optionNames() []string {
	var names []string
	for _, o := range b.options {
		names = append(names, o.name)
	}
	return names
}

func (b *blockType) blockNames() []string {
	var names []string
	for _, nested := range b.blocks {
		names = append(names, nested.name)
	}
	return names
}

// node is a block as decoded: what was written, and defaults for what was not.
type node struct {
	typ      *blockType
	labels   []string
	labelsAt []hcl.Range
	at       hcl.Range // type and labels; of an absent block, where it should stand
	present  bool
	owner    string // title of the agent whose config block it is, or is in; "" for the host's own
	file     *file
	body     *hclsyntax.Body // nil when absent
	values   map[string]*value
	blocks   map[string][]*node
}

// value of an option.
type value struct {
	raw       any // string, json.Number, bool, []any or map[string]any; nil: absent
	set       bool
	bad       bool // a diagnostic was given; not to be judged further
	sensitive bool
	secrets   map[string]bool // keys of a map whose values came through sensitive()
	spread    bool            // given once for several groups of events
	at        hcl.Range       // of the expression; of a default, of the block
	nameAt    hcl.Range
	place     place
	source    string // where an effective value comes from, when neither the file nor a constant default says so
}

// label is the first label, "" without.
func (n *node) label() string {
	if len(n.labels) == 0 {
		return ""
	}
	return n.labels[0]
}

// title is the block as named in a message: receive_connector "internet".
func (n *node) title() string {
	title := n.typ.name
	for _, label := range n.labels {
		title += ` "` + label + `"`
	}
	return title
}

// labelAt is the range of the first label.
func (n *node) labelAt() hcl.Range {
	if len(n.labelsAt) > 0 {
		return n.labelsAt[0]
	}
	return n.at
}

func (n *node) value(name string) *value {
	if v := n.values[name]; v != nil {
		return v
	}
	return &value{at: n.at, nameAt: n.at, bad: true}
}

// set tells whether the option was written and is usable.
func (n *node) set(name string) bool {
	v := n.value(name)
	return v.set && !v.bad && v.raw != nil
}

func (n *node) rangeOf(name string) hcl.Range { return n.value(name).at }

// one is the nested block of a type that may stand there once. It exists even when nobody wrote it.
func (n *node) one(name string) *node {
	if found := n.blocks[name]; len(found) > 0 {
		return found[0]
	}
	return nil
}

// all nested blocks of a type.
func (n *node) all(name string) []*node { return n.blocks[name] }

func (n *node) str(name string) string {
	s, _ := n.value(name).raw.(string)
	return s
}

func (n *node) flag(name string) bool {
	b, _ := n.value(name).raw.(bool)
	return b
}

// number of an integer option; its bounds keep it in range.
func (n *node) number(name string) int64 {
	number, _ := n.value(name).raw.(json.Number)
	i, _ := number.Int64()
	return i
}

func (n *node) duration(name string) time.Duration {
	d, err := ParseDuration(n.str(name))
	if err != nil {
		return 0
	}
	return d
}

// strs is the texts of a list, with those left out that were wrong.
func (n *node) strs(name string) []string {
	items, _ := n.value(name).raw.([]any)
	var list []string
	for _, item := range items {
		if s, ok := item.(string); ok {
			list = append(list, s)
		}
	}
	return list
}

// each calls f with every text of a list and its range.
func (n *node) each(name string, f func(i int, s string, at hcl.Range)) {
	v := n.value(name)
	items, _ := v.raw.([]any)
	for i, item := range items {
		if s, ok := item.(string); ok {
			f(i, s, v.place.elem(i).at)
		}
	}
}

func (n *node) prefixes(name string) []netip.Prefix {
	var list []netip.Prefix
	for _, s := range n.strs(name) {
		if prefix, err := parsePrefix(s); err == nil {
			list = append(list, prefix)
		}
	}
	return list
}

// derive gives an option that was not written its value from elsewhere.
func (n *node) derive(name string, raw any, source string) {
	if v := n.values[name]; v != nil && !v.set {
		v.raw, v.source = raw, source
	}
}
