package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/match"
	"github.com/posternmail/postern/sdk/mime"
)

// Stripper removes attachments by name.
type Stripper struct {
	Config
	names *match.Names
}

// New checks the names; a mistake in one is shown at its place in the file.
func New(cfg Config, r *sdk.Registrar) (*Stripper, error) {
	if i, err := match.Check(cfg.Names); err != nil {
		return nil, r.At("names", i).Error(err)
	}
	if strings.Count(cfg.Notice, "%q") != 1 || strings.Count(cfg.Notice, "%") != 1 {
		return nil, r.At("notice").Error(errors.New("must name the attachment once, with %q"))
	}
	names, err := match.NewNames(cfg.Names)
	if err != nil {
		return nil, err
	}
	// Verdicts: an agent without is skipped when it fails, and what this one cannot judge is not to pass.
	r.OnEndOfData(sdk.Body(sdk.Whole, sdk.Current), sdk.MayChange(sdk.BodyParts, sdk.Headers, sdk.Verdicts), sdk.MayKeepCopy)
	return &Stripper{cfg, names}, nil
}

// OnEndOfData replaces the unwanted parts, for all recipients that are not excepted.
func (s *Stripper) OnEndOfData(ctx context.Context, e *sdk.DataEvent) sdk.Verdict {
	tree, err := mime.Parse(ctx, e.Headers.Block(), e.Body(), mime.Limits{Depth: 20, Parts: 1000})
	if err != nil {
		return sdk.Undetermined("mime", err) // the operator's policy maps it: neither a crash nor a pass
	}
	patch := e.Patch() // segments over the stored octets
	var gone []string
	for part := range tree.Leaves() {
		if _, unwanted := s.names.Match(part.Filename); unwanted {
			patch.ReplacePart(part, mime.Text(fmt.Sprintf(s.Notice, part.Filename)))
			gone = append(gone, part.Filename)
		}
	}
	if len(gone) == 0 {
		return sdk.Continue()
	}
	return sdk.Continue().Because("stripped", strings.Join(gone, ", ")).
		ForAllBut(s.Except...). // the host makes two copies
		Edit(patch, sdk.AddHeader("X-Stripped", strings.Join(gone, ", "))).
		KeepCopy("attachment removed")
}
