package main

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk/agentpb"
	"github.com/posternmail/postern/sdk/agenttest"
)

// start the agent under its own name.
func start(t *testing.T, config string, options ...agenttest.Option) *agenttest.Agent {
	t.Helper()
	return agenttest.Start(t, New, config, append(options, agenttest.WithInfo(info()))...)
}

// send a message from 192.0.2.1 to r@y.example.
func send(a *agenttest.Agent, message string) *agenttest.Outcome {
	s := a.From("192.0.2.1")
	s.Mail("s@x.example").To("r@y.example").WantContinue()
	return s.Data(message)
}

// data for the ledger.
func data(o *agenttest.Outcome) string { return o.Answer().GetVerdicts()[0].GetData() }

const (
	plain     = "From: s@x.example\nSubject: lunch\n\nat noon?\n"
	gtubeText = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
)

// Without any configuration messages are stamped, and the test string of all spam filters is refused.
func TestEmptyConfiguration(t *testing.T) {
	a := start(t, "", agenttest.KillBetween())
	send(a, plain).WantContinue().WantReason("SclBelowThresholds").WantStamp("scl", "0").WantHeaderAdded("X-Postern-SCL", "0").
		WantHeaderAdded("X-Postern-Antispam-Report", "DV:"+version+";NoModel;OrigIP:192.0.2.1")
	out := send(a, plain+gtubeText+"\n").Want(550, "5.7.1").WantReason("SclAtOrAboveRejectThreshold").WantStamp("scl", "9").
		WantHeaderAdded("X-Postern-Antispam-Report", "DV:"+version+";GTUBE;OrigIP:192.0.2.1")
	if got := data(out); got != "9: GTUBE" {
		t.Errorf("the ledger has %q", got)
	}
	if got := out.Answer().GetVerdicts()[0].GetReply().GetText(); got != "Message rejected due to content restrictions" {
		t.Errorf("the client reads %q", got)
	}
	send(a, "From: s@x.example\nSubject: "+gtubeText+"\n\n").Want(550, "5.7.1")
}

// The strictest threshold that is reached decides; 0 is never.
func TestThresholds(t *testing.T) {
	for name, c := range map[string]struct{ config, verdict, reason string }{
		"delete":           {"delete_at = 9\nreject_at = 8\nquarantine_at = 7", "discard", "SclAtOrAboveDeleteThreshold"},
		"reject at 9":      {"reject_at = 9\nquarantine_at = 1", "reject", "SclAtOrAboveRejectThreshold"},
		"quarantine":       {"reject_at = 0\nquarantine_at = 5", "quarantine", "SclAtOrAboveQuarantineThreshold"},
		"delete, no other": {"delete_at = 1\nreject_at = 0", "discard", "SclAtOrAboveDeleteThreshold"},
		"none":             {"reject_at = 0", "continue", "SclBelowThresholds"},
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, c.config)
			send(a, plain+gtubeText).WantVerdict(c.verdict).WantReason(c.reason).WantHeaderAdded("X-Postern-SCL", "9").WantStamp("scl", "9")
			send(a, plain).WantVerdict("continue")
		})
	}
}

const phraseConfig = `
	bad_phrases  = ["no risk  investment", "cialis", "größer", "特別提供", "$$$", "www.bad.example/pay"]
	good_phrases = ["Order Number 4711"]`

// A phrase is found whatever case, white space, charset, encoding and markup it comes in.
func TestPhrases(t *testing.T) {
	a := start(t, phraseConfig)
	header := "From: s@x.example\nMIME-Version: 1.0\n"
	html := header + "Content-Type: text/html; charset=utf-8\n\n"
	b64 := base64.StdEncoding.EncodeToString([]byte("a No Risk Investment for you"))
	for name, message := range map[string]string{
		"plain":             plain + "a No Risk\nINVESTMENT for you",
		"subject":           "Subject: =?utf-8?q?No_risk_=49nvestment?=\n\n",
		"folded subject":    "Subject: no risk\n\tinvestment\n\n",
		"quoted printable":  header + "Content-Transfer-Encoding: quoted-printable\n\nno ri=\nsk =69nvestment\n",
		"base64":            header + "Content-Transfer-Encoding: base64\n\n" + b64[:10] + "\n" + b64[10:] + "\n",
		"broken QP":         header + "Content-Transfer-Encoding: quoted-printable\n\n=ZZ= no risk investment\n",
		"latin1":            header + "Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n\nviel gr=F6=DFer!\n",
		"utf-16":            header + "Content-Type: text/plain; charset=utf-16le\nContent-Transfer-Encoding: base64\n\nYwBpAGEAbABpAHMA\n",
		"unknown charset":   header + "Content-Type: text/plain; charset=klingon\n\nno risk investment\n",
		"full width":        plain + "ｃｉａｌｉｓ",
		"zero width":        plain + "cia\u200blis ci\u00adalis",
		"NUL":               plain + "ci\x00alis",
		"no-break space":    plain + "no\u00a0risk\u2003investment",
		"Han":               plain + "本日の特別提供です",
		"signs":             plain + "earn $$$!",
		"tags":              html + "no ri<b></b>sk <span style=\"x>y\">inv</span>est<x->ment",
		"comment":           html + "no ri<!-- > -->sk investment",
		"entities":          html + "no&nbsp;risk &#105;nvestment",
		"blocks":            html + "<td>no</td><td>risk</td><br>investment",
		"style":             html + "no<style>p { color: red }</style> risk investment",
		"link":              html + "<a href=\"https://www.bad.example/pay?a=1\">here</a>",
		"attribute":         html + "<img alt='cialis'>",
		"broken HTML":       html + "<<<a <b cialis",
		"second part":       header + "Content-Type: multipart/alternative; boundary=b\n\n--b\n\nhello\n--b\nContent-Type: text/html\n\n<p>cia<i>lis</i></p>\n--b--\n",
		"forwarded":         header + "Content-Type: message/rfc822\n\nSubject: x\nContent-Type: text/plain\n\ncialis\n",
		"text attachment":   header + "Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/csv\nContent-Disposition: attachment; filename=a.csv\n\n1,cialis\n--b--\n",
		"no boundary":       header + "Content-Type: multipart/mixed\n\ncialis\n",
		"wrong boundary":    header + "Content-Type: multipart/mixed; boundary=b\n\n--c\n\ncialis\n",
		"no type":           header + "Content-Type: nonsense\n\ncialis\n",
		"two types":         header + "Content-Type: text/plain\nContent-Type: application/pdf\n\ncialis\n",
		"too many parts":    header + "Content-Type: multipart/mixed; boundary=b\n\n" + strings.Repeat("--b\n\nx\n", 2000) + "--b\n\ncialis\n",
		"too deep":          tooDeep(30) + "cialis\n",
		"behind a long one": header + "Content-Type: multipart/mixed; boundary=b\n\n--b\n\n" + strings.Repeat("filler ", 60_000) + "\n--b\n\ncialis\n--b--\n",
	} {
		t.Run(name, func(t *testing.T) {
			out := send(a, message).Want(550, "5.7.1").WantHeaderAdded("X-Postern-SCL", "9")
			if got := data(out); !strings.HasPrefix(got, "9: bad phrase ") {
				t.Errorf("the ledger has %q", got)
			}
		})
	}
}

// tooDeep nests so many multiparts.
func tooDeep(levels int) string {
	var b strings.Builder
	b.WriteString("From: s@x.example\n")
	for i := range levels {
		fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n", i, i)
	}
	return b.String() + "\n"
}

// What is not the phrase passes.
func TestNoPhrase(t *testing.T) {
	a := start(t, phraseConfig)
	for name, message := range map[string]string{
		"part of a word": plain + "ask a specialist, größeres kommt",
		"other words":    plain + "no risk of investment",
		"binary part":    "From: s@x.example\nContent-Type: application/pdf\n\ncialis\n",
		"empty":          "\n",
		"no header":      "\ncia lis\n",
		"octets":         plain + "\xff\xfe\x00\x80\xc3",
		"hidden script":  "From: s@x.example\nContent-Type: text/html\n\n<p>c<script>x</script>ia <!--cialisx--> lis",
	} {
		t.Run(name, func(t *testing.T) {
			send(a, message).WantContinue().WantHeaderAdded("X-Postern-SCL", "0")
		})
	}
}

// A good phrase outweighs a bad one, but not GTUBE.
func TestGoodPhrase(t *testing.T) {
	a := start(t, phraseConfig)
	out := send(a, plain+"cialis, order\nnumber 4711.").WantContinue().WantStamp("scl", "0").
		WantHeaderAdded("X-Postern-Antispam-Report", "DV:"+version+";CW:CustomList;OrigIP:192.0.2.1")
	if got := data(out); got != `0: good phrase "order number 4711"` {
		t.Errorf("the ledger has %q", got)
	}
	send(a, plain+"order number 47110 cialis").Want(550, "5.7.1").
		WantHeaderAdded("X-Postern-Antispam-Report", "DV:"+version+";CW:CustomList;OrigIP:192.0.2.1")
	send(a, plain+"order number 4711 "+gtubeText).Want(550, "5.7.1")
}

// The reply is the operator's.
func TestResponse(t *testing.T) {
	out := send(start(t, `response = "Not this. Call +49 30 1234"`), plain+gtubeText).Want(550, "5.7.1")
	if got := out.Answer().GetVerdicts()[0].GetReply().GetText(); got != "Not this. Call +49 30 1234" {
		t.Errorf("the client reads %q", got)
	}
}

func TestBypassedSenders(t *testing.T) {
	a := start(t, `bypassed_senders = ["boss@x.example", "partner.example", "*.lists.example"]`)
	for _, c := range []struct{ envelope, from string }{
		{"Boss@X.example", "s@x.example"}, {"any@partner.example", ""}, {"", "boss@x.example"}, {"b@a.lists.example", ""},
	} {
		s := a.From("192.0.2.1")
		s.Mail(c.envelope).To("r@y.example").WantContinue()
		s.Data("From: "+c.from+"\n\n"+gtubeText).WantContinue().WantReason("SenderBypassed").WantStamp("scl", "-1").
			WantHeaderAdded("X-Postern-SCL", "-1").WantHeaderAdded("X-Postern-Antispam-Report", "DV:"+version+";SenderBypassed;OrigIP:192.0.2.1")
	}
	s := a.From("192.0.2.1")
	s.Mail("s@x.example").To("r@y.example").WantContinue()
	s.Data("From: a@sub.partner.example\n\n"+gtubeText).Want(550, "5.7.1")
}

func TestBypassedRecipients(t *testing.T) {
	a := start(t, `
		bypassed_recipients = ["postmaster@y.example", "raw.example"]`)
	s := a.From("192.0.2.1")
	s.Mail("s@x.example").To("Postmaster@y.example").To("a@raw.example").WantContinue()
	s.Data(plain+gtubeText).WantContinue().WantReason("AllRecipientsBypassed").WantStamp("scl", "-1").
		WantHeaderAdded("X-Postern-Antispam-Report", "DV:"+version+";AllRecipientsBypassed;OrigIP:192.0.2.1")
	s.Mail("s@x.example").To("r@y.example").To("postmaster@y.example").To("q@y.example").WantContinue()
	out := s.Data(plain+gtubeText).WantFor("r@y.example", 550, "5.7.1").WantFor("q@y.example", 550, "5.7.1").
		WantVerdictFor("postmaster@y.example", "continue").WantReason("RecipientBypassed").WantStamp("scl", "9").WantStamp("scl", "-1")
	for _, e := range out.Answer().GetEdits() {
		bypassed := strings.Contains(string(e.GetAddHeader().GetValue()), "-1") || strings.Contains(string(e.GetAddHeader().GetValue()), "Bypassed")
		if want := map[bool][]uint32{true: {1}, false: {0, 2}}[bypassed]; !slices.Equal(e.GetRecipients(), want) {
			t.Errorf("edit %v for %v, want %v", e, e.GetRecipients(), want)
		}
	}
}

// The source behind a server of our own is not known here.
func TestOwnServerIsNoOrigin(t *testing.T) {
	a := start(t, "", agenttest.WithHost(&agentpb.HostFacts{Name: "edge.example", InternalSmtpServers: []string{"192.0.2.0/24"}}))
	send(a, plain).WantHeaderAdded("X-Postern-Antispam-Report", "DV:"+version+";NoModel")
}

// The report has the result of Sender ID where it is asked for and an earlier agent has found one.
func TestSenderIDToken(t *testing.T) {
	report := func(a *agenttest.Agent, result, want string) {
		t.Helper()
		s := a.From("192.0.2.1")
		s.Mail("s@x.example").To("r@y.example").WantContinue()
		s.Stamped("auth.senderid", result).Data(plain).WantHeaderAdded("X-Postern-Antispam-Report", "DV:"+version+";"+want+"NoModel;OrigIP:192.0.2.1")
	}
	a := start(t, "report_sender_id = true")
	for result, want := range map[string]string{
		"pass": "Pass", "neutral": "Neutral", "softfail": "SoftFail", "fail": "Fail", "none": "None", "temperror": "TempError", "permerror": "PermError",
	} {
		report(a, result, "SID:SenderIDStatus "+want+";")
	}
	report(a, "fail;X", "") // no result
	send(a, plain).WantHeaderAdded("X-Postern-Antispam-Report", "DV:"+version+";NoModel;OrigIP:192.0.2.1")
	report(start(t, ""), "pass", "") // not asked for
}

// The report tells of mail that says it was sent at quite another time.
func TestTimeToken(t *testing.T) {
	a := start(t, "bypassed_senders = [\"boss@x.example\"]")
	for name, c := range map[string]struct {
		date  string
		token bool
	}{
		"now":          {a.Now().Format(time.RFC1123Z), false},
		"in queues":    {a.Now().Add(-23 * time.Hour).Format(time.RFC1123Z), false},
		"old":          {a.Now().Add(-25 * time.Hour).Format(time.RFC1123Z), true},
		"in the west":  {a.Now().Add(-10 * time.Hour).In(time.FixedZone("", -12*3600)).Format(time.RFC1123Z), false},
		"future":       {a.Now().Add(25 * time.Hour).Format(time.RFC1123Z), true},
		"with comment": {a.Now().Add(-48*time.Hour).Format(time.RFC1123Z) + " (CET)", true},
		"folded":       {"\n\t" + a.Now().Add(-48*time.Hour).Format(time.RFC1123Z), true},
		"a year 1":     {"Mon, 1 Jan 0001 00:00:00 +0000", true},
		"nonsense":     {"yesterday", false},
		"empty":        {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			want := "DV:" + version + ";NoModel;OrigIP:192.0.2.1"
			if c.token {
				want = "DV:" + version + ";NoModel;TIME:TimeBasedFeatures;OrigIP:192.0.2.1"
			}
			send(a, "Date: "+c.date+"\n"+plain).WantHeaderAdded("X-Postern-Antispam-Report", want).WantStamp("scl", "0")
		})
	}
	s := a.From("192.0.2.1")
	s.Mail("boss@x.example").To("r@y.example").WantContinue()
	s.Data("Date: Mon, 2 Jan 2006 15:04:05 +0000\n"+plain).
		WantHeaderAdded("X-Postern-Antispam-Report", "DV:"+version+";SenderBypassed;TIME:TimeBasedFeatures;OrigIP:192.0.2.1")
}

// Of large messages only the subject is looked at; one just at the limit is read through.
func TestSize(t *testing.T) {
	a := start(t, "max_size = \"100 KiB\"\nbad_phrases = [\"cialis\"]")
	filler := strings.Repeat(strings.Repeat("x", 98)+"\r\n", 1024)
	out := send(a, "Subject: large\r\n\r\n"+filler+"cialis\r\n").WantContinue().
		WantHeaderAdded("X-Postern-Antispam-Report", "DV:"+version+";MIME:TooLarge;NoModel;OrigIP:192.0.2.1")
	if got := data(out); got != "0: TooLarge" {
		t.Errorf("the ledger has %q", got)
	}
	send(a, "Subject: cialis\r\n\r\n"+filler+"x\r\n").Want(550, "5.7.1")
	send(a, "Subject: large\r\n\r\n"+filler[8:]+"cialis\r\n").Want(550, "5.7.1")
}

func TestMistakes(t *testing.T) {
	for name, c := range map[string]struct {
		config string
		want   []string
	}{
		"none":        {phraseConfig + "\ndelete_at = 9\nreject_at = 8\nquarantine_at = 7", nil},
		"order":       {"reject_at = 5\nquarantine_at = 5", []string{"quarantine_at: must be below reject_at, which is 5: delete > reject > quarantine"}},
		"delete":      {"delete_at = 6\nreject_at = 7", []string{"reject_at: must be below delete_at, which is 6: delete > reject > quarantine"}},
		"skips one":   {"delete_at = 5\nreject_at = 0\nquarantine_at = 6", []string{"quarantine_at: must be below delete_at"}},
		"empty":       {`bad_phrases = ["a", " \t"]`, []string{"bad_phrases[1]: an empty phrase is in every message"}},
		"long phrase": {fmt.Sprintf("good_phrases = [%q]", strings.Repeat("ä", 257)), []string{"good_phrases[0]: phrase of 257 characters, at most 256"}},
		"many":        {"bad_phrases = [" + strings.Repeat(`"x",`, 801) + "]", []string{"bad_phrases: 801 phrases, at most 800"}},
		"two":         {`bypassed_senders = ["a b"]` + "\n" + `response = "grüße"`, []string{"bypassed_senders[0]:", `response: 'ü' cannot stand in a reply`}},
		"long text":   {fmt.Sprintf("response = %q", strings.Repeat("x", 241)), []string{"response: text of 241 characters, at most 240"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := agenttest.Diagnostics(t, New, c.config, agenttest.WithInfo(info()))
			if !slices.EqualFunc(got, c.want, strings.HasPrefix) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestReadme(t *testing.T) { agenttest.CheckReadme(t, New, "README.md") }
