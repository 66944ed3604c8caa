package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/internal/logtest"
	"github.com/posternmail/postern/sdk/agentpb"
)

// output collects log lines.
type output struct{ logtest.Output }

// waitFor waits until the log holds a text.
func (o *output) waitFor(t *testing.T, text string) {
	t.Helper()
	eventually(t, "the log to hold "+text, func() bool { return strings.Contains(o.String(), text) })
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// options of a test agent in a role.
func options(t *testing.T, role string) (Options, *output) {
	t.Helper()
	run, err := os.MkdirTemp("/tmp", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	out := &output{}
	return Options{
		Spec: config.Agent{Name: "tester", Command: []string{os.Args[0]}, StartTimeout: 20 * time.Second,
			Env: map[string]string{roleKey: "agent " + role, "GORACE": "atexit_sleep_ms=0"}},
		RunDir: run, StateDir: t.TempDir(),
		Logger:  hclog.New(&hclog.LoggerOptions{Output: out, Level: hclog.Trace}),
		Backoff: Backoff{First: 10 * time.Millisecond, Max: 50 * time.Millisecond, Attempts: 1000},
	}, out
}

// launch starts a test agent and sees to it that nothing is left of it.
func launch(t *testing.T, o Options) *Agent {
	t.Helper()
	a, err := Launch(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		a.Close(ctx)
		nothingLeft(t, o)
	})
	return a
}

// nothingLeft asserts that no folder of a socket is left.
func nothingLeft(t *testing.T, o Options) {
	t.Helper()
	left, err := os.ReadDir(o.RunDir)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the run folder: %v %v", left, err)
	}
}

// event is a call whose text tells the test agent what to do.
func event(id, text string) *Call {
	facts := &agentpb.Event{EventId: id, Kind: agentpb.EventKind_EVENT_KIND_NOOP}
	if text != "" {
		facts.Arguments = &agentpb.Arguments{Event: &agentpb.Arguments_Text{Text: &agentpb.TextArguments{Text: []byte(text)}}}
	}
	octets, err := proto.Marshal(facts)
	if err != nil {
		panic(err)
	}
	return &Call{Kind: facts.Kind, EventID: id, Facts: octets, Timeout: 20 * time.Second}
}

// data is what an answer carries.
func data(r Result) string { return r.Answer.GetVerdicts()[0].GetData() }

func mustCall(t *testing.T, a *Agent, c *Call) Result {
	t.Helper()
	r, err := a.Call(context.Background(), c)
	if err != nil {
		t.Fatalf("event %s: %v", c.EventID, err)
	}
	return r
}

// mustFail asserts the kind of a failure.
func mustFail(t *testing.T, a *Agent, c *Call, kind FailureKind) *Failure {
	t.Helper()
	_, err := a.Call(context.Background(), c)
	var failure *Failure
	if !errors.As(err, &failure) || failure.Kind != kind {
		t.Fatalf("event %s: got %v, want a failure of kind %s", c.EventID, err, kind)
	}
	return failure
}

func TestAnswers(t *testing.T) {
	o, _ := options(t, "")
	a := launch(t, o)
	if a.Name() != "tester" || a.Manifest().GetVersion() != "1.2.3" || len(a.Subscriptions()) != 1 || !a.Ready() {
		t.Errorf("name %s, manifest %v, subscriptions %v", a.Name(), a.Manifest(), a.Subscriptions())
	}
	r := mustCall(t, a, event("e1", ""))
	if r.Version != "1.2.3" || len(r.Attempts) != 1 || r.Attempts[0].Failure != nil || !strings.HasPrefix(r.Attempts[0].Instance, "tester/1 pid ") {
		t.Errorf("result %+v", r)
	}
	var calls sync.WaitGroup
	for i := range 500 {
		calls.Go(func() {
			if _, err := a.Call(context.Background(), event(fmt.Sprint(i), "")); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	s := a.Status()
	if s.Answered != 501 || s.InFlight != 0 || s.Instances[0].State != Up || s.Instances[0].PID == 0 || s.Latency.Mean <= 0 {
		t.Errorf("status %+v", s)
	}
}

func TestBodies(t *testing.T) {
	octets := func(n int) []byte { return bytes.Repeat([]byte("0123456789abcde\n"), n/16+1)[:n] }
	inFile := func(n int) *envelope.Body {
		f, err := os.Create(t.TempDir() + "/body")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(octets(n)); err != nil {
			t.Fatal(err)
		}
		return envelope.FileBody(f, int64(n))
	}
	tests := []struct {
		name   string
		role   string
		body   *envelope.Body
		prefix int64
		want   string
	}{
		{"small", "", envelope.MemoryBody(octets(100)), 0, "inline 100 of 100 truncated=false "},
		{"empty", "", envelope.MemoryBody(nil), 0, "inline 0 of 0 truncated=false "},
		{"inline limit", "", envelope.MemoryBody(octets(32 << 10)), 0, "inline 32768 of 32768 truncated=false "},
		{"memory", "", envelope.MemoryBody(octets(50000)), 0, "descriptor 50000 of 50000 truncated=false "},
		{"file", "", inFile(3 << 20), 0, "descriptor 3145728 of 3145728 truncated=false "},
		{"small file", "", inFile(1000), 0, "inline 1000 of 1000 truncated=false "},
		{"prefix", "", inFile(3 << 20), 40000, "inline 40000 of 3145728 truncated=true "},
		{"prefix of all", "", inFile(1000), 40000, "inline 1000 of 1000 truncated=false "},
		{"prefix too long", "", inFile(3 << 20), 2 << 20, "inline 1048576 of 3145728 truncated=true "},
		{"chunks", "chunks", inFile(3 << 20), 0, "chunks 3145728 of 3145728 truncated=false "},
		{"chunks of memory", "chunks", envelope.MemoryBody(octets(50000)), 0, "chunks 50000 of 50000 truncated=false "},
	}
	agents := map[string]*Agent{}
	for _, role := range []string{"", "chunks"} {
		o, _ := options(t, role)
		agents[role] = launch(t, o)
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := event(test.name, "body")
			c.Body, c.Prefix = test.body, test.prefix
			got := data(mustCall(t, agents[test.role], c))
			var n int
			if _, err := fmt.Sscanf(strings.Fields(test.want)[1], "%d", &n); err != nil {
				t.Fatal(err)
			}
			if want := test.want + digestOf(octets(n)); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}
