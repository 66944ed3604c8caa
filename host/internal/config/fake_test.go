package config

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk/agentpb"
)

// fakes are bundled agents that only Describe and Validate below know.
var fakes = []string{"fake", "strict", "silent", "muddled", "connfilter", "contentfilter", "addressrewrite", "antivirus"}

// fakeOptions are Options with bundled agents in a folder of the test's.
func fakeOptions(t testing.TB) Options {
	dir := t.TempDir()
	for _, name := range fakes {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Options{Describe: fakeDescribe, Validate: fakeValidate, AgentDir: dir, Env: fakeEnv, Installed: fakeInstalled}
}

// fakeInstalled knows versions 1 of everything.
func fakeInstalled(_ Host, a Agent) ([]string, error) {
	if strings.Contains(a.Version, "7") {
		return nil, fmt.Errorf("version %q of agent %q: no installed version satisfies it; installed: 1.2.0, 1.1.0", a.Version, a.Plugin)
	}
	return []string{"/catalog/" + a.Plugin}, nil
}

func fakeEnv(name string) (string, bool) {
	known := map[string]string{"EDGE": "edge02.adventureworks.example", "PARALLEL": "3"}
	text, ok := known[name]
	return text, ok
}

func fakeDescribe(_ context.Context, a Agent) (*agentpb.DescribeResponse, error) {
	if a.Attach != "" {
		return nil, errors.New("nobody listens there")
	}
	switch filepath.Base(a.Command[0]) {
	case "silent":
		return nil, errors.New("it ended with exit status 3 before the handshake")
	case "muddled":
		return manifest(&agentpb.SchemaBlock{Attributes: []*agentpb.SchemaAttribute{{Name: "x", Type: "text"}}}), nil
	case "strict":
		return manifest(&agentpb.SchemaBlock{Attributes: []*agentpb.SchemaAttribute{
			{Name: "file", Type: `"string"`, Format: agentpb.Format_FORMAT_PATH, Required: true},
		}}), nil
	case "fake", "connfilter", "addressrewrite":
		return manifest(fakeSchema()), nil
	}
	return manifest(nil), nil
}

func manifest(root *agentpb.SchemaBlock) *agentpb.DescribeResponse {
	return &agentpb.DescribeResponse{Name: "fake", Version: "1.0.0", Schema: &agentpb.Schema{Root: root}}
}

// fakeSchema has one of everything.
func fakeSchema() *agentpb.SchemaBlock {
	text := `"string"`
	retry := &agentpb.SchemaBlock{Attributes: []*agentpb.SchemaAttribute{
		{Name: "times", Type: `"number"`, Format: agentpb.Format_FORMAT_INTEGER, Required: true},
	}}
	dnsbl := &agentpb.SchemaBlock{
		Attributes: []*agentpb.SchemaAttribute{
			{Name: "codes", Type: `["list","string"]`},
			{Name: "weight", Type: `"number"`, DefaultJson: "1"},
		},
		Blocks: []*agentpb.SchemaNested{{Name: "retry", Block: retry, Max: 1}},
	}
	return &agentpb.SchemaBlock{
		Attributes: []*agentpb.SchemaAttribute{
			{Name: "threshold", Type: `"number"`, Format: agentpb.Format_FORMAT_INTEGER, DefaultJson: "7", Min: "-1", Max: "9", Doc: "SCL to refuse at."},
			{Name: "mode", Type: text, OneOf: []string{"reject", "stamp", "fail"}, DefaultJson: `"reject"`},
			{Name: "enabled", Type: `"bool"`, DefaultJson: "true"},
			{Name: "direction", Type: text, OneOf: []string{"inbound", "outbound"}},
			{Name: "names", Type: `["list","string"]`, Format: agentpb.Format_FORMAT_DOMAIN},
			{Name: "networks", Type: `["list","string"]`, Format: agentpb.Format_FORMAT_PREFIX},
			{Name: "patterns", Type: `["list","string"]`, Format: agentpb.Format_FORMAT_REGEXP},
			{Name: "scores", Type: `["map","number"]`},
			{Name: "limits", Type: `["object",{"soft":"number","hard":"number"},["hard"]]`},
			{Name: "timeout", Type: text, Format: agentpb.Format_FORMAT_DURATION, DefaultJson: `"5s"`, Max: "30m"},
			{Name: "keep", Type: text, Format: agentpb.Format_FORMAT_DURATION, DefaultJson: `"36d"`},
			{Name: "max_size", Type: text, Format: agentpb.Format_FORMAT_SIZE, DefaultJson: "1048576", Max: "1 GB"},
			{Name: "sender", Type: text, Format: agentpb.Format_FORMAT_MAILBOX},
			{Name: "list_file", Type: text, Format: agentpb.Format_FORMAT_PATH},
			{Name: "token", Type: text, Sensitive: true},
		},
		Blocks: []*agentpb.SchemaNested{
			{Name: "dnsbl", LabelNames: []string{"zone"}, Block: dnsbl},
			{Name: "report", Max: 1, Block: &agentpb.SchemaBlock{Attributes: []*agentpb.SchemaAttribute{
				{Name: "to", Type: text, Format: agentpb.Format_FORMAT_MAILBOX, Required: true},
			}}},
		},
	}
}

// fakeValidate refuses whatever is called "fail".
func fakeValidate(_ context.Context, _ Agent, data []byte) ([]*agentpb.Diagnostic, error) {
	var config struct {
		Mode   string
		Token  string
		Names  []string
		Scores map[string]float64
		DNSBL  []struct {
			Zone  string
			Codes []string
		}
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, err
	}
	var found []*agentpb.Diagnostic
	for i, name := range config.Names {
		if name == "fail.example" {
			found = append(found, finding("this name fails", named("names"), indexed(i)))
		}
	}
	for i, list := range config.DNSBL {
		if list.Zone == "fail.example" {
			found = append(found, finding("this zone fails", named("dnsbl"), indexed(i), named("zone")),
				finding("no code of a DNS list", named("dnsbl"), indexed(i), named("codes"), indexed(1)),
				finding("the list has no weight", named("dnsbl"), indexed(i), named("weight")))
		}
	}
	if _, ok := config.Scores["fail"]; ok {
		found = append(found, finding("this score fails", named("scores"), keyed("fail")))
	}
	if config.Token == "fail" {
		found = append(found, finding("the token is refused", named("token")))
	}
	if config.Mode == "fail" {
		found = append(found, finding("mode fail needs a report", named("report"), named("to")))
		warning := finding("nothing is checked without names")
		warning.Severity, warning.Detail = agentpb.Severity_SEVERITY_WARNING, "Add names."
		found = append(found, warning)
	}
	return found, nil
}

func finding(summary string, path ...*agentpb.PathStep) *agentpb.Diagnostic {
	return &agentpb.Diagnostic{Severity: agentpb.Severity_SEVERITY_ERROR, Summary: summary, Path: path}
}

func named(name string) *agentpb.PathStep {
	return &agentpb.PathStep{Step: &agentpb.PathStep_Name{Name: name}}
}

func indexed(i int) *agentpb.PathStep {
	return &agentpb.PathStep{Step: &agentpb.PathStep_Index{Index: uint32(i)}}
}

func keyed(key string) *agentpb.PathStep {
	return &agentpb.PathStep{Step: &agentpb.PathStep_Key{Key: key}}
}

// writeCertificates makes the folder tls: good, other and expired, each with its key.
func writeCertificates(t testing.TB, dir string) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	day := 24 * time.Hour
	writePair(t, dir, "good", time.Now().Add(day))
	writePair(t, dir, "other", time.Now().Add(day))
	key := writePair(t, dir, "expired", time.Date(2020, 1, 2, 0, 0, 0, 0, time.UTC))
	if err := os.WriteFile(filepath.Join(dir, "readable.key"), key, 0o644); err != nil {
		t.Fatal(err)
	}
}

func writePair(t testing.TB, dir, name string, until time.Time) []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: until.AddDate(-1, 0, 0), NotAfter: until,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	secretPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for file, content := range map[string][]byte{name + ".crt": certificate, name + ".key": secretPEM} {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return secretPEM
}
