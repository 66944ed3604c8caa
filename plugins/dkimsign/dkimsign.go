package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/arc"
	"github.com/posternmail/postern/sdk/dkim"
)

// Signer signs at OnCategorized, the last event before delivery: whatever rewrites the message has run. Only mail of
// our own users and servers, and what the host and its agents wrote, is signed: anybody may claim to be ours.
type Signer struct {
	Config
	host       *sdk.Host
	signers    map[string][]dkim.Signer // by domain
	subdomains map[string][]dkim.Signer // of those that sign for subdomains
	sealer     *dkim.Signer
}

// stampARC is the state of the chain as senderauth found it. Without it Authentication-Results are a stranger's words: nobody
// has judged the message, and nobody has taken out results that claim to be ours.
const stampARC = "auth.arc"

// Reasons in the ledger.
const (
	reasonSigned    = "Signed"
	reasonSealed    = "Sealed"
	reasonNotSealed = "NotSealed"
	reasonNoKey     = "NoKey" // of our own, but there is no key for the domain of From
)

func (s *Signer) subscribe(r *sdk.Registrar) {
	r.OnCategorized(sdk.ReadsHeaders(), sdk.ReadsStamps(stampARC), sdk.Body(sdk.Whole, sdk.Current), sdk.MayChange(sdk.Verdicts, sdk.Headers))
	if len(s.signers) == 0 && s.sealer == nil {
		r.Skip(sdk.OnCategorized)
		r.Warn("there is no key, so nothing is signed")
	}
}

// OnCategorized signs or seals the copy that is about to be delivered.
func (s *Signer) OnCategorized(_ context.Context, e *sdk.RoutingEvent) sdk.Verdict {
	if own(e) {
		return s.sign(e)
	}
	if s.sealer != nil && s.leaves(e) {
		return s.seal(e)
	}
	return sdk.Continue()
}

// own mail: of our users and servers, or written here. What senderauth has judged is from outside, though an own server
// handed it on.
func own(e *sdk.RoutingEvent) bool {
	if e.Stamp(stampARC) != "" {
		return false
	}
	if e.Origin == "dsn" || e.Origin == "spawn" {
		return true
	}
	return e.Session.Auth != nil || e.Session.Trust == sdk.User || e.Session.Trust == sdk.OwnServer
}

// leaves reports whether a recipient is none of ours.
func (s *Signer) leaves(e *sdk.RoutingEvent) bool {
	for _, r := range e.Recipients {
		if !s.host.Accepts(strings.ToLower(r.Domain)) {
			return true
		}
	}
	return false
}

func messageOf(e *sdk.RoutingEvent) *dkim.Message {
	body := e.Body()
	return dkim.NewMessage(e.Headers.Block(), body, body.Size())
}

// keysOf a domain: its own, or those of the nearest domain above that signs for subdomains.
func (s *Signer) keysOf(domain string) []dkim.Signer {
	if keys := s.signers[domain]; keys != nil {
		return keys
	}
	for {
		_, above, found := strings.Cut(domain, ".")
		if !found {
			return nil
		}
		if keys := s.subdomains[above]; keys != nil {
			return keys
		}
		domain = above
	}
}

func (s *Signer) sign(e *sdk.RoutingEvent) sdk.Verdict {
	domain := strings.ToLower(e.Message.From.Domain)
	keys := s.keysOf(domain)
	if len(keys) == 0 {
		return sdk.Continue().Because(reasonNoKey, domain)
	}
	m := messageOf(e)
	v := sdk.Continue()
	var names []string
	for _, key := range keys {
		key.Headers = s.fields(m)
		value, err := key.Sign(m, e.Time)
		if err != nil {
			return sdk.Undetermined("SigningFailed", fmt.Errorf("with %s of %s: %w", key.Selector, key.Domain, err))
		}
		v = v.Edit(sdk.AddRawHeader("DKIM-Signature", []byte(strings.TrimLeft(value, " "))))
		names = append(names, key.Selector+"@"+key.Domain)
	}
	return v.Because(reasonSigned, strings.Join(names, " ")).Count("signed", 1)
}

// fields to sign, From among them.
func (s *Signer) fields(m *dkim.Message) []string {
	headers := dkim.OversignedHeaders(m, s.Headers, s.Once)
	for _, name := range headers {
		if name == "from" {
			return headers
		}
	}
	return append([]string{"from"}, headers...)
}

func (s *Signer) seal(e *sdk.RoutingEvent) sdk.Verdict {
	if e.Stamp(stampARC) == "" {
		return sdk.Continue().Because(reasonNotSealed, "nobody has judged the message")
	}
	m := messageOf(e)
	server := s.Seal.AuthservID
	if server == "" {
		server = s.host.Name
	}
	key := *s.sealer
	key.Headers = s.fields(m)
	set, err := arc.Seal(m, &key, server, e.Time)
	switch {
	case errors.Is(err, arc.ErrNoResults), errors.Is(err, arc.ErrFailed), errors.Is(err, arc.ErrUnknown):
		return sdk.Continue().Because(reasonNotSealed, err.Error())
	case err != nil:
		return sdk.Undetermined("SealingFailed", err)
	}
	return sdk.Continue().Edit(
		sdk.AddRawHeader(arc.ResultsField, []byte(set.Results)),
		sdk.AddRawHeader(arc.MessageField, []byte(strings.TrimLeft(set.Message, " "))),
		sdk.AddRawHeader(arc.SealField, []byte(strings.TrimLeft(set.Seal, " "))),
	).Because(reasonSealed, key.Selector+"@"+key.Domain).Count("sealed", 1)
}
