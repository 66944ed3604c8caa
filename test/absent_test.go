package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// lame is a host with an agent whose program can be broken while the host is down, and one that is well.
type lame struct {
	*rig.Host
	t       *testing.T
	program string
}

// startLame starts the host, and stops it when the agent has run. arguments and rules are of the agent's block.
func startLame(t *testing.T, arguments, rules string) *lame {
	t.Helper()
	l := &lame{Host: rig.New(t, traced+mockWith("lame", 10, "command = [\"./program\"]\n"+arguments, rules)+mockAgent("well", 20, judge("well"))), t: t}
	l.program = filepath.Join(l.Dir, "program")
	l.put(mockContent(t))
	l.Start()
	l.Stop()
	return l
}

func mockContent(t *testing.T) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(rig.Bin(t), "agents", "mock"))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// put replaces the program.
func (l *lame) put(content []byte) {
	l.t.Helper()
	if err := os.WriteFile(l.program+".new", content, 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Rename(l.program+".new", l.program); err != nil {
		l.t.Fatal(err)
	}
}

// says has `postern check` refuse what the host was started with all the same.
func (l *lame) says(want string) {
	l.t.Helper()
	if out, err := l.Postern("check"); err == nil || !strings.Contains(out, want) {
		l.t.Errorf("check: %v\n%s", err, out)
	}
}

// isDown wants the agent to be down for a reason, in every place where an operator looks.
func (l *lame) isDown(why string) {
	l.t.Helper()
	now := states(l.Host)["lame"]
	if now.Ready || now.State == "up" || len(now.Instances) == 0 || !strings.Contains(now.Instances[0].LastExit+strings.Join(now.Instances[0].Stderr, "\n"), why) {
		l.t.Errorf("the agent is %+v, and not down for %q", now, why)
	}
	if out := l.MustPostern("status"); !strings.Contains(out, "agent lame is not running since") {
		l.t.Errorf("status does not tell:\n%s", out)
	}
	if n := strings.Count(l.Log(), "the host starts without an agent"); n != 1 {
		l.t.Errorf("the log tells it %d times", n)
	}
}

// isBack waits until the agent is up, which nobody has ordered, and has its place.
func (l *lame) isBack() {
	l.t.Helper()
	l.WaitFor("the agent", func() bool { return states(l.Host)["lame"].Ready })
	if out := l.MustPostern("status"); strings.Contains(out, "is not running") {
		l.t.Errorf("status tells of an agent that is back:\n%s", out)
	}
}

// TestStartWithoutAnAgent: whatever keeps the process of one agent from starting, the host starts, the other agents judge,
// and what the missing one should see is deferred until it is back by itself.
func TestStartWithoutAnAgent(t *testing.T) {
	hang := "environment = { MOCK_START = \"hang\" }\nstart_timeout = \"1s\"\n"
	for name, c := range map[string]struct {
		damage func(l *lame)
		why    string
		mend   func(l *lame)
	}{
		"the program is missing": {
			damage: func(l *lame) {
				if err := os.Remove(l.program); err != nil {
					l.t.Fatal(err)
				}
			},
			why: "no such file", mend: func(l *lame) { l.put(mockContent(l.t)) },
		},
		"the program has changed": {
			damage: func(l *lame) { l.put(append(mockContent(l.t), "damage"...)) },
			why:    "is not what it was", mend: func(l *lame) { l.put(mockContent(l.t)) },
		},
		"the program is no program any more": {
			damage: func(l *lame) {
				if err := os.Chmod(l.program, 0o644); err != nil {
					l.t.Fatal(err)
				}
			},
			why: "permission denied", mend: func(l *lame) {
				if err := os.Chmod(l.program, 0o755); err != nil {
					l.t.Fatal(err)
				}
			},
		},
		"it crashes at its start": {
			damage: func(l *lame) { l.edit("priority = 10\n", "priority = 10\nenvironment = { MOCK_START = \"exit\" }\n") },
			why:    "mock: exiting before the handshake",
			mend:   func(l *lame) { l.edit("environment = { MOCK_START = \"exit\" }\n", ""); l.MustPostern("reload") },
		},
		"it says nothing": {
			damage: func(l *lame) { l.edit("priority = 10\n", "priority = 10\n"+hang) },
			why:    "start_timeout", mend: func(l *lame) { l.edit(hang, ""); l.MustPostern("reload") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := startLame(t, "", "on \"OnRcpt\" {\n}\n")
			c.damage(l)
			l.Start()
			l.isDown(c.why)
			l.says("config.hcl:")
			client := l.Greeted()
			client.Do("MAIL FROM:<a@sender.example>", "250") // nothing that it asked for
			client.Do("RCPT TO:<b@example.org>", "451 4.3.2")
			client.Do("RSET", "250")
			c.mend(l)
			l.isBack()
			client = l.Greeted()
			accepted(t, client, "a@sender.example", "b@example.org", helloMessage)
			if got := l.WaitDropped(1)[0]; !strings.Contains(got, "X-Judge: well") {
				t.Errorf("delivered:\n%s", got)
			}
			l.Stop()
			l.Start()
			l.isBack()
		})
	}
}

// edit changes the configuration file.
func (l *lame) edit(old, now string) {
	l.t.Helper()
	text, err := os.ReadFile(l.Config)
	if err != nil || !strings.Contains(string(text), old) {
		l.t.Fatalf("%v, or no %q in the file", err, old)
	}
	l.Write(strings.Replace(string(text), old, now, 1))
}

// A file of the catalog that is damaged while the host is down keeps no other mail away, and is mended by installing it.
func TestStartWithADamagedVersion(t *testing.T) {
	h := rig.New(t, plain+versioned("~> 1.1"))
	install(t, h, "1.1.0")
	h.Start()
	program := agentNow(h, "judge").Command[0]
	h.Stop()
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/2] ^= 1
	for _, step := range []func() error{
		func() error { return os.Chmod(filepath.Dir(program), 0o755) },
		func() error { return os.Remove(program) },
		func() error { return os.WriteFile(program, content, 0o755) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	h.Start()
	judgeFails(t, h, "is not what it was", "mended by postern agent install")
	install(t, h, "1.1.0")
	h.MustPostern("agent", "restart", "judge")
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
}

// What an agent should have seen while the host runs without it follows its on_failure.
func TestPoliciesWithoutAnAgent(t *testing.T) {
	rules := "on \"OnEndOfData\" {\naction = \"continue\"\nadd_header = { \"X-Lame\" = \"seen\" }\n}\n"
	for policy, check := range map[string]func(t *testing.T, l *lame){
		"defer": func(t *testing.T, l *lame) {
			if reply := try(l.Greeted(), "b@example.org"); !strings.HasPrefix(reply, "451 4.3.2") {
				t.Errorf("got %q", reply)
			}
		},
		"reject": func(t *testing.T, l *lame) {
			if reply := try(l.Greeted(), "b@example.org"); !strings.HasPrefix(reply, "550 5.7.1") {
				t.Errorf("got %q", reply)
			}
		},
		"skip": func(t *testing.T, l *lame) {
			accepted(t, l.Greeted(), "a@sender.example", "b@example.org", helloMessage)
			if got := l.WaitDropped(1)[0]; !strings.Contains(got, "X-Postern-Skipped: lame\r\n") || !strings.Contains(got, "X-Judge: well\r\n") {
				t.Errorf("delivered:\n%s", got)
			}
		},
		"hold": func(t *testing.T, l *lame) {
			accepted(t, l.Greeted(), "a@sender.example", "b@example.org", helloMessage)
			l.WaitFor("a message that waits", func() bool {
				list := queued(l.Host)
				return len(list) == 1 && list[0].State == "waiting" && list[0].WaitingFor == "lame"
			})
			l.put(mockContent(t))
			if got := l.WaitDropped(1)[0]; !strings.Contains(got, "X-Lame: seen\r\n") || !strings.Contains(got, "X-Judge: well\r\n") {
				t.Errorf("delivered:\n%s", got)
			}
		},
	} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			l := startLame(t, fmt.Sprintf("on_failure {\nmessage = %q\n}\n", policy), rules)
			if err := os.Remove(l.program); err != nil {
				t.Fatal(err)
			}
			l.Start()
			check(t, l)
			l.put(mockContent(t))
			l.isBack()
			accepted(t, l.Greeted(), "a@sender.example", "b@example.org", helloMessage)
			l.WaitFor("a message that the agent has seen", func() bool {
				return strings.Contains(strings.Join(l.Dropped(), ""), "X-Lame: seen\r\n")
			})
		})
	}
}

// While the host runs without an agent it can be taken out, and another version brought in: what comes up may ask for other
// events than the one that ran last.
func TestOrdersWithoutAnAgent(t *testing.T) {
	l := startLame(t, "", judge("lame"))
	if err := os.Remove(l.program); err != nil {
		t.Fatal(err)
	}
	l.Start()
	if out, err := l.Postern("agent", "restart", "lame"); err == nil || !strings.Contains(out, "no such file") {
		t.Errorf("restart: %v\n%s", err, out)
	}
	if out, err := l.Postern("reload"); err == nil || !strings.Contains(out, "config.hcl:") || !strings.Contains(out, "does not exist") {
		t.Errorf("reload: %v\n%s", err, out)
	}
	l.MustPostern("agent", "disable", "lame")
	accepted(t, l.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	if got := l.WaitDropped(1)[0]; strings.Contains(got, "X-Judge: lame") || !strings.Contains(got, "X-Judge: well") {
		t.Errorf("delivered:\n%s", got)
	}
	l.put(mockContent(t))
	l.MustPostern("agent", "enable", "lame")
	l.Stop()
	if err := os.Remove(l.program); err != nil {
		t.Fatal(err)
	}
	l.Start()
	l.MustPostern("agent", "upgrade", "lame", "--command", mockVersion(t, "1.1.0"))
	waitVersion(l.Host, "lame", "1.1.0")
	accepted(t, l.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	if got := strings.Join(l.WaitDropped(2), ""); !strings.Contains(got, "X-Judge: lame") {
		t.Errorf("delivered:\n%s", got)
	}
}

// The host does not start where the file is wrong, where the agent itself says so, and where nothing is known of the agent;
// neither does the process that is to replace a running one.
func TestStartIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(l *lame)
		want   []string
	}{
		"another command that is not there": {
			damage: func(l *lame) { l.edit("./program", "./progam") }, want: []string{"config.hcl:", "progam does not exist"},
		},
		"an argument that there is not": {
			damage: func(l *lame) { l.edit("priority = 10\n", "priority = 10\nprioriti = 3\n") }, want: []string{"config.hcl:", "prioriti"},
		},
		"an option that there is not, and no program": {
			damage: func(l *lame) {
				l.edit("config {\n", "config {\nnonsense = 1\n")
				if err := os.Remove(l.program); err != nil {
					l.t.Fatal(err)
				}
			}, want: []string{"config.hcl:", "nonsense"},
		},
		"the agent does not want it": {
			damage: func(l *lame) { l.edit("config {\n", "config {\ninvalid = \"not like this\"\n") }, want: []string{"config.hcl:", "not like this"},
		},
		"an agent that never ran": {
			damage: func(l *lame) {
				l.edit("agent \"well\"", mockWith("new", 15, "environment = { MOCK_START = \"exit\" }", "")+"agent \"well\"")
			}, want: []string{"config.hcl:", "agent \"new\" cannot be asked", "Nothing is known of this agent", "mock: exiting before the handshake"},
		},
		"an agent that never ran and never gets ready": {
			damage: func(l *lame) {
				l.edit("agent \"well\"", mockWith("new", 15, "start_timeout = \"1s\"", "never_ready = true")+"agent \"well\"")
			}, want: []string{"nothing is known of agent new", "start_timeout"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := startLame(t, "", "")
			c.damage(l)
			out, err := l.Postern("serve")
			if err == nil {
				t.Error("the host has started, and ended well")
			}
			for _, want := range c.want {
				if !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
		})
	}
}
