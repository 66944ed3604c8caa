package main

import (
	"context"
	"strings"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/mime"
)

// Filter judges the sender twice: that of the envelope at MAIL, and those of the header when it is there, since
// people see only the latter. What a recipient has blocked is judged for that recipient alone.
type Filter struct {
	Config
	blocked *list
	stop    func() // ends the watching of files

	sender, senderDomain sdk.Table[row] // table blocked, by the envelope
	from, fromDomain     sdk.Table[row] // the same, by the header

	rcptSender, rcptSenderDomain sdk.Table[safelistRow] // what recipients say of the envelope's sender
	rcptFrom, rcptFromDomain     sdk.Table[safelistRow] // and of the header's
}

// row of the table blocked, whose keys are senders, domains, and "*." before a domain for its subdomains. Any JSON object
// blocks.
type row struct {
	Reason any `json:"reason"`
}

// safelistRow is a row of the host's table safelist, whose keys are "recipient|sender" and
// "recipient|domain of the sender".
type safelistRow struct {
	List string `json:"list"` // "safe" or "blocked"
}

// Reasons in the ledger, and values of the stamp status.
const (
	reasonBlank     = "BlankSender"            // block_blank_senders
	reasonListed    = "SenderOnBlockList"      // blocked_senders and its files
	reasonTable     = "SenderInTable"          // the table blocked
	reasonRecipient = "RecipientBlockedSender" // the table safelist
)

// stampStatus holds one of the reasons for mail that action = "stamp" let pass.
const stampStatus = "status"

func (f *Filter) subscribe(r *sdk.Registrar) {
	const table = "blocked"
	f.sender = sdk.UseTable[row](r, table, sdk.Key(sdk.Sender), sdk.OnlyAt(sdk.OnMail))
	f.senderDomain = sdk.UseTable[row](r, table, sdk.Key(sdk.SenderDomain), sdk.OnlyAt(sdk.OnMail))
	f.from = sdk.UseTable[row](r, table, sdk.Key(sdk.HeaderFrom), sdk.OnlyAt(sdk.OnEndOfHeaders))
	f.fromDomain = sdk.UseTable[row](r, table, sdk.Key(sdk.HeaderFromDomain), sdk.OnlyAt(sdk.OnEndOfHeaders))
	f.rcptSender = sdk.UseTable[safelistRow](r, "safelist", sdk.Key(sdk.Recipient, sdk.Sender), sdk.OnlyAt(sdk.OnRcpt))
	f.rcptSenderDomain = sdk.UseTable[safelistRow](r, "safelist", sdk.Key(sdk.Recipient, sdk.SenderDomain), sdk.OnlyAt(sdk.OnRcpt))
	f.rcptFrom = sdk.UseTable[safelistRow](r, "safelist", sdk.Key(sdk.Recipient, sdk.HeaderFrom), sdk.OnlyAt(sdk.OnEndOfHeaders))
	f.rcptFromDomain = sdk.UseTable[safelistRow](r, "safelist", sdk.Key(sdk.Recipient, sdk.HeaderFromDomain), sdk.OnlyAt(sdk.OnEndOfHeaders))
	r.OnMail(sdk.MayChange(sdk.Verdicts, sdk.Stamps(stampStatus)))
	r.OnRcpt(sdk.MayChange(sdk.Verdicts))
	r.OnEndOfHeaders(sdk.ReadsHeaders("From", "Sender"), sdk.MayChange(sdk.Verdicts, sdk.Stamps(stampStatus)))
}

// Close is called when the last event of this configuration was answered.
func (f *Filter) Close() { f.stop() }

// OnMail judges the sender of the envelope.
func (f *Filter) OnMail(_ context.Context, e *sdk.MailEvent) sdk.Verdict {
	if e.Sender.IsNull() {
		if f.BlockBlankSenders {
			return f.act(reasonBlank, "<>")
		}
		return sdk.Continue()
	}
	if entry, ok := f.blocked.find(e.Sender.Mailbox); ok {
		return f.act(reasonListed, entry)
	}
	if key, ok := inTable(e, f.sender, f.senderDomain); ok {
		return f.act(reasonTable, key)
	}
	return f.askAbove(e, f.sender, e.Sender.Mailbox, sdk.Continue)
}

// askAbove asks for the rows of the table that block the subdomains of the domains above the sender's. Without one it is
// what otherwise says.
func (f *Filter) askAbove(e sdk.Subject, table sdk.Table[row], sender address.Mailbox, otherwise func() sdk.Verdict) sdk.Verdict {
	keys := above(sender.Domain)
	if len(keys) > 0 && !e.Common().Needed {
		return sdk.Continue().Needs(table.Keys(keys...))
	}
	for _, key := range keys {
		if _, known := table.RowOf(e, key); known {
			return f.act(reasonTable, key)
		}
	}
	return otherwise()
}

// maxAbove bounds how many domains above one are asked for: a name may have 127 labels.
const maxAbove = 16

// above are the keys of rows that block a domain by one above it, the nearest first.
func above(domain string) (keys []string) {
	if strings.HasPrefix(domain, "[") {
		return nil
	}
	for range maxAbove {
		_, rest, more := strings.Cut(domain, ".")
		if !more {
			break
		}
		keys = append(keys, "*."+strings.ToLower(rest))
		domain = rest
	}
	return keys
}

// OnRcpt asks what this recipient says of the sender.
func (f *Filter) OnRcpt(_ context.Context, e *sdk.RcptEvent) sdk.Verdict {
	if e.Sender.IsNull() {
		return sdk.Continue()
	}
	if key, ok := blockedBy(e, e.Recipient, f.rcptSender, f.rcptSenderDomain); ok {
		return f.actFor().Because(reasonRecipient, key)
	}
	return sdk.Continue()
}

// OnEndOfHeaders judges the senders that people will see: all of From, and Sender.
func (f *Filter) OnEndOfHeaders(_ context.Context, e *sdk.HeadersEvent) sdk.Verdict {
	for _, m := range headerSenders(e) {
		if entry, ok := f.blocked.find(m); ok {
			return f.act(reasonListed, entry)
		}
	}
	if e.Message.From.IsNull() {
		return sdk.Continue()
	}
	if key, ok := inTable(e, f.from, f.fromDomain); ok {
		return f.act(reasonTable, key)
	}
	return f.askAbove(e, f.from, e.Message.From, func() sdk.Verdict { return f.askRecipients(e) })
}

// askRecipients what they say of the header's sender.
func (f *Filter) askRecipients(e *sdk.HeadersEvent) sdk.Verdict {
	var unwilling []sdk.EnvelopeRecipient
	for _, r := range e.Recipients {
		if _, ok := blockedBy(e, r, f.rcptFrom, f.rcptFromDomain); ok {
			unwilling = append(unwilling, r)
		}
	}
	v := f.actFor().Because(reasonRecipient, e.Message.From.String())
	switch len(unwilling) {
	case 0:
		return sdk.Continue()
	case len(e.Recipients):
		return v
	}
	return v.ForRecipients(unwilling...)
}

// headerSenders are the mailboxes of From and Sender. Of a field that does not parse they are those that can be made out.
func headerSenders(e *sdk.HeadersEvent) []address.Mailbox {
	header := mime.ParseHeader(e.Headers.Block())
	all := []address.Mailbox{e.Message.From}
	add := func(text string) {
		if m, err := address.Parse(text); err == nil {
			all = append(all, m)
		}
	}
	for _, name := range []string{"From", "Sender"} {
		list, ok := header.Addresses(name)
		for _, a := range list {
			add(a.Address)
		}
		if ok {
			continue
		}
		for _, value := range header.All(name) {
			for _, like := range mime.AddressLike(value) {
				add(like)
			}
		}
	}
	return all
}

// inTable answers with the key of the row that blocks: that of the address, or that of its domain.
func inTable(e sdk.Subject, tables ...sdk.Table[row]) (key string, ok bool) {
	for _, t := range tables {
		if r, known := t.Row(e); known {
			return r.Key, true
		}
	}
	return "", false
}

// blockedBy reports whether a recipient has blocked the sender. What is said of an address outweighs what is said
// of its domain.
func blockedBy(e sdk.Subject, r sdk.EnvelopeRecipient, tables ...sdk.Table[safelistRow]) (key string, ok bool) {
	for _, t := range tables {
		if row, known := t.RowFor(e, r); known {
			return row.Key, row.Value.List == "blocked"
		}
	}
	return "", false
}

// act on mail of a blocked sender.
func (f *Filter) act(reason, data string) sdk.Verdict {
	v := sdk.Reject(554, "5.1.0", "Sender denied")
	switch {
	case f.Action == "stamp":
		v = sdk.Continue().Stamp(stampStatus, reason)
	case f.Disconnect:
		v = sdk.Disconnect(554, "5.1.0", "Sender denied")
	}
	return v.Because(reason, data)
}

// actFor is the verdict for a recipient who has blocked the sender.
func (f *Filter) actFor() sdk.Verdict {
	if f.RecipientAction == "delete" {
		return sdk.Discard()
	}
	return sdk.Reject(554, "5.1.0", "Sender denied")
}
