package test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// plain is a host with a drop directory; agents are added behind it.
const plain = `
host {
  name     = "edge.example"
  data_dir = "{dir}/data"
}
log {
  level = "debug"
}
ledger {
  full = true
}
receive_connector "in" {
  listen      = ["{addr}"]
  permissions = ["anonymous"]
  tls         = "test"
}
tls "test" {
}
accepted_domain "example.org" {
  type = "authoritative"
}
send_connector "drop" {
  address_spaces = ["*"]
  drop_directory = "{dir}/drop"
}
`

// mockAgent is an agent block of the mock that does what body says.
func mockAgent(label string, priority int, body string) string {
	return fmt.Sprintf("agent %q {\n  plugin = \"mock\"\n  priority = %d\n  config {\n%s\n  }\n}\n", label, priority, body)
}

// TestOneMessage is the thinnest whole path: one message through one agent process to a drop directory.
func TestOneMessage(t *testing.T) {
	h := rig.Start(t, plain+mockAgent("stamper", 10, `
    on "OnEndOfData" {
      action     = "continue"
      add_header = { "X-Seen" = "by the agent" }
    }`))
	c := h.Greeted()
	reply := c.Message("a@sender.example", "b@example.org", "From: a@sender.example\r\nSubject: hello\r\n\r\nline\r\n.dot\r\n")
	if !strings.HasPrefix(reply, "250 2.6.0 ") {
		t.Fatalf("got %q", reply)
	}
	c.Do("QUIT", "221")
	got := h.WaitDropped(1)[0]
	for _, want := range []string{"X-Sender: <a@sender.example>", "X-Receiver: <b@example.org>", "X-Seen: by the agent\r\n",
		"\r\n\r\nline\r\n.dot\r\n", "Received: from client.example"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	id := reply[strings.LastIndexByte(reply, '[')+1 : strings.LastIndexByte(reply, ']')]
	h.WaitFor("the story of the message", func() bool {
		out, err := h.Postern("why", id)
		return err == nil && strings.Contains(out, "stamper")
	})
}

// TestSwaks sends with swaks: plain, with STARTTLS, pipelined.
func TestSwaks(t *testing.T) {
	h := rig.Start(t, plain)
	for _, args := range [][]string{{}, {"--tls"}, {"--pipeline"}, {"--protocol", "SMTP"}} {
		args = append([]string{"--server", h.Addr, "--from", "a@sender.example", "--to", "b@example.org", "--helo", "client.example"}, args...)
		if out, err := exec.Command("swaks", args...).CombinedOutput(); err != nil {
			t.Errorf("swaks %v: %v\n%s", args, err, out)
		}
	}
	h.WaitDropped(4)
}
