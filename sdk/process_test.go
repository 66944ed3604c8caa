package sdk_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agentpb"
)

// roleVariable makes the test binary be an agent.
const roleVariable = "POSTERN_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) == "agent" {
		fmt.Println("printed before the agent serves") // must not break the handshake
		sdk.Main(sdk.Info{
			Name: "proc", Version: "1.2.3", Summary: "for tests",
			Commands: []sdk.Command{{Name: "greet", Summary: "greets", Run: greet}},
		}, newProcAgent)
	}
	os.Exit(m.Run())
}

type procConfig struct {
	Name string `hcl:"name,optional" default:"nobody"`
}

type procAgent struct{ name string }

func newProcAgent(cfg procConfig, r *sdk.Registrar) (*procAgent, error) {
	r.OnEndOfData(sdk.Body(sdk.Whole, sdk.Current), sdk.MayChange(sdk.BodyParts))
	return &procAgent{cfg.Name}, nil
}

// OnEndOfData prints, which goes to standard error, and says how many octets of the body it has read.
func (a *procAgent) OnEndOfData(_ context.Context, e *sdk.DataEvent) sdk.Verdict {
	fmt.Println("printed by a handler")
	n, err := io.Copy(io.Discard, e.Body().Reader())
	if err != nil {
		return sdk.Fault(err)
	}
	if a.name == "uploader" {
		patch := e.Patch()
		patch.Insert(1, bytes.Repeat([]byte("x"), 1_500_000))
		patch.Append(bytes.Repeat([]byte("y"), 500_000))
		return sdk.Continue().Edit(patch)
	}
	return sdk.Continue().Because("octets", fmt.Sprint(n))
}

func greet(_ context.Context, c *sdk.Invocation) error {
	var cfg procConfig
	if err := c.Config(&cfg); err != nil {
		return err
	}
	fmt.Fprintf(c.Out, "hello %s %s from %s\n", cfg.Name, strings.Join(c.Args, " "), c.StateDir)
	if len(c.Args) > 1 {
		return fmt.Errorf("too many")
	}
	return nil
}

// hosted is an agent process as its host sees it.
type hosted struct {
	t        *testing.T
	cmd      *exec.Cmd
	lifeline *os.File
	conn     *grpc.ClientConn
	stderr   bytes.Buffer
	exited   chan error
}

func start(t *testing.T, environment ...string) *hosted {
	t.Helper()
	dir, err := os.MkdirTemp("", "p")
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	h := &hosted{t: t, lifeline: ours, exited: make(chan error, 1)}
	h.cmd = exec.Command(os.Args[0])
	h.cmd.Env = append([]string{
		roleVariable + "=agent", "POSTERN_AGENT=b7c1d0f2-agent", "PLUGIN_PROTOCOL_VERSIONS=3,1", "PLUGIN_UNIX_SOCKET_DIR=" + dir,
		"POSTERN_TOKEN=secret", "POSTERN_LIFELINE_FD=3",
	}, environment...)
	h.cmd.Stderr, h.cmd.ExtraFiles = &h.stderr, []*os.File{theirs}
	stdout, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	t.Cleanup(func() {
		h.cmd.Process.Kill()
		h.lifeline.Close()
		os.RemoveAll(dir)
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("no handshake: %v\n%s", err, h.stderr.String())
	}
	go func() { h.exited <- h.cmd.Wait() }()
	h.connect(strings.TrimSpace(line), dir)
	return h
}

func (h *hosted) connect(line, dir string) {
	h.t.Helper()
	parts := strings.Split(line, "|")
	if len(parts) != 6 || strings.Join(parts[:3], "|") != "1|1|unix" || parts[4] != "grpc" || !strings.HasPrefix(parts[3], dir+"/") {
		h.t.Fatalf("handshake %q", line)
	}
	var err error
	if h.conn, err = grpc.NewClient("unix:"+parts[3], grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { h.conn.Close() })
}

func withToken(token string) context.Context {
	return metadata.AppendToOutgoingContext(context.Background(), "postern-token", token)
}

// ends waits for the process.
func (h *hosted) ends() {
	h.t.Helper()
	select {
	case <-h.exited:
	case <-time.After(10 * time.Second):
		h.t.Error("the process does not end")
	}
}

func TestOnlyTheHostIsServed(t *testing.T) {
	h := start(t)
	client := agentpb.NewAgentServiceClient(h.conn)
	for _, ctx := range []context.Context{context.Background(), withToken("guess"), withToken("")} {
		if _, err := client.Describe(ctx, &agentpb.DescribeRequest{}); status.Code(err) != codes.Unauthenticated {
			t.Errorf("Describe without the token: %v", err)
		}
		stream, err := client.Events(ctx)
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("Events without the token: %v", err)
		}
		if err := h.conn.Invoke(ctx, "/plugin.GRPCController/Shutdown", &emptypb.Empty{}, &emptypb.Empty{}); status.Code(err) != codes.Unauthenticated {
			t.Errorf("Shutdown without the token: %v", err)
		}
	}
	manifest, err := client.Describe(withToken("secret"), &agentpb.DescribeRequest{})
	if err != nil || manifest.GetName() != "proc" || manifest.GetCapabilities().GetBodyDescriptor() {
		t.Errorf("Describe: %v, %v", manifest, err)
	}
}

// What go-plugin asks for beside our service.
func TestPluginServices(t *testing.T) {
	h := start(t)
	ctx := withToken("secret")
	state, err := grpc_health_v1.NewHealthClient(h.conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: "plugin"})
	if err != nil || state.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", state, err)
	}
	stdio, err := h.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/plugin.GRPCStdio/StreamStdio")
	if err != nil || stdio.SendMsg(&emptypb.Empty{}) != nil || stdio.CloseSend() != nil {
		t.Errorf("stdio: %v", err)
	}
	if err := h.conn.Invoke(ctx, "/plugin.GRPCController/Shutdown", &emptypb.Empty{}, &emptypb.Empty{}); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	h.ends()
}

func TestEndsWithItsHost(t *testing.T) {
	h := start(t)
	h.lifeline.Close()
	h.ends()
}

func TestSignals(t *testing.T) {
	h := start(t)
	if err := h.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if _, err := agentpb.NewAgentServiceClient(h.conn).Describe(withToken("secret"), &agentpb.DescribeRequest{}); err != nil {
		t.Errorf("after SIGINT: %v", err)
	}
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	h.ends()
}

func TestAnotherProtocol(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{roleVariable + "=agent", "POSTERN_AGENT=b7c1d0f2-agent", "PLUGIN_PROTOCOL_VERSIONS=7,8"}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "speaks agent protocol 7,8, this agent speaks 1") {
		t.Errorf("%v\n%s", err, out)
	}
}

// A body in chunks, for a host that passes no descriptors; and what a handler prints goes to standard error.
func TestChunks(t *testing.T) {
	h := start(t)
	ctx := withToken("secret")
	client := agentpb.NewAgentServiceClient(h.conn)
	if _, err := client.Configure(ctx, &agentpb.ConfigureRequest{Config: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	bodies, err := client.Bodies(ctx)
	if err != nil {
		t.Fatal(err)
	}
	events, err := client.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const chunks, size = 10, 200_000
	err = events.Send(&agentpb.EventsRequest{Events: []*agentpb.Event{{
		Id: 1, Kind: sdk.OnEndOfData, TimeoutMicros: 10_000_000, Body: &agentpb.Body{Size: chunks * size, Ticket: "t"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	credit := 256 << 10
	for i := range chunks {
		for credit < size {
			frame, err := bodies.Recv()
			if err != nil {
				t.Fatal(err)
			}
			credit += int(frame.GetCredit())
		}
		credit -= size
		chunk := &agentpb.Chunk{Data: make([]byte, size), Last: i == chunks-1}
		if err := bodies.Send(&agentpb.BodiesRequest{Ticket: "t", Frame: &agentpb.BodiesRequest_Chunk{Chunk: chunk}}); err != nil {
			t.Fatal(err)
		}
	}
	out, err := events.Recv()
	if err != nil || out.GetAnswers()[0].GetVerdicts()[0].GetData() != "2000000" {
		t.Fatalf("%v, %v", out, err)
	}
	h.lifeline.Close()
	h.ends()
	if text := h.stderr.String(); !strings.Contains(text, "printed before") || !strings.Contains(text, "printed by a handler") {
		t.Errorf("standard error %q", text)
	}
}

// A new body that does not fit into an answer goes ahead of it, against credit.
func TestUpload(t *testing.T) {
	h := start(t)
	ctx := withToken("secret")
	client := agentpb.NewAgentServiceClient(h.conn)
	if _, err := client.Configure(ctx, &agentpb.ConfigureRequest{Config: []byte(`{"name":"uploader"}`)}); err != nil {
		t.Fatal(err)
	}
	bodies, err := client.Bodies(ctx)
	if err != nil {
		t.Fatal(err)
	}
	events, err := client.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := events.Send(&agentpb.EventsRequest{Events: []*agentpb.Event{{
		Id: 1, Kind: sdk.OnEndOfData, TimeoutMicros: 10_000_000, Body: &agentpb.Body{Size: 2, Inline: []byte("ab")},
	}}}); err != nil {
		t.Fatal(err)
	}
	ticket, uploaded := receiveUpload(t, bodies)
	out, err := events.Recv()
	if err != nil || len(out.GetAnswers()[0].GetEdits()) != 1 {
		t.Fatalf("%v, %v", out, err)
	}
	edit := out.GetAnswers()[0].GetEdits()[0].GetBody()
	var body []byte
	for _, s := range edit.GetSegments() {
		if r := s.GetOriginal(); r != nil {
			body = append(body, "ab"[r.GetOffset():r.GetOffset()+r.GetLength()]...)
			continue
		}
		r := s.GetUploaded().GetRange()
		if s.GetUploaded().GetTicket() != ticket {
			t.Fatalf("segment %v, want ticket %q", s, ticket)
		}
		body = append(body, uploaded[r.GetOffset():r.GetOffset()+r.GetLength()]...)
	}
	want := "a" + strings.Repeat("x", 1_500_000) + "b" + strings.Repeat("y", 500_000)
	sum := sha256.Sum256(body)
	if string(body) != want || edit.GetSize() != uint64(len(want)) || !bytes.Equal(edit.GetSha256(), sum[:]) {
		t.Errorf("%d octets, want %d", len(body), len(want))
	}
}

// receiveUpload gives credit as a host does, and no more.
func receiveUpload(t *testing.T, bodies agentpb.AgentService_BodiesClient) (ticket string, octets []byte) {
	t.Helper()
	credit := 256 << 10
	for {
		frame, err := bodies.Recv()
		if err != nil {
			t.Fatal(err)
		}
		data := frame.GetChunk().GetData()
		if credit -= len(data); credit < 0 {
			t.Fatal("more octets than credit")
		}
		ticket, octets = frame.GetTicket(), append(octets, data...)
		if frame.GetChunk().GetLast() {
			return ticket, octets
		}
		if err := bodies.Send(&agentpb.BodiesRequest{
			Ticket: ticket, Frame: &agentpb.BodiesRequest_Credit{Credit: uint64(len(data))},
		}); err != nil {
			t.Fatal(err)
		}
		credit += len(data)
	}
}

// byHand runs the agent as a person would.
func byHand(environment []string, args ...string) (stdout, stderr string, code int) {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append([]string{roleVariable + "=agent"}, environment...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Run()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestByHand(t *testing.T) {
	if _, text, code := byHand(nil); code != 1 || !strings.Contains(text, "is an agent of Postern") || !strings.Contains(text, "greet") {
		t.Errorf("without arguments: %d\n%s", code, text)
	}
	for _, option := range []string{"--help", "-h"} {
		out, complaint, code := byHand(nil, option)
		if code != 0 || complaint != "" || !strings.Contains(out, "is an agent of Postern") || !strings.Contains(out, "--options") || strings.Contains(out, "%!") {
			t.Errorf("%s: %d\n%s%s", option, code, out, complaint)
		}
	}
	if out, _, code := byHand(nil, "--version"); code != 0 || !strings.HasSuffix(out, " 1.2.3\n") {
		t.Errorf("--version: %d\n%s", code, out)
	}
	if out, _, code := byHand(nil, "--describe"); code != 0 || !strings.Contains(out, `"version": "1.2.3"`) {
		t.Errorf("--describe: %d\n%s", code, out)
	}
	config := []string{`POSTERN_CONFIG={"name":"you"}`, "POSTERN_STATE_DIR=/state"}
	if out, _, code := byHand(config, "greet", "there"); code != 0 || !strings.Contains(out, "hello you there from /state") {
		t.Errorf("greet: %d\n%s", code, out)
	}
	if _, text, code := byHand(nil, "greet", "a", "b"); code != 1 || !strings.Contains(text, "proc greet: too many") {
		t.Errorf("a command that fails: %d\n%s", code, text)
	}
	if _, text, code := byHand(nil, "gret"); code != 2 || !strings.Contains(text, "there are: greet") {
		t.Errorf("an unknown command: %d\n%s", code, text)
	}
}

// A host attaches to an agent that a person has started.
func TestListen(t *testing.T) {
	dir, err := os.MkdirTemp("", "p")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	cmd := exec.Command(os.Args[0], "--listen="+socket)
	cmd.Env = []string{roleVariable + "=agent"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	manifest, err := agentpb.NewAgentServiceClient(conn).Describe(ctx, &agentpb.DescribeRequest{}, grpc.WaitForReady(true))
	if err != nil || manifest.GetName() != "proc" {
		t.Errorf("Describe: %v, %v", manifest, err)
	}
}
