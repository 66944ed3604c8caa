package sdk

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/sdk/agentpb"
)

// pipe is an Events stream whose other end is the test. Messages are marshalled on their way, as on a socket.
type pipe struct {
	in  chan []byte
	out chan []byte
}

func newPipe() *pipe { return &pipe{in: make(chan []byte, 64), out: make(chan []byte, 1024)} }

// RecvMsg implements messages.
func (p *pipe) RecvMsg(m any) error {
	octets, ok := <-p.in
	if !ok {
		return io.EOF
	}
	m.(*rawRequest).octets = octets
	return nil
}

// SendMsg implements messages.
func (p *pipe) SendMsg(m any) error {
	octets, err := proto.Marshal(m.(proto.Message))
	p.out <- octets
	return err
}

func (p *pipe) push(tb testing.TB, m *agentpb.EventsRequest) {
	octets, err := proto.Marshal(m)
	if err != nil {
		tb.Fatal(err)
	}
	p.in <- octets
}

func (p *pipe) pull(tb testing.TB) *agentpb.EventsResponse {
	select {
	case octets := <-p.out:
		m := new(agentpb.EventsResponse)
		if err := proto.Unmarshal(octets, m); err != nil {
			tb.Fatal(err)
		}
		return m
	case <-time.After(10 * time.Second):
		tb.Fatal("no answer")
		return nil
	}
}

// answers collects the answers to n events by id.
func (p *pipe) answers(tb testing.TB, n int) map[uint64]*agentpb.Answer {
	all := map[uint64]*agentpb.Answer{}
	for len(all) < n {
		for _, a := range p.pull(tb).GetAnswers() {
			all[a.GetId()] = a
		}
	}
	return all
}

// served is a configured agent behind a pipe.
func served[C, A any](tb testing.TB, config string, build func(C, *Registrar) (A, error)) (*service, *pipe) {
	tb.Helper()
	def := &definition{info: Info{Name: "test", Version: "1.0.0"}, typed: typedBuilder[C, A]{build}}
	s := newService(def, hclog.NewNullLogger(), newSideSocket(hclog.NewNullLogger()))
	configure(tb, s, config)
	p := newPipe()
	var serving sync.WaitGroup
	serving.Go(func() { s.serveEvents(p) })
	tb.Cleanup(func() {
		close(p.in)
		serving.Wait()
	})
	return s, p
}

func configure(tb testing.TB, s *service, config string) *agentpb.ConfigureResponse {
	tb.Helper()
	out, err := s.Configure(context.Background(), &agentpb.ConfigureRequest{Config: []byte(config)})
	if err != nil || len(out.GetDiagnostics()) > 0 {
		tb.Fatalf("Configure: %v, %v", out, err)
	}
	return out
}

func rcpt(id uint64, recipient string) *agentpb.Event {
	return &agentpb.Event{
		Id: id, Attempt: 1, TimeoutMicros: 5_000_000, EventId: "S1.1.OnRcpt.1", Kind: OnRcpt, TimeUnixNanos: 1e18,
		Session: &agentpb.Session{
			Id: "5F3A9C", Connector: "internet", Client: []byte{192, 0, 2, 7}, ClientPort: 40123, Local: []byte{198, 51, 100, 1},
			LocalPort: 25, Helo: []byte("mail.x.example"), Extended: true, Trust: Anonymous, Traffic: External,
			StartedUnixNanos: 1e18, Commands: 3, Tls: &agentpb.Tls{Version: "TLS 1.3", CipherSuite: "TLS_AES_128_GCM_SHA256"},
		},
		Envelope: &agentpb.Envelope{Id: "5F3A9C.1", Sender: &agentpb.Sender{Address: []byte("s@x.example"), Size: 4096, BodyType: "8BITMIME"}},
		Arguments: &agentpb.Arguments{Event: &agentpb.Arguments_Rcpt{Rcpt: &agentpb.RcptArguments{
			Recipient: &agentpb.Recipient{Address: []byte(recipient)},
		}}},
	}
}

// byRecipient does what the local part of the recipient says.
type byRecipient struct{ entered, release chan struct{} }

func newByRecipient(struct{}, *Registrar) (*byRecipient, error) {
	return &byRecipient{make(chan struct{}, 2048), make(chan struct{})}, nil
}

func (b *byRecipient) OnRcpt(ctx context.Context, e *RcptEvent) Verdict {
	switch e.Recipient.Local {
	case "block":
		b.entered <- struct{}{}
		<-b.release
	case "wait":
		b.entered <- struct{}{}
		<-ctx.Done()
		return Undetermined("ended", ctx.Err())
	case "progress":
		e.Progress(time.Minute)
	case "panic":
		panic("as asked")
	case "nothing":
		return Verdict{}
	case "log":
		Logger(ctx).Info("line")
		if hclog.FromContext(ctx) != e.Logger() {
			return Fault(errors.New("another logger"))
		}
	case "derive":
		inner, cancel := context.WithTimeout(ctx, time.Hour)
		defer cancel()
		b.entered <- struct{}{}
		<-inner.Done()
		return Undetermined("derived", inner.Err())
	}
	return Continue()
}

// While handlers are stuck, a ping and a thousand other events are answered.
func TestStuckHandlersHoldBackNobody(t *testing.T) {
	s, p := served(t, "{}", newByRecipient)
	for id := range uint64(10) {
		p.push(t, &agentpb.EventsRequest{Events: []*agentpb.Event{rcpt(id+1, "block@y.example")}})
	}
	agent := s.current.Load().agent.(*byRecipient)
	for range 10 {
		<-agent.entered
	}
	p.push(t, &agentpb.EventsRequest{Ping: &agentpb.Ping{Nonce: 42}})
	if pong := p.pull(t).GetPong(); pong.GetNonce() != 42 || pong.GetInFlight() != 10 {
		t.Fatalf("pong %v", pong)
	}
	for id := uint64(100); id < 1100; id++ {
		p.push(t, &agentpb.EventsRequest{Events: []*agentpb.Event{rcpt(id, "r@y.example")}})
	}
	p.answers(t, 1000)
	close(agent.release)
	p.answers(t, 10)
	if err := s.work.idle(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestFailuresStayWithTheirEvent(t *testing.T) {
	_, p := served(t, "{}", newByRecipient)
	p.push(t, &agentpb.EventsRequest{Events: []*agentpb.Event{
		rcpt(1, "panic@y.example"), rcpt(2, "nothing@y.example"), rcpt(3, "r@y.example"), rcpt(4, "log@y.example"),
		{Id: 5, Kind: OnMail}, {Id: 6, Kind: 99},
	}})
	all := p.answers(t, 6)
	for id, want := range map[uint64]string{
		1: "panic: as asked", 2: "continue is explicit", 3: "", 4: "", 5: "no handler for OnMail", 6: "no handler",
	} {
		if got := all[id].GetFault(); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("event %d: fault %q, want %q", id, got, want)
		}
	}
}

func TestCancelAndDeadline(t *testing.T) {
	s, p := served(t, "{}", newByRecipient)
	agent := s.current.Load().agent.(*byRecipient)
	late := rcpt(2, "wait@y.example")
	late.TimeoutMicros = 1000
	derived := rcpt(3, "derive@y.example")
	derived.TimeoutMicros = 1000
	p.push(t, &agentpb.EventsRequest{Events: []*agentpb.Event{rcpt(1, "wait@y.example"), late, derived}})
	for range 3 {
		<-agent.entered
	}
	p.push(t, &agentpb.EventsRequest{Cancel: []uint64{1, 77}})
	all := p.answers(t, 3)
	for id, want := range map[uint64]error{1: context.Canceled, 2: context.DeadlineExceeded, 3: context.DeadlineExceeded} {
		if got := all[id].GetVerdicts()[0].GetData(); got != want.Error() {
			t.Errorf("event %d: %q, want %q", id, got, want)
		}
	}
}

func TestProgress(t *testing.T) {
	_, p := served(t, "{}", newByRecipient)
	p.push(t, &agentpb.EventsRequest{Events: []*agentpb.Event{rcpt(1, "progress@y.example")}})
	var progress, answers int
	for answers == 0 {
		out := p.pull(t)
		for _, g := range out.GetProgress() {
			progress++
			if g.GetId() != 1 || g.GetExtendMillis() != 60_000 {
				t.Errorf("progress %v", g)
			}
		}
		answers += len(out.GetAnswers())
	}
	if progress != 1 {
		t.Errorf("%d times progress", progress)
	}
}

// closing counts its Close.
type closing struct {
	generation int
	closed     chan int
	entered    chan struct{}
	release    chan struct{}
}

func (c *closing) OnRcpt(context.Context, *RcptEvent) Verdict {
	c.entered <- struct{}{}
	<-c.release
	return Continue().Because("generation", string(rune('0'+c.generation)))
}

func (c *closing) Close() error {
	c.closed <- c.generation
	return nil
}

// What the old configuration has begun it finishes, and only then is it closed.
func TestReconfigure(t *testing.T) {
	closed, entered, release := make(chan int, 4), make(chan struct{}, 4), make(chan struct{})
	type config struct {
		Generation int `hcl:"generation"`
	}
	s, p := served(t, `{"generation": 1}`, func(c config, _ *Registrar) (*closing, error) {
		return &closing{c.Generation, closed, entered, release}, nil
	})
	p.push(t, &agentpb.EventsRequest{Events: []*agentpb.Event{rcpt(1, "r@y.example")}})
	<-entered
	configure(t, s, `{"generation": 2}`)
	p.push(t, &agentpb.EventsRequest{Events: []*agentpb.Event{rcpt(2, "r@y.example")}})
	<-entered
	select {
	case g := <-closed:
		t.Fatalf("generation %d was closed with an event in hand", g)
	default:
	}
	close(release)
	all := p.answers(t, 2)
	if all[1].Verdicts[0].Data != "1" || all[2].Verdicts[0].Data != "2" {
		t.Errorf("answers %v", all)
	}
	if g := <-closed; g != 1 {
		t.Errorf("generation %d was closed", g)
	}
	out, err := s.Configure(context.Background(), &agentpb.ConfigureRequest{Config: []byte(`{}`)})
	if err != nil || len(out.GetDiagnostics()) != 1 || s.current.Load().agent.(*closing).generation != 2 {
		t.Errorf("a wrong configuration: %v, %v", out, err)
	}
}

// BenchmarkEvent measures the agent's side of an event with everything but the socket: decoding, dispatch to the
// handler on another goroutine, the answer, encoding; so many events in flight.
func BenchmarkEvent(b *testing.B) {
	for _, flight := range []int{1, 32, 128} {
		b.Run(map[int]string{1: "1", 32: "32", 128: "128"}[flight], func(b *testing.B) {
			_, p := served(b, "{}", newByRecipient)
			batch := new(agentpb.EventsRequest)
			for id := range min(flight, maxBatch) {
				batch.Events = append(batch.Events, rcpt(uint64(id+1), "r@y.example"))
			}
			octets, err := proto.Marshal(batch)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			start := cpuTime()
			sent, received := 0, 0
			for received < b.N {
				for sent-received <= flight-len(batch.Events) {
					p.in <- octets
					sent += len(batch.Events)
				}
				received += len(p.pull(b).GetAnswers())
			}
			b.ReportMetric(float64((cpuTime()-start).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}

// cpuTime of this process: on a busy machine wall time says little.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
