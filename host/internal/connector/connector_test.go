package connector

import (
	"bytes"
	"crypto/tls"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
)

func load(t *testing.T, dir string, block config.TLS) *Certificates {
	t.Helper()
	c, err := LoadCertificates(&config.Config{
		Host: config.Host{Name: "edge.test", DataDir: dir}, TLS: map[string]config.TLS{block.Name: block},
	}, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// serial of the certificate that a handshake shows.
func serial(t *testing.T, c *tls.Config) string {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	go func() { _ = tls.Server(server, c).Handshake() }()
	conn := tls.Client(client, &tls.Config{InsecureSkipVerify: true, ServerName: "edge.test"})
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	leaf := conn.ConnectionState().PeerCertificates[0]
	if err := leaf.VerifyHostname("edge.test"); err != nil {
		t.Error(err)
	}
	return leaf.SerialNumber.String()
}

// A connection that was accepted at the moment of a pause is none of those that Empty ends: it waits, as those do that come
// later, and begins when the pause ends, or is closed when that is the end.
func TestAcceptedIntoAPause(t *testing.T) {
	for _, over := range []bool{false, true} {
		c := &Connector{conns: map[*incoming]struct{}{}}
		c.Pause()
		client, server := net.Pipe()
		defer client.Close()
		registered := make(chan *incoming)
		go func() { registered <- c.register(server) }()
		c.Empty(t.Context())
		select {
		case <-registered:
			t.Fatal("it was registered during the pause")
		case <-time.After(20 * time.Millisecond):
		}
		if over {
			c.mu.Lock()
			c.down = true
			c.mu.Unlock()
		}
		c.Resume()
		if in := <-registered; (in == nil) != over || c.Stats().Current == 0 != over {
			t.Errorf("over %v: %v, %d connections", over, in, c.Stats().Current)
		}
	}
}

func TestSelfSignedOnce(t *testing.T) {
	dir := t.TempDir()
	first := serial(t, load(t, dir, config.TLS{Name: "public"}).Config("public"))
	if second := serial(t, load(t, dir, config.TLS{Name: "public"}).Config("public")); first != second {
		t.Error("another certificate at the second start")
	}
	info, err := os.Stat(filepath.Join(dir, "tls", "public.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key %v, error %v", info, err)
	}
	if load(t, dir, config.TLS{Name: "public"}).Config("other") != nil {
		t.Error("a configuration for a block that is not there")
	}
}

func TestCertificateReload(t *testing.T) {
	dir := t.TempDir()
	block := config.TLS{Name: "public", Certificate: filepath.Join(dir, "c"), Key: filepath.Join(dir, "k"), MinVersion: "1.3"}
	renew := func(at time.Time) {
		certificate, key, err := newCertificate("edge.test")
		if err != nil {
			t.Fatal(err)
		}
		for path, b := range map[string][]byte{block.Certificate: certificate, block.Key: key} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	renew(time.Now())
	c := load(t, dir, block)
	served := c.Config("public")
	if served.MinVersion != tls.VersionTLS13 {
		t.Error("min_version was not kept")
	}
	first := serial(t, served)
	renew(time.Now().Add(time.Minute))
	c.Reload()
	second := serial(t, served)
	if first == second {
		t.Error("the certificate was not read again")
	}
	if err := os.WriteFile(block.Certificate, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Reload()
	if serial(t, served) != second {
		t.Error("a broken file took the certificate away")
	}
}

func TestMissingCertificate(t *testing.T) {
	_, err := LoadCertificates(&config.Config{TLS: map[string]config.TLS{"x": {Name: "x", Certificate: "/no/such", Key: "/no/such"}}}, hclog.NewNullLogger())
	if err == nil || !strings.Contains(err.Error(), `tls "x"`) {
		t.Errorf("error %v", err)
	}
}

func TestLimiter(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	six, neighbour := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::ffff")
	loop := netip.MustParseAddr("127.0.0.1")
	l := newLimiter(config.Limits{MaxConnections: 6, MaxPerSource: 2, MessageRatePerSource: 1})
	one := l.take(a)
	if one == nil || l.take(a) == nil || l.take(a) != nil {
		t.Error("two connections a source")
	}
	if l.take(six) == nil || l.take(neighbour) == nil || l.take(six) != nil {
		t.Error("an IPv6 source is a network of 64 bits")
	}
	first, second := l.take(loop), l.take(loop)
	if first == nil || second == nil || l.take(b) != nil {
		t.Error("six connections in all")
	}
	l.leave(one)
	if l.take(b) == nil {
		t.Error("a place that is free again")
	}
	l.leave(nil)
	if !l.admit(a) || l.admit(a) || !l.admit(b) {
		t.Error("one message a minute and source")
	}
	for range 10 {
		if !l.admit(loop) {
			t.Error("loopback is free")
		}
	}
	l = newLimiter(config.Limits{MaxPerSource: 1, PerSourceSet: true})
	if l.take(loop) == nil || l.take(loop) != nil {
		t.Error("loopback is not free when the limit was set")
	}
}

func TestProtocolLog(t *testing.T) {
	var b bytes.Buffer
	l := newProtocolLog("internet", &b)
	at := netip.MustParseAddrPort("192.0.2.1:25")
	say := l.session("s1", at, at)
	say('<', `NOOP "a", b`)
	say('>', "250 OK")
	l.close()
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 2 || !strings.HasSuffix(lines[0], `,internet,s1,0,192.0.2.1:25,192.0.2.1:25,<,"NOOP ""a"", b"`) || !strings.HasSuffix(lines[1], ",1,192.0.2.1:25,192.0.2.1:25,>,250 OK") {
		t.Errorf("%q", lines)
	}
	dir := t.TempDir()
	f, err := openProtocolLog(dir, "x")
	if err != nil {
		t.Fatal(err)
	}
	say = f.session("s2", at, at)
	for range 12000 {
		say('<', strings.Repeat("x", 1000))
	}
	f.close()
	say('<', "after the end")
	for _, name := range []string{"receive-x.csv", "receive-x.csv.1"} {
		if info, err := os.Stat(filepath.Join(dir, "protocol", name)); err != nil || info.Size() == 0 || info.Size() > maxProtocolLog+1<<16 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
}

func TestOptionsThatCannotBe(t *testing.T) {
	for _, c := range []config.ReceiveConnector{{Name: "x", ImplicitTLS: true}, {Name: "x", RequireTLS: true}} {
		if _, err := New(Options{Config: c, Logger: hclog.NewNullLogger()}); err == nil {
			t.Errorf("%+v", c)
		}
	}
}

func TestListenSaysWhere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := New(Options{Config: config.ReceiveConnector{Name: "x", Listen: []string{"127.0.0.1:0", l.Addr().String()}}, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Listen(); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("error %v", err)
	}
}
