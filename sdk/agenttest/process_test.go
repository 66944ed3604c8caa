package agenttest

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/posternmail/postern/sdk/agentpb"
)

// A built binary answers a host: handshake, configuration, one event.
func TestBuiltAgent(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "greylist")
	if out, err := exec.Command("go", "build", "-o", binary, "../../examples/greylist").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	p, err := launch([]string{binary}, nil, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer p.kill()
	ctx, cancel := p.context()
	defer cancel()
	configured, err := p.client.Configure(ctx, &agentpb.ConfigureRequest{
		Config: []byte(`{"delay":"5m","window":"24h","keep":"864h"}`), Generation: 1, InstanceName: "greylist",
	})
	if err != nil || len(configured.Diagnostics) > 0 || len(configured.Subscriptions) != 1 {
		t.Fatalf("Configure: %v, %v", configured, err)
	}
	answer, err := p.ask(&agentpb.Event{
		EventId: "e1", Kind: agentpb.EventKind_EVENT_KIND_RCPT, TimeUnixNanos: 1e18,
		Session:   &agentpb.Session{Id: "s1", Client: []byte{192, 0, 2, 1}},
		Envelope:  &agentpb.Envelope{Id: "s1.1", Sender: &agentpb.Sender{Address: []byte("s@x.example")}},
		Arguments: &agentpb.Arguments{Event: &agentpb.Arguments_Rcpt{Rcpt: &agentpb.RcptArguments{Recipient: &agentpb.Recipient{Address: []byte("r@y.example")}}}},
		Rows:      []*agentpb.Row{{Table: "greylist", Key: []byte("192.0.2.0|s@x.example|r@y.example")}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(answer.Verdicts) != 1 || answer.Verdicts[0].GetReply().GetCode() != 451 {
		t.Errorf("answer %v, want 451", answer)
	}
	if len(answer.Writes) != 1 || string(answer.Writes[0].Key) != "192.0.2.0|s@x.example|r@y.example" {
		t.Errorf("writes %v", answer.Writes)
	}
}
