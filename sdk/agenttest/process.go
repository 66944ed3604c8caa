package agenttest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/posternmail/postern/sdk/agentpb"
)

// answerTimeout is how long an agent may take for one event.
const answerTimeout = 10 * time.Second

// process is one running agent, spoken to as a host does.
type process struct {
	cmd      *exec.Cmd
	conn     *grpc.ClientConn
	client   agentpb.AgentServiceClient
	stream   agentpb.AgentService_EventsClient
	bodies   agentpb.AgentService_BodiesClient
	side     int // our end of the side socket
	lifeline *os.File
	stderr   *lockedBuffer
	cancel   context.CancelFunc
	answers  chan *agentpb.EventsResponse
	dir      string
	stateDir string
	nextID   uint64

	uploading sync.Mutex
	uploads   map[string][]byte
}

// launch starts command with the environment of a host and waits for its handshake.
func launch(command []string, environment []string, stateDir string) (p *process, err error) {
	p = &process{stderr: new(lockedBuffer), side: -1, stateDir: stateDir, answers: make(chan *agentpb.EventsResponse, 1024)}
	defer func() {
		if err != nil {
			p.kill()
			err = fmt.Errorf("%w\n%s", err, p.stderr.String())
		}
	}()
	if p.dir, err = os.MkdirTemp("", "a"); err != nil {
		return nil, err
	}
	token := randomHex()
	stdout, err := p.start(command, append(environment,
		"POSTERN_AGENT=b7c1d0f2-agent", "PLUGIN_PROTOCOL_VERSIONS=1", "PLUGIN_UNIX_SOCKET_DIR="+p.dir,
		"POSTERN_TOKEN="+token, "POSTERN_LIFELINE_FD=3", "POSTERN_SIDE_FD=4", "POSTERN_INSTANCE=agent",
		"POSTERN_STATE_DIR="+stateDir, "PATH="+os.Getenv("PATH"), "HOME="+os.Getenv("HOME"), "TZ=UTC",
	))
	if err != nil {
		return nil, err
	}
	address, err := handshake(stdout)
	if err != nil {
		return nil, err
	}
	return p, p.connect(address, token)
}

func randomHex() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b)
}

func (p *process) start(command, environment []string) (*bufio.Reader, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	p.side = pair[0]
	theirs := os.NewFile(uintptr(pair[1]), "side")
	defer theirs.Close()
	theirLifeline, lifeline, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirLifeline.Close()
	p.lifeline = lifeline
	p.cmd = exec.Command(command[0], command[1:]...)
	p.cmd.Env, p.cmd.Stderr = environment, p.stderr
	p.cmd.ExtraFiles = []*os.File{theirLifeline, theirs}
	p.cmd.WaitDelay = time.Second
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return bufio.NewReader(stdout), p.cmd.Start()
}

// handshake reads go-plugin's line: core version, protocol version, network, address, protocol, certificate.
func handshake(stdout *bufio.Reader) (address string, err error) {
	line, err := stdout.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("the agent ended before its handshake: %w", err)
	}
	parts := strings.Split(strings.TrimSpace(line), "|")
	if len(parts) < 5 || parts[0] != "1" || parts[1] != "1" || parts[2] != "unix" || parts[4] != "grpc" {
		return "", fmt.Errorf("the agent's handshake is %q", line)
	}
	return parts[3], nil
}

func (p *process) connect(address, token string) error {
	var err error
	p.conn, err = grpc.NewClient("unix:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8<<20)))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), "postern-token", token))
	p.cancel = cancel
	p.client = agentpb.NewAgentServiceClient(p.conn)
	if p.stream, err = p.client.Events(ctx); err != nil {
		return err
	}
	if p.bodies, err = p.client.Bodies(ctx); err != nil {
		return err
	}
	go p.receive()
	go p.receiveUploads()
	return nil
}

// receiveUploads takes new bodies that do not fit into an answer; they come before it.
func (p *process) receiveUploads() {
	for {
		frame, err := p.bodies.Recv()
		if err != nil {
			return
		}
		data := frame.GetChunk().GetData()
		p.uploading.Lock()
		if p.uploads == nil {
			p.uploads = map[string][]byte{}
		}
		p.uploads[frame.GetTicket()] = append(p.uploads[frame.GetTicket()], data...)
		p.uploading.Unlock()
		credit := &agentpb.BodiesRequest_Credit{Credit: uint64(len(data))}
		if err := p.bodies.Send(&agentpb.BodiesRequest{Ticket: frame.GetTicket(), Frame: credit}); err != nil {
			return
		}
	}
}

// inlined puts uploads into the answer that refers to them, as if they had been in it.
func (p *process) inlined(a *agentpb.Answer) error {
	for _, e := range a.GetEdits() {
		for _, s := range e.GetBody().GetSegments() {
			u := s.GetUploaded()
			if u == nil {
				continue
			}
			data, err := p.uploaded(u)
			if err != nil {
				return err
			}
			s.Source = &agentpb.Segment_Data{Data: data}
		}
	}
	return nil
}

// uploaded octets; the answer may overtake the last of them, since it comes on another stream.
func (p *process) uploaded(u *agentpb.Upload) ([]byte, error) {
	from, end := u.GetRange().GetOffset(), u.GetRange().GetOffset()+u.GetRange().GetLength()
	for late := time.Now().Add(answerTimeout); time.Now().Before(late); time.Sleep(time.Millisecond) {
		p.uploading.Lock()
		have := p.uploads[u.GetTicket()]
		p.uploading.Unlock()
		if uint64(len(have)) >= end {
			return have[from:end], nil
		}
	}
	return nil, fmt.Errorf("the upload %q did not come", u.GetTicket())
}

func (p *process) receive() {
	defer close(p.answers)
	for {
		in, err := p.stream.Recv()
		if err != nil {
			return
		}
		p.answers <- in
	}
}

// context of a call.
func (p *process) context() (context.Context, context.CancelFunc) {
	ctx, _ := metadata.FromOutgoingContext(p.stream.Context())
	return context.WithTimeout(metadata.NewOutgoingContext(context.Background(), ctx), answerTimeout)
}

// ask sends one event and waits for its answer. A body that is not inline goes over the side socket.
func (p *process) ask(event *agentpb.Event, body []byte) (*agentpb.Answer, error) {
	p.nextID++
	event.Id = p.nextID
	if ticket := event.GetBody().GetTicket(); ticket != "" {
		if err := p.sendBody(ticket, body); err != nil {
			return nil, err
		}
	}
	request := &agentpb.EventsRequest{Events: []*agentpb.Event{event}}
	grease(request, event, event.Session, event.Envelope)
	if err := p.stream.Send(request); err != nil {
		return nil, p.died(err)
	}
	return p.await(event.Id)
}

// grease adds fields that no version of the protocol has, as a later host may: an agent must pass over them.
func grease(messages ...proto.Message) {
	unknown := protowire.AppendString(protowire.AppendTag(nil, 19000-1, protowire.BytesType), "grease")
	unknown = protowire.AppendVarint(protowire.AppendTag(unknown, 18000, protowire.VarintType), 1)
	for _, m := range messages {
		if r := m.ProtoReflect(); r.IsValid() {
			r.SetUnknown(unknown)
		}
	}
}

func (p *process) await(id uint64) (*agentpb.Answer, error) {
	late := time.After(answerTimeout)
	for {
		select {
		case <-late:
			return nil, fmt.Errorf("no answer within %s\n%s", answerTimeout, p.stderr)
		case in, ok := <-p.answers:
			if !ok {
				return nil, p.died(nil)
			}
			for _, a := range in.GetAnswers() {
				if a.GetId() == id {
					return a, p.inlined(a)
				}
			}
		}
	}
}

// sendBody passes a descriptor of a file that nobody can write.
func (p *process) sendBody(ticket string, body []byte) error {
	fd, err := unix.MemfdCreate("body", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), "body")
	defer file.Close()
	if _, err := file.Write(body); err != nil {
		return err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK); err != nil {
		return err
	}
	return unix.Sendmsg(p.side, []byte(ticket), unix.UnixRights(fd), nil, 0)
}

func (p *process) died(cause error) error {
	return fmt.Errorf("the agent's process ended in the middle of an event (%v)\n%s", cause, p.stderr)
}

// kill the process as hard as a crash would.
func (p *process) kill() {
	if p.cmd != nil && p.cmd.Process != nil {
		p.cmd.Process.Signal(syscall.SIGKILL)
		p.cmd.Wait()
	}
	if p.cancel != nil {
		p.cancel()
	}
	if p.conn != nil {
		p.conn.Close()
	}
	if p.side >= 0 {
		unix.Close(p.side)
		p.side = -1
	}
	if p.lifeline != nil {
		p.lifeline.Close()
	}
	os.RemoveAll(p.dir)
}

// lockedBuffer keeps what a process wrote to standard error.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String is what was written so far.
func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
