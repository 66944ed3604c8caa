package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// TestSleeperHoldsNobodyBack: while one event sleeps in an agent, a thousand others on the same stream come and go.
func TestSleeperHoldsNobodyBack(t *testing.T) {
	h := rig.Start(t, plain+mockWith("sleeper", 10, "timeout = \"20s\"\n", `
    on "OnRcpt" {
      recipient = "^slow@"
      barrier {
        file  = "asleep"
        count = 2
      }
    }
    on "OnRcpt" {
      stamp = { seen = "yes" }
    }`))
	slow := h.Greeted()
	slow.Do("MAIL FROM:<a@sender.example>", "250")
	slow.Send("RCPT TO:<slow@example.org>")
	asleep := filepath.Join(h.Dir, "data/agents/sleeper/asleep")
	var event []byte
	h.WaitFor("the sleeper", func() bool {
		event, _ = os.ReadFile(asleep)
		return strings.HasSuffix(string(event), "\n")
	})
	const sessions, recipients = 10, 100
	var others sync.WaitGroup
	for range sessions {
		c := h.Greeted()
		c.Do("MAIL FROM:<a@sender.example>", "250")
		others.Go(func() {
			c.Raw(strings.Repeat("RCPT TO:<b@example.org>\r\n", recipients))
			for range recipients {
				if got := c.Reply(); !strings.HasPrefix(got, "250 2.1.5 ") {
					t.Errorf("got %q", got)
				}
			}
		})
	}
	others.Wait()
	if text, _ := os.ReadFile(asleep); string(text) != string(event) {
		t.Errorf("the event was tried again: %q", text)
	}
	// The second line at the barrier wakes it.
	if err := os.WriteFile(asleep, append(event, event...), 0o600); err != nil {
		t.Fatal(err)
	}
	slow.Want("250 2.1.5 ")
	if n := len(processes(h, "sleeper")); n != 1 {
		t.Errorf("%d processes, want one stream", n)
	}
}

// TestStage has ten agents that wait for each other at the end of data, which only works when all are asked at
// once. Then the first refuses, and nothing is left of what the others wanted.
func TestStage(t *testing.T) {
	const agents = 10
	var config strings.Builder
	config.WriteString(plain + "agent_defaults {\n  sandbox {\n    write = [\"{dir}/meet\"]\n  }\n}\n")
	for i := range agents {
		does := fmt.Sprintf(`
      waits   = true
      declare = ["verdict", "spawn", "copies", "stamp:seen"]
      barrier {
        file  = "{dir}/meet/barrier"
        count = %d
      }
      stamp     = { seen = "by %d" }
      keep_copy = "by %d"
      write "sights" {
        key = "{sender}"
        op  = "add"
      }
      spawn {
        recipients = ["watcher%d@example.org"]
      }
`, agents, i, i, i)
		rules := "on \"OnEndOfData\" {\n" + does + "}\n"
		if i == 0 {
			rules = "on \"OnEndOfData\" {\nsender = \"^bad@\"\naction = \"reject\"\ntext = \"the first says no\"\n" + does + "}\n" + rules
		}
		config.WriteString(mockWith(fmt.Sprintf("agent%d", i), 10+i, "timeout = \"20s\"\n", rules))
	}
	h := rig.New(t, config.String())
	if err := os.Chmod(h.Dir, 0o700); err != nil { // where root runs the test, users of their own could not meet there
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(h.Dir, "meet"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.Start()
	c := h.Greeted()
	reply := c.Message("bad@sender.example", "b@example.org", helloMessage)
	if !strings.HasPrefix(reply, "550 5.7.1 the first says no [") {
		t.Fatalf("got %q", reply)
	}
	r := waitRecord(h, idOf(t, reply), "REJECT")
	for i := 1; i < agents; i++ {
		steps := r.steps(fmt.Sprintf("agent%d", i), "OnEndOfData")
		if len(steps) != 1 || steps[0].Verdict != "not-needed" || len(steps[0].Edits)+len(steps[0].Stamps) > 0 {
			t.Errorf("agent%d: %+v", i, steps)
		}
	}
	if n := len(queued(h)) + len(quarantined(h)) + len(h.Dropped()); n != 0 {
		t.Errorf("%d messages are left of a refusal", n)
	}
	for i := 1; i < agents; i++ {
		if rows := numbers(h, fmt.Sprintf("agent%d/sights", i)); len(rows) != 0 {
			t.Errorf("agent%d has left rows: %v", i, rows)
		}
	}
	everything(t, h, c, agents)
}

// everything is there when nobody refuses.
func everything(t *testing.T, h *rig.Host, c *rig.Client, agents int) {
	id := accepted(t, c, "good@sender.example", "b@example.org", helloMessage)
	h.WaitDropped(1 + agents)
	waitEmpty(h)
	if n := len(h.Dropped()); n != 1+agents {
		t.Errorf("%d messages delivered, want the message and %d spawned", n, agents)
	}
	if n := len(quarantined(h)); n != agents {
		t.Errorf("%d copies kept, want %d", n, agents)
	}
	r := waitRecord(h, id, "RECEIVE")
	for i := range agents {
		name := fmt.Sprintf("agent%d", i)
		steps := r.steps(name, "OnEndOfData")
		if len(steps) != 1 || steps[0].Verdict != "continue" || len(steps[0].Stamps) != 1 {
			t.Errorf("%s: %+v", name, steps)
		}
		if rows := numbers(h, name+"/sights"); rows["good@sender.example"] != 1 || i > 0 && len(rows) != 1 {
			t.Errorf("%s has rows %v", name, rows)
		}
	}
}
