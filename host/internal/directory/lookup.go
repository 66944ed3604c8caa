package directory

import (
	"encoding/json"

	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/address"
)

// Tables that a directory fills.
const (
	recipientsTable = "recipients"
	groupsTable     = "groups"
	safelistTable   = "safelist"
)

// recipientRow is a row of the table recipients. Its key is an address or alias (address.Mailbox.Key), or "@" and a
// domain of which the directory knows every recipient.
type recipientRow struct {
	Address string `json:"address,omitempty"` // the primary one; empty where only hashes are known
	Group   bool   `json:"group,omitempty"`
	Domain  bool   `json:"domain,omitempty"`
}

// groupRow is a row of the table groups.
type groupRow struct {
	Members []string `json:"members"`
}

// safelistRow is a row of the table safelist. Its key is "recipient|sender" or "recipient|sender domain".
type safelistRow struct {
	List string `json:"list"` // "safe" or "blocked"
}

// Recipient looks m up, which may be an alias, and answers with its primary address. Of a hashed directory only
// is known that it exists, so its primary address is itself.
func Recipient(t tables.Store, m address.Mailbox) (address.Mailbox, bool) {
	row, ok := t.Get(recipientsTable, m.Key())
	if !ok {
		return address.Mailbox{}, false
	}
	var r recipientRow
	if json.Unmarshal(row.Value, &r) != nil || r.Address == "" {
		return m, true
	}
	primary, err := address.Parse(r.Address)
	if err != nil {
		return m, true
	}
	return primary, true
}

// Group answers with the members of the group m; false when m is none.
func Group(t tables.Store, m address.Mailbox) ([]address.Mailbox, bool) {
	row, ok := t.Get(groupsTable, m.Key())
	if !ok {
		return nil, false
	}
	var g groupRow
	if json.Unmarshal(row.Value, &g) != nil {
		return nil, false
	}
	members := make([]address.Mailbox, 0, len(g.Members))
	for _, text := range g.Members {
		if member, err := address.Parse(text); err == nil {
			members = append(members, member)
		}
	}
	return members, true
}

// Covers reports whether a directory knows every recipient of domain, so that one it does not know does not exist.
func Covers(t tables.Store, domain string) bool {
	_, ok := t.Get(recipientsTable, "@"+address.ASCIIDomain(domain))
	return ok
}
