package session_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/queue"
)

// nullSpool keeps nothing.
type nullSpool struct{ spool }

func (*nullSpool) Commit(...*queue.Item) error { return nil }

// cpu of this process so far.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkReceive measures a message a connection, as strangers send, and many on one, with a client in a process of its
// own so that only the server's CPU counts.
func BenchmarkReceive(b *testing.B) {
	for _, size := range []int{4 << 10, 50 << 10} {
		for _, each := range []int{1, 100} {
			b.Run(fmt.Sprintf("%dKB/%d-per-connection", size>>10, each), func(b *testing.B) { benchmarkReceive(b, size, each) })
		}
	}
}

func benchmarkReceive(b *testing.B, size, each int) {
	s := usual()
	s.receive.Limits.MaxProtocolErrors = 0
	h := startWith(b, s, &nullSpool{})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b.ResetTimer()
	began := cpu()
	loadFromOutside(b, h.conn.Addrs()[0].String(), size, each, b.N)
	spent := cpu() - began
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(spent.Microseconds())/float64(b.N), "server-cpu-us/msg")
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(b.N), "allocs/msg")
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(b.N), "B/msg")
}

// loadFromOutside runs this test binary as a client.
func loadFromOutside(b *testing.B, address string, size, each, n int) {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	p, err := os.StartProcess(self, []string{self, "-test.run", "^$"}, &os.ProcAttr{
		Env:   append(os.Environ(), "SESSION_BENCH_CLIENT="+strings.Join([]string{address, strconv.Itoa(size), strconv.Itoa(each), strconv.Itoa(n)}, " ")),
		Files: []*os.File{nil, os.Stderr, os.Stderr},
	})
	if err != nil {
		b.Fatal(err)
	}
	if state, err := p.Wait(); err != nil || !state.Success() {
		b.Fatalf("client: %v %v", state, err)
	}
}

// TestMain is the client when the environment says so.
func TestMain(m *testing.M) {
	if spec := os.Getenv("SESSION_BENCH_CLIENT"); spec != "" {
		if err := load(strings.Fields(spec)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// load sends n messages, so many a connection, over 8 connections at once.
func load(spec []string) error {
	size, _ := strconv.Atoi(spec[1])
	each, _ := strconv.Atoi(spec[2])
	n, _ := strconv.Atoi(spec[3])
	text := simple + strings.Repeat(strings.Repeat("x", 76)+"\r\n", (size-len(simple))/78) + ".\r\n"
	work := make(chan int, n)
	for ; n > 0; n -= each {
		work <- min(each, n)
	}
	close(work)
	const workers = 8
	done := make(chan error, workers)
	for range workers {
		go func() {
			for count := range work {
				if err := loadConnection(spec[0], text, count); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range workers {
		if err := <-done; err != nil {
			return err
		}
	}
	return nil
}

func loadConnection(address, text string, count int) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	r := bufio.NewReader(c)
	say := func(s, want string) error {
		if _, err := io.WriteString(c, s); err != nil {
			return err
		}
		for {
			l, err := r.ReadString('\n')
			if err != nil || !strings.HasPrefix(l, want) {
				return fmt.Errorf("%q after %.20q: %w", l, s, err)
			}
			if l[3] == ' ' {
				return nil
			}
		}
	}
	if err := say("", "220"); err != nil {
		return err
	}
	if err := say("EHLO x.test\r\n", "250"); err != nil {
		return err
	}
	for range count {
		for _, step := range [][2]string{{"MAIL FROM:<a@x.test>\r\n", "250"}, {"RCPT TO:<b@ours.test>\r\n", "250"}, {"DATA\r\n", "354"}, {text, "250"}} {
			if err := say(step[0], step[1]); err != nil {
				return err
			}
		}
	}
	return say("QUIT\r\n", "221")
}

// BenchmarkIdle measures the memory of a connection that has greeted and says nothing more.
func BenchmarkIdle(b *testing.B) {
	for _, secure := range []bool{false, true} {
		b.Run(map[bool]string{false: "plain", true: "TLS"}[secure], func(b *testing.B) {
			const n = 300
			s := usual()
			s.receive.Limits.Timeout, s.receive.Limits.InactivityTimeout = time.Hour, time.Hour
			h := start(b, s)
			before := inUse()
			conns := make([]net.Conn, n)
			for i := range conns {
				conns[i] = greeted(b, h, secure)
			}
			after := inUse()
			for _, c := range conns {
				_ = c.Close()
			}
			for b.Loop() {
				runtime.Gosched()
			}
			b.ReportMetric(float64(after-before)/n, "B/connection")
		})
	}
}

// greeted makes a connection and forgets the client's side of it but for its socket.
func greeted(b *testing.B, h *host, secure bool) net.Conn {
	raw, err := net.Dial("tcp", h.conn.Addrs()[0].String())
	if err != nil {
		b.Fatal(err)
	}
	c := &client{t: b, Conn: raw, r: bufio.NewReaderSize(raw, 512)}
	c.reply()
	c.send("EHLO x\r\n")
	c.reply()
	if secure {
		c.dialog("C: STARTTLS", "S: 220 2.0.0 Ready to start TLS")
		t := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
		if err := t.Handshake(); err != nil {
			b.Fatal(err)
		}
		c.Conn = t
		c.r.Reset(t)
		c.send("EHLO x\r\n")
		c.reply()
	}
	return raw
}

// inUse is the memory of heap and stacks after collection.
func inUse() uint64 {
	var m runtime.MemStats
	for range 4 {
		runtime.GC() // stacks shrink by half a collection
	}
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
