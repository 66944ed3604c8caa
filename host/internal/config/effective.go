package config

import (
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Effective is every value in force, block by block.
type Effective []EffectiveBlock

// EffectiveBlock is one block; also one that nobody wrote and that holds defaults.
type EffectiveBlock struct {
	Type   string           `json:"type"`
	Labels []string         `json:"labels,omitempty"`
	Source string           `json:"source"` // "config.hcl:12" or "default"
	Values []EffectiveValue `json:"values,omitempty"`
	Blocks []EffectiveBlock `json:"blocks,omitempty"`
}

// EffectiveValue is one value in HCL notation, or in words and parentheses where there is none: "(all)".
type EffectiveValue struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Source string `json:"source"` // "config.hcl:12", "default", or what it was derived from
}

const sourceDefault = "default"

// hidden stands for a secret.
const hidden = "(sensitive)"

// Effective returns every value in force with its source. Secrets are hidden.
func (c *Config) Effective() Effective {
	if c.tree == nil {
		return nil
	}
	return effectiveBlock(c.tree).Blocks
}

func effectiveBlock(n *node) EffectiveBlock {
	block := EffectiveBlock{Type: n.typ.name, Labels: n.labels, Source: sourceDefault}
	if n.present && n.at.Filename != "" {
		block.Source = short(n.at)
	}
	for i := range n.typ.options {
		o := &n.typ.options[i]
		if n.typ.block(o.name) != nil {
			continue // timeout and on_failure are shown by group
		}
		if value, ok := effectiveValue(o, n.values[o.name]); ok {
			block.Values = append(block.Values, value)
		}
	}
	for _, typ := range n.typ.blocks {
		if typ.name == "agent_defaults" {
			continue // shown in each agent
		}
		for _, nested := range n.blocks[typ.name] {
			shown := effectiveBlock(nested)
			if nested.present || !n.foreign() && !typ.asked && len(shown.Values) > 0 {
				block.Blocks = append(block.Blocks, shown)
			}
		}
	}
	return block
}

// foreign tells an agent's own block. Of such, an absent nested block is not in force: the agent gets none.
func (n *node) foreign() bool { return n.owner != "" }

func effectiveValue(o *option, v *value) (EffectiveValue, bool) {
	if v == nil {
		return EffectiveValue{}, false
	}
	shown := EffectiveValue{Name: o.name, Source: sourceDefault}
	switch {
	case v.source != "":
		shown.Source = v.source
	case v.set:
		shown.Source = short(v.at)
	}
	switch empty := isEmpty(v.raw); {
	case empty && o.defaultIs != "" && !v.set:
		shown.Value = "(" + strings.ReplaceAll(o.defaultIs, "`", "") + ")"
	case v.raw == nil:
		return shown, false
	case v.sensitive:
		shown.Value = hidden
	case o.format == formatSize:
		shown.Value = sizeNotation(v.raw)
	case o.format == formatDuration:
		shown.Value = durationNotation(v.raw)
	default:
		shown.Value = notation(v.raw, v.secrets)
	}
	return shown, true
}

func isEmpty(raw any) bool {
	list, ok := raw.([]any)
	return raw == nil || ok && len(list) == 0
}

// notation writes data as HCL. Values under secret keys are hidden.
func notation(raw any, secrets map[string]bool) string {
	switch v := raw.(type) {
	case string:
		return strconv.Quote(v)
	case []any:
		items := make([]string, len(v))
		for i, item := range v {
			items[i] = notation(item, nil)
		}
		return "[" + strings.Join(items, ", ") + "]"
	case map[string]any:
		return mapNotation(v, secrets)
	}
	return fmt.Sprint(raw)
}

func mapNotation(object map[string]any, secrets map[string]bool) string {
	if len(object) == 0 {
		return "{}"
	}
	var items []string
	for key, item := range object {
		text := notation(item, nil)
		if secrets[key] {
			text = hidden
		}
		items = append(items, key+" = "+text)
	}
	sort.Strings(items)
	return "{ " + strings.Join(items, ", ") + " }"
}

// sizeNotation writes bytes in the largest unit that fits without a fraction.
func sizeNotation(raw any) string {
	number, ok := raw.(json.Number)
	if !ok {
		return notation(raw, nil)
	}
	n, err := number.Int64()
	if err != nil {
		return number.String()
	}
	unit := ""
	for _, next := range []string{"KB", "MB", "GB", "TB"} {
		if n == 0 || n%1024 != 0 {
			break
		}
		n, unit = n/1024, " "+next
	}
	return fmt.Sprintf(`"%d%s"`, n, unit)
}

// durationNotation writes a duration in days where it has them.
func durationNotation(raw any) string {
	text, _ := raw.(string)
	d, err := ParseDuration(text)
	if err != nil || d < 24*time.Hour {
		return notation(raw, nil)
	}
	return strconv.Quote(FormatDuration(d))
}

// Print writes the blocks as HCL with the source of each value as a comment.
func (e Effective) Print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i, block := range e {
		if i > 0 {
			fmt.Fprintln(table)
		}
		block.print(table, "")
	}
	return table.Flush()
}

func (b EffectiveBlock) print(w io.Writer, indent string) {
	head := b.Type
	for _, label := range b.Labels {
		head += " " + strconv.Quote(label)
	}
	fmt.Fprintf(w, "%s%s {\t# %s\n", indent, head, b.Source)
	for _, v := range b.Values {
		fmt.Fprintf(w, "%s  %s = %s\t# %s\n", indent, v.Name, v.Value, v.Source)
	}
	for _, nested := range b.Blocks {
		nested.print(w, indent+"  ")
	}
	fmt.Fprintf(w, "%s}\n", indent)
}
