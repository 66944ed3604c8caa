package delivery

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
)

// zone is a DNS server that answers from text records. A name with the text "SERVFAIL" or "TRUNCATE" does that.
type zone struct {
	addr    string
	queries atomic.Int64
}

func newZone(t *testing.T, records string) *zone {
	t.Helper()
	z := &zone{}
	byKey := map[question][]dns.RR{}
	names := map[string]bool{}
	special := map[string]string{}
	for _, line := range strings.Split(strings.TrimSpace(records), "\n") {
		f := strings.Fields(line)
		if len(f) == 2 {
			special[dns.Fqdn(f[0])] = f[1]
			continue
		}
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatal(err)
		}
		q := question{rr.Header().Name, rr.Header().Rrtype}
		byKey[q] = append(byKey[q], rr)
		names[q.name] = true
	}
	handler := func(network string) dns.HandlerFunc {
		return func(w dns.ResponseWriter, m *dns.Msg) {
			z.queries.Add(1)
			q := m.Question[0]
			out := new(dns.Msg)
			out.SetReply(m)
			out.Answer = byKey[question{strings.ToLower(q.Name), q.Qtype}]
			switch {
			case special[q.Name] == "SERVFAIL":
				out.Rcode = dns.RcodeServerFailure
			case special[q.Name] == "TRUNCATE" && network == "udp":
				out.Truncated, out.Answer = true, nil
			case len(out.Answer) == 0 && !names[q.Name]:
				out.Rcode = dns.RcodeNameError
			}
			_ = w.WriteMsg(out)
		}
	}
	pc, err := net.ListenPacket("udp", quietAddress()+":0")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler("udp")}, {Listener: ln, Handler: handler("tcp")}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	z.addr = pc.LocalAddr().String()
	return z
}

func (z *zone) use(o *Options) { o.Config.DNS.Resolvers = []string{z.addr} }

// listenOn gives a hop on another loopback address with the port of first.
func listenOn(t *testing.T, ip string, first *hop) net.Listener {
	t.Helper()
	_, port, _ := net.SplitHostPort(first.addr())
	ln, err := net.Listen("tcp", net.JoinHostPort(ip, port))
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func TestMX(t *testing.T) {
	best := newHop(t, nil)
	second := newHop(t, func(h *hop) { h.ln = listenOn(t, "127.0.0.2", best) })
	z := newZone(t, `
x.example. 300 IN MX 20 mx2.x.example.
x.example. 300 IN MX 10 mx1.x.example.
mx1.x.example. 300 IN A 127.0.0.1
mx2.x.example. 300 IN A 127.0.0.2
down.example. 300 IN MX 10 gone.down.example.
down.example. 300 IN MX 20 mx2.x.example.
gone.down.example. 300 IN A 127.0.0.9
implicit.example. 300 IN A 127.0.0.1
null.example. 300 IN MX 0 .
empty.example. 300 IN TXT "nothing"
noaddress.example. 300 IN MX 10 empty.example.
dangling.example. 300 IN MX 10 missing.example.
broken.example. SERVFAIL
half.example. 300 IN MX 10 broken.example.
self.example. 300 IN MX 10 edge.test.example.
self.example. 300 IN MX 20 mx1.x.example.
edge.test.example. 300 IN A 127.0.0.1
backup.example. 300 IN MX 10 mx2.x.example.
backup.example. 300 IN MX 20 edge.test.example.
backup.example. 300 IN MX 30 mx1.x.example.
byaddress.example. 300 IN MX 10 alias.example.
alias.example. 300 IN A 127.0.0.3
long.example. TRUNCATE
long.example. 300 IN MX 10 mx1.x.example.
xn--bcher-kva.example. 300 IN MX 10 mx1.x.example.
zero.example. 300 IN MX 10 this.zero.example.
this.zero.example. 300 IN A 0.0.0.0
this.zero.example. 300 IN AAAA ::
private.example. 300 IN MX 10 mx.private.example.
mx.private.example. 300 IN A 10.1.2.3
`)
	tests := []struct {
		domain string
		state  envelope.RecipientState
		want   string
		at     *hop
	}{
		{"x.example", envelope.Delivered, "250", best},
		{"down.example", envelope.Delivered, "250", second},
		{"implicit.example", envelope.Delivered, "250", best},
		{"null.example", envelope.Failed, "556 5.1.10", nil},
		{"missing.example", envelope.Failed, "5.1.2", nil},
		{"empty.example", envelope.Failed, "5.4.4", nil},
		{"noaddress.example", envelope.Failed, "5.4.4", nil},
		{"dangling.example", envelope.Failed, "5.4.4", nil},
		{"broken.example", envelope.Pending, "4.4.3", nil},
		{"half.example", envelope.Pending, "4.4.3", nil},
		{"self.example", envelope.Failed, "5.4.6", nil},
		{"backup.example", envelope.Delivered, "250", second},
		{"byaddress.example", envelope.Failed, "5.4.6", nil},
		{"long.example", envelope.Delivered, "250", best},
		{"bücher.example", envelope.Delivered, "250", best},
		{"[127.0.0.2]", envelope.Delivered, "250", second},
		{"[127.0.0.3]", envelope.Failed, "5.4.6", nil},
		{"[IPv6:::ffff:127.0.0.3]", envelope.Failed, "5.4.6", nil},
		{"zero.example", envelope.Failed, "5.4.4", nil},
		{"[0.0.0.0]", envelope.Failed, "5.4.4", nil},
		{"[IPv6:::]", envelope.Failed, "5.4.4", nil},
		{"X.Example", envelope.Delivered, "250", best},
	}
	for _, tt := range tests {
		t.Run(tt.domain, func(t *testing.T) {
			sc := config.SendConnector{DNS: true, Port: best.port()}
			_, port, _ := net.SplitHostPort(best.addr())
			d := testDelivery(t, sc, z.use, func(o *Options) {
				o.Config.ReceiveConnectors = []config.ReceiveConnector{{Listen: []string{"127.0.0.3:" + port}}}
			})
			before := map[*hop]int{best: len(best.received()), second: len(second.received())}
			item := testItem("a@x.example")
			item.Hop = "out/" + tt.domain
			res := one(t, d, item)
			want(t, res, tt.state, tt.want)
			for h, n := range before {
				if got := len(h.received()) - n; (h == tt.at) != (got == 1) {
					t.Errorf("%s received %d", h.addr(), got)
				}
			}
		})
	}
	// What else runs here is no business of a stranger's DNS; a host in a private network is.
	t.Run("loopback", func(t *testing.T) {
		d := testDelivery(t, config.SendConnector{DNS: true}, z.use)
		for domain, want := range map[string]string{
			"x.example": "5.4.6", "backup.example": "5.4.6", "[127.0.0.9]": "5.4.6", "[IPv6:::1]": "5.4.6", "[224.0.0.1]": "5.4.4",
			"private.example": "", "[10.0.0.1]": "", "[192.168.1.1]": "", "[IPv6:fd00::1]": "",
		} {
			item := testItem("a@x.example")
			item.Hop = "out/" + domain
			list, why := d.targets(t.Context(), d.connectors["out"], item)
			if (len(list) == 0) != (want != "") || want != "" && why.Enhanced != want {
				t.Errorf("%s: %v, %s", domain, list, why)
			}
		}
	})
	// Who listens on all addresses is at every loopback address, and not only at the one that its interface has.
	t.Run("loopback of a wildcard", func(t *testing.T) {
		_, port, _ := net.SplitHostPort(best.addr())
		for _, listen := range []string{":" + port, "0.0.0.0:" + port, "[::]:" + port} {
			d := testDelivery(t, config.SendConnector{DNS: true, Port: best.port()}, z.use, func(o *Options) {
				o.Config.ReceiveConnectors = []config.ReceiveConnector{{Listen: []string{listen}}}
			})
			item := testItem("a@x.example")
			item.Hop = "out/[127.0.0.2]"
			want(t, one(t, d, item), envelope.Failed, "5.4.6")
		}
	})
	t.Run("remote", func(t *testing.T) {
		d := testDelivery(t, config.SendConnector{DNS: true, Port: best.port()}, z.use)
		_, port, _ := net.SplitHostPort(best.addr())
		res := one(t, d, testItem("a@x.example"))
		if want := "mx1.x.example [127.0.0.1]:" + port; res.Remote != want {
			t.Errorf("remote is %q, want %q", res.Remote, want)
		}
	})
	t.Run("answers are kept", func(t *testing.T) {
		d := testDelivery(t, config.SendConnector{DNS: true, Port: best.port()}, z.use)
		one(t, d, testItem("a@x.example"))
		n := z.queries.Load()
		one(t, d, testItem("a@x.example"))
		if z.queries.Load() != n {
			t.Error("the second message asked DNS again")
		}
	})
	t.Run("no resolver answers", func(t *testing.T) {
		d := testDelivery(t, config.SendConnector{DNS: true}, func(o *Options) {
			o.Config.DNS = config.DNS{Resolvers: []string{"127.0.0.1:1"}}
		})
		want(t, one(t, d, testItem("a@x.example")), envelope.Pending, "4.4.3")
	})
}

// A domain cannot keep us busy with names of mail exchangers.
func TestManyExchangers(t *testing.T) {
	var records strings.Builder
	records.WriteString("many.example. TRUNCATE\n")
	for i := range 60 {
		fmt.Fprintf(&records, "many.example. 300 IN MX %d mx%d.many.example.\n", i, i)
	}
	z := newZone(t, records.String())
	d := testDelivery(t, config.SendConnector{DNS: true}, z.use)
	item := testItem("a@x.example")
	item.Hop = "out/many.example"
	want(t, one(t, d, item), envelope.Failed, "5.4.4")
	if n := z.queries.Load(); n > 50 {
		t.Errorf("%d questions", n)
	}
}

func TestEqualPreferencesShareTheLoad(t *testing.T) {
	first := newHop(t, nil)
	second := newHop(t, func(h *hop) { h.ln = listenOn(t, "127.0.0.2", first) })
	z := newZone(t, `
x.example. 300 IN MX 10 a.example.
x.example. 300 IN MX 10 b.example.
a.example. 300 IN A 127.0.0.1
b.example. 300 IN A 127.0.0.2
`)
	d := testDelivery(t, config.SendConnector{DNS: true, Port: first.port()}, z.use)
	for range 40 {
		want(t, one(t, d, testItem("a@x.example")), envelope.Delivered, "250")
	}
	if len(first.received()) < 5 || len(second.received()) < 5 {
		t.Errorf("%d and %d", len(first.received()), len(second.received()))
	}
}

// The certificate must be the domain's that was routed, or that of a host below it: what DNS says is not protected.
func TestTLSDomainOfMX(t *testing.T) {
	ca := newAuthority(t)
	z := newZone(t, `
x.example. 300 IN MX 10 mx.x.example.
mx.x.example. 300 IN A 127.0.0.1
y.example. 300 IN MX 10 mx.evil.example.
mx.evil.example. 300 IN A 127.0.0.1
`)
	for _, tt := range []struct {
		domain, certificate string
		state               envelope.RecipientState
	}{
		{"x.example", "x.example", envelope.Delivered},
		{"x.example", "mx.x.example", envelope.Delivered},
		{"x.example", "other.example", envelope.Pending},
		{"y.example", "mx.evil.example", envelope.Pending},
		{"y.example", "y.example", envelope.Delivered},
	} {
		h := newHop(t, func(h *hop) { h.tls = ca.serverTLS(t, tt.certificate) })
		d := testDelivery(t, config.SendConnector{DNS: true, Port: h.port(), TLSAuth: "domain", TLSCAFile: ca.file}, z.use)
		item := testItem("a@x.example")
		item.Hop = "out/" + tt.domain
		want(t, one(t, d, item), tt.state, "")
	}
}
