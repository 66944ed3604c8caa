package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk/dkim"
	"github.com/posternmail/postern/test/rig"
)

// rewriting are both agent blocks of addressrewrite with the same entries.
func rewriting(entries string) string {
	block := func(label, direction string, priority int, when string) string {
		return fmt.Sprintf("agent %q {\n  plugin   = \"addressrewrite\"\n  priority = %d\n%s  config {\n    direction = %q\n%s\n  }\n}\n", label, priority, when, direction, entries)
	}
	return block("rewrite-in", "inbound", 20, "") +
		block("rewrite-out", "outbound", 100, "  when {\n    traffic = [\"external\", \"outbound\", \"internal\"]\n  }\n")
}

const rewriteEntries = `
    entry "address" {
      internal = "ann@corp.example.org"
      external = "ann.smith@example.org"
    }
    entry "branches" {
      internal   = "corp.example.org"
      external   = "branch.example"
      exceptions = ["root@corp.example.org"]
    }
    entry "flat" {
      internal      = "*.example.org"
      external      = "example.org"
      exceptions    = ["lab.example.org"]
      outbound_only = true
    }
    entry "international" {
      internal = "büro.example"
      external = "bücher.example"
    }
    srs {
      domain = "example.org"
      secret = "a secret of ours"
    }`

// TestRewriteBehaviours is what the README of addressrewrite says, both ways.
func TestRewriteBehaviours(t *testing.T) {
	t.Parallel()
	sink := rig.StartSink(t)
	accepted := ""
	for _, d := range []string{"corp.example.org", "*.example.org", "branch.example", "büro.example", "bücher.example"} {
		accepted += fmt.Sprintf("accepted_domain %q {\n  type = \"internal_relay\"\n}\n", d)
	}
	h := rig.Start(t, internal(sink.Addr)+accepted+rewriting(rewriteEntries)+mockAgent("forwarder", 50, `
    on "OnResolved" {
      recipient         = "^forwarded@example[.]org$"
      rewrite_recipient = "else@far.example"
    }`))
	out := func(name, sender, mail, header, data string, has ...string) passage {
		p := passage{name: name, ip: ownServer, from: sender, to: []string{"you@far.example"}, content: header + "Subject: hello\r\n\r\nFrom: " + sender + "\r\n",
			event: "OnRouted", hop: []string{"you@far.example"}, mail: mail, has: append(has, "\r\n\r\nFrom: "+sender+"\r\n")} // the body is never touched
		if data != "" {
			p.reason, p.data = "rewritten", data
		}
		return p
	}
	in := func(name, to, hop, header, event, data string, has ...string) passage {
		p := passage{name: name, ip: "192.0.2.1", from: "a@sender.example", to: []string{to}, content: header + "Subject: hello\r\n\r\nhello\r\n", hop: []string{hop}, has: has}
		if event != "" {
			p.event, p.reason, p.data = event, "rewritten", data
		}
		return p
	}
	stay := func(p passage) passage { p.event = ""; return p }
	utf8 := out("SMTPUTF8", "jürgen@büro.example", "jürgen@bücher.example", "From: Jürgen <jürgen@büro.example>\r\n", "MAIL FROM, From", "From: Jürgen <jürgen@bücher.example>")
	utf8.params = " SMTPUTF8"
	both := out("a recipient inside and one outside", "ann@corp.example.org", "ann.smith@example.org", "From: ann@corp.example.org\r\n", "MAIL FROM, From", "From: ann.smith@example.org")
	all := out("all fields", "bob@corp.example.org", "bob@branch.example",
		"Return-Receipt-To: bob@corp.example.org\r\nDisposition-Notification-To: bob@corp.example.org\r\nResent-From: bob@corp.example.org\r\nResent-Sender: bob@corp.example.org\r\n"+
			"From: bob@corp.example.org\r\nSender: bob@corp.example.org\r\nReply-To: Team: bob@corp.example.org,\r\n other@sender.example;\r\n"+
			"To: you@far.example, bob@corp.example.org\r\nMessage-ID: <1@corp.example.org>\r\n",
		"MAIL FROM, From, Sender, Reply-To, Return-Receipt-To, Disposition-Notification-To, Resent-From, Resent-Sender",
		"\r\nFrom: bob@branch.example\r\n", "Sender: bob@branch.example", "Reply-To: Team: bob@branch.example,\r\n other@sender.example;\r\n", "Return-Receipt-To: bob@branch.example",
		"Disposition-Notification-To: bob@branch.example", "Resent-From: bob@branch.example", "Resent-Sender: bob@branch.example",
		"To: you@far.example, bob@corp.example.org\r\n", "Message-ID: <1@corp.example.org>\r\n")
	all.reply = "250 2.6.0 <1@corp.example.org> [id] Queued mail for delivery"
	t.Run("outbound", func(t *testing.T) {
		passAll(t, h, sink, "rewrite-out", []passage{
			out("an address", "ann@corp.example.org", "ann.smith@example.org", "From: \"Smith, Ann\" <ann@corp.example.org> (that's me)\r\n", "MAIL FROM, From",
				"From: \"Smith, Ann\" <ann.smith@example.org> (that's me)\r\n"),
			out("a domain", "bob@CORP.example.org", "bob@branch.example", "From: bob@Corp.Example.org\r\n", "MAIL FROM, From", "From: bob@branch.example\r\n"),
			out("a subdomain, flattened", "eve@dep.example.org", "eve@example.org", "From: eve@dep.example.org\r\n", "MAIL FROM, From", "From: eve@example.org\r\n"),
			stay(out("an exception", "root@corp.example.org", "root@corp.example.org", "From: root@corp.example.org\r\n", "", "From: root@corp.example.org\r\n")),
			stay(out("a domain that is excepted", "x@lab.example.org", "x@lab.example.org", "From: x@lab.example.org\r\n", "", "From: x@lab.example.org\r\n")),
			all,
			out("A-labels without SMTPUTF8", "x@xn--bro-hoa.example", "x@xn--bcher-kva.example", "From: x@xn--bro-hoa.example\r\n", "MAIL FROM, From", "From: x@xn--bcher-kva.example\r\n"),
			utf8, both,
			stay(passage{name: "inside", ip: ownServer, from: "ann@corp.example.org", to: []string{"b@example.org"}, content: fromLine("ann@corp.example.org"),
				hop: []string{"b@example.org"}, has: []string{"From: ann@corp.example.org\r\n"}}),
		})
	})
	t.Run("inbound", func(t *testing.T) {
		passAll(t, h, sink, "rewrite-in", []passage{
			in("an address", "Ann.Smith@example.org", "ann@corp.example.org", "From: a@sender.example\r\nTo: Ann <ann.smith@example.org>\r\n", "OnRcpt", "RCPT TO",
				"To: Ann <ann@corp.example.org>\r\n"),
			in("the header", "ann.smith@example.org", "ann@corp.example.org", "From: ann.smith@example.org\r\nTo: you: ann.smith@example.org;\r\nCc: x@branch.example\r\nReply-To: x@branch.example\r\n",
				"OnEndOfHeaders", "To, Cc", "From: ann.smith@example.org\r\n", "To: you: ann@corp.example.org;\r\n", "Cc: x@corp.example.org\r\n", "Reply-To: x@branch.example\r\n"),
			in("a domain", "bob@branch.example", "bob@corp.example.org", "From: a@sender.example\r\n", "OnRcpt", "RCPT TO"),
			in("an exception", "root@branch.example", "root@branch.example", "From: a@sender.example\r\n", "", ""),
			in("outbound_only", "eve@example.org", "eve@example.org", "From: a@sender.example\r\n", "", ""),
		})
	})
	t.Run("a message for both", func(t *testing.T) { rewriteBoth(t, h, sink) })
	t.Run("SRS", func(t *testing.T) { bounceComesBack(t, h, sink) })
}

// rewriteBoth sends one message inside and outside: only the copy that leaves is rewritten.
func rewriteBoth(t *testing.T, h *rig.Host, sink *rig.Sink) {
	before := len(sink.Messages())
	c := from(h, ownServer)
	c.Do("MAIL FROM:<ann@corp.example.org>", okSender)
	c.Do("RCPT TO:<b@example.org>", okRcpt)
	c.Do("RCPT TO:<you@far.example>", okRcpt)
	id := idOf(t, c.Data(fromLine("ann@corp.example.org")))
	h.WaitFor("two copies", func() bool { return len(sink.Messages()) == before+2 })
	for _, m := range sink.Messages()[before:] {
		want := "ann@corp.example.org"
		if slices.Equal(recipientsOf(m), []string{"you@far.example"}) {
			want = "ann.smith@example.org"
		}
		if !strings.HasPrefix(m.From, "MAIL FROM:<"+want+">") || !strings.Contains(m.Content, "From: "+want+"\r\n") {
			t.Errorf("%v got\n%s\n%s", m.To, m.From, m.Content)
		}
	}
	steps := waitRecord(h, id, "CATEGORIZE").steps("rewrite-out", "OnRouted")
	if len(steps) == 0 || !slices.Contains(steps[0].Recipients, "you@far.example") {
		t.Errorf("the ledger has %+v", steps)
	}
}

// bounceComesBack forwards a stranger's mail, and sends a bounce to the address that it left with.
func bounceComesBack(t *testing.T, h *rig.Host, sink *rig.Sink) {
	before := len(sink.Messages())
	forwarded := from(h, "192.0.2.1")
	accepted(t, forwarded, "jane@sender.example", "forwarded@example.org", fromLine("jane@sender.example"))
	h.WaitFor("the forwarded message", func() bool { return len(sink.Messages()) == before+1 })
	m := sink.Messages()[before]
	_, rest, _ := strings.Cut(m.From, "<")
	bounce, _, _ := strings.Cut(rest, ">")
	if !strings.HasPrefix(bounce, "SRS0=") || !strings.HasSuffix(bounce, "=sender.example=jane@example.org") || !slices.Equal(recipientsOf(m), []string{"else@far.example"}) ||
		!strings.Contains(m.Content, "From: jane@sender.example\r\n") {
		t.Fatalf("%s %v\n%s", m.From, m.To, m.Content)
	}
	passAll(t, h, sink, "rewrite-in", []passage{
		{name: "a bounce", ip: "203.0.113.9", from: "", to: []string{bounce}, content: "From: <>\r\nSubject: failed\r\n\r\n", event: "OnRcpt", reason: "srs-turned-back",
			hop: []string{"jane@sender.example"}},
		{name: "a forged bounce", ip: "203.0.113.9", from: "", to: []string{strings.Replace(bounce, "=jane@", "=joan@", 1)}, rcpt: "550 5.1.1 Not a valid bounce address [id]",
			event: "OnRcpt", verdict: "reject", reason: "srs-invalid", data: "the hash is wrong"},
		{name: "no bounce address", ip: "203.0.113.9", from: "", to: []string{"SRS0=x@example.org"}, rcpt: "550 5.1.1 Not a valid bounce address [id]",
			event: "OnRcpt", verdict: "reject", reason: "srs-invalid", data: "not an SRS address"},
	})
}

// TestRewriteAndSignatures: a signature over To is judged as the message was received, though To is rewritten before.
func TestRewriteAndSignatures(t *testing.T) {
	sink, z := rig.StartSink(t), authWorld(t)
	h := rig.Start(t, internal(sink.Addr)+"accepted_domain \"corp.example.org\" {\n  type = \"internal_relay\"\n}\n"+senderauth(z, "    dkim_fail = \"reject\"")+rewriting(rewriteEntries))
	text := "From: jane@x.example\r\nTo: Ann <ann.smith@example.org>\r\nSubject: hello\r\n\r\nhello\r\n"
	s := dkim.Signer{Domain: "x.example", Selector: "s1", Key: edKey('x'), Headers: []string{"From", "To", "Subject"}}
	value, err := s.Sign(messageOf(text), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	p := passage{ip: "203.0.113.9", from: "jane@x.example", to: []string{"ann.smith@example.org"}, content: "DKIM-Signature:" + value + "\r\n" + text,
		event: "OnEndOfData", reason: "Verified", data: "spf=fail dkim=pass dmarc=pass arc=none sender-id=fail", stamps: []string{"auth.dkim=pass"},
		hop: []string{"ann@corp.example.org"}, has: []string{"To: Ann <ann@corp.example.org>\r\n", "dkim=pass"}}
	p.pass(t, h, sink, "senderauth")
}
