package directory

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/posternmail/postern/host/internal/tables"
)

// minHash is the length of a hash in octets, at least: shorter ones collide.
const minHash = 8

// hashPrefix starts the keys of rows, in the table recipients, that hold how a directory is hashed. So a restart with
// a broken file still finds what the table holds.
const hashPrefix = "#hash "

// hashing is how the addresses of one directory are hashed.
type hashing struct {
	key    []byte
	octets int
}

// Hash is the first octets of the HMAC-SHA256 of text in lower case, in hexadecimal digits. For a recipient text
// is the address, its domain with A-labels; for a row of the safelist it is the recipient's address, "|", and the sender's address or domain.
func Hash(key []byte, octets int, text string) string {
	mac := hmac.New(sha256.New, key)
	_, _ = mac.Write([]byte(strings.ToLower(text)))
	return hex.EncodeToString(mac.Sum(nil)[:octets])
}

func (h hashing) of(text string) string { return Hash(h.key, h.octets, text) }

func (h hashing) row() tables.Row {
	return tables.Row{Key: hashPrefix + hex.EncodeToString(h.key) + " " + hex.EncodeToString([]byte{byte(h.octets)}), Value: []byte("{}")}
}

// storedHashes reads the rows that row made.
func storedHashes(t tables.Store) []hashing {
	var out []hashing
	t.List(recipientsTable, hashPrefix, func(r tables.Row) bool {
		text, ok := strings.CutPrefix(r.Key, hashPrefix)
		if !ok {
			return false
		}
		key, octets, _ := strings.Cut(text, " ")
		k, err := hex.DecodeString(key)
		n, err2 := hex.DecodeString(octets)
		if err == nil && err2 == nil && len(n) == 1 && int(n[0]) >= minHash && int(n[0]) <= sha256.Size {
			out = append(out, hashing{k, int(n[0])})
		}
		return true
	})
	return out
}

// isHash reports whether s is a hash of allowed length.
func isHash(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) >= minHash && len(b) <= sha256.Size
}
