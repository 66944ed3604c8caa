package sdk

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk/address"
)

// typedBuilder knows the types that definition does not.
type typedBuilder[C, A any] struct {
	newAgent func(C, *Registrar) (A, error)
}

func (d typedBuilder[C, A]) build(config []byte, r *Registrar) any {
	var cfg C
	decodeInto(config, &cfg, r)
	if r.failed() {
		return nil
	}
	agent, err := d.newAgent(cfg, r)
	if err != nil {
		r.fail(err)
		return nil
	}
	return agent
}

// isNil reports whether v holds a nil pointer or nothing.
func isNil(v any) bool {
	rv := reflect.ValueOf(v)
	return !rv.IsValid() || rv.Kind() == reflect.Pointer && rv.IsNil()
}

// decodeConfig is decodeInto for those who have no Registrar.
func decodeConfig(config []byte, cfg any) error {
	r := new(Registrar)
	decodeInto(config, cfg, r)
	var all []error
	for _, d := range r.diagnostics {
		all = append(all, &diagnosticError{d})
	}
	return errors.Join(all...)
}

// decodeInto fills the struct behind cfg from JSON. What is wrong becomes diagnostics of r, each at its path.
// Defaults are applied here too, for those who start an agent without a host.
func decodeInto(config []byte, cfg any, r *Registrar) {
	values := map[string]any{}
	if len(bytes.TrimSpace(config)) > 0 {
		decoder := json.NewDecoder(bytes.NewReader(config))
		decoder.UseNumber()
		if err := decoder.Decode(&values); err != nil {
			r.At().Errorf("configuration is no JSON object: %w", err)
			return
		}
	}
	d := &decoder{r: r}
	d.block(values, reflect.ValueOf(cfg).Elem(), nil)
}

// decoder walks JSON values and the struct side by side.
type decoder struct{ r *Registrar }

func (d *decoder) block(values map[string]any, into reflect.Value, path []any) {
	fields, err := fieldsOf(into.Type())
	if err != nil {
		d.r.At(path...).Error(err)
		return
	}
	for _, f := range fields {
		at := append(slices.Clone(path), f.name)
		value := values[f.name]
		target := into.FieldByIndex(f.index)
		if f.kind == block {
			d.blocks(value, target, at)
			continue
		}
		d.attribute(f, value, target, at)
	}
	d.unknown(values, fields, path)
}

// unknown names do not come from a host, which has checked them, but from a configuration given by hand.
func (d *decoder) unknown(values map[string]any, fields []field, path []any) {
	for name := range values {
		if !slices.ContainsFunc(fields, func(f field) bool { return f.name == name }) {
			d.r.At(append(slices.Clone(path), name)...).Errorf("there is no attribute or block %q", name)
		}
	}
}

func (d *decoder) attribute(f field, value any, target reflect.Value, path []any) {
	if value == nil {
		text, ok := f.tag.Lookup("default")
		if !ok {
			if f.kind == required {
				d.r.At(path...).Errorf("%s is required", f.name)
			}
			return
		}
		value = defaultValue(f.typ, text)
	}
	before := len(d.r.diagnostics)
	d.value(value, target, path)
	if len(d.r.diagnostics) == before {
		d.bounds(f, target, path)
	}
}

// defaultValue was checked when the schema was made.
func defaultValue(t reflect.Type, text string) any {
	var v any
	literal, err := defaultJSON(t, text)
	if err != nil {
		return nil
	}
	decoder := json.NewDecoder(strings.NewReader(literal))
	decoder.UseNumber()
	if decoder.Decode(&v) != nil {
		return nil
	}
	return v
}

// blocks decodes one object, or a list of them.
func (d *decoder) blocks(value any, target reflect.Value, path []any) {
	switch value := value.(type) {
	case nil:
		if target.Kind() == reflect.Struct {
			d.r.At(path...).Errorf("block %s is required", path[len(path)-1])
		}
	case []any:
		if target.Kind() != reflect.Slice {
			d.r.At(path...).Errorf("only one block may stand here")
			return
		}
		target.Set(reflect.MakeSlice(target.Type(), len(value), len(value)))
		for i, v := range value {
			d.object(v, target.Index(i), append(slices.Clone(path), i))
		}
	default:
		if target.Kind() == reflect.Slice {
			target.Set(reflect.MakeSlice(target.Type(), 1, 1))
			target, path = target.Index(0), append(path, 0)
		}
		d.object(value, target, path)
	}
}

func (d *decoder) object(value any, target reflect.Value, path []any) {
	values, ok := value.(map[string]any)
	if !ok {
		d.r.At(path...).Errorf("want a block")
		return
	}
	if target.Kind() == reflect.Pointer {
		target.Set(reflect.New(target.Type().Elem()))
		target = target.Elem()
	}
	d.block(values, target, path)
}

// value decodes one value of an attribute, or an element of a list or map.
func (d *decoder) value(value any, target reflect.Value, path []any) {
	if text, ok := value.(string); ok {
		if handled, err := fromText(text, target); handled {
			if err != nil {
				d.r.At(path...).Error(err)
			}
			return
		}
	}
	switch target.Kind() {
	case reflect.Pointer:
		target.Set(reflect.New(target.Type().Elem()))
		d.value(value, target.Elem(), path)
	case reflect.Slice:
		d.list(value, target, path)
	case reflect.Map:
		d.mapping(value, target, path)
	default:
		if err := fromScalar(value, target); err != nil {
			d.r.At(path...).Error(err)
		}
	}
}

func (d *decoder) list(value any, target reflect.Value, path []any) {
	items, ok := value.([]any)
	if !ok {
		d.r.At(path...).Errorf("want a list")
		return
	}
	target.Set(reflect.MakeSlice(target.Type(), len(items), len(items)))
	for i, item := range items {
		d.value(item, target.Index(i), append(slices.Clone(path), i))
	}
}

func (d *decoder) mapping(value any, target reflect.Value, path []any) {
	items, ok := value.(map[string]any)
	if !ok {
		d.r.At(path...).Errorf("want a map")
		return
	}
	target.Set(reflect.MakeMapWithSize(target.Type(), len(items)))
	for key, item := range items {
		elem := reflect.New(target.Type().Elem()).Elem()
		d.value(item, elem, append(slices.Clone(path), MapKey(key)))
		target.SetMapIndex(reflect.ValueOf(key).Convert(target.Type().Key()), elem)
	}
}

// fromText fills the types that are written as text. handled is false for all others.
func fromText(text string, target reflect.Value) (handled bool, err error) {
	switch p := target.Addr().Interface().(type) {
	case *time.Duration:
		*p, err = ParseDuration(text)
	case *Size:
		*p, err = ParseSize(text)
	case *netip.Prefix:
		*p, err = parsePrefix(text)
	case **regexp.Regexp:
		*p, err = regexp.Compile(text)
	case *address.Mailbox:
		*p, err = address.Parse(text)
	case *string:
		*p = text
	case encoding.TextUnmarshaler:
		err = p.UnmarshalText([]byte(text))
	default:
		return false, nil
	}
	return true, err
}

// fromScalar lets encoding/json convert and check numbers, booleans and named strings.
func fromScalar(value any, target reflect.Value) error {
	text, err := json.Marshal(value)
	if err == nil {
		err = json.Unmarshal(text, target.Addr().Interface())
	}
	if err != nil {
		return fmt.Errorf("%s does not fit: want %s", text, target.Kind())
	}
	return nil
}

// bounds checks min, max and one_of. The host has done so; a configuration given by hand has not been checked.
func (d *decoder) bounds(f field, target reflect.Value, path []any) {
	if target.Kind() == reflect.Pointer {
		return
	}
	for _, limit := range []struct {
		tag  string
		sign int
	}{{"min", -1}, {"max", 1}} {
		text := f.tag.Get(limit.tag)
		if text != "" && compareBound(target, text) == limit.sign {
			d.r.At(path...).Errorf("%s is %s than %s", textOf(target), map[int]string{-1: "less", 1: "more"}[limit.sign], text)
		}
	}
	words := strings.Fields(f.tag.Get("one_of"))
	if len(words) > 0 && target.Kind() == reflect.String && !slices.Contains(words, target.String()) {
		d.r.At(path...).Errorf("%q is none of: %s", target.String(), strings.Join(words, ", "))
	}
}

// compareBound compares a number, duration or size with a bound written as in HCL.
func compareBound(target reflect.Value, text string) int {
	bound := reflect.New(target.Type()).Elem()
	if handled, err := fromText(text, bound); err != nil || !handled && fromScalar(json.Number(text), bound) != nil {
		return 0
	}
	switch {
	case target.CanInt():
		return compare(target.Int(), bound.Int())
	case target.CanUint():
		return compare(target.Uint(), bound.Uint())
	case target.CanFloat():
		return compare(target.Float(), bound.Float())
	}
	return 0
}

func compare[T int64 | uint64 | float64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func textOf(v reflect.Value) string { return fmt.Sprint(v.Interface()) }
