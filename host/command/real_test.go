package command

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/smtp"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/replay"
	"github.com/posternmail/postern/host/internal/tracking"
)

const realConfig = `
host {
  name     = "edge.example.org"
  data_dir = %q
}
ledger { full = true }
receive_connector "local" {
  listen      = ["127.0.0.1:%d"]
  permissions = ["anonymous"]
}
accepted_domain "example.org" { type = "authoritative" }
send_connector "drop" {
  address_spaces = ["example.org"]
  drop_directory = %q
}
agent "judge" {
  priority = 10
  command  = [%q]
  config {
    unwanted = "spam"
  }
}
`

// realHost runs `postern serve` with this test binary as its agent.
type realHost struct {
	t      *testing.T
	dir    string
	config string
	smtp   string // address
}

func startReal(t *testing.T) *realHost {
	t.Helper()
	h := newReal(t)
	ctx, stop := context.WithCancel(context.Background())
	var stderr bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &bytes.Buffer{}, stderr: &stderr, version: "1.2.3", now: time.Now}
	done := make(chan int, 1)
	go func() { done <- a.main(ctx, commands(a), []string{"serve", "--config", h.config}) }()
	t.Cleanup(func() {
		stop()
		if exit := <-done; exit != 0 {
			t.Errorf("serve: exit status %d\n%s", exit, stderr.String())
		}
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		var s admin.Status
		r := h.run("status", "--json")
		if json.Unmarshal([]byte(r.stdout), &s) == nil && len(s.Listeners) == 1 {
			h.smtp = s.Listeners[0].Address
			return h
		}
		if time.Now().After(deadline) {
			t.Fatalf("the host does not come up: %+v", r)
		}
	}
}

func newReal(t *testing.T) *realHost {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &realHost{t: t, dir: dir, config: filepath.Join(dir, "config.hcl")}
	text := fmt.Sprintf(realConfig, filepath.Join(dir, "data"), freePort(t), filepath.Join(dir, "drop"), binary)
	if err := os.WriteFile(h.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

// freePort is one that nobody listens at, a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (h *realHost) run(args ...string) result {
	h.t.Helper()
	var stdout, stderr bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr, version: "1.2.3", now: time.Now}
	place := len(args)
	if i := slices.Index(args, "--"); i >= 0 {
		place = i
	}
	exit := a.main(h.t.Context(), commands(a), slices.Insert(slices.Clone(args), place, "--config", h.config))
	return result{stdout.String(), stderr.String(), exit}
}

// want runs a command that is to succeed and to print some texts.
func (h *realHost) want(args []string, texts ...string) string {
	h.t.Helper()
	r := h.run(args...)
	if r.exit != 0 {
		h.t.Errorf("%v: exit status %d: %s%s", args, r.exit, r.stdout, r.stderr)
	}
	for _, text := range texts {
		if !strings.Contains(r.stdout, text) {
			h.t.Errorf("%v does not print %q but\n%s%s", args, text, r.stdout, r.stderr)
		}
	}
	return r.stdout
}

func (h *realHost) send(subject string, to ...string) error {
	return smtp.SendMail(h.smtp, nil, "ann@a.example", to, []byte(messageText(subject)))
}

func messageText(subject string) string {
	return "From: <ann@a.example>\r\nTo: <bob@example.org>\r\nMessage-ID: <" + strings.ReplaceAll(subject, " ", ".") + "@a.example>\r\nSubject: " +
		subject + "\r\n\r\nHello\r\n"
}

// records waits until the ledger has n records of an event.
func (h *realHost) records(event string, n int) []tracking.Record {
	h.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		var found admin.Track
		r := h.run("track", "--json", "--event", event)
		if err := json.Unmarshal([]byte(r.stdout), &found); err != nil {
			h.t.Fatalf("%v: %+v", err, r)
		}
		if len(found.Records) >= n {
			return found.Records
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("%d records of %s, not %d", len(found.Records), event, n)
		}
	}
}

func TestRealHost(t *testing.T) {
	h := startReal(t)
	if err := h.send("fine", "bob@example.org"); err != nil {
		t.Fatal(err)
	}
	refusal := h.send("all spam", "bob@example.org")
	if refusal == nil || !strings.Contains(refusal.Error(), "Not wanted here [") {
		t.Fatalf("%v", refusal)
	}
	if err := h.send("odd", "bob@example.org"); err != nil {
		t.Fatal(err)
	}
	sent := h.records("SEND", 1)[0]

	t.Run("status", func(t *testing.T) {
		h.want([]string{"status"}, "edge.example.org  ok", "judge  1.0.0    up     1/1", "1 in quarantine", "2 received, 1 refused, 1 delivered")
	})
	t.Run("pipeline", func(t *testing.T) { h.want([]string{"pipeline"}, "OnRcpt", "OnEndOfData", "judge") })
	t.Run("why delivered", func(t *testing.T) {
		h.want([]string{"why", sent.Message}, "delivered to 1 recipient", "judge 1.0.0  OnEndOfData", "add header X-Judge", "SEND")
	})
	t.Run("why refused", func(t *testing.T) {
		text := refusal.Error()
		id := text[strings.LastIndexByte(text, '[') : strings.LastIndexByte(text, ']')+1]
		h.want([]string{"why", id}, "refused", "reject: unwanted (spam)", "the client was told: 550 5.7.1 Not wanted here")
	})
	t.Run("track", func(t *testing.T) {
		h.want([]string{"track", "--sender", "ann@a.example"}, "RECEIVE", "REJECT", "QUARANTINE", "SEND")
	})
	t.Run("agent", func(t *testing.T) {
		h.want([]string{"agent", "list"}, "judge", "antispam")
		h.want([]string{"agent", "show", "judge"}, "refuses what the test wants refused", "table seen")
		h.want([]string{"agent", "restart", "judge"}, "agent judge 1.0.0 is up")
		if err := h.send("after the restart", "bob@example.org"); err != nil {
			t.Error(err)
		}
		h.want([]string{"agent", "run", "judge", "--", "train", "folder"}, "trained with folder against spam")
		if r := h.run("agent", "run", "judge", "--", "train"); r.exit != 1 || !strings.Contains(r.stderr, "nothing to train with") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("table", func(t *testing.T) {
		h.want([]string{"table", "list"}, "judge/seen")
		h.want([]string{"table", "set", "ip-block", "192.0.2.0/24", `{"by":"ann"}`, "--ttl", "1h"}, "put 192.0.2.0/24 in ip-block")
		h.want([]string{"table", "get", "ip-block", "192.0.2.77"}, `{"by":"ann"}`)
	})
	t.Run("quarantine", func(t *testing.T) { testQuarantine(t, h) })
	t.Run("verify", func(t *testing.T) {
		h.want([]string{"verify", "--to", "bob@example.org"}, "accepted", "judge 1.0.0", "done           delivered after")
		h.want([]string{"verify", "--to", "bob@example.org", "--subject", "interesting"}, "kept a copy in quarantine by judge", "done           delivered after")
		r := h.run("verify", "--to", "nobody@example.org")
		if r.exit != 1 || !strings.Contains(r.stdout, "550 5.1.1 No such user") {
			t.Errorf("%+v", r)
		}
		r = h.run("verify", "--to", "bob@example.org", "--subject", "buy spam")
		if r.exit != 1 || !strings.Contains(r.stdout, "judge 1.0.0: reject: unwanted (spam)") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("replay", func(t *testing.T) { testReplayReadsRows(t, h) })
	t.Run("config show", func(t *testing.T) {
		h.want([]string{"config", "show"}, "data_dir", "unwanted")
	})
}

func testQuarantine(t *testing.T, h *realHost) {
	var kept admin.Entries
	if err := json.Unmarshal([]byte(h.want([]string{"quarantine", "list", "--json"})), &kept); err != nil || len(kept.Items) != 1 {
		t.Fatalf("%v %+v", err, kept)
	}
	id := kept.Items[0].ID
	h.want([]string{"quarantine", "show", id}, "judge", "odd", "bob@example.org")
	h.want([]string{"quarantine", "show", id, "--raw"}, "Subject: odd\r\n", "\r\n\r\nHello\r\n")
	h.want([]string{"quarantine", "release", id}, "released "+id)
	for _, r := range h.records("SEND", 2) {
		if r.Message == kept.Items[0].Message {
			return
		}
	}
	h.records("SEND", 3) // the one of the restart may have come before
}

// testReplayReadsRows: the running host has seen the sender, and a replay knows it, and leaves no trace.
func testReplayReadsRows(t *testing.T, h *realHost) {
	file := filepath.Join(h.dir, "m.eml")
	if err := os.WriteFile(file, []byte(messageText("fine")), 0o600); err != nil {
		t.Fatal(err)
	}
	before := h.want([]string{"table", "list", "--json"})
	h.want([]string{"replay", file, "--to", "bob@example.org"}, "accepted", "seen; before", "add header X-Judge")
	h.want([]string{"replay", file, "--to", "new@example.org"}, "accepted")
	if after := h.want([]string{"table", "list", "--json"}); after != before {
		t.Errorf("the replay wrote into the tables of the host:\n%s", after)
	}
}

func TestCheck(t *testing.T) {
	h := newReal(t)
	h.want([]string{"check"}, "ok: 1 receive connector, 1 send connector, 1 agent, 0 warnings")
	text, err := os.ReadFile(h.config)
	if err != nil {
		t.Fatal(err)
	}
	broken := strings.Replace(string(text), "unwanted", "unwantet", 1)
	if err := os.WriteFile(h.config, []byte(broken), 0o600); err != nil {
		t.Fatal(err)
	}
	r := h.run("check")
	if r.exit != 1 || !strings.Contains(r.stdout, `did you mean "unwanted"?`) {
		t.Errorf("%+v", r)
	}
	r = h.run("check", "--json")
	var found []map[string]any
	if err := json.Unmarshal([]byte(r.stdout), &found); err != nil || r.exit != 1 || len(found) != 1 {
		t.Errorf("%+v %v", r, err)
	}
	if r := h.run("serve"); r.exit != 1 || !strings.Contains(r.stderr, "the host was not started") {
		t.Errorf("%+v", r)
	}
}

func TestWithoutAHost(t *testing.T) {
	h := newReal(t)
	h.want([]string{"pipeline"}, "OnRcpt", "OnEndOfData", "judge")
	h.want([]string{"config", "show"}, "example.org")
	mbox := filepath.Join(h.dir, "mbox")
	content := "From ann Mon\r\n" + messageText("fine") + "\r\nFrom ann Mon\r\n" + messageText("all spam") + "\r\nFrom ann Mon\r\n" + messageText("odd")
	if err := os.WriteFile(mbox, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	out := h.want([]string{"replay", mbox, "--ip", "192.0.2.1", "--helo", "mail.a.example", "--from", "ann@a.example", "--to", "bob@example.org", "--json"})
	decoder := json.NewDecoder(strings.NewReader(out))
	var reports [3]replay.Report
	for i := range reports {
		if err := decoder.Decode(&reports[i]); err != nil {
			t.Fatal(err)
		}
	}
	fine, spam, odd := reports[0], reports[1], reports[2]
	if fine.Result != "accepted" || fine.Client != "192.0.2.1:25025" || len(fine.Items) != 1 || fine.Items[0].Hop != "drop/drop" {
		t.Errorf("%+v", fine)
	}
	if spam.Result != "refused" || len(spam.Items) != 0 || !strings.Contains(spam.Dialog[len(spam.Dialog)-1].Reply, "Not wanted here") {
		t.Errorf("%+v", spam)
	}
	// Rows written by the first message are seen by the ones behind it.
	if spam.Verdicts[0].Reason != "seen" || fine.Verdicts[0].Reason != "" {
		t.Errorf("%+v then %+v", fine.Verdicts, spam.Verdicts)
	}
	if odd.Result != "accepted" || odd.Items[0].State != "quarantined" {
		t.Errorf("%+v", odd)
	}
	if entries, err := os.ReadDir(filepath.Join(h.dir, "data")); err == nil {
		t.Errorf("a replay without a host made %v", entries)
	}
}

func TestTrackWithoutAHost(t *testing.T) {
	h := newReal(t)
	f, err := tracking.Open(tracking.Dir(filepath.Join(h.dir, "data")), tracking.Options{})
	if err != nil {
		t.Fatal(err)
	}
	sender := "ann@a.example"
	f.Write(&tracking.Record{Event: tracking.Receive, Session: "06azv5q8e0aaaaaa", Message: "06azv5q8e0aaaaaa.1", Sender: &sender})
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	h.want([]string{"track"}, "RECEIVE", "ann@a.example")
	h.want([]string{"why", "06azv5q8e0aaaaaa.1"}, "accepted")
	if r := h.run("why", "06azv5q8e0zzzzzz"); r.exit != 1 || !strings.Contains(r.stderr, "the ledger knows nothing about it") {
		t.Errorf("%+v", r)
	}
}

func TestAgentNew(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tagger")
	r := run(t, "", "agent", "new", "tagger", "--dir", dir)
	if r.exit != 0 || !strings.Contains(r.stdout, "go test ./...") {
		t.Fatalf("%+v", r)
	}
	for _, name := range []string{"go.mod", "main.go", "tagger.go", "tagger_test.go"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if r := run(t, "", "agent", "new", "Tagger"); r.exit != 1 || !strings.Contains(r.stderr, "an agent's name") {
		t.Errorf("%+v", r)
	}
}

// What an operator does by habit or by mistake leaves the host running and within reach.
func TestHangupAndABrokenConfiguration(t *testing.T) {
	h := startReal(t)
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	h.want([]string{"status"}, "edge.example.org")

	text, err := os.ReadFile(h.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.config, append(text, "nonsense {}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	r := h.run("status")
	if r.exit != 0 || !strings.Contains(r.stdout, "edge.example.org") || !strings.Contains(r.stderr, "1 error (see postern check)") ||
		!strings.Contains(r.stdout, "config.hcl was changed after it was read: postern reload applies it") {
		t.Errorf("%+v", r)
	}
	h.want([]string{"track", "--limit", "1"})
}
