package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// script writes a program.
func script(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(shortDir(t), "scan")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCommand runs programs that behave as clamscan does, and programs that do not.
func TestCommand(t *testing.T) {
	const finds = `if grep -q virus-word $1; then echo "$1: Some.Name FOUND"; exit 1; fi; echo "$1: OK"; exit 0`
	for _, c := range []struct{ name, script, more, message, verdict, data string }{
		{"infected", finds, "", plainMessage, "reject", "Some.Name in the message (scan); Some.Name in text/plain (scan)"},
		{"infected, by file", finds, "file", plainMessage, "reject", "Some.Name in the message (scan); Some.Name in text/plain (scan)"},
		{"clean", finds, "", "Subject: x\n\nx\n", "done", "scan"},
		{"clean, by file", finds, "file", "Subject: x\n\nx\n", "done", "scan"},
		{"version", finds, `version = ["echo", "ClamAV 1.2.3/77/Thu Jan  1 09:00:00 2026"]`, "Subject: x\n\nx\n", "done", "scan ClamAV 1.2.3/77"},
		{"other version", finds, `version = ["echo", "Scan 7, signatures 12"]`, "Subject: x\n\nx\n", "done", "scan Scan 7, signatures 12"},
		{"without a name", "exit 1", "", plainMessage, "reject", "unnamed in the message (scan); unnamed in text/plain (scan)"},
		{"other codes", "echo threat=X1; exit 13", "infected = [13, 14]\nname = \"threat=([A-Z0-9]+)\"", plainMessage, "reject",
			"X1 in the message (scan); X1 in text/plain (scan)"},
		{"fails", "echo out of memory >&2; exit 2", "", plainMessage, "undetermined", "scan: exit code 2: out of memory"},
		{"killed", "kill -9 $$", "", plainMessage, "undetermined", "scan: signal: killed"},
		{"hangs", "sleep 100", "", plainMessage, "undetermined", "scan: no answer within 1s"},
		{"child hangs", "sleep 100 & sleep 100", "", plainMessage, "undetermined", "scan: no answer within 1s"},
		{"reads nothing", "exit 0", "", "Subject: x\n\n" + strings.Repeat("x", 1<<20), "done", "scan"},
		{"talks too much", "yes | head -c 3000000; exit 0", "", "Subject: x\n\nx\n", "done", "scan"},
		{"is not there", "", "gone", plainMessage, "undetermined", "scan: fork/exec /nowhere/scan: no such file or directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path, arguments, more := script(t, strings.ReplaceAll(c.script, "$1", "${1:--}")), "", c.more
			switch more {
			case "file":
				more, arguments = "", `, "{file}"`
			case "gone":
				more, path = "", "/nowhere/scan"
			}
			timeout := ""
			if strings.HasSuffix(c.data, "within 1s") {
				timeout = "timeout = \"1s\"\n" // the others have time, however busy this machine is
			}
			a := start(t, fmt.Sprintf("engine \"scan\" {\n%scommand {\nrun = [%q%s]\n%s\n}\n}\n", timeout, path, arguments, more))
			o := send(a, c.message).WantVerdict(c.verdict)
			if got := o.Answer().GetVerdicts()[0].GetData(); got != c.data {
				t.Errorf("data %q, want %q", got, c.data)
			}
		})
	}
}

// TestUpdate runs the command that updates signatures, once in the interval for all processes, and notes how that went.
func TestUpdate(t *testing.T) {
	dir := shortDir(t)
	process := func(name, text string, every time.Duration) *updates {
		return &updates{command: []string{script(t, text)}, every: every, path: filepath.Join(dir, "update-"+name), logger: hclog.NewNullLogger()}
	}
	const good = "echo updating"
	first, second := process("good", good, time.Hour), process("good", good, time.Hour)
	if at, _ := first.last(); !at.IsZero() {
		t.Errorf("updated at %s, before it ever was", at)
	}
	if !first.run(t.Context()) || second.run(t.Context()) || first.run(t.Context()) {
		t.Error("the command was not run once")
	}
	if at, problem := second.last(); at.IsZero() || problem != "" {
		t.Errorf("noted: %s, %q", at, problem)
	}
	bad := process("bad", "echo no network >&2\nexit 3\n", 0)
	for range 2 {
		if !bad.run(t.Context()) {
			t.Error("the command was not run again when it was time")
		}
		if _, problem := bad.last(); problem != "exit code 3: no network" {
			t.Errorf("noted: %q", problem)
		}
	}
	var none *updates
	if none.run(t.Context()) {
		t.Error("an update without a command")
	}
}
