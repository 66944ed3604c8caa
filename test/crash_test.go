package test

import (
	"bufio"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/posternmail/postern/test/rig"
)

// TestCrash kills the host and its agents with SIGKILL at random moments under load, and reconciles what the
// senders were promised (250) with what arrived. Nothing may be lost; a second copy may arrive only where a
// delivery was in doubt. POSTERN_CRASH_ROUNDS sets the number of kills; `make crash` does 1,000.
func TestCrash(t *testing.T) {
	t.Parallel()
	rounds := number(t, "POSTERN_CRASH_ROUNDS", 12)
	books := newBooks()
	sink := startCrashSink(t, books)
	h := rig.Start(t, fmt.Sprintf(`
host {
  name     = "edge.example"
  data_dir = "{dir}/data"
}
log {
  level = "warn"
}
receive_connector "in" {
  listen      = ["{addr}"]
  permissions = ["anonymous"]
}
accepted_domain "example.org" {
  type = "internal_relay"
}
queue {
  glitch_interval = "1s"
}
send_connector "sink" {
  address_spaces = ["*"]
  smart_hosts    = ["%s"]
}
agent "one" {
  plugin     = "mock"
  priority   = 10
  config {
    on "OnRcpt" {
      action = "continue"
    }
    on "OnEndOfData" {
      action = "continue"
    }
    on "OnSubmitted" {
      action = "continue"
    }
  }
}
`, sink))
	f := lightFire(h.Addr, books, 8, 0)
	rnd := rand.New(rand.NewSource(time.Now().UnixNano()))
	hostKills, agentKills := 0, 0
	for round := range rounds {
		time.Sleep(time.Duration(50+rnd.Intn(400)) * time.Millisecond)
		if pid := randomChild(rnd, h.Pid()); round%3 == 2 && pid > 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			agentKills++
			continue
		}
		h.Kill()
		books.nextLife(t, sink)
		h.Start()
		hostKills++
		if rounds > 100 && round%50 == 49 {
			fmt.Printf("%d of %d rounds: %s\n", round+1, rounds, books.summary())
		}
	}
	f.putOut()
	deadline := time.Now().Add(60 * time.Second)
	for books.missing() > 0 && time.Now().Before(deadline) {
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("%d kills of the host, %d of agents: %s", hostKills, agentKills, books.summary())
	if lost := books.lost(); len(lost) > 0 {
		t.Errorf("%d messages were promised and never arrived, the first: %s", len(lost), lost[0])
	}
	if odd := books.unexplained(); len(odd) > 0 {
		t.Errorf("%d messages arrived twice without a doubt, the first: %s", len(odd), odd[0])
	}
	if len(books.promised) == 0 {
		t.Error("no message was accepted: the test has shown nothing")
	}
}

// number that a variable of the environment sets.
func number(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// books are what the senders were promised and what arrived.
type books struct {
	mu       sync.Mutex
	promised map[string]bool
	resent   map[string]bool  // the sender did not read the reply and sent the message again
	arrived  map[string][]int // in which life of the host
	life     int              // kills of the host so far
	sessions int              // open at the next hop
}

func newBooks() *books {
	return &books{promised: map[string]bool{}, resent: map[string]bool{}, arrived: map[string][]int{}}
}

// nextLife waits until the next hop has read all that the dead host had sent, so that what arrives from then on is
// the next life's. The connections it had made are accepted before ours.
func (b *books) nextLife(t *testing.T, sink string) {
	c, err := net.Dial("tcp", sink)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "QUIT\r\n")
	_, _ = io.Copy(io.Discard, c)
	_ = c.Close()
	for range 1000 {
		b.mu.Lock()
		if b.sessions == 0 {
			b.life++
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("sessions of a dead host are still open at the next hop")
}

func (b *books) session(n int) { b.mu.Lock(); defer b.mu.Unlock(); b.sessions += n }

func (b *books) promise(id string) { b.mu.Lock(); defer b.mu.Unlock(); b.promised[id] = true }
func (b *books) resend(id string)  { b.mu.Lock(); defer b.mu.Unlock(); b.resent[id] = true }

func (b *books) arrive(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.arrived[id] = append(b.arrived[id], b.life)
}

func (b *books) lost() (out []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.promised {
		if len(b.arrived[id]) == 0 {
			out = append(out, id)
		}
	}
	return out
}

func (b *books) missing() int { return len(b.lost()) }

// unexplained lists the messages that arrived again although the sender sent them once and the host did not die
// between the two arrivals: only its death can come between the next hop's 250 and the record of it.
func (b *books) unexplained() (out []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, lives := range b.arrived {
		for i := 1; i < len(lives); i++ {
			if !b.resent[id] && lives[i-1] == lives[i] {
				out = append(out, fmt.Sprintf("%s in the lives %v", id, lives))
				break
			}
		}
	}
	return out
}

func (b *books) summary() string {
	lost := b.missing()
	b.mu.Lock()
	defer b.mu.Unlock()
	twice, resent := 0, 0
	for id, lives := range b.arrived {
		if len(lives) > 1 && b.resent[id] {
			resent++
		} else if len(lives) > 1 {
			twice++
		}
	}
	return fmt.Sprintf("%d promised, %d not arrived, %d twice because a delivery was in doubt, %d twice because their sender never read the reply",
		len(b.promised), lost, twice, resent)
}

// startCrashSink is a next hop that notes the Message-ID of everything it takes.
func startCrashSink(t *testing.T, b *books) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b.session(1)
			go func() {
				defer b.session(-1)
				crashSinkSession(c, b)
			}()
		}
	}()
	return l.Addr().String()
}

func crashSinkSession(c net.Conn, b *books) {
	defer c.Close()
	r := bufio.NewReaderSize(c, 64<<10)
	fmt.Fprint(c, "220 sink\r\n")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch {
		case strings.HasPrefix(line, "DATA"):
			fmt.Fprint(c, "354 go\r\n")
			id := ""
			for line != ".\r\n" {
				if line, err = r.ReadString('\n'); err != nil {
					return // cut off: not taken
				}
				if v, ok := strings.CutPrefix(line, "Message-ID: "); ok {
					id = strings.TrimSpace(v)
				}
			}
			b.arrive(id)
			fmt.Fprint(c, "250 taken\r\n")
		case strings.HasPrefix(line, "QUIT"):
			fmt.Fprint(c, "221 bye\r\n")
			return
		default:
			fmt.Fprint(c, "250 ok\r\n")
		}
	}
}

// randomChild picks a child process of pid; 0 when there is none.
func randomChild(rnd *rand.Rand, pid int) int {
	var children []int
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range tasks {
		text, _ := os.ReadFile(path)
		for _, word := range strings.Fields(string(text)) {
			if n, err := strconv.Atoi(word); err == nil {
				children = append(children, n)
			}
		}
	}
	if len(children) == 0 {
		return 0
	}
	return children[rnd.Intn(len(children))]
}
