package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"google.golang.org/protobuf/encoding/protowire"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/posternmail/postern/sdk/agentpb"
)

// The test binary is also the agent, and the host that is killed: which one is said by this variable.
const roleKey = "POSTERN_TEST_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleKey); {
	case role == "host":
		mainHost()
	case role == "echo":
		mainEcho()
	case role != "":
		mainAgent(strings.Fields(role))
	default:
		os.Exit(m.Run())
	}
}

// testAgent is a minimal agent, written against the proto alone. What it does with an event stands in the text
// of its arguments; how it behaves as a process stands in its role.
type testAgent struct {
	agentpb.UnimplementedAgentServiceServer
	role     map[string]bool
	token    string
	server   *grpc.Server
	inFlight atomic.Int64
	gate     chan struct{}

	mu     sync.Mutex
	out    grpc.BidiStreamingServer[agentpb.EventsRequest, agentpb.EventsResponse]
	bodies grpc.BidiStreamingServer[agentpb.BodiesRequest, agentpb.BodiesResponse]
	chunks map[string]*incoming
	side   map[string]*os.File
	grown  *sync.Cond
}

// eaten keeps what an event has used up.
var eaten [][]byte

// incoming is a body that comes in chunks, or the credit of an upload.
type incoming struct {
	data   []byte
	last   bool
	credit int64
}

func mainAgent(roles []string) {
	a := &testAgent{role: map[string]bool{}, token: os.Getenv("POSTERN_TOKEN"), gate: make(chan struct{}),
		chunks: map[string]*incoming{}, side: map[string]*os.File{}}
	a.grown = sync.NewCond(&a.mu)
	for _, r := range roles {
		a.role[r] = true
	}
	if a.role["command"] {
		os.Exit(a.command())
	}
	if os.Getenv("POSTERN_AGENT") != "b7c1d0f2-agent" && !a.role["attached"] {
		fmt.Fprintln(os.Stderr, "this is an agent of Postern; start it with the host")
		os.Exit(1)
	}
	a.misbehave()
	go a.watchLifeline()
	go a.receiveSide()
	a.serve()
}

// misbehave does what a bad process does before it serves.
func (a *testAgent) misbehave() {
	signal.Ignore(syscall.SIGINT)
	switch {
	case a.role["exits"]:
		fmt.Fprintln(os.Stderr, "cannot read /etc/needed.conf")
		os.Exit(7)
	case a.role["gated"]:
		if _, err := os.Stat(filepath.Join(os.Getenv("POSTERN_STATE_DIR"), "away")); err == nil {
			fmt.Fprintln(os.Stderr, "cannot read the model")
			os.Exit(9)
		}
	case a.role["killed-once"] && first("start"), a.role["killed-always"]:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Minute) // the signal is on its way
	case a.role["held"]:
		for {
			if _, err := os.Stat(filepath.Join(os.Getenv("POSTERN_STATE_DIR"), "hold")); err != nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	case a.role["mute"]:
		time.Sleep(time.Hour)
	case a.role["prints"]:
		for i := range 5 {
			fmt.Println("hello from an initializer", i)
		}
	case a.role["babbles"]:
		for i := range 100 {
			fmt.Println("babble", i)
		}
		time.Sleep(time.Hour)
	case a.role["closed-output"]:
		defer os.Stdout.Close()
	}
	if a.role["forks"] {
		child := exec.Command("sleep", "1000")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		if err := child.Start(); err == nil {
			fmt.Fprintf(os.Stderr, `{"@level":"info","@message":"forked","child":%d}`+"\n", child.Process.Pid)
		}
	}
	if a.role["stubborn"] {
		signal.Ignore(syscall.SIGTERM)
	}
	if a.role["no-pdeathsig"] {
		_ = unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0)
	}
}

// first reports whether something happens for the first time in the life of the state folder.
func first(what string) bool {
	f, err := os.OpenFile(filepath.Join(os.Getenv("POSTERN_STATE_DIR"), what), os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		f.Close()
	}
	return err == nil
}

func (a *testAgent) watchLifeline() {
	fd, err := strconv.Atoi(os.Getenv("POSTERN_LIFELINE_FD"))
	if err != nil || a.role["no-lifeline"] {
		return
	}
	_, _ = os.NewFile(uintptr(fd), "lifeline").Read(make([]byte, 1))
	os.Exit(0)
}

func (a *testAgent) receiveSide() {
	fd, err := strconv.Atoi(os.Getenv("POSTERN_SIDE_FD"))
	if err != nil {
		return
	}
	buffer, rights := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	for {
		n, rn, _, _, err := unix.Recvmsg(fd, buffer, rights, unix.MSG_CMSG_CLOEXEC)
		if err != nil || n == 0 {
			return
		}
		messages, _ := unix.ParseSocketControlMessage(rights[:rn])
		fds, _ := unix.ParseUnixRights(&messages[0])
		a.mu.Lock()
		a.side[string(buffer[:n])] = os.NewFile(uintptr(fds[0]), "body")
		a.grown.Broadcast()
		a.mu.Unlock()
	}
}

func (a *testAgent) serve() {
	path := filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "plugin"+strconv.Itoa(os.Getpid()))
	if a.role["attached"] {
		path = os.Getenv("ATTACH_PATH")
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, "listen:", err)
		os.Exit(1)
	}
	a.server = grpc.NewServer(grpc.MaxRecvMsgSize(8<<20), grpc.UnaryInterceptor(a.unary), grpc.StreamInterceptor(a.streamed),
		grpc.InitialWindowSize(1<<20), grpc.InitialConnWindowSize(4<<20))
	agentpb.RegisterAgentServiceServer(a.server, a)
	a.server.RegisterService(&controllerDesc, a)
	version, network := "1", "unix"
	if a.role["version-2"] {
		version = "2"
	}
	if a.role["strays"] {
		path = "/tmp/elsewhere.sock"
	}
	fmt.Printf("1|%s|%s|%s|grpc|\n", version, network, path)
	go a.afterHandshake()
	if a.role["deaf"] {
		time.Sleep(time.Hour)
	}
	_ = a.server.Serve(listener)
	if a.role["slow-exit"] {
		time.Sleep(3 * time.Second)
		fmt.Fprintln(os.Stderr, "cleaned up")
	}
	if a.role["stubborn"] || a.role["lingers"] {
		time.Sleep(time.Hour)
	}
}

func (a *testAgent) afterHandshake() {
	if a.role["floods"] {
		w := bufio.NewWriter(os.Stdout)
		for range 20 {
			_, _ = w.WriteString(strings.Repeat("x", 200<<10))
		}
		_, _ = w.WriteString("\nend of the flood\n")
		_ = w.Flush()
		fmt.Fprintln(os.Stderr, "flood is over")
	}
	if a.role["logs"] {
		for _, line := range []string{
			`{"@message": 5}`, `{"@level":7,"@message":{"a":1},"@timestamp":false}`,
			`{"@level":"warn","@message":"from hclog","@timestamp":"2026-01-02T03:04:05.000000Z","session":"s1","message":"m1","agent":"liar"}`,
			`{"time":"2026-01-02T03:04:05Z","level":"ERROR","msg":"from slog","score":7}`,
			"[WARN] by prefix", "just text", "evil \x1b[31mred\x07\rover", strings.Repeat("y", 100<<10),
			`{"broken": `, "",
		} {
			fmt.Fprintln(os.Stderr, line)
		}
	}
	if a.role["chatters"] {
		for i := range 20000 {
			fmt.Fprintln(os.Stderr, "line", i)
		}
		fmt.Fprintln(os.Stderr, "last words")
	}
}

// controllerDesc is go-plugin's GRPCController.
var controllerDesc = grpc.ServiceDesc{
	ServiceName: "plugin.GRPCController", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Shutdown", Handler: func(srv any, _ context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		a := srv.(*testAgent)
		if !a.role["stubborn"] {
			a.server.Stop()
		}
		return &emptypb.Empty{}, nil
	}}},
}

func (a *testAgent) authorized(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if values := md.Get("postern-token"); a.token != "" && (len(values) != 1 || values[0] != a.token) {
		return status.Error(codes.Unauthenticated, "wrong token")
	}
	return nil
}

func (a *testAgent) unary(ctx context.Context, request any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	if err := a.authorized(ctx); err != nil {
		return nil, err
	}
	return h(ctx, request)
}

func (a *testAgent) streamed(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	if err := a.authorized(s.Context()); err != nil {
		return err
	}
	return h(srv, s)
}

func (a *testAgent) Describe(context.Context, *agentpb.DescribeRequest) (*agentpb.DescribeResponse, error) {
	if a.role["undescribed"] {
		time.Sleep(time.Hour)
	}
	if a.role["rude"] {
		return nil, status.Error(codes.Internal, "\x1b[2J\n[ERROR] forged\r\n"+strings.Repeat("E", 1<<20))
	}
	response := &agentpb.DescribeResponse{Name: "test", Version: "1.2.3",
		Capabilities: &agentpb.Capabilities{BodyDescriptor: !a.role["chunks"], LiveConfigure: a.role["live"]}}
	if a.role["exclusive"] {
		response.ExclusiveResources = []string{"port"}
	}
	return response, nil
}

func (a *testAgent) Validate(_ context.Context, r *agentpb.ValidateRequest) (*agentpb.ValidateResponse, error) {
	if a.role["killed-at-work"] && first("validate") {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Minute)
	}
	return &agentpb.ValidateResponse{Diagnostics: []*agentpb.Diagnostic{{Summary: "seen " + strings.ToValidUTF8(cutString(string(r.GetConfig()), 20), "")}}}, nil
}

func (a *testAgent) Configure(_ context.Context, r *agentpb.ConfigureRequest) (*agentpb.ConfigureResponse, error) {
	if string(r.GetConfig()) == "bad" {
		return &agentpb.ConfigureResponse{Diagnostics: []*agentpb.Diagnostic{{Summary: "bad configuration", Detail: "make it good"}}}, nil
	}
	return &agentpb.ConfigureResponse{Subscriptions: []*agentpb.Subscription{{Event: agentpb.EventKind_EVENT_KIND_NOOP}}}, nil
}

func (a *testAgent) Drain(context.Context, *agentpb.DrainRequest) (*agentpb.DrainResponse, error) {
	for a.inFlight.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
	fmt.Fprintln(os.Stderr, "drained")
	return &agentpb.DrainResponse{}, nil
}

func (a *testAgent) Events(s grpc.BidiStreamingServer[agentpb.EventsRequest, agentpb.EventsResponse]) error {
	a.out = s
	for {
		in, err := s.Recv()
		if err != nil {
			return nil
		}
		if ping := in.GetPing(); ping != nil && !a.role["unpinged"] {
			a.send(&agentpb.EventsResponse{Pong: &agentpb.Pong{Nonce: ping.GetNonce(), InFlight: uint32(a.inFlight.Load())}})
		}
		var at []*agentpb.Answer
		for _, e := range in.GetEvents() {
			a.inFlight.Add(1)
			if text := e.GetArguments().GetText().GetText(); len(text) > 0 {
				go a.handle(e, string(text))
				continue
			}
			a.inFlight.Add(-1)
			at = append(at, greased(carryOn(e, "")))
		}
		if len(at) > 0 {
			a.send(&agentpb.EventsResponse{Answers: at})
		}
	}
}

func (a *testAgent) send(r *agentpb.EventsResponse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.out.Send(r)
}

func carryOn(e *agentpb.Event, data string) *agentpb.Answer {
	return &agentpb.Answer{Id: e.GetId(), Verdicts: []*agentpb.Verdict{{Kind: agentpb.VerdictKind_VERDICT_KIND_CONTINUE, Data: data}}}
}

// handle does what the text of an event says: words, of which the first is the deed.
func (a *testAgent) handle(e *agentpb.Event, text string) {
	defer a.inFlight.Add(-1)
	deed, argument, _ := strings.Cut(text, " ")
	answer := carryOn(e, fmt.Sprintf("attempt %d pid %d", e.GetAttempt(), os.Getpid()))
	switch deed {
	case "die":
		fmt.Fprintln(os.Stderr, "panic: killed by", e.GetEventId())
		os.Exit(3)
	case "die-once":
		if e.GetAttempt() == 1 {
			os.Exit(3)
		}
	case "sleep":
		d, _ := time.ParseDuration(argument)
		time.Sleep(d)
	case "eat": // so many megabytes, each of their pages
		megabytes, _ := strconv.Atoi(argument)
		for range megabytes {
			eaten = append(eaten, bytes.Repeat([]byte("x"), 1<<20))
		}
	case "sleep-then-die":
		d, _ := time.ParseDuration(argument)
		time.Sleep(d)
		os.Exit(4)
	case "hold":
		if e.GetAttempt() == 1 {
			time.Sleep(3 * time.Second)
		}
	case "die-among":
		n, _ := strconv.Atoi(argument)
		for e.GetAttempt() == 1 && a.inFlight.Load() < int64(n) {
			time.Sleep(time.Millisecond)
		}
		os.Exit(4)
	case "gate":
		<-a.gate
	case "open":
		close(a.gate)
	case "never":
		return
	case "stop":
		if e.GetAttempt() == 1 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
			time.Sleep(time.Second) // until the signal has stopped all threads
		}
	case "twice":
		a.send(&agentpb.EventsResponse{Answers: []*agentpb.Answer{answer}})
	case "fault":
		answer = &agentpb.Answer{Id: e.GetId(), Fault: "handler failed\nbadly"}
	case "progress":
		for range 5 {
			a.send(&agentpb.EventsResponse{Progress: []*agentpb.Progress{{Id: e.GetId(), ExtendMillis: 2000}}})
			time.Sleep(100 * time.Millisecond)
		}
	case "large":
		n, _ := strconv.Atoi(argument)
		answer = carryOn(e, strings.Repeat("z", n))
	case "environment":
		answer = carryOn(e, a.surroundings())
	case "body":
		answer = carryOn(e, a.digest(e.GetBody()))
	case "upload":
		n, _ := strconv.Atoi(argument)
		a.upload("u1", n)
	case "hang-up":
		a.server.Stop()
		time.Sleep(time.Hour)
	}
	a.send(&agentpb.EventsResponse{Answers: []*agentpb.Answer{greased(answer)}})
}

// greased adds a field that no version of the protocol has, as a later agent may: the host passes over it.
func greased(answer *agentpb.Answer) *agentpb.Answer {
	answer.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 18000, protowire.BytesType), "grease"))
	return answer
}

// surroundings tells what the process sees of its host.
func (a *testAgent) surroundings() string {
	in, _ := os.Readlink("/proc/self/fd/0")
	return fmt.Sprintf("stdin %s\npgid %d pid %d\n%s", in, unix.Getpgrp(), os.Getpid(), strings.Join(os.Environ(), "\n"))
}

// digest reads a body by whichever way it comes.
func (a *testAgent) digest(b *agentpb.Body) string {
	way, octets := "inline", b.GetInline()
	if ticket := b.GetTicket(); ticket != "" {
		if a.role["chunks"] || a.role["attached"] {
			way, octets = "chunks", a.fromChunks(ticket)
		} else {
			way, octets = a.fromDescriptor(ticket)
		}
	}
	sum := sha256.Sum256(octets)
	return fmt.Sprintf("%s %d of %d truncated=%t %s", way, len(octets), b.GetSize(), b.GetTruncated(), hex.EncodeToString(sum[:]))
}

func (a *testAgent) fromDescriptor(ticket string) (string, []byte) {
	a.mu.Lock()
	for a.side[ticket] == nil {
		a.grown.Wait()
	}
	file := a.side[ticket]
	a.mu.Unlock()
	defer file.Close()
	octets, _ := io.ReadAll(file)
	if _, err := file.WriteAt([]byte("x"), 0); err == nil {
		return "writable", octets
	}
	return "descriptor", octets
}

func (a *testAgent) fromChunks(ticket string) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.chunks[ticket] == nil || !a.chunks[ticket].last {
		a.grown.Wait()
	}
	return a.chunks[ticket].data
}

func (a *testAgent) Bodies(s grpc.BidiStreamingServer[agentpb.BodiesRequest, agentpb.BodiesResponse]) error {
	a.mu.Lock()
	a.bodies = s
	a.mu.Unlock()
	for {
		frame, err := s.Recv()
		if err != nil {
			return nil
		}
		a.mu.Lock()
		in := a.chunks[frame.GetTicket()]
		if in == nil {
			in = &incoming{credit: 256 << 10}
			a.chunks[frame.GetTicket()] = in
		}
		in.credit += int64(frame.GetCredit())
		if c := frame.GetChunk(); c != nil {
			in.data, in.last = append(in.data, c.GetData()...), c.GetLast()
			_ = s.Send(&agentpb.BodiesResponse{Ticket: frame.GetTicket(), Frame: &agentpb.BodiesResponse_Credit{Credit: uint64(len(c.GetData()))}})
		}
		a.grown.Broadcast()
		a.mu.Unlock()
	}
}

// upload sends n octets "abcabc..." with respect for credit.
func (a *testAgent) upload(ticket string, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	in := &incoming{credit: 256 << 10}
	a.chunks[ticket] = in
	octets := []byte(strings.Repeat("abc", n/3+1))[:n]
	for sent := 0; ; {
		for in.credit < min(64<<10, int64(n-sent)) {
			a.grown.Wait()
		}
		end := min(sent+64<<10, n)
		_ = a.bodies.Send(&agentpb.BodiesResponse{Ticket: ticket, Frame: &agentpb.BodiesResponse_Chunk{
			Chunk: &agentpb.Chunk{Data: octets[sent:end], Last: end == n}}})
		in.credit -= int64(end - sent)
		if sent = end; sent == n {
			return
		}
	}
}

// command is what RunCommand runs.
func (a *testAgent) command() int {
	in, _ := io.ReadAll(os.Stdin)
	fmt.Printf("args %q config %s state %s stdin %q\n", os.Args[1:], os.Getenv("POSTERN_CONFIG"), os.Getenv("POSTERN_STATE_DIR"), in)
	return 5
}

// digestOf is the digest that the test agent gives.
func digestOf(octets []byte) string {
	sum := sha256.Sum256(octets)
	return hex.EncodeToString(sum[:])
}
