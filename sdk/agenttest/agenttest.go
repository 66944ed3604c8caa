// Package agenttest runs an agent the way a host does and lets a test talk to it.
//
//	func TestSecondTry(t *testing.T) {
//		a := agenttest.Start(t, New, `delay = "5m"`)
//		a.From("192.0.2.7").Rcpt("s@x.example", "r@y.example").Want(451, "4.7.1")
//		a.Advance(6 * time.Minute)
//		a.From("192.0.2.99").Rcpt("s@x.example", "r@y.example").WantContinue()
//	}
//
// The agent runs as two real processes (the test binary, started again) that get the events in turn, and a
// third time as a single process that gets them all. The answers must be the same: an agent that remembers
// something between events outside of stamps and tables fails its test, as it would fail its operator when a
// process is replaced. Tables, stamps and the clock are the test's own. Answers that a host would refuse (an
// edit that was not declared, a code that disagrees with its enhanced code) fail the test as well.
package agenttest

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agentpb"
)

// childVariable names the test whose agent a process is to be.
const childVariable = "POSTERN_AGENTTEST"

// epoch is when the clock of a test starts.
var epoch = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// Agent under test.
type Agent struct {
	t             *testing.T
	options       settings
	config        []byte
	subscriptions map[sdk.EventKind]*agentpb.Subscription
	pair          *world // two processes, in turn
	single        *world // one process
	now           time.Time
	scheduled     time.Time // when Schedule was called last
	faults        []string  // that no Want has asked for
	sessions      int
	events        int
}

// settings of a test.
type settings struct {
	info      sdk.Info
	host      *agentpb.HostFacts
	env       []string
	killAfter bool
}

// Option of Start.
type Option func(*settings)

// WithInfo gives the agent the name, version, category and shared stamps that its main function gives it.
func WithInfo(info sdk.Info) Option { return func(s *settings) { s.info = info } }

// WithHost gives the host facts that New sees.
func WithHost(host *agentpb.HostFacts) Option { return func(s *settings) { s.host = host } }

// WithEnv adds to the environment of the processes: "NAME=value".
func WithEnv(environment ...string) Option {
	return func(s *settings) { s.env = append(s.env, environment...) }
}

// KillBetween kills, after each event, the process of the two that answered it, and starts it again.
func KillBetween() Option { return func(s *settings) { s.killAfter = true } }

// Start the agent that build makes of a configuration, written as in the agent's config block.
func Start[C, A any](t *testing.T, build func(C, *sdk.Registrar) (A, error), config string, options ...Option) *Agent {
	t.Helper()
	a := newAgent(t, build, options)
	a.start(config)
	return a
}

// newAgent does not return in a process that is to be the agent.
func newAgent[C, A any](t *testing.T, build func(C, *sdk.Registrar) (A, error), options []Option) *Agent {
	s := settings{
		info: sdk.Info{Name: "agent", Version: "0.0.1"},
		host: &agentpb.HostFacts{
			Name: "edge.example", Version: sdk.Version,
			AcceptedDomains: []*agentpb.AcceptedDomain{{Name: "y.example", Type: "authoritative"}},
		},
	}
	for _, o := range options {
		o(&s)
	}
	if os.Getenv(childVariable) == t.Name() {
		sdk.Main(s.info, build) // does not return
	}
	return &Agent{t: t, options: s, now: epoch}
}

// start the processes side by side, and configure them.
func (a *Agent) start(config string) {
	a.t.Helper()
	a.pair = newWorld(a, 2)
	a.single = newWorld(a, 1)
	a.t.Cleanup(a.stop)
	var starting sync.WaitGroup
	errs := make([]error, 3)
	starting.Go(func() { errs[0] = a.pair.launch(0) })
	starting.Go(func() { errs[1] = a.pair.launch(1) })
	starting.Go(func() { errs[2] = a.single.launch(0) })
	starting.Wait()
	for _, err := range errs {
		if err != nil {
			a.t.Fatalf("cannot start the agent: %v", err)
		}
	}
	a.decode(config)
	for _, p := range []*process{a.pair.processes[0], a.pair.processes[1], a.single.processes[0]} {
		if err := a.configure(p); err != nil {
			a.t.Fatal(err)
		}
	}
}

// decode the configuration with the schema of the agent, as a host does.
func (a *Agent) decode(config string) {
	a.t.Helper()
	p := a.single.processes[0]
	ctx, cancel := p.context()
	defer cancel()
	manifest, err := p.client.Describe(ctx, &agentpb.DescribeRequest{HostVersion: sdk.Version})
	if err != nil {
		a.t.Fatalf("Describe: %v", err)
	}
	if a.config, err = decodeHCL(manifest.GetSchema(), config); err != nil {
		a.t.Fatalf("the configuration is wrong: %v", err)
	}
}

func (a *Agent) configure(p *process) error {
	ctx, cancel := p.context()
	defer cancel()
	out, err := p.client.Configure(ctx, &agentpb.ConfigureRequest{
		Config: a.config, Generation: 1, Host: a.options.host, InstanceName: a.options.info.Name, StateDir: p.stateDir,
	})
	if err != nil {
		return fmt.Errorf("configuring the agent: %w\n%s", err, p.stderr)
	}
	for _, d := range out.GetDiagnostics() {
		if d.GetSeverity() != agentpb.Severity_SEVERITY_WARNING {
			return fmt.Errorf("the agent refuses its configuration: %s: %s", pathText(d.GetPath()), d.GetSummary())
		}
	}
	a.subscriptions = map[sdk.EventKind]*agentpb.Subscription{}
	for _, s := range out.GetSubscriptions() {
		a.subscriptions[s.GetEvent()] = s
	}
	return nil
}

// Diagnostics starts the agent and answers with what it says of a configuration: "path: summary" each, warnings
// with "warning: " in front. None: the configuration is right.
func Diagnostics[C, A any](t *testing.T, build func(C, *sdk.Registrar) (A, error), config string, options ...Option) []string {
	t.Helper()
	a := newAgent(t, build, options)
	w := newWorld(a, 1)
	t.Cleanup(func() { w.stop() })
	if err := w.launch(0); err != nil {
		t.Fatalf("cannot start the agent: %v", err)
	}
	p := w.processes[0]
	ctx, cancel := p.context()
	defer cancel()
	manifest, err := p.client.Describe(ctx, &agentpb.DescribeRequest{HostVersion: sdk.Version})
	if err != nil {
		t.Fatalf("Describe: %v", err)
	}
	text, err := decodeHCL(manifest.GetSchema(), config)
	if err != nil {
		return []string{err.Error()}
	}
	out, err := p.client.Validate(ctx, &agentpb.ValidateRequest{Config: text, Host: a.options.host})
	if err != nil {
		t.Fatalf("Validate: %v\n%s", err, p.stderr)
	}
	var all []string
	for _, d := range out.GetDiagnostics() {
		all = append(all, diagnosticText(d))
	}
	return all
}

func diagnosticText(d *agentpb.Diagnostic) string {
	text := d.GetSummary()
	if len(d.GetPath()) > 0 {
		text = pathText(d.GetPath()) + ": " + text
	}
	if d.GetSeverity() == agentpb.Severity_SEVERITY_WARNING {
		text = "warning: " + text
	}
	return text
}

// pathText writes a path as an operator reads it: resolver[1].port.
func pathText(path []*agentpb.PathStep) string {
	var b strings.Builder
	for _, s := range path {
		switch s := s.GetStep().(type) {
		case *agentpb.PathStep_Name:
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(s.Name)
		case *agentpb.PathStep_Index:
			fmt.Fprintf(&b, "[%d]", s.Index)
		case *agentpb.PathStep_Key:
			fmt.Fprintf(&b, "[%q]", s.Key)
		}
	}
	return b.String()
}

// child is the command line that makes a process of the test binary be the agent of this test.
func (a *Agent) child() (command, environment []string) {
	var pattern []string
	for name := range strings.SplitSeq(a.t.Name(), "/") {
		pattern = append(pattern, "^"+regexp.QuoteMeta(name)+"$")
	}
	command = []string{os.Args[0], "-test.run=" + strings.Join(pattern, "/"), "-test.timeout=0", "-test.count=1"}
	return command, append([]string{childVariable + "=" + a.t.Name()}, a.options.env...)
}

func (a *Agent) stop() {
	for _, f := range a.faults {
		a.t.Errorf("%s", f)
	}
	a.pair.stop()
	a.single.stop()
}

// Advance the clock of the host. Rows whose time is up are gone.
func (a *Agent) Advance(d time.Duration) { a.now = a.now.Add(d) }

// Now is the clock of the host.
func (a *Agent) Now() time.Time { return a.now }

// KillOne kills the process that answered last and starts it again, as a crash between two events does.
func (a *Agent) KillOne() {
	a.t.Helper()
	if err := a.pair.restart(a.pair.last); err != nil {
		a.t.Fatal(err)
	}
}

// Row of a table.
type Row struct {
	Key     string
	Value   string // JSON
	Created time.Time
	Expires time.Time // zero: never
}

// Rows of a table, by key.
func (a *Agent) Rows(table string) []Row { return a.pair.tables.list(table, a.now) }

// PutRow into a table, as the operator or another agent does; value is a JSON object, keep 0 is for ever.
func (a *Agent) PutRow(table, key, value string, keep time.Duration) {
	for _, w := range []*world{a.pair, a.single} {
		w.tables.put(table, key, value, a.now, keep)
	}
}

// raise one event in both worlds and compare.
func (a *Agent) raise(s *Session, event *agentpb.Event) *Outcome {
	a.t.Helper()
	sub := a.subscriptions[event.GetKind()]
	if sub == nil {
		return &Outcome{Session: s, kind: event.GetKind(), answer: continueAnswer(), shown: s.header, base: s.header}
	}
	a.events++
	event.EventId = fmt.Sprintf("e%d", a.events)
	event.TimeUnixNanos = a.now.UnixNano()
	answer, err := a.pair.ask(s, sub, event)
	if err != nil {
		a.t.Fatalf("%s: %v", sdk.EventName(event.GetKind()), err)
	}
	alone, err := a.single.ask(s, sub, event)
	if err != nil {
		a.t.Fatalf("%s: %v", sdk.EventName(event.GetKind()), err)
	}
	if !sameAnswer(answer, alone) {
		a.t.Errorf("%s: two processes in turn answer\n  %v\nwhere one process alone answers\n  %v\n"+
			"so the agent remembers something between events that is neither stamp nor row, or answers by chance",
			sdk.EventName(event.GetKind()), answer, alone)
	}
	for _, breach := range breaches(sub, event, answer, a.options.info.SharedStamps) {
		a.t.Errorf("%s: a host refuses this answer: %s", sdk.EventName(event.GetKind()), breach)
	}
	if a.options.killAfter {
		a.KillOne()
	}
	return newOutcome(a, s, event, answer)
}

func continueAnswer() *agentpb.Answer {
	return &agentpb.Answer{Verdicts: []*agentpb.Verdict{{Kind: agentpb.VerdictKind_VERDICT_KIND_CONTINUE}}}
}

// sameAnswer compares all but the id on the stream.
func sameAnswer(a, b *agentpb.Answer) bool {
	a, b = proto.CloneOf(a), proto.CloneOf(b)
	a.Id, b.Id = 0, 0
	return proto.Equal(a, b)
}
