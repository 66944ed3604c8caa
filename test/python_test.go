package test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// TestPythonAgent runs examples/python, which knows the protocol from its documents alone. It needs Debian's
// python3-grpcio, python3-protobuf and protobuf-compiler.
func TestPythonAgent(t *testing.T) {
	t.Parallel()
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "examples", "python")
	if out, err := exec.Command("make", "-s", "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("generating the messages: %v\n%s", err, out)
	}
	h := rig.Start(t, plain+`
agent "tagger" {
  priority = 10
  command  = ["/usr/bin/python3", "`+dir+`/agent.py"]
  sandbox {
    read = ["`+dir+`"] # the modules beside it
  }
  config {
    words   = ["lottery"]
    refused = ["nobody@example.org"]
  }
}
`)
	c := h.Greeted()
	c.Do("MAIL FROM:<a@sender.example>", "250")
	if got := c.Do("RCPT TO:<Nobody@example.org>", "550"); !strings.HasPrefix(got, "550 5.7.1 Recipient is refused by the example in Python [") {
		t.Errorf("got %q", got)
	}
	c.Do("RCPT TO:<b@example.org>", "250")
	if got := c.Data("Subject: hello\r\n\r\nYou won the Lottery.\r\n"); !strings.HasPrefix(got, "250") {
		t.Fatalf("got %q", got)
	}
	// Large enough to come over Bodies, with credits.
	large := "Subject: large\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 20000) + "lottery\r\n"
	if got := c.Message("a@sender.example", "b@example.org", large); !strings.HasPrefix(got, "250") {
		t.Fatalf("got %q", got)
	}
	for _, m := range h.WaitDropped(2) {
		if !strings.Contains(m, "\r\nSubject: [word] hello\r\n") && !strings.Contains(m, "\r\nSubject: [word] large\r\n") {
			t.Errorf("the subject is not marked in\n%.2000s", m)
		}
	}
}
