package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agenttest"
)

func TestWritesEveryEvent(t *testing.T) {
	copies := t.TempDir()
	build := func(cfg Config, r *sdk.Registrar) (*Dump, error) {
		d, err := New(cfg, r)
		if err == nil && d.file != nil { // the state folder goes away with the process: keep the file
			err = os.Link(d.file.Name(), filepath.Join(os.Getenv("DUMP_COPIES"), filepath.Base(r.StateDir())))
		}
		return d, err
	}
	a := agenttest.Start(t, build, `body = "10"`, agenttest.WithEnv("DUMP_COPIES="+copies))
	s := a.From("192.0.2.1")
	s.Connect().WantContinue()
	s.Ehlo("client.example").Mail("a@x.example").To("r@y.example").WantContinue()
	s.Data("From: <a@x.example>\nSubject: hello\n\n0123456789 and more\n").WantContinue()
	s.Submitted().WantContinue()
	s.Disconnect("quit").WantContinue()

	kinds := map[string]int{}
	for _, event := range read(t, copies) {
		kinds[event["kind"].(string)]++
		if event["kind"] == "EVENT_KIND_CONNECT" && event["session"].(map[string]any)["client"] != "192.0.2.1" {
			t.Errorf("client in %v", event)
		}
		if event["kind"] == "EVENT_KIND_END_OF_DATA" && event["body"].(map[string]any)["inline"] != "0123456789" {
			t.Errorf("body in %v", event)
		}
	}
	for _, kind := range []string{"CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "END_OF_HEADERS", "END_OF_DATA", "SUBMITTED", "DISCONNECT"} {
		if kinds["EVENT_KIND_"+kind] != 2 { // one of the two processes in turn, and the single one
			t.Errorf("%s: %d lines, want 2", kind, kinds["EVENT_KIND_"+kind])
		}
	}
}

// read the lines of all processes.
func read(t *testing.T, dir string) []map[string]any {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 3 {
		t.Fatalf("files %v, %v; want one of each process", files, err)
	}
	var events []map[string]any
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			event := map[string]any{}
			if err := json.Unmarshal([]byte(line), &event); err != nil {
				t.Fatalf("%v in %s", err, line)
			}
			events = append(events, event)
		}
	}
	return events
}
