// Command hostile is an agent that attacks the host, for the test of the sandbox. At the end of data it does what the file
// "orders" in its state folder says, an attempt a line, and writes to "answers" how each ended.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agentpb"
)

func main() {
	sdk.Main(sdk.Info{Name: "hostile", Version: "1.0.0", Category: sdk.Policy, Summary: "attacks the host"}, newHostile)
}

// Config of the agent.
type Config struct{}

// Hostile has its orders in its state folder.
type Hostile struct {
	state string
	eaten [][]byte
}

func newHostile(_ Config, r *sdk.Registrar) (*Hostile, error) {
	r.OnEndOfData(sdk.Body(sdk.Whole, sdk.Current), sdk.MayChange(sdk.Verdicts))
	return &Hostile{state: r.StateDir()}, nil
}

// OnEndOfData carries the orders out.
func (h *Hostile) OnEndOfData(ctx context.Context, e *sdk.DataEvent) sdk.Verdict {
	orders, err := os.ReadFile(filepath.Join(h.state, "orders"))
	if err != nil {
		return sdk.Continue()
	}
	var answers strings.Builder
	for line := range strings.Lines(string(orders)) {
		words := strings.Fields(line)
		fmt.Fprintln(&answers, words[0], h.try(ctx, e, words))
	}
	if err := os.WriteFile(filepath.Join(h.state, "answers"), []byte(answers.String()), 0o660); err != nil {
		return sdk.Fault(err)
	}
	return sdk.Continue()
}

func (h *Hostile) try(ctx context.Context, e *sdk.DataEvent, words []string) string {
	err := h.attempt(ctx, e, words)
	if err == nil {
		return "succeeded"
	}
	return "failed: " + strings.ReplaceAll(err.Error(), "\n", " ")
}

func (h *Hostile) attempt(ctx context.Context, e *sdk.DataEvent, words []string) error {
	what, _, _ := strings.Cut(words[0], "#") // "read#users": what, and a name for the answer
	argument := append(words, "")[1]
	pid, _ := strconv.Atoi(argument)
	switch what {
	case "read":
		_, err := os.ReadFile(argument)
		return err
	case "list":
		_, err := os.ReadDir(argument)
		return err
	case "connect":
		conn, err := net.DialTimeout("tcp", argument, 5*time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err
	case "control":
		return control(ctx, argument)
	case "agent":
		return callAgent(ctx, argument)
	case "fork":
		return exec.Command("/bin/sh", "-c", "setsid sleep 1000 & exit 0").Run()
	case "kill":
		return unix.Kill(pid, unix.SIGKILL)
	case "ptrace":
		if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0, 0, 0); errno != 0 {
			return errno
		}
		return nil
	case "immortal":
		return unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0)
	case "forge":
		return forge(e)
	case "eat":
		h.eat(pid)
		return nil
	case "feast":
		return feast(argument)
	case "bomb":
		return bomb()
	case "join":
		return os.WriteFile(argument, []byte(strconv.Itoa(os.Getpid())), 0)
	case "fill":
		return h.fill(argument)
	}
	return errors.New("no such attempt")
}

// control asks the control socket for what the host does.
func control(ctx context.Context, socket string) error {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://host/v1/status", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if text, _ := io.ReadAll(response.Body); response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s", response.Status, text)
	}
	return nil
}

// callAgent asks another agent who it is, with a token of its own.
func callAgent(ctx context.Context, socket string) error {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = agentpb.NewAgentServiceClient(conn).Describe(ctx, &agentpb.DescribeRequest{})
	return err
}

// forge changes the message where the host keeps it.
func forge(e *sdk.DataEvent) error {
	file, err := e.Body().File()
	if err != nil {
		return err
	}
	defer file.Close()
	again, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer again.Close()
	_, err = again.WriteAt([]byte("forged"), 0)
	return err
}

// eat uses up so many megabytes.
func (h *Hostile) eat(megabytes int) {
	for range megabytes {
		h.eaten = append(h.eaten, bytes.Repeat([]byte("x"), 1<<20))
	}
}

// feast has three processes use up so many bytes each.
func feast(bytes string) error {
	var eating []*exec.Cmd
	for range 3 {
		cmd := exec.Command("/bin/sh", "-c", "(head -c "+bytes+" /dev/zero; sleep 5) | tail -c "+bytes+" >/dev/null")
		if err := cmd.Start(); err != nil {
			return err
		}
		eating = append(eating, cmd)
	}
	var failed []error
	for _, cmd := range eating {
		failed = append(failed, cmd.Wait())
	}
	return errors.Join(failed...)
}

// bomb starts processes as long as it can.
func bomb() error {
	return exec.Command("/bin/sh", "-c", "while :; do sleep 1000 & done").Start()
}

// fill writes so many files of a megabyte.
func (h *Hostile) fill(count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	for i := range n {
		if err := os.WriteFile(filepath.Join(h.state, "fill"+strconv.Itoa(i)), make([]byte, 1<<20), 0o660); err != nil {
			return err
		}
	}
	return nil
}
