package main

import (
	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/match"
)

// list of senders. What its files hold changes with them; the rest stays.
type list struct {
	fixed *match.Addresses
	files *match.Files[match.Addresses]
}

func openList(r *sdk.Registrar, cfg Config) (*list, error) {
	l := new(list)
	var i int
	var err error
	if l.fixed, i, err = match.NewAddresses(cfg.BlockedSenders); err != nil {
		return nil, r.At("blocked_senders", i).Error(err)
	}
	if l.files, i, err = match.OpenFiles(cfg.BlockedSendersFiles, readLine); err != nil {
		return nil, r.At("blocked_senders_files", i).Error(err)
	}
	return l, nil
}

// find the closest entry for a sender.
func (l *list) find(m address.Mailbox) (entry string, ok bool) {
	if entry, ok := l.fixed.Match(m); ok {
		return entry, true
	}
	return l.files.List().Match(m)
}

// readLine reads an entry, behind which "#" begins a comment.
func readLine(list *match.Addresses, line string) error {
	entry, _ := match.CutComment(line, "#")
	if entry == "" {
		return nil
	}
	return list.Add(entry)
}
