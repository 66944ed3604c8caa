package arc

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/posternmail/postern/internal/corpora"
	"github.com/posternmail/postern/sdk/dkim"
)

// scenario of the suite of the protocol's authors.
type scenario struct {
	Description string            `yaml:"description"`
	Tests       yaml.Node         `yaml:"tests"` // some names stand twice
	Records     map[string]string `yaml:"txt-records"`
	Domain      string            `yaml:"domain"`
	Selector    string            `yaml:"sel"`
	Key         string            `yaml:"privatekey"`
}

type suiteTest struct {
	name    string
	Message string `yaml:"message"`
	CV      string `yaml:"cv"`
	Time    int64  `yaml:"t"`
	Headers string `yaml:"sig-headers"`
	Server  string `yaml:"srv-id"`
	AS      string `yaml:"AS"`
	AMS     string `yaml:"AMS"`
	AAR     string `yaml:"AAR"`
}

// tests in order. Of those that stand twice the later one counts, as for the suite's own runner.
func (s *scenario) tests(t *testing.T) []suiteTest {
	t.Helper()
	last := map[string]int{}
	var out []suiteTest
	for i := 0; i+1 < len(s.Tests.Content); i += 2 {
		test := suiteTest{name: s.Tests.Content[i].Value}
		if err := s.Tests.Content[i+1].Decode(&test); err != nil {
			t.Fatal(err)
		}
		if at, twice := last[test.name]; twice {
			out[at] = test
			continue
		}
		last[test.name] = len(out)
		out = append(out, test)
	}
	return out
}

func scenarios(t *testing.T, name string) []scenario {
	t.Helper()
	f, err := os.Open(corpora.Path(t, "auth-arc", "valimail", "tests", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []scenario
	decoder := yaml.NewDecoder(f)
	for {
		var s scenario
		if err := decoder.Decode(&s); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

func (s *scenario) verifier() *dkim.Verifier {
	return &dkim.Verifier{Now: time.Unix(20000, 0), Lookup: func(_ context.Context, name string) ([]string, error) {
		if text, found := s.Records[name]; found {
			return []string{strings.TrimSpace(text)}, nil
		}
		return nil, nil
	}}
}

func messageOf(text string) *dkim.Message {
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\n", "\r\n")
	header, body, _ := strings.Cut(text, "\r\n\r\n")
	return dkim.NewMessage([]byte(header), strings.NewReader(body), int64(len(body)))
}

func TestValidationSuite(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0") // one key has 512 bits
	count := 0
	for _, s := range scenarios(t, "arc-draft-validation-tests.yml") {
		for _, test := range s.tests(t) {
			count++
			want := strings.ToLower(test.CV)
			if want == "" {
				want = "fail" // a seal says cv=fail
			}
			got := Validate(t.Context(), s.verifier(), messageOf(test.Message))
			if string(got.Result) != want {
				t.Errorf("%s: %s (%s), expected %s", test.name, got.Result, got.Reason, want)
			}
		}
	}
	if count != 171 {
		t.Errorf("%d tests", count)
	}
	t.Logf("%d tests", count)
}

func TestSigningSuite(t *testing.T) {
	count := 0
	for _, s := range scenarios(t, "arc-draft-sign-tests.yml") {
		key, err := dkim.ParsePrivateKey([]byte(s.Key))
		if err != nil {
			t.Fatal(err)
		}
		for _, test := range s.tests(t) {
			count++
			signer := &dkim.Signer{Domain: s.Domain, Selector: s.Selector, Key: key, Headers: strings.Split(test.Headers, ":")}
			got, err := Seal(messageOf(test.Message), signer, test.Server, time.Unix(test.Time, 0))
			if test.AS == "" {
				if !errors.Is(err, ErrFailed) {
					t.Errorf("%s: sealed, %v", test.name, err)
				}
				continue
			}
			for _, c := range []struct{ field, got, want string }{
				{"AAR", got.Results, test.AAR}, {"AMS", got.Message, test.AMS}, {"AS", got.Seal, test.AS},
			} {
				if squeezed(c.got) != squeezed(c.want) {
					t.Errorf("%s: %s is %q, expected %q (%v)", test.name, c.field, c.got, c.want, err)
				}
			}
		}
	}
	if count != 17 {
		t.Errorf("%d tests, expected 17", count)
	}
}

// squeezed is a value without white space.
func squeezed(s string) string { return strings.Join(strings.Fields(s), "") }

func TestSealedIsValid(t *testing.T) {
	for _, s := range scenarios(t, "arc-draft-sign-tests.yml")[:1] {
		key, err := dkim.ParsePrivateKey([]byte(s.Key))
		if err != nil {
			t.Fatal(err)
		}
		text := "From: a@x.example\r\nSubject: hello\r\n\r\nHello\r\n"
		for i := 1; i <= 3; i++ {
			state := "none"
			if i > 1 {
				state = "pass"
			}
			text = "Authentication-Results: mx.example; arc=" + state + "; dmarc=pass\r\n" + text
			signer := &dkim.Signer{Domain: s.Domain, Selector: s.Selector, Key: key, Headers: []string{"from", "subject"}}
			got, err := Seal(messageOf(text), signer, "mx.example", time.Unix(20000, 0))
			if err != nil {
				t.Fatal(err)
			}
			text = SealField + ":" + got.Seal + "\r\n" + MessageField + ":" + got.Message + "\r\n" + ResultsField + ": " + got.Results + "\r\n" +
				strings.TrimPrefix(text, "Authentication-Results: mx.example; arc="+state+"; dmarc=pass\r\n")
			if c := Validate(t.Context(), s.verifier(), messageOf(text)); c.Result != Pass || len(c.Sets) != i || c.Sets[i-1].Sealer != s.Domain {
				t.Fatalf("set %d: %s (%s)\n%s", i, c.Result, c.Reason, text)
			}
		}
	}
}

// What a stranger wrote is no result of this server's, and what is not known is not sealed.
func TestStateOfTheChain(t *testing.T) {
	for _, c := range []struct {
		results string
		n       int
		want    string
	}{
		{"spf=pass; arc=fail", 1, "none"},
		{"spf=pass; ARC=pass policy.arc-sets=1", 2, "pass"},
		{"arc=fail reason=\"seal 1: altered\"", 2, "fail"},
		{"arc=temperror", 2, "temperror"},
		{"spf=pass", 2, "fail"},
		{`spf=none smtp.mailfrom="\"; arc=pass ;\"@x.example"; arc=fail`, 2, "fail"},
		{"spf=none (; arc=pass ;); arc=fail", 2, "fail"},
	} {
		if got := stateOf(c.results, c.n); got != c.want {
			t.Errorf("%q: %s, expected %s", c.results, got, c.want)
		}
	}
}

func FuzzValidate(f *testing.F) {
	f.Add("ARC-Seal: i=1; a=rsa-sha256; cv=none; d=x.example; s=a; b=x\nARC-Message-Signature: i=1; a=rsa-sha256; h=from; bh=x; d=x.example; s=a; b=x\n" +
		"ARC-Authentication-Results: i=1; x.example; none\nAuthentication-Results: x.example; arc=pass\nFrom: a@x.example\n\nhello\n")
	f.Add("ARC-Seal: i=51\nARC-Message-Signature: =\nARC-Authentication-Results: i\n\n")
	key := &dkim.Signer{Domain: "x.example", Selector: "s", Key: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), Headers: []string{"from"}}
	v := &dkim.Verifier{Now: time.Unix(20000, 0), Lookup: func(context.Context, string) ([]string, error) { return []string{"v=DKIM1; p="}, nil }}
	f.Fuzz(func(t *testing.T, text string) {
		if c := Validate(t.Context(), v, messageOf(text)); c.Result == Pass {
			t.Errorf("passes with a key that is revoked: %q", text)
		}
		if set, err := Seal(messageOf(text), key, "x.example", time.Unix(20000, 0)); err == nil && strings.ContainsAny(set.Seal, "\x00") {
			t.Errorf("%q", set.Seal)
		}
	})
}
