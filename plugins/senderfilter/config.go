package main

import (
	"errors"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/match"
)

//go:generate go run . --options=README.md

// Config is the agent's configuration. Empty, it honours what recipients have blocked and the table "blocked".
type Config struct {
	BlockedSenders      []string `hcl:"blocked_senders,optional" doc:"Senders whose mail is refused: user@domain, domain (just that one), *.domain (its subdomains)." example:"[\"spam@example.net\", \"example.com\", \"*.example.com\"]"`
	BlockedSendersFiles []string `hcl:"blocked_senders_files,optional" format:"path" doc:"Files with such an entry a line, # begins a comment. They are read again when they change."`
	BlockBlankSenders   bool     `hcl:"block_blank_senders,optional" default:"false" doc:"Refuse MAIL FROM:<>. That is how notifications of failed deliveries are sent, so they are lost with it."`
	Action              string   `hcl:"action,optional" default:"reject" one_of:"reject stamp" doc:"What happens to mail of blocked senders: reject, or only leave the stamp status for agents behind this one."`
	Disconnect          bool     `hcl:"disconnect,optional" default:"false" doc:"Close the connection with a refusal by the lists."`
	RecipientAction     string   `hcl:"recipient_action,optional" default:"reject" one_of:"reject delete" doc:"What happens to mail for a recipient who has blocked the sender: reject, or delete, which the sender does not learn of."`
}

// New checks cfg and reads its files. It is called for every new configuration.
func New(cfg Config, r *sdk.Registrar) (*Filter, error) {
	f := &Filter{Config: cfg}
	var err error
	if f.blocked, err = openList(r, cfg); err != nil {
		return nil, err
	}
	if cfg.Disconnect && cfg.Action == "stamp" {
		return nil, r.At("disconnect").Error(errors.New("needs action = \"reject\": mail that is only stamped is not refused"))
	}
	f.subscribe(r)
	f.stop = func() {}
	if !r.Validating() {
		f.stop = match.Follow(r.Logger(), map[string]match.Followed{"blocked_senders": f.blocked.files})
	}
	return f, nil
}
