package session_test

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/posternmail/postern/internal/corpora"
)

// Every look-alike of an end of data: either it is no end and the octets pass whole, or the message is refused and the
// session ends. What the smuggler puts behind is never a command.
func TestSmugglingCorpus(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(corpora.Path(t, "smtp-smuggling"), "eod-sequences.json"))
	if err != nil {
		t.Fatal(err)
	}
	var sequences []struct {
		Source, ID  string
		EOD         string `json:"eod_b64"`
		ContainsEOD bool   `json:"contains_real_eod"`
	}
	if err := json.Unmarshal(raw, &sequences); err != nil {
		t.Fatal(err)
	}
	if len(sequences) < 20 {
		t.Fatalf("%d sequences", len(sequences))
	}
	const smuggled = "MAIL FROM:<evil@x.test>\r\nRCPT TO:<b@ours.test>\r\nDATA\r\nSubject: smuggled\r\n\r\nx"
	for _, seq := range sequences {
		t.Run(seq.Source+"/"+seq.ID, func(t *testing.T) {
			eod, err := base64.StdEncoding.DecodeString(seq.EOD)
			if err != nil {
				t.Fatal(err)
			}
			h := start(t, usual())
			c := h.hello()
			c.envelope("b@ours.test")
			c.dialog("C: DATA", s354)
			before := "Subject: bait\r\n\r\nx"
			c.send(before + string(eod) + smuggled + "\r\n.\r\n")
			if seq.ContainsEOD {
				return // what follows is a transaction of the client's own making
			}
			reply := c.line()
			switch {
			case strings.HasPrefix(reply, "554 5.6.11 Bare "):
				c.closed()
				if n := len(h.spool.all()); n != 0 {
					t.Errorf("%d items", n)
				}
			case strings.HasPrefix(reply, "250 2.6.0"):
				items := h.spool.all()
				if len(items) != 1 || items[0].Mail.Sender.Address.Local != "a" {
					t.Fatalf("%d items", len(items))
				}
				got := content(t, items[0])
				if lone(got) || !strings.Contains(got, smuggled) {
					t.Errorf("content %q", got)
				}
			default:
				t.Errorf("reply %q", reply)
			}
		})
	}
}

// lone reports whether a CR or LF stands alone in s, or a line that is a single dot would end a less careful reading.
func lone(s string) bool {
	rest := strings.ReplaceAll(s, "\r\n", "")
	return strings.ContainsAny(rest, "\r\n")
}

// Dialogs of another server's tests, by the class of each reply. Texts and lists of keywords are a server's own.
func TestJamesDialogs(t *testing.T) {
	dir := filepath.Join(corpora.Path(t, "smtp-james-mpt"), "scripts")
	for _, name := range []string{"helo", "data_starts_with_starttls", "data_with_starttls", "rcpt_with_starttls"} {
		t.Run(name, func(t *testing.T) {
			raw, err := os.ReadFile(filepath.Join(dir, name+".test"))
			if err != nil {
				t.Fatal(err)
			}
			h := start(t, usual())
			c := h.dial()
			greeted := false
			for _, line := range strings.Split(strings.ReplaceAll(string(raw), "mydomain.tld", "ours.test"), "\n") {
				switch {
				case strings.HasPrefix(line, "C:"):
					c.send(strings.TrimPrefix(strings.TrimPrefix(line, "C:"), " ") + "\r\n")
				case strings.HasPrefix(line, "S: ") && len(line) > 6 && line[6] != '-':
					if line == "S: 250.*" || strings.HasPrefix(line, "S: 250 8BITMIME") || strings.HasPrefix(line, "S: 250 STARTTLS") {
						continue
					}
					reply := c.reply()
					if !greeted {
						greeted = true
						continue
					}
					if strings.Contains(reply[0], "Hello") {
						reply = c.reply()
					}
					if got := reply[len(reply)-1]; got[0] != line[3] {
						t.Errorf("%q, James says %q", got, line[3:])
					}
				}
			}
			if n := len(h.spool.all()); n != 1 {
				t.Errorf("%d items", n)
			}
		})
	}
}

// chasquidDiffers are replies of another class than chasquid's, and why.
var chasquidDiffers = map[string]string{
	"bad_data.cmy":                        "chasquid parses headers; a line that is no field passes here, for agents to judge",
	"helo.cmy":                            "speaks to a program of chasquid's test",
	"sendmail.cmy":                        "names users of chasquid's test",
	"auth_multi_dialog.cmy":               "names users of chasquid's test",
	"auth_too_many_failures.cmy":          "names users of chasquid's test",
	"message_too_big.cmy":                 "sends a file of chasquid's test",
	"line_too_long.cmy":                   "its octets are computed in Python; TestDialogs has long lines",
	"bad_data_dot_on_message_too_big.cmy": "its octets are computed in Python; TestRefusedMessages has large ones",
	"wrong_proto.cmy":                     "an HTTP request: chasquid ends the session at once",
}

// Dialogs of chasquid's tests, by the class of each reply.
func TestChasquidDialogs(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(corpora.Path(t, "smtp-chasquid"), "dialogs", "t-12-minor_dialogs", "*.cmy"))
	if err != nil || len(files) < 10 {
		t.Fatalf("%d dialogs: %v", len(files), err)
	}
	noBrackets := regexp.MustCompile(`(?i)^(MAIL FROM|RCPT TO): ?([^<> ]+@[^<> ]+)`)
	for _, file := range files {
		name := filepath.Base(file)
		t.Run(name, func(t *testing.T) {
			if why, ok := chasquidDiffers[name]; ok {
				t.Logf("left out: %s", why)
				return
			}
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := usual()
			s.receive.Limits.MaxProtocolErrors = 10
			h := start(t, s)
			var c *client
			for _, line := range strings.Split(string(raw), "\n") {
				op, arg, _ := strings.Cut(strings.TrimPrefix(line, "c "), " ")
				if !strings.HasPrefix(line, "c ") {
					continue
				}
				switch op {
				case "tcp_connect":
					c = h.dial()
				case "tls_connect":
					return
				case "->":
					arg = noBrackets.ReplaceAllString(strings.ReplaceAll(arg, "testserver", "ours.test"), "$1:<$2>")
					c.send(arg + "\r\n")
				case "~>":
					c.send(unquote(t, arg))
				case "<-", "<~":
					reply := c.reply()
					if got := reply[len(reply)-1]; len(arg) > 0 && got[0] != arg[0] {
						t.Errorf("%q, chasquid says %q", got, arg)
					}
				case "<...":
					c.reply()
				}
			}
		})
	}
}

// unquote reads a string literal of Python, as far as the dialogs have them.
func unquote(t *testing.T, s string) string {
	t.Helper()
	s = strings.Trim(s, "'\"")
	if strings.Contains(s, "' * ") {
		t.Fatalf("not understood: %q", s)
	}
	return strings.NewReplacer(`\r`, "\r", `\n`, "\n", `\\`, `\`).Replace(s)
}
