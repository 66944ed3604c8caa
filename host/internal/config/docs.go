package config

import (
	_ "embed"
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/posternmail/postern/sdk/agentpb"
)

//go:generate go run ./gendoc ../../../docs/configuration.md

// OptionDoc documents one argument.
type OptionDoc struct {
	Block    string `json:"block"` // "receive_connector.limits"
	Name     string `json:"name"`
	Type     string `json:"type"`
	Required bool   `json:"required"`
	Default  string `json:"default,omitempty"` // in HCL, or in words
	Range    string `json:"range,omitempty"`   // bounds or the values allowed
	Doc      string `json:"doc"`
}

// OptionDocs lists every argument of the host's own blocks.
func OptionDocs() []OptionDoc {
	var docs []OptionDoc
	for _, typ := range topLevel().blocks {
		docs = append(docs, blockDocs(typ, typ.name)...)
	}
	return docs
}

// AgentOptionDocs lists the arguments of an agent's config block by its schema.
func AgentOptionDocs(schema *agentpb.Schema) ([]OptionDoc, error) {
	typ, err := schemaBlock("config", nil, schema.GetRoot(), 0)
	if err != nil {
		return nil, fmt.Errorf("the agent's schema: %w", err)
	}
	return blockDocs(typ, typ.name), nil
}

func blockDocs(typ *blockType, path string) []OptionDoc {
	var docs []OptionDoc
	for i := range typ.options {
		if !typ.options[i].later {
			docs = append(docs, optionDoc(&typ.options[i], path))
		}
	}
	for _, nested := range typ.blocks {
		docs = append(docs, blockDocs(nested, path+"."+nested.name)...)
	}
	return docs
}

func optionDoc(o *option, path string) OptionDoc {
	doc := OptionDoc{Block: path, Name: o.name, Type: typeName(o), Required: o.required, Default: o.byDefault, Doc: o.doc}
	if o.defaultIs != "" {
		doc.Default = o.defaultIs
	}
	if doc.Default == "" && !o.fallback.IsNull() {
		doc.Default = fallbackText(o)
	}
	doc.Range = rangeText(o)
	return doc
}

func fallbackText(o *option) string {
	c := &converter{diags: &Diagnostics{}, option: &option{}}
	raw, _ := c.convert(o.fallback, o.typ, place{})
	return notation(raw, nil)
}

func rangeText(o *option) string {
	switch {
	case len(o.oneOf) > 0:
		return strings.Join(o.oneOf, ", ")
	case o.min != "" && o.max != "":
		return o.min + " to " + o.max
	case o.min != "":
		return "at least " + o.min
	case o.max != "":
		return "at most " + o.max
	}
	return ""
}

//go:embed intro.md
var intro string

// WriteDocs writes docs/configuration.md.
func WriteDocs(w io.Writer) error {
	var b strings.Builder
	b.WriteString(strings.Replace(intro, "FUNCTIONS", functionList(), 1))
	for _, typ := range topLevel().blocks {
		writeBlock(&b, typ, "")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func functionList() string {
	var names []string
	for name := range standardFunctions() {
		names = append(names, "`"+name+"`")
	}
	sort.Strings(names)
	return strings.Join(names, ", ")
}

func writeBlock(b *strings.Builder, typ *blockType, parent string) {
	level := "##"
	if parent != "" {
		level = "###"
	}
	fmt.Fprintf(b, "\n%s %s\n\n", level, blockTitle(typ, parent))
	fmt.Fprintf(b, "%s\n", typ.doc)
	if typ.later {
		b.WriteString("\nNot supported yet in this version.\n")
		return
	}
	fmt.Fprintf(b, "%s", optionTable(typ))
	for _, nested := range typ.blocks {
		writeBlock(b, nested, strings.TrimSpace(parent+" "+typ.name))
	}
}

func blockTitle(typ *blockType, parent string) string {
	title := typ.name
	for _, label := range typ.labels {
		title += ` "` + strings.ToUpper(label) + `"`
	}
	if parent != "" {
		return "`" + title + "` in `" + parent + "`"
	}
	return "`" + title + "`"
}

func optionTable(typ *blockType) string {
	if len(typ.options) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\n| argument | type | default | range | |\n|---|---|---|---|---|\n")
	for i := range typ.options {
		o := &typ.options[i]
		doc := optionDoc(o, "")
		if o.later {
			doc.Doc += " Not supported yet in this version."
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", o.name, doc.Type, defaultCell(o, doc), doc.Range, doc.Doc)
	}
	return b.String()
}

func defaultCell(o *option, doc OptionDoc) string {
	switch {
	case o.required:
		return "required"
	case o.defaultIs != "" || doc.Default == "":
		return doc.Default
	}
	return "`" + doc.Default + "`"
}
