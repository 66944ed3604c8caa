package sdk

import (
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Edit is a change of the message. Edits of a verdict are applied in order.
type Edit interface {
	// protos of the change; sees names the event it answers.
	protos(e *Event) ([]*agentpb.Edit, error)
}

// simpleEdit is ready as it is.
type simpleEdit struct{ edit *agentpb.Edit }

func (s simpleEdit) protos(*Event) ([]*agentpb.Edit, error) {
	return []*agentpb.Edit{{Edit: s.edit.Edit}}, nil
}

// addEdit adds an edit for the recipients, all if there is none.
func addEdit(a *agentpb.Answer, e *Event, edit Edit, recipients []uint32) error {
	list, err := edit.protos(e)
	if err != nil {
		return err
	}
	for _, p := range list {
		p.Recipients = recipients
	}
	a.Edits = append(a.Edits, list...)
	return nil
}

// AddHeader adds a field before all others. Text that is not printable ASCII is encoded (RFC 2047), long text
// is folded, and line ends in it become spaces.
func AddHeader(name, text string) Edit {
	return addHeader(&agentpb.AddHeader{Name: []byte(name), Value: encodeText(name, text)})
}

// AppendHeader adds a field behind all others; else like AddHeader.
func AppendHeader(name, text string) Edit {
	return addHeader(&agentpb.AddHeader{Name: []byte(name), Value: encodeText(name, text), Last: true})
}

// AddRawHeader adds a field before all others with the value as it is: for structured fields (addresses,
// signatures). A line end in it must be a fold.
func AddRawHeader(name string, value []byte) Edit {
	return addHeader(&agentpb.AddHeader{Name: []byte(name), Value: value})
}

func addHeader(h *agentpb.AddHeader) Edit {
	return simpleEdit{&agentpb.Edit{Edit: &agentpb.Edit_AddHeader{AddHeader: h}}}
}

// ReplaceHeader gives a field of the event another text.
func ReplaceHeader(f Field, text string) Edit {
	return ReplaceRawHeader(f, encodeText(f.Name, text))
}

// ReplaceRawHeader gives a field of the event another value, as it is.
func ReplaceRawHeader(f Field, value []byte) Edit {
	return simpleEdit{&agentpb.Edit{Edit: &agentpb.Edit_ReplaceHeader{ReplaceHeader: &agentpb.ReplaceHeader{
		Index: uint32(f.Index), Name: []byte(f.Name), Value: value,
	}}}}
}

// RemoveHeader removes all fields of that name.
func RemoveHeader(name string) Edit {
	return simpleEdit{&agentpb.Edit{Edit: &agentpb.Edit_RemoveHeader{RemoveHeader: &agentpb.RemoveHeader{
		Name: []byte(name),
	}}}}
}

// RemoveField removes one field of the event.
func RemoveField(f Field) Edit {
	index := uint32(f.Index)
	return simpleEdit{&agentpb.Edit{Edit: &agentpb.Edit_RemoveHeader{RemoveHeader: &agentpb.RemoveHeader{
		Name: []byte(f.Name), Index: &index,
	}}}}
}

// AddRecipient adds a recipient; failures are not notified.
func AddRecipient(m address.Mailbox) Edit {
	return simpleEdit{&agentpb.Edit{Edit: &agentpb.Edit_AddRecipient{AddRecipient: &agentpb.AddRecipient{
		Address: []byte(m.String()),
	}}}}
}

// RemoveRecipient removes a recipient silently.
func RemoveRecipient(r EnvelopeRecipient) Edit {
	return simpleEdit{&agentpb.Edit{Edit: &agentpb.Edit_RemoveRecipient{RemoveRecipient: &agentpb.RemoveRecipient{
		Index: uint32(r.Index),
	}}}}
}

// FailRecipient removes a recipient and reports the failure to the sender with this reply.
func FailRecipient(r EnvelopeRecipient, code int, enhanced, text string) Edit {
	return simpleEdit{&agentpb.Edit{Edit: &agentpb.Edit_RemoveRecipient{RemoveRecipient: &agentpb.RemoveRecipient{
		Index: uint32(r.Index), Report: newReply(code, enhanced, text),
	}}}}
}

// RewriteRecipient changes the address of a recipient.
func RewriteRecipient(r EnvelopeRecipient, m address.Mailbox) Edit {
	return simpleEdit{&agentpb.Edit{Edit: &agentpb.Edit_RewriteRecipient{RewriteRecipient: &agentpb.RewriteRecipient{
		Index: uint32(r.Index), Address: []byte(m.String()),
	}}}}
}

// RewriteSender changes the envelope sender.
func RewriteSender(m address.Mailbox) Edit {
	return simpleEdit{&agentpb.Edit{Edit: &agentpb.Edit_RewriteSender{RewriteSender: &agentpb.RewriteSender{
		Address: []byte(m.String()),
	}}}}
}

// Expand replaces a recipient by others, on routing events.
func Expand(r EnvelopeRecipient, members ...address.Mailbox) Edit {
	expand := &agentpb.Expand{Index: uint32(r.Index)}
	for _, m := range members {
		expand.Addresses = append(expand.Addresses, []byte(m.String()))
	}
	return simpleEdit{&agentpb.Edit{Edit: &agentpb.Edit_Expand{Expand: expand}}}
}

// Route chooses the send connector as if this were the domain of the recipients, at OnResolved.
func Route(domain string) Edit {
	return simpleEdit{&agentpb.Edit{Edit: &agentpb.Edit_Route{Route: &agentpb.Route{Domain: domain}}}}
}

// Fork makes the recipients of the verdict a copy of their own, on routing events. Narrow it with For.
func Fork() Edit {
	return simpleEdit{&agentpb.Edit{Edit: &agentpb.Edit_Fork{Fork: &agentpb.Fork{}}}}
}

// Spawn is a new message.
type Spawn struct {
	// Sender of the envelope; the zero Mailbox is the null sender.
	Sender address.Mailbox
	// Recipients of the envelope.
	Recipients []address.Mailbox
	// Before the original: a header block, an empty line, and what follows, with CRLF line ends.
	Before []byte
	// IncludeOriginal puts the message as it is now between Before and After.
	IncludeOriginal bool
	// After the original.
	After []byte
	// Durable never expires silently: what fails comes to OnRouted once more, and is parked for the operator if no agent
	// sends it elsewhere.
	Durable bool
}

func (s Spawn) proto() *agentpb.Spawn {
	p := &agentpb.Spawn{
		Sender: []byte(s.Sender.String()), Before: s.Before, IncludeOriginal: s.IncludeOriginal, After: s.After,
		Durable: s.Durable,
	}
	for _, r := range s.Recipients {
		p.Recipients = append(p.Recipients, []byte(r.String()))
	}
	return p
}
