package sdk

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Verdict is what a handler answers: a judgement with the edits, stamps, table writes and new messages that
// belong to it. It is a value: each method answers with a changed copy. The zero Verdict is no answer and
// makes the event fail.
type Verdict struct {
	kind       agentpb.VerdictKind
	reply      *agentpb.Reply
	delay      time.Duration
	category   Category
	scope      Scope
	reason     string
	data       string
	fault      error
	recipients selection
	extras     *extras
	parts      []Verdict // of PerRecipient
	raw        []*agentpb.Answer
}

// extras are what most verdicts do not have. Never changed once a Verdict points to it.
type extras struct {
	edits    []Edit
	stamps   []stamp
	writes   []Write
	spawns   []Spawn
	copies   []*agentpb.KeepCopy
	counters []*agentpb.Counter
	needs    []Keys
}

// Scope of a verdict.
type Scope = agentpb.Scope

// Scopes of Done and Bypass.
const (
	InSession    = agentpb.Scope_SCOPE_SESSION
	InMessage    = agentpb.Scope_SCOPE_MESSAGE
	ForRecipient = agentpb.Scope_SCOPE_RECIPIENT // of Bypass, with For
)

// Continue has no objection.
func Continue() Verdict { return Verdict{kind: agentpb.VerdictKind_VERDICT_KIND_CONTINUE} }

// Done has no objection and wants no further event in this scope: InMessage or InSession.
func Done(scope Scope) Verdict {
	return Verdict{kind: agentpb.VerdictKind_VERDICT_KIND_DONE, scope: scope}
}

// Reject refuses for good: code 500 to 599, an enhanced code of class 5 ("5.7.1") or "", and one line of text.
func Reject(code int, enhanced, text string) Verdict {
	return Verdict{kind: agentpb.VerdictKind_VERDICT_KIND_REJECT, reply: newReply(code, enhanced, text)}
}

// Defer refuses for now: code 400 to 499, an enhanced code of class 4 ("4.7.1") or "", and one line of text.
func Defer(code int, enhanced, text string) Verdict {
	return Verdict{kind: agentpb.VerdictKind_VERDICT_KIND_DEFER, reply: newReply(code, enhanced, text)}
}

// Wait lets an accepted message rest for d, on routing events.
func Wait(d time.Duration) Verdict {
	return Verdict{kind: agentpb.VerdictKind_VERDICT_KIND_DEFER, delay: d}
}

// Disconnect writes a reply, 421 if code is 0, and closes the connection.
func Disconnect(code int, enhanced, text string) Verdict {
	v := Verdict{kind: agentpb.VerdictKind_VERDICT_KIND_DISCONNECT}
	if code != 0 {
		v.reply = newReply(code, enhanced, text)
	}
	return v
}

// Discard answers as if the message was accepted and delivers nothing.
func Discard() Verdict { return Verdict{kind: agentpb.VerdictKind_VERDICT_KIND_DISCARD} }

// Quarantine accepts the message and keeps it for an operator.
func Quarantine() Verdict { return Verdict{kind: agentpb.VerdictKind_VERDICT_KIND_QUARANTINE} }

// Tarpit has no objection, but the client waits for its reply.
func Tarpit(d time.Duration) Verdict {
	return Verdict{kind: agentpb.VerdictKind_VERDICT_KIND_TARPIT, delay: d}
}

// Bypass has no objection, and the agents of a category are skipped in the scope.
func Bypass(category Category, scope Scope) Verdict {
	return Verdict{kind: agentpb.VerdictKind_VERDICT_KIND_BYPASS, category: category, scope: scope}
}

// Fail ends the delivery to the recipients with a notification to the sender, on routing events.
func Fail(code int, enhanced, text string) Verdict {
	return Verdict{kind: agentpb.VerdictKind_VERDICT_KIND_FAIL, reply: newReply(code, enhanced, text)}
}

// Undetermined could not judge, and the operator's on_failure decides what that means: neither a pass nor a
// crash. The text of err goes to the ledger, not to the client.
func Undetermined(reason string, err error) Verdict {
	v := Verdict{kind: agentpb.VerdictKind_VERDICT_KIND_UNDETERMINED, reason: reason}
	if err != nil {
		v.data = err.Error()
	}
	return v
}

// Fault says that the handler itself failed; a panic comes to the same.
func Fault(err error) Verdict {
	if err == nil {
		err = errors.New("fault without an error")
	}
	return Verdict{fault: err}
}

func newReply(code int, enhanced, text string) *agentpb.Reply {
	return &agentpb.Reply{Code: uint32(code), Enhanced: enhanced, Text: text}
}

// Because says why in the ledger: reason is a word or two from a closed list of the agent's, data what
// matched, a score or the like.
func (v Verdict) Because(reason, data string) Verdict {
	v.reason, v.data = reason, data
	return v
}

// For narrows the verdict and its edits to these recipients; for the others it is Continue.
func (v Verdict) For(recipients ...address.Mailbox) Verdict {
	v.recipients = selection{mode: only, mailboxes: recipients}
	return v
}

// ForAllBut narrows the verdict and its edits to the recipients that are not listed; for these it is Continue.
// The host makes two copies where that is needed.
func (v Verdict) ForAllBut(recipients ...address.Mailbox) Verdict {
	v.recipients = selection{mode: allBut, mailboxes: recipients}
	return v
}

// ForRecipients is For by recipients of the event.
func (v Verdict) ForRecipients(recipients ...EnvelopeRecipient) Verdict {
	v.recipients = selection{mode: byIndex}
	for _, r := range recipients {
		v.recipients.indexes = append(v.recipients.indexes, uint32(r.Index))
	}
	return v
}

// PerRecipient joins verdicts for different recipients into one answer. Each but the last must be narrowed with
// For, ForAllBut or ForRecipients; a recipient that none is for continues.
func PerRecipient(verdicts ...Verdict) Verdict {
	return Verdict{kind: agentpb.VerdictKind_VERDICT_KIND_CONTINUE, parts: slices.Clone(verdicts)}
}

// more answers with a copy of the extras that may be changed.
func (v *Verdict) more() *extras {
	x := &extras{}
	if v.extras != nil {
		*x = *v.extras
	}
	v.extras = x
	return x
}

// Edit the message.
func (v Verdict) Edit(edits ...Edit) Verdict {
	x := v.more()
	x.edits = append(slices.Clip(x.edits), edits...)
	return v
}

// Write rows of tables, when the event closes.
func (v Verdict) Write(writes ...Write) Verdict {
	x := v.more()
	x.writes = append(slices.Clip(x.writes), writes...)
	return v
}

// Spawn new messages, which enter the queue together with the one they came from.
func (v Verdict) Spawn(spawns ...Spawn) Verdict {
	x := v.more()
	x.spawns = append(slices.Clip(x.spawns), spawns...)
	return v
}

// KeepCopy keeps the message as it is now in quarantine, beside its delivery.
func (v Verdict) KeepCopy(reason string) Verdict {
	x := v.more()
	x.copies = append(slices.Clip(x.copies), &agentpb.KeepCopy{Reason: reason})
	return v
}

// KeepOriginal keeps the message as it was received in quarantine, beside its delivery.
func (v Verdict) KeepOriginal(reason string) Verdict {
	x := v.more()
	x.copies = append(slices.Clip(x.copies), &agentpb.KeepCopy{Reason: reason, Original: true})
	return v
}

// Count adds to a counter of the agent's metrics; name is [a-z][a-z0-9_]*.
func (v Verdict) Count(name string, n int) Verdict {
	x := v.more()
	x.counters = append(slices.Clip(x.counters), &agentpb.Counter{Name: name, Amount: uint64(max(n, 0))})
	return v
}

// Needs asks for rows under keys that were found in the content: the event comes again with them, once, with
// Needed set. Everything else in the verdict is left out.
func (v Verdict) Needs(keys ...Keys) Verdict {
	x := v.more()
	x.needs = append(slices.Clip(x.needs), keys...)
	return v
}

// stamp to be written.
type stamp struct {
	name      string
	value     string
	scope     Scope
	recipient int
}

func (v Verdict) stamp(s stamp) Verdict {
	x := v.more()
	x.stamps = append(slices.Clip(x.stamps), s)
	return v
}

// Stamp leaves a fact for later events: under the agent's own key, or a shared name that Info.SharedStamps
// lists. It lasts as long as the message, or as the session where it is left before MAIL.
func (v Verdict) Stamp(name, value string) Verdict { return v.stamp(stamp{name: name, value: value}) }

// StampSession leaves a fact that lasts until the session ends.
func (v Verdict) StampSession(name, value string) Verdict {
	return v.stamp(stamp{name: name, value: value, scope: InSession})
}

// StampRecipient leaves a fact that follows one recipient through rewriting and splits.
func (v Verdict) StampRecipient(r EnvelopeRecipient, name, value string) Verdict {
	return v.stamp(stamp{name: name, value: value, scope: ForRecipient, recipient: r.Index})
}

// Answer is the answer as it goes to the host, for what the methods above cannot say, and for tests of what a
// host does with nonsense. Where its id is 0 it gets that of the event. More than one is a second answer, which
// the host counts and drops.
func Answer(answers ...*agentpb.Answer) Verdict {
	return Verdict{kind: agentpb.VerdictKind_VERDICT_KIND_CONTINUE, raw: answers}
}

// errNoVerdict is what the zero Verdict comes to.
var errNoVerdict = errors.New("the handler answered nothing: continue is explicit (sdk.Continue())")

// answer the event with v.
func (v Verdict) answer(e *Event) (*agentpb.Answer, error) {
	if len(v.raw) > 0 {
		return v.raw[0], nil
	}
	a := new(agentpb.Answer)
	if v.extras != nil && len(v.extras.needs) > 0 {
		a.Need = needOf(v.extras.needs)
		return a, nil
	}
	if err := v.add(a, e); err != nil {
		return nil, err
	}
	if !coversAll(a.Verdicts) {
		a.Verdicts = append(a.Verdicts, continueFor(a.Verdicts, e)...)
	}
	return a, nil
}

// add v to the answer.
func (v Verdict) add(a *agentpb.Answer, e *Event) error {
	if v.fault != nil {
		return v.fault
	}
	if v.kind == agentpb.VerdictKind_VERDICT_KIND_UNSPECIFIED {
		return errNoVerdict
	}
	for _, part := range v.parts {
		if err := part.add(a, e); err != nil {
			return err
		}
	}
	indexes, nobody := v.recipients.resolve(e)
	if len(v.parts) == 0 && !nobody {
		a.Verdicts = append(a.Verdicts, v.proto(indexes))
	}
	if v.extras == nil {
		return nil
	}
	return v.extras.add(a, e, indexes, nobody)
}

func (v Verdict) proto(recipients []uint32) *agentpb.Verdict {
	return &agentpb.Verdict{
		Kind: v.kind, Reply: v.reply, DelayMillis: uint64(v.delay.Milliseconds()), Category: v.category, Scope: v.scope,
		Recipients: recipients, Reason: v.reason, Data: v.data,
	}
}

// coversAll reports whether one of the verdicts is for all recipients.
func coversAll(verdicts []*agentpb.Verdict) bool {
	return slices.ContainsFunc(verdicts, func(v *agentpb.Verdict) bool { return len(v.Recipients) == 0 })
}

// continueFor makes the verdict of the recipients that are not mentioned: continue is explicit.
func continueFor(verdicts []*agentpb.Verdict, e *Event) []*agentpb.Verdict {
	var rest []uint32
	for _, r := range e.Proto().GetEnvelope().GetRecipients() {
		mentioned := slices.ContainsFunc(verdicts, func(v *agentpb.Verdict) bool { return slices.Contains(v.Recipients, r.Index) })
		if !mentioned {
			rest = append(rest, r.Index)
		}
	}
	if len(rest) == 0 && len(verdicts) > 0 {
		return nil
	}
	return []*agentpb.Verdict{{Kind: agentpb.VerdictKind_VERDICT_KIND_CONTINUE, Recipients: rest}}
}

// add what rides on a verdict to the answer. Edits are for the recipients of the verdict.
func (x *extras) add(a *agentpb.Answer, e *Event, recipients []uint32, nobody bool) error {
	for _, edit := range x.edits {
		if nobody {
			break
		}
		if err := addEdit(a, e, edit, recipients); err != nil {
			return err
		}
	}
	for _, s := range x.stamps {
		a.Stamps = append(a.Stamps, s.proto(e.Kind))
	}
	for _, w := range x.writes {
		p, err := w.proto(e)
		if err != nil {
			return err
		}
		a.Writes = append(a.Writes, p)
	}
	for _, s := range x.spawns {
		a.Spawns = append(a.Spawns, s.proto())
	}
	a.Copies = append(a.Copies, x.copies...)
	a.Counters = append(a.Counters, x.counters...)
	return nil
}

// proto of a stamp; before MAIL there is no message that it could last as long as.
func (s stamp) proto(kind EventKind) *agentpb.Stamp {
	scope := s.scope
	if scope == agentpb.Scope_SCOPE_UNSPECIFIED {
		scope = InMessage
		if kind < OnMail || kind >= OnNoop && kind <= OnDisconnect {
			scope = InSession
		}
	}
	return &agentpb.Stamp{Name: s.name, Scope: scope, Recipient: uint32(s.recipient), Value: []byte(s.value)}
}

// selection of recipients.
type selection struct {
	mode      selectionMode
	mailboxes []address.Mailbox
	indexes   []uint32
}

type selectionMode uint8

const (
	everybody selectionMode = iota
	only
	allBut
	byIndex
)

// resolve the selection to indexes. No index means all on the wire, so nobody is said apart.
func (s selection) resolve(e *Event) (indexes []uint32, nobody bool) {
	switch s.mode {
	case everybody:
		return nil, false
	case byIndex:
		return s.indexes, len(s.indexes) == 0
	}
	listed := make(map[string]bool, len(s.mailboxes))
	for _, m := range s.mailboxes {
		listed[m.Key()] = true
	}
	recipients := e.Proto().GetEnvelope().GetRecipients()
	for _, r := range recipients {
		if listed[mailboxOf(string(r.GetAddress())).Key()] == (s.mode == only) {
			indexes = append(indexes, r.GetIndex())
		}
	}
	if s.mode == allBut && len(indexes) == len(recipients) {
		return nil, false
	}
	return indexes, len(indexes) == 0
}

// String tells a verdict in logs of tests: "reject 550 5.7.1 text".
func (v Verdict) String() string {
	name := v.kind.String()[len("VERDICT_KIND_"):]
	if v.reply != nil {
		return fmt.Sprintf("%s %d %s %s", name, v.reply.Code, v.reply.Enhanced, v.reply.Text)
	}
	return name
}
