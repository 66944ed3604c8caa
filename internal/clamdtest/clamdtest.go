// Package clamdtest starts a real virus scanner. Only tests use it.
package clamdtest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/internal/corpora"
	"github.com/posternmail/postern/internal/lack"
)

// Start starts clamd with the database of three signatures of the corpora and waits until it listens at socket; its
// configuration and its log are beside that. Lines of its configuration may follow. It ends with the test.
func Start(t testing.TB, socket string, more ...string) {
	t.Helper()
	database := corpora.Path(t, "av-signatures")
	const program = "/usr/sbin/clamd"
	if _, err := os.Stat(program); err != nil {
		lack.Of(t, "clamd (package clamav-daemon)")
	}
	config := fmt.Sprintf("Foreground yes\nLogFile %s.log\nDatabaseDirectory %s\nLocalSocket %s\n%s\n", socket, database, socket, strings.Join(more, "\n"))
	if err := os.WriteFile(socket+".conf", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-c", socket+".conf")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("clamd:\n%s", output.Bytes()[max(0, output.Len()-4000):])
		}
	})
	for late := time.Now().Add(time.Minute); time.Now().Before(late); time.Sleep(20 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil {
			_ = conn.Close()
			return
		}
	}
	t.Fatal("clamd does not listen")
}
