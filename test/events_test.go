package test

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/posternmail/postern/test/rig"
)

// record is a line of the ledger as `postern track --json` prints it.
type record struct {
	Event, Session, Message, Item, Parent, Sender string
	Command, Reply, Agent, Version, Reason        string
	AgentEvent                                    string `json:"agent_event"`
	DryRun                                        bool   `json:"dry_run"`
	Recipients                                    []struct{ Address, Status, Reply string }
	Verdicts                                      []verdict
}

// verdict is what one agent said to one event.
type verdict struct {
	Agent, Version, Event, Verdict, Reply, Reason, Data, Failure string
	Attempt                                                      int
	Recipients, Edits, Stamps                                    []string
}

// ledger is all that the ledger knows about an id, or about everything without one.
func ledger(h *rig.Host, id string) []record {
	var found struct{ Records []record }
	args := []string{"track", "--limit", "0"}
	if id != "" {
		args = append(args, "--id", id)
	}
	h.JSON(&found, args...)
	return found.Records
}

// waitRecord waits until the ledger has a record of that event about id, and answers with the first.
func waitRecord(h *rig.Host, id, event string) (found record) {
	h.WaitFor(event+" of "+id+" in the ledger", func() bool {
		records := ledger(h, id)
		i := slices.IndexFunc(records, func(r record) bool { return r.Event == event })
		if i >= 0 {
			found = records[i]
		}
		return i >= 0
	})
	return found
}

// steps of an agent at an event.
func (r record) steps(agent, event string) (found []verdict) {
	for _, v := range r.Verdicts {
		if v.Agent == agent && v.Event == event {
			found = append(found, v)
		}
	}
	return found
}

// idOf is what stands in brackets in a reply.
func idOf(t *testing.T, reply string) string {
	t.Helper()
	from, to := strings.LastIndexByte(reply, '['), strings.LastIndexByte(reply, ']')
	if from < 0 || to < from {
		t.Fatalf("no id in %q", reply)
	}
	return reply[from+1 : to]
}

// accepted sends a message that must be accepted, and answers with its id.
func accepted(t *testing.T, c *rig.Client, from, to, content string) string {
	t.Helper()
	reply := c.Message(from, to, content)
	if !strings.HasPrefix(reply, "250 2.6.0 ") {
		t.Fatalf("got %q, want the message accepted", reply)
	}
	return idOf(t, reply)
}

// recorded are the lines of that event in the record of a mock, which is in its state folder.
func recorded(h *rig.Host, file, event string) (lines []string) {
	records, err := filepath.Glob(filepath.Join(h.Dir, "data/agents/*", file))
	if err != nil {
		panic(err)
	}
	for _, path := range records {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, event+" ") && strings.HasSuffix(line, "\n") {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

// compact takes away the spaces that protojson puts into its output at random.
func compact(s string) string { return strings.NewReplacer(`": `, `":`, `, "`, `,"`).Replace(s) }

// waitRecorded waits for an event in the record of a mock whose arguments hold all of want.
func waitRecorded(h *rig.Host, file, event string, want ...string) {
	h.WaitFor(fmt.Sprintf("%s with %q in %s", event, want, file), func() bool {
		return slices.ContainsFunc(recorded(h, file, event), func(line string) bool {
			line = compact(line)
			return !slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(line, w) })
		})
	})
}

const helloMessage = "From: a@sender.example\r\nTo: b@example.org\r\nSubject: hello\r\n\r\nhello\r\n"

// scene is a dialog in which one command is refused. Lines are "what is sent|how the reply begins".
type scene struct {
	event   string
	before  []string
	command string // refused
	name    string // of the command, in the ledger
	again   string // what the same command is answered the next time; "" where there is none
	after   []string
}

var (
	inEHLO = []string{"EHLO client.example|250"}
	inTLS  = []string{"EHLO client.example|250", "STARTTLS|220", "EHLO client.example|250"}
	inMail = append(slices.Clip(inEHLO), "MAIL FROM:<a@sender.example>|250 2.1.0 Sender OK")
	inRcpt = append(slices.Clip(inMail), "RCPT TO:<b@example.org>|250 2.1.5 Recipient OK")
	inData = append(slices.Clip(inRcpt), "DATA|354")
	whole  = append(slices.Clip(inMail[1:]), "RCPT TO:<b@example.org>|250", "DATA|354", helloMessage+".|250 2.6.0 ")
)

func scenes() []scene {
	auth := "AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00joe\x00secret"))
	return []scene{
		{event: "OnConnect", name: "CONNECT", after: []string{"NOOP|503 5.5.1 Only QUIT is accepted", "QUIT|221"}},
		{event: "OnHelo", command: "HELO client.example", again: "250 edge.example Hello", after: whole},
		{event: "OnEhlo", command: "EHLO client.example", again: "250-edge.example Hello", after: whole},
		{event: "OnStartTls", before: inEHLO, command: "STARTTLS", after: whole},
		{event: "OnAuth", before: inTLS, command: auth, again: "235 2.7.0", after: whole},
		{event: "OnEndOfAuthentication", before: inTLS, command: auth, again: "235 2.7.0", after: whole},
		{event: "OnMail", before: inEHLO, command: "MAIL FROM:<a@sender.example>", again: "250 2.1.0 Sender OK", after: whole[1:]},
		{event: "OnRcpt", before: inMail, command: "RCPT TO:<b@example.org>", again: "250 2.1.5 Recipient OK", after: whole[2:]},
		{event: "OnData", before: inRcpt, command: "DATA", again: "354 ", after: whole[3:]},
		{event: "OnEndOfHeaders", before: inData, command: helloMessage + ".", name: "MESSAGE", after: whole},
		{event: "OnEndOfData", before: inData, command: helloMessage + ".", name: "MESSAGE", after: whole},
		{event: "OnNoop", before: inMail, command: "NOOP", again: "250 2.0.0 OK", after: whole[1:]},
		{event: "OnHelp", before: inMail, command: "HELP", again: "214 2.0.0", after: whole[1:]},
	}
}

// TestRefusals has an agent refuse at each event of a session, for good and for now, with its own code and text.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, s := range scenes() {
		if s.name == "" {
			s.name, _, _ = strings.Cut(s.command, " ")
		}
		t.Run(s.event+"/reject", func(t *testing.T) { s.play(t, "reject", "554", "5.7.77") })
		switch s.event {
		case "OnConnect":
			s.after = nil
			t.Run(s.event+"/defer", func(t *testing.T) { s.play(t, "defer", "421", "4.7.77") })
		case "OnEhlo", "OnRcpt", "OnEndOfHeaders", "OnEndOfData":
			t.Run(s.event+"/defer", func(t *testing.T) { s.play(t, "defer", "451", "4.7.77") })
		}
	}
}

// play starts a host with an agent that refuses at the first sight and one that is told of it.
func (s scene) play(t *testing.T, action, code, enhanced string) {
	h := rig.New(t, authenticated+fmt.Sprintf(`
agent "refuser" {
  plugin      = "mock"
  priority    = 10
  environment = { MOCK_VERSION = "3.1.4" }
  config {
    on %q {
      action   = %q
      code     = %s
      enhanced = %q
      text     = "not at %s"
      reason   = "as told"
      times    = 1
      per      = "session"
    }
  }
}
`, s.event, action, code, enhanced, s.event)+mockAgent("witness", 20, `
    record = "seen"
    events = ["OnReject"]`))
	writeUsers(t, h)
	h.Start()
	c := h.Dial()
	if s.command != "" {
		c.Want("220 ")
	}
	say(c, s.before...)
	if s.command != "" {
		c.Send("%s", s.command)
	}
	reply := c.Reply()
	want := regexp.MustCompile("^" + regexp.QuoteMeta(code+" "+enhanced+" not at "+s.event) + ` \[[0-9a-z]{16}(\.[0-9]+)?\]$`)
	if !want.MatchString(reply) {
		t.Fatalf("got %q, want %s", reply, want)
	}
	if s.again != "" {
		c.Do(s.command, s.again)
	}
	say(c, s.after...)
	if s.command == "" && s.after == nil {
		c.WantClosed()
	}
	s.told(t, h, reply, code)
}

// told looks at what the ledger and the agent that is told of refusals know.
func (s scene) told(t *testing.T, h *rig.Host, reply, code string) {
	id := idOf(t, reply)
	r := waitRecord(h, id, "REJECT")
	if r.Command != s.name || r.Reply != reply || r.Agent != "refuser" || r.Version != "3.1.4" || r.AgentEvent != s.event || r.Reason != "as told" {
		t.Errorf("the ledger has %+v", r)
	}
	if out := h.MustPostern("why", id); !strings.Contains(out, "refuser 3.1.4 at "+s.event) {
		t.Errorf("postern why %s does not name the agent:\n%s", id, out)
	}
	waitRecorded(h, "seen", "OnReject", fmt.Sprintf(`"command":%q`, s.name), `"code":`+code, `"agent":"refuser"`, `"agent_version":"3.1.4"`)
}

// say has a dialog.
func say(c *rig.Client, lines ...string) {
	for _, l := range lines {
		send, want, _ := strings.Cut(l, "|")
		if send == "STARTTLS" {
			c.StartTLS()
			continue
		}
		c.Do(send, want)
	}
}

// authenticated is plain with a user, joe, whose password is "secret".
var authenticated = strings.Replace(plain, `["anonymous"]`, `["anonymous", "users"]`, 1) + `
users {
  file = "{dir}/users"
}
`

func writeUsers(t *testing.T, h *rig.Host) {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.Dir, "users"), fmt.Appendf(nil, "joe:%s\n", hash), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRsetDisconnect: RSET itself cannot be refused, but the agent may end the connection.
func TestRsetDisconnect(t *testing.T) {
	h := rig.Start(t, plain+mockAgent("refuser", 10, `
    on "OnRset" {
      action   = "disconnect"
      code     = 421
      enhanced = "4.7.77"
      text     = "enough of this"
    }`)+mockAgent("witness", 20, `
    record = "seen"
    events = ["OnReject", "OnDisconnect"]`))
	c := h.Greeted()
	c.Send("RSET")
	reply := c.Want("421 4.7.77 enough of this [")
	c.WantClosed()
	if r := waitRecord(h, idOf(t, reply), "REJECT"); r.Agent != "refuser" || r.Version != "1.0.0" || r.AgentEvent != "OnRset" {
		t.Errorf("the ledger has %+v", r)
	}
	waitRecorded(h, "seen", "OnReject", `"agent":"refuser"`, `"agent_version":"1.0.0"`)
	waitRecorded(h, "seen", "OnDisconnect")
}

// TestRejectDisconnect: who is told of a refusal may end the connection, at the next command.
func TestRejectDisconnect(t *testing.T) {
	h := rig.Start(t, plain+mockAgent("bouncer", 10, `
    on "OnReject" {
      action   = "disconnect"
      code     = 421
      enhanced = "4.7.78"
      text     = "out"
    }`))
	c := h.Greeted()
	c.Do("MAIL FROM:<a@sender.example>", "250")
	c.Do("RCPT TO:<x@elsewhere.example>", "550 5.7.1 Unable to relay [")
	var reply string
	h.WaitFor("the disconnect at a command", func() bool {
		c.Send("NOOP")
		reply = c.Reply()
		return !strings.HasPrefix(reply, "250")
	})
	if !strings.HasPrefix(reply, "421 4.7.78 out [") {
		t.Errorf("got %q", reply)
	}
	c.WantClosed()
}

// routingEvents are raised right of the 250 line.
var routingEvents = []string{"OnSubmitted", "OnResolved", "OnRouted", "OnCategorized"}

// TestRoutingEvents has an agent do at each routing event what can be done there.
func TestRoutingEvents(t *testing.T) {
	var rules strings.Builder
	for _, event := range routingEvents {
		for _, r := range []struct{ what, does string }{
			{"wait", "action = \"wait\"\ndelay = \"1s\"\nreason = \"not yet\"\ntimes = 1\nper = \"message\""},
			{"fail", "action = \"fail\"\ncode = 554\nenhanced = \"5.7.77\"\ntext = \"not at " + event + "\"\nreason = \"as told\""},
			{"discard", "action = \"discard\"\nreason = \"as told\""},
			{"quarantine", "action = \"quarantine\"\nreason = \"as told at " + event + "\""},
			{"edit", "add_header = { X-Event = \"" + event + "\" }"},
			{"spawn", "spawn {\nrecipients = [\"spawned." + event + "@example.org\"]\n}"},
		} {
			fmt.Fprintf(&rules, "on %q {\nsubject = \"^%s at %s$\"\n%s\n}\n", event, r.what, event, r.does)
		}
	}
	h := rig.Start(t, plain+mockAgent("router", 10, rules.String())+mockAgent("witness", 20, "record = \"seen\"\nevents = [\"OnReleased\"]\n"))
	c := h.Greeted()
	ids := map[string]string{}
	for _, event := range routingEvents {
		for _, what := range []string{"wait", "fail", "discard", "quarantine", "edit", "spawn"} {
			subject := what + " at " + event
			ids[subject] = accepted(t, c, what+"."+event+"@sender.example", "b@example.org", "Subject: "+subject+"\r\n\r\nhello\r\n")
		}
	}
	// Of each event: what waited, the notification, the edited, the spawned and what it was made of.
	h.WaitDropped(5 * len(routingEvents))
	waitEmpty(h)
	got := h.Dropped()
	if len(got) != 5*len(routingEvents) {
		t.Errorf("%d messages delivered, want %d", len(got), 5*len(routingEvents))
	}
	delivered := func(parts ...string) {
		t.Helper()
		if !slices.ContainsFunc(got, func(m string) bool {
			return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(m, p) })
		}) {
			t.Errorf("nothing delivered has all of %q", parts)
		}
	}
	logged := func(id, event, reason string) {
		t.Helper()
		if r := waitRecord(h, id, event); r.Agent != "router" && !strings.Contains(r.Reason, "router") || !strings.Contains(r.Reason, reason) {
			t.Errorf("the ledger has %+v", r)
		}
	}
	kept := quarantined(h)
	for _, event := range routingEvents {
		delivered("Subject: wait at " + event)
		logged(ids["wait at "+event], "DEFER", "not yet")
		delivered("X-Receiver: <fail."+event+"@sender.example>", "X-Sender: <>", "554 5.7.77 not at "+event, "message/delivery-status")
		delivered("Subject: edit at "+event, "X-Event: "+event+"\r\n")
		delivered("Subject: spawn at " + event)
		delivered("X-Receiver: <spawned." + event + "@example.org>")
		logged(ids["discard at "+event], "DROP", "as told")
		logged(ids["quarantine at "+event], "QUARANTINE", "as told")
		if !slices.ContainsFunc(kept, func(i item) bool {
			return i.Message == ids["quarantine at "+event] && i.Agent == "router" && i.Reason == "as told at "+event
		}) {
			t.Errorf("quarantine at %s: %+v", event, kept)
		}
	}
	released(t, h, kept, len(got))
}

// released lets everything out of quarantine. An agent is told of it, and the one that kept it does not keep it again.
func released(t *testing.T, h *rig.Host, kept []item, before int) {
	for _, i := range kept {
		h.MustPostern("quarantine", "release", i.ID)
		waitRecorded(h, "seen", "OnReleased", `"agent":"router"`, fmt.Sprintf(`"reason":%q`, i.Reason), `"verdict":"wanted"`)
	}
	h.WaitDropped(before + len(kept))
	if again := quarantined(h); len(again) != 0 {
		t.Errorf("quarantine has %+v after the release", again)
	}
}

// TestDeliveryFacts: an agent is told of deliveries, delays, failures and notifications.
func TestDeliveryFacts(t *testing.T) {
	next := rig.StartHop(t, func(line string) string {
		switch {
		case strings.HasPrefix(line, "RCPT TO:<later@"):
			return "451 4.2.1 try again"
		case strings.HasPrefix(line, "RCPT TO:<never@"):
			return "550 5.1.1 unknown here"
		}
		return ""
	})
	h := rig.Start(t, relay(next)+mockAgent("witness", 20, "record = \"seen\"\nevents = [\"OnDelivered\", \"OnDeferred\", \"OnFailed\", \"OnReported\"]\n"))
	c := h.Greeted()
	for _, to := range []string{"now", "later", "never"} {
		accepted(t, c, "a@sender.example", to+"@example.org", helloMessage)
	}
	remote := fmt.Sprintf(`"remote":%q`, next)
	for _, fact := range []struct{ event, code, enhanced, text string }{
		{"OnDelivered", "250", "2.0.0", "taken"}, {"OnDeferred", "451", "4.2.1", "try again"}, {"OnFailed", "550", "5.1.1", "unknown here"},
	} {
		waitRecorded(h, "seen", fact.event, `"connector":"next"`, remote, `"code":`+fact.code, fmt.Sprintf(`"enhanced":%q`, fact.enhanced), fact.text)
	}
	waitRecorded(h, "seen", "OnReported", `"report_id":"`)
}

// TestSchedule: an agent is called at its interval, whatever mail it judges, and told when it was called last. It may spawn.
func TestSchedule(t *testing.T) {
	h := rig.Start(t, plain+mockWith("clock", 10, `when { traffic = ["outbound"] }`, `
    record = "seen"
    every  = "1s"
    on "OnSchedule" {
      times = 1
      spawn {
        recipients = ["watcher@example.org"]
      }
      write "runs" {
        key = "first"
        op  = "add"
      }
    }`))
	waitRecorded(h, "seen", "OnSchedule", `"schedule":{}`)
	waitRecorded(h, "seen", "OnSchedule", `"last_unix_nanos":"`)
	if got := h.WaitDropped(1); !strings.Contains(got[0], "X-Receiver: <watcher@example.org>") {
		t.Errorf("delivered:\n%s", got[0])
	}
	if rows := numbers(h, "clock/runs"); rows["first"] != 1 {
		t.Errorf("table writes: %v", rows)
	}
}
