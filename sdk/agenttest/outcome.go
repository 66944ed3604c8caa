package agenttest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Outcome of an event. It carries its Session, so that a dialog can be written in one line.
type Outcome struct {
	*Session
	kind   sdk.EventKind
	answer *agentpb.Answer
	fault  int // index in Agent.faults plus 1; 0: none
	header []*agentpb.HeaderField
	body   []byte
	before []*agentpb.HeaderField
	shown  []*agentpb.HeaderField // whose numbers the edits of the answer name
	base   []*agentpb.HeaderField // the message before these edits, so numbered
	last   []*agentpb.Edit        // with first: those of this event
	first  *Outcome               // of OnEndOfHeaders, for the same message; nil: none
}

func newOutcome(a *Agent, s *Session, event *agentpb.Event, answer *agentpb.Answer) *Outcome {
	o := &Outcome{Session: s, kind: event.GetKind(), answer: answer, before: s.header}
	if f := answer.GetFault(); f != "" {
		a.faults = append(a.faults, fmt.Sprintf("%s: the handler failed: %s", sdk.EventName(o.kind), f))
		o.fault = len(a.faults)
	}
	o.shown = s.fields(a.subscriptions[o.kind].GetView())
	o.base = withOrder(s.header, o.shown)
	header, body, err := edited(o.base, s.body, answer.GetEdits())
	if err != nil {
		a.t.Errorf("%s: %v", sdk.EventName(o.kind), err)
	}
	o.header, o.body = header, body
	return o
}

// settled reports whether the answer ends the way of a recipient, whom later events of the message do not show any more.
func (o *Outcome) settled(r *agentpb.Recipient) bool {
	kind := o.verdictFor(int(r.GetIndex())).GetKind()
	return slices.Contains(refusals, kind) || kind == agentpb.VerdictKind_VERDICT_KIND_QUARANTINE || kind == agentpb.VerdictKind_VERDICT_KIND_DISCARD
}

// after adds what an earlier event of the same message answered.
func (o *Outcome) after(earlier *Outcome) *Outcome {
	o.first = &Outcome{Session: earlier.Session, answer: &agentpb.Answer{Edits: earlier.answer.GetEdits()}, base: earlier.base}
	o.last = o.answer.GetEdits()
	// What the first event has said of some recipients stays: the second is not asked about those it has settled.
	verdicts := slices.DeleteFunc(slices.Clone(earlier.answer.GetVerdicts()), func(v *agentpb.Verdict) bool {
		return len(v.GetRecipients()) == 0
	})
	o.answer.Verdicts = append(verdicts, o.answer.GetVerdicts()...)
	o.answer.Edits = append(slices.Clone(earlier.answer.GetEdits()), o.answer.GetEdits()...)
	o.answer.Stamps = append(slices.Clone(earlier.answer.GetStamps()), o.answer.GetStamps()...)
	o.answer.Spawns = append(slices.Clone(earlier.answer.GetSpawns()), o.answer.GetSpawns()...)
	o.before = earlier.before
	if o.header == nil {
		o.header, o.body = o.Session.header, o.Session.body
	}
	if o.before == nil {
		o.before = o.Session.header
	}
	return o
}

// Answer as it came from the agent.
func (o *Outcome) Answer() *agentpb.Answer { return o.answer }

// errorf fails the test, naming the event and what was answered.
func (o *Outcome) errorf(format string, args ...any) *Outcome {
	o.agent.t.Helper()
	o.agent.t.Errorf("%s: %s; the answer is %v", sdk.EventName(o.kind), fmt.Sprintf(format, args...), o.answer)
	return o
}

// refusals are the verdicts that do not let a command or message pass.
var refusals = []agentpb.VerdictKind{
	agentpb.VerdictKind_VERDICT_KIND_REJECT, agentpb.VerdictKind_VERDICT_KIND_DEFER,
	agentpb.VerdictKind_VERDICT_KIND_DISCONNECT, agentpb.VerdictKind_VERDICT_KIND_FAIL,
}

// verdictFor a recipient by index; -1 is the verdict for all.
func (o *Outcome) verdictFor(index int) *agentpb.Verdict {
	for _, v := range o.answer.GetVerdicts() {
		if len(v.GetRecipients()) == 0 || index >= 0 && slices.Contains(v.GetRecipients(), uint32(index)) {
			return v
		}
	}
	return nil
}

func (o *Outcome) refused() bool {
	return o.fault > 0 || slices.Contains(refusals, o.verdictFor(-1).GetKind())
}

// Want a refusal with this reply. Code 0 and enhanced "" are not looked at.
func (o *Outcome) Want(code int, enhanced string) *Outcome {
	o.agent.t.Helper()
	return o.wantReply(o.verdictFor(-1), code, enhanced)
}

// WantFor is Want for one of several recipients.
func (o *Outcome) WantFor(recipient string, code int, enhanced string) *Outcome {
	o.agent.t.Helper()
	return o.wantReply(o.verdictFor(o.index(recipient)), code, enhanced)
}

func (o *Outcome) wantReply(v *agentpb.Verdict, code int, enhanced string) *Outcome {
	o.agent.t.Helper()
	if !slices.Contains(refusals, v.GetKind()) {
		return o.errorf("want a refusal with %d %s", code, enhanced)
	}
	reply := v.GetReply()
	if reply == nil && v.GetKind() == agentpb.VerdictKind_VERDICT_KIND_DISCONNECT {
		reply = &agentpb.Reply{Code: 421}
	}
	if code != 0 && int(reply.GetCode()) != code || enhanced != "" && reply.GetEnhanced() != enhanced {
		return o.errorf("reply %d %s, want %d %s", reply.GetCode(), reply.GetEnhanced(), code, enhanced)
	}
	return o
}

// index of a recipient of the message.
func (o *Outcome) index(recipient string) int {
	o.agent.t.Helper()
	for _, r := range o.envelope.GetRecipients() {
		if strings.EqualFold(string(r.GetAddress()), recipient) {
			return int(r.GetIndex())
		}
	}
	o.agent.t.Fatalf("the message has no recipient %q", recipient)
	return -1
}

// WantContinue wants that nothing is refused, for anybody.
func (o *Outcome) WantContinue() *Outcome {
	o.agent.t.Helper()
	if o.fault > 0 {
		return o.errorf("want continue")
	}
	for _, v := range o.answer.GetVerdicts() {
		switch v.GetKind() {
		case agentpb.VerdictKind_VERDICT_KIND_CONTINUE, agentpb.VerdictKind_VERDICT_KIND_DONE,
			agentpb.VerdictKind_VERDICT_KIND_TARPIT, agentpb.VerdictKind_VERDICT_KIND_BYPASS:
		default:
			return o.errorf("want continue")
		}
	}
	return o
}

// WantVerdict wants a verdict by name: "quarantine", "discard", "undetermined", "bypass", "done"...
func (o *Outcome) WantVerdict(name string) *Outcome {
	o.agent.t.Helper()
	if got := verdictName(o.verdictFor(-1)); got != name {
		return o.errorf("verdict %s, want %s", got, name)
	}
	return o
}

// WantVerdictFor is WantVerdict for one of several recipients.
func (o *Outcome) WantVerdictFor(recipient, name string) *Outcome {
	o.agent.t.Helper()
	if got := verdictName(o.verdictFor(o.index(recipient))); got != name {
		return o.errorf("verdict %s for %s, want %s", got, recipient, name)
	}
	return o
}

func verdictName(v *agentpb.Verdict) string {
	return strings.ToLower(strings.TrimPrefix(v.GetKind().String(), "VERDICT_KIND_"))
}

// WantReason wants the reason for the ledger.
func (o *Outcome) WantReason(reason string) *Outcome {
	o.agent.t.Helper()
	if !slices.ContainsFunc(o.answer.GetVerdicts(), func(v *agentpb.Verdict) bool { return v.GetReason() == reason }) {
		return o.errorf("want reason %q", reason)
	}
	return o
}

// WantFault wants that the handler failed, with text in what it says.
func (o *Outcome) WantFault(text string) *Outcome {
	o.agent.t.Helper()
	if o.fault == 0 || !strings.Contains(o.answer.GetFault(), text) {
		return o.errorf("want a fault with %q", text)
	}
	o.agent.faults = slices.Delete(o.agent.faults, o.fault-1, o.fault)
	return o
}

// WantStamp wants a stamp to be left. An own one is named by its key alone.
func (o *Outcome) WantStamp(name, value string) *Outcome {
	o.agent.t.Helper()
	for _, s := range o.answer.GetStamps() {
		if s.GetName() == name && string(s.GetValue()) == value {
			return o
		}
	}
	return o.errorf("want stamp %s = %q", name, value)
}

// WantCount wants n added to a counter.
func (o *Outcome) WantCount(name string, n int) *Outcome {
	o.agent.t.Helper()
	total := 0
	for _, c := range o.answer.GetCounters() {
		if c.GetName() == name {
			total += int(c.GetAmount())
		}
	}
	if total != n {
		return o.errorf("counter %s grows by %d, want %d", name, total, n)
	}
	return o
}

// WantHeaderAdded wants a field in the message that was not in it, with this text.
func (o *Outcome) WantHeaderAdded(name, text string) *Outcome {
	o.agent.t.Helper()
	had := texts(o.before, name)
	for _, have := range texts(o.header, name) {
		if have == text && !slices.Contains(had, text) {
			return o
		}
	}
	return o.errorf("want header %s: %s, there is %q", name, text, texts(o.header, name))
}

// WantHeaderRemoved wants no field of that name left of those that were there.
func (o *Outcome) WantHeaderRemoved(name string) *Outcome {
	o.agent.t.Helper()
	if len(texts(o.before, name)) == 0 || len(texts(o.header, name)) > 0 {
		return o.errorf("want header %s removed", name)
	}
	return o
}

// WantBody wants the body to be this after the edits. Line ends may be LF.
func (o *Outcome) WantBody(text string) *Outcome {
	o.agent.t.Helper()
	if got := strings.ReplaceAll(string(o.body), "\r\n", "\n"); got != strings.ReplaceAll(text, "\r\n", "\n") {
		return o.errorf("the body is %q", got)
	}
	return o
}

// Message after the edits, with CRLF line ends. Where recipients get different ones, ask for MessageFor.
func (o *Outcome) Message() string {
	o.agent.t.Helper()
	for _, e := range o.answer.GetEdits() {
		for _, r := range o.envelope.GetRecipients() {
			if changesContent(e) && !isFor(e, r.GetIndex()) {
				o.errorf("an edit is not for %s: there are several messages", r.GetAddress())
			}
		}
	}
	return written(o.header, o.body)
}

// MessageFor is the message as one of several recipients gets it.
func (o *Outcome) MessageFor(recipient string) string {
	o.agent.t.Helper()
	index := uint32(o.index(recipient))
	header, body := o.base, o.Session.body
	edits := o.answer.GetEdits()
	if o.first != nil {
		fields, _, err := edited(o.first.base, nil, editsFor(o.first.answer.GetEdits(), index))
		if err != nil {
			o.errorf("%v", err)
		}
		header, edits = withOrder(fields, o.shown), o.last
	}
	header, body, err := edited(header, body, editsFor(edits, index))
	if err != nil {
		o.errorf("%v", err)
	}
	return written(header, body)
}

// withOrder numbers fields as the event showed them, so that its edits find theirs: a field that others got too has the
// number that it had there.
func withOrder(fields, shown []*agentpb.HeaderField) []*agentpb.HeaderField {
	out := make([]*agentpb.HeaderField, len(fields))
	next := 0
	for i, f := range fields {
		index := ^uint32(0)
		for j := next; j < len(shown); j++ {
			if string(shown[j].GetName()) == string(f.GetName()) && string(shown[j].GetValue()) == string(f.GetValue()) {
				index, next = shown[j].GetIndex(), j+1
				break
			}
		}
		out[i] = &agentpb.HeaderField{Name: f.GetName(), Value: f.GetValue(), Index: index}
	}
	return out
}

func isFor(e *agentpb.Edit, index uint32) bool {
	return len(e.GetRecipients()) == 0 || slices.Contains(e.GetRecipients(), index)
}

func editsFor(edits []*agentpb.Edit, index uint32) []*agentpb.Edit {
	return slices.DeleteFunc(slices.Clone(edits), func(e *agentpb.Edit) bool { return !isFor(e, index) })
}

// changesContent reports whether an edit makes another message.
func changesContent(e *agentpb.Edit) bool {
	switch e.GetEdit().(type) {
	case *agentpb.Edit_AddHeader, *agentpb.Edit_ReplaceHeader, *agentpb.Edit_RemoveHeader, *agentpb.Edit_Body:
		return true
	}
	return false
}

func written(header []*agentpb.HeaderField, body []byte) string {
	var b strings.Builder
	for _, f := range header {
		b.Write(f.GetName())
		b.WriteByte(':')
		b.Write(f.GetValue())
		b.WriteString("\r\n")
	}
	return b.String() + "\r\n" + string(body)
}

// WantCopy wants a copy kept in quarantine.
func (o *Outcome) WantCopy(reason string) *Outcome {
	o.agent.t.Helper()
	if !slices.ContainsFunc(o.answer.GetCopies(), func(c *agentpb.KeepCopy) bool { return c.GetReason() == reason }) {
		return o.errorf("want a copy kept: %s", reason)
	}
	return o
}

// WantSpawn wants a new message to this recipient.
func (o *Outcome) WantSpawn(recipient string) *Outcome {
	o.agent.t.Helper()
	for _, s := range o.answer.GetSpawns() {
		for _, r := range s.GetRecipients() {
			if strings.EqualFold(string(r), recipient) {
				return o
			}
		}
	}
	return o.errorf("want a new message to %s", recipient)
}

// texts of the fields of a name, unfolded and decoded.
func texts(fields []*agentpb.HeaderField, name string) []string {
	var all []string
	for _, f := range fields {
		if sameField(f, name) {
			all = append(all, sdk.Field{Name: string(f.GetName()), Raw: f.GetValue()}.Text())
		}
	}
	return all
}

// edited message: header fields and body with the edits applied in order.
func edited(header []*agentpb.HeaderField, body []byte, edits []*agentpb.Edit) ([]*agentpb.HeaderField, []byte, error) {
	original := body
	fields := slices.Clone(header)
	for _, e := range edits {
		switch e := e.GetEdit().(type) {
		case *agentpb.Edit_AddHeader:
			field := &agentpb.HeaderField{
				Name: e.AddHeader.GetName(), Value: append([]byte(" "), e.AddHeader.GetValue()...), Index: ^uint32(0),
			}
			if e.AddHeader.GetLast() {
				fields = append(fields, field)
			} else {
				fields = slices.Insert(fields, 0, field)
			}
		case *agentpb.Edit_ReplaceHeader:
			i := slices.IndexFunc(fields, func(f *agentpb.HeaderField) bool { return f.GetIndex() == e.ReplaceHeader.GetIndex() })
			if i < 0 || !sameField(fields[i], string(e.ReplaceHeader.GetName())) {
				return nil, nil, fmt.Errorf("replaces header field %d, %q, which is not there", e.ReplaceHeader.GetIndex(), e.ReplaceHeader.GetName())
			}
			fields[i] = &agentpb.HeaderField{
				Name: fields[i].GetName(), Value: append([]byte(" "), e.ReplaceHeader.GetValue()...), Index: fields[i].GetIndex(),
			}
		case *agentpb.Edit_RemoveHeader:
			fields = slices.DeleteFunc(fields, func(f *agentpb.HeaderField) bool {
				return sameField(f, string(e.RemoveHeader.GetName())) &&
					(e.RemoveHeader.Index == nil || e.RemoveHeader.GetIndex() == f.GetIndex())
			})
		case *agentpb.Edit_Body:
			var err error
			if body, err = assembled(original, e.Body); err != nil {
				return nil, nil, err
			}
		}
	}
	return fields, body, nil
}

// assembled body of its segments, with size and digest checked as a host does.
func assembled(original []byte, edit *agentpb.BodyEdit) ([]byte, error) {
	var body []byte
	for _, s := range edit.GetSegments() {
		switch s := s.GetSource().(type) {
		case *agentpb.Segment_Original:
			end := s.Original.GetOffset() + s.Original.GetLength()
			if end < s.Original.GetOffset() || end > uint64(len(original)) {
				return nil, fmt.Errorf("body edit: range up to %d of %d octets", end, len(original))
			}
			body = append(body, original[s.Original.GetOffset():end]...)
		case *agentpb.Segment_Data:
			body = append(body, s.Data...)
		default:
			return nil, fmt.Errorf("body edit: unknown segment %v", s)
		}
	}
	sum := sha256.Sum256(body)
	if uint64(len(body)) != edit.GetSize() || string(sum[:]) != string(edit.GetSha256()) {
		return nil, fmt.Errorf("body edit: size or digest is wrong")
	}
	if hasLoneEnds(body) && !hasLoneEnds(original) {
		return nil, fmt.Errorf("body edit: a line end that is not CRLF")
	}
	return body, nil
}

// hasLoneEnds reports whether a CR or LF stands alone, which no next hop may be sent.
func hasLoneEnds(body []byte) bool {
	pairs := bytes.Count(body, []byte("\r\n"))
	return bytes.Count(body, []byte("\r")) != pairs || bytes.Count(body, []byte("\n")) != pairs
}

// sameField compares names as the host does: without case, and without the blanks that RFC 5322 section 4.5 allows before the
// colon.
func sameField(f *agentpb.HeaderField, name string) bool {
	return strings.EqualFold(strings.TrimRight(string(f.GetName()), " \t"), name)
}
