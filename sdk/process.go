package sdk

import (
	"context"
	"crypto/subtle"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/posternmail/postern/sdk/agentpb"
)

// The environment that a host gives an agent.
const (
	tokenVariable    = "POSTERN_TOKEN"
	lifelineVariable = "POSTERN_LIFELINE_FD"
	sideFDVariable   = "POSTERN_SIDE_FD"
	instanceVariable = "POSTERN_INSTANCE"
	stateDirVariable = "POSTERN_STATE_DIR"
	logLevelVariable = "POSTERN_LOG_LEVEL"

	protocolVersion = "1"     // this SDK's, in PLUGIN_PROTOCOL_VERSIONS
	maxMessageBytes = 8 << 20 // of one gRPC message; the host sends at most 4 MiB
	tokenMetadata   = "postern-token"

	// Fixed flow control windows. By default grpc measures what the connection can take, with a ping for each
	// batch that arrives, which is nothing to learn on a Unix socket and as much work as the events.
	streamWindow     = 4 << 20
	connectionWindow = 16 << 20
)

// process is the agent as a server: handshake, gRPC, and its end.
type process struct {
	def    *definition
	logger hclog.Logger
	side   *sideSocket
	token  string
	server *grpc.Server
	agent  *service
	stop   sync.Once
}

func newProcess(def *definition) *process {
	p := &process{def: def, token: os.Getenv(tokenVariable), logger: newLogger(def.info)}
	p.side = newSideSocket(p.logger)
	p.agent = newService(def, p.logger, p.side)
	p.server = grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessageBytes), grpc.MaxSendMsgSize(maxMessageBytes),
		grpc.InitialWindowSize(streamWindow), grpc.InitialConnWindowSize(connectionWindow),
		grpc.ForceServerCodecV2(newEventCodec()),
		grpc.ChainUnaryInterceptor(p.checkUnary), grpc.ChainStreamInterceptor(p.checkStream),
	)
	agentpb.RegisterAgentServiceServer(p.server, p.agent)
	p.registerPluginServices()
	return p
}

// newLogger writes hclog's JSON lines to standard error, where the host reads them.
func newLogger(info Info) hclog.Logger {
	level := hclog.LevelFromString(os.Getenv(logLevelVariable))
	if level == hclog.NoLevel {
		level = hclog.Debug
	}
	return hclog.New(&hclog.LoggerOptions{
		Level: level, JSONFormat: true, Output: os.Stderr,
	}).With("agent", info.Name, "version", info.Version)
}

// serve answers the host until it says stop, goes away, or the process is told to end. The handshake line
// is go-plugin's: core version, protocol version, network, address, protocol, certificate.
func (p *process) serve(handshake *os.File) error {
	if err := checkProtocol(os.Getenv("PLUGIN_PROTOCOL_VERSIONS")); err != nil {
		return err
	}
	listener, err := listen()
	if err != nil {
		return fmt.Errorf("cannot listen: %w", err)
	}
	useOneProcessor()
	p.watchLifeline()
	p.watchSignals()
	p.side.start()
	line := fmt.Sprintf("1|%s|unix|%s|grpc|", protocolVersion, listener.Addr())
	if os.Getenv("PLUGIN_MULTIPLEX_GRPC") != "" {
		line += "|false"
	}
	if _, err := fmt.Fprintln(handshake, line); err != nil {
		return fmt.Errorf("cannot tell the host where to connect: %w", err)
	}
	return p.server.Serve(quiet(listener))
}

func checkProtocol(offered string) error {
	if offered == "" || slices.Contains(strings.Split(offered, ","), protocolVersion) {
		return nil
	}
	return fmt.Errorf("the host speaks agent protocol %s, this agent speaks %s: use an agent built for this host",
		offered, protocolVersion)
}

// listen opens a socket in the host's folder, or one of its own.
func listen() (net.Listener, error) {
	dir, err := os.MkdirTemp(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "a")
	if err != nil {
		return nil, err
	}
	return net.Listen("unix", filepath.Join(dir, "s"))
}

// listenForDebugger serves on a socket that a host attaches to (`attach = "unix:/path"`), so that the agent
// can run under a debugger. Nothing protects it but the folder it is in.
func listenForDebugger(def *definition, path string) int {
	path = strings.TrimPrefix(path, "unix:")
	os.Remove(path)
	listener, err := net.Listen("unix", path)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: cannot listen: %v\n", def.info.Name, err)
		return 1
	}
	fmt.Fprintf(os.Stderr, "agent %q { attach = \"unix:%s\" ... } makes the host use this process\n", def.info.Name, path)
	p := newProcess(def)
	p.watchSignals()
	p.side.start()
	if err := p.server.Serve(listener); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", def.info.Name, err)
		return 1
	}
	return 0
}

// watchLifeline ends the process when the host is gone: the other end of the pipe closes with it, however it
// dies.
func (p *process) watchLifeline() {
	fd, err := strconv.Atoi(os.Getenv(lifelineVariable))
	if err != nil {
		return
	}
	syscall.CloseOnExec(fd)
	lifeline := os.NewFile(uintptr(fd), "lifeline")
	go func() {
		io.Copy(io.Discard, lifeline)
		os.Exit(0)
	}()
}

// watchSignals stops on SIGTERM. SIGINT is ignored: a person's Ctrl-C reaches the whole process group, and the
// host needs its agents to finish what it has in hand.
func (p *process) watchSignals() {
	if startedByHost() {
		signal.Ignore(syscall.SIGINT)
	}
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	go func() {
		<-terminate
		p.shutdown()
	}()
}

// shutdown ends the process soon; what is in flight gets half a second.
func (p *process) shutdown() {
	p.stop.Do(func() {
		go func() {
			time.Sleep(500 * time.Millisecond)
			p.server.Stop()
		}()
		go p.server.GracefulStop()
	})
}

// authorized compares the token of this launch, which only the host that started the process knows.
func (p *process) authorized(ctx context.Context) error {
	if p.token == "" {
		return nil
	}
	given := metadata.ValueFromIncomingContext(ctx, tokenMetadata)
	if len(given) == 1 && subtle.ConstantTimeCompare([]byte(given[0]), []byte(p.token)) == 1 {
		return nil
	}
	return status.Error(codes.Unauthenticated, "this agent serves the host that started it")
}

func (p *process) checkUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := p.authorized(ctx); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (p *process) checkStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := p.authorized(stream.Context()); err != nil {
		return err
	}
	return next(srv, stream)
}

// registerPluginServices offers what go-plugin expects beside our own service: health, the controller that
// ends the process, and the stream of standard output, which stays silent since ours goes to standard error.
func (p *process) registerPluginServices() {
	state := health.NewServer()
	state.SetServingStatus("plugin", grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(p.server, state)
	p.server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "plugin.GRPCController", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Shutdown", Handler: p.handleShutdown}},
	}, p)
	p.server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "plugin.GRPCStdio", HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "StreamStdio", ServerStreams: true, Handler: silentStdio}},
	}, p)
}

func (p *process) handleShutdown(_ any, ctx context.Context, decode func(any) error, check grpc.UnaryServerInterceptor) (any, error) {
	in := new(emptypb.Empty)
	if err := decode(in); err != nil {
		return nil, err
	}
	return check(ctx, in, nil, func(context.Context, any) (any, error) {
		p.shutdown()
		return new(emptypb.Empty), nil
	})
}

func silentStdio(_ any, stream grpc.ServerStream) error {
	<-stream.Context().Done()
	return nil
}
