package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	goplugin "github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/posternmail/postern/host/internal/cgroup"
	"github.com/posternmail/postern/host/internal/sandbox"
	"github.com/posternmail/postern/sdk/agentpb"
)

// What an agent of protocol 1 expects of go-plugin, beside its own variables.
const (
	cookieKey       = "POSTERN_AGENT"
	cookieValue     = "b7c1d0f2-agent"
	protocolVersion = 1
	pluginName      = "agent"
	tokenMetadata   = "postern-token"
)

// maxMessage is the largest message either side takes, in bytes.
const maxMessage = 8 << 20

// Windows of HTTP/2. Fixed ones spare the pings by which grpc would find better ones for a connection that
// does not leave the machine.
const (
	streamWindow     = 1 << 20
	connectionWindow = 4 << 20
)

// maxSocketPath is the size of sun_path with its final NUL (unix(7)).
const maxSocketPath = 108

// socketName is the longest name that an SDK gives its socket, with the slash before it.
const socketName = len("/plugin4294967295")

// Times that stopping may take.
const (
	drainGrace = 5 * time.Second // for the answer to Drain
	exitGrace  = 5 * time.Second // from go-plugin's Shutdown to SIGTERM
	termGrace  = 5 * time.Second // from SIGTERM to SIGKILL
	killGrace  = 5 * time.Second // from SIGKILL to giving up on the kernel
)

// process is one launched or attached process of an agent, connected and, once it is up, configured.
type process struct {
	o        Options
	number   int    // of its instance, from 1
	label    string // "contentfilter/2 pid 4711"
	token    string
	dir      string           // folder of its socket; "" when attached
	sealed   []sandbox.Sealed // what is started, as it was verified
	logs     *logs
	started  time.Time
	runner   *agentRunner   // nil when attached
	client   *plugin.Client // nil when attached
	conn     *grpc.ClientConn
	rpc      agentpb.AgentServiceClient
	manifest *agentpb.DescribeResponse
	config   *agentpb.ConfigureResponse
	stream   *stream // nil until events are opened
	bodies   *bodies
}

// startError says which step of starting a process failed.
type startError struct {
	agent  string
	step   string
	err    error
	exit   string
	stderr []string
}

// Error implements error.
func (e *startError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "agent %s: %s: %v", e.agent, e.step, e.err)
	if e.exit != "" {
		fmt.Fprintf(&b, "; the process ended: %s", e.exit)
	}
	if len(e.stderr) > 0 {
		b.WriteString("; its last lines:")
		for _, line := range e.stderr {
			b.WriteString("\n  " + line)
		}
	}
	return b.String()
}

// Unwrap implements errors.Unwrap.
func (e *startError) Unwrap() error { return e.err }

// shownLines is how many lines of stderr an error shows.
const shownLines = 20

// newProcess starts or attaches a process and connects to it. ctx bounds that.
func newProcess(ctx context.Context, o Options, number int) (*process, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	p := &process{o: o, number: number, started: time.Now()}
	logger := o.Logger.With("agent", o.Spec.Name)
	if o.Spec.Instances > 1 {
		logger = logger.With("instance", number)
	}
	p.logs = newLogs(logger)
	p.label = o.Spec.Name + "/" + strconv.Itoa(number)
	if o.Spec.Attach != "" {
		return p, p.attach(ctx)
	}
	return p, p.launch(ctx)
}

// step runs one step of starting; its failure ends the process.
func (p *process) step(ctx context.Context, name string, f func(context.Context) error) error {
	err := f(ctx)
	if err == nil {
		return nil
	}
	late := status.Code(err) == codes.DeadlineExceeded
	err = foreign(err)
	// The agent's side of a call may notice the deadline before ours does.
	if ctx.Err() != nil || late {
		err = fmt.Errorf("not done within start_timeout (%s): %w", p.o.Spec.StartTimeout, err)
	}
	failure := &startError{agent: p.o.Spec.Name, step: name, err: err}
	if p.runner != nil {
		failure.exit = p.exitState(outputGrace)
		p.destroy()
	} else {
		p.release()
	}
	failure.stderr = p.logs.tail(shownLines)
	return failure
}

// maxForeign is how many bytes of an agent's own words an error has.
const maxForeign = 1000

// foreignError is a failure in the words of an agent.
type foreignError struct{ err error }

// foreign marks an error of a call: its text is the agent's to choose, lines, control characters and megabytes included.
func foreign(err error) error {
	if _, ok := status.FromError(err); !ok {
		return err
	}
	return &foreignError{err}
}

// Error implements error, with a text that is fit for logs and terminals.
func (e *foreignError) Error() string { return printable(cutString(e.err.Error(), maxForeign)) }

// Unwrap implements errors.Unwrap.
func (e *foreignError) Unwrap() error { return e.err }

// exitState waits for the end of the process, not longer than that, and says how it ended; "" if it has not.
func (p *process) exitState(wait time.Duration) string {
	c := p.runner.started()
	if c == nil {
		return ""
	}
	select {
	case <-c.exited:
		return c.state
	case <-time.After(wait):
		return ""
	}
}

// killedFromOutside reports whether a SIGKILL ended the process that was neither ours nor for memory that the process itself
// has used up.
func (p *process) killedFromOutside() bool {
	if p.runner == nil || p.runner.started() == nil {
		return false
	}
	c := p.runner.started()
	select {
	case <-c.exited:
		return c.killed && !c.ours && c.shortage != cgroup.Own
	default:
		return false
	}
}

// killedByHost reports whether our SIGKILL ended the process.
func (p *process) killedByHost() bool {
	c := p.runner.started()
	return c != nil && c.killed && c.ours
}

// launch starts the process and shakes hands.
func (p *process) launch(ctx context.Context) error {
	if err := p.step(ctx, "verifying", p.verify); err != nil {
		return err
	}
	if err := p.step(ctx, "preparing", p.prepare); err != nil {
		return err
	}
	if err := p.step(ctx, "starting", p.start); err != nil {
		return err
	}
	p.label += " pid " + p.runner.ID()
	return nil
}

// verify holds the program against what was installed or locked.
func (p *process) verify(context.Context) (err error) {
	p.sealed, err = sealedFiles(p.o)
	return err
}

// prepare makes the token and the folders.
func (p *process) prepare(context.Context) error {
	var err error
	p.token = randomHex(16)
	p.runner = newRunner(p.o.Spec.Command, nil, "", p.logs)
	if err := makeState(p.o); err != nil {
		return err
	}
	if p.dir, err = socketDir(p.o.RunDir); err != nil {
		return err
	}
	p.runner.dir, p.runner.policy, p.runner.beside = p.dir, policyOf(p.o, p.dir), p.o.Beside
	p.runner.policy.Sealed = p.sealed
	p.runner.starter = starter{parent: p.o.Parent, groups: p.o.Groups, label: p.o.Spec.Name}
	return nil
}

// socketDir makes a folder for the socket of one process.
func socketDir(runDir string) (string, error) {
	dir := filepath.Join(runDir, randomHex(4))
	if length := len(dir) + socketName + 1; length > maxSocketPath {
		return "", fmt.Errorf("the path %s is %d bytes too long for a socket in it; choose a shorter folder",
			dir, length-maxSocketPath)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("making the folder of the socket: %w", err)
	}
	return dir, nil
}

// randomHex answers with n random bytes in hexadecimal.
func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

// start has go-plugin start the process through our runner, and connects. go-plugin knows no deadline while it
// connects, so the process is ended when ctx is, which ends go-plugin's waiting too.
func (p *process) start(ctx context.Context) error {
	p.client = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  plugin.HandshakeConfig{MagicCookieKey: cookieKey, MagicCookieValue: cookieValue},
		VersionedPlugins: map[int]plugin.PluginSet{protocolVersion: {pluginName: &dispenser{}}},
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		RunnerFunc:       p.newRunner,
		SkipHostEnv:      true,
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: p.dir},
		StartTimeout:     p.o.Spec.StartTimeout + time.Second, // ours ends first, and says what it is
		Logger:           hclog.NewNullLogger(),               // our own words are better, and know which ends were expected
		GRPCDialOptions:  p.pluginDialOptions(),
	})
	connected := make(chan error, 1)
	go func() { connected <- p.connect() }()
	select {
	case err := <-connected:
		return p.notShaken(err)
	case <-ctx.Done():
		p.runner.destroy()
		return errors.Join(ctx.Err(), <-connected)
	}
}

// notShaken says in plain words that there was no handshake: go-plugin's own are about itself.
func (p *process) notShaken(err error) error {
	if err == nil || !strings.HasPrefix(err.Error(), "Unrecognized remote plugin message") && !strings.HasPrefix(err.Error(), "plugin exited") {
		return err
	}
	why := p.runner.Diagnose(context.Background())
	if why == "" {
		why = "it printed no handshake line"
	}
	return fmt.Errorf("%s is not an agent of Postern, or it failed early: %s", p.o.Spec.Command[0], why)
}

// newRunner completes the runner with go-plugin's part of the environment.
func (p *process) newRunner(_ hclog.Logger, spec *exec.Cmd, _ string) (goplugin.Runner, error) {
	p.runner.env = p.environment(spec.Env)
	return p.runner, nil
}

// connect asks go-plugin for the connection.
func (p *process) connect() error {
	protocol, err := p.client.Client()
	if spoken := p.runner.protocol.Load(); err != nil && spoken != 0 && spoken != protocolVersion {
		return fmt.Errorf("it speaks agent protocol %d, and this host speaks %d: use an agent built for this host", spoken, protocolVersion)
	}
	if err != nil {
		return err
	}
	conn, err := protocol.Dispense(pluginName)
	if err != nil {
		return err
	}
	p.conn = conn.(*grpc.ClientConn)
	p.rpc = agentpb.NewAgentServiceClient(p.conn)
	return nil
}

// protocol that the process speaks, 0 when attached.
func (p *process) protocol() int {
	if p.runner == nil {
		return 0
	}
	return int(p.runner.protocol.Load())
}

// dispenser is the plugin as go-plugin sees it: what it dispenses is the connection itself.
type dispenser struct{ plugin.NetRPCUnsupportedPlugin }

// GRPCServer implements plugin.GRPCPlugin.
func (*dispenser) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error {
	return errors.New("the host serves no agents")
}

// GRPCClient implements plugin.GRPCPlugin.
func (*dispenser) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

// dialOptions of the connection to an agent.
func (p *process) dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithPerRPCCredentials(token(p.token)),
		grpc.WithIdleTimeout(0), // after 30 idle minutes grpc would reconnect, to a socket that may have gone
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(), // the retries are ours
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithInitialWindowSize(streamWindow),
		grpc.WithInitialConnWindowSize(connectionWindow),
	}
}

// pluginDialOptions are dialOptions, and the way to a socket that only the parent of the host can reach.
func (p *process) pluginDialOptions() []grpc.DialOption {
	options := p.dialOptions()
	if p.o.Parent != nil {
		options = append(options, grpc.WithContextDialer(p.runner.dial))
	}
	return options
}

// token goes with every call: an agent answers nobody else.
type token string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if t == "" {
		return nil, nil
	}
	return map[string]string{tokenMetadata: string(t)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials. The socket is in a folder of mode 0700.
func (token) RequireTransportSecurity() bool { return false }

// fixedPath is where an agent finds programs, unless the operator's environment says otherwise.
const fixedPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment of the process. What comes later wins: the operator may change the defaults, nobody the rest.
func (p *process) environment(ofGoPlugin []string) []string {
	env := append(cleanEnvironment(p.o), ofGoPlugin...)
	return append(env,
		plugin.EnvUnixSocketDir+"="+p.dir,
		"POSTERN_TOKEN="+p.token,
		"POSTERN_LIFELINE_FD="+strconv.Itoa(lifelineFD),
		"POSTERN_SIDE_FD="+strconv.Itoa(sideFD),
	)
}

// cleanEnvironment holds nothing of the host's but the time zone and the language.
func cleanEnvironment(o Options) []string {
	env := []string{"PATH=" + fixedPath}
	for _, name := range []string{"TZ", "LANG"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	for name, value := range o.Spec.Env {
		env = append(env, name+"="+value)
	}
	slices.Sort(env[1:])
	return append(env, "POSTERN_INSTANCE="+o.Spec.Name, "POSTERN_STATE_DIR="+o.StateDir)
}

// attach connects to an agent that somebody else has started, such as a debugger. Its token is in the file
// named like its socket with ".token" behind; without that file it wants none. It gets bodies in chunks, since
// there is no side socket, and is never killed.
func (p *process) attach(ctx context.Context) error {
	path, ok := strings.CutPrefix(p.o.Spec.Attach, "unix:")
	if !ok {
		return fmt.Errorf("agent %s: attach must be \"unix:\" and a path, not %q", p.o.Spec.Name, p.o.Spec.Attach)
	}
	p.label += " attached"
	return p.step(ctx, "attaching", func(context.Context) error {
		secret, err := os.ReadFile(path + ".token")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("reading the token: %w", err)
		}
		p.token = strings.TrimSpace(string(secret))
		options := append(p.dialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		p.conn, err = grpc.NewClient("unix:"+path, options...)
		if err != nil {
			return err
		}
		p.rpc = agentpb.NewAgentServiceClient(p.conn)
		return nil
	})
}

// describe asks for the manifest.
func (p *process) describe(ctx context.Context) error {
	request := &agentpb.DescribeRequest{HostVersion: p.o.Host.GetVersion()}
	return p.step(ctx, "describing", func(ctx context.Context) error {
		manifest, err := p.rpc.Describe(ctx, request)
		if err != nil {
			return err
		}
		if p.o.Spec.Sandbox.Exclusive {
			manifest.ExclusiveResources = append(manifest.ExclusiveResources, "its state folder")
		}
		p.manifest = manifest
		p.logs.with("version", manifest.GetVersion())
		return nil
	})
}

// configure makes the configuration effective.
func (p *process) configure(ctx context.Context, generation uint64) error {
	request := &agentpb.ConfigureRequest{
		Config: p.o.Spec.Config, Generation: generation, Host: p.o.Host,
		InstanceName: p.o.Spec.Name, StateDir: p.o.StateDir, EditKinds: editKinds(),
	}
	return p.step(ctx, "configuring", func(ctx context.Context) error {
		response, err := p.rpc.Configure(ctx, request)
		if err != nil {
			return err
		}
		p.config = response
		return diagnosticsError(response.GetDiagnostics())
	})
}

// editKinds are the names of the edits the host knows.
func editKinds() []string {
	fields := (&agentpb.Edit{}).ProtoReflect().Descriptor().Oneofs().ByName("edit").Fields()
	names := make([]string, 0, fields.Len())
	for i := range fields.Len() {
		names = append(names, string(fields.Get(i).Name()))
	}
	return names
}

// Refused tells that an agent does not take its configuration: its process is well, and the configuration is wrong.
type Refused struct{ error }

// Unwrap implements errors.Unwrap.
func (r *Refused) Unwrap() error { return r.error }

// diagnosticsError makes an error of the diagnostics that are errors, a *Refused.
func diagnosticsError(diagnostics []*agentpb.Diagnostic) error {
	var all []error
	for _, d := range diagnostics {
		if d.GetSeverity() != agentpb.Severity_SEVERITY_WARNING {
			all = append(all, errors.New(strings.TrimSuffix(printable(d.GetSummary()+": "+d.GetDetail()), ": ")))
		}
	}
	if len(all) == 0 {
		return nil
	}
	return &Refused{errors.Join(all...)}
}

// stop ends the process in order: drained, asked by go-plugin, by SIGTERM, by SIGKILL. The end of ctx takes the
// short way.
func (p *process) stop(ctx context.Context) {
	if p.runner == nil { // whoever started it goes on with it
		p.release()
		return
	}
	draining, cancel := context.WithTimeout(ctx, drainGrace)
	_, _ = p.rpc.Drain(draining, &agentpb.DrainRequest{})
	cancel()
	go p.client.Kill() // has no deadline of its own; it returns when the process has ended
	p.await(ctx, exitGrace)
	p.signalAndAwait(ctx, unix.SIGTERM, termGrace)
	p.destroy()
}

// destroy ends the process at once and releases everything.
func (p *process) destroy() {
	if p.runner != nil {
		p.runner.destroy()
		if !p.await(context.Background(), killGrace) {
			p.o.Logger.Error("the process does not end after SIGKILL", "agent", p.o.Spec.Name, "process", p.label)
		}
	}
	p.release()
}

// signalAndAwait signals the group and waits for the end of the process.
func (p *process) signalAndAwait(ctx context.Context, sig unix.Signal, wait time.Duration) {
	if c := p.runner.started(); c != nil {
		c.signal(sig)
	}
	p.await(ctx, wait)
}

// await reports whether the process ended in time.
func (p *process) await(ctx context.Context, wait time.Duration) bool {
	c := p.runner.started()
	if c == nil {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-c.exited:
		return true
	case <-ctx.Done():
	case <-timer.C:
	}
	return false
}

// release gives back what the host holds for a process that has ended.
func (p *process) release() {
	if p.stream != nil {
		p.stream.cancel()
	}
	if p.bodies != nil {
		p.bodies.close()
	}
	if p.client != nil {
		go p.client.Kill() // go-plugin's own goroutines and connection
	}
	if p.conn != nil {
		_ = p.conn.Close()
	}
	if p.runner != nil {
		if c := p.runner.started(); c != nil {
			c.close()
		}
	}
	if p.dir != "" {
		_ = os.RemoveAll(p.dir)
	}
}

// exited is closed when the process has ended; nil when attached.
func (p *process) exited() <-chan struct{} {
	if p.runner == nil {
		return nil
	}
	return p.runner.started().exited
}

// pid of the process, 0 when attached.
func (p *process) pid() int {
	if p.runner == nil {
		return 0
	}
	return p.runner.started().pid
}

// limits in force, in words; "" when attached.
func (p *process) limits() string {
	if p.runner == nil {
		return ""
	}
	return p.runner.started().limits
}
