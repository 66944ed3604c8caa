package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// serve starts a DNS server with records of a zone file and counts the questions it gets.
func serve(t *testing.T, delay time.Duration, records ...string) (addr string, questions *atomic.Int64) {
	t.Helper()
	questions = new(atomic.Int64)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var zone []dns.RR
	for _, r := range records {
		rr, err := dns.NewRR(r)
		if err != nil {
			t.Fatal(err)
		}
		zone = append(zone, rr)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		questions.Add(1)
		time.Sleep(delay)
		m := new(dns.Msg).SetReply(q)
		m.Rcode = dns.RcodeNameError
		if q.Question[0].Name == "broken.example." {
			m.Rcode = dns.RcodeServerFailure
		}
		for _, rr := range zone {
			if rr.Header().Name == q.Question[0].Name {
				m.Rcode = dns.RcodeSuccess
				if rr.Header().Rrtype == q.Question[0].Qtype || rr.Header().Rrtype == dns.TypeCNAME {
					m.Answer = append(m.Answer, rr)
				}
			}
		}
		_ = w.WriteMsg(m)
	})
	s := &dns.Server{PacketConn: pc, Handler: handler}
	go func() { _ = s.ActivateAndServe() }()
	t.Cleanup(func() { _ = s.Shutdown() })
	return pc.LocalAddr().String(), questions
}

func TestAnswers(t *testing.T) {
	addr, _ := serve(t, 0, "a.example. 60 A 192.0.2.1", "a.example. 60 A 192.0.2.2", "a.example. 60 MX 20 m2.example.",
		"a.example. 60 MX 10 m1.example.", `a.example. 60 TXT "v=spf1 " "-all"`, "1.2.0.192.in-addr.arpa. 60 PTR host.example.")
	r, err := New(Options{Servers: []string{addr}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	check := func(what string, got any, err error, want string) {
		t.Helper()
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: got %v, %v; want %s", what, got, err, want)
		}
	}
	a, err := r.A(ctx, "A.example")
	check("A", a, err, "[192.0.2.1 192.0.2.2]")
	aaaa, err := r.AAAA(ctx, "a.example")
	check("AAAA, which it has none of", aaaa, err, "[]")
	none, err := r.A(ctx, "nowhere.example")
	check("a name that does not exist", none, err, "[]")
	txt, err := r.TXT(ctx, "a.example")
	check("TXT", txt, err, "[v=spf1 -all]")
	mx, err := r.MX(ctx, "a.example")
	check("MX", mx, err, "[{m1.example 10} {m2.example 20}]")
	ptr, err := r.PTR(ctx, netip.MustParseAddr("192.0.2.1"))
	check("PTR", ptr, err, "[host.example]")
	if _, err := r.A(ctx, "broken.example"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a failing server: got %v, want ErrUnavailable", err)
	}
}

func TestOneQuestionForMany(t *testing.T) {
	addr, questions := serve(t, 50*time.Millisecond, "a.example. 60 A 192.0.2.1")
	r, _ := New(Options{Servers: []string{addr}})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if a, err := r.A(t.Context(), "a.example"); err != nil || len(a) != 1 {
				t.Errorf("got %v, %v", a, err)
			}
		})
	}
	wg.Wait()
	if n := questions.Load(); n != 1 {
		t.Errorf("%d questions were asked, want 1", n)
	}
}

func TestNextServer(t *testing.T) {
	silent, _ := net.ListenPacket("udp", "127.0.0.1:0")
	defer silent.Close()
	addr, _ := serve(t, 0, "a.example. 60 A 192.0.2.1")
	r, _ := New(Options{Servers: []string{silent.LocalAddr().String(), addr}, Timeout: 500 * time.Millisecond})
	if a, err := r.A(t.Context(), "a.example"); err != nil || len(a) != 1 {
		t.Errorf("got %v, %v; want the second server's answer", a, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r2, _ := New(Options{Servers: []string{silent.LocalAddr().String()}})
	if _, err := r2.A(ctx, "a.example"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("cancelled: got %v", err)
	}
}

func TestReverseName(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7":        "7.2.0.192.",
		"::ffff:192.0.2.7": "7.2.0.192.",
		"2001:db8::1":      "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.",
	} {
		if got := ReverseName(netip.MustParseAddr(in)); got != want {
			t.Errorf("%s: got %s", in, got)
		}
	}
}
