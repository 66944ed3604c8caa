package config

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/zclconf/go-cty/cty"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/posternmail/postern/sdk/agentpb"
)

// maxAsked bounds how many agents are asked at once: each is a process that starts.
const maxAsked = 4

// configureAgents decodes the config blocks with the schemas that the agents describe, and has the agents check what
// only they can judge.
func (l *loader) configureAgents(agents []*agentNode) {
	if l.opts.Describe == nil {
		return
	}
	if l.opts.Known != nil {
		l.opts.Known(l.config)
	}
	var ready []*agentNode
	for _, a := range agents {
		wanted := a.agent.Config == nil && (l.opts.Only == "" || l.opts.Only == a.agent.Name)
		if wanted && a.agent.Enabled && (a.agent.Attach != "" || len(a.agent.Command) > 0) {
			ready = append(ready, a)
		}
	}
	schemas := l.describeAll(ready)
	var valid []*agentNode
	for i, a := range ready {
		if schemas[i] != nil && l.decodeConfig(a, schemas[i]) && !a.mute {
			valid = append(valid, a)
		}
	}
	if l.opts.Validate != nil {
		l.validateAll(valid)
	}
}

// answer of a program that was asked for its manifest.
type answer struct {
	manifest *agentpb.DescribeResponse
	err      error
}

// describeAll asks each program once for its manifest, several at a time.
func (l *loader) describeAll(agents []*agentNode) []*agentpb.DescribeResponse {
	first := map[string]int{}
	for i, a := range agents {
		if _, known := first[program(a.agent)]; !known {
			first[program(a.agent)] = i
		}
	}
	answers := make([]answer, len(agents))
	each(len(agents), func(i int) {
		if a := agents[i].agent; first[program(a)] == i && l.missing[a.Name] == nil {
			answers[i].manifest, answers[i].err = l.describe(a)
		}
	})
	manifests := make([]*agentpb.DescribeResponse, len(agents))
	for i, a := range agents {
		manifests[i] = l.manifest(a, answers[first[program(a.agent)]])
	}
	return manifests
}

// manifest of an agent: what its program has answered, or what is known from before where it cannot; nil for none.
func (l *loader) manifest(a *agentNode, given answer) *agentpb.DescribeResponse {
	known := l.missing[a.agent.Name]
	if known == nil && given.err != nil {
		known = l.recall(a.agent)
		l.unable(a.node.at, fmt.Sprintf("%s cannot be asked for its options: %v", a.node.title(), given.err), known != nil)
	}
	if known == nil {
		return given.manifest
	}
	a.mute = true
	return known.Manifest
}

// program identifies what is run: two agent blocks may use the same.
func program(a Agent) string { return strings.Join(append([]string{a.Attach}, a.Command...), "\x00") }

func (l *loader) describe(a Agent) (*agentpb.DescribeResponse, error) {
	ctx, cancel := context.WithTimeout(l.opts.Context, a.StartTimeout)
	defer cancel()
	manifest, err := l.opts.Describe(ctx, a)
	if err == nil && manifest == nil {
		err = errors.New("no answer")
	}
	return manifest, err
}

// each calls f for 0 to n-1, maxAsked at a time.
func each(n int, f func(i int)) {
	var wait sync.WaitGroup
	slots := make(chan struct{}, maxAsked)
	for i := range n {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	wait.Wait()
}

// decodeConfig decodes one config block. A missing one is an empty one.
func (l *loader) decodeConfig(a *agentNode, manifest *agentpb.DescribeResponse) bool {
	typ, err := schemaBlock("config", nil, manifest.GetSchema().GetRoot(), 0)
	if err != nil {
		l.diags.errorf(a.node.at, "%s describes its options in a way the host does not understand: %v", a.node.title(), err)
		return false
	}
	typ.max = 1
	written := a.node.one("config")
	n := &node{typ: typ, at: written.at, present: true, owner: a.node.title(), file: a.node.file, body: written.body}
	errors, _ := l.diags.Count()
	l.decodeBody(n)
	a.node.blocks["config"] = []*node{n}
	if after, _ := l.diags.Count(); after > errors {
		return false
	}
	a.agent.Sandbox.Named = n.paths()
	a.agent.Config, err = json.Marshal(n.data())
	if err != nil {
		l.diags.errorf(n.at, "the configuration of %s cannot be written as JSON: %v", a.node.title(), err)
	}
	return err == nil
}

// data is a block as the agent gets it: arguments and labels by name, nested blocks as lists, or as one object where
// only one may stand. What is absent and has no default is left out.
func (n *node) data() map[string]any {
	object := map[string]any{}
	for name, v := range n.values {
		if v.raw != nil {
			object[name] = v.raw
		}
	}
	for i, name := range n.typ.labels {
		object[name] = n.labels[i]
	}
	for _, typ := range n.typ.blocks {
		if blocks := presentBlocks(n.blocks[typ.name]); typ.max != 1 {
			object[typ.name] = blocks
		} else if len(blocks) == 1 {
			object[typ.name] = blocks[0]
		}
	}
	return object
}

func presentBlocks(nodes []*node) []any {
	list := []any{}
	for _, n := range nodes {
		if n.present {
			list = append(list, n.data())
		}
	}
	return list
}

// maxSchemaDepth bounds the nesting that an agent may describe.
const maxSchemaDepth = 16

// schemaBlock makes the table of a block from an agent's schema.
func schemaBlock(name string, labels []string, b *agentpb.SchemaBlock, depth int) (*blockType, error) {
	if depth > maxSchemaDepth {
		return nil, fmt.Errorf("block %s is nested too deeply", name)
	}
	typ := &blockType{name: name, labels: labels, doc: b.GetDoc()}
	taken := slices.Clone(labels)
	for _, attr := range b.GetAttributes() {
		o, err := schemaOption(attr)
		if err != nil {
			return nil, fmt.Errorf("argument %s of %s: %w", attr.GetName(), name, err)
		}
		typ.options, taken = append(typ.options, o), append(taken, o.name)
	}
	for _, nested := range b.GetBlocks() {
		inner, err := schemaBlock(nested.GetName(), nested.GetLabelNames(), nested.GetBlock(), depth+1)
		if err != nil {
			return nil, err
		}
		inner.min, inner.max = int(nested.GetMin()), int(nested.GetMax())
		typ.blocks, taken = append(typ.blocks, inner), append(taken, inner.name)
	}
	return typ, checkNames(name, taken)
}

// checkNames wants the keys of the JSON object to be HCL names and to differ.
func checkNames(block string, names []string) error {
	seen := map[string]bool{}
	for _, name := range names {
		if !environmentName.MatchString(name) {
			return fmt.Errorf("%.100q in %s is no name", name, block)
		}
		if seen[name] {
			return fmt.Errorf("%s has %s twice", block, name)
		}
		seen[name] = true
	}
	return nil
}

func schemaOption(attr *agentpb.SchemaAttribute) (option, error) {
	o := option{
		name: attr.GetName(), required: attr.GetRequired(), sensitive: attr.GetSensitive(), doc: attr.GetDoc(),
		min: attr.GetMin(), max: attr.GetMax(), oneOf: attr.GetOneOf(), format: schemaFormat(attr.GetFormat()),
	}
	typ, err := ctyjson.UnmarshalType([]byte(attr.GetType()))
	if err != nil {
		return o, fmt.Errorf("%.100q is no type", attr.GetType())
	}
	o.typ = asWritten(typ, o.format)
	if attr.GetDefaultJson() == "" {
		return o, nil
	}
	o.fallback, err = ctyjson.Unmarshal([]byte(attr.GetDefaultJson()), o.typ)
	if err != nil {
		return o, fmt.Errorf("default %s: %w", attr.GetDefaultJson(), err)
	}
	return o, nil
}

// asWritten is the type in HCL: a size is written as a text even if the agent thinks of it as a number.
func asWritten(typ cty.Type, f format) cty.Type {
	if f != formatSize {
		return typ
	}
	switch {
	case typ == cty.Number:
		return cty.String
	case typ.IsListType() && typ.ElementType() == cty.Number:
		return cty.List(cty.String)
	}
	return typ
}

// schemaFormat leaves formats of a later protocol to the agent.
func schemaFormat(f agentpb.Format) format {
	switch f {
	case agentpb.Format_FORMAT_DURATION:
		return formatDuration
	case agentpb.Format_FORMAT_SIZE:
		return formatSize
	case agentpb.Format_FORMAT_PREFIX:
		return formatPrefix
	case agentpb.Format_FORMAT_DOMAIN:
		return formatDomain
	case agentpb.Format_FORMAT_MAILBOX:
		return formatMailbox
	case agentpb.Format_FORMAT_REGEXP:
		return formatRegexp
	case agentpb.Format_FORMAT_PATH:
		return formatPath
	case agentpb.Format_FORMAT_INTEGER:
		return formatInteger
	}
	return formatAny
}

// validateAll has the agents check their configurations, several at a time.
func (l *loader) validateAll(agents []*agentNode) {
	found := make([][]*agentpb.Diagnostic, len(agents))
	failed := make([]error, len(agents))
	each(len(agents), func(i int) {
		ctx, cancel := context.WithTimeout(l.opts.Context, agents[i].agent.StartTimeout)
		defer cancel()
		found[i], failed[i] = l.opts.Validate(ctx, agents[i].agent, agents[i].agent.Config)
	})
	for i, a := range agents {
		if failed[i] != nil {
			l.unable(a.node.at, fmt.Sprintf("%s cannot check its configuration: %v", a.node.title(), failed[i]), l.recall(a.agent) != nil)
		}
		for _, one := range found[i] {
			l.report(a, one)
		}
	}
}

// report files a diagnostic of an agent's at the place its path leads to.
func (l *loader) report(a *agentNode, one *agentpb.Diagnostic) {
	severity := SeverityError
	if one.GetSeverity() == agentpb.Severity_SEVERITY_WARNING {
		severity = SeverityWarning
	}
	at := locate(a.node.one("config"), one.GetPath())
	summary := printable(strings.Join(strings.Fields(one.GetSummary()), " "))
	if summary == "" {
		summary = "the configuration is not accepted"
	}
	if at.note != "" {
		summary += " (" + at.note + ")"
	}
	l.diags.add(severity, at.at, fmt.Sprintf("agent %s: %s", a.agent.Name, summary), one.GetDetail())
}

// locate follows a path into a block as far as it leads; what was not written is shown at its block.
func locate(n *node, path []*agentpb.PathStep) place {
	if len(path) == 0 {
		return place{at: n.at}
	}
	name := path[0].GetName()
	if i := slices.Index(n.typ.labels, name); i >= 0 && i < len(n.labelsAt) {
		return place{at: n.labelsAt[i]}
	}
	if v := n.values[name]; v != nil {
		if !v.set {
			return place{at: n.at}
		}
		return locateValue(v.place, path[1:])
	}
	return locateBlock(n, n.blocks[name], path[1:])
}

func locateValue(p place, path []*agentpb.PathStep) place {
	for _, step := range path {
		switch s := step.GetStep().(type) {
		case *agentpb.PathStep_Index:
			p = p.elem(int(s.Index))
		case *agentpb.PathStep_Key:
			p = p.key(s.Key)
		case *agentpb.PathStep_Name:
			p = p.key(s.Name)
		}
	}
	return p
}

// locateBlock goes on in a nested block: the one of the index that follows its name, otherwise the first.
func locateBlock(parent *node, found []*node, path []*agentpb.PathStep) place {
	i := 0
	if len(path) > 0 {
		if s, ok := path[0].GetStep().(*agentpb.PathStep_Index); ok {
			i, path = int(s.Index), path[1:]
		}
	}
	if i >= len(found) || !found[i].present {
		return place{at: parent.at}
	}
	return locate(found[i], path)
}
