// Package feedtest makes bundles of feeds. Only tests use it.
package feedtest

import (
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"aead.dev/minisign"

	"github.com/posternmail/postern/sdk/feed"
)

// Keys makes a pair of keys.
func Keys(t testing.TB) (minisign.PublicKey, minisign.PrivateKey) {
	t.Helper()
	public, secret, err := minisign.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return public, secret
}

// Pack a bundle of a feed and sign it. Files are kinds and contents in turn; they are named 0.txt, 1.txt and so on.
func Pack(t testing.TB, secret minisign.PrivateKey, name string, serial uint64, files ...string) (archive, signature []byte) {
	t.Helper()
	m := feed.Manifest{Name: name, Serial: serial, Created: time.Now()}
	var contents []feed.Content
	for i := 0; i < len(files); i += 2 {
		contents = append(contents, feed.Content{Name: fmt.Sprintf("%d.txt", i/2), Kind: files[i], Octets: []byte(files[i+1])})
	}
	archive, err := feed.Pack(m, contents)
	if err != nil {
		t.Fatal(err)
	}
	if signature, err = feed.Sign(archive, secret, m); err != nil {
		t.Fatal(err)
	}
	return archive, signature
}

// Bundle of files, as an agent gets it when its signature is verified.
func Bundle(t testing.TB, files ...string) *feed.Bundle {
	t.Helper()
	public, secret := Keys(t)
	archive, signature := Pack(t, secret, "test", 1, files...)
	b, err := feed.Verify(archive, signature, []feed.Key{{PublicKey: public}}, 32<<20)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
