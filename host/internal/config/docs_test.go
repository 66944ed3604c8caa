package config

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestDocsAreCurrent(t *testing.T) {
	var b bytes.Buffer
	if err := WriteDocs(&b); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text, b.Bytes()) {
		t.Error("docs/configuration.md is stale; run go generate ./host/internal/config")
	}
}

// Each default fits its own option, and each option is explained.
func TestTables(t *testing.T) {
	l := newLoader(Options{})
	root := l.decodeRoot()
	checkTable(t, l, root.typ)
	for _, one := range l.diags.All() {
		t.Errorf("default: %s", one)
	}
	for _, doc := range OptionDocs() {
		if !strings.HasSuffix(doc.Doc, ".") || strings.Contains(doc.Doc, "|") || doc.Type == "" {
			t.Errorf("%s.%s: documentation %q, type %q", doc.Block, doc.Name, doc.Doc, doc.Type)
		}
	}
}

func checkTable(t *testing.T, l *loader, typ *blockType) {
	n := &node{typ: typ}
	for i := range typ.options {
		o := &typ.options[i]
		if v := l.absent(n, o); v.bad {
			t.Errorf("the default %s of %s in %s is not taken", o.byDefault, o.name, typ.name)
		}
		for _, bound := range []string{o.min, o.max} {
			checkBound(t, o, bound)
		}
	}
	for _, nested := range typ.blocks {
		if nested.doc == "" {
			t.Errorf("block %s has no documentation", nested.name)
		}
		checkTable(t, l, nested)
	}
}

func checkBound(t *testing.T, o *option, bound string) {
	var err error
	switch {
	case bound == "":
	case o.format == formatDuration:
		_, err = ParseDuration(bound)
	case o.format == formatSize:
		_, err = ParseSize(bound)
	}
	if err != nil {
		t.Errorf("bound %q of %s: %v", bound, o.name, err)
	}
}

func TestAgentOptionDocs(t *testing.T) {
	docs, err := AgentOptionDocs(manifest(fakeSchema()).GetSchema())
	if err != nil {
		t.Fatal(err)
	}
	want := OptionDoc{Block: "config", Name: "threshold", Type: "integer", Default: "7", Range: "-1 to 9", Doc: "SCL to refuse at."}
	if docs[0] != want {
		t.Errorf("got %+v, want %+v", docs[0], want)
	}
	last := docs[len(docs)-1]
	if last.Block != "config.report" || last.Name != "to" || !last.Required {
		t.Errorf("the last is %+v", last)
	}
}

func TestStandardFunctionsAreListed(t *testing.T) {
	text, err := os.ReadFile("../../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range functionNames() {
		if !bytes.Contains(text, []byte("`"+name)) {
			t.Errorf("function %s is not documented", name)
		}
	}
}
