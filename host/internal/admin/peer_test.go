package admin_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/sdk/agentpb"
)

type eventPlan = pipeline.EventPlan

// TestMain plays a client of another user where askAs has started the test binary for that.
func TestMain(m *testing.M) {
	if socket := os.Getenv("POSTERN_TEST_ASK"); socket != "" {
		os.Exit(ask(socket))
	}
	os.Exit(m.Run())
}

func ask(socket string) int {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	response, err := client.Get("http://host/v1/status")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer response.Body.Close()
	fmt.Println(response.StatusCode)
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		return 1
	}
	return 0
}

// askAs asks for the status as another user, with this test binary.
func askAs(t *testing.T, uid uint32, socket string) (status int, body string) {
	t.Helper()
	// The other user cannot enter the folder of the test binary.
	content, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	folder, err := os.MkdirTemp("/tmp", "p")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	binary := folder + "/ask"
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, content, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary)
	cmd.Env = []string{"POSTERN_TEST_ASK=" + socket}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	first, rest, _ := strings.Cut(string(out), "\n")
	if _, err := fmt.Sscan(first, &status); err != nil {
		t.Fatalf("%s", out)
	}
	return status, rest
}

// caller is an agent that refuses everything.
type caller struct{ name string }

func (c caller) Name() string                           { return c.name }
func (c caller) Manifest() *agentpb.DescribeResponse    { return nil }
func (c caller) Subscriptions() []*agentpb.Subscription { return nil }
func (c caller) Call(context.Context, *agent.Call) (agent.Result, error) {
	return agent.Result{Answer: &agentpb.Answer{Verdicts: []*agentpb.Verdict{
		{Kind: agentpb.VerdictKind_VERDICT_KIND_CONTINUE}, {Kind: agentpb.VerdictKind_VERDICT_KIND_REJECT},
	}}}, nil
}
