package users

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// Cost of new hashes: the second choice of RFC 9106 section 4.
const (
	argonTime    = 3
	argonMemory  = 64 << 10 // KiB
	argonThreads = 4
	argonKey     = 32
	argonSalt    = 16
)

// Bounds of hashes that are checked, so that a line in a file cannot stop the host.
const (
	maxArgonTime   = 64
	maxArgonMemory = 1 << 20 // KiB
)

// nobody is the hash of a password that was thrown away, with the cost of new hashes.
const nobody = "$argon2id$v=19$m=65536,t=3,p=4$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

var errHash = errors.New("neither a bcrypt nor an argon2id hash (make one with `postern user hash`)")

// Hash makes the hash of a password for a users file: argon2id in the PHC string format.
func Hash(password string) (string, error) {
	salt := make([]byte, argonSalt)
	_, _ = rand.Read(salt) // never fails, see crypto/rand
	key := argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonThreads, argonKey)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonThreads,
		b64.EncodeToString(salt), b64.EncodeToString(key)), nil
}

// Check reports whether password has the hash. The error says that the hash is none.
func Check(hash, password string) (bool, error) {
	if strings.HasPrefix(hash, "$argon2id$") {
		h, err := parseArgon(hash)
		if err != nil {
			return false, err
		}
		key := argon2.IDKey([]byte(password), h.salt, h.time, h.memory, h.threads, uint32(len(h.key)))
		return subtle.ConstantTimeCompare(key, h.key) == 1, nil
	}
	err := bcrypt.CompareHashAndPassword([]byte(hash), []byte(password))
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, bcrypt.ErrMismatchedHashAndPassword):
		return false, nil
	}
	return false, fmt.Errorf("checking bcrypt hash: %w", err)
}

// known reports whether hash is one that Check understands.
func known(hash string) error {
	if strings.HasPrefix(hash, "$argon2id$") {
		_, err := parseArgon(hash)
		return err
	}
	if _, err := bcrypt.Cost([]byte(hash)); err != nil {
		return errHash
	}
	return nil
}

// argonHash is a parsed argon2id hash.
type argonHash struct {
	time, memory uint32
	threads      uint8
	salt, key    []byte
}

// parseArgon reads "$argon2id$v=19$m=65536,t=3,p=4$salt$key".
func parseArgon(hash string) (h argonHash, err error) {
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return h, errHash
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &h.memory, &h.time, &h.threads); err != nil {
		return h, errHash
	}
	if h.time == 0 || h.time > maxArgonTime || h.memory == 0 || h.memory > maxArgonMemory || h.threads == 0 {
		return h, errors.New("argon2id hash with a cost out of bounds")
	}
	if h.salt, err = base64.RawStdEncoding.DecodeString(parts[4]); err != nil {
		return h, errHash
	}
	if h.key, err = base64.RawStdEncoding.DecodeString(parts[5]); err != nil || len(h.key) < 16 || len(h.key) > 64 {
		return h, errHash
	}
	return h, nil
}
