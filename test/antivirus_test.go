package test

import (
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/posternmail/postern/internal/clamdtest"
	"github.com/posternmail/postern/internal/lack"
	"github.com/posternmail/postern/test/rig"
)

// socketDir is a folder whose paths fit a socket's address.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // agents of a host that runs as root have users of their own
		t.Fatal(err)
	}
	return dir
}

// antivirus is its block, with leave to reach sockets and to start programs.
func antivirus(arguments, config string, sockets ...string) string {
	var connect []string
	for _, s := range sockets {
		connect = append(connect, strconv.Quote("unix:"+s))
	}
	return fmt.Sprintf("agent \"antivirus\" {\npriority = 110\n%ssandbox {\nprocesses = 64\nconnect = [%s]\n}\nconfig {\n%s\n}\n}\n",
		arguments, strings.Join(connect, ", "), config)
}

func clamdAt(name, socket, more string) string {
	return fmt.Sprintf("engine %q {\n%s\nclamd {\naddress = %q\n}\n}\n", name, more, socket)
}

// attachment is a message with one file.
func attachment(name, content string) string {
	return "From: a@sender.example\r\nTo: b@example.org\r\nSubject: file\r\nMIME-Version: 1.0\r\n" +
		"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nsee the file\r\n--b\r\nContent-Type: application/octet-stream; name=\"" + name +
		"\"\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.StdEncoding.EncodeToString([]byte(content)) + "\r\n--b--\r\n"
}

// eicar is the test file, in two pieces so that this file is not it.
var eicar = `X5O!P%@AP[4\PZX54(P^)7CC)7}$` + `EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*`

// avCase is a documented behaviour of the agent: what the client reads, what the ledger says, and what the next hop gets.
type avCase struct {
	name, arguments, config, content string
	reply                            string // to the dot, without the id
	event, verdict, reason, data     string // in the ledger
	stamps                           string // left
	next                             string // in what the next hop gets; "" it gets nothing
}

// TestAntivirus has a table of what its README says, with a real clamd, programs as engines, and engines that are none.
func TestAntivirus(t *testing.T) {
	t.Parallel()
	dir := socketDir(t)
	socket, silent, gone := filepath.Join(dir, "clamd"), filepath.Join(dir, "silent"), filepath.Join(dir, "gone")
	clamdtest.Start(t, socket)
	if l, err := net.Listen("unix", silent); err != nil { // takes connections and never answers
		t.Fatal(err)
	} else {
		t.Cleanup(func() { _ = l.Close() })
	}
	if err := os.Chmod(silent, 0o777); err != nil {
		t.Fatal(err)
	}
	clamd := clamdAt("clamd", socket, "")
	infected, clean := attachment("eicar.com", eicar), attachment("hello.txt", "hello")
	const name = "Eicar-Test-String.UNOFFICIAL"
	const found = name + " in the message (clamd); " + name + " in eicar.com (clamd)"
	const accepted, refused = "250 2.6.0 ", "550 5.7.1 Message rejected because it contains malware"
	cases := []avCase{
		{"infected", "", clamd, infected, refused, "REJECT", "reject", "Malware", found, "av.status malware", ""},
		{"own text", "", clamd + `response = "Virus"`, infected, "550 5.7.1 Virus", "REJECT", "reject", "Malware", found, "av.status malware", ""},
		{"clean", "", clamd, clean, accepted, "RECEIVE", "done", "Clean", "clamd ClamAV 1.4.6", "av.status engines", "aGVsbG8="},
		{"delete", "", clamd + `external_action = "delete"`, infected, accepted, "DROP", "discard", "Malware", found, "av.status malware", ""},
		{"quarantine", "", clamd + `external_action = "quarantine"`, infected, accepted, "QUARANTINE", "quarantine", "Malware", found, "av.status malware", ""},
		{"strip", "", clamd + `external_action = "strip"`, infected, accepted, "RECEIVE", "done", "Malware", found, "av.status malware",
			base64.StdEncoding.EncodeToString([]byte("The attachment eicar.com was removed by the mail server")[:54])},
		{"engine down", "", clamdAt("clamd", gone, ""), clean, "451 4.3.2 Service temporarily unavailable, please try again later", "REJECT", "", "EngineDown", "clamd: dial: connect: no such file or directory", "", ""},
		{"engine down, pass", "", clamdAt("clamd", gone, "") + `on_engine_down = "pass"`, clean, accepted, "RECEIVE", "done", "EngineDown",
			"clamd: dial: connect: no such file or directory", "av.status", "aGVsbG8="},
		{"engine down, skip", "on_failure = \"skip\"\n", clamdAt("clamd", gone, ""), clean, accepted, "RECEIVE", "", "", "", "", "aGVsbG8="},
		{"one of two engines down", "", clamdAt("a", gone, "") + clamdAt("b", socket, ""), infected, refused, "REJECT", "reject", "Malware",
			name + " in the message (b); " + name + " in eicar.com (b)", "av.status malware", ""},
		{"engine hangs", "", clamdAt("clamd", silent, `timeout = "500ms"`), clean, "451 4.3.2 Service temporarily unavailable, please try again later", "REJECT", "", "EngineDown", "clamd: no answer within 500ms", "", ""},
		{"first engine hangs", "", clamdAt("a", silent, `timeout = "500ms"`) + clamdAt("b", socket, "") + `bias = "first"`, infected, refused,
			"REJECT", "reject", "Malware", name + " in the message (b); " + name + " in eicar.com (b)", "av.status malware", ""},
		{"majority", "", clamdAt("a", socket, "") + program("b", "exit 0") + `bias = "majority"`, infected, accepted, "RECEIVE", "done", "Clean",
			"a ClamAV 1.4.6, b", "av.status engines", "Subject: file"},
		{"command", "", program("prog", "echo 'stdin: Bad.Thing FOUND'; exit 1"), clean, refused, "REJECT", "reject", "Malware",
			"Bad.Thing in the message (prog); Bad.Thing in text/plain (prog); Bad.Thing in hello.txt (prog)", "av.status malware", ""},
		{"too large", "", clamdAt("clamd", socket, `max_size = "1KiB"`), attachment("big.bin", strings.Repeat("x", 2000)),
			"550 5.7.1 Message rejected because it is too large or too complex to be scanned", "REJECT", "reject", "OverLimit",
			"big.bin has 2000 octets, too many for every engine", "av.status", ""},
		{"too large, pass", "", clamdAt("clamd", socket, `max_size = "1KiB"`) + `over_limit = "pass"`, attachment("big.bin", strings.Repeat("x", 2000)),
			accepted, "RECEIVE", "done", "OverLimit", "big.bin has 2000 octets, too many for every engine", "av.status", "Subject: file"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.play(t, socket, silent) })
	}
}

// program is an engine block with a shell command.
func program(name, script string) string {
	return fmt.Sprintf("engine %q {\ncommand {\nrun = [\"sh\", \"-c\", %q]\n}\n}\n", name, "cat >/dev/null; "+script)
}

func (c avCase) play(t *testing.T, sockets ...string) {
	sink := rig.StartSink(t)
	h := rig.Start(t, filtered(sink.Addr)+antivirus(c.arguments, c.config, sockets...))
	reply := from(h, "192.0.2.1").Message("a@sender.example", "b@example.org", c.content)
	id := idOf(t, reply)
	if !strings.HasPrefix(reply, c.reply) || strings.HasPrefix(c.reply, "550") && reply != c.reply+" ["+id+"]" {
		t.Errorf("the client reads %q, want %q", reply, c.reply)
	}
	r := waitRecord(h, id, c.event)
	var steps []verdict
	for _, other := range ledger(h, id) {
		steps = append(steps, other.steps("antivirus", "OnEndOfData")...)
	}
	if len(steps) == 0 {
		t.Fatalf("the ledger has %+v", r)
	}
	if s := steps[0]; c.verdict != "" && (s.Verdict != c.verdict || s.Reason != c.reason || s.Data != c.data ||
		strings.Join(stampNames(s.Stamps), " ") != c.stamps) || !strings.Contains(s.Reason+s.Failure+r.Reason, c.reason) {
		t.Errorf("the ledger has %+v in %+v", s, r)
	}
	if c.next == "" {
		waitEmpty(h)
		if n := len(sink.Messages()); n != 0 {
			t.Errorf("%d messages at the next hop", n)
		}
		return
	}
	h.WaitFor("the message at the next hop", func() bool { return len(sink.Messages()) == 1 })
	if got := sink.Messages()[0].Content; !strings.Contains(got, c.next) || c.reason != "Malware" && !strings.HasSuffix(got, c.content) ||
		strings.Contains(got, "AVStamp") {
		t.Errorf("the next hop gets\n%s", got)
	}
}

// stampNames without values.
func stampNames(stamps []string) (names []string) {
	for _, s := range stamps {
		name, _, _ := strings.Cut(s, "=")
		names = append(names, strings.TrimPrefix(name, "antivirus."))
	}
	slices.Sort(names)
	return names
}

// TestAntivirusOtherMail: what is not scanned at the end of data is scanned when it is submitted. An agent before it takes a
// message away, an operator releases it.
func TestAntivirusOtherMail(t *testing.T) {
	socket := filepath.Join(socketDir(t), "clamd")
	clamdtest.Start(t, socket)
	sink := rig.StartSink(t)
	h := rig.Start(t, filtered(sink.Addr)+mockWith("first", 10, "", "on \"OnEndOfData\" {\nsubject = \"^file$\"\naction = \"quarantine\"\n}\n")+
		antivirus("", clamdAt("clamd", socket, ""), socket))
	c := from(h, "192.0.2.1")
	for _, content := range []string{attachment("eicar.com", eicar), attachment("hello.txt", "hello")} {
		id := accepted(t, c, "a@sender.example", "b@example.org", content)
		h.WaitFor("the message in quarantine", func() bool {
			return slices.ContainsFunc(quarantined(h), func(i item) bool { return i.Message == id && i.Agent == "first" })
		})
		kept := quarantined(h)
		i := slices.IndexFunc(kept, func(i item) bool { return i.Message == id && i.Agent == "first" })
		h.MustPostern("quarantine", "release", kept[i].ID)
	}
	// The harmless one gets through, the other one is kept again: nobody who could be told has authenticated.
	h.WaitFor("the released message", func() bool { return len(sink.Messages()) == 1 })
	if got := sink.Messages()[0].Content; !strings.Contains(got, "hello.txt") {
		t.Errorf("the next hop gets\n%s", got)
	}
	var kept []item
	h.WaitFor("the infected message in quarantine", func() bool {
		kept = quarantined(h)
		return len(kept) == 1 && kept[0].Agent == "antivirus" && kept[0].Reason == "Malware"
	})
	h.MustPostern("quarantine", "release", kept[0].ID) // and the operator's word is the last
	h.WaitFor("the message that was released in spite of it", func() bool { return len(sink.Messages()) == 2 })
}

// TestAntivirusNoEngine: with an empty configuration and no clamd mail flows, and says that it was not scanned; status and ledger
// say so.
func TestAntivirusNoEngine(t *testing.T) {
	if conn, err := net.Dial("tcp", "127.0.0.1:3310"); err == nil {
		_ = conn.Close()
		lack.Of(t, "a machine without a clamd at 127.0.0.1:3310")
	}
	sink := rig.StartSink(t)
	h := rig.Start(t, filtered(sink.Addr)+"agent \"antivirus\" {\npriority = 110\n}\n")
	id := accepted(t, from(h, "192.0.2.1"), "a@sender.example", "b@example.org", attachment("eicar.com", eicar))
	h.WaitFor("the message at the next hop", func() bool { return len(sink.Messages()) == 1 })
	steps := waitRecord(h, id, "RECEIVE").steps("antivirus", "OnEndOfData")
	if len(steps) != 1 || steps[0].Reason != "NoEngine" || !slices.Equal(steps[0].Stamps, []string{"av.status=unscanned"}) {
		t.Errorf("the ledger has %+v", steps)
	}
	h.WaitFor("status to tell", func() bool {
		out, _ := h.Postern("status")
		return strings.Contains(out, "virus scanner clamd") && strings.Contains(out, "no clamd at the usual places")
	})
	if n := strings.Count(h.Log(), "no clamd at the usual places"); n > 4 {
		t.Errorf("the log says it %d times", n)
	}
}

// TestAntivirusStamp: what the edge has scanned the hub, whose engine is down, need not; what a stranger stamps is worth nothing.
func TestAntivirusStamp(t *testing.T) {
	socket := filepath.Join(socketDir(t), "clamd")
	clamdtest.Start(t, socket)
	const key = "stamp_key \"2026\" {\nsecret = \"known to edge and hub\"\n}\n"
	sink := rig.StartSink(t)
	hubConfig := func(permissions string) string {
		config := strings.NewReplacer(`"10.0.0.0/24"`, `"10.0.0.0/24", "127.0.0.1"`, `["anonymous"]`, permissions, "  proxy_from  = [\"127.0.0.0/8\"]\n", "").
			Replace(filtered(sink.Addr))
		return config + antivirus("", clamdAt("clamd", "/nowhere/clamd", "")+key)
	}
	hub := rig.Start(t, hubConfig(`["own_servers"]`))
	edge := rig.Start(t, filtered(hub.Addr)+antivirus("", clamdAt("clamd", socket, "")+key, socket))
	accepted(t, from(edge, "192.0.2.1"), "a@sender.example", "b@example.org", attachment("hello.txt", "hello"))
	hub.WaitFor("the message behind the hub", func() bool { return len(sink.Messages()) == 1 })
	stamped := sink.Messages()[0].Content
	if !strings.Contains(stamped, "X-Postern-AVStamp: v=1; a=hmac-sha256; k=2026;") {
		t.Errorf("the hub hands on\n%s", stamped)
	}
	var told []verdict
	for _, r := range ledger(hub, "") {
		told = append(told, r.steps("antivirus", "OnEndOfData")...)
	}
	if len(told) != 1 || told[0].Reason != "ScannedBefore" || told[0].Data != "edge.example: clamd ClamAV 1.4.6" {
		t.Errorf("the hub's ledger has %+v", told)
	}

	c := hub.Greeted() // an own server too, but the message is another one
	if reply := c.Message("a@sender.example", "b@example.org", strings.Replace(stamped, "aGVsbG8=", "aGVsbG9=", 1)); !strings.HasPrefix(reply, "451") {
		t.Errorf("with the stamp of another message: %q", reply)
	}
	hub.Stop()
	stranger := rig.Start(t, hubConfig(`["anonymous"]`))
	if reply := stranger.Greeted().Message("a@sender.example", "b@example.org", stamped); !strings.HasPrefix(reply, "451") {
		t.Errorf("with a true stamp from a stranger: %q", reply)
	}
}

// TestAntivirusBypass: no agent can keep a message from being scanned, unless the operator grants it that.
func TestAntivirusBypass(t *testing.T) {
	socket := filepath.Join(socketDir(t), "clamd")
	clamdtest.Start(t, socket)
	sink := rig.StartSink(t)
	h := rig.Start(t, filtered(sink.Addr)+mockWith("friend", 10, "on_failure = \"skip\"\n", "on \"OnMail\" {\naction = \"bypass\"\ncategory = \"antivirus\"\n}\n")+
		antivirus("", clamdAt("clamd", socket, ""), socket))
	if reply := from(h, "192.0.2.1").Message("a@sender.example", "b@example.org", attachment("eicar.com", eicar)); !strings.HasPrefix(reply, "550 5.7.1 Message rejected because it contains malware") {
		t.Errorf("got %q", reply)
	}
}

// TestAntivirusHold: with on_failure "hold" mail is accepted while the engine is down, and scanned when it is back.
func TestAntivirusHold(t *testing.T) {
	socket := filepath.Join(socketDir(t), "clamd")
	sink := rig.StartSink(t)
	config := strings.Replace(filtered(sink.Addr), `"discard"`, `"quarantine"`, 1) + "queue {\n  glitch_interval = \"1s\"\n}\n"
	h := rig.Start(t, config+antivirus("on_failure {\nmessage = \"hold\"\n}\n", clamdAt("clamd", socket, ""), socket))
	c := from(h, "192.0.2.1")
	accepted(t, c, "a@sender.example", "b@example.org", attachment("hello.txt", "hello"))
	accepted(t, c, "a@sender.example", "b@example.org", attachment("eicar.com", eicar))
	h.WaitFor("both to wait", func() bool { return len(queued(h)) == 2 })
	if n := len(sink.Messages()); n != 0 {
		t.Fatalf("%d messages were let pass without a scan", n)
	}
	clamdtest.Start(t, socket)
	h.WaitFor("the harmless message at the next hop", func() bool { return len(sink.Messages()) == 1 })
	h.WaitFor("the infected one in quarantine", func() bool {
		return slices.ContainsFunc(quarantined(h), func(i item) bool { return i.Agent == "antivirus" && i.Reason == "Malware" })
	})
	if got := sink.Messages()[0].Content; !strings.Contains(got, "hello.txt") {
		t.Errorf("the next hop gets\n%s", got)
	}
}
