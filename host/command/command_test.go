package command

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/admin/admintest"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestMain also plays the agent of these tests: the host starts this very binary.
func TestMain(m *testing.M) {
	if os.Getenv("POSTERN_TOKEN") != "" || len(os.Args) > 1 && os.Args[1] == "train" {
		sdk.Main(sdk.Info{Name: "judge", Version: "1.0.0", Category: sdk.Antispam, Summary: "refuses what the test wants refused",
			Commands: []sdk.Command{{Name: "train", Summary: "counts its arguments", Run: train}}}, newJudge)
		return
	}
	os.Exit(m.Run())
}

// run runs one command and answers with what it printed.
type result struct {
	stdout, stderr string
	exit           int
}

func run(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	a := &app{
		stdin: strings.NewReader(stdin), stdout: &stdout, stderr: &stderr, version: "1.2.3",
		now: func() time.Time { return admintest.Now },
	}
	exit := a.main(t.Context(), commands(a), args)
	return result{stdout.String(), stderr.String(), exit}
}

// transcript shows commands with what they print, as in a terminal.
type transcript struct {
	strings.Builder
	t       *testing.T
	replace []string // old, new
}

func (tr *transcript) run(args ...string) {
	tr.t.Helper()
	r := run(tr.t, "", args...)
	fmt.Fprintf(tr, "$ postern %s\n%s", strings.Join(args, " "), r.stdout)
	for line := range strings.Lines(r.stderr) {
		fmt.Fprintf(tr, "! %s", line)
	}
	if r.exit != 0 {
		fmt.Fprintf(tr, "exit status %d\n", r.exit)
	}
	tr.WriteByte('\n')
}

var variable = regexp.MustCompile(`("pid": |pid |uid )[0-9]+`)

func (tr *transcript) compare(name string) {
	tr.t.Helper()
	got := strings.NewReplacer(tr.replace...).Replace(tr.String())
	got = variable.ReplaceAllString(got, "${1}N")
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			tr.t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		tr.t.Fatal(err)
	}
	if got != string(want) {
		tr.t.Errorf("%s differs; go test -update writes it anew. Got:\n%s", path, got)
	}
}

// fakeHost serves a played host and answers with a transcript whose commands reach it.
func fakeHost(t *testing.T) (*admintest.Host, *transcript, string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := admintest.New(t)
	socket := h.Serve(t, dir)
	return h, &transcript{t: t, replace: []string{socket, "SOCKET"}}, socket
}

func TestGolden(t *testing.T) {
	const session, message = "06azv5q8e0bbbbbb", "06azv5q8e0bbbbbb.1"
	for name, commands := range map[string][]string{
		"status": {"status", "status --json"},
		"agent": {"agent list", "agent show contentfilter", "agent show antivirus", "agent show nobody", "agent restart contentfilter",
			"agent restart antivirus", "agent list --installed", "agent list --installed --json", "agent list --json", "agent show contentfilter --json"},
		"pipeline": {"pipeline", "pipeline --event onrcpt", "pipeline --event OnRctp", "pipeline --json"},
		"queue": {"queue list", "queue list --state waiting", "queue list --limit 2", "queue list --hop none", "queue list --state gone",
			"queue show 06azv5q8e0aaaaaa.1", "queue show 06azv5q8e0aaaaad.1", "queue show 06azv5q8e0aaaaaa.1 --raw", "queue show x.1",
			"queue suspend 06azv5q8e0aaaaaa.1", "queue resume 06azv5q8e0aaaaaa.1 x.1", "queue retry --hop to-hub/10.30.0.11",
			"queue remove", "queue remove --all 06azv5q8e0aaaaaa.1", "queue remove --state parked", "queue list --json",
			"queue remove --all --json", "queue list"},
		"quarantine": {"quarantine list", "quarantine show 06azv5q8e0aaaaae.1-x", "quarantine release 06azv5q8e0aaaaae.1-x",
			"quarantine release 06azv5q8e0aaaaaa.1", "quarantine delete 06azv5q8e0aaaaae.1 --json", "quarantine list", "quarantine release"},
		"track": {"track", "track --event reject", "track --recipient bob@example.org --limit 1", "track --sender <> --json",
			"track --agent connfilter", "track --from 2031-05-06T12:00:00.1Z", "track --from tomorrow", "track --event rejcet", "track --sender nobody@a.example"},
		"why": {"why " + message, "why " + session, "why [" + session + ".2]", "why <m1@a.example>", "why 06azv5q8e0cccccc", "why " + session + ".2 --json"},
		"table": {"table list", "table list greylist --limit 2", "table list greylist --prefix 192.0.2.4", "table list reputation", "table list nothing", "table set ip-blok 192.0.2.1",
			"table get ip-block 198.51.100.77", "table set ip-block 203.0.113.0/24 --ttl 30d", "table get ip-block 203.0.113.5 --json",
			"table set ip-block x {", "table set ip-block 192.0.2.1.4", "table set recipients a@b.example", "table delete ip-block 203.0.113.0/24", "table delete ip-block 203.0.113.0/24",
			"table import ip-block testdata/block.txt", "table import ip-block testdata/block.csv --ttl 1d", "table import ip-block testdata/block.jsonl --json",
			"table list ip-block", "table import ip-block testdata/none.csv"},
		"config": {"config show", "config show --json"},
	} {
		t.Run(name, func(t *testing.T) {
			_, tr, socket := fakeHost(t)
			for _, command := range commands {
				args := strings.Fields(command)
				tr.run(append(args, "--socket", socket)...)
			}
			tr.compare(name)
		})
	}
}

// What an agent wrote before it died has several lines, and is shown so.
func TestStoryOfSeveralLines(t *testing.T) {
	var stdout bytes.Buffer
	a := &app{stdout: &stdout, stderr: &bytes.Buffer{}}
	a.printScenes([]tracking.Scene{
		{Who: "judge 1.0.0", Event: "OnData", Text: "failed to answer: it said\nno more", Details: []string{"failure: died: panic: x\n\ngoroutine 1:\n\tmain.go:7\n", "attempt 2"}},
		{Who: "host", Event: "DEFER", Text: "put off"},
	})
	const want = "" +
		"      +0s  judge 1.0.0  OnData  failed to answer: it said\n" +
		"                                  no more\n" +
		"                                  failure: died: panic: x\n" +
		"                                    \n" +
		"                                    goroutine 1:\n" +
		"                                        main.go:7\n" +
		"                                  attempt 2\n" +
		"      +0s  host         DEFER   put off\n"
	if stdout.String() != want {
		t.Errorf("got\n%s\nwant\n%s", stdout.String(), want)
	}
}

func TestMisuse(t *testing.T) {
	tr := &transcript{t: t}
	for _, command := range []string{
		"", "staus", "queue", "queue lst", "queue show", "queue show a b", "queue list --jsn", "queue list --limit", "queue list --limit x",
		"queue list --json=maybe", "--config x status", "help", "help queue list", "help nothing", "queue help", "queue list -h", "why --help",
		"version", "version --json", "replay", "replay x --ip nobody", "track -- --from",
	} {
		tr.run(strings.Fields(command)...)
	}
	tr.compare("misuse")
}

func TestNobodyIsRunning(t *testing.T) {
	dir := t.TempDir()
	tr := &transcript{t: t, replace: []string{dir, "DIR"}}
	tr.run("status", "--socket", dir+"/control.sock")
	tr.run("why", "06azv5q8e0bbbbbb", "--socket", dir+"/control.sock")
	tr.run("status", "--config", dir+"/config.hcl")
	tr.compare("nobody")
}

func TestVersionMismatchIsSaid(t *testing.T) {
	_, _, socket := fakeHost(t)
	var stdout, stderr bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr, version: "1.3.0", now: time.Now}
	if exit := a.main(t.Context(), commands(a), []string{"table", "list", "--socket", socket}); exit != 0 {
		t.Fatalf("exit %d: %s", exit, stderr.String())
	}
	if want := "postern: this command is version 1.3.0, the running host is 1.2.3\n"; stderr.String() != want {
		t.Errorf("%q", stderr.String())
	}
}

func TestFollow(t *testing.T) {
	h, _, socket := fakeHost(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out := &until{text: "POISON", found: cancel}
	a := &app{stdin: strings.NewReader(""), stdout: out, stderr: &bytes.Buffer{}, version: "1.2.3", now: time.Now}
	done := make(chan int, 1)
	go func() {
		done <- a.main(ctx, commands(a), []string{"track", "--follow", "--socket", socket, "--event", "poison"})
	}()
	for ctx.Err() == nil {
		r := admintest.Records()[0]
		r.Event = "POISON"
		h.Ledger.Write(&r)
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	if exit := <-done; exit != 0 || !strings.Contains(out.String(), "POISON") {
		t.Errorf("exit %d, printed %q", exit, out.String())
	}
}

// until calls found when text has been written.
type until struct {
	bytes.Buffer
	text  string
	found func()
}

func (u *until) Write(p []byte) (int, error) {
	n, err := u.Buffer.Write(p)
	if strings.Contains(u.String(), u.text) {
		u.found()
	}
	return n, err
}

func TestUserHash(t *testing.T) {
	r := run(t, "secret\nnot this\n", "user", "hash", "ann")
	if r.exit != 0 || !strings.HasPrefix(r.stdout, "ann:$2a$") {
		t.Errorf("%+v", r)
	}
	for stdin, want := range map[string]string{"\n": "the password is empty", strings.Repeat("x", 80): "80 bytes"} {
		if r := run(t, stdin, "user", "hash"); r.exit != 1 || !strings.Contains(r.stderr, want) {
			t.Errorf("%+v", r)
		}
	}
	if r := run(t, "x", "user", "hash", "a:b"); r.exit != 2 {
		t.Errorf("%+v", r)
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain é 漢":     "plain é 漢",
		"\x1b[31mred\a": `\x1b[31mred\a`,
		"two\r\nlines":  `two\r\nlines`,
		"\u202eevil":    `\u202eevil`,
		"bad\xffoctet":  `bad�octet`,
		"\u009b31m":     `\u009b31m`,
	} {
		if got := printable(in); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
}

func TestReadable(t *testing.T) {
	for in, want := range map[string]string{
		"panic: no": "panic: no",
		`{"a":1}`:   `{"a":1}`,
		`{"@level":"warn","@message":"odd","@timestamp":"2031-05-06T12:00:00.123Z","session":"s1","n":2}`: "2031-05-06 12:00:00Z [warn] odd n=2 session=s1",
	} {
		if got := readable(in); got != want {
			t.Errorf("%s is shown as %q, want %q", in, got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 80 * time.Microsecond: "80us", 340 * time.Millisecond: "340ms", 1200 * time.Millisecond: "1.2s", 12 * time.Second: "12s",
		125 * time.Second: "2m5s", time.Hour: "1h", 76 * time.Hour: "3d4h", -time.Minute: "-1m",
	} {
		if got := span(d); got != want {
			t.Errorf("%d is shown as %q, want %q", d, got, want)
		}
	}
}
