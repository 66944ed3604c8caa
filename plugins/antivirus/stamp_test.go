package main

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agenttest"
)

// from sends a message as a server of our own does, or as a stranger.
func from(a *agenttest.Agent, trust sdk.Trust, traffic sdk.Traffic, message string) *agenttest.Outcome {
	s := a.From("10.0.0.1").Trusted(trust, traffic)
	s.Mail("a@x.example")
	s.To("b@y.example")
	return s.Data(message)
}

const harmless = "From: a@x.example\nMIME-Version: 1.0\nContent-Type: text/plain;\n charset=utf-8\n\nharmless\n"

// edgeKeys makes a private key in a file, and the public one in base64.
func edgeKeys(t *testing.T) (path, public string) {
	t.Helper()
	private := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(shortDir(t), "key")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))
}

// TestStamp: the edge scans and signs; the hub, whose engine is down, believes it where it may.
func TestStamp(t *testing.T) {
	private, public := edgeKeys(t)
	clamd := clamdAt("clamd", fakeClamd(t, sane), "")
	const down = "engine \"clamd\" {\nclamd {\naddress = \"/nowhere/clamd\"\n}\n}\n"
	for name, k := range map[string]struct{ edge, hub string }{
		"shared secret": {`secret = "sixteen letters or more"`, `secret = "sixteen letters or more"`},
		"key pair":      {fmt.Sprintf("private_key = %q", private), fmt.Sprintf("public_key = %q", public)},
	} {
		t.Run(name, func(t *testing.T) {
			edge := start(t, clamd+"stamp_key \"k1\" {\n"+k.edge+"\n}\n", agenttest.WithInfo(info()))
			out := send(edge, harmless).WantReason("Clean")
			stamped := out.Message()
			if !regexp.MustCompile(`^X-Postern-AVStamp: v=1; a=(hmac-sha256|ed25519); k=k1; t=1767268800; n=edge\.example;\r\n\th=[^;]+;\r\n` +
				`\te=clamd ClamAV 9\.9\.9/1000;\r\n\ts=[^;]+\r\nFrom:`).MatchString(stamped) {
				t.Fatalf("the message is\n%s", stamped)
			}
			for _, v := range []string{"e=clamd", "harmless"} {
				if !strings.Contains(stamped, v) {
					t.Errorf("no %q in the message", v)
				}
			}
			believe(t, down+"stamp_key \"k1\" {\n"+k.hub+"\n}\n", stamped)
		})
	}
}

// believe shows a hub whose engine is down the message in different states.
func believe(t *testing.T, config, stamped string) {
	hub := start(t, config)
	scan := func(trust sdk.Trust, message string) *agenttest.Outcome {
		return from(hub, trust, sdk.External, message)
	}
	scan(sdk.OwnServer, stamped).WantVerdict("done").WantReason("ScannedBefore").WantStamp("av.status", "clean").
		WantStamp("engines", "clamd ClamAV 9.9.9/1000").WantCount("scanned_before", 1)
	scan(sdk.OwnServer, "Received: by hub.example\r\nX-Other: y\r\n"+stamped).WantReason("ScannedBefore")
	refolded := strings.Replace(stamped, "text/plain;\r\n charset", "text/plain; charset", 1)
	scan(sdk.OwnServer, refolded).WantReason("ScannedBefore")

	for name, message := range map[string]string{
		"the body was changed":         strings.Replace(stamped, "harmless", "harmful!", 1),
		"the Content-Type was changed": strings.Replace(stamped, "text/plain", "text/other", 1),
		"another field says more":      "Content-Transfer-Encoding: base64\r\n" + stamped,
		"the engines were changed":     strings.Replace(stamped, "ClamAV 9", "ClamAV 8", 1),
		"another key":                  strings.Replace(stamped, "k=k1", "k=k2", 1),
		"another time":                 strings.Replace(stamped, "t=1767268800", "t=1767268801", 1),
		"no signature":                 regexp.MustCompile(`s=[^\r]+`).ReplaceAllString(stamped, "s="),
		"nonsense":                     regexp.MustCompile(`v=1[^;]*;`).ReplaceAllString(stamped, "v=;;1"),
	} {
		if o := scan(sdk.OwnServer, message); o.Answer().GetVerdicts()[0].GetReason() != "EngineDown" {
			t.Errorf("%s, and it is believed: %v", name, o.Answer())
		}
	}
	for _, trust := range []sdk.Trust{sdk.Anonymous, sdk.User, sdk.Partner} {
		scan(trust, stamped).WantReason("EngineDown")
	}
	hub.Advance(5 * time.Hour)
	scan(sdk.OwnServer, stamped).WantReason("EngineDown")
	hub.Advance(-10 * time.Hour)
	scan(sdk.OwnServer, stamped).WantReason("EngineDown") // of the future
}

// TestStampTraffic: what goes outside has no stamp, nor loses the right to one inside.
func TestStampTraffic(t *testing.T) {
	const key = "stamp_key \"k1\" {\nsecret = \"sixteen letters or more\"\n}\n"
	a := start(t, clamdAt("clamd", fakeClamd(t, sane), "")+key)
	stamped := send(a, harmless).Message()
	from(a, sdk.OwnServer, sdk.Outbound, stamped).WantReason("ScannedBefore").WantHeaderRemoved("X-Postern-AVStamp")
	if o := from(a, sdk.User, sdk.Outbound, harmless); strings.Contains(o.Message(), "AVStamp") {
		t.Errorf("outbound mail is stamped:\n%s", o.Message())
	}
	changed := strings.Replace(stamped, "harmless", "still ok", 1)
	again := from(a, sdk.OwnServer, sdk.External, changed).WantReason("Clean").Message()
	if strings.Count(again, "AVStamp") != 1 || again == changed {
		t.Errorf("the message has not one new stamp:\n%s", again)
	}
	out := start(t, clamdAt("clamd", fakeClamd(t, sane), "")+key+`stamp_traffic = ["outbound"]`)
	if o := from(out, sdk.User, sdk.Outbound, harmless); !strings.Contains(o.Message(), "AVStamp") {
		t.Errorf("outbound mail is not stamped:\n%s", o.Message())
	}
}

func FuzzStamp(f *testing.F) {
	key := &stampKey{name: "k", secret: []byte("sixteen letters or more")}
	good := &stamp{algorithm: key.algorithm(), key: "k", host: "h", digest: "d", engines: "e", time: 1000}
	good.signature = key.sign(good.signed())
	f.Add(strings.ReplaceAll(string(good.value()), "\r\n", ""))
	f.Add("v=1; a=hmac-sha256; k=k; t=1; n=h; h=d; e=e; s=AAAA")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseStamp(text)
		if err != nil {
			return
		}
		if s.check([]*stampKey{key}, "d", time.Unix(1000, 0), time.Hour) == nil && s.signed() != good.signed() {
			t.Errorf("%q is believed", text)
		}
	})
}
