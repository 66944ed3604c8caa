package classifier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	spamWords = strings.Fields("winner prize claim urgent transfer account verify password bitcoin click offer discount pills casino jackpot бесплатно выигрыш 免费 奖品")
	hamWords  = strings.Fields("meeting agenda patch review build compiler kernel invoice lunch minutes schedule report draft comments thanks встреча отчёт 会议 报告")
	anyWords  = strings.Fields("the a and of to in we you is for on with this that it as")
)

// written is a message of words of one kind among others.
func written(kind []string, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	var b strings.Builder
	fmt.Fprintf(&b, "From: Somebody <s%d@x.example>\nSubject: %s %s\n\n", seed, kind[r.IntN(len(kind))], anyWords[r.IntN(len(anyWords))])
	for range 40 {
		b.WriteString(anyWords[r.IntN(len(anyWords))] + " ")
		if r.IntN(3) == 0 {
			b.WriteString(kind[r.IntN(len(kind))] + " ")
		}
	}
	return []byte(b.String() + "\n")
}

func featuresOf(t testing.TB, message []byte, names bool) *Features {
	t.Helper()
	d, err := ReadBytes(context.Background(), message)
	if err != nil {
		t.Fatal(err)
	}
	return d.Features(Standard, names)
}

// trained is a model of so many letters of each kind.
func trained(t testing.TB, n int) *Model {
	t.Helper()
	var examples []Example
	for i := range n {
		examples = append(examples, Example{featuresOf(t, written(spamWords, uint64(i)), false), true},
			Example{featuresOf(t, written(hamWords, uint64(i)), false), false})
	}
	m, err := Train(examples, Settings{Bits: 14}, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// A model tells mail that it has not seen apart, and is the surer the more it has learnt from.
func TestTrain(t *testing.T) {
	sure := map[int]float64{}
	for _, n := range []int{20, 300} {
		m := trained(t, n)
		if m.Spam != n || m.Ham != n {
			t.Errorf("trained with %d and %d", m.Spam, m.Ham)
		}
		sure[n] = 1
		for i := range 100 {
			spam := m.Probability(featuresOf(t, written(spamWords, uint64(1000+i)), false))
			ham := m.Probability(featuresOf(t, written(hamWords, uint64(1000+i)), false))
			if spam < 0.5 || ham > 0.5 {
				t.Errorf("%d letters learnt: spam has probability %.4f, wanted mail %.4f", n, spam, ham)
			}
			sure[n] = min(sure[n], spam, 1-ham)
		}
	}
	if sure[300] < 0.9 || sure[300] <= sure[20] {
		t.Errorf("how sure it is at least: %v", sure)
	}
	if _, err := Train([]Example{{featuresOf(t, written(spamWords, 1), false), true}}, Settings{}, time.Now()); !errors.Is(err, ErrTooFew) {
		t.Errorf("trained with one message: %v", err)
	}
}

// The same mail gives the same model, and a file holds all of it.
func TestFile(t *testing.T) {
	m := trained(t, 30)
	var one, two bytes.Buffer
	if err := errors.Join(m.Write(&one), trained(t, 30).Write(&two)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("two trainings with the same mail differ")
	}
	path := filepath.Join(t.TempDir(), "model")
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	back, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	f := featuresOf(t, written(spamWords, 99), false)
	if a, b := m.Score(f), back.Score(f); math.Abs(a-b) > 1e-3 || !back.Trained.Equal(m.Trained) || back.Spam != 30 || back.Recipe != Standard {
		t.Errorf("score %g, after reading %g: %+v", a, b, back)
	}
	if rest, err := filepath.Glob(path + ".*"); err != nil || len(rest) > 0 {
		t.Errorf("left behind: %v %v", rest, err)
	}
}

// A file that is not whole is refused, and says what is wrong with it.
func TestBrokenFile(t *testing.T) {
	var b bytes.Buffer
	if err := trained(t, 10).Write(&b); err != nil {
		t.Fatal(err)
	}
	good := b.Bytes()
	flipped := slices.Clone(good)
	flipped[len(flipped)/2] ^= 1
	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"empty":    {nil, "no model"},
		"other":    {[]byte("PK\x03\x04"), "no model"},
		"version":  {bytes.Replace(good, []byte("model 2"), []byte("model 1"), 1), "another version"},
		"cut off":  {good[:len(good)-100], "checksum"},
		"only top": {good[:len(magic)+3], "cut off"},
		"bit":      {flipped, "checksum"},
		"longer":   {append(slices.Clone(good), 0), "checksum"},
		"huge":     {make([]byte, maxFile+1), "more than 16 MiB"},
	} {
		path := filepath.Join(t.TempDir(), "model")
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Explanations name tokens, those of spam with weights above 0; digits are masked.
func TestExplain(t *testing.T) {
	m := trained(t, 100)
	f := featuresOf(t, append(written(spamWords, 5), "winner 4711 winner prize"...), true)
	all := m.Explain(f, 1000)
	weights := map[string]float64{}
	for _, r := range all {
		if r.Token == "" || strings.Contains(r.Token, "4711") {
			t.Errorf("token %q", r.Token)
		}
		weights[r.Token] = r.Weight
	}
	if weights["w:winner"] <= 0 || weights["s:winner"] < 0 {
		t.Errorf("winner weighs %g", weights["w:winner"])
	}
	if _, ok := weights["w:0000"]; !ok {
		t.Error("the number is not there")
	}
	if weights["h:text in capitals"] != 0 || weights["h:Message-ID missing"] <= 0 {
		t.Errorf("signs: %v", weights)
	}
	odds := m.wordOdds(f)
	sum := m.signs.bias + (m.words.Offset+m.words.Slope*m.bias)*doubted(odds)/odds
	for _, r := range all {
		sum += r.Weight
	}
	if got := m.Score(f); math.Abs(got-sum) > 1e-3 {
		t.Errorf("the reasons add up to %g, the score is %g", sum, got)
	}
}

// What was judged wrongly is rated right after it was learnt, and other mail as before.
func TestLearn(t *testing.T) {
	m := trained(t, 200)
	wrong := featuresOf(t, written(spamWords, 777), false)
	other, ham := featuresOf(t, written(spamWords, 778), false), featuresOf(t, written(hamWords, 779), false)
	learnt := m.Learn([]Example{{wrong, false}})
	if p := learnt.Probability(wrong); p > wantedBelow+0.01 || SCL(m.Probability(wrong)) < 5 {
		t.Errorf("probability %g, before %g", p, m.Probability(wrong))
	}
	if p := learnt.Probability(other); p < 0.5 {
		t.Errorf("other spam has probability %g now, before %g", p, m.Probability(other))
	}
	if p := learnt.Probability(ham); p > 0.5 {
		t.Errorf("wanted mail has probability %g", p)
	}
	back := learnt.Learn([]Example{{wrong, false}, {ham, false}})
	if back.Score(other) != learnt.Score(other) {
		t.Error("what is right already has changed something")
	}
	if p := m.Learn([]Example{{ham, true}}).Probability(ham); p < spamAbove-0.01 {
		t.Errorf("probability %g of what is said to be spam", p)
	}
}

func TestExampleFile(t *testing.T) {
	e := Example{featuresOf(t, written(spamWords, 1), false), true}
	got, err := UnmarshalExample(e.Marshal())
	if err != nil || !slices.Equal(got.Text, e.Text) || !slices.Equal(got.Shape, e.Shape) || !slices.Equal(got.Signs, e.Signs) || len(e.Signs) == 0 || !got.Spam {
		t.Errorf("%v %+v", err, got)
	}
}

// The header fields that tell where and when mail was collected change nothing.
func TestNoLeaks(t *testing.T) {
	plain := written(hamWords, 3)
	leaky := append([]byte("Received: from csmining.org by mail.x.example; Mon, 1 Jul 2002 10:00:00 +0000\nMessage-ID: <1@taint.org>\nDate: Mon, 1 Jul 2002 10:00:00 +0000\n"+
		"List-Id: <linux.example>\nList-Unsubscribe: <x>\nX-Spam-Status: Yes\nX-Mailer: Outlook Express 5\nTo: phishing@pot\nX-Forefront-Antispam-Report: SCL:9\n"+
		"Authentication-Results: spf=fail\nDelivered-To: a@b\nReturn-Path: <x@y>\nUser-Agent: mutt\nIn-Reply-To: <x@y>\n"), plain...)
	a, b := featuresOf(t, plain, false), featuresOf(t, leaky, false)
	if !slices.Equal(a.Text, b.Text) || !slices.Equal(a.Shape, b.Shape) {
		t.Error("fields of the collection make tokens")
	}
	with := func(subject, body string) *Features {
		return featuresOf(t, []byte("From: A <a@one.example>\nSubject: "+subject+"\n\n"+body+"\n"), false)
	}
	for name, pair := range map[string][2]*Features{
		"list in subject":   {with("[USRP-users] hello", "x"), with("hello", "x")},
		"filter in subject": {with("***SPAM*** hello", "x"), with("hello", "x")},
		"reply":             {with("Re: [linux-mm] hello", "x"), with("Re: hello", "x")},
		"year":              {with("hello", "in 2002 and 1999"), with("hello", "in 2026 and 2031")},
		"address":           {with("hello", "ask joe@taint.org now"), with("hello", "ask jim@potty.org now")},
		"host in link":      {with("hello", "see http://www.alpha.example/x now"), with("hello", "see http://www.betas.example/x now")},
	} {
		if !slices.Equal(pair[0].Text, pair[1].Text) || !slices.Equal(pair[0].Shape, pair[1].Shape) {
			t.Errorf("%s makes a difference", name)
		}
	}
}

// Scripts without spaces have words too.
func TestScripts(t *testing.T) {
	for _, text := range []string{"免费奖品", "お得な情報", "무료 경품", "รางวัลฟรี", "бесплатный выигрыш", "جائزة مجانية", "मुफ्त इनाम"} {
		f := featuresOf(t, []byte("Content-Type: text/plain; charset=utf-8\n\n"+text+"\n"), false)
		if len(f.Text) < 3 {
			t.Errorf("%s has %d tokens", text, len(f.Text))
		}
	}
}

func TestSCL(t *testing.T) {
	for p, want := range map[float64]int{0: 0, 0.049: 0, 0.05: 1, 0.5: 4, 0.9: 6, 0.9899: 6, 0.99: 7, 0.999: 8, 1: 9} {
		if got := SCL(p); got != want {
			t.Errorf("SCL(%g) is %d, want %d", p, got, want)
		}
	}
}

func TestMeasure(t *testing.T) {
	var all []Judged
	for i := range 1000 {
		all = append(all, Judged{float64(i), false}, Judged{float64(i) + 990.5, true})
	}
	q := Measure(all)
	if q.Spam != 1000 || q.Ham != 1000 || math.Abs(q.Area-0.99995) > 0.0001 || q.Catch01 != 0.992 || q.Catch05 != 0.996 {
		t.Errorf("%+v", q)
	}
	if q := Measure([]Judged{{1, true}, {1, false}}); q.Area != 0.5 || q.Catch01 != 0 {
		t.Errorf("equal scores: %+v", q)
	}
}

// Mail that is made to cost much costs little: bounded tokens, and done before the deadline of any agent.
func TestHostile(t *testing.T) {
	mime := "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n"
	random := rand.New(rand.NewPCG(1, 1))
	var words strings.Builder
	for range 300_000 {
		fmt.Fprintf(&words, "%x ", random.Uint32())
	}
	for name, message := range map[string]string{
		"1 MB of header":     "Subject: " + strings.Repeat("x ", 500_000) + "\nFrom: a@b\n\nx\n",
		"1 MB of trace":      strings.Repeat("Received: from a ([1.2.3.4]) by b id 12345678; Mon, 1 Jul 2002 10:00:00 +0000\n", 12_000) + "\nx\n",
		"a long trace":       "Received: from " + strings.Repeat("([1.2.3.4 ", 100_000) + "; x\n\nx\n",
		"many recipients":    "To: " + strings.Repeat("a@b.example, ", 70_000) + "c@d.example\n\nx\n",
		"a long subject":     "Subject: " + strings.Repeat("a b-", 250_000) + "\n\nx\n",
		"escapes":            "Content-Type: text/html\n\n<a href='http://x/" + strings.Repeat("%41", 300_000) + "'>",
		"comments":           "Content-Type: text/html\n\n" + strings.Repeat("a<!--x-->", 100_000),
		"1 MB of fields":     strings.Repeat("Reply-To: <a@b>\n", 70_000) + "\nx\n",
		"10,000 parts":       mime + strings.Repeat("--b\nContent-Type: text/html\n\n<b>x\n", 10_000) + "--b--\n",
		"999 parts of HTML":  mime + strings.Repeat("--b\nContent-Type: text/html; name=x.exe\n\n<a href=http://x.example/y>z</a>\n", 998) + "--b--\n",
		"nested":             strings.Repeat(strings.Replace(mime, "\n\n", "\n\n--b\n", 1), 200) + "x\n",
		"encoded words":      "Subject: " + strings.Repeat("=?utf-8?b?8J+YgPCfmIA=?= ", 30_000) + "\n\nx\n",
		"a word of 10 MB":    "\n" + strings.Repeat("x", 10<<20) + "\n",
		"signs":              "\n" + strings.Repeat("!a", 1<<20) + "\n",
		"different words":    "\n" + words.String() + "\n",
		"tags":               "Content-Type: text/html\n\n" + strings.Repeat("<a href=http://x.example>", 50_000),
		"open tags":          "Content-Type: text/html\n\n" + strings.Repeat("<", 1<<20),
		"styles":             "Content-Type: text/html\n\n" + strings.Repeat("<p style='display:none'>", 50_000),
		"attributes":         "Content-Type: text/html\n\n<p " + strings.Repeat("style=x onclick=y ", 50_000) + ">",
		"links in text":      "\n" + strings.Repeat("http://x.example/a?b=c ", 100_000) + "\n",
		"combining marks":    "\n" + strings.Repeat("a\u0301\u0302\u0303", 200_000) + "\n",
		"invalid everything": "\n" + strings.Repeat("\xff\xfe\x00", 300_000) + "\n",
		"no line ends":       strings.Repeat("Subject: x", 100_000),
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			f := featuresOf(t, []byte(message), true)
			if len(f.Text) > maxTokens || len(f.Shape) > maxShape {
				t.Errorf("%d and %d tokens", len(f.Text), len(f.Shape))
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %s", took)
			}
			for _, text := range f.names {
				if len(text) > 4*maxTarget {
					t.Errorf("a token of %d octets", len(text))
				}
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	var b bytes.Buffer
	if err := trained(f, 10).Write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes()[:2000])
	f.Add([]byte(magic + `{"bits":8,"recipe":1}` + "\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		if m, err := Parse(content); err == nil {
			m.Probability(&Features{Text: []uint64{1, 2}})
		}
		// Behind the checksum, too: it does not keep out who computes it.
		var h fileHeader
		h.Bits, h.Recipe, h.Scale, h.Words, h.Curve, h.Signs = minBits, Standard, 0.1, curve{1, 0}, curve{1, 0}, map[string]float64{}
		for _, s := range signs {
			h.Signs[s.name] = s.weight
		}
		if m, err := h.model(content); err == nil {
			m.Probability(&Features{Text: []uint64{1, 2}})
		}
	})
}

func FuzzUnmarshalExample(f *testing.F) {
	f.Add(Example{featuresOf(f, written(spamWords, 1), false), true}.Marshal())
	f.Add([]byte{1, 0, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, content []byte) {
		if e, err := UnmarshalExample(content); err == nil {
			again, err := UnmarshalExample(e.Marshal())
			if err != nil || !slices.Equal(again.Text, e.Text) || !slices.Equal(again.Signs, e.Signs) {
				t.Errorf("%v", err)
			}
		}
	})
}

func FuzzFeatures(f *testing.F) {
	f.Add(written(spamWords, 1))
	f.Add([]byte("From x\nSubject: [a] [b] Re: [c]\nFrom: =?x?q?=41?= <a@b>\nReply-To: <\n\nwww. http:// a@b.c $$$ 免费x 1234 it's\n"))
	f.Add([]byte("Received: from a (b [1.2.3.4]) by c id 12345678; Mon, 1 Jul 2002 10:00:00 +0000\nFrom: a\nReceived: from x (HELO 1.2.3.4) (5.6.7.8)\n by y\n" +
		"Date: Sun, 1 Jul 02 10:00:00 +0001\nX-Mailer: Outlook Express\nTo: <a@b>, <a@c>, <a@d>\nMessage-ID: <$$@>\nContent-Type: text/html\n\na<!-- -->b<q9><meta http-equiv=refresh>" +
		"<a href='http://u@0x7f:1/%41%42'>www.x</a> a b c d e f\nxkcdvb"))
	f.Add([]byte("Content-Type: text/html\n\n<a href='http://[::1]:x/'>http://y</a><img src=//x><form action=y>"))
	f.Fuzz(func(t *testing.T, message []byte) {
		d, err := ReadBytes(context.Background(), message)
		if err != nil {
			t.Fatal(err)
		}
		for _, recipe := range []Recipe{Standard, allKinds} {
			named, plain := d.Features(recipe, true), d.Features(recipe, false)
			if !slices.Equal(named.Text, plain.Text) || !slices.Equal(named.Shape, plain.Shape) {
				t.Error("names change the features")
			}
			if !slices.Equal(named.Signs, plain.Signs) || !slices.IsSorted(plain.Signs) {
				t.Errorf("signs %v and %v", named.Signs, plain.Signs)
			}
			for _, h := range slices.Concat(named.Text, named.Shape) {
				if _, ok := named.names[h]; !ok {
					t.Error("a token without a name")
				}
			}
		}
	})
}

func BenchmarkRate(b *testing.B) {
	m := trained(b, 50)
	text := written(hamWords, 1)
	for range 6 { // to some 4 KB, the median of real mail
		text = append(text, written(hamWords, uint64(len(text)))...)
	}
	header, body := Split(text)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		d, err := Read(context.Background(), header, bytes.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		m.Probability(d.Features(m.Recipe, false))
	}
}
