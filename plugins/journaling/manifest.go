package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
)

// OnSchedule sends a manifest to each journal mailbox that got reports since the last one. A set that is in a
// manifest and not in the archive is missing as a whole, which its own reports could not tell.
func (j *Journal) OnSchedule(_ context.Context, e *sdk.ScheduleEvent) sdk.Verdict {
	lines := map[string][]string{} // by journal mailbox
	v := sdk.Continue()
	for row := range j.sets.Rows(e) {
		s := row.Value
		lines[s.Mailbox] = append(lines[s.Mailbox], fmt.Sprintf("%s %d %s\r\n", row.Key, s.Parts, s.Message))
		v = v.Write(j.sets.Delete().At(row.Key))
	}
	var to []string
	for m := range lines {
		to = append(to, m)
	}
	slices.Sort(to)
	for _, m := range to {
		if mailbox, err := address.Parse(m); err == nil {
			v = v.Spawn(j.manifest(e, mailbox, lines[m])).Count("manifests", 1)
		}
	}
	return v
}

// manifest of the sets in lines: "set parts message".
func (j *Journal) manifest(e *sdk.ScheduleEvent, to address.Mailbox, lines []string) sdk.Spawn {
	slices.Sort(lines)
	text := strings.Join(lines, "")
	id := hexSum(fmt.Appendf(nil, "%s\n%d\n%s", e.Time.UTC(), e.Page, text))[:32]
	var b bytes.Buffer
	j.common(&b, to, e.Time, id)
	field(&b, "Subject", fmt.Sprintf("Journal manifest: %d sets", len(lines)))
	field(&b, "Content-Type", "text/plain; charset=us-ascii")
	field(&b, manifestField, id)
	field(&b, digestsField, "body="+hexSum([]byte(text)))
	if j.Key != "" {
		field(&b, sealField, seal(j.Key, id, "body="+hexSum([]byte(text))))
	}
	b.WriteString("\r\n" + text)
	return sdk.Spawn{Recipients: []address.Mailbox{to}, Before: b.Bytes(), Durable: true}
}
