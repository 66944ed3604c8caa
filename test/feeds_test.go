package test

import (
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"aead.dev/minisign"

	"github.com/posternmail/postern/internal/feedtest"
	"github.com/posternmail/postern/test/rig"
)

// publisher of feeds, in a folder that agents may read.
type publisher struct {
	t      *testing.T
	dir    string
	key    string // public
	secret minisign.PrivateKey
}

func newPublisher(t *testing.T) publisher {
	t.Helper()
	public, secret := feedtest.Keys(t)
	return publisher{t, socketDir(t), public.String(), secret}
}

// pack a bundle of kinds and contents in turn.
func (p publisher) pack(name string, serial uint64, files ...string) (archive, signature []byte) {
	p.t.Helper()
	return feedtest.Pack(p.t, p.secret, name, serial, files...)
}

// put files into the folder.
func (p publisher) put(name string, archive, signature []byte) {
	p.t.Helper()
	path := filepath.Join(p.dir, name+".tar.gz")
	for file, content := range map[string][]byte{path: archive, path + ".minisig": signature} {
		if err := os.WriteFile(file, content, 0o644); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p publisher) publish(name string, serial uint64, files ...string) {
	p.t.Helper()
	archive, signature := p.pack(name, serial, files...)
	p.put(name, archive, signature)
}

// block of the feed in an agent's configuration.
func (p publisher) block(name, more string) string {
	return fmt.Sprintf("feed %q {\n  keys = [%q]\n  every = \"1s\"\n%s\n}\n", name, p.key, more)
}

func (p publisher) folder() string { return fmt.Sprintf("  directory = %q", p.dir) }

// waitStatus waits until status says all this; "!" before a text: no more.
func waitStatus(h *rig.Host, want ...string) {
	var out string
	h.WaitFor(fmt.Sprintf("status to say %q", want), func() bool {
		out, _ = h.Postern("status")
		for _, text := range want {
			text, not := strings.CutPrefix(text, "!")
			if strings.Contains(out, text) == not {
				return false
			}
		}
		return true
	})
}

// recipient says whether a client at an address may send to b@example.org.
func recipient(h *rig.Host, ip string) string {
	c := from(h, ip)
	defer c.Conn.Close()
	c.Do("MAIL FROM:<a@sender.example>", "250")
	c.Send("RCPT TO:<b@example.org>")
	return c.Reply()
}

func waitRefused(h *rig.Host, ip string) {
	h.WaitFor(ip+" to be refused", func() bool { return strings.HasPrefix(recipient(h, ip), "550 5.7.1 ") })
}

func waitTaken(h *rig.Host, ip string) {
	h.WaitFor(ip+" to be taken", func() bool { return strings.HasPrefix(recipient(h, ip), "250 ") })
}

// TestFeeds applies bundles of a folder while mail flows, and refuses what is bad with the last good one in use. Both agents
// have a feed; a restart with the folder gone keeps what is known.
func TestFeeds(t *testing.T) {
	t.Parallel()
	sink := rig.StartSink(t)
	p := newPublisher(t)
	h := rig.New(t, filtered(sink.Addr)+connfilter(p.block("lists", p.folder()))+contentfilter(p.block("filter", p.folder()))+
		"agent \"protocolanalysis\" {\n  priority = 80\n  config {\n    weight_feed = 9\n    reverse_dns = false\n  }\n}\n")
	h.Start()
	waitStatus(h, "agent connfilter works without feed lists since ", "agent contentfilter works without feed filter since ")
	if reply := recipient(h, "192.0.2.1"); !strings.HasPrefix(reply, "250 ") {
		t.Errorf("without a bundle: %s", reply)
	}

	p.publish("lists", 5, "ip-block", "192.0.2.0/27 # sends junk\n", "ip-allow", "192.0.2.7\n", "ip-reputation", "198.51.100.0/24 8 # a botnet\n203.0.113.0/24 3\n")
	waitRefused(h, "192.0.2.1")
	waitStatus(h, "!feed lists")
	refusedRcpt(t, h, from(h, "192.0.2.1"), "External client with IP address 192.0.2.1 does not have permissions to submit to this server",
		"BlockListFeed", "lists 192.0.2.0/27 (sends junk)")
	refusedRcpt(t, h, from(h, "198.51.100.1"), "External client with IP address 198.51.100.1 is blocked for a time because of its reputation",
		"FeedReputation", "lists 8 198.51.100.0/24 (a botnet)")
	for _, ip := range []string{"192.0.2.7", "203.0.113.1"} {
		if reply := recipient(h, ip); !strings.HasPrefix(reply, "250 ") {
			t.Errorf("%s: %s", ip, reply)
		}
	}

	const offer = "Subject: x\r\n\r\na miracle cure for you\r\n"
	id := accepted(t, from(h, "203.0.113.1"), "a@sender.example", "b@example.org", offer)
	if steps := waitRecord(h, id, "RECEIVE").steps("protocolanalysis", "OnEndOfData"); len(steps) != 1 || !strings.Contains(steps[0].Data, "feed 3.0 (level 3)") {
		t.Errorf("the ledger has %+v", steps)
	}
	p.publish("filter", 1, "phrases-bad", "miracle cure\n")
	h.WaitFor("the phrase to be refused", func() bool {
		c := from(h, "203.0.113.1")
		defer c.Conn.Close()
		return strings.HasPrefix(c.Message("a@sender.example", "b@example.org", offer), "550 5.7.1 Message rejected due to content restrictions [")
	})

	refuseBadBundles(h, p)

	h.Stop()
	if err := os.RemoveAll(p.dir); err != nil {
		t.Fatal(err)
	}
	h.Start()
	waitRefused(h, "198.51.100.1")
	waitStatus(h, "agent connfilter works without feed lists since ")
	if out := h.MustPostern("agent", "run", "connfilter", "--", "feed", "status"); !strings.Contains(out, "in use       serial 9") {
		t.Errorf("feed status says\n%s", out)
	}
	h.MustPostern("agent", "run", "connfilter", "--", "feed", "rollback", "lists")
	waitTaken(h, "192.0.2.99")
	waitRefused(h, "192.0.2.1")
}

// refuseBadBundles of the feed lists: 192.0.2.1 stays refused, 192.0.2.99 is refused once a good one comes.
func refuseBadBundles(h *rig.Host, p publisher) {
	archive, signature := p.pack("lists", 6, "ip-block", "192.0.2.99\n")
	_, ofOther := newPublisher(p.t).pack("lists", 6, "ip-block", "192.0.2.99\n")
	huge := make([]byte, 33<<20)
	for _, bad := range []struct {
		name               string
		archive, signature []byte
		want               string
	}{
		{"another's signature", archive, ofOther, "which is none of this feed"},
		{"cut off", archive[:60], signature, "the signature by the key"},
		{"huge", huge, []byte("x"), "has more than"},
	} {
		p.put("lists", bad.archive, bad.signature)
		waitFeedStatus(h, bad.want)
	}
	waitStatus(h, "agent connfilter works without new bundle of feed lists since ", "which is none of this feed")
	for _, bad := range []struct {
		serial     uint64
		list, want string
	}{
		{4, "192.0.2.99", "serial 4 is not above 5"},
		{7, "0.0.0.0/0", "0.0.0.0/0 is wider than any network"},
		{8, "nonsense", "0.txt:1: not an IP address, a prefix or a range"},
	} {
		p.publish("lists", bad.serial, "ip-block", bad.list)
		waitFeedStatus(h, bad.want)
		h.WaitFor("the log to say so", func() bool { return strings.Contains(h.Log(), bad.want) })
		waitRefused(h, "192.0.2.1")
		waitTaken(h, "192.0.2.99")
	}
	p.publish("lists", 9, "ip-block", "192.0.2.1\n192.0.2.99\n", "ip-reputation", "198.51.100.0/24 8\n")
	waitRefused(h, "192.0.2.99")
	waitStatus(h, "!bundle of feed lists")
}

// waitFeedStatus waits until the agent's own account of its feeds says this.
func waitFeedStatus(h *rig.Host, want string) {
	h.WaitFor("feed status to say "+want, func() bool {
		out, err := h.Postern("agent", "run", "connfilter", "--", "feed", "status")
		return err == nil && strings.Contains(out, want)
	})
}

// feedServer serves files by HTTPS, each request as long as slow says.
type feedServer struct {
	*httptest.Server
	mu   sync.Mutex
	dir  string
	slow bool
}

func (s *feedServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	slow := s.slow
	s.mu.Unlock()
	if slow {
		<-r.Context().Done()
		return
	}
	http.ServeFile(w, r, filepath.Join(s.dir, filepath.Base(r.URL.Path)))
}

func (s *feedServer) setSlow(slow bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slow = slow
}

// TestFeedHTTPS fetches from a server that is slow for a while; without leave in its sandbox the agent reaches none.
func TestFeedHTTPS(t *testing.T) {
	t.Parallel()
	p := newPublisher(t)
	s := &feedServer{dir: p.dir}
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	ca := filepath.Join(p.dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	block := p.block("lists", fmt.Sprintf("  url = %q\n  ca = %q\n  timeout = \"2s\"", s.URL+"/lists.tar.gz", ca))
	p.publish("lists", 1, "ip-block", "192.0.2.1\n")

	sink := rig.StartSink(t)
	h := rig.New(t, filtered(sink.Addr)+strings.Replace(connfilter(block), "  config", "  sandbox {\n    connect = [\"tcp:"+port+"\"]\n  }\n  config", 1))
	h.Start()
	waitRefused(h, "192.0.2.1")
	s.setSlow(true)
	waitStatus(h, "works without feed lists since", "no answer, or not all of it, within 2s")
	waitRefused(h, "192.0.2.1")
	p.publish("lists", 2, "ip-block", "192.0.2.2\n")
	s.setSlow(false)
	waitRefused(h, "192.0.2.2")
	waitTaken(h, "192.0.2.1")
	waitStatus(h, "!feed lists")
}

// TestFeedModel rates by a model that a feed brings, but not by one that is wrong of the mail of its own test.
func TestFeedModel(t *testing.T) {
	t.Parallel()
	p, sink := newPublisher(t), rig.StartSink(t)
	train := func(spam, ham string) (model, mbox string) {
		t.Helper()
		dir := t.TempDir()
		path, maildir := collections(t, dir, spam, ham)
		cmd := exec.Command(filepath.Join(rig.Bin(t), "agents", "contentfilter"), "train", "--model", filepath.Join(dir, "m"), "--spam", path, "--ham", maildir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("train: %v\n%s", err, out)
		}
		var read [2]string
		for i, file := range []string{filepath.Join(dir, "m"), path} {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			read[i] = string(content)
		}
		return read[0], read[1]
	}
	model, spam := train(spamWords, hamWords)
	contrary, ham := train(hamWords, spamWords)
	h := rig.Start(t, filtered(sink.Addr)+contentfilter("reject_at = 6\n"+p.block("filter", p.folder())))
	c, offer := from(h, "192.0.2.1"), sortedMail(spamWords, 1000)
	passed(t, h, sink, c, offer)
	p.publish("filter", 1, "model", model, "model-check-spam", spam, "model-check-ham", ham)
	h.WaitFor("spam to be refused", func() bool {
		return strings.HasPrefix(c.Message("a@sender.example", "b@example.org", offer), "550 ")
	})
	p.publish("filter", 2, "model", contrary, "model-check-spam", spam, "model-check-ham", ham)
	waitStatus(h, "agent contentfilter works without new bundle of feed filter since ", "right, not 90 %")
	refuseSpam(t, h, c, offer)
	passed(t, h, sink, c, sortedMail(hamWords, 1000))
}

// TestFeedsManual runs the example of docs/feeds.md: what its shell commands publish, its configuration uses.
func TestFeedsManual(t *testing.T) {
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	manual, err := os.ReadFile(filepath.Join(root, "docs", "feeds.md"))
	if err != nil {
		t.Fatal(err)
	}
	example := func(language string) string {
		m := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindSubmatch(manual)
		if m == nil {
			t.Fatalf("no example in %s", language)
		}
		return string(m[1])
	}
	dir := socketDir(t)
	cmd := exec.Command("sh", "-e", "-c", example("sh"))
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(rig.Bin(t), "agents")+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "  ip-reputation    reputation.txt") {
		t.Fatalf("%v\n%s", err, out)
	}
	public, err := os.ReadFile(filepath.Join(dir, "ip-lists.pub"))
	if err != nil {
		t.Fatal(err)
	}
	config := regexp.MustCompile(`"RW[^"]*"`).ReplaceAllString(example("hcl"), `"`+strings.Fields(string(public))[len(strings.Fields(string(public)))-1]+`"`)
	config = strings.Replace(config, `"published"`, `"`+filepath.Join(dir, "published")+`"`, 1)
	h := rig.Start(t, filtered(rig.StartSink(t).Addr)+config)
	waitRefused(h, "203.0.113.9")
	waitRefused(h, "198.51.100.9")
	waitTaken(h, "192.0.2.9")
}
