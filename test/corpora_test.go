package test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/posternmail/postern/internal/corpora"
	"github.com/posternmail/postern/test/rig"
)

// relay is a host that passes everything on to a next hop.
func relay(nextHop string) string {
	return fmt.Sprintf(`
host {
  name     = "edge.example"
  data_dir = "{dir}/data"
  max_hops = 100
}
log {
  level = "warn"
}
receive_connector "in" {
  listen      = ["{addr}"]
  permissions = ["anonymous"]
  limits {
    max_protocol_errors = 1000
  }
}
accepted_domain "example.org" {
  type = "internal_relay"
}
send_connector "next" {
  address_spaces = ["*"]
  smart_hosts    = [%q]
}
`, nextHop)
}

// corpusMail lists every message of the mail and MIME corpora with CRLF line ends.
func corpusMail(t *testing.T) map[string][]byte {
	t.Helper()
	folder := corpora.Path(t)
	dir := t.TempDir()
	archives, err := filepath.Glob(filepath.Join(folder, "m*", "handout.tar.xz"))
	if err != nil || len(archives) == 0 {
		t.Fatalf("no archives in the corpora: %v", err)
	}
	for _, a := range archives {
		to := filepath.Join(dir, filepath.Base(filepath.Dir(a)))
		if err := os.MkdirAll(to, 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("tar", "-xJf", a, "-C", to).CombinedOutput(); err != nil {
			t.Fatalf("unpacking %s: %v\n%s", a, err, out)
		}
	}
	mails := map[string][]byte{}
	for _, root := range []string{dir, folder} {
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !isMail(root, path) {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			mails[path] = canonical(b)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return mails
}

// isMail picks the messages among the files of the corpora.
func isMail(root, path string) bool {
	rel, _ := filepath.Rel(root, path)
	corpus, _, _ := strings.Cut(rel, string(filepath.Separator))
	if !strings.HasPrefix(corpus, "mail-") && !strings.HasPrefix(corpus, "mime-") {
		return false
	}
	switch filepath.Ext(path) {
	case ".xz", ".tsv", ".xml", ".md", ".json", ".py", ".mbox":
		return false
	}
	switch filepath.Base(path) {
	case "SOURCE.txt", "LICENSE", "INDEX.md":
		return false
	}
	return true
}

// canonical strips an mbox line and makes every line end CRLF, as a client that sends mail must.
func canonical(b []byte) []byte {
	if bytes.HasPrefix(b, []byte("From ")) {
		_, b, _ = bytes.Cut(b, []byte("\n"))
	}
	b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	b = bytes.ReplaceAll(b, []byte("\r"), []byte("\n"))
	b = bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))
	if !bytes.HasSuffix(b, []byte("\r\n")) {
		b = append(b, "\r\n"...)
	}
	return b
}

// TestCorporaUnchanged sends every message of the corpora through the host. Each arrives octet for octet below
// the header fields that the host put in front, or is refused with a reason that is true of it.
func TestCorporaUnchanged(t *testing.T) {
	t.Parallel()
	mails := corpusMail(t)
	sink := rig.StartSink(t)
	h := rig.Start(t, relay(sink.Addr))
	names := slices.Sorted(maps.Keys(mails))
	replies := make([]string, len(names))
	const clients = 8
	var sending sync.WaitGroup
	for client := range clients {
		sending.Go(func() { sendEvery(h, names, mails, replies, client, clients) })
	}
	sending.Wait()
	sent, refused, mended := map[string]string{}, map[string]int{}, 0 // names by recipient
	for i, reply := range replies {
		switch {
		case strings.HasPrefix(reply, "250"):
			sent[recipientOf(i)] = names[i]
		case mayRefuse(mails[names[i]], reply):
			refused[reply[:strings.LastIndexByte(reply, '[')]]++
		default:
			t.Errorf("%s is refused: %s", filepath.Base(names[i]), reply)
		}
	}
	taken := len(sent)
	h.WaitFor(fmt.Sprintf("%d messages at the next hop", taken), func() bool { return len(sink.Messages()) >= taken })
	for _, got := range sink.Messages() {
		rcpt := strings.TrimPrefix(got.To[0], "RCPT TO:<")
		rcpt, _, _ = strings.Cut(rcpt, ">")
		name, expected := sent[rcpt]
		delete(sent, rcpt)
		added, separated, same := unchanged(got.Content, string(mails[name]))
		switch {
		case !expected:
			t.Errorf("%s got a message that was not taken, or got it twice", rcpt)
		case !same:
			t.Errorf("%s has changed on its way", filepath.Base(name))
		case !strings.HasPrefix(added, "Received: ") || strings.Contains(added, "\r\n\r\n"):
			t.Errorf("%s: unexpected octets in front: %.200q", filepath.Base(name), added)
		case separated:
			mended++
		}
	}
	t.Logf("%d messages: %d arrived, all unchanged, %d of them with the empty line that was missing behind their header; refused: %v",
		len(mails), taken, mended, refused)
}

// recipientOf the message with a number.
func recipientOf(i int) string { return fmt.Sprintf("m%d@example.org", i) }

// sendEvery sends every nth message beginning with first, some hundreds to a connection, and notes the replies.
func sendEvery(h *rig.Host, names []string, mails map[string][]byte, replies []string, first, nth int) {
	var c *rig.Client
	for i := first; i < len(names); i += nth {
		if c == nil {
			c = h.Greeted()
		}
		c.Do("MAIL FROM:<corpus@sender.example> BODY=8BITMIME", "250")
		c.Do("RCPT TO:<"+recipientOf(i)+">", "250")
		replies[i] = c.Data(string(mails[names[i]]))
		if strings.HasPrefix(replies[i], "421") || i%500 < nth {
			_ = c.Conn.Close()
			c = nil
		}
	}
}

// unchanged compares what arrived with what was sent, and answers with what the host put in front. A message whose
// header is not ended by an empty line gets one: without it, fields and text could not be told apart.
func unchanged(got, sent string) (added string, separated, ok bool) {
	if strings.HasSuffix(got, sent) {
		return strings.TrimSuffix(got, sent), false, true
	}
	if len(got) < len(sent)+2 {
		return "", false, false
	}
	tail := got[len(got)-len(sent)-2:]
	i := 0
	for i < len(sent) && tail[i] == sent[i] {
		i++
	}
	if i >= 2 && tail[i-2:i] == "\r\n" && !strings.HasPrefix(tail[i:], "\r\n") {
		i -= 2 // the inserted line end is taken for the one before it
	}
	return got[:len(got)-len(tail)], true, strings.HasPrefix(tail[i:], "\r\n") && tail[i+2:] == sent[i:]
}

// mayRefuse reports whether a refusal is true of the message: NUL or an over-long line in its header, a header
// larger than the limit or one that begins with white space.
func mayRefuse(m []byte, reply string) bool {
	header, _, found := bytes.Cut(m, []byte("\r\n\r\n"))
	if !found {
		header = m
	}
	if !strings.HasPrefix(reply, "5") {
		return false
	}
	if bytes.IndexByte(header, 0) >= 0 || len(header) > 256<<10 || header[0] == ' ' || header[0] == '\t' {
		return true
	}
	for _, line := range bytes.Split(header, []byte("\r\n")) {
		if len(line) > 998 {
			return true
		}
	}
	return false
}

// TestSmugglingForms sends every end-of-data form of the smuggling corpora, followed by a second message. Each is
// refused, or the next hop gets just what was sent, as one message.
func TestSmugglingForms(t *testing.T) {
	b, err := os.ReadFile(corpora.Path(t, "smtp-smuggling", "eod-sequences.json"))
	if err != nil {
		t.Fatal(err)
	}
	var forms []map[string]any
	if err := json.Unmarshal(b, &forms); err != nil {
		t.Fatal(err)
	}
	sink := rig.StartSink(t)
	h := rig.Start(t, relay(sink.Addr))
	for i, form := range forms {
		sequence, real := endOfData(t, form)
		name := fmt.Sprintf("form %d %q", i, sequence)
		before := len(sink.Messages())
		c := h.Greeted()
		c.Do("MAIL FROM:<a@sender.example>", "250")
		c.Do("RCPT TO:<b@example.org>", "250")
		c.Do("DATA", "354")
		c.Raw("Subject: first\r\n\r\nbody" + sequence +
			"MAIL FROM:<smuggled@sender.example>\r\nRCPT TO:<b@example.org>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\n")
		reply := c.Reply()
		if real {
			continue // a true end: what follows are commands like any others
		}
		if !strings.HasPrefix(reply, "5") {
			h.WaitFor(name+" at the next hop", func() bool { return len(sink.Messages()) > before })
		}
		_ = c.Conn.Close()
		for _, m := range sink.Messages()[before:] {
			if strings.Contains(m.From, "smuggled") {
				t.Errorf("%s: a message was smuggled; the reply was %q", name, reply)
			}
		}
	}
}

// endOfData reads one form of the corpus: the octets, and whether they truly end the data.
func endOfData(t *testing.T, form map[string]any) (string, bool) {
	t.Helper()
	text, _ := form["eod_b64"].(string)
	sequence, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(sequence) == 0 {
		t.Fatalf("form %v is not understood: %v", form, err)
	}
	real, _ := form["contains_real_eod"].(bool)
	return string(sequence), real
}
