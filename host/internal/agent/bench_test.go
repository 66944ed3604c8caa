package agent

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/sdk/agentpb"
)

// The cost of an agent event, host and agent process together, beside a unary call of grpc on the same
// connection and a bare Unix socket on which the same number of octets goes there and back.
//
//	go test -run '^$' -bench Event -benchtime 50000x ./host/internal/agent/
//
// us-cpu/op is the user and system time of both processes (getrusage), ratios are to the bare socket at the same
// number in flight.

// benchEvent is an OnRcpt of an ordinary session, about 300 octets.
func benchEvent() *Call {
	facts := &agentpb.Event{
		EventId: "01JD8Y7ZK3V9W2Q5T6R7S8P9N0.1.rcpt.3", Kind: agentpb.EventKind_EVENT_KIND_RCPT, TimeUnixNanos: 1790000000123456789,
		Session: &agentpb.Session{
			Id: "01JD8Y7ZK3V9W2Q5T6R7S8P9N0", Connector: "internet", Client: []byte{192, 0, 2, 1}, ClientPort: 43210,
			Local: []byte{192, 0, 2, 25}, LocalPort: 25, Helo: []byte("mail.sender.example"), Extended: true,
			Trust: agentpb.Trust_TRUST_ANONYMOUS, Traffic: agentpb.Traffic_TRAFFIC_EXTERNAL, StartedUnixNanos: 1790000000000000000,
			Tls: &agentpb.Tls{Version: "TLS 1.3", CipherSuite: "TLS_AES_128_GCM_SHA256", ServerName: "mx.recipient.example"},
		},
		Envelope: &agentpb.Envelope{Id: "01JD8Y7ZK3V9W2Q5T6R7S8P9N0.1", RecipientCount: 2,
			Sender: &agentpb.Sender{Address: []byte("someone@sender.example"), Size: 4096, BodyType: "8BITMIME"}},
		Arguments: &agentpb.Arguments{Event: &agentpb.Arguments_Rcpt{Rcpt: &agentpb.RcptArguments{
			Recipient: &agentpb.Recipient{Index: 2, Address: []byte("somebody@recipient.example")}}}},
	}
	octets, err := proto.Marshal(facts)
	if err != nil {
		panic(err)
	}
	return &Call{Kind: facts.Kind, EventID: facts.EventId, Facts: octets, Timeout: time.Minute}
}

// both is the processor time of this process and another, so far.
func both(b *testing.B, pid int) time.Duration {
	b.Helper()
	var us syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &us); err != nil {
		b.Fatal(err)
	}
	return time.Duration(us.Utime.Nano()+us.Stime.Nano()) + processTime(b, pid)
}

// processTime reads the user and system time of a process with the clock of its processor time, to the
// nanosecond.
func processTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	clock := int32(^uint32(pid)<<3 | 2) // CPUCLOCK_SCHED of a process (clock_getcpuclockid)
	d, err := clockGettime(clock)
	if err != nil {
		b.Fatal(err)
	}
	return d
}

// measure runs op from n goroutines at once.
func measure(b *testing.B, n, pid int, op func(worker int)) float64 {
	b.ReportAllocs()
	before, theirs := both(b, pid), processTime(b, pid)
	b.ResetTimer()
	var workers sync.WaitGroup
	for w := range n {
		share := b.N / n
		if w < b.N%n {
			share++
		}
		workers.Go(func() {
			for range share {
				op(w)
			}
		})
	}
	workers.Wait()
	b.StopTimer()
	perOp := float64((both(b, pid) - before).Nanoseconds()) / float64(b.N) / 1000
	b.ReportMetric(perOp, "us-cpu/op")
	b.ReportMetric(float64((processTime(b, pid)-theirs).Nanoseconds())/float64(b.N)/1000, "us-cpu-agent/op")
	return perOp
}

func BenchmarkEvent(b *testing.B) {
	for _, n := range []int{1, 4, 32, 128} {
		bare := 0.0
		ratio := func(b *testing.B, perOp float64) {
			if bare > 0 {
				b.ReportMetric(perOp/bare, "x-bare")
			}
		}
		b.Run(fmt.Sprintf("bare-socket/%d", n), func(b *testing.B) { bare = benchBare(b, n) })
		b.Run(fmt.Sprintf("stream/%d", n), func(b *testing.B) {
			a := launchBench(b)
			c := benchEvent()
			ratio(b, measure(b, n, a.Status().Instances[0].PID, func(int) {
				if _, err := a.Call(context.Background(), c); err != nil {
					b.Error(err)
				}
			}))
		})
		b.Run(fmt.Sprintf("unary/%d", n), func(b *testing.B) {
			a := launchBench(b)
			p := a.slots[0].process
			request := &agentpb.ValidateRequest{Config: benchEvent().Facts}
			ratio(b, measure(b, n, p.pid(), func(int) {
				if _, err := p.rpc.Validate(context.Background(), request); err != nil {
					b.Error(err)
				}
			}))
		})
	}
}

func launchBench(b *testing.B) *Agent {
	run, err := os.MkdirTemp("/tmp", "p")
	if err != nil {
		b.Fatal(err)
	}
	o := Options{RunDir: run}
	o.Spec.Name, o.Spec.Command = "bench", []string{os.Args[0]}
	o.Spec.Env = map[string]string{roleKey: "agent", "GOMAXPROCS": "1"} // as agents of the SDK have it
	a, err := Launch(context.Background(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		a.Close(context.Background())
		os.RemoveAll(run)
	})
	return a
}

// bareAnswer is about as long as an answer on the stream.
const bareAnswer = 16

// benchBare measures a round trip of frames over one Unix socket, one goroutine a connection and as many
// connections as there are round trips at once.
func benchBare(b *testing.B, n int) float64 {
	b.Helper()
	dir, err := os.MkdirTemp("/tmp", "p")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleKey+"=echo", "ECHO_PATH="+dir+"/s")
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
	payload := benchEvent().Facts
	frame := append(binary.BigEndian.AppendUint32(nil, uint32(len(payload))), payload...)
	conns, answers := make([]net.Conn, n), make([][]byte, n)
	for i := range conns {
		if conns[i], err = net.Dial("unix", dir+"/s"); err != nil {
			b.Fatal(err)
		}
		defer conns[i].Close()
		answers[i] = make([]byte, bareAnswer)
	}
	return measure(b, n, cmd.Process.Pid, func(w int) {
		if _, err := conns[w].Write(frame); err != nil {
			b.Error(err)
		}
		if _, err := io.ReadFull(conns[w], answers[w]); err != nil {
			b.Error(err)
		}
	})
}

// mainEcho answers frames.
func mainEcho() {
	listener, err := net.Listen("unix", os.Getenv("ECHO_PATH"))
	if err != nil {
		os.Exit(1)
	}
	fmt.Println()
	for {
		conn, err := listener.Accept()
		if err != nil {
			os.Exit(1)
		}
		go echo(conn)
	}
}

func echo(conn net.Conn) {
	frame := make([]byte, 64<<10)
	for {
		if _, err := io.ReadFull(conn, frame[:4]); err != nil {
			return
		}
		if _, err := io.ReadFull(conn, frame[:binary.BigEndian.Uint32(frame)]); err != nil {
			return
		}
		if _, err := conn.Write(frame[:bareAnswer]); err != nil {
			return
		}
	}
}
