package config

import (
	"fmt"
	"sort"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// collectLocals gathers the locals blocks of all files and evaluates every local, used or not.
func (l *loader) collectLocals() {
	for _, f := range l.files {
		for _, block := range f.body.Blocks {
			if block.Type == "locals" {
				l.addLocals(f, block)
			}
		}
	}
	for _, name := range l.localNames() {
		l.local(l.locals[name])
	}
}

func (l *loader) addLocals(f *file, block *hclsyntax.Block) {
	for _, label := range block.LabelRanges {
		l.diags.errorf(label, "locals has no label")
	}
	for _, nested := range block.Body.Blocks {
		l.diags.errorf(nested.TypeRange, "locals holds names only: %s = { ... }", nested.Type)
	}
	for _, attr := range sortedAttributes(block.Body) {
		if first := l.locals[attr.Name]; first != nil {
			l.diags.errorf(attr.NameRange, "local %q is defined twice; first at %s", attr.Name, first.at)
			continue
		}
		l.locals[attr.Name] = &local{name: attr.Name, expr: attr.Expr, at: attr.NameRange, file: f}
	}
}

func sortedAttributes(body *hclsyntax.Body) []*hclsyntax.Attribute {
	var list []*hclsyntax.Attribute
	for _, attr := range body.Attributes {
		list = append(list, attr)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].NameRange.Start.Byte < list[j].NameRange.Start.Byte })
	return list
}

// decodeRoot reads the top level of all files as one body.
func (l *loader) decodeRoot() *node {
	root := &node{typ: topLevel(), present: true, values: map[string]*value{}, blocks: map[string][]*node{}}
	for _, f := range l.files {
		for _, attr := range sortedAttributes(f.body) {
			l.unknownOption(root.typ, attr)
		}
		for _, block := range f.body.Blocks {
			if block.Type != "locals" {
				l.decodeBlock(root, block, f)
			}
		}
	}
	l.completeBlocks(root)
	return root
}

// decodeBlock decodes one nested block into its parent.
func (l *loader) decodeBlock(parent *node, block *hclsyntax.Block, f *file) {
	typ := parent.typ.block(block.Type)
	if typ == nil {
		l.unknownBlock(parent.typ, block)
		return
	}
	if typ.later {
		l.diags.errorf(block.TypeRange, "%s is not supported yet in this version", block.Type)
		return
	}
	if !l.checkLabels(typ, block) {
		return
	}
	n := &node{typ: typ, labels: block.Labels, labelsAt: block.LabelRanges, at: header(block), present: true, file: f, body: block.Body, owner: parent.owner}
	l.decodeBody(n)
	parent.blocks[typ.name] = append(parent.blocks[typ.name], n)
}

// header is the range of a block's type and labels.
func header(block *hclsyntax.Block) hcl.Range {
	at := block.TypeRange
	if n := len(block.LabelRanges); n > 0 {
		at = hcl.RangeBetween(at, block.LabelRanges[n-1])
	}
	return at
}

func (l *loader) checkLabels(typ *blockType, block *hclsyntax.Block) bool {
	if len(block.Labels) > len(typ.labels) {
		at := block.LabelRanges[len(typ.labels)]
		if len(typ.labels) == 0 {
			l.diags.errorf(at, "%s has no label", typ.name)
		} else {
			l.diags.errorf(at, "%s has one label too many; it takes %s", typ.name, strings.Join(typ.labels, ", "))
		}
		return false
	}
	if len(block.Labels) < len(typ.labels) {
		missing := typ.labels[len(block.Labels)]
		l.diags.errorf(header(block), "%s lacks its %s; write %s \"...\" { }", typ.name, missing, typ.name)
		return false
	}
	return true
}

// decodeBody fills a node from its body: options, nested blocks, defaults.
func (l *loader) decodeBody(n *node) {
	n.values, n.blocks = map[string]*value{}, map[string][]*node{}
	if n.body != nil && !n.typ.foreign {
		l.decodeContent(n)
	}
	for i := range n.typ.options {
		if o := &n.typ.options[i]; n.values[o.name] == nil {
			n.values[o.name] = l.absent(n, o)
		}
	}
	l.completeBlocks(n)
}

func (l *loader) decodeContent(n *node) {
	for _, attr := range sortedAttributes(n.body) {
		if o := n.typ.option(attr.Name); o != nil {
			n.values[o.name] = l.decodeValue(n, o, attr)
		} else {
			l.unknownOption(n.typ, attr)
		}
	}
	for _, block := range n.body.Blocks {
		l.decodeBlock(n, block, n.file)
	}
}

// completeBlocks checks how many blocks stand there, and adds absent ones of which there may be one, for their
// defaults.
func (l *loader) completeBlocks(n *node) {
	for _, typ := range n.typ.blocks {
		found := n.blocks[typ.name]
		l.checkCount(n, typ, found)
		if typ.unique {
			l.checkUnique(found)
		}
		if len(found) == 0 && typ.max == 1 && len(typ.labels) == 0 && !typ.later {
			n.blocks[typ.name] = []*node{l.absentBlock(n, typ)}
		}
	}
}

func (l *loader) absentBlock(parent *node, typ *blockType) *node {
	n := &node{typ: typ, at: parent.at, file: parent.file}
	l.decodeBody(n)
	return n
}

func (l *loader) checkCount(parent *node, typ *blockType, found []*node) {
	if len(found) < typ.min && parent.present && !l.broken {
		l.diags.errorf(parent.at, "%s lacks a block %s", describe(parent), typ.name)
	}
	if typ.max == 0 || len(found) <= typ.max {
		return
	}
	for _, extra := range found[typ.max:] {
		if typ.max == 1 {
			l.diags.errorf(extra.at, "%s is there twice; first at %s", typ.name, found[0].at)
		} else {
			l.diags.errorf(extra.at, "there may be %d blocks %s at most", typ.max, typ.name)
		}
	}
}

func (l *loader) checkUnique(found []*node) {
	first := map[string]*node{}
	for _, n := range found {
		key := strings.Join(n.labels, "\x00")
		if n.typ.name != "agent" {
			key = strings.ToLower(key)
		}
		if before := first[key]; before != nil {
			l.diags.errorf(n.at, "%s is defined twice; first at %s", n.title(), before.at)
			continue
		}
		first[key] = n
	}
}

// describe names a block in a message.
func describe(n *node) string {
	if n.typ.name == "" {
		return "the configuration"
	}
	if n.owner != "" && n.typ.name == "config" {
		return n.title() + " of " + n.owner
	}
	return n.title()
}

func (l *loader) unknownOption(typ *blockType, attr *hclsyntax.Attribute) {
	if nested := typ.block(attr.Name); nested != nil {
		l.diags.errorf(attr.NameRange, "%s is a block; write %s { ... }", attr.Name, strings.TrimSpace(attr.Name+labelHint(nested)))
		return
	}
	near := hint(typ, attr.Name, append(typ.optionNames(), typ.blockNames()...))
	l.diags.errorf(attr.NameRange, "unsupported argument %q%s", attr.Name, near)
}

// hint says where a name belongs, or which one is near it.
func hint(typ *blockType, name string, known []string) string {
	for _, nested := range typ.blocks {
		if nested.option(name) != nil && typ.name != "" || nested.block(name) != nil {
			return fmt.Sprintf("; it belongs in %s { ... }", strings.TrimSpace(nested.name+labelHint(nested)))
		}
	}
	if typ.name == "" {
		known = append(known, "locals")
	}
	return Suggestion(name, known)
}

func labelHint(typ *blockType) string { return strings.Repeat(` "..."`, len(typ.labels)) }

func (l *loader) unknownBlock(typ *blockType, block *hclsyntax.Block) {
	if typ.option(block.Type) != nil {
		l.diags.errorf(block.TypeRange, "%s is an argument; write %s = ...", block.Type, block.Type)
		return
	}
	near := hint(typ, block.Type, append(typ.blockNames(), typ.optionNames()...))
	l.diags.errorf(block.TypeRange, "unsupported block %q%s", block.Type, near)
}

// decodeValue evaluates and checks one option.
func (l *loader) decodeValue(n *node, o *option, attr *hclsyntax.Attribute) *value {
	v := &value{set: true, at: attr.Expr.Range(), nameAt: attr.NameRange, sensitive: o.sensitive}
	v.place = place{expr: attr.Expr, at: v.at, locals: l.locals}
	if o.sensitive {
		l.diags.noteSecret(attr.Expr)
	}
	if o.later {
		l.diags.errorf(attr.NameRange, "%s is not supported yet in this version", o.name)
		v.bad = true
		return v
	}
	result, ok := l.evaluate(attr.Expr, n.file)
	if !ok {
		v.bad = true
		return v
	}
	result, marks := result.UnmarkDeepWithPaths()
	v.markSecrets(marks)
	if result.IsNull() { // as if it were not there
		absent := l.absent(n, o)
		absent.at, absent.nameAt = v.at, v.nameAt
		return absent
	}
	c := &converter{diags: l.diags, name: o.name, option: o, dir: n.file.dir, secret: v.sensitive}
	raw, good := c.convert(result, o.typ, v.place)
	v.raw, v.bad = raw, !good
	return v
}

// markSecrets notes what came through sensitive(): single keys of a map, or the whole value.
func (v *value) markSecrets(marks []cty.PathValueMarks) {
	for _, one := range marks {
		key, named := firstKey(one.Path)
		if !named {
			v.sensitive = true
			continue
		}
		if v.secrets == nil {
			v.secrets = map[string]bool{}
		}
		v.secrets[key] = true
	}
}

func firstKey(path cty.Path) (string, bool) {
	if len(path) == 0 {
		return "", false
	}
	switch step := path[0].(type) {
	case cty.GetAttrStep:
		return step.Name, true
	case cty.IndexStep:
		if step.Key.Type() == cty.String {
			return step.Key.AsString(), true
		}
	}
	return "", false
}

// absent is the value of an option that was not written.
func (l *loader) absent(n *node, o *option) *value {
	v := &value{at: n.at, nameAt: n.at, sensitive: o.sensitive, place: place{at: n.at}}
	switch {
	case o.required && n.present:
		v.bad = true
		if !l.broken {
			l.diags.errorf(n.at, "%s lacks the argument %s", describe(n), o.name)
		}
	case o.byDefault != "" || o.fallback != cty.NilVal:
		v.raw, v.bad = l.defaultOf(n, o)
	}
	return v
}

// defaultOf evaluates a default. The tables of this package hold only defaults that fit, which a test shows.
func (l *loader) defaultOf(n *node, o *option) (raw any, bad bool) {
	v := o.fallback
	if v == cty.NilVal {
		expr, found := hclsyntax.ParseExpression([]byte(o.byDefault), "default", hcl.InitialPos)
		if found.HasErrors() {
			return nil, true
		}
		if v, found = expr.Value(nil); found.HasErrors() {
			return nil, true
		}
	}
	c := &converter{diags: l.diags, name: "the default of " + o.name, option: o, dir: l.dir(n)}
	raw, good := c.convert(v, o.typ, place{at: n.at})
	return raw, !good
}

// dir that relative paths of a block are relative to.
func (l *loader) dir(n *node) string {
	if n.file != nil {
		return n.file.dir
	}
	if len(l.files) > 0 {
		return l.files[0].dir
	}
	return ""
}

// Types of options, in the words of the tables.
var (
	stringType  = cty.String
	numberType  = cty.Number
	boolType    = cty.Bool
	stringsType = cty.List(cty.String)
)

func stringMap() cty.Type { return cty.Map(cty.String) }

// typeName is a type for the documentation.
func typeName(o *option) string {
	name := strings.TrimPrefix(strings.TrimPrefix(article(o.typ), "a "), "an ")
	if o.typ == cty.Bool {
		name = "bool"
	}
	words := map[format]string{
		formatDuration: "duration", formatSize: "size", formatPrefix: "prefix", formatDomain: "domain",
		formatMailbox: "address", formatPath: "path", formatListen: "ip:port", formatHostPort: "host:port",
		formatSmartHost: "host[:port]", formatAddress: "IP address", formatAddressSpace: "address space",
		formatRegexp: "regular expression", formatUnixSocket: "unix:path", formatInteger: "integer", formatLMTP: "unix:path or host:port",
	}
	word, special := words[o.format]
	switch {
	case !special:
		return name
	case o.typ.IsPrimitiveType():
		return word
	}
	return fmt.Sprintf("list of %s", word)
}
