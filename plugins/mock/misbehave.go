package main

import (
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agentpb"
)

// leak of memory: what the test of a leaking agent needs.
type leak struct {
	mu     sync.Mutex
	blocks [][]byte
}

// leakBytes at each event.
const leakBytes = 8 << 20

// misbehave does harm, while its times last. done: there is nothing to answer but v.
func (m *Mock) misbehave(rule *Rule, e sdk.Subject) (v sdk.Verdict, done bool) {
	if rule.Misbehave == "" || rule.Times > 0 && !m.firstTimes(rule, e.Common()) {
		return v, false
	}
	switch rule.Misbehave {
	case "kill":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Minute) // the signal is on its way
	case "exit":
		os.Exit(7)
	case "hang":
		syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		time.Sleep(time.Minute) // the signal is on its way
	case "panic":
		panic("mock panics")
	case "crash":
		go panic("mock dies with a last word") // where nobody recovers it
		select {}
	case "never":
		select {}
	case "late":
		if deadline, ok := deadline(e); ok {
			time.Sleep(time.Until(deadline) + time.Second) // by then a busy host has noticed, too
		}
	case "nonsense":
		writeNonsense()
	case "flood_stdout":
		flood(os.Stdout)
	case "flood_stderr":
		flood(os.Stderr)
	case "leak":
		m.leak.grow()
	default:
		return m.breach(rule)
	}
	return v, false
}

func deadline(e sdk.Subject) (time.Time, bool) {
	timeout := e.Common().Proto().GetTimeoutMicros()
	return time.Now().Add(time.Duration(timeout) * time.Microsecond), timeout > 0
}

func (l *leak) grow() {
	block := make([]byte, leakBytes)
	for i := 0; i < len(block); i += 4096 {
		block[i] = 1 // touched, or it costs nothing
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.blocks = append(l.blocks, block)
}

// flood writes 16 MiB, long lines and control characters included.
func flood(f *os.File) {
	line := []byte(strings.Repeat("mock floods \x1b[31m", 8192) + "\n")
	for range 128 {
		f.Write(line)
	}
}

// writeNonsense writes octets that are no HTTP/2 into every stream socket of the process.
func writeNonsense() {
	for fd := 3; fd < 256; fd++ {
		kind, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE)
		if err != nil || kind != syscall.SOCK_STREAM {
			continue
		}
		if _, err := syscall.Getpeername(fd); err == nil {
			syscall.Write(fd, []byte("\xff\xff\xff\xffthis is no frame\x00"))
		}
	}
}

// breach answers against the rules of the protocol.
func (m *Mock) breach(rule *Rule) (v sdk.Verdict, done bool) {
	good := &agentpb.Verdict{Kind: agentpb.VerdictKind_VERDICT_KIND_CONTINUE}
	answer := &agentpb.Answer{Verdicts: []*agentpb.Verdict{good}}
	switch rule.Misbehave {
	case "unknown_verdict":
		good.Kind = 99
	case "unknown_edit":
		answer.Edits = []*agentpb.Edit{{}}
	case "no_verdict":
		answer.Verdicts = nil
	case "bad_header":
		answer.Edits = []*agentpb.Edit{addHeader("X-Mock", "a\r\nBcc: victim@example.net")}
	case "bad_digest":
		answer.Edits = []*agentpb.Edit{{Edit: &agentpb.Edit_Body{Body: &agentpb.BodyEdit{
			Segments: []*agentpb.Segment{{Source: &agentpb.Segment_Data{Data: []byte("other\r\n")}}},
			Size:     7, Sha256: make([]byte, 32),
		}}}}
	case "bad_code":
		good.Kind = agentpb.VerdictKind_VERDICT_KIND_REJECT
		good.Reply = &agentpb.Reply{Code: 550, Enhanced: "4.7.1", Text: "mock"}
	case "forbidden_edit":
		answer.Edits = []*agentpb.Edit{addHeader("X-Mock", "forbidden")}
	case "twice":
		return sdk.Answer(answer, &agentpb.Answer{Verdicts: []*agentpb.Verdict{{
			Kind: agentpb.VerdictKind_VERDICT_KIND_REJECT, Reply: &agentpb.Reply{Code: 554, Enhanced: "5.0.0", Text: "second answer"},
		}}}), true
	default:
		return v, false
	}
	return sdk.Answer(answer), true
}

func addHeader(name, value string) *agentpb.Edit {
	return &agentpb.Edit{Edit: &agentpb.Edit_AddHeader{AddHeader: &agentpb.AddHeader{Name: []byte(name), Value: []byte(value)}}}
}
