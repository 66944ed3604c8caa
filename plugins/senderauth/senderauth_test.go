package main

import (
	"crypto/ed25519"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk/agentpb"
	"github.com/posternmail/postern/sdk/agenttest"
	"github.com/posternmail/postern/sdk/dkim"
)

// signer of x.example, the same in every process of the test.
var signer = dkim.Signer{
	Domain: "x.example", Selector: "s1", Key: ed25519.NewKeyFromSeed([]byte("0123456789abcdef0123456789abcdef")),
	Headers: []string{"From", "Subject"},
}

// world of the tests: x.example has everything and asks for rejection, y.example knows SPF only, z.example nothing.
func world(t *testing.T) string {
	t.Helper()
	z := newZone(t,
		`x.example. 60 IN TXT "v=spf1 ip4:192.0.2.0/24 -all"`,
		`_dmarc.x.example. 60 IN TXT "v=DMARC1; p=reject; sp=quarantine"`,
		`_dmarc.n.example. 60 IN TXT "v=DMARC1; p=none; sp=quarantine; np=reject"`,
		`there.n.example. 60 IN A 192.0.2.1`,
		`y.example. 60 IN TXT "v=spf1 ip4:198.51.100.0/24 ~all"`,
		`y.example. 60 IN TXT "spf2.0/pra ip4:192.0.2.0/24 -all"`,
		`broken.example. 60 IN TXT "v=spf1 nonsense -all"`,
		`z.example. 60 IN A 192.0.2.1`,
	)
	record, err := dkim.Record(signer.Key)
	if err != nil {
		t.Fatal(err)
	}
	z.txt("s1._domainkey.x.example", record)
	z.silent["quiet.example."] = true
	z.silent["_dmarc.quiet.example."] = true
	return z.serve(t)
}

func start(t *testing.T, config string, options ...agenttest.Option) *agenttest.Agent {
	t.Helper()
	config = fmt.Sprintf("dns_servers = [%q]\n%s", world(t), config)
	return agenttest.Start(t, New, config, append([]agenttest.Option{agenttest.WithInfo(info())}, options...)...)
}

func plain(from string) string {
	return "From: " + from + "\r\nSubject: hello\r\n\r\nHello\r\n"
}

// signedBy x.example.
func signedMessage(t *testing.T, text string) string {
	t.Helper()
	header, body, _ := strings.Cut(text, "\r\n\r\n")
	value, err := signer.Sign(dkim.NewMessage([]byte(header), strings.NewReader(body), int64(len(body))), time.Unix(1767268800, 0))
	if err != nil {
		t.Fatal(err)
	}
	return "DKIM-Signature:" + value + "\r\n" + text
}

func send(a *agenttest.Agent, ip, sender, message string, recipients ...string) *agenttest.Outcome {
	s := a.From(ip)
	s.Ehlo("mx.x.example")
	s.Mail(sender)
	for _, r := range append(recipients, "me@local.example")[:max(1, len(recipients))] {
		s.To(r)
	}
	return s.Data(message)
}

func TestEmptyConfigurationStamps(t *testing.T) {
	a := start(t, "")
	send(a, "192.0.2.7", "jane@x.example", signedMessage(t, plain("Jane <jane@x.example>"))).WantContinue().WantReason("Verified").
		WantStamp("auth.spf", "pass").WantStamp("auth.dkim", "pass").WantStamp("auth.dmarc", "pass").
		WantStamp("auth.arc", "none").WantStamp("auth.senderid", "pass").WantStamp("auth.domain", "x.example")
	out := send(a, "203.0.113.9", "jane@x.example", plain("Jane <jane@x.example>")).WantContinue().
		WantStamp("auth.spf", "fail").WantStamp("auth.dkim", "none").WantStamp("auth.dmarc", "fail").WantStamp("auth.senderid", "fail")
	for _, want := range []string{
		"Authentication-Results: edge.example;\r\n\tspf=fail smtp.mailfrom=jane@x.example;\r\n",
		"dmarc=fail policy.dmarc=reject header.from=x.example", "Received-SPF: Fail (edge.example:", `client-ip="203.0.113.9"`,
	} {
		if !strings.Contains(out.Message(), want) {
			t.Errorf("%q is not in\n%s", want, out.Message())
		}
	}
	send(a, "203.0.113.9", "", plain("a@z.example")).WantContinue().WantStamp("auth.spf", "none").WantStamp("auth.dmarc", "none")
	send(a, "192.0.2.7", "a@broken.example", plain("a@broken.example")).WantContinue().WantStamp("auth.spf", "permerror")
	send(a, "192.0.2.7", "a@quiet.example", plain("a@quiet.example")).WantContinue().WantStamp("auth.spf", "temperror").WantStamp("auth.dmarc", "temperror")
}

func TestChangedMessage(t *testing.T) {
	a := start(t, `dkim_fail = "reject"`)
	text := strings.Replace(signedMessage(t, plain("jane@x.example")), "Hello\r\n", "Buy\r\n", 1)
	send(a, "203.0.113.9", "list@z.example", text).Want(550, "5.7.20").WantReason("DKIM").WantStamp("auth.dkim", "fail")
}

// A domain may ask for more of subdomains that do not exist (RFC 9989 section 4.7).
func TestPolicyOfSubdomains(t *testing.T) {
	a := start(t, "")
	for from, want := range map[string]string{"n.example": "none", "there.n.example": "quarantine", "not.there.n.example": "reject"} {
		send(a, "203.0.113.9", "a@z.example", plain("a@"+from)).WantContinue().WantStamp("auth.dmarc", "fail").WantStamp("policy", want)
	}
}

// Who puts a domain beside that of another does not get around its policy.
func TestSeveralFrom(t *testing.T) {
	a := start(t, "dmarc_reject = \"reject\"\ntrusted_sealers = [\"lists.example\"]")
	two := "From: a@z.example\r\nFrom: jane@x.example\r\nSubject: hello\r\n\r\nHello\r\n"
	send(a, "203.0.113.9", "a@z.example", two).Want(550, "5.7.1").WantReason("DMARC").WantStamp("auth.dmarc", "fail")
	send(a, "203.0.113.9", "a@z.example", plain("a@z.example, jane@x.example")).Want(550, "5.7.1").WantReason("DMARC")
	send(a, "192.0.2.7", "jane@x.example", plain("jane@x.example, a@z.example")).WantContinue().WantStamp("auth.dmarc", "permerror")
	send(a, "192.0.2.7", "jane@x.example", "From: jane@x.example\r\n"+plain("jane@x.example")).WantContinue().WantStamp("auth.dmarc", "permerror")
}

// A From that does not parse, which mail programs show all the same, is no way around the policy of the domain in it, and
// proves nothing.
func TestMalformedFrom(t *testing.T) {
	a := start(t, "dmarc_reject = \"reject\"\ntrusted_sealers = [\"lists.example\"]")
	for _, from := range []string{
		"jane@x.example.", "<@z.example:jane@x.example>", "jane@(who)x.example", "jane@x\r\n .example", "<jane@x.example> <a@z.example>",
		"a@z.example; jane@x.example", "a@z.example@x.example", "\"Jane <jane@x.example>", "=?utf-8?q?jane=40x.example?=",
	} {
		out := send(a, "203.0.113.9", "a@z.example", plain(from)).Want(550, "5.7.1").WantReason("DMARC").WantStamp("auth.dmarc", "fail")
		if t.Failed() {
			t.Fatalf("From: %s: %v", from, out.Answer())
		}
	}
	send(a, "192.0.2.7", "jane@x.example", plain("jane@x.example.")).WantContinue().WantStamp("auth.dmarc", "permerror")
	send(a, "192.0.2.7", "jane@x.example", plain("Jane")).WantContinue().WantStamp("auth.dmarc", "permerror")
}

// A signature with l= proves nothing of a message that somebody has put more behind.
func TestPartlySigned(t *testing.T) {
	a := start(t, "")
	text := plain("jane@x.example")
	header, body, _ := strings.Cut(text, "\r\n\r\n")
	m := dkim.NewMessage([]byte(header), strings.NewReader(body), int64(len(body)))
	sum, err := m.RelaxedBodyHash()
	if err != nil {
		t.Fatal(err)
	}
	value, err := signer.SignField(m, "DKIM-Signature", []dkim.Tag{
		{Name: "v", Value: "1"}, {Name: "a", Value: "ed25519-sha256"}, {Name: "b"}, {Name: "bh", Value: sum}, {Name: "c", Value: "relaxed/relaxed"},
		{Name: "d", Value: signer.Domain}, {Name: "h", Value: strings.Join(signer.Headers, ":")}, {Name: "l", Value: fmt.Sprint(len(body))}, {Name: "s", Value: signer.Selector},
	})
	if err != nil {
		t.Fatal(err)
	}
	text = "DKIM-Signature:" + value + "\r\n" + text
	send(a, "203.0.113.9", "a@z.example", text).WantContinue().WantStamp("auth.dkim", "pass").WantStamp("auth.dmarc", "pass")
	out := send(a, "203.0.113.9", "a@z.example", text+"Buy this\r\n").WantContinue().WantStamp("auth.dkim", "policy").WantStamp("auth.dmarc", "fail")
	if !strings.Contains(out.Message(), `reason="10 octets of the body are not signed"`) {
		t.Errorf("%s", out.Message())
	}
}

func TestSenderID(t *testing.T) {
	a := start(t, `
		senderid_fail      = "reject"
		senderid_temperror = "reject"
	`)
	// spf2.0/pra of y.example permits what its SPF record does not.
	send(a, "192.0.2.7", "a@z.example", plain("b@y.example")).WantContinue().WantStamp("auth.senderid", "pass").WantStamp("prd", "y.example")
	send(a, "203.0.113.9", "a@z.example", plain("b@y.example")).Want(550, "5.7.1").WantReason("SenderID")
	send(a, "203.0.113.9", "a@z.example", "Sender: c@z.example\r\n"+plain("b@y.example")).WantContinue().WantStamp("auth.senderid", "none")
	send(a, "203.0.113.9", "a@z.example", "Resent-From: b@y.example\r\nSender: c@z.example\r\n"+plain("b@z.example")).Want(550, "5.7.1")
	send(a, "203.0.113.9", "a@z.example", plain("b@nowhere.example")).Want(550, "5.7.1")
	send(a, "203.0.113.9", "a@z.example", "Subject: no sender\r\n\r\n").Want(550, "5.7.1").WantStamp("auth.senderid", "fail")
	send(a, "203.0.113.9", "a@z.example", plain("b@quiet.example")).Want(451, "4.4.3")
}

func TestActions(t *testing.T) {
	a := start(t, `
		dmarc_reject     = "reject"
		dmarc_quarantine = "quarantine"
		spf_softfail     = "delete"
		spf_permerror    = "reject"
		sender_id        = false
		bypassed_recipients     = ["abuse@local.example"]
		bypassed_sender_domains = ["good.x.example"]
		trusted_sealers         = ["lists.example"]
	`)
	send(a, "203.0.113.9", "jane@x.example", plain("jane@x.example")).Want(550, "5.7.1").WantReason("DMARC").WantStamp("auth.dmarc", "fail")
	send(a, "203.0.113.9", "jane@x.example", plain("jane@sub.x.example")).WantVerdict("quarantine")
	send(a, "203.0.113.9", "jane@y.example", plain("jane@z.example")).WantVerdict("discard").WantReason("SPF")
	send(a, "192.0.2.7", "a@broken.example", plain("a@z.example")).Want(550, "5.7.24")
	send(a, "203.0.113.9", "list@y.example", signedMessage(t, plain("jane@x.example"))).WantContinue().WantStamp("auth.dmarc", "pass") // forwarded, but signed
	send(a, "203.0.113.9", "jane@good.x.example", plain("jane@x.example")).WantContinue().WantReason("SenderBypassed")
	send(a, "203.0.113.9", "jane@x.example", plain("jane@x.example"), "abuse@local.example").WantContinue().WantReason("RecipientBypassed")
	send(a, "203.0.113.9", "jane@x.example", plain("jane@x.example"), "abuse@local.example", "me@local.example").
		WantFor("me@local.example", 550, "5.7.1").WantVerdictFor("abuse@local.example", "continue")
}

func TestForgedResultsAreRemoved(t *testing.T) {
	a := start(t, "")
	forged := "Authentication-Results: (x) EDGE.example 1; dmarc=pass\r\nAuthentication-Results: \"edge.example\"; spf=pass\r\n" +
		"Authentication-Results : edge.example; arc=pass\r\nAuthentication-Results\t: edge.example.; arc=pass\r\n" +
		"Authentication-Results: edge.example/1; arc=pass\r\n" + // as drafts of RFC 5451 wrote the version
		"Authentication-Results: other.example; spf=pass\r\n"
	message := send(a, "203.0.113.9", "a@z.example", forged+plain("a@z.example")).WantContinue().Message()
	if strings.Count(strings.ToLower(message), "edge.example 1") != 0 || strings.Contains(message, `"edge.example"`) || strings.Contains(message, "arc=pass") ||
		!strings.Contains(message, "other.example; spf=pass") || strings.Count(message, "Authentication-Results: edge.example") != 1 {
		t.Errorf("the header is\n%s", message)
	}
}

// So many forged results that they cannot be removed one by one go with all others of the message.
func TestManyForgedResults(t *testing.T) {
	a := start(t, "")
	forged := strings.Repeat("Authentication-Results: edge.example; arc=pass\r\n", 3000) + "Authentication-Results: other.example; spf=pass\r\n"
	out := send(a, "203.0.113.9", "a@z.example", forged+plain("a@z.example")).WantContinue()
	if message := out.Message(); strings.Contains(message, "arc=pass") || strings.Contains(message, "other.example") || strings.Count(message, "Authentication-Results:") != 1 {
		t.Errorf("the header is\n%.2000s", message)
	}
}

func TestTrustedSessions(t *testing.T) {
	a := start(t, `spf_fail = "reject"`)
	s := a.From("203.0.113.9").Authenticated("jane")
	s.Mail("jane@x.example")
	s.To("you@far.example")
	s.Data(plain("jane@x.example")).WantContinue().WantReason("Trusted")
}

func TestSourceBehindOwnServers(t *testing.T) {
	host := &agentpb.HostFacts{Name: "edge.example", InternalSmtpServers: []string{"10.0.0.0/8"}}
	a := start(t, `spf_fail = "reject"`, agenttest.WithHost(host))
	send(a, "10.0.0.1", "jane@x.example", "Received: from mx.x.example (mx.x.example [192.0.2.7]) by hub\r\n"+plain("jane@x.example")).
		WantContinue().WantStamp("auth.spf", "pass")
	send(a, "10.0.0.1", "jane@x.example", "Received: from mx.x.example (mx.x.example [203.0.113.9]) by hub\r\n"+plain("jane@x.example")).
		Want(550, "5.7.23").WantReason("SPF")
	out := send(a, "10.0.0.1", "jane@x.example", plain("jane@x.example")).WantContinue().WantReason("NoSource")
	if strings.Contains(out.Message(), resultsField) {
		t.Errorf("judged without a source:\n%s", out.Message())
	}
}

func TestConfigurationMistakes(t *testing.T) {
	for config, want := range map[string]string{
		`authserv_id = "a b"`:               "authserv_id",
		`trusted_sealers = ["?"]`:           "trusted_sealers[0]",
		`bypassed_recipients = ["a@"]`:      "bypassed_recipients[0]",
		`bypassed_sender_domains = ["..."]`: "bypassed_sender_domains[0]",
		`dns_servers = ["nowhere"]`:         "dns_servers[0]",
		`dmarc_reject = "reject"`:           "warning: dmarc_reject",
	} {
		t.Run(want, func(t *testing.T) {
			got := agenttest.Diagnostics(t, New, config, agenttest.WithInfo(info()))
			if len(got) == 0 || !strings.Contains(got[0], want) {
				t.Errorf("%q, expected something about %s", got, want)
			}
		})
	}
}

func TestTestCommand(t *testing.T) {
	z := newZone(t,
		`x.example. 60 IN TXT "v=spf1 ip4:192.0.2.0/24 exp=why.x.example -all"`,
		`why.x.example. 60 IN TXT "%{i} is not ours"`,
		`_dmarc.x.example. 60 IN TXT "v=DMARC1; p=reject; sp=none"`,
	)
	for _, c := range []struct {
		args []string
		want []string
		err  string
	}{
		{[]string{"192.0.2.7", "jane@x.example"}, []string{"sender-id  pass\n", "spf        pass\n", "dmarc      policy reject of x.example\n"}, ""},
		{[]string{"203.0.113.9", "x.example", "mx.x.example"}, []string{"sender-id  fail\n  explanation: \"203.0.113.9 is not ours\"\n"}, ""},
		{[]string{"203.0.113.9", "sub.x.example"}, []string{"sender-id  fail\n  reason: \"the domain does not exist\"\n", "dmarc      policy none of x.example\n"}, ""},
		{[]string{"203.0.113.9", "z.example"}, []string{"dmarc      no policy\n"}, ""},
		{[]string{"203.0.113.9"}, nil, "say IP"},
		{[]string{"x", "x.example"}, nil, "the client's address"},
		{[]string{"203.0.113.9", "@"}, nil, "the sender"},
	} {
		var out strings.Builder
		err := answer(t.Context(), &out, &Auth{resolver: z.resolver(t), host: "edge.example"}, c.args)
		if (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), c.err) {
			t.Errorf("%v: %v", c.args, err)
		}
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%v: no %q in\n%s", c.args, want, out.String())
			}
		}
	}
}

func TestReadme(t *testing.T) { agenttest.CheckReadme(t, New, "README.md") }

// TestAtOnce: a panic in a check is one of the handler, where it is the fault of one event, and the other checks have ended.
func TestAtOnce(t *testing.T) {
	done := false
	defer func() {
		if cause := recover(); cause != "broken" || !done {
			t.Errorf("recovered %v, the other check has ended: %v", cause, done)
		}
	}()
	atOnce([]func(){func() { panic("broken") }, func() { done = true }})
	t.Error("the panic is gone")
}
