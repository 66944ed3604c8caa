package test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/posternmail/postern/test/rig"
)

// restarting is a host that is restarted: its process changes, its address stays.
type restarting struct {
	*rig.Host
	t *testing.T
}

// restartingHost starts a host with one agent that has a say at each command, and a next hop.
func restartingHost(t *testing.T, hop string, more ...string) *restarting {
	return startRestarting(t, strings.NewReplacer("{hop}", hop, "{more}", strings.Join(more, "\n")).Replace(`
host {
  name          = "edge.example"
  data_dir      = "{dir}/data"
  restart_grace = "10m"
}
log {
  level = "info"
}
receive_connector "in" {
  listen      = ["{addr}"]
  permissions = ["anonymous"]
  limits {
    max_connections = 5000
  }
}
accepted_domain "example.org" {
  type = "internal_relay"
}
queue {
  glitch_interval = "1s"
}
send_connector "sink" {
  address_spaces = ["*"]
  smart_hosts    = ["{hop}"]
}
{more}
`))
}

func startRestarting(t *testing.T, hcl string) *restarting {
	t.Helper()
	r := &restarting{Host: rig.New(t, hcl), t: t}
	// Registered after the rig's own cleanup, and so called before it: the rig knows the first process only.
	t.Cleanup(r.endAll)
	r.Binary = filepath.Join(r.Dir, "postern") // may be replaced, as an upgrade does
	r.link(filepath.Join(rig.Bin(r.t), "postern"))
	r.Host.Start()
	return r
}

// everyPid is all processes of this host: owner and drainers, found by their configuration in the command line.
func (r *restarting) everyPid() (pids []int) {
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range commands {
		text, _ := os.ReadFile(path)
		if words := strings.Split(string(text), "\x00"); len(words) > 3 && words[1] == "serve" && words[3] == r.Config {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids
}

func (r *restarting) endAll() {
	for _, pid := range r.everyPid() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// owner is the pid of the process that owns the data directory. For a moment a new owner has the lock and has not written it.
func (r *restarting) owner() (pid int) {
	r.t.Helper()
	r.WaitFor("the number of an owner", func() bool {
		text, err := os.ReadFile(filepath.Join(r.Dir, "data", "owner.lock"))
		if err != nil {
			r.t.Fatal(err)
		}
		pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err == nil
	})
	return pid
}

// restarted is what `postern restart --json` says.
type restarted struct {
	PID       int   `json:"pid"`
	FormerPID int   `json:"former_pid"`
	Millis    int64 `json:"millis"`
	GapMillis int64 `json:"gap_millis"`
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z")
}

// tally is what clients have met with.
type tally struct {
	mu       sync.Mutex
	accepted int
	refused  []string // connections
	dropped  []string // sessions, before their QUIT
	negative []string // replies 4xx and 5xx
}

func (c *tally) count(o outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := time.Now().Format("15:04:05.000 ") + o.step + ": "
	switch {
	case o.ok:
		c.accepted++
	case o.refused:
		c.refused = append(c.refused, at+o.err.Error())
	case o.reply != "":
		c.negative = append(c.negative, at+o.reply)
	default:
		c.dropped = append(c.dropped, at+o.err.Error())
	}
}

func (c *tally) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("%d messages accepted, %d connections refused, %d sessions dropped, %d negative replies",
		c.accepted, len(c.refused), len(c.dropped), len(c.negative))
}

// mustBeClean fails the test where a client met with anything but success.
func (c *tally) mustBeClean(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for what, list := range map[string][]string{"connections refused": c.refused, "sessions dropped": c.dropped, "negative replies": c.negative} {
		if len(list) > 0 {
			t.Errorf("%d %s, the first: %s", len(list), what, list[0])
		}
	}
}

// outcome of an attempt to send a message.
type outcome struct {
	ok      bool   // 250
	sent    bool   // the final dot went out, and nobody knows what became of it
	taken   bool   // the message was accepted, whatever came then
	refused bool   // no connection
	reply   string // negative
	step    string // at which it ended
	err     error
}

// talk is one SMTP session of a client.
type talk struct {
	c net.Conn
	r *bufio.Reader
}

func dial(addr string) (*talk, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &talk{c, bufio.NewReader(c)}, nil
}

// step sends a line, unless it is empty, and reads the reply. A negative one is in the outcome.
func (k *talk) step(name, line, want string) (o outcome) {
	o.step = name
	_ = k.c.SetDeadline(time.Now().Add(90 * time.Second))
	if line != "" {
		if _, o.err = io.WriteString(k.c, line+"\r\n"); o.err != nil {
			return o
		}
	}
	for {
		got, err := k.r.ReadString('\n')
		switch {
		case err != nil:
			o.err = err
			return o
		case !strings.HasPrefix(got, want):
			o.reply = strings.TrimSpace(got)
			return o
		case got[3] == ' ':
			o.ok = true
			return o
		}
	}
}

func (k *talk) greet() outcome {
	if o := k.step("banner", "", "220"); !o.ok {
		return o
	}
	return k.step("EHLO", "EHLO fire.example", "250")
}

// message sends one, some of them large enough for a file of their own.
func (k *talk) message(id string, n int) outcome {
	size := 500
	if n%9 == 0 {
		size = 100 << 10
	}
	return k.content("From: a@fire.example\r\nMessage-ID: " + id + "\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", size/72+1))
}

// content sends it as a message.
func (k *talk) content(text string) outcome {
	for _, s := range []string{"MAIL FROM:<a@fire.example>|250", "RCPT TO:<b@example.org>|250", "DATA|354"} {
		line, want, _ := strings.Cut(s, "|")
		if o := k.step(line, line, want); !o.ok {
			return o
		}
	}
	o := k.step("final dot", text+".", "250")
	o.taken, o.sent = o.ok, !o.ok
	return o
}

// fire is clients that send until it is put out.
type fire struct {
	addr    string
	books   *books
	pause   time.Duration // of a client between two messages
	tally   tally
	long    tally // of the session that never ends
	stop    atomic.Bool
	clients sync.WaitGroup
}

// breath is a pause that lets the other tests of this machine live, too.
const breath = 250 * time.Millisecond

func lightFire(addr string, b *books, clients int, pause time.Duration) *fire {
	f := &fire{addr: addr, books: b, pause: pause}
	for i := range clients {
		f.clients.Go(func() { f.client(i) })
	}
	return f
}

func (f *fire) putOut() {
	f.stop.Store(true)
	f.clients.Wait()
}

// client sends each message in a session of its own until it is accepted.
func (f *fire) client(i int) {
	for n := 0; !f.stop.Load(); n++ {
		id := fmt.Sprintf("<%d.%d@fire.example>", i, n)
		for !f.stop.Load() {
			o := f.once(id, i+n)
			f.tally.count(o)
			if o.taken {
				f.books.promise(id)
				break
			}
			if o.sent {
				f.books.resend(id)
			}
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(f.pause)
	}
}

func (f *fire) once(id string, n int) outcome {
	k, err := dial(f.addr)
	if err != nil {
		return outcome{refused: true, step: "connecting", err: err}
	}
	defer k.c.Close()
	if o := k.greet(); !o.ok {
		return o
	}
	o := k.message(id, n)
	if o.taken {
		o = k.step("QUIT", "QUIT", "221")
		o.taken = true
	}
	return o
}

// longSession is one session that sends throughout.
func (f *fire) longSession(t *testing.T) {
	k, err := dial(f.addr)
	if err != nil {
		t.Fatal(err)
	}
	if o := k.greet(); !o.ok {
		t.Fatalf("%+v", o)
	}
	f.clients.Go(func() {
		defer k.c.Close()
		for n := 0; !f.stop.Load(); n++ {
			id := fmt.Sprintf("<long.%d@fire.example>", n)
			o := k.message(id, n)
			f.long.count(o)
			if !o.ok {
				return
			}
			f.books.promise(id)
			time.Sleep(20 * time.Millisecond)
		}
	})
}

// settled waits until everything promised has arrived.
func (r *restarting) settled(b *books) {
	r.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); b.missing() > 0 && time.Now().Before(deadline); {
		time.Sleep(100 * time.Millisecond)
	}
	if lost := b.lost(); len(lost) > 0 {
		r.t.Errorf("%d messages were promised and never arrived, the first: %s", len(lost), lost[0])
	}
	if len(b.promised) == 0 {
		r.t.Error("no message was accepted: the test has shown nothing")
	}
}

// receipts counts the lines of the ledger that say a message was accepted, by message.
func (r *restarting) receipts() map[string]int {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.Dir, "data", "ledger", "*.jsonl"))
	if err != nil {
		r.t.Fatal(err)
	}
	counts := map[string]int{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			r.t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			var rec struct{ Event, Message string }
			if err := json.Unmarshal([]byte(line), &rec); err != nil {
				r.t.Fatalf("%s: %q: %v", f, line, err)
			}
			if rec.Event == "RECEIVE" {
				counts[rec.Message]++
			}
		}
	}
	return counts
}

// counter is an agent that counts the messages it sees in a table.
var counter = mockAgent("one", 10, `
    on "OnRcpt" {
      action = "continue"
    }
    on "OnEndOfData" {
      action = "continue"
      write "seen" {
        key = "all"
        op  = "add"
      }
    }
    on "OnSubmitted" {
      action = "continue"
    }`)

// TestRestartUnderFire restarts the host under 64 clients and a long session. Some restarts fail, at each step that can
// fail: no client notices any of them. POSTERN_RESTART_ROUNDS sets the number of restarts.
func TestRestartUnderFire(t *testing.T) {
	t.Parallel()
	rounds := number(t, "POSTERN_RESTART_ROUNDS", 12)
	books := newBooks()
	r := restartingHost(t, startCrashSink(t, books), counter)
	whole, err := os.ReadFile(r.Config)
	if err != nil {
		t.Fatal(err)
	}
	program := r.swappable()
	f := lightFire(r.Addr, books, 64, breath)
	f.longSession(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	failures := []struct{ hcl, program, want string }{
		{hcl: "agent {", want: "config.hcl:"},
		{program: "#!/bin/sh\nexit 7\n", want: "exit status 7"},
		{program: "#!/bin/sh\nkill -9 $$\n", want: "killed"},
		{hcl: strings.Replace(mockAgent("two", 20, ""), "config {", "environment = { MOCK_START = \"exit\" }\n  config {", 1), want: "two"},
		{hcl: `receive_connector "second" {
  listen      = ["` + taken.Addr().String() + `"]
  permissions = ["anonymous"]
}`, want: "address already in use"},
		{hcl: `metrics {
  listen = "` + taken.Addr().String() + `"
}`, want: "address already in use"}, // opened when the new process owns everything already
	}
	restarts, failed, gap := 0, 0, int64(0)
	for round := range rounds {
		time.Sleep(300 * time.Millisecond)
		before := r.owner()
		if round%2 == 1 {
			bad := failures[failed%len(failures)]
			failed++
			r.mustWrite(r.Config, string(whole)+bad.hcl, 0o600)
			if bad.program != "" {
				r.replaceProgram(bad.program)
			}
			out, err := r.Postern("restart", "--socket", filepath.Join(r.Dir, "data", "control.sock"))
			if err == nil || !strings.Contains(out, bad.want) {
				t.Errorf("restart with %q %q: %v, %s", bad.hcl, bad.program, err, out)
			}
			r.mustWrite(r.Config, string(whole), 0o600)
			program()
			if r.owner() != before {
				t.Errorf("the owner is another process after a restart that failed: %s", out)
			}
			continue
		}
		var done restarted
		r.JSON(&done, "restart")
		restarts++
		gap = max(gap, done.GapMillis)
		if done.FormerPID != before || r.owner() != done.PID {
			t.Errorf("%+v, but the owner was %d and is %d", done, before, r.owner())
		}
	}
	f.putOut()
	r.settled(books)
	f.tally.mustBeClean(t)
	f.long.mustBeClean(t)
	if odd := books.unexplained(); len(odd) > 0 {
		t.Errorf("%d messages arrived twice, the first: %s", len(odd), odd[0])
	}
	r.reconcile(len(books.promised))
	t.Logf("%d restarts, at most %d ms without an owner, %d that failed; 64 clients: %s; the long session: %s; %s",
		restarts, gap, failed, &f.tally, &f.long, books.summary())
}

// reconcile wants each message to have one line in the ledger and to have been counted once in the table.
func (r *restarting) reconcile(messages int) {
	r.t.Helper()
	r.WaitFor("the drainers to end", func() bool { return len(r.everyPid()) == 1 })
	r.MustPostern("status") // the ledger is written before it answers
	var row struct{ Value string }
	var twice []string
	r.WaitFor("the lines of all messages", func() bool {
		counts := r.receipts()
		twice = twice[:0]
		for message, n := range counts {
			if n > 1 {
				twice = append(twice, message)
			}
		}
		return len(counts) >= messages
	})
	if n := len(r.receipts()); n != messages || len(twice) > 0 {
		r.t.Errorf("%d messages were accepted, the ledger has %d, %d of them more than once", messages, n, len(twice))
	}
	r.JSON(&row, "table", "get", "one/seen", "all")
	if want := fmt.Sprintf(`{"n":%d}`, messages); row.Value != want {
		r.t.Errorf("the agents counted %s messages, %d were accepted", row.Value, messages)
	}
}

func (r *restarting) mustWrite(path, text string, mode os.FileMode) {
	r.t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		r.t.Fatal(err)
	}
}

// swappable is where the host's program would be replaced; what it returns puts the real one there.
func (r *restarting) swappable() (restore func()) {
	return func() { r.link(filepath.Join(rig.Bin(r.t), "postern")) }
}

// link has the host's program lead to path, in one step.
func (r *restarting) link(path string) {
	r.t.Helper()
	_ = os.Remove(r.Binary + ".new")
	if err := errors.Join(os.Symlink(path, r.Binary+".new"), os.Rename(r.Binary+".new", r.Binary)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *restarting) replaceProgram(text string) {
	r.t.Helper()
	path := filepath.Join(r.Dir, "broken")
	r.mustWrite(path, text, 0o700)
	r.link(path)
}

// TestRestartAndKill kills owners, drainers and new processes with SIGKILL among restarts: nothing that was promised is
// lost.
func TestRestartAndKill(t *testing.T) {
	t.Parallel()
	rounds := number(t, "POSTERN_RESTART_ROUNDS", 9)
	books := newBooks()
	r := restartingHost(t, startCrashSink(t, books), counter)
	program := r.swappable()
	f := lightFire(r.Addr, books, 16, breath)
	killed := map[string]int{}
	rnd := rand.New(rand.NewSource(time.Now().UnixNano()))
	for round := range rounds {
		time.Sleep(time.Duration(100+rnd.Intn(300)) * time.Millisecond)
		switch round % 3 {
		case 0: // the drainer, which a session keeps alive
			k, err := dial(r.Addr)
			if err != nil {
				t.Fatal(err)
			}
			if o := k.greet(); !o.ok {
				t.Fatalf("%+v", o)
			}
			var done restarted
			r.JSON(&done, "restart")
			time.Sleep(time.Duration(rnd.Intn(100)) * time.Millisecond)
			if syscall.Kill(done.FormerPID, syscall.SIGKILL) == nil {
				killed["drainers"]++
			}
			_ = k.c.Close()
		case 1: // the owner, beside a drainer
			k, err := dial(r.Addr)
			if err != nil {
				t.Fatal(err)
			}
			if o := k.greet(); !o.ok {
				t.Fatalf("%+v", o)
			}
			r.MustPostern("restart")
			pid := r.owner()
			_ = syscall.Kill(pid, syscall.SIGKILL)
			r.WaitFor("the end of the owner", func() bool { return !alive(pid) })
			id := fmt.Sprintf("<orphan.%d@fire.example>", round)
			if o := k.message(id, 9*round); !o.ok {
				t.Errorf("the drainer without an owner: %+v", o)
			}
			books.promise(id)
			r.Host.Start()
			_ = k.c.Close()
			killed["owners"]++
		case 2: // the new process, at any moment
			r.replaceProgram(fmt.Sprintf("#!/bin/sh\n%s \"$@\" &\nsleep 0.%03d\nkill -9 $!\nexit 9\n", filepath.Join(rig.Bin(t), "postern"), rnd.Intn(900)))
			if out, err := r.Postern("restart"); err != nil {
				killed["new processes before they were the owner"]++
			} else {
				killed["new processes after that"]++
				t.Log(strings.TrimSpace(out))
				r.WaitFor("the end of the owner", func() bool { return len(r.everyPid()) == 0 || !r.accepts() })
				program()
				r.WaitFor("the data directory", func() bool { return !r.owned() })
				r.Host.Start()
			}
			program()
		}
	}
	f.putOut()
	r.settled(books)
	t.Logf("%v killed; %s; %s", killed, &f.tally, books.summary())
}

// accepts reports whether anybody takes connections.
func (r *restarting) accepts() bool {
	c, err := net.Dial("tcp", r.Addr)
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}

// owned reports whether a process owns the data directory.
func (r *restarting) owned() bool {
	f, err := os.Open(filepath.Join(r.Dir, "data", "owner.lock"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil
}

// TestDrainer is a session that began before a restart: its message, its rows and its story are whole, and it is told
// to come back when its time is over.
func TestDrainer(t *testing.T) {
	t.Parallel()
	sink := rig.StartSink(t)
	r := restartingHost(t, sink.Addr, counter)
	r.Write(strings.Replace(r.configText(), `restart_grace = "10m"`, `restart_grace = "8s"`, 1))
	var done restarted
	r.JSON(&done, "restart") // so that the next one has 8 s
	c, idle := r.Greeted(), r.Greeted()
	c.Do("MAIL FROM:<a@sender.example>", "250")
	former := r.owner()
	r.JSON(&done, "restart")
	if done.FormerPID != former || !alive(former) {
		t.Errorf("%+v; the process before was %d", done, former)
	}
	c.Do("RCPT TO:<b@example.org>", "250")
	reply := c.Data("From: a@sender.example\r\nSubject: on the way\r\n\r\ntext\r\n")
	id := reply[strings.LastIndexByte(reply, '[')+1 : strings.LastIndexByte(reply, ']')]
	r.WaitFor("the message", func() bool { return len(sink.Messages()) == 1 })

	r.WaitFor("the line of the ledger", func() bool { return r.receipts()[id] > 0 })
	story := r.MustPostern("why", id)
	for _, want := range []string{"client.example", "a@sender.example", sink.Addr} { // from its beginning to its end
		if !strings.Contains(story, want) {
			t.Errorf("the story has no %s:\n%s", want, story)
		}
	}
	var row struct{ Value string }
	r.JSON(&row, "table", "get", "one/seen", "all")
	if row.Value != `{"n":1}` {
		t.Errorf("the row is %s", row.Value)
	}
	fresh := r.Greeted()
	fresh.Do("QUIT", "221")
	idle.Want("421 4.3.2") // its time is over
	idle.WantClosed()
	c.Want("421 4.3.2")
	if n := r.receipts()[id]; n != 1 {
		t.Errorf("the ledger has the receipt %d times", n)
	}
	r.WaitFor("the end of the drainer", func() bool { return !alive(former) })
	r.WaitFor("the end of its folder", func() bool {
		left, _ := filepath.Glob(filepath.Join(r.Dir, "data", "incoming", "*"))
		return len(left) == 0
	})
}

func (r *restarting) configText() string {
	text, err := os.ReadFile(r.Config)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(text)
}

// TestTwoDrainers: restarts in quick succession leave several processes with sessions. All of them are served, and end
// with the host.
func TestTwoDrainers(t *testing.T) {
	t.Parallel()
	sink := rig.StartSink(t)
	r := restartingHost(t, sink.Addr, counter)
	var clients []*rig.Client
	for range 3 {
		clients = append(clients, r.Greeted())
		r.MustPostern("restart")
	}
	if n := len(r.everyPid()); n != 4 {
		t.Errorf("%d processes", n)
	}
	for i, c := range clients {
		c.Message("a@sender.example", "b@example.org", fmt.Sprintf("Subject: %d\r\n\r\ntext\r\n", i))
	}
	r.WaitFor("the messages", func() bool { return len(sink.Messages()) == 3 })
	if err := syscall.Kill(r.owner(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		c.Want("421 4.3.2")
	}
	r.WaitFor("the end of all processes", func() bool { return len(r.everyPid()) == 0 })
}

// TestOrphanedDrainer: what a drainer accepts while there is no owner is delivered by the next one.
func TestOrphanedDrainer(t *testing.T) {
	t.Parallel()
	sink := rig.StartSink(t)
	r := restartingHost(t, sink.Addr, counter)
	c := r.Greeted()
	r.MustPostern("restart")
	owner := r.owner()
	if err := syscall.Kill(owner, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.WaitFor("the end of the owner", func() bool { return !alive(owner) })
	reply := c.Message("a@sender.example", "b@example.org", "Subject: orphan\r\n\r\ntext\r\n")
	if !strings.HasPrefix(reply, "250") {
		t.Fatalf("got %q", reply)
	}
	folders, err := filepath.Glob(filepath.Join(r.Dir, "data", "incoming", "*"))
	if err != nil || len(folders) != 1 {
		t.Fatal(folders, err)
	}
	r.mustWrite(filepath.Join(folders[0], "0000000000099999.mail"), "no message at all", 0o600)
	for _, pid := range r.everyPid() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	r.WaitFor("the end of all processes", func() bool { return len(r.everyPid()) == 0 })
	r.Host.Start()
	r.WaitFor("the message", func() bool { return len(sink.Messages()) == 1 })
	if out := r.MustPostern("status"); !strings.Contains(out, "1 unreadable files of a former host") {
		t.Errorf("status does not tell of the file that cannot be read:\n%s", out)
	}
	var row struct{ Value string }
	r.JSON(&row, "table", "get", "one/seen", "all")
	if row.Value != `{"n":1}` {
		t.Errorf("the row is %s", row.Value)
	}
}

// TestDrainCommand: a host out of service refuses connections and goes on with what it has; a restart ends that.
func TestDrainCommand(t *testing.T) {
	sink := rig.StartSink(t)
	r := restartingHost(t, sink.Addr)
	c := r.Greeted()
	if out := r.MustPostern("drain"); !strings.Contains(out, "1 session open") {
		t.Errorf("drain says %q", out)
	}
	r.WaitFor("the closing of the listener", func() bool { return !r.accepts() })
	if out := r.MustPostern("status"); !strings.Contains(out, "no connections are taken") {
		t.Errorf("status says\n%s", out)
	}
	c.Message("a@sender.example", "b@example.org", "Subject: still\r\n\r\ntext\r\n")
	r.WaitFor("the message", func() bool { return len(sink.Messages()) == 1 })
	r.MustPostern("restart")
	r.Greeted().Do("QUIT", "221")
}

// TestRestartExclusive: an agent that owns what only one process can have never works in two. Clients that come
// meanwhile wait, sessions end with 421 between two messages, and when the restart fails the agent is there again.
func TestRestartExclusive(t *testing.T) {
	t.Parallel()
	sink := rig.StartSink(t)
	porter := strings.NewReplacer("config {", "environment = { MOCK_EXCLUSIVE = \"port\" }\n  config {\n    record = \"events\"").Replace(counter)
	r := restartingHost(t, sink.Addr, porter)
	books := newBooks()
	f := lightFire(r.Addr, books, 8, breath)
	idle := r.Greeted()
	whole := r.configText()
	restart := func(hcl string, succeeds bool) {
		t.Helper()
		r.mustWrite(r.Config, whole+hcl, 0o600)
		if out, err := r.Postern("restart"); (err == nil) != succeeds {
			t.Errorf("%v, %s", err, out)
		}
	}
	restart(mockAgent("two", 20, `invalid = "no"`), false)
	idle.Do("NOOP", "250") // what fails before the agent must go touches nobody
	restart(strings.Replace(mockAgent("two", 20, "never_ready = true"), "{\n", "{\n  start_timeout = \"2s\"\n", 1), false)
	idle.Want("421 4.3.2") // the agent had gone by then
	idle = r.Greeted()
	restart("", true)
	idle.Want("421 4.3.2")
	r.Greeted().Message("a@sender.example", "b@example.org", "Subject: last\r\n\r\ntext\r\n")
	f.putOut()

	if took := r.workers(filepath.Join(r.Dir, "data", "agents", "one", "events")); len(took) != 3 { // the first, the one after the failure, the new one
		t.Errorf("the processes of the agent took turns like this: %v", took)
	}
	if len(f.tally.refused) > 0 {
		t.Errorf("a connection was refused: %s", f.tally.refused[0])
	}
	for _, n := range f.tally.negative {
		if !strings.Contains(n, "421 4.3.2") {
			t.Errorf("a client met with %s", n)
		}
	}
	if len(books.promised) == 0 {
		t.Error("no message was accepted")
	}
	t.Log(&f.tally)
}

// workers are the processes that have written to a record of the mock agent, a new entry each time another one writes.
func (r *restarting) workers(record string) (turns []string) {
	r.t.Helper()
	text, err := os.ReadFile(record)
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		before, _, _ := strings.Cut(line, "{")
		words := strings.Fields(before)
		if pid := words[len(words)-1]; len(turns) == 0 || turns[len(turns)-1] != pid {
			turns = append(turns, pid)
		}
	}
	return turns
}

// TestSecondHost: the data directory of a running host is refused, with its pid.
func TestSecondHost(t *testing.T) {
	r := restartingHost(t, "127.0.0.1:1")
	out, err := exec.Command(r.Binary, "serve", "--config", r.Config).CombinedOutput()
	if err == nil || !strings.Contains(string(out), fmt.Sprintf("pid %d", r.owner())) {
		t.Errorf("got %v, %s", err, out)
	}
	if err := syscall.Kill(r.owner(), syscall.SIGUSR2); err != nil { // the other way to order a restart
		t.Fatal(err)
	}
	before := r.owner()
	r.WaitFor("another owner", func() bool { return r.owner() != before })
}

// TestServiceManager: the service manager hears which process is the service, first and after a restart, and that it ends.
func TestServiceManager(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "p")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	hears := func(want string) {
		t.Helper()
		_ = manager.SetReadDeadline(time.Now().Add(30 * time.Second))
		b := make([]byte, 1000)
		n, err := manager.Read(b)
		if err != nil || string(b[:n]) != want {
			t.Errorf("the service manager hears %q, %v, not %q", b[:n], err, want)
		}
	}
	r := restartingHost(t, "127.0.0.1:1")
	hears(fmt.Sprintf("MAINPID=%d\nREADY=1", r.owner()))
	r.MustPostern("restart")
	hears(fmt.Sprintf("MAINPID=%d\nREADY=1", r.owner()))
	if err := syscall.Kill(r.owner(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	hears("STOPPING=1")
}
