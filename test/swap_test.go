package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// versions of the mock, built once a test run.
var versions struct {
	sync.Once
	dir string
	err error
}

// mockVersion is the path of the mock built as a version.
func mockVersion(t testing.TB, version string) string {
	t.Helper()
	versions.Do(func() {
		versions.dir = filepath.Join(rig.Bin(t), "versions")
		for _, v := range []string{"1.1.0", "1.2.0"} {
			cmd := exec.Command("go", "build", "-ldflags", "-X main.release="+v, "-o", filepath.Join(versions.dir, "mock-"+v), "../plugins/mock")
			if out, err := cmd.CombinedOutput(); err != nil {
				versions.err = fmt.Errorf("%w\n%s", err, out)
			}
		}
	})
	if versions.err != nil {
		t.Fatal(versions.err)
	}
	return mockPath(version)
}

// mockPath is where mockVersion has built a version.
func mockPath(version string) string { return filepath.Join(versions.dir, "mock-"+version) }

// agentInfo is an agent as `agent show --json` has it.
type agentInfo struct {
	Name, Version, State, Drift, Candidate string
	Command                                []string
	Instances                              []struct {
		PID      int
		State    string
		Version  string
		Restarts int
	}
}

func agentNow(h *rig.Host, name string) (one agentInfo) {
	h.JSON(&one, "agent", "show", name)
	return one
}

// waitVersion waits until one process of an agent is left that answers as a version.
func waitVersion(h *rig.Host, name, version string) {
	h.WaitFor(name+" "+version, func() bool {
		one := agentNow(h, name)
		return one.Version == version && one.State == "up"
	})
}

const judging = `
    on "OnMail" {
      action = "continue"
    }
    on "OnEndOfData" {
      action     = "continue"
      add_header = { "X-Judge" = "%s" }
    }`

func judge(text string) string { return fmt.Sprintf(judging, text) }

// versionsAt are the versions that answered for an agent at an event.
func (r record) versionsAt(agent, event string) (list []string) {
	for _, v := range r.steps(agent, event) {
		list = append(list, v.Version)
	}
	return list
}

// A new version takes over between two events of one session; rollback brings the old one back, also after a restart of
// the host, and what was ordered is shown as drift until it is taken back.
func TestUpgradeAndRollback(t *testing.T) {
	t.Parallel()
	h := rig.Start(t, plain+mockAgent("judge", 10, judge("a")))
	c := h.Greeted()
	c.Do("MAIL FROM:<a@sender.example>", "250")
	out := h.MustPostern("agent", "upgrade", "judge", "--command", mockVersion(t, "1.1.0"))
	if !strings.Contains(out, "judge 1.1.0 has followed 1.0.0") {
		t.Errorf("upgrade said %q", out)
	}
	c.Do("RCPT TO:<b@example.org>", "250")
	id := idOf(t, c.Data(helloMessage))
	r := waitRecord(h, id, "RECEIVE")
	if got := fmt.Sprint(r.versionsAt("judge", "OnMail"), r.versionsAt("judge", "OnEndOfData")); got != "[1.0.0] [1.1.0]" {
		t.Errorf("OnMail and OnEndOfData were answered by %s", got)
	}
	for _, args := range [][]string{{"agent", "list"}, {"status"}, {"check"}} {
		if out := h.MustPostern(args...); !strings.Contains(out, "mock-1.1.0") || !strings.Contains(out, "by postern agent upgrade") {
			t.Errorf("%v does not show the drift:\n%s", args, out)
		}
	}
	h.Stop()
	h.Start()
	if one := agentNow(h, "judge"); one.Version != "1.1.0" {
		t.Errorf("after a restart of the host %s runs", one.Version)
	}
	if out := h.MustPostern("agent", "rollback", "judge"); !strings.Contains(out, "judge 1.0.0 has followed 1.1.0") {
		t.Errorf("rollback said %q", out)
	}
	if out := h.MustPostern("agent", "list"); strings.Contains(out, "mock-1.1.0") {
		t.Errorf("after the rollback:\n%s", out)
	}
	h.MustPostern("agent", "reset", "judge")
	if one := agentNow(h, "judge"); one.Drift != "" || one.Version != "1.0.0" {
		t.Errorf("after reset: %+v", one)
	}
	h.WaitFor("one process", func() bool { return len(children(h.Pid())) == 1 })
}

// children of a process, of all its threads.
func children(pid int) (found []string) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range threads {
		text, _ := os.ReadFile(f)
		found = append(found, strings.Fields(string(text))...)
	}
	return found
}

// What does not start changes nothing: neither an upgrade nor a reload.
func TestFailedChangesChangeNothing(t *testing.T) {
	hcl := plain + mockAgent("judge", 10, judge("a")) + mockAgent("other", 20, judge("b"))
	h := rig.Start(t, hcl)
	before := agentNow(h, "judge").Instances[0].PID
	bad := filepath.Join(h.Dir, "bad")
	if err := os.WriteFile(bad, []byte("#!/bin/sh\necho broken >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	same := func(what string) {
		t.Helper()
		h.Write(hcl)
		if now := agentNow(h, "judge"); now.Instances[0].PID != before || now.Drift != "" {
			t.Errorf("after %s: %+v", what, now)
		}
		accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	}
	if out, err := h.Postern("agent", "upgrade", "judge", "--command", bad); err == nil || !strings.Contains(out, "broken") {
		t.Errorf("upgrade to a program that fails: %v\n%s", err, out)
	}
	same("a failed upgrade")
	h.Write(strings.Replace(hcl, `"X-Judge" = "a"`, `"X-Judge" = "a2"`, 1) + "\nagent \"third\" {\n  priority = 30\n  command = [\"./bad\"]\n}\n")
	if out, err := h.Postern("reload"); err == nil || !strings.Contains(out, "config.hcl:") || !strings.Contains(out, "broken") {
		t.Errorf("reload with an agent that fails: %v\n%s", err, out)
	}
	same("a failed reload")
	h.Write(strings.Replace(hcl, "priority = 20", "priority = twenty", 1))
	if out, err := h.Postern("reload"); err == nil || !strings.Contains(out, "config.hcl:") || !strings.Contains(out, "twenty") {
		t.Errorf("reload of nonsense: %v\n%s", err, out)
	}
	same("a reload of nonsense")
}

// A reload touches only what has changed: a config block is taken by the process that runs, a new order of agents by
// the plan alone, an environment takes a new process.
func TestReloadTouchesOnlyWhatChanged(t *testing.T) {
	one := func(text string) string { return mockAgent("one", 10, judge(text)) }
	two := func(extra string) string { return mockWith("two", 20, extra, judge("two")) }
	h := rig.Start(t, plain+one("a")+two(""))
	pids := func() [2]int {
		return [2]int{agentNow(h, "one").Instances[0].PID, agentNow(h, "two").Instances[0].PID}
	}
	first := pids()
	h.Write(plain + one("b") + two(""))
	if out := h.MustPostern("reload", "--dry-run"); !strings.Contains(out, `agent "one"`) || strings.Contains(out, `agent "two"`) {
		t.Errorf("the plan:\n%s", out)
	}
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	if got := h.WaitDropped(1)[0]; !strings.Contains(got, "X-Judge: a") {
		t.Errorf("--dry-run had an effect:\n%s", got)
	}
	h.MustPostern("reload")
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	if got := strings.Join(h.WaitDropped(2), "\n"); !strings.Contains(got, "X-Judge: b") {
		t.Errorf("the config block was not taken:\n%s", got)
	}
	if now := pids(); now != first {
		t.Errorf("a config block was not taken in place: processes %v, then %v", first, now)
	}
	h.Write(plain + one("b") + two(`timeout = "4s"`))
	h.MustPostern("reload")
	if now := pids(); now != first {
		t.Errorf("a timeout took a new process: %v, then %v", first, now)
	}
	h.Write(plain + one("b") + two(`environment = { MOCK_VERSION = "3.0.0" }`))
	h.MustPostern("reload")
	if now := pids(); now[0] != first[0] || now[1] == first[1] || agentNow(h, "two").Version != "3.0.0" {
		t.Errorf("an environment: processes %v, then %v", first, now)
	}
	h.Write(plain + one("b"))
	h.MustPostern("reload")
	if out := h.MustPostern("agent", "list"); strings.Contains(out, "two") {
		t.Errorf("a removed agent is listed:\n%s", out)
	}
	if out := h.MustPostern("reload"); !strings.Contains(out, "nothing has changed") {
		t.Errorf("a reload of the same:\n%s", out)
	}
}

// A conversation keeps the agents and the configuration that it began its mail with; SIGHUP reloads.
func TestPlanIsPinnedUntilTheNextMail(t *testing.T) {
	hcl := plain + mockAgent("judge", 10, judge("a"))
	h := rig.Start(t, hcl)
	c := h.Greeted()
	c.Do("MAIL FROM:<a@sender.example>", "250")
	h.Write(hcl + mockAgent("refuser", 20, "on \"OnRcpt\" {\naction = \"reject\"\n}\n"))
	if err := syscall.Kill(h.Pid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	waitVersion(h, "judge", "1.0.0")
	h.WaitFor("the new agent", func() bool { return strings.Contains(h.MustPostern("agent", "list"), "refuser") })
	c.Do("RCPT TO:<b@example.org>", "250")
	c.Data(helloMessage)
	c.Do("MAIL FROM:<a@sender.example>", "250")
	c.Do("RCPT TO:<b@example.org>", "550")
	h.MustPostern("agent", "disable", "refuser")
	c.Do("RCPT TO:<b@example.org>", "550") // of the plan it was begun with
	c.Do("RSET", "250")
	c.Do("MAIL FROM:<a@sender.example>", "250")
	c.Do("RCPT TO:<b@example.org>", "250")
	h.MustPostern("agent", "enable", "refuser")
	c.Do("RSET", "250")
	c.Do("MAIL FROM:<a@sender.example>", "250")
	c.Do("RCPT TO:<b@example.org>", "550")
}

// Mail that waits for an agent is released when the agent is replaced by one that answers, and does not wait for one
// that was disabled.
func TestWaitingIsReleasedByChanges(t *testing.T) {
	broken := mockWith("scanner", 10, `timeout = "200ms"`, "on \"OnSubmitted\" {\nmisbehave = \"never\"\n}\n")
	for name, mend := range map[string]func(h *rig.Host){
		"disabled": func(h *rig.Host) { h.MustPostern("agent", "disable", "scanner") },
		"replaced": func(h *rig.Host) {
			h.Write(plain + mockAgent("scanner", 10, judge("a")))
			h.MustPostern("reload")
		},
		"removed": func(h *rig.Host) {
			h.Write(plain)
			h.MustPostern("reload")
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := rig.Start(t, plain+broken)
			accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
			h.WaitFor("a message that waits", func() bool {
				list := queued(h)
				return len(list) == 1 && list[0].State == "waiting"
			})
			mend(h)
			h.WaitDropped(1)
		})
	}
}

// A reload covers the whole file: listeners, accepted domains, log level, send connectors.
func TestReloadOfTheRest(t *testing.T) {
	hcl := plain
	h := rig.Start(t, hcl)
	c := h.Greeted()
	second := rig.FreeAddr(t)
	hcl = strings.Replace(hcl, `accepted_domain "example.org"`, "accepted_domain \"new.example\" {\n}\naccepted_domain \"example.org\"", 1)
	hcl = strings.Replace(hcl, `"{dir}/drop"`, `"{dir}/drop2"`, 1) + fmt.Sprintf(`
receive_connector "second" {
  listen = [%q]
}
metrics {
  listen = "127.0.0.1:0"
}
`, second)
	h.Write(hcl)
	out := h.MustPostern("reload")
	if !strings.Contains(out, "takes a restart") || !strings.Contains(out, `receive_connector "second"`) {
		t.Errorf("the plan:\n%s", out)
	}
	if out := h.MustPostern("status"); !strings.Contains(out, "a restart applies it") {
		t.Errorf("what takes a restart is no drift:\n%s", out)
	}
	accepted(t, c, "a@sender.example", "b@new.example", helloMessage) // the session goes on, with its next MAIL
	h.WaitFor("a message in the new folder", func() bool {
		files, _ := filepath.Glob(filepath.Join(h.Dir, "drop2", "*.eml"))
		return len(files) == 1
	})
	first := h.Addr
	h.Addr = second
	accepted(t, h.Greeted(), "a@sender.example", "b@new.example", helloMessage)
	h.Addr = first
	h.Write(plain)
	h.MustPostern("reload")
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	h.Addr = second
	if err := h.TryDial(); err == nil {
		t.Error("the removed connector still listens")
	}
	c.Do("RSET", "250")
	c.Do("MAIL FROM:<a@sender.example>", "250")
	c.Do("RCPT TO:<b@new.example>", "550")
}

// comparison is what `agent compare --json` prints.
type comparison struct {
	State, Why, Current, Candidate string
	Sessions, Compared, Missed     uint64
	Events                         []struct {
		Event                                    string
		Compared, Verdict, Edits, Failed, Mended uint64
	}
	Disagreements []struct{ Kind, Event, Message, Current, Candidate string }
}

func compared(h *rig.Host, name string) (c comparison) {
	h.JSON(&c, "agent", "compare", name)
	return c
}

// sendMany sends messages, each in a session of its own, and answers with their ids.
func sendMany(t *testing.T, h *rig.Host, n int) (ids []string) {
	t.Helper()
	for range n {
		c := h.Greeted()
		ids = append(ids, accepted(t, c, "a@sender.example", "b@example.org", helloMessage))
		c.Do("QUIT", "221")
	}
	return ids
}

// everywhere has the mock answer at events on both sides of the 250 line.
const everywhere = judging + `
    on "OnSubmitted" {
      action = "continue"
    }`

// A canary judges its share of the sessions, each of them whole, also right of the 250 line, and takes over at the end of
// its time.
func TestCanary(t *testing.T) {
	h := rig.Start(t, plain+mockAgent("judge", 10, fmt.Sprintf(everywhere, "a")))
	out := h.MustPostern("agent", "upgrade", "judge", "--command", mockVersion(t, "1.1.0"), "--canary", "50%")
	if !strings.Contains(out, "1.1.0 is tried as a canary") {
		t.Errorf("upgrade said %q", out)
	}
	counts := map[string]int{}
	for _, id := range sendMany(t, h, 24) {
		received := waitRecord(h, id, "RECEIVE")
		sent := waitRecord(h, id, "SEND")
		_ = sent
		seen := map[string]bool{}
		for _, r := range ledger(h, id) {
			for _, event := range []string{"OnMail", "OnEndOfData", "OnSubmitted"} {
				for _, v := range r.versionsAt("judge", event) {
					seen[v] = true
				}
			}
		}
		if len(seen) != 1 {
			t.Errorf("message %s was judged by %v", id, seen)
		}
		counts[received.versionsAt("judge", "OnEndOfData")[0]]++
	}
	if counts["1.0.0"] == 0 || counts["1.1.0"] == 0 {
		t.Errorf("the sessions went to %v", counts)
	}
	h.WaitFor("comparisons without a disagreement", func() bool {
		c := compared(h, "judge")
		return c.State == "running" && c.Compared >= uint64(counts["1.1.0"]) && len(c.Disagreements) == 0
	})
	if out := h.MustPostern("agent", "list"); !strings.Contains(out, "canary 1.1.0") {
		t.Errorf("the trial is not listed:\n%s", out)
	}
	h.Stop()
	h.Start()
	if c := compared(h, "judge"); c.State != "running" || c.Candidate != "1.1.0" || agentNow(h, "judge").Version != "1.0.0" {
		t.Errorf("after a restart of the host: %+v", c)
	}
	h.MustPostern("agent", "promote", "judge")
	if c := compared(h, "judge"); c.State != "promoted" || agentNow(h, "judge").Version != "1.1.0" {
		t.Errorf("after promote: %+v", c)
	}
	sendMany(t, h, 2)
}

// Over a limit a candidate is taken back by itself and says why; its disagreements are listed with their messages. What
// a canary fails to answer, the other generation does: no client notices.
func TestCandidatesAreTakenBack(t *testing.T) {
	for name, c := range map[string]struct{ kind, rule, why string }{
		"a canary that decides otherwise": {"canary", `on "OnRcpt" {
  action = "tarpit"
  delay  = "1ms"
}`, "decided otherwise"},
		"a shadow that decides otherwise": {"shadow", "on \"OnRcpt\" {\naction = \"reject\"\n}", "decided otherwise"},
		"a canary that dies":              {"canary", "on \"OnRcpt\" {\nmisbehave = \"exit\"\n}", "failed"},
		"a shadow that answers nonsense":  {"shadow", "on \"OnRcpt\" {\nmisbehave = \"bad_code\"\n}", "failed"},
		"a shadow that is slow":           {"shadow", "on \"OnRcpt\" {\nsleep = \"200ms\"\n}", "took"},
	} {
		t.Run(name, func(t *testing.T) {
			with := func(rule string) string {
				return plain + mockWith("judge", 10, fmt.Sprintf("%s {\nshare = \"100%%\"\nmin_events = 4\n}\n", c.kind), rule)
			}
			h := rig.Start(t, with("on \"OnRcpt\" {\naction = \"continue\"\n}"))
			h.Write(with(c.rule))
			if out := h.MustPostern("reload"); !strings.Contains(out, "is tried beside it") {
				t.Errorf("the reload said\n%s", out)
			}
			var done comparison
			for range 40 {
				sendMany(t, h, 1)
				if done = compared(h, "judge"); done.State == "taken back" {
					break
				}
			}
			h.WaitFor("the end of the trial", func() bool { done = compared(h, "judge"); return done.State == "taken back" })
			if !strings.Contains(done.Why, c.why) || c.why != "took" && (len(done.Disagreements) == 0 || done.Disagreements[0].Message == "") {
				t.Errorf("%+v", done)
			}
			h.WaitFor("drift", func() bool { return strings.Contains(h.MustPostern("status"), "taken back") })
			if out := h.MustPostern("reload"); !strings.Contains(out, "nothing has changed") {
				t.Errorf("a reload tries it again:\n%s", out)
			}
			h.Stop()
			h.Start()
			if out := h.MustPostern("agent", "list"); !strings.Contains(out, "taken back") {
				t.Errorf("after a restart of the host:\n%s", out)
			}
			sendMany(t, h, 3)
		})
	}
}

// What cannot be kept is not done: at the next start another program would run than was ordered. To take an agent out is
// done all the same, and said to be forgotten.
func TestOrdersThatCannotBeKept(t *testing.T) {
	h := rig.Start(t, plain+mockAgent("judge", 10, "on \"OnRcpt\" {\n}"))
	if err := os.Mkdir(filepath.Join(h.Dir, "data", "agents.json.new"), 0o700); err != nil { // nothing can be written there
		t.Fatal(err)
	}
	before := processes(h, "judge")
	for _, order := range []string{"upgrade", "rollback"} {
		if out, err := h.Postern("agent", order, "judge"); err == nil || order == "upgrade" && !strings.Contains(out, "Nothing was changed.") {
			t.Errorf("%s: %v\n%s", order, err, out)
		}
	}
	if now := processes(h, "judge"); !slices.Equal(now, before) {
		t.Errorf("processes %v, and %v before", now, before)
	}
	if out, err := h.Postern("agent", "disable", "judge"); err == nil || !strings.Contains(out, "it was done, and will be forgotten") {
		t.Errorf("disable: %v\n%s", err, out)
	}
	sendMany(t, h, 1)
}

// A trial whose agent is taken out is over, also for the next start of the host, and says why; one cannot end before it begins.
func TestTrialOfAnAgentThatIsTakenOut(t *testing.T) {
	h := rig.Start(t, plain+mockAgent("judge", 10, "on \"OnRcpt\" {\n}"))
	program := filepath.Join(rig.Bin(t), "agents", "mock")
	for _, time := range []string{"-1h", "0s", "91d"} {
		if out, err := h.Postern("agent", "upgrade", "judge", "--command", program, "--canary", "50%", "--duration", time); err == nil || !strings.Contains(out, "is not between") {
			t.Errorf("%s: %v %s", time, err, out)
		}
	}
	h.MustPostern("agent", "upgrade", "judge", "--command", program, "--canary", "50%", "--duration", "1h")
	h.MustPostern("agent", "disable", "judge")
	if done := compared(h, "judge"); done.State != "taken back" || done.Why == "" {
		t.Errorf("after it was taken out: %+v", done)
	}
	h.Stop()
	h.Start()
	h.MustPostern("agent", "enable", "judge")
	if out := h.MustPostern("agent", "list"); strings.Contains(out, "TRIAL") {
		t.Errorf("after a restart:\n%s", out)
	}
	sendMany(t, h, 2)
}

// A shadow's answers have no effect: neither its verdicts nor its rows; and it sees the rows that it has written.
func TestShadowHasNoEffect(t *testing.T) {
	rule := func(table string) string {
		return "on \"OnRcpt\" {\naction = \"continue\"\nwrite \"" + table + "\" {\nkey = \"k\"\nop = \"add\"\n}\n}"
	}
	block := "shadow {\nshare = \"100%\"\n}\n"
	h := rig.Start(t, plain+mockWith("judge", 10, block, rule("seen")))
	h.Write(plain + mockWith("judge", 10, block, rule("other")))
	h.MustPostern("reload")
	sendMany(t, h, 5)
	h.WaitFor("comparisons", func() bool { return compared(h, "judge").Compared >= 5 })
	if got := numbers(h, "judge/seen")["k"]; got != 5 {
		t.Errorf("the generation that counts has written %d", got)
	}
	if got := numbers(h, "judge/other"); len(got) != 0 {
		t.Errorf("the shadow has written %v", got)
	}
	c := compared(h, "judge")
	if len(c.Disagreements) == 0 || c.Disagreements[0].Kind != "edits" {
		t.Errorf("%+v", c)
	}
	h.MustPostern("agent", "rollback", "judge")
	if c := compared(h, "judge"); c.State != "taken back" || c.Why != "by order" {
		t.Errorf("%+v", c)
	}
}

// An agent that owns something exclusively ends before its next generation starts; its events wait meanwhile and no
// client notices, also when the new one does not start and the old one comes back. It cannot be tried beside itself.
func TestExclusiveAgentsAreExchanged(t *testing.T) {
	with := func(version, extra string) string {
		return plain + mockWith("judge", 10, fmt.Sprintf("start_timeout = \"2s\"\nenvironment = {\nMOCK_EXCLUSIVE = \"port\"\nMOCK_VERSION = %q\n}\n", version), extra+judge("a"))
	}
	h := rig.Start(t, with("1.0.1", ""))
	var over atomic.Bool
	var sending sync.WaitGroup
	sending.Go(func() {
		c := h.Greeted()
		for !over.Load() {
			accepted(t, c, "a@sender.example", "b@example.org", helloMessage)
		}
	})
	h.Write(with("1.0.2", ""))
	h.MustPostern("reload")
	if one := agentNow(h, "judge"); one.Version != "1.0.2" {
		t.Errorf("after the reload: %+v", one)
	}
	h.Write(with("1.0.3", "never_ready = true\n"))
	if out, err := h.Postern("reload"); err == nil || !strings.Contains(out, "start_timeout") {
		t.Errorf("a generation that does not get ready: %v\n%s", err, out)
	}
	if one := agentNow(h, "judge"); one.Version != "1.0.2" || one.State != "up" {
		t.Errorf("after a failed reload: %+v", one)
	}
	if out, err := h.Postern("agent", "upgrade", "judge", "--command", mockVersion(t, "1.1.0"), "--canary", "10%"); err == nil || !strings.Contains(out, "owns") {
		t.Errorf("a canary of an exclusive agent: %v\n%s", err, out)
	}
	over.Store(true)
	sending.Wait()
}

// The last good generation runs where the configured one does not start after a restart of the host.
func TestLastGoodGeneration(t *testing.T) {
	hcl := func(extra string) string {
		return plain + mockWith("judge", 10, "start_timeout = \"2s\"\n", extra+judge("a"))
	}
	h := rig.Start(t, hcl(""))
	h.Stop()
	h.Write(hcl("never_ready = true\n"))
	h.Start()
	accepted(t, h.Greeted(), "a@sender.example", "b@example.org", helloMessage)
	if out := h.MustPostern("status"); !strings.Contains(out, "its last good generation") {
		t.Errorf("the drift is not shown:\n%s", out)
	}
	h.Write(hcl("record = \"\"\n"))
	h.MustPostern("reload")
	if out := h.MustPostern("status"); strings.Contains(out, "DRIFT") {
		t.Errorf("after it was mended:\n%s", out)
	}
}
