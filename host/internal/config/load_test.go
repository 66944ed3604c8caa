package config

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk/agentpb"
)

// loadEdge loads the sample of the design from a copy with certificates.
func loadEdge(t *testing.T) (*Config, string, Options) {
	work, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(work, os.DirFS("testdata/valid")); err != nil {
		t.Fatal(err)
	}
	writeCertificates(t, filepath.Join(work, "edge/tls"))
	t.Chdir(work)
	o := fakeOptions(t)
	c, diags := Load("edge", o)
	if len(diags.All()) > 0 {
		var b bytes.Buffer
		diags.Print(&b, 0, false)
		t.Fatalf("the sample is not clean:\n%s", b.String())
	}
	return c, work, o
}

func TestLoadDirectory(t *testing.T) {
	c, work, o := loadEdge(t)
	if c.Host.Name != "edge02.adventureworks.example" || c.Host.DataDir != filepath.Join(work, "edge/data") {
		t.Errorf("host %+v", c.Host)
	}
	if c.Host.Postmaster != "postmaster@adventureworks.example" {
		t.Errorf("postmaster %q", c.Host.Postmaster)
	}
	if c.Queue.ExpireAfter != 48*time.Hour || c.Quarantine.ExpireAfter != 30*24*time.Hour || c.Ledger.MaxBytes != 1<<30 {
		t.Errorf("queue %+v, quarantine %+v, ledger %+v", c.Queue, c.Quarantine, c.Ledger)
	}
	if c.TLS["public"].Certificate != filepath.Join(work, "edge/tls/good.crt") {
		t.Errorf("tls %+v", c.TLS)
	}
	checkConnectors(t, c)
	checkAgents(t, c, o)
}

func checkConnectors(t *testing.T, c *Config) {
	t.Helper()
	hub := c.ReceiveConnectors[1]
	if !slices.Equal(hub.Remote, []netip.Prefix{netip.MustParsePrefix("10.30.0.11/32"), netip.MustParsePrefix("10.30.0.12/32")}) {
		t.Errorf("remote %v", hub.Remote)
	}
	if hub.Limits.MaxMessageSize != 50<<20 || hub.Limits.MaxRecipients != 200 || !hub.Limits.TarpitSet || hub.Limits.PerSourceSet {
		t.Errorf("limits %+v", hub.Limits)
	}
	if internet := c.ReceiveConnectors[0]; internet.Limits.Tarpit != 5*time.Second || internet.Limits.TarpitSet || internet.Banner != "edge02.adventureworks.example ESMTP Postern" {
		t.Errorf("connector %+v", internet)
	}
	if spaces := c.SendConnectors[1].AddressSpaces; !slices.Equal(spaces, []AddressSpace{{"old.example", 1}, {"*.ancient.example", 10}}) {
		t.Errorf("address spaces %v", spaces)
	}
	if to := c.SendConnectors[3]; to.Password != "s3cret" || to.Port != 25 || to.TLSAuth != "none" || to.Fqdn != c.Host.Name {
		t.Errorf("connector %+v", to)
	}
}

func checkAgents(t *testing.T, c *Config, o Options) {
	t.Helper()
	var names []string
	for _, agent := range c.Agents {
		names = append(names, agent.Name)
	}
	if !slices.Equal(names, []string{"connfilter", "rewrite-in", "contentfilter", "antivirus"}) {
		t.Fatalf("agents %v", names)
	}
	rewrite, content, virus := c.Agents[1], c.Agents[2], c.Agents[3]
	if rewrite.Plugin != "addressrewrite" || rewrite.Command[0] != filepath.Join(o.AgentDir, "addressrewrite") {
		t.Errorf("rewrite-in %+v", rewrite)
	}
	if content.Timeout != (Timeouts{Connect: 5 * time.Second, Command: 5 * time.Second, Message: 20 * time.Second, Submitted: 5 * time.Second}) {
		t.Errorf("timeouts %+v", content.Timeout)
	}
	if !slices.Equal(content.When.Traffic, []string{"external"}) || len(virus.When.Traffic) != 3 {
		t.Errorf("when %v, %v", content.When, virus.When)
	}
	if virus.OnFailure[agentpb.EventKind_EVENT_KIND_END_OF_DATA] != "hold" || virus.OnFailure[agentpb.EventKind_EVENT_KIND_RCPT] != "defer" {
		t.Errorf("on_failure %v", virus.OnFailure)
	}
	if virus.Instances != 3 || virus.Env["CLAMD_TOKEN"] != "s3cret" || !virus.Sensitive["CLAMD_TOKEN"] || virus.Sensitive["CLAMD"] {
		t.Errorf("instances %d, environment %v, sensitive %v", virus.Instances, virus.Env, virus.Sensitive)
	}
	if len(virus.Grants) != 5 || content.Grants != nil {
		t.Errorf("grants %v, %v", virus.Grants, content.Grants)
	}
}

func TestAgentConfigJSON(t *testing.T) {
	c, work, _ := loadEdge(t)
	want := `{
  "dnsbl": [{"zone": "zen.example", "codes": ["127.0.0.2"], "weight": 1}],
  "list_file": "` + work + `/edge/helo-domains.txt",
  "keep": "180h", "max_size": 26214400,
  "threshold": 7, "mode": "reject", "enabled": true, "timeout": "5s"
}`
	equalJSON(t, c.Agents[0].Config, want)
	equalJSON(t, c.Agents[2].Config, `{}`)
}

func equalJSON(t *testing.T, got []byte, want string) {
	t.Helper()
	var a, b any
	if err := json.Unmarshal(got, &a); err != nil {
		t.Fatalf("%s: %v", got, err)
	}
	if err := json.Unmarshal([]byte(want), &b); err != nil {
		t.Fatal(err)
	}
	one, _ := json.Marshal(a)
	two, _ := json.Marshal(b)
	if !bytes.Equal(one, two) {
		t.Errorf("got  %s\nwant %s", one, two)
	}
}

func TestEffective(t *testing.T) {
	c, work, o := loadEdge(t)
	data, err := json.Marshal(c.Effective())
	if err != nil || bytes.Contains(data, []byte("s3cret")) {
		t.Errorf("%v: %s", err, data)
	}
	var shown Effective // with paths that are the same everywhere
	text := strings.NewReplacer(work, "/WORK", o.AgentDir, "/AGENTS").Replace(string(data))
	if err := json.Unmarshal([]byte(text), &shown); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := shown.Print(&b); err != nil {
		t.Fatal(err)
	}
	compareGolden(t, effectiveGolden, b.String())
}

// effectiveGolden is absolute, since loadEdge changes the folder.
var effectiveGolden = mustAbs("testdata/valid/edge.effective")

func mustAbs(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		panic(err)
	}
	return abs
}

// Unless told otherwise, an agent's events have no on_failure: the pipeline knows whether it declares a verdict.
func TestOnFailureUnset(t *testing.T) {
	c := mustLoad(t, `agent "fake" {
  priority = 1
  timeout  = "15s"
  on_failure {
    message = "hold"
  }
}`)
	fake := c.Agents[0]
	if want := map[agentpb.EventKind]string{agentpb.EventKind_EVENT_KIND_END_OF_DATA: "hold"}; len(fake.OnFailure) != 1 || fake.OnFailure[agentpb.EventKind_EVENT_KIND_END_OF_DATA] != "hold" {
		t.Errorf("got %v, want %v", fake.OnFailure, want)
	}
	if fake.Timeout.Connect != 10*time.Second || fake.Timeout.Command != 15*time.Second {
		t.Errorf("a timeout for all events is bounded by each budget: %+v", fake.Timeout)
	}
	equalJSON(t, fake.Config, `{"dnsbl":[],"enabled":true,"keep":"864h","max_size":1048576,"mode":"reject","threshold":7,"timeout":"5s"}`)
}

// mustLoad loads a text as one file, beside what makes a configuration whole.
func mustLoad(t *testing.T, text string) *Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.hcl")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, diags := Load(path, fakeOptions(t))
	if err := diags.Err(); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRepositorySamples(t *testing.T) {
	plugins, err := os.ReadDir("../../../plugins")
	if err != nil {
		t.Fatal(err)
	}
	o := fakeOptions(t)
	o.Describe = nil // the real agents' schemas are not known here
	for _, p := range plugins {
		if err := os.WriteFile(filepath.Join(o.AgentDir, p.Name()), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"../../../config.hcl", "../../../config/hub.hcl"} {
		_, diags := Load(path, o)
		if len(diags.All()) > 0 {
			t.Errorf("%s: %v %v", path, diags.Err(), diags.All())
		}
	}
}

func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "none.hcl"), dir} {
		c, diags := Load(path, Options{})
		if c != nil || !diags.Errors() || !strings.HasPrefix(diags.Err().Error(), path+": ") {
			t.Errorf("%s: %v", path, diags.Err())
		}
	}
}

// A value of its own is taken from the environment whatever its type; one written in quotes is a string.
func TestTypesFromEnvironment(t *testing.T) {
	t.Setenv("PER_HOP", "7")
	t.Setenv("JSON", "true")
	path := filepath.Join(t.TempDir(), "config.hcl")
	text := "queue { max_per_hop = env(\"PER_HOP\") }\nlog { json = env(\"JSON\", \"false\") }\nhost { max_hops = null }\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, diags := Load(path, Options{})
	if c == nil || c.Queue.MaxPerHop != 7 || !c.LogJSON || c.Host.MaxHops != 30 {
		t.Errorf("%+v %v", c, diags.Err())
	}
}

// Whoever has mistyped something else still finds the running host.
func TestDataDir(t *testing.T) {
	for _, one := range []struct{ name, text, want string }{
		{"no mistake", "host {\n  data_dir = \"d\"\n}\n", "d"},
		{"not named", "host {\n  name = \"a.example.org\"\n}\n", "/var/lib/postern"},
		{"a mistake beside it", "host {\n  data_dir = \"d\"\n  max_hops = \"many\"\n}\nnonsense {}\n", "d"},
		{"a syntax error behind it", "host {\n  data_dir = \"d\"\n}\nlog {\n  level: \"info\"\n}\n", "d"},
		{"a syntax error that may hide it", "host {\n", ""},
		{"a mistake in it", "host {\n  data_dir = 7\n}\n", ""},
	} {
		t.Run(one.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "config.hcl")
			if err := os.WriteFile(path, []byte(one.text), 0o600); err != nil {
				t.Fatal(err)
			}
			want := one.want
			if want == "d" {
				want = filepath.Join(dir, "d")
			}
			if got := DataDir(path); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
	if got := DataDir(filepath.Join(t.TempDir(), "none.hcl")); got != "" {
		t.Errorf("%q of no file", got)
	}
}

// One timeout for all events that is longer than a budget is cut, which is said once, where it is written.
func TestTimeoutOverTheBudgetIsSaid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.hcl")
	text := `agent_defaults {
  timeout = "30s"
}
agent "fake" {
  priority = 1
}
agent "other" {
  plugin   = "fake"
  priority = 2
}
agent "third" {
  plugin   = "fake"
  priority = 3
  timeout  = "5s"
}
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, diags := Load(path, fakeOptions(t))
	var said []string
	for _, d := range diags.All() {
		if strings.Contains(d.String(), "timeout 30s is longer than the event budget") {
			said = append(said, d.String())
		}
	}
	if len(said) != 1 || !strings.Contains(said[0], ":2,13-18: ") || diags.Errors() {
		t.Errorf("%q, %v", said, diags.Err())
	}
}
