package test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// closedPort is an address at which nobody answers DNS questions: the kernel refuses them.
func closedPort(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().String()
}

// isolated is the sample configuration, with all agents, in a network without anything: resolvers, DNS lists, feeds and
// virus scanners are configured, and none can be reached.
func isolated(t *testing.T) string {
	t.Helper()
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	sample, err := os.ReadFile(filepath.Join(root, "config.hcl"))
	if err != nil {
		t.Fatal(err)
	}
	resolver, port := closedPort(t), rig.FreeAddr(t)
	_, number, err := net.SplitHostPort(port)
	if err != nil {
		t.Fatal(err)
	}
	leave := "sandbox {\n    connect = [\"tcp:" + number + "\"]\n  }\n  "
	const key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"
	feeds := fmt.Sprintf("feed \"central\" {\n      url   = \"https://%s/central.tar.gz\"\n      keys  = [%q]\n      every = \"1s\"\n    }\n", port, key)
	config := string(sample)
	for _, change := range [][2]string{
		{`"127.0.0.1:2525"`, `"{addr}"`},
		{"  permissions = [\"anonymous\"]", "  proxy_from  = [\"127.0.0.0/8\"]\n  permissions = [\"anonymous\"]"},
		{`"var/postern"`, `"{dir}/data"`},
		{`"var/drop"`, `"{dir}/drop"`},
		{"agent \"connfilter\" {\n  priority = 10\n  config {\n", "agent \"connfilter\" {\n  priority = 10\n  " + leave + "config {\n    dnsbl \"zen.example\" {}\n    " + feeds},
		{"agent \"contentfilter\" {\n  priority = 40\n  config {\n", "agent \"contentfilter\" {\n  priority = 40\n  " + leave + "config {\n    " + feeds},
		{`"unix:/run/clamav/clamd.ctl"`, `"tcp:` + number + `"`},
	} {
		if strings.Count(config, change[0]) != 1 {
			t.Fatalf("config.hcl has %q %d times", change[0], strings.Count(config, change[0]))
		}
		config = strings.Replace(config, change[0], change[1], 1)
	}
	before, antivirus, _ := strings.Cut(config, `agent "antivirus"`)
	config = before + `agent "antivirus"` + strings.Replace(antivirus, "  config {}", "  config {\n    on_engine_down = \"pass\"\n    check_every = \"1s\"\n"+
		"    engine \"scanner\" {\n      clamd {\n        address = \""+port+"\"\n      }\n    }\n  }", 1)
	return config + fmt.Sprintf("dns {\n  resolvers = [%q]\n  timeout = \"1s\"\n}\n", resolver)
}

// TestIsolated lets mail flow through all agents with everything that they depend on out of reach. Status says what is missing
// and since when; the log says each thing once, however much mail comes.
func TestIsolated(t *testing.T) {
	h := rig.Start(t, isolated(t))
	send := func(n int) {
		t.Helper()
		var clients sync.WaitGroup
		replies := make([]string, n)
		for i := range n {
			if i%10 == 0 {
				clients.Wait()
			}
			clients.Go(func() { replies[i] = isolatedMessage(h, i) })
		}
		clients.Wait()
		for i, reply := range replies {
			if !strings.HasPrefix(reply, "250 ") {
				t.Errorf("message %d: %s", i, reply)
			}
		}
	}
	send(25)
	got := h.WaitDropped(25)
	waitStatus(h,
		"agent connfilter works without DNS list zen.example since ",
		"agent connfilter works without feed central since ",
		"agent contentfilter works without feed central since ",
		"agent antivirus works without virus scanner scanner since ",
		"agent senderauth works without ",
		"agent protocolanalysis works without ",
	)
	if !strings.Contains(got[0], "X-Postern-SCL: ") || !strings.Contains(got[0], "Authentication-Results: ") {
		t.Errorf("the next hop gets\n%s", got[0])
	}

	before := strings.Count(h.Log(), "\n")
	send(25)
	h.WaitDropped(50)
	waitEmpty(h)
	if after := strings.Count(h.Log(), "\n"); after > before+3 {
		t.Errorf("25 more messages made %d more lines in the log", after-before)
	}
	if n := strings.Count(h.Log(), "degraded: "); n > 12 {
		t.Errorf("the log says %d times that something is degraded", n)
	}
}

// isolatedMessage sends one that gives every agent something to do, and answers with the last reply.
func isolatedMessage(h *rig.Host, i int) string {
	c := from(h, fmt.Sprintf("203.0.113.%d", 1+i%5))
	defer c.Conn.Close()
	return c.Message("a@sender.example", "b@example.org", fmt.Sprintf("From: a@sender.example\r\nTo: b@example.org\r\nSubject: number %d\r\n"+
		"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=sender.example; s=s; h=from; bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b=AAAA\r\n"+
		"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nsee https://www.example.net/%d\r\n--b\r\n"+
		"Content-Type: application/octet-stream; name=\"x.bin\"\r\nContent-Transfer-Encoding: base64\r\n\r\naGVsbG8=\r\n--b--\r\n", i, i))
}
