package catalog

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/posternmail/postern/host/internal/sandbox"
)

// Sums are digests of programs, remembered as long as the files stay as they are. The zero value is ready, a nil one
// remembers nothing. Safe for concurrent use.
type Sums struct {
	mu    sync.Mutex
	known map[sandbox.Identity]string
}

// settled is how old a change must be for a digest to be remembered: one that follows within the same tick of the file
// system's clock could not be told from it.
const settled = 2 * time.Second

// Of is the SHA-256 of a file in hexadecimal, with what the file is recognized by: its content cannot have changed
// while that has not.
func (s *Sums) Of(path string) (string, sandbox.Identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", sandbox.Identity{}, err
	}
	defer f.Close()
	before, err := sandbox.IdentityOf(f)
	if err != nil {
		return "", before, err
	}
	if sum, ok := s.remembered(before); ok {
		return sum, before, nil
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return "", before, err
	}
	if after, err := sandbox.IdentityOf(f); err != nil || after != before {
		return "", before, fmt.Errorf("%s is being changed", path)
	}
	sum := hex.EncodeToString(hash.Sum(nil))
	s.remember(before, sum)
	return sum, before, nil
}

func (s *Sums) remembered(id sandbox.Identity) (string, bool) {
	if s == nil {
		return "", false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sum, ok := s.known[id]
	return sum, ok
}

// maxKnown bounds what is remembered: there are as many as agents, and a few that were replaced.
const maxKnown = 1000

func (s *Sums) remember(id sandbox.Identity, sum string) {
	if s == nil || time.Since(time.Unix(0, id.Changed)) < settled {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil || len(s.known) >= maxKnown {
		s.known = map[sandbox.Identity]string{}
	}
	s.known[id] = sum
}

// Verify holds files against the digests that they must have, by path, and answers with what they are recognized by
// while they are started.
func (s *Sums) Verify(wanted map[string]string) ([]sandbox.Sealed, error) {
	var sealed []sandbox.Sealed
	for _, path := range slices.Sorted(maps.Keys(wanted)) {
		sum, id, err := s.Of(path)
		if err != nil {
			return nil, fmt.Errorf("its program cannot be verified: %w", err)
		}
		if sum != wanted[path] {
			return nil, &Changed{Path: path, Found: sum, Wanted: wanted[path]}
		}
		sealed = append(sealed, sandbox.Sealed{Path: path, Identity: id})
	}
	return sealed, nil
}

// Changed is the error of a file that is not what it was when it was installed or locked.
type Changed struct {
	Path          string
	Found, Wanted string // SHA-256
}

// Error implements error.
func (c *Changed) Error() string {
	return fmt.Sprintf("%s is not what it was: its SHA-256 is %s and must be %s, so it is not started", c.Path, c.Found, c.Wanted)
}
