package dkim

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	msgauth "github.com/emersion/go-msgauth/dkim"
)

const sample = "From: Jane <jane@x.example>\r\nTo: you@y.example\r\nSubject: a\r\n  folded  subject\r\n\r\nHello  there \r\n\r\n.\r\n\r\n\r\n"

var start = time.Unix(1767268800, 0)

func keys(t testing.TB) map[string]crypto.Signer {
	t.Helper()
	long, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]crypto.Signer{"rsa": long, "ed25519": edwards}
}

func lookupOf(t testing.TB, key crypto.Signer) Lookup {
	t.Helper()
	record, err := Record(key)
	if err != nil {
		t.Fatal(err)
	}
	return func(_ context.Context, name string) ([]string, error) {
		if name != "s1._domainkey.x.example" {
			return nil, nil
		}
		return []string{record}, nil
	}
}

func sign(t testing.TB, key crypto.Signer, text string) string {
	t.Helper()
	m := messageOf(text)
	s := &Signer{
		Domain: "x.example", Selector: "s1", Key: key, Expires: time.Hour,
		Headers: OversignedHeaders(m, []string{"From", "To", "Subject", "Cc"}, []string{"From", "Subject"}),
	}
	value, err := s.Sign(m, start)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq("DKIM-Signature:"+value, "\r\n") {
		if len(line) > 78 {
			t.Errorf("a line of %d characters: %q", len(line), line)
		}
	}
	return "DKIM-Signature:" + value + "\r\n" + text
}

func TestSignedIsVerified(t *testing.T) {
	for name, key := range keys(t) {
		lookup := lookupOf(t, key)
		text := sign(t, key, sample)
		verify := func(text string, now time.Time) Verification {
			all := (&Verifier{Lookup: lookup, Now: now}).Verify(t.Context(), messageOf(text))
			if len(all) != 1 {
				t.Fatalf("%s: %d signatures", name, len(all))
			}
			return all[0]
		}
		for _, c := range []struct {
			what string
			text string
			now  time.Time
			want Result
		}{
			{"unchanged", text, start, Pass},
			{"white space", strings.Replace(text, "Hello  there ", "Hello there", 1), start, Pass},
			{"refolded", strings.Replace(text, "a\r\n  folded  subject", "a folded subject", 1), start, Pass},
			{"body", strings.Replace(text, "Hello", "Hallo", 1), start, Fail},
			{"body behind", text + "More\r\n", start, Fail},
			{"header", strings.Replace(text, "Jane", "Joan", 1), start, Fail},
			{"From added on top", "From: x@x.example\r\n" + text, start, Fail},
			{"Subject added below", strings.Replace(text, "\r\n\r\n", "\r\nSubject: b\r\n\r\n", 1), start, Fail},
			{"field that is not signed", "X-More: 1\r\n" + text, start, Pass},
			{"late", text, start.Add(2 * time.Hour), PermError},
		} {
			if got := verify(c.text, c.now); got.Result != c.want {
				t.Errorf("%s, %s: %s (%s), expected %s", name, c.what, got.Result, got.Reason, c.want)
			}
		}
		if err := CheckRecord(t.Context(), lookup, "s1", "x.example", key); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := CheckRecord(t.Context(), lookup, "s2", "x.example", key); err == nil {
			t.Errorf("%s: a selector without a record fits", name)
		}
	}
}

// TestOtherImplementation has another library verify what we sign.
func TestOtherImplementation(t *testing.T) {
	for name, key := range keys(t) {
		lookup := lookupOf(t, key)
		m := messageOf(sample)
		s := &Signer{Domain: "x.example", Selector: "s1", Key: key, Headers: OversignedHeaders(m, []string{"From", "Subject"}, []string{"From"})}
		value, err := s.Sign(m, start)
		if err != nil {
			t.Fatal(err)
		}
		all, err := msgauth.VerifyWithOptions(strings.NewReader("DKIM-Signature:"+value+"\r\n"+sample), &msgauth.VerifyOptions{
			LookupTXT: func(name string) ([]string, error) { return lookup(t.Context(), name) },
		})
		if err != nil || len(all) != 1 || all[0].Err != nil {
			t.Errorf("%s: go-msgauth says %v, %+v", name, err, all)
		}
	}
}

// TestSignedByOther verifies what another library signs, in all four forms.
func TestSignedByOther(t *testing.T) {
	forms := []msgauth.Canonicalization{msgauth.CanonicalizationSimple, msgauth.CanonicalizationRelaxed}
	for name, key := range keys(t) {
		for _, header := range forms {
			for _, body := range forms {
				var text strings.Builder
				err := msgauth.Sign(&text, strings.NewReader(sample), &msgauth.SignOptions{
					Domain: "x.example", Selector: "s1", Signer: key, HeaderCanonicalization: header, BodyCanonicalization: body,
				})
				if err != nil {
					t.Fatal(err)
				}
				v := &Verifier{Lookup: lookupOf(t, key), Now: start}
				all := v.Verify(t.Context(), messageOf(text.String()))
				if len(all) != 1 || all[0].Result != Pass {
					t.Errorf("%s %s/%s: %+v", name, header, body, all)
				}
			}
		}
	}
}

func TestResults(t *testing.T) {
	key := keys(t)["ed25519"]
	record, err := Record(key)
	if err != nil {
		t.Fatal(err)
	}
	text := sign(t, key, sample)
	for _, c := range []struct {
		what    string
		text    string
		records []string
		err     error
		want    Result
	}{
		{"no key", text, nil, nil, PermError},
		{"two keys", text, []string{record, record}, nil, PermError},
		{"key revoked", text, []string{"v=DKIM1; k=ed25519; p="}, nil, PermError},
		{"nobody can say", text, nil, errors.New("timeout"), TempError},
		{"tag twice", strings.Replace(text, "v=1;", "v=1; v=1;", 1), []string{record}, nil, PermError},
		{"future version", strings.Replace(text, "v=1;", "v=2;", 1), []string{record}, nil, PermError},
		{"no tags", "DKIM-Signature: ;\r\n" + sample, []string{record}, nil, PermError},
		{"no text", "DKIM-Signature:\r\n" + sample, []string{record}, nil, PermError},
		{"foreign identity", strings.Replace(text, "v=1;", "v=1; i=@z.example;", 1), []string{record}, nil, PermError},
		{"strict key", strings.Replace(text, "v=1;", "v=1; i=@sub.x.example;", 1), []string{strings.Replace(record, "p=", "t=s; p=", 1)}, nil, PermError},
		{"l beyond the body", strings.Replace(text, "v=1;", "v=1; l=9999;", 1), []string{record}, nil, Fail},
		{"l is no number", strings.Replace(text, "v=1;", "v=1; l=-1;", 1), []string{record}, nil, PermError},
	} {
		lookup := func(context.Context, string) ([]string, error) { return c.records, c.err }
		all := (&Verifier{Lookup: lookup, Now: start}).Verify(t.Context(), messageOf(c.text))
		if len(all) != 1 || all[0].Result != c.want {
			t.Errorf("%s: %+v, expected %s", c.what, all, c.want)
		}
	}
}

func TestPrivateKeys(t *testing.T) {
	for name, key := range keys(t) {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParsePrivateKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, text := range []string{"", "nothing", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n"} {
		if _, err := ParsePrivateKey([]byte(text)); err == nil {
			t.Errorf("%q is a key", text)
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(sample)
	f.Add("DKIM-Signature: v=1; a=rsa-sha256; d=x; s=y; h=from:from; bh=; b=\r\n" + sample)
	f.Add("DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed; d=x; s=y; l=3; i==40x; h=from; bh=AAAA; b=AAAA\r\n" + sample)
	lookup := func(_ context.Context, name string) ([]string, error) { return []string{name}, nil }
	f.Fuzz(func(t *testing.T, text string) {
		for _, v := range (&Verifier{Lookup: lookup, Now: start, Max: 5}).Verify(t.Context(), messageOf(text)) {
			if v.Result == Pass {
				t.Errorf("passes: %q", text)
			}
		}
	})
}
