package main

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/mime"
)

// The stamp tells the next of our own servers that a message was scanned:
//
//	X-Postern-AVStamp: v=1; a=hmac-sha256; k=KEY; t=UNIX TIME; n=HOST; h=DIGEST;
//		e=ENGINES; s=SIGNATURE
//
// The digest is SHA-256 over the header fields that say how the body is built, and the body; it stays true while
// servers on the way add fields of theirs. The signature is over the field without it, in the order above.

// stampField is taken out of what strangers send by the host's header firewall.
const stampField = "X-Postern-AVStamp"

// clockSkew between own servers that is accepted.
const clockSkew = 5 * time.Minute

// stampKey signs, or verifies only.
type stampKey struct {
	name    string
	secret  []byte
	private ed25519.PrivateKey
	public  ed25519.PublicKey
}

func (k *stampKey) algorithm() string {
	if k.secret != nil {
		return "hmac-sha256"
	}
	return "ed25519"
}

func (k *stampKey) signs() bool { return k.secret != nil || k.private != nil }

func (k *stampKey) sign(text string) []byte {
	if k.secret != nil {
		return k.mac(text)
	}
	return ed25519.Sign(k.private, []byte(text))
}

func (k *stampKey) verifies(text string, signature []byte) bool {
	if k.secret != nil {
		return hmac.Equal(k.mac(text), signature)
	}
	return ed25519.Verify(k.public, []byte(text), signature)
}

func (k *stampKey) mac(text string) []byte {
	h := hmac.New(sha256.New, k.secret)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// stamp as it stands in the header.
type stamp struct {
	algorithm, key, host, digest, engines string
	time                                  int64
	signature                             []byte
}

// signed is what the signature is over.
func (s *stamp) signed() string {
	return fmt.Sprintf("v=1; a=%s; k=%s; t=%d; n=%s; h=%s; e=%s", s.algorithm, s.key, s.time, s.host, s.digest, s.engines)
}

// value of the field, folded.
func (s *stamp) value() []byte {
	return fmt.Appendf(nil, "v=1; a=%s; k=%s; t=%d; n=%s;\r\n\th=%s;\r\n\te=%s;\r\n\ts=%s", s.algorithm, s.key, s.time, s.host,
		s.digest, s.engines, base64.StdEncoding.EncodeToString(s.signature))
}

// parseStamp reads the text of a field.
func parseStamp(text string) (*stamp, error) {
	tags := map[string]string{}
	for tag := range strings.SplitSeq(text, ";") {
		name, value, ok := strings.Cut(strings.TrimSpace(tag), "=")
		if _, twice := tags[name]; !ok || twice {
			return nil, fmt.Errorf("%q is no tag", clip(tag, maxName))
		}
		tags[name] = value
	}
	if tags["v"] != "1" {
		return nil, fmt.Errorf("version %q", clip(tags["v"], maxName))
	}
	s := &stamp{algorithm: tags["a"], key: tags["k"], host: tags["n"], digest: tags["h"], engines: tags["e"]}
	var err error
	if s.time, err = strconv.ParseInt(tags["t"], 10, 64); err != nil {
		return nil, fmt.Errorf("time: %w", err)
	}
	if s.signature, err = base64.StdEncoding.DecodeString(tags["s"]); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	return s, nil
}

// check the stamp of a message whose digest is given.
func (s *stamp) check(keys []*stampKey, digest string, now time.Time, maxAge time.Duration) error {
	i := slices.IndexFunc(keys, func(k *stampKey) bool { return k.name == s.key && k.algorithm() == s.algorithm })
	age := now.Sub(time.Unix(s.time, 0))
	switch {
	case i < 0:
		return fmt.Errorf("key %q (%s) is not known", clip(s.key, maxName), clip(s.algorithm, maxName))
	case !keys[i].verifies(s.signed(), s.signature):
		return fmt.Errorf("the signature of key %q is wrong", s.key)
	case age > maxAge:
		return fmt.Errorf("it is %s old", age.Round(time.Second))
	case age < -clockSkew:
		return fmt.Errorf("it is of the future: %s", time.Unix(s.time, 0).UTC().Format(time.RFC3339))
	case s.digest != digest:
		return fmt.Errorf("the message was changed since")
	}
	return nil
}

// digestOf what a message holds, wherever it is on its way.
func digestOf(ctx context.Context, headers sdk.Header, body mime.Body) (string, error) {
	h := sha256.New()
	for _, name := range []string{"mime-version", "content-type", "content-transfer-encoding", "content-disposition"} {
		for f := range headers.All(name) {
			fmt.Fprintf(h, "%s:%s\r\n", name, strings.Join(strings.Fields(string(f.Raw)), " "))
		}
	}
	h.Write([]byte("\r\n"))
	in, chunk := io.NewSectionReader(body, 0, body.Size()), make([]byte, 64<<10)
	for {
		n, err := in.Read(chunk)
		h.Write(chunk[:n])
		switch {
		case ctx.Err() != nil:
			return "", ctx.Err()
		case err == io.EOF:
			return base64.StdEncoding.EncodeToString(h.Sum(nil)), nil
		case err != nil:
			return "", err
		}
	}
}

// believed is the stamp of another server of ours that says the message was scanned. problem: there is one that is not
// to be believed.
func (s *Scanner) believed(ctx context.Context, m *mail) (good *stamp, problem error) {
	if len(s.keys) == 0 || m.Session.Trust != sdk.OwnServer || !m.headers.Has(stampField) {
		return nil, nil
	}
	digest, err := digestOf(ctx, m.headers, m.body)
	if err != nil {
		return nil, err
	}
	for f := range m.headers.All(stampField) {
		st, err := parseStamp(f.Text())
		if err == nil {
			err = st.check(s.keys, digest, m.Time, s.StampMaxAge)
		}
		if err == nil {
			return st, nil
		}
		problem = err
	}
	return nil, problem
}

// stamped makes the stamp for a message that was scanned; nil where it is to have none.
func (s *Scanner) stamped(ctx context.Context, m *mail, engines string) (*stamp, error) {
	i := slices.IndexFunc(s.keys, (*stampKey).signs)
	if i < 0 || !slices.Contains(s.StampTraffic, m.traffic()) {
		return nil, nil
	}
	digest, err := digestOf(ctx, m.headers, m.body)
	if err != nil {
		return nil, err
	}
	k := s.keys[i]
	st := &stamp{algorithm: k.algorithm(), key: k.name, time: m.Time.Unix(), host: s.host, digest: digest,
		engines: strings.NewReplacer(";", ",", "=", "-").Replace(engines)}
	st.signature = k.sign(st.signed())
	return st, nil
}
