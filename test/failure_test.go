package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// mockWith is mockAgent with arguments of the agent block.
func mockWith(label string, priority int, arguments, body string) string {
	return fmt.Sprintf("agent %q {\n  plugin = \"mock\"\n  priority = %d\n%s\n  config {\n%s\n  }\n}\n", label, priority, arguments, body)
}

// item is an entry of `postern queue list --json`, and of show.
type item struct {
	ID, Message, State, Agent, Reason, Evidence string
	WaitingFor                                  string `json:"waiting_for"`
	LastError                                   string `json:"last_error"`
	Missed                                      []string
	Stamps                                      map[string]string
}

func queued(h *rig.Host, args ...string) []item {
	var list struct{ Items []item }
	h.JSON(&list, append([]string{"queue", "list", "--limit", "0"}, args...)...)
	return list.Items
}

func quarantined(h *rig.Host) []item {
	var list struct{ Items []item }
	h.JSON(&list, "quarantine", "list")
	return list.Items
}

// waitEmpty waits until nothing is on its way any more.
func waitEmpty(h *rig.Host) {
	h.WaitFor("an empty queue", func() bool { return len(queued(h)) == 0 })
}

// numbers are the rows of a mock's table: the number that its writes keep in each.
func numbers(h *rig.Host, table string) map[string]int {
	var page struct{ Rows []struct{ Key, Value string } }
	out, err := h.Postern("table", "list", table, "--json")
	if err != nil {
		return nil // no such table yet
	}
	if json.Unmarshal([]byte(out), &page) != nil {
		return nil
	}
	found := map[string]int{}
	for _, r := range page.Rows {
		var value map[string]int
		if json.Unmarshal([]byte(r.Value), &value) == nil {
			found[r.Key] = value["n"]
		}
	}
	return found
}

// largeMessage has a body that is too large to stand in an event.
var largeMessage = "From: a@sender.example\r\nSubject: large\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 1000)

// TestDeaths has an agent die at its first sight of each event of a message. The client notices nothing, and
// what the agent asked for beside its verdict is done once.
func TestDeaths(t *testing.T) {
	events := []string{"OnMail", "OnRcpt", "OnEndOfHeaders", "OnEndOfData"}
	for instances := 1; instances <= 2; instances++ {
		t.Run(fmt.Sprintf("%d instances", instances), func(t *testing.T) {
			var body strings.Builder
			body.WriteString("record = \"seen\"\n")
			for _, event := range events {
				extra := ""
				if event == "OnEndOfData" {
					extra = "body = true\nadd_header = { X-Mortal = \"was here\" }\nkeep_copy = \"evidence\"\n" +
						"spawn {\nrecipients = [\"watcher@example.org\"]\n}\n"
				}
				fmt.Fprintf(&body, "on %q {\nmisbehave = \"kill\"\ntimes = 1\nstamp = { died = %q }\nwrite \"sights\" {\nkey = %q\nop = \"add\"\n}\n%s}\n",
					event, event, event, extra)
			}
			h := rig.Start(t, plain+mockWith("mortal", 10, fmt.Sprintf("instances = %d\ntimeout = \"15s\"\n", instances), body.String()))
			id := accepted(t, h.Greeted(), "a@sender.example", "b@example.org", largeMessage)
			r := waitRecord(h, id, "RECEIVE")
			for _, event := range events {
				steps := r.steps("mortal", event)
				if len(steps) != 2 || steps[0].Verdict != "failed" || !strings.Contains(steps[0].Failure, "died") ||
					steps[1].Verdict != "continue" || steps[1].Attempt != 2 {
					t.Errorf("%s: the ledger has %+v", event, steps)
				}
				seen := recorded(h, "seen", event)
				if len(seen) != 2 || strings.Fields(seen[0])[1] != strings.Fields(seen[1])[1] || strings.Fields(seen[0])[3] == strings.Fields(seen[1])[3] {
					t.Errorf("%s was seen as %q, want one event in two processes", event, seen)
				}
			}
			rows := numbers(h, "mortal/sights")
			for _, event := range events {
				if rows[event] != 1 {
					t.Errorf("table writes: %v, want each event once", rows)
				}
			}
			h.WaitDropped(2)
			waitEmpty(h)
			got := h.Dropped()
			if len(got) != 2 {
				t.Fatalf("%d messages delivered, want the message and one spawned", len(got))
			}
			if strings.Count(strings.Join(got, ""), "X-Mortal: was here") != 1 || strings.Count(strings.Join(got, ""), "X-Receiver: <watcher@example.org>") != 1 {
				t.Errorf("delivered:\n%.600s\n%.600s", got[0], got[1])
			}
			if kept := quarantined(h); len(kept) != 1 {
				t.Errorf("%d copies kept, want 1", len(kept))
			}
		})
	}
}

// TestDeathsElsewhere has an agent die at its first sight of the other events of a session.
func TestDeathsElsewhere(t *testing.T) {
	events := []string{"OnConnect", "OnHelo", "OnEhlo", "OnStartTls", "OnAuth", "OnEndOfAuthentication", "OnData", "OnNoop", "OnHelp", "OnRset"}
	var body strings.Builder
	body.WriteString("record = \"seen\"\n")
	for _, event := range events {
		fmt.Fprintf(&body, "on %q {\nmisbehave = \"kill\"\ntimes = 1\nwrite \"sights\" {\nkey = %q\nop = \"add\"\n}\n}\n", event, event)
	}
	h := rig.New(t, authenticated+mockWith("mortal", 10, "instances = 2\ntimeout = \"15s\"\n", body.String()))
	writeUsers(t, h)
	h.Start()
	c := h.Dial()
	c.Want("220 ")
	var auth string
	for _, s := range scenes() {
		if s.event == "OnAuth" {
			auth = s.command
		}
	}
	say(c, "HELO client.example|250", "EHLO client.example|250", "STARTTLS|220", "EHLO client.example|250", auth+"|235", "NOOP|250", "HELP|214", "RSET|250")
	accepted(t, c, "a@sender.example", "b@example.org", helloMessage)
	rows := numbers(h, "mortal/sights")
	for _, event := range events {
		want := 1
		if event == "OnEhlo" { // before and after STARTTLS
			want = 2
		}
		if rows[event] < want || len(recorded(h, "seen", event)) < want+1 {
			t.Errorf("%s: %d table writes, %d sights", event, rows[event], len(recorded(h, "seen", event)))
		}
	}
}

// inFlight sends 32 messages from as many clients, the final dots all at once. The subject of the last one is
// "poison". It answers with the replies.
func inFlight(h *rig.Host, recipients func(i int) string) []string {
	const clients = 32
	replies := make([]string, clients)
	var sessions, ready sync.WaitGroup
	ready.Add(clients)
	for i := range clients {
		c := h.Greeted()
		c.Do("MAIL FROM:<a@sender.example>", "250")
		sessions.Go(func() {
			subject := "harmless"
			if i == clients-1 {
				subject = "poison"
			}
			ready.Done()
			ready.Wait()
			c.Send("RCPT TO:<%s>", recipients(i))
			if replies[i] = c.Reply(); !strings.HasPrefix(replies[i], "250") {
				return
			}
			c.Send("DATA")
			c.Reply()
			c.Raw("Subject: " + subject + "\r\n\r\nhello\r\n.\r\n")
			replies[i] = c.Reply()
		})
	}
	sessions.Wait()
	return replies
}

func anybody(int) string { return "b@example.org" }

// with counts the replies that begin so.
func with(replies []string, prefix string) (n int) {
	for _, r := range replies {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

// TestPoison has one message of 32 in flight kill every process that looks at it. The others are not held
// responsible.
func TestPoison(t *testing.T) {
	for _, event := range []string{"OnSubmitted", "OnEndOfData"} {
		for _, how := range []string{"exit", "kill"} {
			t.Run(event+"/"+how, func(t *testing.T) {
				h := rig.Start(t, plain+mockWith("victim", 10, "instances = 2\ntimeout = \"30s\"\n", fmt.Sprintf(`
    on %q {
      subject   = "^poison"
      misbehave = %q
      sleep     = "50ms"
    }
    on %q {
      sleep      = "20ms"
      add_header = { X-Victim = "seen" }
    }`, event, how, event)))
				replies := inFlight(h, anybody)
				if n := with(replies, "250 2.6.0"); n != len(replies) {
					t.Fatalf("%d of %d accepted: %q", n, len(replies), replies)
				}
				got := h.WaitDropped(len(replies) - 1)
				if n := strings.Count(strings.Join(got, ""), "X-Victim: seen"); n != len(replies)-1 {
					t.Errorf("%d of %d were seen by the agent", n, len(got))
				}
				h.WaitFor("one parked message", func() bool { return len(queued(h)) == 1 && len(queued(h, "--state", "parked")) == 1 })
				poison(t, h, idOf(t, replies[len(replies)-1]), event)
			})
		}
	}
}

// poison looks at the one message that was parked.
func poison(t *testing.T, h *rig.Host, id, event string) {
	parked := queued(h)[0]
	var shown item
	h.JSON(&shown, "queue", "show", parked.ID)
	if shown.Message != id || shown.Agent != "victim" || !strings.Contains(shown.Reason, "poison") || strings.Count(shown.Evidence, "victim/") < 2 {
		t.Errorf("the parked message is %+v", shown)
	}
	if r := waitRecord(h, id, "POISON"); r.Agent != "victim" {
		t.Errorf("the ledger has %+v", r)
	}
	if n := len(h.Dropped()); n != 31 {
		t.Errorf("%d delivered", n)
	}
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", "Subject: afterwards\r\n\r\nhello\r\n")
	h.WaitDropped(32)
}

// TestPoisonBeforeTheEnd: before the message is there nothing can be parked. One client is told to come back.
func TestPoisonBeforeTheEnd(t *testing.T) {
	h := rig.Start(t, plain+mockWith("victim", 10, "instances = 2\ntimeout = \"20s\"\n", `
    on "OnRcpt" {
      recipient = "^poison@"
      misbehave = "exit"
      sleep     = "50ms"
    }
    on "OnRcpt" {
      sleep = "20ms"
    }`))
	replies := inFlight(h, func(i int) string {
		if i == 7 {
			return "poison@example.org"
		}
		return "b@example.org"
	})
	if with(replies, "451 4.3.2 ") != 1 || with(replies, "250 2.6.0 ") != len(replies)-1 || !strings.HasPrefix(replies[7], "451 ") {
		t.Fatalf("got %q", replies)
	}
	r := waitRecord(h, idOf(t, replies[7]), "REJECT")
	if r.Agent != "victim" || r.AgentEvent != "OnRcpt" || len(r.steps("victim", "OnRcpt")) < 3 {
		t.Errorf("the ledger has %+v", r)
	}
	h.WaitDropped(len(replies) - 1)
}

// TestOnFailure has agents fail in several ways, and the operator choose each of the consequences. (What kills process
// after process is put off whatever the choice, see TestPoisonBeforeTheEnd.)
func TestOnFailure(t *testing.T) {
	for _, how := range []string{"never", "panic", "no_verdict"} {
		var agents strings.Builder
		for i, choice := range []string{"skip", "defer", "reject"} {
			agents.WriteString(mockWith(choice, 10+i, fmt.Sprintf("timeout = \"400ms\"\non_failure = %q\n", choice), fmt.Sprintf(`
    on "OnRcpt" {
      recipient = "^%s@"
      misbehave = %q
    }`, choice, how)))
		}
		t.Run(how, func(t *testing.T) {
			h := rig.Start(t, plain+agents.String())
			c := h.Greeted()
			c.Do("MAIL FROM:<a@sender.example>", "250")
			deferred := c.Do("RCPT TO:<defer@example.org>", "451 4.3.2 Service temporarily unavailable, please try again later [")
			rejected := c.Do("RCPT TO:<reject@example.org>", "55")
			c.Do("RCPT TO:<skip@example.org>", "250 2.1.5 ")
			reply := c.Data(helloMessage)
			if !strings.HasPrefix(reply, "250 2.6.0 ") {
				t.Fatalf("got %q", reply)
			}
			h.WaitDropped(1)
			id := idOf(t, reply)
			for agent, reply := range map[string]string{"defer": deferred, "reject": rejected} {
				if !slices.ContainsFunc(ledger(h, id), func(r record) bool {
					steps := r.steps(agent, "OnRcpt")
					return r.Event == "REJECT" && r.Reply == reply && r.Agent == agent && len(steps) > 0 && steps[len(steps)-1].Failure != ""
				}) {
					t.Errorf("%s is not in the ledger for %q", agent, reply)
				}
			}
			steps := waitRecord(h, id, "RECEIVE").steps("skip", "OnRcpt")
			if !slices.ContainsFunc(steps, func(v verdict) bool { return v.Verdict == "skipped" && v.Failure != "" }) {
				t.Errorf("the ledger has %+v", steps)
			}
			for _, leak := range []string{"mock", "panic", "verdict", "killed"} {
				if strings.Contains(deferred+rejected, leak) {
					t.Errorf("the client reads %q", deferred+rejected)
				}
			}
		})
	}
}

// TestOnFailureAtTheEnds: the same at the first event of a session, and at the end of the data.
func TestOnFailureAtTheEnds(t *testing.T) {
	for choice, want := range map[string]struct{ banner, reply string }{
		"skip":   {"220 edge.example ESMTP Postern", "250 2.6.0 "},
		"defer":  {"421 4.3.2 Service temporarily unavailable, please try again later [", "451 4.3.2 Service temporarily unavailable, please try again later ["},
		"reject": {"554 5.7.1 ", "550 5.7.1 "},
	} {
		t.Run(choice, func(t *testing.T) {
			h := rig.Start(t, plain+mockWith("broken", 10, fmt.Sprintf("on_failure = %q\n", choice), `
    on "OnConnect" {
      misbehave = "no_verdict"
      times     = 2
    }
    on "OnEndOfData" {
      misbehave = "bad_digest"
    }`))
			h.Dial().Want(want.banner)
			// The first connection was that of rig.Start.
			h.WaitFor("two breaches", func() bool { return breaches(h, "broken") == 2 })
			c := h.Greeted()
			reply := c.Message("a@sender.example", "b@example.org", helloMessage)
			if !strings.HasPrefix(reply, want.reply) {
				t.Fatalf("got %q, want %q", reply, want.reply)
			}
			c.Do("NOOP", "250 ")
			if n := breaches(h, "broken"); n != 3 {
				t.Errorf("%d breaches counted, want 3", n)
			}
		})
	}
}

// breaches counted of an agent.
func breaches(h *rig.Host, agent string) int {
	var shown struct{ Breaches int }
	h.JSON(&shown, "agent", "show", agent)
	return shown.Breaches
}

// TestOneHostADirectory: a second host on the same data directory is told what to do.
func TestOneHostADirectory(t *testing.T) {
	h := rig.Start(t, plain)
	second := filepath.Join(h.Dir, "second.hcl")
	text, err := os.ReadFile(h.Config)
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), h.Addr, rig.FreeAddr(t), 1))
	if err := os.WriteFile(second, text, 0o600); err != nil {
		t.Fatal(err)
	}
	first := h.Config
	h.Config = second
	out, err := h.Postern("serve")
	h.Config = first
	if err == nil || !strings.Contains(out, "another") || !strings.Contains(out, "data_dir") {
		t.Errorf("the second host said %q, %v", out, err)
	}
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	h.WaitDropped(1)
}

// processes of an agent, by their ids.
func processes(h *rig.Host, agent string) (pids []int) {
	var shown struct{ Instances []struct{ PID int } }
	h.JSON(&shown, "agent", "show", agent)
	for _, i := range shown.Instances {
		if i.PID > 0 {
			pids = append(pids, i.PID)
		}
	}
	return pids
}

// away is an agent block of the mock behind a gate.
func away(label, arguments, body string) string {
	return mockWith(label, 10, "command = [\"{dir}/gate\"]\nsandbox {\n  read = [\"{bin}/agents/mock\"]\n}\n"+arguments, body)
}

// gate writes the program of an agent that can be kept away. It is the mock, as long as the file "away" is not there.
func gate(t *testing.T, h *rig.Host) {
	t.Helper()
	script := fmt.Sprintf("#!/bin/sh\nif [ -e %s/away ]; then exit 1; fi\nexec %s/agents/mock \"$@\"\n", h.Dir, rig.Bin(t))
	if err := os.WriteFile(filepath.Join(h.Dir, "gate"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
}

// leave kills the agent and keeps it away.
func leave(t *testing.T, h *rig.Host, agent string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(h.Dir, "away"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, pid := range processes(h, agent) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	h.WaitFor("the agent to be gone", func() bool {
		var shown struct{ Ready bool }
		h.JSON(&shown, "agent", "show", agent)
		return !shown.Ready
	})
}

// comeBack lets the agent start again.
func comeBack(t *testing.T, h *rig.Host) {
	t.Helper()
	if err := os.Remove(filepath.Join(h.Dir, "away")); err != nil {
		t.Fatal(err)
	}
}

// TestWaiting: right of the 250 line a message waits for an agent that is away, and goes on by itself.
func TestWaiting(t *testing.T) {
	t.Parallel()
	for _, event := range []string{"OnSubmitted", "OnResolved", "OnRouted", "OnCategorized"} {
		t.Run(event, func(t *testing.T) {
			h := rig.New(t, plain+away("absent", "timeout = \"500ms\"\n", fmt.Sprintf("on %q {\nadd_header = { X-Absent = \"back\" }\n}\n", event)))
			gate(t, h)
			h.Start()
			leave(t, h, "absent")
			id := accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
			h.WaitFor("the message to wait", func() bool {
				list := queued(h, "--state", "waiting")
				return len(list) == 1 && list[0].WaitingFor == "absent" && list[0].Message == id
			})
			comeBack(t, h)
			if got := h.WaitDropped(1)[0]; !strings.Contains(got, "X-Absent: back\r\n") {
				t.Errorf("the agent was passed by:\n%s", got)
			}
			waitEmpty(h)
		})
	}
}

// TestHold: with on_failure "hold" a message is accepted while its agent is away, kept, and scanned when it is back.
func TestHold(t *testing.T) {
	h := rig.New(t, plain+away("scanner", "timeout = \"500ms\"\non_failure {\nmessage = \"hold\"\n}\n", `
    on "OnEndOfData" {
      subject = "^bad"
      body    = true
      action  = "quarantine"
      reason  = "as told"
    }
    on "OnEndOfData" {
      subject = "^worse"
      action  = "reject"
      reason  = "worse"
    }
    on "OnEndOfData" {
      body        = true
      append_body = "scanned\r\n"
      add_header  = { X-Scanned = "yes" }
    }`))
	gate(t, h)
	h.Start()
	leave(t, h, "scanner")
	c := h.Greeted()
	good := accepted(t, c, "a@sender.example", "b@example.org", "Subject: good\r\n\r\nhello\r\n")
	bad := accepted(t, c, "a@sender.example", "b@example.org", "Subject: bad\r\n\r\nhello\r\n")
	worse := accepted(t, c, "a@sender.example", "b@example.org", "Subject: worse\r\n\r\nhello\r\n")
	h.WaitFor("all three to wait", func() bool {
		list := queued(h, "--state", "waiting")
		return len(list) == 3 && !slices.ContainsFunc(list, func(i item) bool { return i.WaitingFor != "scanner" })
	})
	if n := len(h.Dropped()); n != 0 {
		t.Fatalf("%d messages were delivered without a scan", n)
	}
	comeBack(t, h)
	got := h.WaitDropped(1)[0]
	if !strings.Contains(got, "X-Scanned: yes\r\n") || !strings.HasSuffix(got, "hello\r\nscanned\r\n") || !strings.Contains(got, "Subject: good") {
		t.Errorf("delivered:\n%s", got)
	}
	waitEmpty(h)
	var kept []string
	for _, k := range quarantined(h) {
		kept = append(kept, k.Message+" "+k.Agent+" "+k.Reason)
	}
	slices.Sort(kept)
	want := []string{bad + " scanner as told", worse + " scanner worse"}
	slices.Sort(want)
	if !slices.Equal(kept, want) { // nobody can be refused any more, and the sender is not told: that would be backscatter
		t.Errorf("quarantine has %q, want %q", kept, want)
	}
	steps := waitRecord(h, good, "RECEIVE").steps("scanner", "OnEndOfData")
	if !slices.ContainsFunc(steps, func(v verdict) bool { return v.Verdict == "hold" }) {
		t.Errorf("the ledger has %+v", steps)
	}
	h.WaitFor("the scan in the ledger", func() bool {
		return slices.ContainsFunc(ledger(h, good), func(r record) bool {
			return r.Event == "CATEGORIZE" && slices.ContainsFunc(r.steps("scanner", "OnEndOfData"), func(v verdict) bool {
				return v.Verdict == "continue" && len(v.Edits) > 0
			})
		})
	})
}
