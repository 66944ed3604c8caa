package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/plugins/contentfilter/classifier"
	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agenttest"
)

const (
	ofSpam = "winner prize claim urgent transfer account verify password bitcoin click offer discount pills casino jackpot"
	ofHam  = "meeting agenda patch review build compiler kernel invoice lunch minutes schedule report draft comments thanks"
	ofAll  = "the a and of to in we you is for on with this that it as"
)

// written is a message of some words among common ones.
func written(words string, seed int) string {
	r := rand.New(rand.NewPCG(uint64(seed), 7))
	kind, common := strings.Fields(words), strings.Fields(ofAll)
	var b strings.Builder
	fmt.Fprintf(&b, "From: s@x.example\nSubject: %s\n\n", kind[r.IntN(len(kind))])
	for range 40 {
		b.WriteString(common[r.IntN(len(common))] + " " + kind[r.IntN(len(kind))] + " ")
	}
	return b.String() + "\n"
}

// modelFile trains a model of words of spam and of wanted mail.
func modelFile(t *testing.T, path, spam, ham string) {
	t.Helper()
	var examples []classifier.Example
	for i := range 200 {
		for _, c := range []struct {
			words string
			spam  bool
		}{{spam, true}, {ham, false}} {
			d, err := classifier.ReadBytes(context.Background(), []byte(written(c.words, i)))
			if err != nil {
				t.Fatal(err)
			}
			examples = append(examples, classifier.Example{Features: d.Features(classifier.Standard, false), Spam: c.spam})
		}
	}
	m, err := classifier.Train(examples, classifier.Settings{Bits: 14}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
}

// A message is rated by the model; the ledger has the probability, and the tokens of one that is refused.
func TestModel(t *testing.T) {
	path := filepath.Join(t.TempDir(), "model")
	modelFile(t, path, ofSpam, ofHam)
	a := start(t, fmt.Sprintf("model = %q\nreject_at = 6\ngood_phrases = [\"winner of our heart\"]", path), agenttest.KillBetween())
	out := send(a, written(ofSpam, 1000)).Want(550, "5.7.1").WantReason("SclAtOrAboveRejectThreshold")
	if got := data(out); !strings.Contains(got, ": probability 0.9") || !strings.Contains(got, "w:") {
		t.Errorf("the ledger has %q", got)
	}
	out = send(a, written(ofHam, 1000)).WantContinue().WantReason("SclBelowThresholds").WantStamp("scl", "0")
	if got := data(out); !strings.HasPrefix(got, "0: probability 0.0") || strings.Contains(got, "w:") {
		t.Errorf("the ledger has %q", got)
	}
	send(a, written(ofSpam, 1000)+"winner of our heart").WantContinue().WantStamp("scl", "0")
	send(a, written(ofHam, 1000)+gtubeText).Want(550, "5.7.1").WantStamp("scl", "9")
}

// How a message is made, and how it came, speaks for spam too: the ledger names the signs.
func TestSigns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "model")
	modelFile(t, path, ofSpam, ofHam)
	a := start(t, fmt.Sprintf("model = %q\nreject_at = 1", path))
	forged := func(s *agenttest.Session) string {
		s.Mail("s@x.example").To("r@y.example")
		sent := a.Now().Add(40 * time.Hour).Format(time.RFC1123Z)
		return data(s.Data("Date: " + sent + "\nTo: s@x.example\nMessage-ID: <1>\nX-Mailer: The Bat! (v1)\n" + written(ofSpam, 1000)))
	}
	s := a.From("203.0.113.7")
	s.Ehlo("203.0.113.7")
	told := forged(s)
	for _, sign := range []string{"h:HELO is an address", "h:Date days ahead", "h:Message-ID malformed", "h:program with another's Message-ID"} {
		if !strings.Contains(told, sign) {
			t.Errorf("%q is not told: %q", sign, told)
		}
	}
	s = a.From("203.0.113.7").Authenticated("somebody")
	s.Ehlo("203.0.113.7")
	if told := forged(s); strings.Contains(told, "HELO") || !strings.Contains(told, "h:Message-ID malformed") {
		t.Errorf("of a user the ledger has %q", told)
	}
}

// probability of a message by what the brain knows.
func (b *brain) probability(t *testing.T, message string) float64 {
	t.Helper()
	return b.model.Load().Probability(tokens(t, message))
}

func tokens(t *testing.T, message string) *classifier.Features {
	t.Helper()
	d, err := classifier.ReadBytes(context.Background(), []byte(message))
	if err != nil {
		t.Fatal(err)
	}
	return d.Features(classifier.Standard, false)
}

// A change of a file is seen at the second look that finds the same; what is broken is not used. The tests of the whole
// show it under mail.
func TestSwap(t *testing.T) {
	dir := t.TempDir()
	b := &brain{modelPath: filepath.Join(dir, "model"), learnt: learntFolder(dir), badFiles: []string{filepath.Join(dir, "bad")}}
	b.mark()
	logger := hclog.NewNullLogger()
	looks := func() {
		b.look(logger)
		b.look(logger)
	}
	write(t, b.badFiles[0], "# bad words\n\nliver sausage\n")
	looks()
	if b.model.Load() != nil || b.bad.Load().find("some liver sausage") == "" {
		t.Fatal("a model out of nothing, or no phrase")
	}
	modelFile(t, b.modelPath, ofSpam, ofHam)
	looks()
	spam, ham := written(ofSpam, 1000), written(ofHam, 1000)
	if s, h := b.probability(t, spam), b.probability(t, ham); s < 0.9 || h > 0.1 {
		t.Errorf("probabilities %g, %g", s, h)
	}
	write(t, b.modelPath, "not a model")
	write(t, b.badFiles[0], strings.Repeat("x", 300))
	looks()
	if s := b.probability(t, spam); s < 0.9 || b.bad.Load().find("liver sausage") == "" {
		t.Error("broken files are used")
	}
	modelFile(t, b.modelPath, ofHam, ofSpam) // the world upside down
	looks()
	if s, h := b.probability(t, spam), b.probability(t, ham); s > 0.1 || h < 0.9 {
		t.Errorf("the new model is not used: %g, %g", s, h)
	}
	for range 2 { // the same message is learnt once
		if err := writeLearnt(b.learnt, classifier.Example{Features: tokens(t, ham)}); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(b.learnt, "broken"+learntSuffix), "x")
	looks()
	if h := b.probability(t, ham); h > 0.25 || len(readLearnt(b.learnt)) != 1 {
		t.Errorf("%g of what was learnt, %d examples", h, len(readLearnt(b.learnt)))
	}
	if err := os.Remove(b.modelPath); err != nil {
		t.Fatal(err)
	}
	looks()
	if b.model.Load() == nil {
		t.Error("the model is gone with its file")
	}
}

// Of what was learnt the oldest leaves.
func TestLearntBound(t *testing.T) {
	folder := t.TempDir()
	for i := range maxLearnt + 5 {
		path := filepath.Join(folder, fmt.Sprint(i)+learntSuffix)
		write(t, path, "x")
		at := time.Unix(1_700_000_000+int64(i), 0)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeLearnt(folder, classifier.Example{Features: tokens(t, written(ofHam, 1))}); err != nil {
		t.Fatal(err)
	}
	files, err := learntFiles(folder)
	if err != nil || len(files) != maxLearnt || filepath.Base(files[0].path) != "6"+learntSuffix {
		t.Errorf("%v: %d files, the oldest %s", err, len(files), files[0].path)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestModelMistakes(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	write(t, broken, "x")
	long := filepath.Join(dir, "long")
	write(t, long, "ok\n"+strings.Repeat("x", 300)+"\n")
	for config, want := range map[string]string{
		fmt.Sprintf("model = %q", filepath.Join(dir, "none")):              "warning: model: there is no file",
		fmt.Sprintf("model = %q", broken):                                  "model: " + broken + ": no model of this agent",
		fmt.Sprintf("good_phrase_files = [%q]", long):                      "good_phrase_files: " + long + ", line 2: phrase of 300 characters",
		fmt.Sprintf("bad_phrase_files = [%q]", filepath.Join(dir, "none")): "bad_phrase_files: open",
	} {
		got := agenttest.Diagnostics(t, New, config, agenttest.WithInfo(info()))
		if len(got) != 1 || !strings.HasPrefix(got[0], want) {
			t.Errorf("%s: %q, want %q", config, got, want)
		}
	}
}

// run a command and answer with what it prints.
func run(t *testing.T, state, name string, args ...string) (string, error) {
	t.Helper()
	for _, c := range commands() {
		if c.Name == name {
			var out bytes.Buffer
			err := c.Run(context.Background(), &sdk.Invocation{Args: args, StateDir: state, Out: &out, Err: &out})
			return out.String(), err
		}
	}
	t.Fatalf("no command %s", name)
	return "", nil
}

// The commands read mbox files, Maildirs and folders.
func TestCommands(t *testing.T) {
	dir := t.TempDir()
	var mbox strings.Builder
	for i := range 60 {
		fmt.Fprintf(&mbox, "From s@x.example Mon Jan  5 10:00:00 2026\n%s\n", written(ofSpam, i))
	}
	spam := filepath.Join(dir, "spam.mbox")
	write(t, spam, mbox.String())
	maildir := filepath.Join(dir, "Maildir")
	folder := filepath.Join(dir, "folder")
	for _, d := range []string{filepath.Join(maildir, "cur"), filepath.Join(maildir, "tmp"), folder} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 30 {
		write(t, filepath.Join(maildir, "cur", fmt.Sprintf("%d:2,S", i)), written(ofHam, i))
		write(t, filepath.Join(folder, fmt.Sprintf("%d.eml", i)), strings.ReplaceAll(written(ofHam, 100+i), "\n", "\r\n"))
	}
	write(t, filepath.Join(maildir, "tmp", "1"), "being written")

	if out, err := run(t, dir, "explain", spam); err == nil || !os.IsNotExist(err) {
		t.Errorf("explained without a model: %v %s", err, out)
	}
	out, err := run(t, dir, "train", "--spam", spam, "--ham", maildir, "--ham", folder)
	if want := "trained with 60 messages of spam and 60 of wanted mail: " + filepath.Join(dir, "model") + "\n"; err != nil || out != want {
		t.Errorf("train: %v %q, want %q", err, out, want)
	}
	out, err = run(t, dir, "test", "--spam", spam, "--ham", folder)
	if err != nil || !strings.Contains(out, "60 messages of spam, 30 of wanted mail") || !strings.Contains(out, "caught at 0.1 % false positives   100.0 %") {
		t.Errorf("test: %v\n%s", err, out)
	}
	one := filepath.Join(dir, "one.eml")
	write(t, one, written(ofSpam, 5000))
	out, err = run(t, dir, "explain", "--tokens", "5", one)
	if err != nil || !strings.HasPrefix(out, one+": SCL ") || strings.Count(out, "\n") != 6 || !strings.Contains(out, "  +0.") {
		t.Errorf("explain: %v\n%s", err, out)
	}
	for name, args := range map[string][]string{
		"train": {"--spam", spam}, "test": {"--ham", folder, "x"}, "explain": {},
	} {
		if _, err := run(t, dir, name, args...); err == nil {
			t.Errorf("%s %q is taken", name, args)
		}
	}
}
