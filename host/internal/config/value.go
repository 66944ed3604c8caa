package config

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// place is where a value, or a part of it, was written.
type place struct {
	expr   hclsyntax.Expression // nil: not in the source in its own right
	at     hcl.Range
	note   string // which element is meant when at cannot show it
	locals map[string]*local
}

// elem is the place of element i of a list.
func (p place) elem(i int) place {
	expr := p.resolve()
	if list, ok := expr.(*hclsyntax.TupleConsExpr); ok && i < len(list.Exprs) {
		return place{expr: list.Exprs[i], at: list.Exprs[i].Range(), locals: p.locals}
	}
	return place{at: p.at, note: joinNotes(p.note, fmt.Sprintf("element %d", i+1))}
}

// key is the place of the value under a key of a map or object.
func (p place) key(key string) place {
	if object, ok := p.resolve().(*hclsyntax.ObjectConsExpr); ok {
		for _, item := range object.Items {
			name, diags := item.KeyExpr.Value(nil)
			if !diags.HasErrors() && name.Type() == cty.String && name.IsKnown() && !name.IsNull() && name.AsString() == key {
				return place{expr: item.ValueExpr, at: item.ValueExpr.Range(), locals: p.locals}
			}
		}
	}
	return place{at: p.at, note: joinNotes(p.note, fmt.Sprintf("key %q", key))}
}

// keyName is the place of a key itself.
func (p place) keyName(key string) hcl.Range {
	if object, ok := p.resolve().(*hclsyntax.ObjectConsExpr); ok {
		for _, item := range object.Items {
			name, diags := item.KeyExpr.Value(nil)
			if !diags.HasErrors() && name.Type() == cty.String && name.IsKnown() && !name.IsNull() && name.AsString() == key {
				return item.KeyExpr.Range()
			}
		}
	}
	return p.at
}

// resolve looks through parentheses and through `local.name`, so that a wrong element is shown where it stands.
func (p place) resolve() hclsyntax.Expression {
	expr := p.expr
	for range 100 {
		switch e := expr.(type) {
		case *hclsyntax.ParenthesesExpr:
			expr = e.Expression
		case *hclsyntax.ScopeTraversalExpr:
			target := p.locals[localName(e.Traversal)]
			if target == nil || len(e.Traversal) != 2 {
				return expr
			}
			expr = target.expr
		default:
			return expr
		}
	}
	return nil
}

func joinNotes(a, b string) string {
	if a == "" {
		return b
	}
	return a + ", " + b
}

// converter turns an evaluated expression into plain data of the option's type: string, json.Number, bool, []any,
// map[string]any. It is strict where HCL would convert in silence: 53 is no string.
type converter struct {
	diags  *Diagnostics
	name   string // of the option, for messages
	option *option
	dir    string // that relative paths are relative to
	secret bool
}

func (c *converter) fail(p place, format string, args ...any) (any, bool) {
	text := fmt.Sprintf(format, args...)
	if p.note != "" {
		text += " (" + p.note + ")"
	}
	c.diags.errorf(p.at, "%s", text)
	return nil, false
}

// convert returns the data and whether all of it was right.
func (c *converter) convert(v cty.Value, want cty.Type, p place) (any, bool) {
	if !v.IsKnown() {
		return nil, false // what made it unknown was reported
	}
	if v.IsNull() {
		return c.fail(p, "%s may not hold null", c.name)
	}
	switch {
	case want == cty.DynamicPseudoType:
		return c.convert(v, v.Type(), p)
	case want.IsPrimitiveType():
		return c.primitive(v, want, p)
	case want.IsListType(), want.IsSetType():
		return c.list(v, want.ElementType(), p)
	case want.IsMapType():
		return c.mapping(v, want.ElementType(), p)
	case want.IsObjectType():
		return c.object(v, want, p)
	case want.IsTupleType():
		return c.tuple(v, want, p)
	}
	return c.fail(p, "%s has a type the host does not know", c.name)
}

func (c *converter) primitive(v cty.Value, want cty.Type, p place) (any, bool) {
	if v.Type() == cty.Number && c.option.format == formatSize {
		v = c.bytes(v)
	}
	if v.Type() != want {
		converted, ok := fromText(v, want, p)
		if !ok {
			return c.fail(p, "%s needs %s, not %s%s", c.name, article(want), article(v.Type()), c.cure(v, want))
		}
		v = converted
	}
	switch want {
	case cty.Bool:
		return v.True(), true
	case cty.Number:
		return c.number(v, p)
	}
	return c.text(v.AsString(), p)
}

// bytes lets a plain number stand for a size in bytes.
func (c *converter) bytes(v cty.Value) cty.Value {
	if text, err := convert.Convert(v, cty.String); err == nil {
		return text
	}
	return v
}

// fromText lets the text of env() and file() stand for a number or truth value. What is written in quotes in
// the configuration itself is taken as meant: a string.
func fromText(v cty.Value, want cty.Type, p place) (cty.Value, bool) {
	if v.Type() != cty.String || want == cty.String {
		return v, false
	}
	if _, literal := p.resolve().(*hclsyntax.TemplateExpr); literal {
		return v, false
	}
	converted, err := convert.Convert(cty.StringVal(strings.TrimSpace(v.AsString())), want)
	return converted, err == nil
}

func (c *converter) cure(v cty.Value, want cty.Type) string {
	switch {
	case want == cty.String && v.Type() == cty.Number:
		text, err := convert.Convert(v, cty.String)
		if err != nil {
			return ""
		}
		if c.option.format == formatDuration {
			n := text.AsString()
			return fmt.Sprintf("; write it with its unit: %q, %q, %q or %q", n+"s", n+"m", n+"h", n+"d")
		}
		return fmt.Sprintf("; write %q", text.AsString())
	case (want == cty.Number || want == cty.Bool) && v.Type() == cty.String:
		if _, err := convert.Convert(v, want); err == nil {
			return "; leave out the quotes"
		}
	}
	return ""
}

func article(t cty.Type) string {
	switch {
	case t == cty.String:
		return "a string"
	case t == cty.Number:
		return "a number"
	case t == cty.Bool:
		return "true or false"
	case t.IsListType(), t.IsSetType():
		if t.ElementType() == cty.DynamicPseudoType {
			return "a list"
		}
		return "a list of " + plural(t.ElementType())
	case t.IsTupleType():
		return "a list"
	case t.IsMapType():
		return "a map of " + plural(t.ElementType())
	case t.IsObjectType():
		return "an object"
	}
	return t.FriendlyName()
}

func plural(t cty.Type) string {
	switch t {
	case cty.String:
		return "strings"
	case cty.Number:
		return "numbers"
	case cty.Bool:
		return "truth values"
	}
	return "values"
}

func (c *converter) number(v cty.Value, p place) (any, bool) {
	f := v.AsBigFloat()
	if c.option.format == formatInteger && !f.IsInt() {
		return c.fail(p, "%s needs a number without a fraction", c.name)
	}
	if f.IsInf() || f.MantExp(nil) > 256 || f.MantExp(nil) < -256 {
		return c.fail(p, "%s is out of any range", c.name)
	}
	if text := c.outOfBounds(func(bound string) (int, error) { return compareNumber(f, bound) }); text != "" {
		return c.fail(p, "%s must be %s", c.name, text)
	}
	number := json.Number(f.Text('f', -1))
	if !c.allowed(number.String()) {
		return c.fail(p, "%s must be one of %s", c.name, strings.Join(c.option.oneOf, ", "))
	}
	return number, true
}

func (c *converter) text(s string, p place) (any, bool) {
	if !c.allowed(s) {
		return c.fail(p, "%s may not be %s%s", c.name, c.quoted(s), c.choices(s))
	}
	if s == "" && c.option.filled {
		return c.fail(p, "%s may not be empty", c.name)
	}
	data, err := c.parse(s)
	if err != nil {
		return c.fail(p, "%s: %s is not %s: %v", c.name, c.quoted(s), formatName(c.option.format), err)
	}
	if text := c.outOfBounds(func(bound string) (int, error) { return c.compareText(s, bound) }); text != "" {
		return c.fail(p, "%s must be %s", c.name, text)
	}
	return data, true
}

// quoted shows a value in a message, unless it is secret.
func (c *converter) quoted(s string) string {
	if c.secret {
		return "this value"
	}
	if len(s) > 80 {
		s = s[:80] + "..."
	}
	return fmt.Sprintf("%q", s)
}

func (c *converter) allowed(s string) bool {
	if len(c.option.oneOf) == 0 {
		return true
	}
	for _, one := range c.option.oneOf {
		if one == s {
			return true
		}
	}
	return false
}

// choices offers the nearest allowed value, or lists all.
func (c *converter) choices(s string) string {
	if near := Suggestion(s, c.option.oneOf); near != "" && !c.secret {
		return near
	}
	quoted := make([]string, len(c.option.oneOf))
	for i, one := range c.option.oneOf {
		quoted[i] = fmt.Sprintf("%q", one)
	}
	return "; use " + alternatives(quoted)
}

// alternatives is `a, b or c`.
func alternatives(list []string) string {
	if len(list) < 2 {
		return strings.Join(list, "")
	}
	return strings.Join(list[:len(list)-1], ", ") + " or " + list[len(list)-1]
}

func (c *converter) list(v cty.Value, element cty.Type, p place) (any, bool) {
	if !v.Type().IsTupleType() && !v.Type().IsListType() && !v.Type().IsSetType() {
		text, _ := c.fail(p, "%s needs %s, not %s; write it in [ ]", c.name, article(cty.List(element)), article(v.Type()))
		return text, false
	}
	list, good := []any{}, true
	for i, it := 0, v.ElementIterator(); it.Next(); i++ {
		_, item := it.Element()
		data, ok := c.convert(item, element, p.elem(i))
		list, good = append(list, data), good && ok
	}
	if len(list) == 0 && c.option.filled {
		return c.fail(p, "%s may not be empty", c.name)
	}
	return list, good
}

func (c *converter) mapping(v cty.Value, element cty.Type, p place) (any, bool) {
	if !v.Type().IsObjectType() && !v.Type().IsMapType() {
		return c.fail(p, "%s needs %s, not %s; write { key = value }", c.name, article(cty.Map(element)), article(v.Type()))
	}
	object, good := map[string]any{}, true
	for it := v.ElementIterator(); it.Next(); {
		key, item := it.Element()
		data, ok := c.convert(item, element, p.key(key.AsString()))
		object[key.AsString()], good = data, good && ok
	}
	return object, good
}

func (c *converter) object(v cty.Value, want cty.Type, p place) (any, bool) {
	if !v.Type().IsObjectType() && !v.Type().IsMapType() {
		return c.fail(p, "%s needs an object, not %s", c.name, article(v.Type()))
	}
	object, good := map[string]any{}, true
	for it := v.ElementIterator(); it.Next(); {
		key, item := it.Element()
		name := key.AsString()
		if !want.HasAttribute(name) {
			c.fail(place{at: p.keyName(name)}, "%s has no %q%s", c.name, name, Suggestion(name, attributeNames(want)))
			good = false
			continue
		}
		data, ok := c.convert(item, want.AttributeType(name), p.key(name))
		object[name], good = data, good && ok
	}
	for _, name := range attributeNames(want) {
		if _, given := object[name]; !given && !want.AttributeOptional(name) && good {
			return c.fail(p, "%s lacks %q", c.name, name)
		}
	}
	return object, good
}

func attributeNames(t cty.Type) []string {
	var names []string
	for name := range t.AttributeTypes() {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func (c *converter) tuple(v cty.Value, want cty.Type, p place) (any, bool) {
	isList := v.Type().IsTupleType() || v.Type().IsListType()
	if !isList || v.LengthInt() != want.Length() {
		return c.fail(p, "%s needs a list of exactly %d values", c.name, want.Length())
	}
	list, good := []any{}, true
	for i, it := 0, v.ElementIterator(); it.Next(); i++ {
		_, item := it.Element()
		data, ok := c.convert(item, want.TupleElementType(i), p.elem(i))
		list, good = append(list, data), good && ok
	}
	return list, good
}
