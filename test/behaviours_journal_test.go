package test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

func journaling(config string) string {
	return "agent \"journaling\" {\n  priority = 70\n  when {\n    traffic = [\"external\", \"outbound\", \"internal\"]\n  }\n  config {\n" +
		"    mailbox = \"journal@archive.example\"\n    key     = \"a secret key\"\n" + config + "\n  }\n}\n"
}

// scheduled waits for the first turn of an agent's schedule, so that the next one comes when a test asks for it.
func scheduled(h *rig.Host, agent string) {
	h.WaitFor("the first turn of the schedule", func() bool {
		_, err := h.Postern("table", "get", "schedule", agent)
		return err == nil
	})
}

// journals are the reports and manifests among what a next hop got.
func journals(sink *rig.Sink) (out []rig.Received) {
	for _, m := range sink.Messages() {
		if strings.Contains(m.Content, "\r\nPostern-Journal-") {
			out = append(out, m)
		}
	}
	return out
}

// others are the messages among what a next hop got.
func others(sink *rig.Sink) int { return len(sink.Messages()) - len(journals(sink)) }

// reported sends a message and answers with its id and the reports that come of it.
func reported(t *testing.T, h *rig.Host, sink *rig.Sink, ip, sender string, to []string, content string, reports int) (string, []rig.Received) {
	t.Helper()
	before, passed := len(journals(sink)), others(sink)
	c := from(h, ip)
	c.Do("MAIL FROM:<"+sender+">", okSender)
	for _, r := range to {
		c.Do("RCPT TO:<"+r+">", okRcpt)
	}
	reply := c.Data(content)
	if masked(reply) != okQueued {
		t.Fatalf("got %s", reply)
	}
	h.WaitFor("the message and its reports", func() bool { return others(sink) > passed && len(journals(sink)) >= before+reports })
	return idOf(t, reply), journals(sink)[before:]
}

func holds(t *testing.T, m rig.Received, parts ...string) {
	t.Helper()
	for _, want := range parts {
		text, absent := strings.CutPrefix(want, "!")
		if strings.Contains(m.Content, text) == absent {
			t.Errorf("%q is in the report: %v\n%s", text, absent, m.Content)
		}
	}
}

// TestJournalingBehaviours is what the README of journaling says: what a report holds, and which rules make one.
func TestJournalingBehaviours(t *testing.T) {
	t.Parallel()
	sink := rig.StartSink(t)
	h := rig.New(t, strings.Replace(internal(sink.Addr), `accepted_domain "example.org" {`, `directory "corp" {
  file = "{dir}/corp.csv"
}
accepted_domain "example.org" {`, 1)+journaling(`
    recipients_per_report = 2
    rule "board" {
      groups = ["board@example.org"]
    }
    rule "boss" {
      addresses = ["boss@example.org"]
    }
    rule "to-sales" {
      recipients = ["sales@example.org"]
      mailbox    = "sales@archive.example"
    }
    rule "from-x" {
      senders = ["x.example"]
    }
    rule "out" {
      direction  = "outbound"
      recipients = ["far.example"]
      mailbox    = "out@archive.example"
    }`))
	writeFile(t, filepath.Join(h.Dir, "corp.csv"), "address,members\nboard@example.org,ann@example.org carl@example.org dora@example.org\n"+
		"ann@example.org,\ncarl@example.org,\ndora@example.org,\nboss@example.org,\nsales@example.org,\nb@example.org,\n")
	h.Start()
	scheduled(h, "journaling")
	told := func(id, data string) {
		t.Helper()
		r := waitRecord(h, id, "CATEGORIZE")
		if steps := r.steps("journaling", "OnRouted"); len(steps) != 1 || steps[0].Reason != "journaled" || steps[0].Data != data || len(steps[0].Edits) == 0 {
			t.Errorf("the ledger has %+v, want journaled %s", steps, data)
		}
		if why := h.MustPostern("why", id); !strings.Contains(why, "journaled ("+data+")") {
			t.Errorf("why does not tell:\n%s", why)
		}
	}
	t.Run("none", func(t *testing.T) {
		id, got := reported(t, h, sink, "192.0.2.1", "a@sender.example", []string{"b@example.org"}, helloMessage, 0)
		if r := waitRecord(h, id, "CATEGORIZE"); len(got) != 0 || len(r.steps("journaling", "OnRouted")) > 1 {
			t.Errorf("reported: %v", got)
		}
	})
	t.Run("recipient", func(t *testing.T) {
		id, got := reported(t, h, sink, "192.0.2.1", "a@sender.example", []string{"boss@example.org"}, helloMessage, 1)
		if len(got) != 1 || !strings.HasPrefix(got[0].From, "MAIL FROM:<>") || recipientsOf(got[0])[0] != "journal@archive.example" {
			t.Fatalf("%v", got)
		}
		holds(t, got[0], "From: <postmaster@edge.example>", "Subject: hello\r\n", "X-MS-Journal-Report:\r\n", "Postern-Journal-Part: 1 of 1\r\n", "Postern-Journal-Seal: ",
			"Sender: a@sender.example\r\nSubject: hello\r\nMessage-ID: ", "Recipient: boss@example.org\r\n", "Content-Type: message/rfc822", "\r\n\r\nhello\r\n")
		told(id, "boss")
	})
	t.Run("sender", func(t *testing.T) {
		id, got := reported(t, h, sink, "192.0.2.1", "y@x.example", []string{"b@example.org"}, fromLine("y@x.example"), 1)
		if len(got) != 1 {
			t.Fatalf("%v", got)
		}
		told(id, "from-x")
	})
	t.Run("two mailboxes", func(t *testing.T) {
		id, got := reported(t, h, sink, "192.0.2.1", "y@x.example", []string{"sales@example.org"}, fromLine("y@x.example"), 2)
		if len(got) != 2 || recipientsOf(got[0])[0] == recipientsOf(got[1])[0] {
			t.Fatalf("%v", got)
		}
		told(id, "to-sales, from-x")
	})
	t.Run("group, in parts", func(t *testing.T) {
		id, got := reported(t, h, sink, "192.0.2.1", "a@sender.example", []string{"board@example.org"}, helloMessage, 2)
		if len(got) != 2 {
			t.Fatalf("%v", got)
		}
		text := got[0].Content + got[1].Content
		for _, want := range []string{"Postern-Journal-Part: 1 of 2", "Postern-Journal-Part: 2 of 2", "Recipient: ann@example.org, Expanded: board@example.org",
			"Recipient: carl@example.org, Expanded: board@example.org", "Recipient: dora@example.org, Expanded: board@example.org"} {
			if strings.Count(text, want) != 1 {
				t.Errorf("%q is there %d times in\n%s", want, strings.Count(text, want), text)
			}
		}
		told(id, "board")
	})
	t.Run("direction", func(t *testing.T) {
		id, got := reported(t, h, sink, ownServer, "ann@example.org", []string{"you@far.example"}, fromLine("ann@example.org"), 1)
		if len(got) != 1 || recipientsOf(got[0])[0] != "out@archive.example" {
			t.Fatalf("%v", got)
		}
		told(id, "out")
	})
	t.Run("mail to a journal mailbox", func(t *testing.T) {
		_, got := reported(t, h, sink, ownServer, "y@x.example", []string{"journal@archive.example"}, fromLine("y@x.example"), 0)
		if len(got) != 0 {
			t.Errorf("%v", got)
		}
	})
	t.Run("verify", func(t *testing.T) { verifyArchive(t, h, sink) })
}

// verifyArchive has the archive checked that the next hop is: whole, with a report missing, with a set missing, with one altered.
func verifyArchive(t *testing.T, h *rig.Host, sink *rig.Sink) {
	h.MustPostern("table", "delete", "schedule", "journaling") // the manifests are due
	h.WaitFor("three manifests", func() bool {
		n := 0
		for _, m := range journals(sink) {
			if strings.Contains(m.Content, "\r\nPostern-Journal-Manifest: ") {
				n++
			}
		}
		return n == 3
	})
	archive := func(change func(all map[string]string)) (string, error) {
		t.Helper()
		dir, err := os.MkdirTemp(h.Dir, "archive")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		all := map[string]string{}
		for i, m := range journals(sink) {
			all[fmt.Sprintf("%02d.eml", i)] = m.Content
		}
		change(all)
		for name, text := range all {
			writeFile(t, filepath.Join(dir, name), text)
			if err := os.Chmod(filepath.Join(dir, name), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return h.Postern("agent", "run", "journaling", "--", "verify", dir)
	}
	find := func(all map[string]string, text string) string {
		t.Helper()
		for name, content := range all {
			if strings.Contains(content, text) {
				return name
			}
		}
		t.Fatalf("no report with %s", text)
		return ""
	}
	for _, c := range []struct {
		name   string
		change func(map[string]string)
		want   string
		whole  bool
	}{
		{"whole", func(map[string]string) {}, "3 manifests, 0 other messages", true},
		{"a part", func(all map[string]string) { delete(all, find(all, "Postern-Journal-Part: 2 of 2")) }, "part 2 of 2", false},
		{"a set", func(all map[string]string) { delete(all, find(all, "Recipient: boss@example.org")) }, "which a manifest lists", false},
		{"altered", func(all map[string]string) {
			name := find(all, "Recipient: boss@example.org")
			all[name] = strings.Replace(all[name], "Recipient: boss@", "Recipient: loss@", 1)
		}, "altered: envelope", false},
		{"altered with its digests", func(all map[string]string) {
			name := find(all, "Recipient: boss@example.org")
			all[name] = strings.Replace(all[name], "envelope=", "envelope=0", 1)
		}, "the seal is wrong", false},
	} {
		out, err := archive(c.change)
		if !strings.Contains(out, c.want) || (err == nil) != c.whole {
			t.Errorf("%s: %v\n%s", c.name, err, out)
		}
	}
}

// TestJournalingDeferred: an agent behind journaling puts a message off, for all or for some; it is reported once.
func TestJournalingDeferred(t *testing.T) {
	t.Parallel()
	sink := rig.StartSink(t)
	h := rig.Start(t, internal(sink.Addr)+journaling(`    rule "all" {}`)+mockAgent("doubter", 100, `
    on "OnRouted" {
      subject = "^later$"
      action  = "wait"
      delay   = "1s"
      reason  = "not yet"
      times   = 1
      per     = "message"
    }
    on "OnCategorized" {
      subject    = "^later for one$"
      recipients = ["ann@example.org"]
      action     = "wait"
      delay      = "1s"
      reason     = "not yet"
      times      = 1
      per        = "message"
    }`))
	scheduled(h, "journaling")
	for subject, to := range map[string][]string{"later": {"b@example.org"}, "later for one": {"ann@example.org", "b@example.org"}} {
		reports, messages := len(journals(sink)), others(sink)
		id, _ := reported(t, h, sink, "192.0.2.1", "a@sender.example", to, "From: a@sender.example\r\nSubject: "+subject+"\r\n\r\nhello\r\n", 1)
		h.WaitFor("all copies of "+subject, func() bool { return others(sink) == messages+len(to) })
		waitEmpty(h)
		if got := journals(sink)[reports:]; len(got) != 1 || strings.Count(got[0].Content, "\r\nRecipient: ") != len(to) {
			t.Errorf("%s: %d reports\n%v", subject, len(got), got)
		}
		deferred := false
		for _, r := range ledger(h, id) {
			deferred = deferred || r.Event == "DEFER"
		}
		if !deferred {
			t.Errorf("%s: nothing was put off", subject)
		}
	}
}

// refusedJournal starts a host whose journal mailboxes are at a next hop that answers RCPT with what rcpt says; all else goes to the sink.
func refusedJournal(t *testing.T, alternate string, rcpt func(line string) string) (*rig.Host, *rig.Sink) {
	t.Helper()
	sink := rig.StartSink(t)
	archive := rig.StartHop(t, func(line string) string {
		if strings.HasPrefix(line, "RCPT") {
			return rcpt(line)
		}
		return ""
	})
	h := rig.Start(t, internal(sink.Addr)+fmt.Sprintf(`
send_connector "archive" {
  address_spaces = ["archive.example"]
  smart_hosts    = [%q]
}
`, archive)+journaling("    alternate_mailbox = \""+alternate+"\"\n    rule \"all\" {}"))
	scheduled(h, "journaling")
	return h, sink
}

// mailboxFull is what a next hop says that takes no report.
const mailboxFull = "550 5.2.2 mailbox full"

// TestJournalingAlternate: a report that is refused for good goes to the alternate mailbox by itself, and later ones straight there, until the
// journal mailbox takes mail again.
func TestJournalingAlternate(t *testing.T) {
	t.Parallel()
	var refuses atomic.Bool
	var asked atomic.Int32
	refuses.Store(true)
	h, sink := refusedJournal(t, "spare@vault.example", func(string) string {
		asked.Add(1)
		if refuses.Load() {
			return mailboxFull
		}
		return "250 2.1.5 taken"
	})
	send := func(reports int) []rig.Received {
		_, got := reported(t, h, sink, "192.0.2.1", "a@sender.example", []string{"b@example.org"}, helloMessage, reports)
		return got
	}
	first := send(1)[0]
	if recipientsOf(first)[0] != "spare@vault.example" {
		t.Fatalf("the report went to %v", recipientsOf(first))
	}
	sets := h.MustPostern("table", "list", "journaling/sets", "--json")
	set := regexp.MustCompile(`Postern-Journal-Set: (\S+)\r\n`).FindStringSubmatch(first.Content)
	if set == nil || !strings.Contains(sets, set[1]) {
		t.Errorf("the sets are %s; the report is\n%s", sets, first.Content)
	}
	waitEmpty(h)
	if got := events(h, "POISON"); len(got) != 0 {
		t.Errorf("parked: %v", got)
	}
	if got := events(h, "FAIL"); len(got) != 0 {
		t.Errorf("failed: %v", got)
	}
	deferred := events(h, "DEFER")
	if len(deferred) != 1 || !strings.Contains(deferred[0].Reason, "a next hop refuses it: "+mailboxFull) || deferred[0].Recipients[0].Address != "journal@archive.example" {
		t.Errorf("deferred: %+v", deferred)
	}
	if got := send(1); recipientsOf(got[0])[0] != "spare@vault.example" || asked.Load() != 1 {
		t.Errorf("the second report went to %v, after the next hop was asked %d times", recipientsOf(got[0]), asked.Load())
	}
	refuses.Store(false)
	h.MustPostern("table", "delete", "journaling/unreachable", "journal@archive.example")
	send(0)
	h.WaitFor("the third report at the journal mailbox", func() bool { return asked.Load() == 2 })
	waitEmpty(h)
	if n := len(journals(sink)); n != 2 {
		t.Errorf("%d reports at the alternate mailbox", n)
	}
}

// events of a kind in the ledger.
func events(h *rig.Host, kind string) (out []record) {
	for _, r := range ledger(h, "") {
		if r.Event == kind {
			out = append(out, r)
		}
	}
	return out
}

// TestJournalingBothRefuse: what the alternate mailbox refuses, too, is kept for the operator, who may try again.
func TestJournalingBothRefuse(t *testing.T) {
	t.Parallel()
	var refuses atomic.Bool
	var lines sync.Map
	refuses.Store(true)
	h, sink := refusedJournal(t, "spare@archive.example", func(line string) string {
		n, _ := lines.LoadOrStore(strings.TrimSpace(strings.ToLower(line)), new(atomic.Int32))
		n.(*atomic.Int32).Add(1)
		if refuses.Load() {
			return mailboxFull
		}
		return "250 2.1.5 taken"
	})
	asked := func(mailbox string) (count int32) {
		lines.Range(func(line, n any) bool {
			if strings.Contains(line.(string), mailbox) {
				count += n.(*atomic.Int32).Load()
			}
			return true
		})
		return count
	}
	reported(t, h, sink, "192.0.2.1", "a@sender.example", []string{"b@example.org"}, helloMessage, 0)
	h.WaitFor("the report to be parked", func() bool { return len(queued(h, "--state", "parked")) == 1 })
	parked := queued(h, "--state", "parked")[0]
	if !strings.Contains(parked.Reason, "a next hop refuses it: "+mailboxFull) || asked("journal@") != 1 || asked("spare@") != 1 {
		t.Errorf("parked %+v after %d and %d attempts", parked, asked("journal@"), asked("spare@"))
	}
	h.MustPostern("queue", "resume", parked.ID)
	h.WaitFor("the second attempt", func() bool { return asked("spare@") == 2 })
	h.WaitFor("the report to be parked again", func() bool { return len(queued(h, "--state", "parked")) == 1 })
	refuses.Store(false)
	h.MustPostern("queue", "resume", parked.ID)
	waitEmpty(h)
	if asked("journal@") != 1 || asked("spare@") != 3 {
		t.Errorf("%d and %d attempts", asked("journal@"), asked("spare@"))
	}
}

// TestJournalingAlternateCrash kills the host when the journal mailbox refuses a report, and again when the alternate one is about to get it: it
// arrives there once.
func TestJournalingAlternateCrash(t *testing.T) {
	t.Parallel()
	stop, killed := make(chan string), make(chan struct{})
	var once [2]sync.Once
	h, sink := refusedJournal(t, "spare@archive.example", func(line string) string {
		if strings.Contains(line, "<journal@") {
			once[0].Do(func() { stop <- "refused"; <-killed })
			return mailboxFull
		}
		once[1].Do(func() { stop <- "elsewhere"; <-killed })
		return "250 2.1.5 taken"
	})
	c := from(h, "192.0.2.1")
	accepted(t, c, "a@sender.example", "b@example.org", helloMessage)
	for _, want := range []string{"refused", "elsewhere"} {
		if got := <-stop; got != want {
			t.Fatalf("the host was at %q, not at %q", got, want)
		}
		h.Kill()
		killed <- struct{}{}
		h.Start()
	}
	waitEmpty(h)
	var sent []record
	for _, r := range events(h, "SEND") {
		if strings.HasSuffix(r.Recipients[0].Address, "@archive.example") {
			sent = append(sent, r)
		}
	}
	if len(sent) != 1 || len(sent[0].Recipients) != 1 || sent[0].Recipients[0].Address != "spare@archive.example" {
		t.Errorf("sent %+v", sent)
	}
	if n := others(sink); n < 1 {
		t.Errorf("the message itself arrived %d times", n)
	}
}

// TestJournalingManifestCrash kills the host when a manifest is about to arrive: it arrives once, and its sets are in no other one.
func TestJournalingManifestCrash(t *testing.T) {
	t.Parallel()
	stop, killed := make(chan struct{}), make(chan struct{})
	var asked atomic.Int32
	h, sink := refusedJournal(t, "spare@vault.example", func(string) string {
		if asked.Add(1) == 2 {
			stop <- struct{}{}
			<-killed
		}
		return "250 2.1.5 taken"
	})
	reported(t, h, sink, "192.0.2.1", "a@sender.example", []string{"b@example.org"}, helloMessage, 0)
	h.WaitFor("the report", func() bool { return asked.Load() == 1 })
	waitEmpty(h)
	h.MustPostern("table", "delete", "schedule", "journaling") // the manifest is due
	<-stop
	h.Kill()
	killed <- struct{}{}
	h.Start()
	scheduled(h, "journaling")
	left := queued(h) // mail of a turn that a crash may have cut off waits for that turn to be made again
	if len(left) != 1 {
		t.Fatalf("the queue has %+v", left)
	}
	h.MustPostern("queue", "retry", left[0].ID)
	waitEmpty(h)
	sent := 0
	for _, r := range events(h, "SEND") {
		if strings.HasSuffix(r.Recipients[0].Address, "@archive.example") {
			sent++
		}
	}
	if rows := h.MustPostern("table", "list", "journaling/sets"); sent != 2 || asked.Load() != 3 || strings.Contains(rows, "journal@archive.example") {
		t.Errorf("%d messages to the journal mailbox, in %d attempts; the sets left are %s", sent, asked.Load(), rows)
	}
}
