package main

import (
	"github.com/posternmail/postern/sdk"
)

// safelistRow is a row of the host's table safelist, whose keys are "recipient|sender" and
// "recipient|domain of the sender".
type safelistRow struct {
	List string `json:"list"` // "safe" or "blocked"
}

// safelist is what recipients themselves say of a sender. The sender filter acts on those that they block.
type safelist struct {
	envelope [2]sdk.Table[safelistRow] // of the envelope's sender: its address, then its domain
	header   [2]sdk.Table[safelistRow] // of the first address in From, likewise
}

func newSafelist(r *sdk.Registrar) safelist {
	use := func(sender sdk.KeyPart) sdk.Table[safelistRow] {
		return sdk.UseTable[safelistRow](r, "safelist", sdk.Key(sdk.Recipient, sender), sdk.OnlyAt(sdk.OnEndOfData))
	}
	return safelist{
		envelope: [2]sdk.Table[safelistRow]{use(sdk.Sender), use(sdk.SenderDomain)},
		header:   [2]sdk.Table[safelistRow]{use(sdk.HeaderFrom), use(sdk.HeaderFromDomain)},
	}
}

// trusts answers with the entry by which a recipient trusts the sender. One of the two senders is enough, unless the
// recipient blocks the other.
func (s *safelist) trusts(e *sdk.DataEvent, r sdk.EnvelopeRecipient) (entry string, ok bool) {
	for _, tables := range [2][2]sdk.Table[safelistRow]{s.envelope, s.header} {
		key, list := listed(e, r, tables)
		switch list {
		case "blocked":
			return "", false
		case "safe":
			entry, ok = key, true
		}
	}
	return entry, ok
}

// listed is what a recipient says of an address, or else of its domain.
func listed(e *sdk.DataEvent, r sdk.EnvelopeRecipient, tables [2]sdk.Table[safelistRow]) (key, list string) {
	for _, t := range tables {
		if row, known := t.RowFor(e, r); known {
			return row.Key, row.Value.List
		}
	}
	return "", ""
}
