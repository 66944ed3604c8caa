package main

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/mime"
)

// Filter judges the files of a message at the end of data.
type Filter struct {
	Config
	rules []*rule       // the first that matches a file decides
	turns chan struct{} // a token for each message that is being taken to pieces
}

// atOnce messages are taken to pieces. It is work for the processor alone, so more at once make each slower, until all are too
// late where some would have been in time; and each may hold what an archive unpacks to.
const atOnce = 2

// Reasons in the ledger.
const (
	reasonName        = "AttachmentName"
	reasonType        = "AttachmentType"
	reasonContent     = "AttachmentContent"
	reasonEncrypted   = "ArchiveEncrypted"
	reasonBroken      = "ArchiveBroken"
	reasonUnscannable = "ArchiveUnscannable" // of a kind that is not looked into
	reasonLimit       = "OverLimit"
)

// stampEncrypted tells later agents which archives could not be looked into.
const stampEncrypted = "encrypted"

// finding is a file that something is to be done about.
type finding struct {
	part     *mime.Part // that holds it; nil: the message as a whole
	file     string     // "invoice.zip/invoice.exe"
	reason   string
	detail   string // what matched
	action   string
	response string
}

// actions, the strictest first: one message has one fate.
var actions = [...]string{"silent_delete", "reject", "quarantine", "strip", "allow"}

func strictness(action string) int { return slices.Index(actions[:], action) }

// OnEndOfData looks at all files and acts on the strictest finding.
func (f *Filter) OnEndOfData(ctx context.Context, e *sdk.DataEvent) sdk.Verdict {
	ctx, cancel := hurry(ctx)
	defer cancel()
	select {
	case f.turns <- struct{}{}:
		defer func() { <-f.turns }()
	case <-ctx.Done():
		return sdk.Undetermined("Timeout", errors.New("too many messages at once to take this one to pieces in time"))
	}
	s := f.newScan(ctx, e.Body().Size())
	err := s.message(e.Headers.Block(), e.Body())
	switch {
	case ctx.Err() != nil:
		return sdk.Undetermined("Timeout", ctx.Err())
	case errors.Is(err, errLimit):
		s.add(finding{reason: reasonLimit, detail: err.Error(), action: f.OverLimit, response: f.Response})
	case err != nil:
		return sdk.Undetermined("NotRead", err)
	}
	return f.act(e, s)
}

// hurry ends a little before ctx does, so that there is time to say that there was too little of it.
func hurry(ctx context.Context) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, end.Add(-time.Until(end)/10))
}

// act on what was found.
func (f *Filter) act(e *sdk.DataEvent, s *scan) sdk.Verdict {
	v := sdk.Continue()
	if len(s.findings) > 0 {
		worst := slices.MinFunc(s.findings, func(a, b finding) int { return cmp.Compare(strictness(a.action), strictness(b.action)) })
		v = f.verdict(e, s, worst).Because(worst.reason, worst.data())
	}
	if len(s.encrypted) > 0 {
		v = v.Stamp(stampEncrypted, clip(strings.Join(s.encrypted, ", ")))
	}
	return v
}

func (f *Filter) verdict(e *sdk.DataEvent, s *scan, worst finding) sdk.Verdict {
	switch worst.action {
	case "silent_delete":
		return sdk.Discard().Count("deleted", 1)
	case "reject":
		return sdk.Reject(550, "5.7.1", worst.response).Count("rejected", 1)
	case "quarantine":
		return sdk.Quarantine().Count("quarantined", 1)
	case "strip":
		return f.strip(e, s)
	}
	return sdk.Continue()
}

// strip replaces the parts that hold something unwanted by a notice each. The message keeps its structure.
func (f *Filter) strip(e *sdk.DataEvent, s *scan) sdk.Verdict {
	patch := e.Patch()
	unwanted, done := map[*mime.Part]bool{}, map[*mime.Part]bool{}
	for _, found := range s.findings {
		unwanted[found.part] = unwanted[found.part] || found.action == "strip"
	}
	for _, found := range s.findings {
		if found.action != "strip" || found.part == nil || done[found.part] || within(found.part, unwanted) {
			continue
		}
		done[found.part] = true
		notice := strings.NewReplacer("{name}", found.file, "{reason}", found.why()).Replace(f.Notice)
		patch.ReplacePart(found.part, mime.Text(strings.ToValidUTF8(notice, "?")+"\n"))
	}
	return sdk.Continue().Edit(patch).Count("stripped", len(done))
}

// within reports whether a part stands in one of others.
func within(p *mime.Part, others map[*mime.Part]bool) bool {
	for p = p.Parent; p != nil; p = p.Parent {
		if others[p] {
			return true
		}
	}
	return false
}

// data for the ledger.
func (x *finding) data() string {
	if x.file == "" {
		return clip(x.detail)
	}
	return clip(x.file + " (" + x.detail + ")")
}

// why for the people who read the notice.
func (x *finding) why() string {
	switch x.reason {
	case reasonEncrypted:
		return "it is encrypted and cannot be checked"
	case reasonBroken:
		return "it cannot be read and so not be checked"
	case reasonUnscannable:
		return "archives of its kind cannot be checked"
	}
	return "files of this kind are not allowed here (" + x.detail + ")"
}

// maxData is how much of names from mail goes into stamps and the ledger, in octets.
const maxData = 300

func clip(s string) string {
	if len(s) > maxData {
		s = s[:maxData] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
