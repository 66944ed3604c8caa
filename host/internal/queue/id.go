package queue

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"strconv"
	"strings"
	"time"
)

var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// NewID makes an id of 16 characters that sorts by time: 48 bits of milliseconds since 1970, 32 random bits.
// Sessions have such an id; the messages of a session add ".1", ".2" and so on.
func NewID() string {
	var random [4]byte
	_, _ = rand.Read(random[:]) // never fails, see crypto/rand
	return newID(time.Now(), random)
}

// DerivedID is like NewID, but the same for the same time and seed: for work that is done again after a crash.
func DerivedID(at time.Time, seed string) string {
	sum := sha256.Sum256([]byte(seed))
	return newID(at, [4]byte(sum[:4]))
}

func newID(at time.Time, rest [4]byte) string {
	var b [10]byte
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(at.UnixMilli()))
	copy(b[:6], ms[2:])
	copy(b[6:], rest[:])
	return idEncoding.EncodeToString(b[:])
}

// MessageID names the nth message of a session, n from 1.
func MessageID(session string, n int) string { return session + "." + strconv.Itoa(n) }

// ChildID derives the id of an item made of another one. The same parent, cause ("split", "dsn 3",
// "contentfilter OnSubmitted") and ordinal give the same id, so that work done again after a crash makes
// nothing twice. The id starts with the message's own.
func ChildID(parent *Item, cause string, ordinal int) string {
	sum := sha256.Sum256([]byte(parent.ID + "\x00" + cause + "\x00" + strconv.Itoa(ordinal)))
	base, _, _ := strings.Cut(parent.ID, "-")
	return base + "-" + idEncoding.EncodeToString(sum[:10])
}
