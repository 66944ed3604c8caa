package agenttest

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty/convert"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agentpb"
)

// decodeHCL decodes what stands in an agent's config block with the agent's schema, into the JSON that a host
// sends.
func decodeHCL(schema *agentpb.Schema, text string) ([]byte, error) {
	file, diagnostics := hclsyntax.ParseConfig([]byte(text), "config", hcl.InitialPos)
	if diagnostics.HasErrors() {
		return nil, diagnostics
	}
	object, err := decodeBlock(schema.GetRoot(), file.Body)
	if err != nil {
		return nil, err
	}
	return json.Marshal(object)
}

func decodeBlock(schema *agentpb.SchemaBlock, body hcl.Body) (map[string]any, error) {
	content, diagnostics := body.Content(hclSchema(schema))
	if diagnostics.HasErrors() {
		return nil, diagnostics
	}
	object := map[string]any{}
	var errs []error
	for _, a := range schema.GetAttributes() {
		value, err := attributeValue(a, content.Attributes[a.GetName()])
		if err != nil {
			errs = append(errs, err)
		}
		if value != nil {
			object[a.GetName()] = value
		}
	}
	for _, n := range schema.GetBlocks() {
		if err := decodeNested(n, content.Blocks.OfType(n.GetName()), object); err != nil {
			errs = append(errs, err)
		}
	}
	return object, errors.Join(errs...)
}

func hclSchema(schema *agentpb.SchemaBlock) *hcl.BodySchema {
	s := new(hcl.BodySchema)
	for _, a := range schema.GetAttributes() {
		s.Attributes = append(s.Attributes, hcl.AttributeSchema{Name: a.GetName(), Required: a.GetRequired()})
	}
	for _, n := range schema.GetBlocks() {
		s.Blocks = append(s.Blocks, hcl.BlockHeaderSchema{Type: n.GetName(), LabelNames: n.GetLabelNames()})
	}
	return s
}

// decodeNested: one object where at most one block may stand, else a list.
func decodeNested(n *agentpb.SchemaNested, blocks hcl.Blocks, object map[string]any) error {
	if len(blocks) < int(n.GetMin()) || n.GetMax() > 0 && len(blocks) > int(n.GetMax()) {
		return fmt.Errorf("%d blocks %s", len(blocks), n.GetName())
	}
	var list []any
	for _, b := range blocks {
		inner, err := decodeBlock(n.GetBlock(), b.Body)
		if err != nil {
			return err
		}
		for i, name := range n.GetLabelNames() {
			inner[name] = b.Labels[i]
		}
		list = append(list, inner)
	}
	switch {
	case len(list) == 0:
	case n.GetMax() == 1:
		object[n.GetName()] = list[0]
	default:
		object[n.GetName()] = list
	}
	return nil
}

func attributeValue(a *agentpb.SchemaAttribute, attribute *hcl.Attribute) (any, error) {
	if attribute == nil {
		if a.GetDefaultJson() == "" {
			return nil, nil
		}
		return json.RawMessage(a.GetDefaultJson()), nil
	}
	fail := func(err error) (any, error) { return nil, fmt.Errorf("%s: %w", attribute.Range, err) }
	value, diagnostics := attribute.Expr.Value(nil)
	if diagnostics.HasErrors() {
		return nil, diagnostics
	}
	want, err := ctyjson.UnmarshalType([]byte(a.GetType()))
	if err != nil {
		return fail(err)
	}
	if value, err = convert.Convert(value, want); err != nil {
		return fail(err)
	}
	text, err := ctyjson.Marshal(value, want)
	if err != nil {
		return fail(err)
	}
	var plain any
	if err := json.Unmarshal(text, &plain); err != nil {
		return fail(err)
	}
	plain, err = formatted(a.GetFormat(), plain)
	if err != nil {
		return fail(err)
	}
	return plain, nil
}

// formatted value: sizes become bytes, days and weeks become hours.
func formatted(format agentpb.Format, value any) (any, error) {
	switch value := value.(type) {
	case []any:
		for i := range value {
			var err error
			if value[i], err = formatted(format, value[i]); err != nil {
				return nil, err
			}
		}
	case string:
		switch format {
		case agentpb.Format_FORMAT_SIZE:
			return sdk.ParseSize(value)
		case agentpb.Format_FORMAT_DURATION:
			d, err := sdk.ParseDuration(value)
			return shortDuration(d), err
		}
	}
	return value, nil
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
