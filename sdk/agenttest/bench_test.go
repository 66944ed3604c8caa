package agenttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk/agentpb"
)

// BenchmarkProcess measures the CPU time that a real agent process spends on an event, its socket included: OnRcpt of
// greylist, from an exempt network, so many events in flight and as many as that in a batch.
func BenchmarkProcess(b *testing.B) {
	binary := filepath.Join(b.TempDir(), "greylist")
	if out, err := exec.Command("go", "build", "-o", binary, "../../examples/greylist").CombinedOutput(); err != nil {
		b.Fatalf("build: %v\n%s", err, out)
	}
	for _, flight := range []int{1, 32} {
		b.Run(fmt.Sprint(flight), func(b *testing.B) {
			p, err := launch([]string{binary}, nil, b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			defer p.kill()
			ctx, cancel := p.context()
			defer cancel()
			if _, err := p.client.Configure(ctx, &agentpb.ConfigureRequest{
				Config: []byte(`{"exempt":["192.0.2.0/24"]}`), InstanceName: "greylist",
			}); err != nil {
				b.Fatal(err)
			}
			start := cpuOf(b, p)
			blast(b, p, flight)
			b.ReportMetric(float64((cpuOf(b, p)-start).Nanoseconds())/float64(b.N), "agent-cpu-ns/op")
		})
	}
}

// blast b.N events at the process.
func blast(b *testing.B, p *process, flight int) {
	batch := new(agentpb.EventsRequest)
	for id := range flight {
		batch.Events = append(batch.Events, &agentpb.Event{
			Id: uint64(id + 1), Attempt: 1, TimeoutMicros: 5_000_000, EventId: "5F3A9C.1.OnRcpt.1",
			Kind: agentpb.EventKind_EVENT_KIND_RCPT, TimeUnixNanos: 1e18,
			Session: &agentpb.Session{
				Id: "5F3A9C", Connector: "internet", Client: []byte{192, 0, 2, 7}, ClientPort: 40123,
				Local: []byte{198, 51, 100, 1}, LocalPort: 25, Helo: []byte("mail.x.example"), Extended: true, Trust: 1,
				Traffic: 1, StartedUnixNanos: 1e18, Commands: 3,
				Tls: &agentpb.Tls{Version: "TLS 1.3", CipherSuite: "TLS_AES_128_GCM_SHA256"},
			},
			Envelope: &agentpb.Envelope{Id: "5F3A9C.1", Sender: &agentpb.Sender{Address: []byte("s@x.example"), Size: 4096, BodyType: "8BITMIME"}},
			Arguments: &agentpb.Arguments{Event: &agentpb.Arguments_Rcpt{Rcpt: &agentpb.RcptArguments{
				Recipient: &agentpb.Recipient{Address: []byte("r@y.example")},
			}}},
			Rows: []*agentpb.Row{{Table: "greylist", Key: []byte("192.0.2.0|s@x.example|r@y.example")}},
		})
	}
	for received := 0; received < b.N; {
		if err := p.stream.Send(batch); err != nil {
			b.Fatal(err)
		}
		for n := 0; n < flight; {
			in := <-p.answers
			n += len(in.GetAnswers())
			received += len(in.GetAnswers())
		}
	}
}

// cpuOf a process so far, user and system, in steps of 10 ms.
func cpuOf(b *testing.B, p *process) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(after)
	var user, system int
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		b.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}
