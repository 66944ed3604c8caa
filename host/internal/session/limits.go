package session

import (
	"time"

	"github.com/posternmail/postern/host/internal/config"
)

func (s *Session) limits() *config.Limits { return &s.start.Connector.Limits }

// tarpit is the wait before a 5xx to an anonymous client. Loopback is free unless it was set.
func (s *Session) tarpit() time.Duration {
	if s.loopback && !s.limits().TarpitSet {
		return 0
	}
	return s.limits().Tarpit
}
