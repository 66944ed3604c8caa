package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Difference between two configurations: one block.
type Difference struct {
	Type   string   // "agent"
	Labels []string // "antivirus"
	Change string   // "added", "removed" or "changed"
	What   []string // changed arguments, those of nested blocks with their path: "limits.max_recipients"
	Source string   // where the block stands, of a removed one where it stood: "config.hcl:12"
}

// Title is the block as named in a message: receive_connector "internet".
func (d *Difference) Title() string {
	title := d.Type
	for _, label := range d.Labels {
		title += fmt.Sprintf(" %q", label)
	}
	return title
}

// Compare lists the blocks that differ, in the order of the reference; removed ones follow those of their type.
func Compare(before, after *Config) (list []Difference) {
	if before.tree == nil || after.tree == nil {
		return nil
	}
	for _, typ := range after.tree.typ.blocks {
		if typ.name == "agent_defaults" {
			continue // it shows in each agent
		}
		list = append(list, compareBlocks(before.tree.blocks[typ.name], after.tree.blocks[typ.name])...)
	}
	return list
}

func compareBlocks(before, after []*node) (list []Difference) {
	for _, n := range after {
		switch was := sameLabels(before, n); {
		case was == nil && n.present:
			list = append(list, difference(n, "added", nil))
		case was != nil:
			if what := compareNodes(was, n, ""); len(what) > 0 {
				list = append(list, difference(n, "changed", what))
			}
		}
	}
	for _, n := range before {
		if n.present && sameLabels(after, n) == nil {
			list = append(list, difference(n, "removed", nil))
		}
	}
	return list
}

func difference(n *node, change string, what []string) Difference {
	d := Difference{Type: n.typ.name, Labels: n.labels, Change: change, What: what, Source: sourceDefault}
	if n.present && n.at.Filename != "" {
		d.Source = short(n.at)
	}
	return d
}

func sameLabels(nodes []*node, n *node) *node {
	for _, other := range nodes {
		if slices.Equal(other.labels, n.labels) {
			return other
		}
	}
	return nil
}

// compareNodes names the arguments in which two blocks differ.
func compareNodes(before, after *node, path string) (what []string) {
	for i := range after.typ.options {
		name := after.typ.options[i].name
		if !reflect.DeepEqual(rawOf(before, name), rawOf(after, name)) {
			what = append(what, path+name)
		}
	}
	for _, typ := range after.typ.blocks {
		a, b := before.blocks[typ.name], after.blocks[typ.name]
		if len(a) != len(b) {
			what = append(what, path+typ.name)
			continue
		}
		for i := range b {
			if a[i].present != b[i].present || !slices.Equal(a[i].labels, b[i].labels) {
				what = append(what, path+strings.Join(append([]string{typ.name}, b[i].labels...), " "))
				continue
			}
			what = append(what, compareNodes(a[i], b[i], path+strings.Join(append([]string{typ.name}, b[i].labels...), " ")+".")...)
		}
	}
	return what
}

func rawOf(n *node, name string) any {
	if v := n.values[name]; v != nil {
		return v.raw
	}
	return nil
}
