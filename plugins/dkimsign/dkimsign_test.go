package main

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agenttest"
	"github.com/posternmail/postern/sdk/arc"
	"github.com/posternmail/postern/sdk/dkim"
)

// keyring of a test: files, and the records that are published.
type keyring struct {
	folder  string
	records map[string]string
}

func newKeyring(t *testing.T) *keyring { return &keyring{t.TempDir(), map[string]string{}} }

// add a key and answer with its file.
func (k *keyring) add(t *testing.T, selector, domain string, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(k.folder, selector+domain)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	if k.records[selector+"._domainkey."+domain], err = dkim.Record(key); err != nil {
		t.Fatal(err)
	}
	return path
}

func (k *keyring) verifier() *dkim.Verifier {
	return &dkim.Verifier{Now: time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC), Lookup: func(_ context.Context, name string) ([]string, error) {
		if text, found := k.records[name]; found {
			return []string{text}, nil
		}
		return nil, nil
	}}
}

func message(t *testing.T, text string) *dkim.Message {
	t.Helper()
	header, body, _ := strings.Cut(text, "\r\n\r\n")
	return dkim.NewMessage([]byte(header), strings.NewReader(body), int64(len(body)))
}

func edwards(seed byte) crypto.Signer {
	return ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune(seed)), 32)))
}

func rsaKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(nil, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

const text = "From: Jane <jane@x.example>\r\nTo: you@far.example\r\nSubject: hello\r\n\r\nHello\r\n"

func categorized(s *agenttest.Session, from, recipient, message string) *agenttest.Outcome {
	return judged(s, "", from, recipient, message)
}

// judged is categorized for a message of which senderauth has found that its chain is in that state; "" is nothing.
func judged(s *agenttest.Session, state, from, recipient, message string) *agenttest.Outcome {
	s.Mail(from)
	s.To(recipient)
	s.Data(message)
	if state != "" {
		s.Stamped("auth.arc", state)
	}
	return s.Routing(sdk.OnCategorized)
}

func results(all []dkim.Verification) string {
	var out []string
	for _, v := range all {
		out = append(out, fmt.Sprintf("%s %s@%s %s", v.Algorithm, v.Selector, v.Domain, v.Result))
	}
	return strings.Join(out, ", ")
}

func TestSigns(t *testing.T) {
	k := newKeyring(t)
	config := fmt.Sprintf(`
		key "x.example" "ed" {
			file       = %q
			subdomains = true
		}
		key "x.example" "rsa" { file = %q }
		expires = "24h"
	`, k.add(t, "ed", "x.example", edwards('a')), k.add(t, "rsa", "x.example", rsaKey(t)))
	a := agenttest.Start(t, New, config, agenttest.WithInfo(info()))

	out := categorized(a.From("192.0.2.1").Authenticated("jane"), "jane@x.example", "you@far.example", text).WantContinue().WantReason("Signed")
	got := results(k.verifier().Verify(t.Context(), message(t, out.Message())))
	if want := "rsa-sha256 rsa@x.example pass, ed25519-sha256 ed@x.example pass"; got != want {
		t.Errorf("signatures are %q, expected %q\n%s", got, want, out.Message())
	}
	if added := k.verifier().Verify(t.Context(), message(t, "Subject: more\r\n"+out.Message())); added[0].Result == dkim.Pass {
		t.Errorf("a second Subject does not break the signature: %v\n%s", added[0].Headers, out.Message())
	}

	below := strings.Replace(text, "jane@x.example", "jane@sub.x.example", 1)
	out = categorized(a.From("192.0.2.1").Authenticated("jane"), "jane@x.example", "you@far.example", below).WantReason("Signed")
	if got := results(k.verifier().Verify(t.Context(), message(t, out.Message()))); got != "ed25519-sha256 ed@x.example pass" {
		t.Errorf("signatures of a subdomain are %q", got)
	}

	other := strings.Replace(text, "x.example", "other.example", 1)
	categorized(a.From("192.0.2.1").Authenticated("jane"), "jane@x.example", "you@far.example", other).WantContinue().WantReason("NoKey")
	out = categorized(a.From("203.0.113.9"), "jane@x.example", "you@y.example", text).WantContinue()
	if strings.Contains(out.Message(), "DKIM-Signature") {
		t.Error("a stranger's message is signed")
	}
}

func TestSeals(t *testing.T) {
	k := newKeyring(t)
	config := fmt.Sprintf(`seal "lists.example" "arc" { file = %q }`, k.add(t, "arc", "lists.example", edwards('b')))
	a := agenttest.Start(t, New, config, agenttest.WithInfo(info()))
	found := "Authentication-Results: edge.example;\r\n\tdmarc=pass header.from=x.example;\r\n\tarc=none\r\n" + text
	out := judged(a.From("203.0.113.9"), "none", "jane@x.example", "you@far.example", found).WantContinue().WantReason("Sealed")
	c := arc.Validate(t.Context(), k.verifier(), message(t, out.Message()))
	if c.Result != arc.Pass || len(c.Sets) != 1 || c.Sets[0].Sealer != "lists.example" {
		t.Errorf("the chain is %s (%s)\n%s", c.Result, c.Reason, out.Message())
	}
	judged(a.From("203.0.113.9"), "none", "jane@x.example", "you@far.example", text).WantContinue().WantReason("NotSealed")
	categorized(a.From("203.0.113.9"), "jane@x.example", "you@far.example", found).WantContinue().WantReason("NotSealed") // results of nobody
	later := strings.ReplaceAll(out.Message(), "arc=none", "arc=temperror")
	judged(a.From("203.0.113.9"), "temperror", "jane@x.example", "you@far.example", later).WantContinue().WantReason("NotSealed")
	out = judged(a.From("203.0.113.9"), "none", "jane@x.example", "you@y.example", found).WantContinue()
	if strings.Contains(out.Message(), "ARC-Seal") {
		t.Error("mail for a domain of ours is sealed")
	}
}

// Mail from outside that an own server hands on is not signed, whatever it claims.
func TestHandedOn(t *testing.T) {
	k := newKeyring(t)
	a := agenttest.Start(t, New, fmt.Sprintf("key \"x.example\" \"ed\" { file = %q }", k.add(t, "ed", "x.example", edwards('a'))), agenttest.WithInfo(info()))
	s := a.From("10.0.0.1").Authenticated("hub")
	out := judged(s, "none", "jane@x.example", "you@far.example", text).WantContinue()
	if strings.Contains(out.Message(), "DKIM-Signature") {
		t.Errorf("signed:\n%s", out.Message())
	}
}

func TestEmptyConfigurationSaysSo(t *testing.T) {
	got := agenttest.Diagnostics(t, New, "", agenttest.WithInfo(info()))
	if len(got) != 1 || !strings.Contains(got[0], "warning: ") || !strings.Contains(got[0], "nothing is signed") {
		t.Errorf("%q", got)
	}
}

func TestConfigurationMistakes(t *testing.T) {
	k := newKeyring(t)
	good := k.add(t, "s1", "x.example", edwards('a'))
	bad := filepath.Join(k.folder, "bad")
	if err := os.WriteFile(bad, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ config, want string }{
		"missing":  {`key "x.example" "s1" { file = "/nowhere/key" }`, "key[0].file: reading the key"},
		"nonsense": {fmt.Sprintf(`key "x.example" "s1" { file = %q }`, bad), "no key in PEM form"},
		"twice":    {fmt.Sprintf("key \"x.example\" \"s1\" { file = %q }\nkey \"X.example\" \"s1\" { file = %q }", good, good), "stands twice"},
		"domain":   {fmt.Sprintf(`key "x..example" "s1" { file = %q }`, good), "is no domain"},
		"selector": {fmt.Sprintf(`key "x.example" "s 1" { file = %q }`, good), "is no selector"},
		"header":   {`headers = ["From:"]`, "headers[0]"},
		"received": {`protected = ["Received"]`, "must not be signed"},
		"seal":     {`seal "x.example" "s1" { file = "/nowhere/key" }`, "seal.file"},
	} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(agenttest.Diagnostics(t, New, c.config, agenttest.WithInfo(info())), "\n")
			if !strings.Contains(got, c.want) {
				t.Errorf("%q, expected something about %q", got, c.want)
			}
		})
	}
}

func TestReadme(t *testing.T) { agenttest.CheckReadme(t, New, "README.md") }
