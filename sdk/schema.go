package sdk

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// The configuration of an agent is a struct. Its fields are attributes and blocks of the `config` block:
//
//	hcl:"name"            an attribute that must be there
//	hcl:"name,optional"   an attribute that may be left out; then it has its default, or the zero value
//	hcl:"name,block"      a nested block: a struct must be there once, a pointer may be, a slice any number
//	hcl:"name,label"      a label of the block
//
// with the tags default, min, max (numbers, durations and sizes), one_of (words separated by spaces), doc,
// example, sensitive:"true" and, for strings, format: "domain" or "path". Types are string, bool, numbers,
// time.Duration, Size, netip.Addr, netip.Prefix, *regexp.Regexp, address.Mailbox, any encoding.TextUnmarshaler,
// and slices, maps with string keys and pointers of them. A pointer is nil where the attribute is left out.

// field of a configuration struct.
type field struct {
	name  string
	kind  fieldKind
	index []int
	typ   reflect.Type
	tag   reflect.StructTag
}

type fieldKind uint8

const (
	required fieldKind = iota
	optional
	block
	label
)

// fieldKinds by what stands behind the comma.
var fieldKinds = map[string]fieldKind{"": required, "attr": required, "optional": optional, "block": block, "label": label}

// fieldsOf a struct, those of embedded structs without a tag included.
func fieldsOf(t reflect.Type) ([]field, error) {
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("%s is no struct", t)
	}
	var all []field
	for i := range t.NumField() {
		f := t.Field(i)
		tag, tagged := f.Tag.Lookup("hcl")
		switch {
		case !tagged && f.Anonymous && f.Type.Kind() == reflect.Struct:
			inner, err := fieldsOf(f.Type)
			if err != nil {
				return nil, err
			}
			for _, g := range inner {
				g.index = append([]int{i}, g.index...)
				all = append(all, g)
			}
			continue
		case !tagged:
			continue
		case !f.IsExported():
			return nil, fmt.Errorf("field %s of %s has a tag but is not exported", f.Name, t)
		}
		name, kindName, _ := strings.Cut(tag, ",")
		kind, ok := fieldKinds[kindName]
		if !ok || name == "" {
			return nil, fmt.Errorf("field %s of %s: tag hcl:%q", f.Name, t, tag)
		}
		all = append(all, field{name: name, kind: kind, index: []int{i}, typ: f.Type, tag: f.Tag})
	}
	return all, nil
}

func (d typedBuilder[C, A]) schema() (*agentpb.Schema, error) {
	root, err := schemaBlock(reflect.TypeFor[C]())
	if err != nil {
		return nil, err
	}
	return &agentpb.Schema{Root: root}, nil
}

func schemaBlock(t reflect.Type) (*agentpb.SchemaBlock, error) {
	fields, err := fieldsOf(t)
	if err != nil {
		return nil, err
	}
	b := new(agentpb.SchemaBlock)
	for _, f := range fields {
		switch f.kind {
		case label: // named by schemaNested
		case block:
			nested, err := schemaNested(f)
			if err != nil {
				return nil, err
			}
			b.Blocks = append(b.Blocks, nested)
		default:
			a, err := schemaAttribute(f)
			if err != nil {
				return nil, fmt.Errorf("attribute %s: %w", f.name, err)
			}
			b.Attributes = append(b.Attributes, a)
		}
	}
	return b, nil
}

func schemaNested(f field) (*agentpb.SchemaNested, error) {
	t, n := f.typ, &agentpb.SchemaNested{Name: f.name}
	switch t.Kind() {
	case reflect.Slice:
		t = t.Elem()
	case reflect.Pointer:
		t, n.Max = t.Elem(), 1
	default:
		n.Max, n.Min = 1, 1
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	inner, err := schemaBlock(t)
	if err != nil {
		return nil, fmt.Errorf("block %s: %w", f.name, err)
	}
	inner.Doc = f.tag.Get("doc")
	n.Block = inner
	fields, _ := fieldsOf(t)
	for _, g := range fields {
		if g.kind == label {
			n.LabelNames = append(n.LabelNames, g.name)
		}
	}
	return n, nil
}

func schemaAttribute(f field) (*agentpb.SchemaAttribute, error) {
	typ, format, err := attributeType(f.typ)
	if err != nil {
		return nil, err
	}
	if named, ok := formats[f.tag.Get("format")]; ok {
		format = named
	}
	a := &agentpb.SchemaAttribute{
		Name: f.name, Type: typ, Format: format, Required: f.kind == required, Doc: f.tag.Get("doc"),
		Sensitive: f.tag.Get("sensitive") == "true", Min: f.tag.Get("min"), Max: f.tag.Get("max"),
		OneOf: strings.Fields(f.tag.Get("one_of")), Example: f.tag.Get("example"),
	}
	if text, ok := f.tag.Lookup("default"); ok {
		if a.DefaultJson, err = defaultJSON(f.typ, text); err != nil {
			return nil, fmt.Errorf("default %q: %w", text, err)
		}
	}
	return a, nil
}

// formats that a tag may name.
var formats = map[string]agentpb.Format{
	"domain": agentpb.Format_FORMAT_DOMAIN, "path": agentpb.Format_FORMAT_PATH,
}

// scalars with a type and form of their own.
var scalars = map[reflect.Type]agentpb.Format{
	reflect.TypeFor[time.Duration]():   agentpb.Format_FORMAT_DURATION,
	reflect.TypeFor[Size]():            agentpb.Format_FORMAT_SIZE,
	reflect.TypeFor[netip.Prefix]():    agentpb.Format_FORMAT_PREFIX,
	reflect.TypeFor[netip.Addr]():      agentpb.Format_FORMAT_UNSPECIFIED,
	reflect.TypeFor[*regexp.Regexp]():  agentpb.Format_FORMAT_REGEXP,
	reflect.TypeFor[address.Mailbox](): agentpb.Format_FORMAT_MAILBOX,
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

// attributeType writes a type in go-cty's JSON notation.
func attributeType(t reflect.Type) (typ string, format agentpb.Format, err error) {
	if format, ok := scalars[t]; ok {
		return `"string"`, format, nil
	}
	if reflect.PointerTo(t).Implements(textUnmarshaler) {
		return `"string"`, agentpb.Format_FORMAT_UNSPECIFIED, nil
	}
	switch t.Kind() {
	case reflect.Pointer:
		return attributeType(t.Elem())
	case reflect.String:
		return `"string"`, agentpb.Format_FORMAT_UNSPECIFIED, nil
	case reflect.Bool:
		return `"bool"`, agentpb.Format_FORMAT_UNSPECIFIED, nil
	case reflect.Float32, reflect.Float64:
		return `"number"`, agentpb.Format_FORMAT_UNSPECIFIED, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return `"number"`, agentpb.Format_FORMAT_INTEGER, nil
	case reflect.Slice:
		return collection("list", t.Elem())
	case reflect.Map:
		if t.Key().Kind() == reflect.String {
			return collection("map", t.Elem())
		}
	}
	return "", 0, fmt.Errorf("a configuration cannot hold %s", t)
}

func collection(kind string, elem reflect.Type) (string, agentpb.Format, error) {
	inner, format, err := attributeType(elem)
	return fmt.Sprintf("[%q,%s]", kind, inner), format, err
}

// defaultJSON writes the default as the host sends it: durations in units that every language knows, sizes in
// bytes, lists from words separated by commas.
func defaultJSON(t reflect.Type, text string) (string, error) {
	var v any = text
	var err error
	switch {
	case t == reflect.TypeFor[time.Duration]():
		if _, plain := time.ParseDuration(text); plain != nil {
			var d time.Duration
			d, err = ParseDuration(text)
			v = shortDuration(d)
		}
	case t == reflect.TypeFor[Size]():
		v, err = ParseSize(text)
	case t.Kind() == reflect.Slice:
		return defaultList(t.Elem(), text)
	case t.Kind() == reflect.Map:
		return "", errors.New("a map has no default")
	case t.Kind() == reflect.Pointer && scalars[t] == 0:
		return defaultJSON(t.Elem(), text)
	case t.Kind() != reflect.String && isJSONScalar(t):
		return text, json.Unmarshal([]byte(text), &v)
	}
	if err != nil {
		return "", err
	}
	out, err := json.Marshal(v)
	return string(out), err
}

func defaultList(elem reflect.Type, text string) (string, error) {
	items := []string{}
	for word := range strings.SplitSeq(text, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		item, err := defaultJSON(elem, word)
		if err != nil {
			return "", err
		}
		items = append(items, item)
	}
	return "[" + strings.Join(items, ",") + "]", nil
}

func isJSONScalar(t reflect.Type) bool {
	return t.Kind() >= reflect.Bool && t.Kind() <= reflect.Float64 && !reflect.PointerTo(t).Implements(textUnmarshaler)
}

// shortDuration is "864h" where the standard library writes "864h0m0s".
func shortDuration(d time.Duration) string {
	text := d.String()
	if short, ok := strings.CutSuffix(text, "m0s"); ok {
		text = short + "m"
	}
	if short, ok := strings.CutSuffix(text, "h0m"); ok {
		text = short + "h"
	}
	return text
}
