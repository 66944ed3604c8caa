package sdk

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"

	"github.com/posternmail/postern/sdk/agentpb"
)

// OptionTables lists the options of a configuration type as Markdown: a table of the attributes, then one for
// each nested block under its name. Every agent prints it with --options; --options=README.md puts it between
// the lines OptionsBegin and OptionsEnd of a file.
func OptionTables[C any]() (string, error) {
	root, err := schemaBlock(reflect.TypeFor[C]())
	if err != nil {
		return "", err
	}
	return optionTables(root), nil
}

// Lines of a file between which --options=FILE writes.
const (
	OptionsBegin = "<!-- options: written by go generate -->"
	OptionsEnd   = "<!-- end of options -->"
)

func optionTables(root *agentpb.SchemaBlock) string {
	var b strings.Builder
	writeAttributes(&b, root)
	writeNested(&b, root, "config")
	return strings.TrimPrefix(b.String(), "\n")
}

func writeNested(b *strings.Builder, parent *agentpb.SchemaBlock, path string) {
	for _, n := range parent.GetBlocks() {
		title := n.GetName()
		for _, label := range n.GetLabelNames() {
			title += ` "` + strings.ToUpper(label) + `"`
		}
		fmt.Fprintf(b, "\n### `%s` in `%s`\n\n%s %s\n", title, path, n.GetBlock().GetDoc(), timesText(n))
		writeAttributes(b, n.GetBlock())
		writeNested(b, n.GetBlock(), path+" "+n.GetName())
	}
}

// timesText says how often a block may stand.
func timesText(n *agentpb.SchemaNested) string {
	switch {
	case n.GetMin() > 0:
		return "Required."
	case n.GetMax() == 1:
		return "At most once."
	}
	return "Any number."
}

func writeAttributes(b *strings.Builder, block *agentpb.SchemaBlock) {
	if len(block.GetAttributes()) == 0 {
		return
	}
	b.WriteString("\n| argument | type | default | range | |\n|---|---|---|---|---|\n")
	for _, a := range block.GetAttributes() {
		doc := a.GetDoc()
		if a.GetExample() != "" {
			doc += " Example: `" + a.GetExample() + "`."
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", a.GetName(), typeText(a), defaultText(a), rangeText(a), cell(doc))
	}
}

// cell of a table: bars would end it.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// formatNames are what people call the forms of values.
var formatNames = map[agentpb.Format]string{
	agentpb.Format_FORMAT_INTEGER: "integer", agentpb.Format_FORMAT_DURATION: "duration", agentpb.Format_FORMAT_SIZE: "size",
	agentpb.Format_FORMAT_PREFIX: "prefix", agentpb.Format_FORMAT_REGEXP: "pattern", agentpb.Format_FORMAT_MAILBOX: "address",
	agentpb.Format_FORMAT_DOMAIN: "domain", agentpb.Format_FORMAT_PATH: "path",
}

// typeText is "list of path" for the type ["list","string"] with the format of a path.
func typeText(a *agentpb.SchemaAttribute) string {
	var typ any
	if err := json.Unmarshal([]byte(a.GetType()), &typ); err != nil {
		return a.GetType()
	}
	prefix := ""
	for {
		pair, ok := typ.([]any)
		if !ok || len(pair) != 2 {
			break
		}
		prefix += fmt.Sprintf("%v of ", pair[0])
		typ = pair[1]
	}
	if name, ok := formatNames[a.GetFormat()]; ok {
		return prefix + name
	}
	return prefix + fmt.Sprint(typ)
}

func defaultText(a *agentpb.SchemaAttribute) string {
	switch text := a.GetDefaultJson(); {
	case a.GetRequired():
		return "required"
	case text == "":
		return ""
	case a.GetFormat() == agentpb.Format_FORMAT_SIZE:
		return "`" + sizeText(text) + "`"
	default:
		return "`" + cell(text) + "`"
	}
}

// sizeText writes bytes as an operator would: "11MiB".
func sizeText(bytes string) string {
	var n Size
	if err := json.Unmarshal([]byte(bytes), &n); err != nil {
		return bytes
	}
	for _, unit := range []struct {
		size Size
		name string
	}{{GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}} {
		if n >= unit.size && n%unit.size == 0 {
			return fmt.Sprintf("%q", fmt.Sprintf("%d%s", n/unit.size, unit.name))
		}
	}
	return bytes
}

func rangeText(a *agentpb.SchemaAttribute) string {
	switch low, high := a.GetMin(), a.GetMax(); {
	case len(a.GetOneOf()) > 0:
		return strings.Join(a.GetOneOf(), ", ")
	case low != "" && high != "":
		return low + " to " + high
	case low != "":
		return "at least " + low
	case high != "":
		return "at most " + high
	}
	return ""
}

// printOptions does --options, and --options=FILE.
func printOptions(def *definition, path string) error {
	manifest, err := def.manifest()
	if err != nil {
		return err
	}
	tables := optionTables(manifest.GetSchema().GetRoot())
	if path == "" {
		_, err := os.Stdout.WriteString(tables)
		return err
	}
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, begins := strings.Cut(string(old), OptionsBegin+"\n")
	_, after, ends := strings.Cut(rest, OptionsEnd+"\n")
	if !begins || !ends {
		return fmt.Errorf("%s lacks the lines %q and %q", path, OptionsBegin, OptionsEnd)
	}
	text := before + OptionsBegin + "\n" + tables + OptionsEnd + "\n" + after
	return os.WriteFile(path, []byte(text), 0o644)
}
