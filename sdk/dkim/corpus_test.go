package dkim

import (
	"bytes"
	"context"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/internal/corpora"
)

func readMessage(t testing.TB, path string) *Message {
	t.Helper()
	octets, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return messageOf(string(octets))
}

// messageOf text with line ends of either kind.
func messageOf(text string) *Message {
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\n", "\r\n")
	header, body, _ := strings.Cut(text, "\r\n\r\n")
	return NewMessage([]byte(header), strings.NewReader(body), int64(len(body)))
}

// fakeDNS is FAKE_DNS.dat.
func fakeDNS(t *testing.T, path string) Lookup {
	t.Helper()
	octets, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	records := map[string]string{}
	for line := range strings.Lines(string(octets)) {
		if name, text, found := strings.Cut(strings.TrimSpace(line), " "); found && name[0] != '#' {
			records[name] = strings.TrimSpace(text)
		}
	}
	return func(_ context.Context, name string) ([]string, error) {
		switch text, found := records[strings.ToLower(name)]; {
		case !found, text == "NXDOMAIN":
			return nil, nil
		case strings.HasPrefix(text, "~~"):
			return nil, errors.New(text)
		default:
			return []string{strings.Trim(text, `"`)}, nil
		}
	}
}

// disagreement with Mail::DKIM: files that begin so, and why.
type disagreement struct{ files, why string }

// historic are those that stay when the algorithms and keys of 2006 are accepted.
var historic = []disagreement{
	{"good_dk_ bad_dk_ dk_", "DomainKeys (RFC 4870) is historic and not verified: RFC 4871 replaced it in 2007"},
	{"good_ietf00_", "draft-ietf-dkim-base-00 has no bh=: the hash covers the body itself"},
	{"badkey_8. badkey_9. badkey_12.", "g= of a key is not looked at: RFC 6376 appendix C.1 removed it"},
}

// strict are those that RFC 6376 and RFC 8301 add.
var strict = append([]disagreement{
	{"mine_ietf01_ mine_ietf05_ good_ietf01_ bad_ietf01_ multiple_1. bad_1. no_body_", "a draft's signature without v=1, which RFC 6376 section 6.1.1 demands"},
	{"good_rfc4871_ goodkey_1. goodkey_3. goodkey_4. good_83176. good_qp_ good_1878523. bad_1878954. multiple_2.", "SHA-1 or a key of less than 1024 bits, which prove nothing (RFC 8301)"},
}, historic...)

func explained(list []disagreement, file string) bool {
	for _, d := range list {
		for prefix := range strings.FieldsSeq(d.files) {
			if strings.HasPrefix(file, prefix) {
				return true
			}
		}
	}
	return false
}

// TestMailDKIM compares with the verdicts of Mail::DKIM, once with the algorithms of its time, which shows that
// the mathematics is right, and once as messages are judged.
func TestMailDKIM(t *testing.T) {
	folder := corpora.Path(t, "auth-dkim", "mail-dkim-perl")
	t.Setenv("GODEBUG", "rsa1024min=0") // keys of the time
	lookup := fakeDNS(t, filepath.Join(folder, "FAKE_DNS.dat"))
	expected, err := os.ReadFile(filepath.Join(folder, "EXPECTED.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []struct {
		name  string
		known []disagreement
	}{{"historic", historic}, {"strict", strict}} {
		t.Run(mode.name, func(t *testing.T) {
			v := &Verifier{Lookup: lookup, Now: time.Unix(1700000000, 0), historic: mode.name == "historic"}
			count, differ := 0, 0
			for line := range bytes.Lines(expected) {
				columns := strings.Split(strings.TrimSpace(string(line)), "\t")
				if len(columns) < 3 || columns[0] != "default" {
					continue
				}
				count++
				got, reason := best(v.Verify(t.Context(), readMessage(t, filepath.Join(folder, columns[1]))))
				if got == columns[2] {
					continue
				}
				differ++
				if !explained(mode.known, filepath.Base(columns[1])) {
					t.Errorf("%s: %s (%s), Mail::DKIM says %s", columns[1], got, reason, columns[2])
				}
			}
			if count != 76 {
				t.Errorf("%d verdicts, expected 76", count)
			}
			t.Logf("%d of %d verdicts agree, %d differ for the reasons listed", count-differ, count, differ)
		})
	}
}

// TestFlankerCanonicalization compares with the canonical forms in flanker's fixtures.
func TestFlankerCanonicalization(t *testing.T) {
	folder := corpora.Path(t, "auth-dkim", "flanker")
	emails, err := filepath.Glob(filepath.Join(folder, "email.*"))
	if err != nil || len(emails) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	for _, path := range emails {
		octets, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range []string{"simple", "relaxed"} {
			want, err := os.ReadFile(strings.Replace(path, "email.", form+".expected.", 1))
			if err != nil {
				t.Fatal(err)
			}
			if form == "relaxed" && filepath.Ext(path) == ".24" {
				continue // nothing but white space: kept by a draft, nothing by RFC 6376 section 3.4.4
			}
			got := canonicalText(string(octets), form == "relaxed")
			if got != strings.ReplaceAll(string(want), "\r\n", "\n") {
				t.Errorf("%s %s: %q, expected %q", filepath.Base(path), form, got, want)
			}
		}
	}
}

func canonicalText(text string, relaxed bool) string {
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\n", "\r\n")
	header, body, _ := strings.Cut(text, "\r\n\r\n")
	var out strings.Builder
	for _, f := range splitFields([]byte(header)) {
		out.WriteString(canonicalField(f, relaxed))
	}
	out.WriteString("\r\n")
	var kept recordedHash
	c := &canonicalBody{w: &limitedHash{hash: &kept, left: -1}, relaxed: relaxed}
	io.WriteString(c, body)
	c.end()
	return strings.ReplaceAll(out.String()+kept.String(), "\r\n", "\n")
}

// recordedHash keeps what it is given.
type recordedHash struct {
	hash.Hash
	strings.Builder
}

func (r *recordedHash) Write(p []byte) (int, error) { return r.Builder.Write(p) }
func (r *recordedHash) Reset()                      {}

// best of several as Mail::DKIM has it, in its words.
func best(all []Verification) (result, reason string) {
	result = "none"
	for _, want := range []struct{ have, name string }{
		{"temperror", "invalid"}, {"permerror", "invalid"}, {"policy", "invalid"}, {"fail", "fail"}, {"pass", "pass"},
	} {
		for _, v := range all {
			if string(v.Result) == want.have {
				result, reason = want.name, v.Reason
			}
		}
	}
	return result, reason
}
