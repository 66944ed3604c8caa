package pipeline

import (
	"fmt"

	"github.com/posternmail/postern/sdk/agentpb"
)

const (
	// maxEvent bounds what an event is made of. Package agent takes 4 MiB; the rest is room for what it adds: an inline
	// body, the number of the event and of the attempt.
	maxEvent = 4<<20 - 64<<10
	// maxHeaderBlock bounds what edits may make of a header block. A connector takes at most 1 MiB (max_header_size), which
	// as fields of an event is never more than 3 MiB.
	maxHeaderBlock = 1<<20 + 64<<10
)

// tooLarge reports whether the event would be refused for its size.
func (q *question) tooLarge() bool {
	size := int64(len(q.request.Facts) + len(q.request.Own))
	if q.request.Body != nil {
		size += min(q.request.Prefix, q.request.Body.Size())
	}
	return size > maxEvent
}

// halve parts the recipients of a copy for which q is too large, since what grows without end in an event are recipients
// and their rows. It answers with the new copy; nil when there is nothing to part.
func (r *run) halve(q *question) *draft {
	n := len(q.audience)
	if q.skip || !r.rule.perRecipient || n < 2 || !q.tooLarge() {
		return nil
	}
	half := &draft{mail: q.draft.mail.Split(q.audience[n/2:])}
	q.draft.changed()
	r.drafts = append(r.drafts, half)
	return half
}

// checkGrowth tests that the edits of an answer leave a header block that the next event has room for.
func (p *proposal) checkGrowth() string {
	if p.draft.mail == nil {
		return ""
	}
	size := len(p.draft.mail.Header)
	for _, e := range p.answer.GetEdits() {
		if added := fieldSize(e); added > 0 {
			if size += added; size > maxHeaderBlock {
				return fmt.Sprintf("edit %s makes a header block of more than %d octets", editWord(e), maxHeaderBlock)
			}
		}
	}
	return ""
}

// fieldSize is what an edit adds to a header block, at most.
func fieldSize(e *agentpb.Edit) int {
	const around = len(": \r\n")
	switch e := e.GetEdit().(type) {
	case *agentpb.Edit_AddHeader:
		return len(e.AddHeader.GetName()) + len(e.AddHeader.GetValue()) + around
	case *agentpb.Edit_ReplaceHeader:
		return len(e.ReplaceHeader.GetName()) + len(e.ReplaceHeader.GetValue()) + around
	}
	return 0
}
