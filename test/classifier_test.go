package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// Words that tell the two kinds of mail of these tests apart.
const (
	spamWords = "winner prize claim urgent transfer account verify password bitcoin click offer discount pills casino jackpot"
	hamWords  = "meeting agenda patch review build compiler kernel invoice lunch minutes schedule report draft comments thanks"
)

// sortedMail is a message of such words among common ones.
func sortedMail(words string, seed int) string {
	r := rand.New(rand.NewPCG(uint64(seed), 7))
	kind, common := strings.Fields(words), strings.Fields("the a and of to in we you is for on with this that it as")
	var b strings.Builder
	fmt.Fprintf(&b, "From: s@x.example\r\nSubject: %s\r\n\r\n", kind[r.IntN(len(kind))])
	for range 40 {
		b.WriteString(common[r.IntN(len(common))] + " " + kind[r.IntN(len(kind))] + " ")
	}
	return b.String() + "\r\n"
}

// collections of sorted mail: a mbox of spam, a Maildir of wanted mail.
func collections(t *testing.T, dir string, spam, ham string) (string, string) {
	t.Helper()
	var mbox strings.Builder
	maildir := filepath.Join(dir, "Maildir")
	if err := os.MkdirAll(filepath.Join(maildir, "cur"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		fmt.Fprintf(&mbox, "From s@x.example Mon Jan  5 10:00:00 2026\n%s\n", strings.ReplaceAll(sortedMail(spam, i), "\r\n", "\n"))
		if err := os.WriteFile(filepath.Join(maildir, "cur", fmt.Sprintf("%d:2,S", i)), []byte(sortedMail(ham, i)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "spam.mbox")
	if err := os.WriteFile(path, []byte(mbox.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, maildir
}

// TestClassifier trains a model beside the running host, which uses it from then on: what it takes for spam is refused
// at the threshold, and the ledger says why. A broken model changes nothing.
func TestClassifier(t *testing.T) {
	sink := rig.StartSink(t)
	h := rig.Start(t, filtered(sink.Addr)+contentfilter("reject_at = 6"))
	c := from(h, "192.0.2.1")
	spam := sortedMail(spamWords, 1000)
	if got := passed(t, h, sink, c, spam).Content; !strings.Contains(got, "X-Postern-SCL: 0\r\n") || !strings.Contains(got, ";NoModel;") {
		t.Errorf("without a model the next hop got\n%s", got)
	}
	h.WaitFor("the log to say that there is no model", func() bool { return strings.Contains(h.Log(), "no model: messages are rated by rules alone") })

	mbox, maildir := collections(t, h.Dir, spamWords, hamWords)
	out := h.MustPostern("agent", "run", "contentfilter", "--", "train", "--spam", mbox, "--ham", maildir)
	if !strings.Contains(out, "trained with 200 messages of spam and 200 of wanted mail") {
		t.Errorf("train said %q", out)
	}
	h.WaitFor("the model to be used", func() bool { return strings.Contains(h.Log(), "model read") })
	refuseSpam(t, h, c, spam)
	got := passed(t, h, sink, c, sortedMail(hamWords, 1000)).Content
	if !strings.Contains(got, "X-Postern-SCL: 0\r\n") || !strings.Contains(got, ";PROB:0.0") {
		t.Errorf("the next hop got\n%s", got)
	}

	out = h.MustPostern("agent", "run", "contentfilter", "--", "test", "--spam", mbox, "--ham", maildir)
	if !strings.Contains(out, "200 messages of spam, 200 of wanted mail") || !strings.Contains(out, "caught at 0.1 % false positives   100.0 %") {
		t.Errorf("test said\n%s", out)
	}
	out = h.MustPostern("agent", "run", "contentfilter", "--", "explain", "--tokens", "3", filepath.Join(maildir, "cur", "7:2,S"))
	if !strings.Contains(out, ": SCL 0, probability 0.0") || strings.Count(out, "\n  ") != 3 || !strings.Contains(out, "  +0.7500  h:Date missing\n") {
		t.Errorf("explain said\n%s", out)
	}

	model := filepath.Join(h.Dir, "data", "agents", "contentfilter", "model")
	if err := os.WriteFile(model, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.WaitFor("the log to say what is wrong with the model", func() bool { return strings.Contains(h.Log(), "no model of this agent, or of another version") })
	refuseSpam(t, h, c, spam)

	// The world upside down: a model that thinks the contrary takes the place of the old one under mail.
	mbox, maildir = collections(t, t.TempDir(), hamWords, spamWords)
	h.MustPostern("agent", "run", "contentfilter", "--", "train", "--spam", mbox, "--ham", maildir)
	h.WaitFor("what was spam to pass", func() bool {
		return strings.HasPrefix(c.Message("a@sender.example", "b@example.org", spam), "250 ")
	})
	refuseSpam(t, h, c, sortedMail(hamWords, 1000))
}

// refuseSpam sends a message that must be refused; the ledger tells the probability, and tokens.
func refuseSpam(t *testing.T, h *rig.Host, c *rig.Client, spam string) {
	t.Helper()
	reply := c.Message("a@sender.example", "b@example.org", spam)
	id := idOf(t, reply)
	if want := "550 5.7.1 Message rejected due to content restrictions [" + id + "]"; reply != want {
		t.Errorf("got %q, want %q", reply, want)
	}
	r := waitRecord(h, id, "REJECT")
	steps := r.steps("contentfilter", "OnEndOfData")
	if r.Reason != "SclAtOrAboveRejectThreshold" || len(steps) != 1 || !strings.Contains(steps[0].Data, ": probability 0.9") || !strings.Contains(steps[0].Data, "w:") {
		t.Errorf("the ledger has %+v", r)
	}
	if why := h.MustPostern("why", id); !strings.Contains(why, "probability 0.9") {
		t.Errorf("why tells\n%s", why)
	}
}

// TestClassifierLearns lets a message out of quarantine: the same one again is not kept any more, other spam is.
func TestClassifierLearns(t *testing.T) {
	sink := rig.StartSink(t)
	h := rig.New(t, filtered(sink.Addr)+contentfilter("reject_at = 0\nquarantine_at = 6"))
	mbox, maildir := collections(t, h.Dir, spamWords, hamWords)
	if out, err := h.Postern("agent", "run", "contentfilter", "--", "train", "--spam", mbox, "--ham", maildir); err != nil {
		t.Fatalf("train: %v\n%s", err, out)
	}
	h.Start()
	c := from(h, "192.0.2.1")
	newsletter := sortedMail(spamWords+" gardening", 1000)
	id := accepted(t, c, "a@sender.example", "b@example.org", newsletter)
	if r := waitRecord(h, id, "QUARANTINE"); r.Agent != "contentfilter" || r.Reason != "SclAtOrAboveQuarantineThreshold" {
		t.Errorf("the ledger has %+v", r)
	}
	kept := quarantined(h)
	if len(kept) != 1 {
		t.Fatalf("in quarantine: %+v", kept)
	}
	h.MustPostern("quarantine", "release", kept[0].ID)
	h.WaitFor("the released message", func() bool { return len(sink.Messages()) == 1 })
	h.WaitFor("the message to pass", func() bool {
		n, before := len(sink.Messages()), len(quarantined(h))
		accepted(t, c, "a@sender.example", "b@example.org", newsletter)
		h.WaitFor("its end", func() bool { return len(sink.Messages()) > n || len(quarantined(h)) > before })
		return len(sink.Messages()) > n
	})
	id = accepted(t, c, "a@sender.example", "b@example.org", sortedMail(spamWords, 2000))
	waitRecord(h, id, "QUARANTINE")
}
