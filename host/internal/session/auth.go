package session

import (
	"bytes"
	"strings"

	"github.com/emersion/go-sasl"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/wire"
	"github.com/posternmail/postern/sdk/agentpb"
)

// authCommand refuses AUTH where it is not offered (RFC 4954 section 4).
func (s *Session) authCommand(*wire.Command) (wire.Answer, bool) {
	switch {
	case !s.permitsUsers():
		return wire.Answer{Reply: authMissing}, false
	case s.w.TLS() == nil:
		return wire.Answer{Reply: authNeedsTLS}, false
	case s.tx != nil:
		return wire.Answer{Reply: inTransaction}, false
	}
	return wire.Answer{}, true
}

// AuthMechanisms implements smtp.AuthSession. The keyword is written by keywords.
func (s *Session) AuthMechanisms() []string { return nil }

// Auth implements smtp.AuthSession and raises OnAuth.
func (s *Session) Auth(mechanism string) (sasl.Server, error) {
	x := &exchange{s: s, mechanism: mechanism}
	switch mechanism {
	case "PLAIN":
		x.step = x.plain
	case "LOGIN":
		x.step = x.loginUser
	default:
		return nil, s.answer(wire.Answer{Reply: authMechanism})
	}
	a, refused := s.ask(agentpb.EventKind_EVENT_KIND_AUTH, s.authFacts(x, agentpb.EventKind_EVENT_KIND_AUTH, false))
	if refused {
		return nil, s.answer(a)
	}
	return x, nil
}

// exchange is one authentication under way.
type exchange struct {
	s         *Session
	mechanism string
	user      string
	step      func(response []byte) (challenge []byte, done bool, err error)
}

// Next implements sasl.Server.
func (x *exchange) Next(response []byte) (challenge []byte, done bool, err error) {
	return x.step(response)
}

// plain follows RFC 4616: authorization identity, NUL, authentication identity, NUL, password.
func (x *exchange) plain(response []byte) ([]byte, bool, error) {
	if response == nil {
		return []byte{}, false, nil
	}
	parts := bytes.Split(response, []byte{0})
	if len(parts) != 3 || len(parts[1]) == 0 {
		return nil, false, x.s.answer(wire.Answer{Reply: authMalformed})
	}
	x.user = string(parts[1])
	// Acting for someone else is nobody's right here.
	if len(parts[0]) > 0 && !bytes.Equal(parts[0], parts[1]) {
		return nil, false, x.s.answer(x.s.authenticated(x, false))
	}
	return x.check(string(parts[2]))
}

// loginUser and loginPassword follow draft-murchison-sasl-login.
func (x *exchange) loginUser(response []byte) ([]byte, bool, error) {
	if response == nil {
		return []byte("Username:"), false, nil
	}
	x.user = strings.TrimRight(string(response), "\x00")
	x.step = x.loginPassword
	return []byte("Password:"), false, nil
}

func (x *exchange) loginPassword(response []byte) ([]byte, bool, error) {
	return x.check(string(response))
}

func (x *exchange) check(password string) ([]byte, bool, error) {
	s := x.s
	over := s.w.Waiting()
	ok, err := s.deps.Authenticate(x.user, password)
	over()
	if err != nil {
		s.log().Error("credentials could not be checked", "error", err)
		return nil, false, s.answer(wire.Answer{Reply: authUnavailable})
	}
	if err := s.answer(s.authenticated(x, ok)); err != nil {
		return nil, false, err
	}
	return nil, true, nil
}

// authenticated raises OnEndOfAuthentication, before the reply.
func (s *Session) authenticated(x *exchange, ok bool) wire.Answer {
	kind := agentpb.EventKind_EVENT_KIND_END_OF_AUTHENTICATION
	a, refused := s.ask(kind, s.authFacts(x, kind, ok))
	if ok && !refused {
		s.env.Auth = &envelope.Auth{Mechanism: x.mechanism, Identity: x.user}
		if s.env.Trust == envelope.Anonymous {
			s.env.Trust = envelope.User
		}
		a.Reply = authOK
		return a
	}
	if !refused {
		a.Reply = authFailed
	}
	s.failures++
	if limit := s.limits().MaxLogonFailures; limit > 0 && s.failures >= limit {
		a.Reply, a.Close, a.End = tooManyErrors, true, wire.EndErrors
	}
	return a
}

func (s *Session) authFacts(x *exchange, kind agentpb.EventKind, ok bool) *agentpb.Arguments {
	if !s.conv.Subscribed(kind) {
		return nil
	}
	return &agentpb.Arguments{Event: &agentpb.Arguments_Auth{Auth: &agentpb.AuthArguments{
		Mechanism: x.mechanism, Identity: x.user, Succeeded: ok,
	}}}
}
