package test

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/posternmail/postern/test/rig"
)

// TestSwapUnderFire has 64 clients and one long session send throughout, while an agent is upgraded every second, a
// process of an agent is killed every second, one is stopped now and then, and the configuration is reloaded. Nobody
// may notice: no message is lost, no session dropped, nothing refused, and every verdict comes from a version that was
// live. POSTERN_FIRE sets how long it burns; `make fire` does it for ten minutes.
func TestSwapUnderFire(t *testing.T) { swapUnderFire(t, false) }

// TestSwapUnderFireAsUser is the same with a host that has given up root, whose agents are its parent's.
func TestSwapUnderFireAsUser(t *testing.T) { swapUnderFire(t, true) }

func swapUnderFire(t *testing.T, drops bool) {
	burn := 12 * time.Second
	if drops {
		burn = 6 * time.Second
	}
	if s := os.Getenv("POSTERN_FIRE"); s != "" {
		var err error
		if burn, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	mockVersion(t, "1.1.0")
	sink := rig.StartSink(t)
	f := &blaze{lives: map[string]*life{}, drops: drops}
	h := f.newHost(t, f.config(sink.Addr, 0))
	h.Start()
	f.host = h
	owner := owningPid(t, h)
	if drops {
		hasDropped(t, owner)
	}
	f.began("0.0.0")

	var burning sync.WaitGroup
	for i := range 64 {
		burning.Go(func() { f.client(fmt.Sprintf("c%d", i), 3) })
	}
	burning.Go(func() { f.client("long", 1<<30) })
	for _, chaos := range []func(*rand.Rand, int){f.upgrade, f.kill, f.stop, f.reload(sink.Addr)} {
		burning.Go(func() {
			rnd := rand.New(rand.NewSource(time.Now().UnixNano()))
			for n := 1; !f.over.Load(); n++ {
				chaos(rnd, n)
			}
		})
	}
	time.Sleep(burn)
	f.over.Store(true)
	burning.Wait()

	arrived := map[string]int{}
	for until := time.Now().Add(2 * time.Minute); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		arrived = map[string]int{}
		for _, m := range sink.Messages() {
			arrived[subjectOf(m.Content)]++
		}
		if len(f.missing(arrived)) == 0 {
			break
		}
	}
	if now := owningPid(t, h); now != owner {
		t.Errorf("the host was process %d and is %d", owner, now)
	}
	if list := queued(h); len(list) > 0 {
		t.Errorf("%d messages are still in the queue, the first: %+v", len(list), list[0])
	}
	lost, twice := f.missing(arrived), 0
	for _, n := range arrived {
		if n > 1 {
			twice++
		}
	}
	alien, verdicts := f.aliens()
	t.Logf("%s: %d sessions, %d dropped; %d messages accepted, %d arrived, %d lost, %d twice; %d refusals; %d upgrades (%d failed), "+
		"%d kills, %d stops, %d reloads (%d failed); %d verdicts of the reloaded agent, %d of versions that were not live",
		burn, f.sessions.Load(), len(f.dropped), len(f.accepted), len(arrived), len(lost), twice, len(f.refused), f.upgrades.Load(), f.failedUpgrades.Load(),
		f.kills.Load(), f.stops.Load(), f.reloads.Load(), f.failedReloads.Load(), verdicts, len(alien))
	for what, list := range map[string][]string{"lost messages": lost, "dropped sessions": f.dropped, "refusals": f.refused, "verdicts of versions that were not live": alien} {
		if len(list) > 0 {
			t.Errorf("%d %s, the first: %s", len(list), what, list[0])
			if i := strings.LastIndexByte(list[0], '['); what == "refusals" && i > 0 {
				why, _ := h.Postern("why", strings.TrimRight(list[0][i+1:], "]\\rn\" "))
				t.Errorf("%s", why)
			}
		}
	}
	if len(f.accepted) == 0 || f.upgrades.Load() == 0 || f.kills.Load() == 0 || f.reloads.Load() == 0 || verdicts == 0 {
		t.Error("the test has shown nothing")
	}
}

// blaze is what burns, and what it has done.
type blaze struct {
	host  *rig.Host
	drops bool // the host gives up root
	over  atomic.Bool

	sessions, upgrades, failedUpgrades, kills, stops, reloads, failedReloads atomic.Int64

	mu       sync.Mutex
	accepted []string // subjects
	dropped  []string
	refused  []string
	lives    map[string]*life // of versions of the agent "reloaded"
}

// life of a version.
type life struct{ from, to time.Time }

func (f *blaze) newHost(t *testing.T, hcl string) *rig.Host {
	if f.drops {
		return newDropped(t, hcl)
	}
	return rig.New(t, hcl)
}

// config has an agent that is upgraded, one that every reload gives another version, and one whose config block every
// reload changes.
func (f *blaze) config(sink string, n int) string {
	block := func(label string, priority int, arguments, text string) string {
		return mockWith(label, priority, "instances = 2\ntimeout {\nconnect = \"8s\"\ncommand = \"8s\"\nmessage = \"15s\"\nsubmitted = \"60s\"\n}\n"+arguments,
			fmt.Sprintf("events = [\"OnConnect\", \"OnRcpt\"]\n"+everywhere, text))
	}
	user := ""
	if f.drops {
		user = fmt.Sprintf("user = \"%d:%d\"", droppedUser, droppedGroup)
	}
	return fmt.Sprintf(`
host {
  name     = "edge.example"
  data_dir = "{dir}/data"
  %s
}
log {
  level = "warn"
}
ledger {
  full = true
}
receive_connector "in" {
  listen = ["{addr}"]
  limits {
    max_recipients = %d
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
  smart_hosts    = ["%s"]
}
`, user, 100+n%3, sink) + block("upgraded", 10, "", "upgraded") +
		block("reloaded", 20, fmt.Sprintf("environment = { MOCK_VERSION = \"0.0.%d\" }", n), "reloaded") +
		block("configured", 30, "", fmt.Sprintf("text %d", n))
}

func (f *blaze) note(list *[]string, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	*list = append(*list, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// client sends in sessions of so many messages each.
func (f *blaze) client(name string, messages int) {
	for n := 0; !f.over.Load(); n++ {
		f.sessions.Add(1)
		if err := f.session(fmt.Sprintf("%s-%d", name, n), messages); err != nil {
			f.note(&f.dropped, "%s, session %d: %v", name, n, err)
		}
	}
}

// session sends messages; the error says how the connection broke.
func (f *blaze) session(name string, messages int) error {
	k, err := dial(f.host.Addr)
	if err != nil {
		return err
	}
	defer k.c.Close()
	o, subject := k.greet(), name
	for i := 0; i < messages && !f.over.Load() && o.ok; i++ {
		subject = fmt.Sprintf("%s-%d", name, i)
		if o = k.content("Subject: " + subject + "\r\n\r\nhello\r\n"); o.taken {
			f.mu.Lock()
			f.accepted = append(f.accepted, subject)
			f.mu.Unlock()
		}
	}
	if o.ok {
		o = k.step("QUIT", "QUIT", "221")
	}
	if o.reply != "" {
		f.note(&f.refused, "%s: %s was answered %q", subject, o.step, o.reply)
		return fmt.Errorf("given up after a refusal")
	}
	return o.err
}

func (f *blaze) missing(arrived map[string]int) (list []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, subject := range f.accepted {
		if arrived[subject] == 0 {
			list = append(list, subject)
		}
	}
	return list
}

func subjectOf(content string) string {
	_, rest, _ := strings.Cut(content, "Subject: ")
	subject, _, _ := strings.Cut(rest, "\r\n")
	return subject
}

// upgrade brings in the next version.
func (f *blaze) upgrade(_ *rand.Rand, n int) {
	time.Sleep(time.Second)
	args := []string{"agent", "reset", "upgraded"}
	if v := n % 3; v > 0 {
		args = []string{"agent", "upgrade", "upgraded", "--command", mockPath(fmt.Sprintf("1.%d.0", v))}
	}
	if _, err := f.host.Postern(args...); err != nil {
		f.failedUpgrades.Add(1)
		return
	}
	f.upgrades.Add(1)
}

// kill ends a process of an agent; now and then any process of the host's, such as one that is being started.
func (f *blaze) kill(rnd *rand.Rand, n int) {
	time.Sleep(time.Second)
	pid := f.instance(rnd)
	if n%5 == 0 && !f.drops { // else the host itself is a child of the process that was started
		pid = randomChild(rnd, f.host.Pid())
	}
	if pid > 0 && syscall.Kill(pid, syscall.SIGKILL) == nil {
		f.kills.Add(1)
	}
}

// instance is a process of an agent, 0 when there is none.
func (f *blaze) instance(rnd *rand.Rand) int {
	var agents []agentInfo
	out, err := f.host.Postern("agent", "list", "--json")
	if err != nil || json.Unmarshal([]byte(out), &agents) != nil || len(agents) == 0 {
		return 0
	}
	instances := agents[rnd.Intn(len(agents))].Instances
	if len(instances) == 0 {
		return 0
	}
	return instances[rnd.Intn(len(instances))].PID
}

// stop has a process of an agent stand still.
func (f *blaze) stop(rnd *rand.Rand, _ int) {
	time.Sleep(time.Duration(4+rnd.Intn(4)) * time.Second)
	if pid := f.instance(rnd); pid > 0 && syscall.Kill(pid, syscall.SIGSTOP) == nil {
		f.stops.Add(1)
	}
}

// reload gives one agent another version, another one another config block, and the connector another limit.
func (f *blaze) reload(sink string) func(*rand.Rand, int) {
	return func(_ *rand.Rand, n int) {
		time.Sleep(2 * time.Second)
		f.host.Write(f.config(sink, n))
		version := fmt.Sprintf("0.0.%d", n)
		f.began(version)
		if out, err := f.host.Postern("reload"); err != nil {
			if f.failedReloads.Add(1) == 1 {
				fmt.Printf("the first reload that failed: %s", out)
			}
			f.mu.Lock()
			delete(f.lives, version)
			f.mu.Unlock()
			return
		}
		f.reloads.Add(1)
		f.ended(version)
	}
}

// began notes that a version may answer from now on.
func (f *blaze) began(version string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lives[version] = &life{from: time.Now()}
}

// ended notes that all versions but one get no more new events.
func (f *blaze) ended(version string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for v, l := range f.lives {
		if v != version && l.to.IsZero() {
			l.to = time.Now()
		}
	}
}

// grace is how long after its end a version may have answered: what it had begun, and mail begun under its plan.
const grace = 20 * time.Second

// aliens are the verdicts of the reloaded agent by versions that were not live when they judged.
func (f *blaze) aliens() (list []string, verdicts int) {
	var found struct {
		Records []struct {
			record
			Time time.Time
		}
	}
	f.host.JSON(&found, "track", "--limit", "0")
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range found.Records {
		if r.Event != "RECEIVE" {
			continue
		}
		for _, v := range r.Verdicts {
			if v.Agent != "reloaded" || v.Failure != "" {
				continue
			}
			verdicts++
			l := f.lives[v.Version]
			if l == nil || r.Time.Before(l.from) || !l.to.IsZero() && r.Time.After(l.to.Add(grace)) {
				list = append(list, fmt.Sprintf("%s at %s by %s, which lived %+v", r.Message, r.Time.Format("15:04:05.000"), v.Version, l))
			}
		}
	}
	return list, verdicts
}
