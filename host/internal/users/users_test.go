package users

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func wants(t *testing.T, f *File, user, password string, want bool) {
	t.Helper()
	if got, err := f.Authenticate(user, password); err != nil || got != want {
		t.Errorf("%s with %q: %v, error %v", user, password, got, err)
	}
}

func TestAuthenticate(t *testing.T) {
	old, err := bcrypt.GenerateFromPassword([]byte("older"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "users")
	// The password is "secret", at a cost that a test can afford.
	key := argon2.IDKey([]byte("secret"), []byte("saltsalt"), 1, 8, 1, 32)
	argon := "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$" + base64.RawStdEncoding.EncodeToString(key)
	write(t, path, "# who may\n\njoe:"+argon+"\n ann@ours.test:"+string(old)+"\n")
	f, err := Open(path, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	wants(t, f, "joe", "secret", true)
	wants(t, f, "joe", "Secret", false)
	wants(t, f, "joe", "", false)
	wants(t, f, "ann@ours.test", "older", true)
	wants(t, f, "nobody", "secret", false)

	// A change is seen, a mistake changes nothing.
	write(t, path, "joe:"+string(old)+"\n")
	stamp := time.Now().Add(time.Minute)
	if err := os.Chtimes(path, stamp, stamp); err != nil {
		t.Fatal(err)
	}
	f.reload()
	wants(t, f, "joe", "older", true)
	write(t, path, "joe:plain text\n")
	f.reload()
	wants(t, f, "joe", "older", true)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f.reload()
	wants(t, f, "joe", "older", true)
}

func TestHashesDiffer(t *testing.T) {
	a, _ := Hash("same")
	b, _ := Hash("same")
	if a == b || !strings.HasPrefix(a, "$argon2id$v=19$m=65536,t=3,p=4$") {
		t.Errorf("%s\n%s", a, b)
	}
	if ok, err := Check(a, "same"); err != nil || !ok {
		t.Errorf("%v, error %v", ok, err)
	}
}

func TestOpenSaysWhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	for text, want := range map[string]string{
		"joe\n":                        "users:1: a line is name:hash",
		"\n:x\n":                       "users:2: a line is name:hash",
		"joe:secret\n":                 "users:1: neither a bcrypt nor an argon2id hash",
		"joe:$argon2id$v=19$m=1$a$b\n": "users:1: neither",
		"joe:$argon2id$v=19$m=99999999,t=3,p=4$AAAA$AAAA\n": "users:1: argon2id hash with a cost out of bounds",
		"joe:" + nobody + "\njoe:" + nobody + "\n":          `users:2: "joe" is there already`,
	} {
		write(t, path, text)
		if _, err := Open(path, hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := Open(path+"x", hclog.NewNullLogger()); err == nil {
		t.Error("a missing file was opened")
	}
}

func FuzzCheck(f *testing.F) {
	f.Add("$argon2id$v=19$m=8,t=1,p=1$AAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA", "x")
	f.Add("$2a$04$x", "y")
	f.Fuzz(func(t *testing.T, hash, password string) {
		if strings.HasPrefix(hash, "$argon2id$") {
			// Parsing only: a hash may ask for much work, by right.
			_, _ = parseArgon(hash)
			return
		}
		if ok, _ := Check(hash, password); ok {
			t.Fatalf("%q is the hash of %q", hash, password)
		}
	})
}
