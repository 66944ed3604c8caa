package config

import (
	"fmt"
	"os"
	"sort"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/tryfunc"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// sensitiveMark is on every value that came through sensitive(); it survives templates and functions.
type sensitiveMark struct{}

// maxIncluded bounds what file() and lines(file()) take in.
const maxIncluded = 16 << 20

// local is one name of a locals block.
type local struct {
	name  string
	expr  hclsyntax.Expression
	at    hcl.Range // of the name
	file  *file
	value cty.Value
	state localState
}

type localState int

const (
	localNew localState = iota
	localBusy
	localDone
)

// localName is the name in `local.name`, "" for other traversals.
func localName(t hcl.Traversal) string {
	if len(t) < 2 || t.RootName() != "local" {
		return ""
	}
	if step, ok := t[1].(hcl.TraverseAttr); ok {
		return step.Name
	}
	return ""
}

// evaluate an expression of a file. Not ok: it was reported, here or where a local that it uses stands.
func (l *loader) evaluate(expr hclsyntax.Expression, f *file) (cty.Value, bool) {
	if !l.names(expr) {
		return cty.DynamicVal, false
	}
	v, found := expr.Value(&hcl.EvalContext{
		Variables: map[string]cty.Value{"local": l.localValues(expr)},
		Functions: f.functions,
	})
	l.diags.addHCL(found)
	if found.HasErrors() {
		return cty.DynamicVal, false
	}
	return v, v.IsKnown()
}

// names checks that every name in an expression exists, so that the message can say what was meant.
func (l *loader) names(expr hclsyntax.Expression) bool {
	good := true
	for _, t := range expr.Variables() {
		switch name := localName(t); {
		case t.RootName() != "local":
			l.diags.errorf(t.SourceRange(), "unknown name %q; a text needs quotes: %q", t.RootName(), t.RootName())
			good = false
		case name == "":
			l.diags.errorf(t.SourceRange(), "name the local: local.NAME")
			good = false
		case l.locals[name] == nil:
			at := t[1].SourceRange()
			l.diags.errorf(at, "there is no local %q%s", name, Suggestion(name, l.localNames()))
			good = false
		}
	}
	return good
}

func (l *loader) localNames() []string {
	var names []string
	for name := range l.locals {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// localValues evaluates the locals that an expression uses.
func (l *loader) localValues(expr hclsyntax.Expression) cty.Value {
	values := map[string]cty.Value{}
	for _, t := range expr.Variables() {
		name := localName(t)
		values[name] = l.local(l.locals[name])
	}
	return cty.ObjectVal(values)
}

func (l *loader) local(one *local) cty.Value {
	switch one.state {
	case localDone:
		return one.value
	case localBusy:
		l.diags.errorf(one.at, "local %q is made from itself", one.name)
		return cty.DynamicVal
	}
	one.state, one.value = localBusy, cty.DynamicVal
	if v, ok := l.evaluate(one.expr, one.file); ok {
		one.value = v
	}
	one.state = localDone
	return one.value
}

// functions of a file: those of go-cty under the names that HCL users know, and our own, whose relative paths are
// relative to the file.
func (l *loader) functions(dir string) map[string]function.Function {
	functions := map[string]function.Function{
		"env":       l.envFunction(),
		"file":      fileFunction(dir),
		"lines":     linesFunction(),
		"sensitive": sensitiveFunction(),
		"try":       tryfunc.TryFunc,
		"can":       tryfunc.CanFunc,
	}
	for name, f := range standardFunctions() {
		functions[name] = f
	}
	return functions
}

// functionNames are all that may be called.
func functionNames() []string {
	names := []string{"can", "env", "file", "lines", "sensitive", "try"}
	for name := range standardFunctions() {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func standardFunctions() map[string]function.Function {
	return map[string]function.Function{
		"abs": stdlib.AbsoluteFunc, "ceil": stdlib.CeilFunc, "chomp": stdlib.ChompFunc,
		"chunklist": stdlib.ChunklistFunc, "coalesce": stdlib.CoalesceFunc, "coalescelist": stdlib.CoalesceListFunc,
		"compact": stdlib.CompactFunc, "concat": stdlib.ConcatFunc, "contains": stdlib.ContainsFunc,
		"csvdecode": stdlib.CSVDecodeFunc, "distinct": stdlib.DistinctFunc, "element": stdlib.ElementFunc,
		"flatten": stdlib.FlattenFunc, "floor": stdlib.FloorFunc, "format": stdlib.FormatFunc,
		"formatdate": stdlib.FormatDateFunc, "formatlist": stdlib.FormatListFunc, "indent": stdlib.IndentFunc,
		"index": stdlib.IndexFunc, "int": stdlib.IntFunc, "join": stdlib.JoinFunc,
		"jsondecode": stdlib.JSONDecodeFunc, "jsonencode": stdlib.JSONEncodeFunc, "keys": stdlib.KeysFunc,
		"length": stdlib.LengthFunc, "log": stdlib.LogFunc, "lookup": stdlib.LookupFunc,
		"lower": stdlib.LowerFunc, "max": stdlib.MaxFunc, "merge": stdlib.MergeFunc, "min": stdlib.MinFunc,
		"parseint": stdlib.ParseIntFunc, "pow": stdlib.PowFunc, "range": stdlib.RangeFunc,
		"regex": stdlib.RegexFunc, "regexall": stdlib.RegexAllFunc, "regexreplace": stdlib.RegexReplaceFunc,
		"replace": stdlib.ReplaceFunc, "reverse": stdlib.ReverseListFunc, "setintersection": stdlib.SetIntersectionFunc,
		"setproduct": stdlib.SetProductFunc, "setsubtract": stdlib.SetSubtractFunc, "setunion": stdlib.SetUnionFunc,
		"signum": stdlib.SignumFunc, "slice": stdlib.SliceFunc, "sort": stdlib.SortFunc, "split": stdlib.SplitFunc,
		"strlen": stdlib.StrlenFunc, "strrev": stdlib.ReverseFunc, "substr": stdlib.SubstrFunc,
		"timeadd": stdlib.TimeAddFunc, "title": stdlib.TitleFunc, "trim": stdlib.TrimFunc,
		"trimprefix": stdlib.TrimPrefixFunc, "trimspace": stdlib.TrimSpaceFunc, "trimsuffix": stdlib.TrimSuffixFunc,
		"upper": stdlib.UpperFunc, "values": stdlib.ValuesFunc, "zipmap": stdlib.ZipmapFunc,
	}
}

// envFunction is env(name, default). Without a default a missing variable is an error at the call.
func (l *loader) envFunction() function.Function {
	return function.New(&function.Spec{
		Params:   []function.Parameter{{Name: "name", Type: cty.String}},
		VarParam: &function.Parameter{Name: "default", Type: cty.String, AllowMarked: true},
		Type:     function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			if len(args) > 2 {
				return cty.NilVal, fmt.Errorf("env takes a name and one default")
			}
			if text, ok := l.opts.Env(args[0].AsString()); ok {
				return cty.StringVal(text), nil
			}
			if len(args) == 2 {
				return args[1], nil
			}
			return cty.NilVal, fmt.Errorf("the environment variable %s is not set and no default is given", args[0].AsString())
		},
	})
}

// fileFunction is file(path): the content of a text file.
func fileFunction(dir string) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "path", Type: cty.String}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			content, err := readLimited(absolute(dir, args[0].AsString()))
			if err != nil {
				return cty.NilVal, err
			}
			return cty.StringVal(string(content)), nil
		},
	})
}

func readLimited(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	if info.Size() > maxIncluded {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read", path, info.Size(), maxIncluded)
	}
	return os.ReadFile(path)
}

// linesFunction is lines(text): its lines without those that are blank or begin with "#".
func linesFunction() function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "text", Type: cty.String}},
		Type:   function.StaticReturnType(cty.List(cty.String)),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			var lines []cty.Value
			for line := range strings.Lines(args[0].AsString()) {
				if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
					lines = append(lines, cty.StringVal(line))
				}
			}
			if len(lines) == 0 {
				return cty.ListValEmpty(cty.String), nil
			}
			return cty.ListVal(lines), nil
		},
	})
}

// sensitiveFunction is sensitive(value): the value is never shown. The line end that a file of one secret has is cut.
func sensitiveFunction() function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "value", Type: cty.DynamicPseudoType, AllowMarked: true, AllowDynamicType: true}},
		Type:   func(args []cty.Value) (cty.Type, error) { return args[0].Type(), nil },
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			v := args[0]
			if !v.IsMarked() && v.Type() == cty.String && v.IsKnown() && !v.IsNull() {
				v = cty.StringVal(strings.TrimRight(v.AsString(), "\r\n"))
			}
			return v.Mark(sensitiveMark{}), nil
		},
	})
}
