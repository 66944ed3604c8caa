package test

import (
	"bytes"
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
	t.Parallel()
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
	sessions := map[string]string{}
	for name, content := range corpus {
		sessions[name] = sendAlone(t, h, content)
	}
	live := said(h, sessions)
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
			f := strings.Fields(step)
			kinds[f[0]+" "+f[3]] = true
			kinds["edits"] = kinds["edits"] || strings.Contains(step, "remove header") && strings.Contains(step, "add header")
			kinds["stamps"] = kinds["stamps"] || strings.Contains(step, "editor.answer=yes")
		}
	}
	for _, want := range []string{"OnEndOfData reject", "OnEndOfData quarantine", "OnResolved discard", "edits", "stamps"} {
		if !kinds[want] {
			t.Errorf("%s: not one of it, and so nothing shown", want)
		}
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

// sendAlone sends a message in a session of its own and answers with the id of the session.
func sendAlone(t *testing.T, h *rig.Host, content string) string {
	t.Helper()
	c := h.Dial()
	c.Want("220 ")
	c.Do("EHLO [127.0.0.1]", "250")
	c.Do("MAIL FROM:<a@sender.example> BODY=8BITMIME", "250")
	c.Do("RCPT TO:<b@example.org>", "250")
	session, _, _ := strings.Cut(idOf(t, c.Data(content)), ".")
	c.Do("QUIT", "221")
	return session
}

// said is what agents said in each session and about its message, as the ledger has it.
func said(h *rig.Host, sessions map[string]string) map[string][]string {
	records := map[string][]record{}
	h.WaitFor("all sessions in the ledger", func() bool {
		clear(records)
		for _, r := range ledger(h, "") {
			records[r.Session] = append(records[r.Session], r)
		}
		for _, id := range sessions {
			if !complete(records[id]) {
				return false
			}
		}
		return true
	})
	all := map[string][]string{}
	for name, id := range sessions {
		slices.SortStableFunc(records[id], func(a, b record) int { return place(a) - place(b) })
		for _, r := range records[id] {
			all[name] = append(all[name], inWords(r.Verdicts)...)
		}
	}
	return all
}

// complete reports whether nothing more is to come that agents say something in.
func complete(records []record) bool {
	has := func(event string) bool {
		return slices.ContainsFunc(records, func(r record) bool { return r.Event == event })
	}
	return has("SESSION") && (has("REJECT") || has("QUARANTINE") || has("CATEGORIZE"))
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
	out := h.MustPrintJSON("replay", filepath.Join(h.Dir, "corpus"), "--from", "a@sender.example", "--to", "b@example.org")
	all := map[string][]string{}
	decoder := json.NewDecoder(bytes.NewReader(out))
	for decoder.More() {
		var report struct {
			Name     string
			Verdicts []verdict
		}
		if err := decoder.Decode(&report); err != nil {
			t.Fatalf("postern replay: %v\n%.500s", err, out)
		}
		all[filepath.Base(report.Name)] = inWords(report.Verdicts)
	}
	return all
}
