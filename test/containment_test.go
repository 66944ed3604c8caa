package test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/posternmail/postern/test/rig"
)

// traced is plain, with the agents that were skipped named in each message.
var traced = strings.Replace(plain, "host {", "host {\n  skipped_header = true", 1)

// unavailable is what a client reads when an agent could not answer. What the matter was stands in the ledger only.
const unavailable = "451 4.3.2 Service temporarily unavailable, please try again later [ID]"

// way is one way for an agent to misbehave, once, at the first message for NAME@example.org. The second try of the same
// client in the same connection is accepted.
type way struct {
	name      string // of the agent
	item      string // of what operators of other servers suffer from
	event     string
	arguments string   // of the agent block
	rule      string   // of the on block
	reply     string   // to the first try, with the id as ID
	steps     []string // in the ledger of the first try: verdict, and a part of the failure
	restarts  int
	breaches  int
	dead      int // dead letters
}

const (
	accept    = "250 2.6.0 [ID] Queued mail for delivery"
	shortTime = "timeout = \"400ms\"\n"
	longTime  = "timeout = \"30s\"\n"
)

func atCommands() []way {
	const event = "OnRcpt"
	return []way{
		{name: "exits", item: "item 1: a filter exits and the whole server stops", event: event, arguments: longTime, rule: `misbehave = "exit"`,
			reply: accept, steps: []string{"failed died: exit status 7", "continue"}, restarts: 1},
		{name: "killed", item: "item 1: a filter is killed", event: event, arguments: longTime, rule: `misbehave = "kill"`,
			reply: accept, steps: []string{"failed died: signal: killed", "continue"}, restarts: 1},
		{name: "hangs", item: "item 3: the process is alive and answers nothing", event: event, arguments: longTime, rule: `misbehave = "hang"`,
			reply: accept, steps: []string{"failed hung: neither a ping nor an event was answered for ", "continue"}, restarts: 1},
		{name: "panics", item: "item 5: an exception passes the message", event: event, arguments: longTime, rule: `misbehave = "panic"`,
			reply: unavailable, steps: []string{"failed fault: ", "defer fault: "}},
		{name: "never", item: "item 14: a timeout without an owner", event: event, arguments: shortTime, rule: `misbehave = "never"`,
			reply: unavailable, steps: []string{"failed late: no answer within 400ms", "defer late: no answer within 400ms"}},
		{name: "late", item: "an answer comes late", event: event, arguments: shortTime, rule: `misbehave = "late"`,
			reply: unavailable, steps: []string{"failed late: no answer within 400ms", "defer late: no answer within 400ms"}, dead: 1},
		{name: "twice", item: "two answers to one event", event: event, arguments: longTime, rule: `misbehave = "twice"`,
			reply: accept, steps: []string{"continue"}, dead: 1},
		{name: "nonsense", item: "octets that are no protocol", event: event, arguments: longTime, rule: `misbehave = "nonsense"`,
			reply: accept, steps: []string{"failed died: ", "continue"}, restarts: 1},
		{name: "flood-out", item: "item 37: what an agent prints ends the server", event: event, arguments: longTime, rule: `misbehave = "flood_stdout"`,
			reply: accept, steps: []string{"continue"}},
		{name: "flood-err", item: "what an agent logs fills the memory and the disk", event: event, arguments: longTime, rule: `misbehave = "flood_stderr"`,
			reply: accept, steps: []string{"continue"}},
		{name: "busy-engine", item: "item 29: a dependency that is away becomes a refusal", event: event, arguments: longTime, rule: `action = "undetermined"`,
			reply: unavailable, steps: []string{"undetermined", "defer undetermined"}},
		{name: "rejects", item: "on_failure reject", event: event, arguments: shortTime + "on_failure = \"reject\"\n", rule: `misbehave = "never"`,
			reply: "550 5.7.1 Recipient refused [ID]", steps: []string{"failed late: ", "reject late: "}},
	}
}

func atTheEnd() []way {
	const event = "OnEndOfData"
	breach := func(name, item, arguments, misbehave, what string) way {
		return way{name: name, item: item, event: event, arguments: longTime + arguments, rule: fmt.Sprintf("misbehave = %q", misbehave),
			reply: unavailable, steps: []string{"defer breach: " + what}, breaches: 1}
	}
	return []way{
		breach("no-verdict", "item 45: nothing said is accepted", "", "no_verdict", ""),
		breach("unknown-verdict", "a verdict of the future", "", "unknown_verdict", ""),
		breach("unknown-edit", "an edit of the future", "", "unknown_edit", ""),
		breach("bad-header", "an edit that forges a header", "", "bad_header", ""),
		breach("bad-digest", "item 6: an empty or cut body is accepted", "", "bad_digest", ""),
		breach("bad-code", "item 49: a code that disagrees with itself", "", "bad_code", ""),
		breach("forbidden", "an edit that was not granted", "grants = [\"reject\"]\n", "forbidden_edit", ""),
		{name: "exits", item: "item 4: the filter dies at the end of the message, which passes unseen", event: event, arguments: longTime, rule: `misbehave = "exit"`,
			reply: accept, steps: []string{"failed died: exit status 7", "continue"}, restarts: 1},
		{name: "two", item: "item 1: two instances, one dies", event: event, arguments: longTime + "instances = 2\n", rule: `misbehave = "kill"`,
			reply: accept, steps: []string{"failed died: signal: killed", "continue"}, restarts: 1},
	}
}

// TestContainment has agents misbehave in every way. It touches nothing but the event: the connection lives, the client
// reads nothing of it, the ledger has it, the agent is there again, and its neighbours have noticed nothing.
func TestContainment(t *testing.T) {
	for place, ways := range map[string][]way{"commands": atCommands(), "the end": atTheEnd()} {
		t.Run(place, func(t *testing.T) {
			var agents strings.Builder
			for i, w := range ways {
				agents.WriteString(mockWith(w.name, 10+i, "start_timeout = \"60s\"\n"+w.arguments, fmt.Sprintf(
					"on %q {\nrecipient = \"^%s@\"\n%s\ntimes = 1\n}\non %q {\n}\n", w.event, w.name, w.rule, w.event)))
			}
			h := rig.Start(t, traced+agents.String())
			c := h.Greeted()
			before := states(h)
			for _, w := range ways {
				t.Run(w.name+": "+w.item, func(t *testing.T) { w.run(t, h, c, before) })
				before = states(h)
			}
		})
	}
}

// agentState is what `postern agent list` shows of an agent.
type agentState struct {
	Name, State string
	Ready       bool
	Restarts    int
	Breaches    int
	Dead        int `json:"dead_letters"`
	Queued      int
	Leaked      int
	Failures    map[string]int
	Instances   []instance
	Breakers    []struct{ Event, Last string }
}

// instance is one process of an agent.
type instance struct {
	PID      int
	State    string
	InFlight int    `json:"in_flight"`
	LastExit string `json:"last_exit"`
	Stderr   []string
}

func states(h *rig.Host) map[string]agentState {
	var list []agentState
	h.JSON(&list, "agent", "list")
	found := map[string]agentState{}
	for _, a := range list {
		found[a.Name] = a
	}
	return found
}

func (w way) run(t *testing.T, h *rig.Host, c *rig.Client, before map[string]agentState) {
	began := time.Now()
	reply := try(c, w.name+"@example.org")
	id := idOf(t, reply)
	if got := strings.Replace(reply, id, "ID", 1); got != w.reply {
		t.Errorf("the client reads %q, want %q", got, w.reply)
	}
	w.checkLedger(t, h, id)
	h.WaitFor("the agent to be back", func() bool {
		a := states(h)[w.name]
		return a.Ready && a.Restarts == before[w.name].Restarts+w.restarts && a.Breaches == before[w.name].Breaches+w.breaches &&
			a.Dead == before[w.name].Dead+w.dead
	})
	t.Logf("back after %s, the event included", time.Since(began).Round(10*time.Millisecond))
	if again := try(c, w.name+"@example.org"); !strings.HasPrefix(again, "250 2.6.0 ") {
		t.Errorf("the second try is answered %q", again)
	}
	for name, now := range states(h) {
		if name != w.name && now.Restarts != before[name].Restarts {
			t.Errorf("agent %s was started anew beside it", name)
		}
		if now.Leaked != 0 {
			t.Errorf("agent %s: %d places leaked", name, now.Leaked)
		}
	}
}

// try sends a message as far as it goes and answers with the last reply.
func try(c *rig.Client, rcpt string) string {
	c.Do("RSET", "250")
	c.Do("MAIL FROM:<a@sender.example>", "250")
	c.Send("RCPT TO:<%s>", rcpt)
	if reply := c.Reply(); !strings.HasPrefix(reply, "250") {
		return reply
	}
	return c.Data(helloMessage)
}

// checkLedger wants the steps of the agent in the record of the message or its refusal.
func (w way) checkLedger(t *testing.T, h *rig.Host, id string) {
	t.Helper()
	event := "RECEIVE"
	if w.reply != accept {
		event = "REJECT"
	}
	steps := waitRecord(h, id, event).steps(w.name, w.event)
	var got []string
	for _, s := range steps {
		got = append(got, strings.TrimSpace(s.Verdict+" "+s.Failure))
	}
	matches := slices.EqualFunc(got, w.steps, func(g, want string) bool {
		verdict, failure, _ := strings.Cut(want, " ")
		return strings.HasPrefix(g, verdict) && strings.Contains(g, failure)
	})
	if !matches {
		t.Errorf("the ledger has %q, want %q", got, w.steps)
	}
	if why := h.MustPostern("why", id); len(w.steps) > 1 && !strings.Contains(why, w.name) {
		t.Errorf("why does not name the agent:\n%s", why)
	}
}

// TestNobodyAnswers (item 3): all processes are alive and none answers, while there is no mail that could notice it.
func TestNobodyAnswers(t *testing.T) {
	t.Parallel()
	h := rig.Start(t, traced+mockWith("victim", 10, "instances = 2\n"+longTime, "on \"OnRcpt\" {\n}\n"))
	stopped := processes(h, "victim")
	for _, pid := range stopped {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	h.WaitFor("two other processes", func() bool {
		now := processes(h, "victim")
		return len(now) == 2 && !slices.ContainsFunc(now, func(pid int) bool { return slices.Contains(stopped, pid) })
	})
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	var shown agentState
	h.JSON(&shown, "agent", "show", "victim")
	if !strings.Contains(shown.Instances[0].LastExit, "neither a ping nor an event was answered") {
		t.Errorf("the agent is %+v", shown)
	}
}

// TestStoppedUnderMail (item 3): the only process of an agent stands still while clients send. Its events are answered by
// another one, in their time: no client reads of it.
func TestStoppedUnderMail(t *testing.T) {
	h := rig.Start(t, traced+mockWith("victim", 10, "timeout {\nconnect = \"8s\"\ncommand = \"8s\"\nmessage = \"15s\"\n}\n", judge("a")))
	var over atomic.Bool
	var sent atomic.Int64
	var sending sync.WaitGroup
	for range 4 {
		c := h.Greeted()
		sending.Go(func() {
			for !over.Load() {
				accepted(t, c, "a@sender.example", "b@example.org", helloMessage)
				sent.Add(1)
			}
		})
	}
	for n := range 3 {
		before := sent.Load()
		h.WaitFor("mail", func() bool { return sent.Load() > before+8 || t.Failed() })
		pid := processes(h, "victim")[0]
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		stopped := time.Now()
		h.WaitFor("another process", func() bool { return !slices.Contains(processes(h, "victim"), pid) })
		before = sent.Load()
		h.WaitFor("mail", func() bool { return sent.Load() > before+8 || t.Failed() })
		t.Logf("stop %d: mail flowed again after %s", n+1, time.Since(stopped).Round(10*time.Millisecond))
	}
	over.Store(true)
	sending.Wait()
	if now := states(h)["victim"]; now.Restarts != 3 || now.Failures["late"] != 0 || now.Leaked != 0 {
		t.Errorf("the agent is %+v", now)
	}
	h.WaitFor("the end of the stopped processes", func() bool { return len(children(h.Pid())) == 1 })
	t.Logf("%d messages, all accepted at the first try", sent.Load())
}

// TestSkipIsAVerdict (items 4 and 28): a message that an agent did not see is stamped, counted, told of in the ledger, the
// log and the message itself. Nobody outside can say so of a message.
func TestSkipIsAVerdict(t *testing.T) {
	h := rig.Start(t, traced+mockWith("scanner", 10, shortTime+"on_failure = \"skip\"\n", `
    on "OnEndOfData" {
      subject   = "unseen"
      misbehave = "never"
      times     = 1
    }
    on "OnEndOfData" {
    }`))
	c := h.Greeted()
	id := accepted(t, c, "a@sender.example", "b@example.org", "X-Postern-Skipped: other\r\nSubject: unseen\r\n\r\nhello\r\n")
	if got := h.WaitDropped(1)[0]; strings.Count(got, "X-Postern-Skipped:") != 1 || !strings.Contains(got, "\r\nX-Postern-Skipped: scanner\r\n") {
		t.Errorf("delivered:\n%s", got)
	}
	steps := waitRecord(h, id, "RECEIVE").steps("scanner", "OnEndOfData")
	if n := len(steps); n == 0 || steps[n-1].Verdict != "skipped" || !strings.Contains(steps[n-1].Failure, "no answer within 400ms") {
		t.Errorf("the ledger has %+v", steps)
	}
	if n := states(h)["scanner"].Failures["skipped"]; n != 1 {
		t.Errorf("%d skips counted", n)
	}
	h.WaitFor("a line in the log", func() bool {
		return strings.Contains(h.Log(), "agent failed at an event: agent=scanner how=late detail=\"no answer within 400ms\" event=OnEndOfData")
	})
	accepted(t, c, "a@sender.example", "b@example.org", "X-Postern-Skipped: scanner\r\nSubject: seen\r\n\r\nhello\r\n")
	for _, m := range h.WaitDropped(2) {
		if strings.Contains(m, "Subject: seen") && strings.Contains(m, "X-Postern-Skipped") {
			t.Errorf("delivered:\n%s", m)
		}
	}
}

// TestBreakerOpensAndCloses (item 34): an agent that answers nothing costs only the first messages their time, and is
// asked again by itself.
func TestBreakerOpensAndCloses(t *testing.T) {
	h := rig.Start(t, traced+mockWith("victim", 10, shortTime, `
    on "OnRcpt" {
      misbehave = "never"
      times     = 6
    }
    on "OnRcpt" {
    }`))
	c := h.Greeted()
	c.Do("MAIL FROM:<a@sender.example>", "250")
	for range 5 {
		c.Do("RCPT TO:<b@example.org>", "451 4.3.2 ")
	}
	id := idOf(t, c.Do("RCPT TO:<b@example.org>", "451 4.3.2 "))
	h.WaitFor("a refusal without a call in the ledger", func() bool {
		return slices.ContainsFunc(ledger(h, id), func(r record) bool {
			return slices.ContainsFunc(r.steps("victim", "OnRcpt"), func(v verdict) bool {
				return strings.Contains(v.Failure, "broken: 5 events of this kind failed one after the other")
			})
		})
	})
	if b := states(h)["victim"].Breakers; len(b) != 1 || b[0].Event != "OnRcpt" {
		t.Errorf("breakers %+v", b)
	}
	if status, _ := h.Postern("status"); !strings.Contains(status, "OnRcpt is kept from it") {
		t.Errorf("status says\n%s", status)
	}
	h.WaitFor("an event to be let through", func() bool { return try(c, "b@example.org")[:3] == "250" })
	if b := states(h)["victim"].Breakers; len(b) != 0 {
		t.Errorf("breakers %+v", b)
	}
}

// kept is an agent block of the mock behind a script that can keep it from starting, and one of a neighbour.
func kept(t *testing.T, arguments, instead string) *rig.Host {
	h := rig.New(t, traced+mockWith("victim", 10, "command = [\"{dir}/gate\"]\nsandbox {\n  enabled = false\n}\n"+shortTime+arguments, "on \"OnRcpt\" {\n}\n")+
		mockWith("neighbour", 20, longTime, "on \"OnMail\" {\n}\n"))
	script := fmt.Sprintf("#!/bin/sh\nif [ -e %s/away ]; then %s; fi\nexec %s/agents/mock \"$@\"\n", h.Dir, instead, rig.Bin(t))
	if err := os.WriteFile(filepath.Join(h.Dir, "gate"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	h.Start()
	return h
}

// TestNeverReady: an agent whose new process never becomes ready fails its own events. The neighbour and the connection
// live, and the agent is back by itself when it can start.
func TestNeverReady(t *testing.T) {
	t.Parallel()
	h := kept(t, "start_timeout = \"5s\"\n", "exec sleep 1000")
	c := h.Greeted()
	leave(t, h, "victim")
	c.Do("MAIL FROM:<a@sender.example>", "250 2.1.0 ")
	id := idOf(t, c.Do("RCPT TO:<b@example.org>", "451 4.3.2 "))
	waitRecord(h, id, "REJECT")
	h.WaitFor("the reason", func() bool {
		return slices.ContainsFunc(states(h)["victim"].Instances, func(i instance) bool { return strings.Contains(i.LastExit, "not done within start_timeout (5s)") })
	})
	if status, _ := h.Postern("status"); !strings.Contains(status, "agent victim is not running since") {
		t.Errorf("status says\n%s", status)
	}
	comeBack(t, h)
	h.WaitFor("the agent", func() bool { return states(h)["victim"].Ready })
	if reply := try(c, "b@example.org"); !strings.HasPrefix(reply, "250 2.6.0 ") {
		t.Errorf("got %q", reply)
	}
	if n := states(h)["neighbour"].Restarts; n != 0 {
		t.Errorf("the neighbour was started anew %d times", n)
	}
}

// TestFailedAgent (items 15 and 16): an agent that ends again and again is failed, and everybody who asks is told so and
// why. An order to start it tells whether it could.
func TestFailedAgent(t *testing.T) {
	h := kept(t, "restart {\n  attempts     = 3\n  retry_failed = \"0s\"\n}\n", "echo the database is not there >&2; exit 9")
	leave(t, h, "victim")
	h.WaitFor("the failed state", func() bool { return states(h)["victim"].State == "failed" })
	for _, command := range [][]string{{"agent", "show", "victim"}, {"agent", "restart", "victim"}} {
		if out, _ := h.Postern(command...); !strings.Contains(out, "the database is not there") {
			t.Errorf("%s says\n%s", command, out)
		}
	}
	if _, err := h.Postern("agent", "restart", "victim"); err == nil {
		t.Error("a restart that fails has succeeded")
	}
	h.WaitFor("status to say so", func() bool {
		status, _ := h.Postern("status")
		return strings.Contains(status, "instance 1 has failed")
	})
	c := h.Greeted()
	if reply := try(c, "b@example.org"); !strings.HasPrefix(reply, "451 4.3.2 ") {
		t.Errorf("got %q", reply)
	}
	comeBack(t, h)
	h.MustPostern("agent", "restart", "victim")
	if reply := try(c, "b@example.org"); !strings.HasPrefix(reply, "250 2.6.0 ") {
		t.Errorf("got %q", reply)
	}
}

// TestPoisonIsReleased (item 2): the message that kills two processes is kept with the evidence, and goes on when an
// operator says so. The others have gone on before.
func TestPoisonIsReleased(t *testing.T) {
	h := rig.Start(t, traced+mockWith("victim", 10, longTime, `
    on "OnEndOfData" {
      subject   = "poison"
      misbehave = "crash"
      times     = 2
      add_header = { X-Victim = "seen" }
    }
    on "OnEndOfData" {
      add_header = { X-Victim = "seen" }
    }`)+mockAgent("behind", 20, "on \"OnEndOfData\" {\n  add_header = { X-Behind = \"seen\" }\n}\n"))
	c := h.Greeted()
	id := accepted(t, c, "a@sender.example", "b@example.org", "Subject: poison\r\n\r\nhello\r\n")
	for range 5 {
		accepted(t, c, "a@sender.example", "b@example.org", helloMessage)
	}
	h.WaitDropped(5)
	parked := queued(h, "--state", "parked")
	if len(parked) != 1 || parked[0].Message != id {
		t.Fatalf("parked: %+v", parked)
	}
	var shown item
	h.JSON(&shown, "queue", "show", parked[0].ID)
	for _, want := range []string{"input: event ", "message " + id, "exit status 2", "mock dies with a last word"} {
		if !strings.Contains(shown.Evidence, want) {
			t.Errorf("the evidence lacks %q:\n%s", want, shown.Evidence)
		}
	}
	waitRecord(h, id, "POISON")
	h.MustPostern("queue", "resume", parked[0].ID)
	for _, m := range h.WaitDropped(6) { // nothing goes on unseen, neither by the agent that it killed nor by those behind it
		if !strings.Contains(m, "X-Victim: seen") || !strings.Contains(m, "X-Behind: seen") {
			t.Errorf("delivered without having been seen:\n%s", m)
		}
	}
	waitEmpty(h)
}

// TestPoisonStaysPoison resumes a message before the agent that it kills is mended: it is parked again.
func TestPoisonStaysPoison(t *testing.T) {
	h := rig.Start(t, plain+mockWith("victim", 10, longTime, "on \"OnEndOfData\" {\nmisbehave = \"exit\"\n}\n"))
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	for range 2 {
		h.WaitFor("it to be parked", func() bool { return len(queued(h, "--state", "parked")) == 1 })
		h.MustPostern("queue", "resume", queued(h)[0].ID)
	}
	h.WaitFor("it to be parked", func() bool { return len(queued(h, "--state", "parked")) == 1 })
	if n := len(h.Dropped()); n > 0 {
		t.Errorf("%d were delivered", n)
	}
}

// TestLeak has an agent grow at each recipient until its limit of memory ends it, again and again. The client sees nothing.
func TestLeak(t *testing.T) {
	h := rig.Start(t, traced+mockWith("victim", 10, longTime+"sandbox {\n  memory = \"256 MB\"\n}\n", "on \"OnRcpt\" {\n  misbehave = \"leak\"\n}\n"))
	c := h.Greeted()
	c.Do("MAIL FROM:<a@sender.example>", "250")
	for i := range 80 {
		c.Do(fmt.Sprintf("RCPT TO:<b%d@example.org>", i), "250 2.1.5 ")
	}
	reply := c.Data(helloMessage)
	if !strings.HasPrefix(reply, accept[:9]) {
		t.Fatalf("got %q", reply)
	}
	failed := 0
	for _, s := range waitRecord(h, idOf(t, reply), "RECEIVE").steps("victim", "OnRcpt") {
		if s.Verdict == "failed" && strings.Contains(s.Failure, "died") {
			failed++
		}
	}
	if n := states(h)["victim"].Restarts; failed == 0 || n < failed {
		t.Errorf("%d deaths in the ledger, %d restarts", failed, n)
	}
}

// TestOneAgentBlocksNobody (items 13, 31 and 36): an agent that stands still holds back neither banners nor the mail of
// others, and more than it may have waiting is not kept in memory but follows on_failure.
func TestOneAgentBlocksNobody(t *testing.T) {
	h := rig.Start(t, traced+mockWith("slow", 10, "max_in_flight = 1\ntimeout = \"15s\"\n", `
    on "OnRcpt" {
      recipient = "^slow@"
      sleep     = "1s"
    }
    on "OnRcpt" {
    }`)+mockWith("neighbour", 20, longTime, "on \"OnMail\" {\n}\n"))
	const clients = 12
	replies := make([]string, clients)
	var sessions sync.WaitGroup
	for i := range clients {
		c := h.Greeted()
		c.Do("MAIL FROM:<a@sender.example>", "250")
		sessions.Go(func() {
			c.Send("RCPT TO:<slow@example.org>")
			replies[i] = c.Reply()
		})
	}
	h.WaitFor("a full queue", func() bool { return states(h)["slow"].Queued == 4 })
	h.Greeted().Do("MAIL FROM:<a@sender.example>", "250")
	sessions.Wait()
	if n, shed := with(replies, "250 2.1.5 "), with(replies, "451 4.3.2 "); n != 5 || shed != clients-5 {
		t.Errorf("%d accepted, %d shed: %q", n, shed, replies)
	}
	for _, r := range replies {
		if strings.HasPrefix(r, "451") {
			steps := waitRecord(h, idOf(t, r), "REJECT").steps("slow", "OnRcpt")
			if len(steps) != 1 || !strings.Contains(steps[0].Failure, "busy: 1 events in flight, 4 waiting") {
				t.Errorf("the ledger has %+v", steps)
			}
		}
	}
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	if a := states(h)["slow"]; a.Queued != 0 || a.Leaked != 0 || a.Instances[0].InFlight != 0 { // item 32
		t.Errorf("places are still held: %+v", a)
	}
}

// TestAgentsEndWithTheHost (item 18): even when it is killed.
func TestAgentsEndWithTheHost(t *testing.T) {
	h := rig.Start(t, traced+mockWith("victim", 10, "instances = 2\n", "on \"OnRcpt\" {\n}\n"))
	all := processes(h, "victim")
	if err := syscall.Kill(all[0], syscall.SIGSTOP); err != nil { // one cannot even hear of it
		t.Fatal(err)
	}
	h.Kill()
	h.WaitFor("the agents to end", func() bool {
		return !slices.ContainsFunc(all, func(pid int) bool { return running(pid) })
	})
}

// running reports whether a process is there and has not ended.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}
