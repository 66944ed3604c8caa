package session

import (
	"time"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/wire"
)

func (s *Session) limits() *config.Limits { return &s.start.Connector.Limits }

// tarpit is the wait before a 5xx to an anonymous client. Loopback is free unless it was set.
func (s *Session) tarpit() time.Duration {
	if s.loopback && !s.limits().TarpitSet {
		return 0
	}
	return s.limits().Tarpit
}

// bannerDelay is how long a client has to show that it does not wait for the banner (RFC 5321 section 4.3.1).
func (s *Session) bannerDelay() time.Duration {
	if s.env.Trust != envelope.Anonymous || s.loopback && !s.limits().BannerDelaySet {
		return 0
	}
	return s.limits().BannerDelay
}

// countUnsynchronized notes that the client has sent more behind a command whose reply it had to wait for: HELO, EHLO
// and DATA end a group (RFC 2920 section 3.1), and without EHLO there are no groups. A client that only says goodbye
// early harms nobody.
func (s *Session) countUnsynchronized(c *wire.Command) {
	switch c.Verb {
	case "QUIT":
		return
	case "HELO", "EHLO", "DATA":
	default:
		if s.env.Extended {
			return
		}
	}
	if s.w.Pending() {
		s.env.Unsynchronized++
	}
}
