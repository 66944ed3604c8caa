package test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// TestReplay sends 100 messages of the corpora and replays them. What the agents say and change is the same.
func TestReplay(t *testing.T) {
	h := rig.New(t, plain+`
agent "connfilter" {
  priority = 10
  config {
    allow_list {
      entry "192.0.2.0/24" {
        comment = "nobody"
      }
    }
  }
}
agent "contentfilter" {
  priority = 40
  config {
    bad_phrases = ["unsubscribe", "mailing list"]
  }
}
`+mockAgent("editor", 50, `
    on "OnEndOfHeaders" {
      subject    = "^(?i)re:"
      add_header = { X-Answer = "yes" }
      stamp      = { answer = "yes" }
    }
    on "OnEndOfData" {
      subject = "^$"
      action  = "quarantine"
      reason  = "no subject"
    }
    on "OnEndOfData" {
      subject      = "[0-9]"
      body         = true
      headers      = ["Subject"]
      read_stamps  = ["editor.answer", "scl"]
      replace_header = { Subject = "numbers" }
      append_body  = "counted\r\n"
    }
    on "OnSubmitted" {
      subject = "[a-m]$"
      remove_header = ["X-Mailer"]
      add_header    = { X-Submitted = "yes" }
    }
    on "OnResolved" {
      subject = "[n-z]$"
      action  = "discard"
    }`))
	corpus := hundred(t, filepath.Join(h.Dir, "corpus"))
	h.Start()
	live := map[string][]string{}
	for name, content := range corpus {
		live[name] = sendAndLook(t, h, content)
	}
	replayed := replayAll(t, h)
	if len(replayed) != len(corpus) {
		t.Fatalf("%d of %d messages replayed", len(replayed), len(corpus))
	}
	kinds := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(corpus)) {
		if !slices.Equal(live[name], replayed[name]) {
			t.Errorf("%s\nlive:\n%s\nreplayed:\n%s", name, strings.Join(live[name], "\n"), strings.Join(replayed[name], "\n"))
		}
		for _, step := range live[name] {
			kinds[strings.Join(strings.Fields(step)[:4], " ")] = true
		}
	}
	if len(kinds) < 10 {
		t.Errorf("too little happened to show anything: %q", slices.Sorted(maps.Keys(kinds)))
	}
}

// hundred messages of the corpora, written into a folder as files. They are the same ones in each run.
func hundred(t *testing.T, dir string) map[string]string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	mails := corpusMail(t)
	byBase := map[string][]byte{}
	for path, content := range mails {
		byBase[filepath.Base(filepath.Dir(path))+"/"+filepath.Base(path)] = content
	}
	names := slices.Sorted(maps.Keys(byBase))
	chosen := map[string]string{}
	for i := range 100 {
		content := string(byBase[names[i*len(names)/100]])
		name := fmt.Sprintf("%03d.eml", i)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		chosen[name] = content
	}
	return chosen
}

// sendAndLook sends a message in a session of its own and answers with all that agents said, as the ledger has it.
func sendAndLook(t *testing.T, h *rig.Host, content string) (said []string) {
	t.Helper()
	c := h.Dial()
	c.Want("220 ")
	c.Do("EHLO [127.0.0.1]", "250")
	c.Do("MAIL FROM:<a@sender.example> BODY=8BITMIME", "250")
	c.Do("RCPT TO:<b@example.org>", "250")
	id := idOf(t, c.Data(content))
	c.Send("QUIT")
	session, _, _ := strings.Cut(id, ".")
	h.WaitFor("the end of "+id, func() bool {
		records := ledger(h, session)
		is := func(event string) func(record) bool { return func(r record) bool { return r.Event == event } }
		kept := slices.ContainsFunc(records, is("RECEIVE")) && !slices.ContainsFunc(records, is("QUARANTINE"))
		if !slices.ContainsFunc(records, is("SESSION")) || kept && !slices.ContainsFunc(records, is("CATEGORIZE")) {
			return false
		}
		slices.SortStableFunc(records, func(a, b record) int { return place(a) - place(b) })
		said = nil
		for _, r := range records {
			said = append(said, inWords(r.Verdicts)...)
		}
		return true
	})
	return said
}

// place of a record in the order in which agents are asked: the line of the session is written last.
func place(r record) int {
	return slices.Index([]string{"SESSION", "REJECT", "RECEIVE", "CATEGORIZE"}, r.Event)
}

func inWords(verdicts []verdict) (words []string) {
	for _, v := range verdicts {
		words = append(words, fmt.Sprintf("%s %s %s %s %q %q %q %q %q %q", v.Event, v.Agent, v.Version, v.Verdict, v.Reply, v.Reason, v.Data, v.Edits, v.Stamps, v.Failure))
	}
	return words
}

// replayAll replays the folder and answers with what agents said of each file.
func replayAll(t *testing.T, h *rig.Host) map[string][]string {
	t.Helper()
	out := h.MustPostern("replay", filepath.Join(h.Dir, "corpus"), "--json", "--from", "a@sender.example", "--to", "b@example.org")
	said := map[string][]string{}
	decoder := json.NewDecoder(strings.NewReader(out))
	for decoder.More() {
		var report struct {
			Name     string
			Verdicts []verdict
		}
		if err := decoder.Decode(&report); err != nil {
			t.Fatalf("postern replay: %v\n%.500s", err, out)
		}
		said[filepath.Base(report.Name)] = inWords(report.Verdicts)
	}
	return said
}
