package test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// behaviour is one documented behaviour of an agent, seen from outside: a dialog with the octets of each reply, what the
// ledger and `postern why` tell of it, and what the next hop received.
type behaviour struct {
	name   string
	ip     string   // of the client
	dialog []string // "what is sent|the reply", where [id] stands for an id; "MESSAGE|reply" is content and its dot
	header string   // of the message, before helloMessage's or in its place if it holds From
	closed bool     // the connection ends with the dialog

	command string // refused with the agent's name, as the ledger has it; "" is none
	event   string // at which the agent spoke
	verdict string // "" is none worth telling
	reason  string
	data    string
	stamp   string   // that the agent left with it
	to      []string // recipients that the next hop received the message for; nil: it received nothing
}

// run the dialog of b and look at what came of it.
func (b *behaviour) run(t *testing.T, h *rig.Host, sink *rig.Sink, agent string) {
	t.Helper()
	before := len(sink.Messages())
	c := from(h, b.ip)
	id := ""
	for _, line := range b.dialog {
		send, want, _ := strings.Cut(line, "|")
		reply := b.say(c, send)
		if masked(reply) != want {
			t.Errorf("%s\ngot  %s\nwant %s", send, reply, want)
			return
		}
		if strings.Contains(want, "[id]") && (b.command != "" && reply[0] >= '4' || id == "") {
			id = idOf(t, reply)
		}
	}
	if b.closed {
		c.WantClosed()
	} else {
		c.Do("QUIT", "221")
	}
	b.told(t, h, agent, id)
	if b.to == nil {
		return // what follows at this next hop shows that nothing came
	}
	h.WaitFor("the message at the next hop", func() bool { return len(sink.Messages()) > before })
	got := sink.Messages()[before]
	var to []string
	for _, line := range got.To {
		to = append(to, line[strings.Index(line, "<")+1:strings.Index(line, ">")])
	}
	if !slices.Equal(to, b.to) {
		t.Errorf("the next hop got it for %v, want %v", to, b.to)
	}
	if content := b.content(); !strings.HasSuffix(got.Content, content) {
		t.Errorf("the next hop got\n%s\nwhich does not end with\n%s", got.Content, content)
	}
}

func (b *behaviour) say(c *rig.Client, send string) string {
	if send == "MESSAGE" {
		return c.Data(b.content())
	}
	c.Send("%s", send)
	return c.Reply()
}

func (b *behaviour) content() string {
	if strings.Contains(b.header, "From:") {
		return b.header + "Subject: hello\r\n\r\nhello\r\n"
	}
	return b.header + helloMessage
}

// told looks into the ledger.
func (b *behaviour) told(t *testing.T, h *rig.Host, agent, id string) {
	t.Helper()
	if b.verdict == "" {
		return
	}
	event := "RECEIVE"
	if b.command != "" {
		event = "REJECT"
	}
	var r record
	h.WaitFor(event+" with "+b.reason+" in the ledger", func() bool {
		records := ledger(h, id)
		i := slices.IndexFunc(records, func(r record) bool { return r.Event == event && (event == "RECEIVE" || r.Reason == b.reason) })
		if i >= 0 {
			r = records[i]
		}
		return i >= 0
	})
	if b.command != "" && (r.Command != b.command || r.Agent != agent || r.AgentEvent != b.event || r.Reason != b.reason) {
		t.Errorf("the ledger has %+v", r)
	}
	i := slices.IndexFunc(r.steps(agent, b.event), func(v verdict) bool { return v.Verdict == b.verdict && v.Reason == b.reason })
	if i < 0 {
		t.Errorf("the ledger has no %s %s %s of %s in %+v", b.event, b.verdict, b.reason, agent, r.Verdicts)
		return
	}
	step := r.steps(agent, b.event)[i]
	if step.Data != b.data || b.stamp != "" && !slices.Contains(step.Stamps, b.stamp) {
		t.Errorf("the ledger has %+v, want data %q and stamp %q", step, b.data, b.stamp)
	}
	if why := h.MustPostern("why", id); !strings.Contains(why, b.reason) || !strings.Contains(why, b.data) {
		t.Errorf("why does not tell of %s (%s):\n%s", b.reason, b.data, why)
	}
}

// masked replaces the ids of a reply.
func masked(reply string) string {
	i, j := strings.LastIndexByte(reply, '['), strings.LastIndexByte(reply, ']')
	if i < 0 || j < i {
		return reply
	}
	return reply[:i] + "[id]" + reply[j+1:]
}

// behave runs behaviours one after the other, and sees that the next hop got what it should and nothing else.
func behave(t *testing.T, h *rig.Host, sink *rig.Sink, agent string, behaviours []behaviour) {
	t.Helper()
	for _, b := range behaviours {
		t.Run(b.name, func(t *testing.T) { b.run(t, h, sink, agent) })
	}
	// The last one is delivered after all before it that could have been.
	last := behaviour{name: "nothing else", ip: "203.0.113.77", dialog: pass("last@example.net"), to: []string{"last@example.net"}}
	n := len(sink.Messages())
	t.Run(last.name, func(t *testing.T) { last.run(t, h, sink, agent) })
	want := 1
	for _, b := range behaviours {
		if b.to != nil {
			want++
		}
	}
	if got := len(sink.Messages()); got != want || n != want-1 {
		t.Errorf("the next hop got %d messages, want %d", got, want)
	}
}

const (
	okSender = "250 2.1.0 Sender OK"
	okRcpt   = "250 2.1.5 Recipient OK"
	okQueued = "250 2.6.0 [id] Queued mail for delivery"
)

// pass is the dialog of a message that goes through.
func pass(to ...string) []string {
	lines := []string{"MAIL FROM:<a@sender.example>|" + okSender}
	for _, r := range to {
		lines = append(lines, "RCPT TO:<"+r+">|"+okRcpt)
	}
	return append(lines, "MESSAGE|"+okQueued)
}

// strangers is a host that takes mail for example.org by a directory, for hashed.example by a hashed one, and for
// relayed.example and example.net without.
func strangers(t *testing.T, nextHop, agents string) *rig.Host {
	t.Helper()
	h := rig.New(t, strings.Replace(filtered(nextHop), `accepted_domain "example.org" {
  type = "internal_relay"
}`, `accepted_domain "example.org" {
  type = "authoritative"
}
accepted_domain "hashed.example" {
  type = "authoritative"
}
accepted_domain "relayed.example" {
  type = "internal_relay"
}
accepted_domain "example.net" {
  type = "authoritative"
}
directory "corp" {
  file = "{dir}/corp.csv"
}
directory "hashed" {
  file   = "{dir}/hashed.csv"
  hashed = true
}`, 1)+agents)
	writeFile(t, filepath.Join(h.Dir, "corp.csv"), `address,safe_senders,blocked_senders
ann@example.org,friend@bad.example,"spam@sender.example bad.example"
bob@example.org,,
@example.org,,
`)
	key := []byte("0123456789abcdef")
	hash := func(text string) string {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(text))
		return hex.EncodeToString(mac.Sum(nil)[:16])
	}
	writeFile(t, filepath.Join(h.Dir, "hashed.csv"), fmt.Sprintf("# hash-key: %x\naddress\n%s\n%s\n", key, hash("carl@hashed.example"), hash("@hashed.example")))
	return h
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func senderfilter(config string) string {
	return "agent \"senderfilter\" {\n  priority = 20\n  config {\n" + config + "\n  }\n}\n"
}

func recipientfilter(config string) string {
	return "agent \"recipientfilter\" {\n  priority = 25\n  config {\n" + config + "\n  }\n}\n"
}

// TestSenderfilterBehaviours is what the README of senderfilter says, each sentence through real SMTP.
func TestSenderfilterBehaviours(t *testing.T) {
	t.Parallel()
	const denied = "554 5.1.0 Sender denied [id]"
	mail := func(sender, reply string) []string { return []string{"MAIL FROM:<" + sender + ">|" + reply} }
	refused := func(name, sender, reason, data string) behaviour {
		return behaviour{name: name, ip: "192.0.2.1", dialog: mail(sender, denied), command: "MAIL", event: "OnMail", verdict: "reject", reason: reason, data: data}
	}
	sink := rig.StartSink(t)
	h := strangers(t, sink.Addr, senderfilter(`
    blocked_senders       = ["Spam@listed.example", "listed-domain.example", "*.listed-above.example"]
    blocked_senders_files = ["{dir}/senders"]
    block_blank_senders   = true`))
	writeFile(t, filepath.Join(h.Dir, "senders"), "# by file\nfile.example # since May\n")
	h.Start()
	for key, value := range map[string]string{"row@x.example": `{"reason":"reported"}`, "row.example": `{}`, "*.row-above.example": `{}`} {
		h.MustPostern("table", "set", "senderfilter/blocked", key, value)
	}
	passes := func(name, sender string) behaviour {
		d := pass("bob@example.org")
		d[0] = "MAIL FROM:<" + sender + ">|" + okSender
		return behaviour{name: name, ip: "192.0.2.1", dialog: d, to: []string{"bob@example.org"}}
	}
	headerRefused := func(name, header, reason, data string) behaviour {
		d := pass("bob@example.org")
		d[2] = "MESSAGE|" + denied
		return behaviour{name: name, ip: "192.0.2.1", dialog: d, header: header, command: "MESSAGE", event: "OnEndOfHeaders", verdict: "reject", reason: reason, data: data}
	}
	partly := pass("ann@example.org", "bob@example.org")
	behave(t, h, sink, "senderfilter", []behaviour{
		refused("an address", "SPAM@listed.example", "SenderOnBlockList", "spam@listed.example"),
		refused("a domain", "any@listed-domain.example", "SenderOnBlockList", "listed-domain.example"),
		refused("a subdomain", "any@deep.listed-above.example", "SenderOnBlockList", "*.listed-above.example"),
		refused("by file", "any@file.example", "SenderOnBlockList", "file.example"),
		refused("the null sender", "", "BlankSender", "<>"),
		refused("by table", "row@x.example", "SenderInTable", "row@x.example"),
		refused("a domain by table", "any@row.example", "SenderInTable", "row.example"),
		refused("a subdomain by table", "any@a.b.row-above.example", "SenderInTable", "*.row-above.example"),
		passes("another address of its domain", "other@listed.example"),
		passes("a subdomain of a domain", "any@sub.listed-domain.example"),
		passes("a domain above its subdomains", "any@row-above.example"),
		headerRefused("the header's sender", "From: Boss <spam@listed.example>\r\n", "SenderOnBlockList", "spam@listed.example"),
		headerRefused("Sender of the header", "From: a@sender.example\r\nSender: x@listed-domain.example\r\n", "SenderOnBlockList", "listed-domain.example"),
		headerRefused("the header's sender by table", "From: x@a.row-above.example\r\n", "SenderInTable", "*.row-above.example"),
		{name: "for who has blocked the sender", ip: "192.0.2.1", dialog: []string{
			"MAIL FROM:<spam@sender.example>|" + okSender, "RCPT TO:<ann@example.org>|" + denied, "RCPT TO:<bob@example.org>|" + okRcpt, "MESSAGE|" + okQueued,
		}, command: "RCPT", event: "OnRcpt", verdict: "reject", reason: "RecipientBlockedSender", data: "ann@example.org|spam@sender.example", to: []string{"bob@example.org"}},
		{name: "who blocked the domain and trusts the address", ip: "192.0.2.1", dialog: []string{
			"MAIL FROM:<friend@bad.example>|" + okSender, "RCPT TO:<ann@example.org>|" + okRcpt, "MESSAGE|" + okQueued,
		}, to: []string{"ann@example.org"}},
		{name: "for who has blocked the header's sender", ip: "192.0.2.1", dialog: partly, header: "From: x@bad.example\r\n",
			event: "OnEndOfHeaders", verdict: "reject", reason: "RecipientBlockedSender", data: "x@bad.example", to: []string{"bob@example.org"}},
	})
}

// TestSenderfilterActions: stamp, disconnect and delete in the place of a refusal.
func TestSenderfilterActions(t *testing.T) {
	t.Parallel()
	t.Run("stamp", func(t *testing.T) {
		sink := rig.StartSink(t)
		h := strangers(t, sink.Addr, senderfilter("blocked_senders = [\"sender.example\"]\n    action = \"stamp\""))
		h.Start()
		behave(t, h, sink, "senderfilter", []behaviour{{
			name: "stamped", ip: "192.0.2.1", dialog: pass("bob@example.org"), event: "OnMail", verdict: "continue", reason: "SenderOnBlockList",
			data: "sender.example", stamp: "senderfilter.status=SenderOnBlockList", to: []string{"bob@example.org"},
		}})
	})
	t.Run("disconnect and delete", func(t *testing.T) {
		sink := rig.StartSink(t)
		h := strangers(t, sink.Addr, senderfilter("blocked_senders = [\"listed.example\"]\n    disconnect = true\n    recipient_action = \"delete\""))
		h.Start()
		silent := pass("ann@example.org")
		silent[0] = "MAIL FROM:<spam@sender.example>|" + okSender
		both := pass("ann@example.org", "bob@example.org")
		both[0] = silent[0]
		behave(t, h, sink, "senderfilter", []behaviour{
			{name: "closed", ip: "192.0.2.1", dialog: []string{"MAIL FROM:<x@listed.example>|554 5.1.0 Sender denied [id]"}, closed: true,
				command: "MAIL", event: "OnMail", verdict: "disconnect", reason: "SenderOnBlockList", data: "listed.example"},
			{name: "deleted", ip: "192.0.2.1", dialog: silent},
			{name: "deleted for one", ip: "192.0.2.1", dialog: both, to: []string{"bob@example.org"}},
		})
	})
}

// TestRecipientfilterBehaviours is what the README of recipientfilter says.
func TestRecipientfilterBehaviours(t *testing.T) {
	t.Parallel()
	const unknown = "550 5.1.1 User unknown [id]"
	sink := rig.StartSink(t)
	h := strangers(t, sink.Addr, recipientfilter(`
    blocked_recipients = ["Bob@example.org", "*.blocked.example.net"]
    tarpit             = "10ms"
    harvest_limit      = 3
    trusted            = ["203.0.113.0/24"]`)+connfilter(""))
	h.Start()
	refused := func(name, ip, to, reason, data string) behaviour {
		return behaviour{name: name, ip: ip, dialog: []string{
			"MAIL FROM:<a@sender.example>|" + okSender, "RCPT TO:<ann@example.org>|" + okRcpt, "RCPT TO:<" + to + ">|" + unknown, "MESSAGE|" + okQueued,
		}, command: "RCPT", event: "OnRcpt", verdict: "reject", reason: reason, data: data, to: []string{"ann@example.org"}}
	}
	passes := func(name, to string) behaviour {
		return behaviour{name: name, ip: "203.0.113.5", dialog: pass(to), to: []string{to}}
	}
	guess := func(i int) string { return fmt.Sprintf("RCPT TO:<guess%d@example.org>|%s", i, unknown) }
	behave(t, h, sink, "recipientfilter", []behaviour{
		passes("known", "ANN@example.org"),
		passes("known by its hash", "carl@hashed.example"),
		passes("postmaster", "postmaster@example.org"),
		passes("a domain that is relayed", "any@relayed.example"),
		passes("a domain without a directory", "any@example.net"),
		refused("unknown, others go on", "203.0.113.5", "nobody@example.org", "RecipientDoesNotExist", ""),
		refused("unknown to a hashed directory", "203.0.113.5", "nobody@hashed.example", "RecipientDoesNotExist", ""),
		refused("blocked though known", "203.0.113.5", "bob@example.org", "RecipientOnBlockList", "bob@example.org"),
		refused("unknown to the null sender's source", "192.0.2.5", "nobody@example.org", "RecipientDoesNotExist", ""),
		{name: "good ones wait as long as bad ones", ip: "192.0.2.6", dialog: []string{
			"MAIL FROM:<a@sender.example>|" + okSender, guess(1), "RCPT TO:<ann@example.org>|" + okRcpt, "MESSAGE|" + okQueued,
		}, event: "OnRcpt", verdict: "tarpit", to: []string{"ann@example.org"}},
		{name: "harvest", ip: "192.0.2.7", dialog: []string{"MAIL FROM:<a@sender.example>|" + okSender, guess(1), guess(2), guess(3)}, closed: true,
			command: "RCPT", event: "OnRcpt", verdict: "disconnect", reason: "DirectoryHarvest", data: "3 unknown recipients in 1h0m0s"},
	})
	if row := h.MustPostern("table", "get", "ip-block", "192.0.2.7/32"); !strings.Contains(row, "DirectoryHarvest: 3 unknown recipients") || !strings.Contains(row, "recipientfilter") {
		t.Errorf("ip-block:\n%s", row)
	}
	if row := h.MustPostern("table", "get", "reputation", "192.0.2.7"); !strings.Contains(row, `"harvests"`) {
		t.Errorf("reputation:\n%s", row)
	}
	refusedRcpt(t, h, from(h, "192.0.2.7"), "External client with IP address 192.0.2.7 is blocked for a time because of its reputation",
		"MachineBlockList", "192.0.2.7/32 by recipientfilter (DirectoryHarvest: 3 unknown recipients in 1h0m0s)")
}

// hastyClient is a client at an address that sends at once what it has to say, and reads nothing.
func hastyClient(h *rig.Host, ip, lines string) *rig.Client {
	c := h.Dial()
	c.Raw("PROXY TCP4 " + ip + " 192.0.2.25 4711 25\r\n" + lines)
	return c
}

// TestConnfilterHaste: who does not wait for the greeting, or for replies, is refused at RCPT.
func TestConnfilterHaste(t *testing.T) {
	const refusal = "554 5.5.0 Protocol error: the client does not wait for replies ["
	sink := rig.StartSink(t)
	h := strangers(t, sink.Addr, connfilter(`bypassed_recipients = ["abuse@example.net"]
    allow_list {
      networks = ["192.0.2.100"]
    }`))
	h.Start()
	refused := func(c *rig.Client, reason, data string) {
		t.Helper()
		reply := c.Do("RCPT TO:<b@example.net>", refusal)
		r := waitRecord(h, idOf(t, reply), "REJECT")
		if r.Command != "RCPT" || r.Agent != "connfilter" || r.AgentEvent != "OnRcpt" || r.Reason != reason || len(r.steps("connfilter", "OnRcpt")) != 1 ||
			r.steps("connfilter", "OnRcpt")[0].Data != data {
			t.Errorf("the ledger has %+v, want %s (%s)", r, reason, data)
		}
		c.Do("RCPT TO:<abuse@example.net>", "250")
	}
	greeted := func(c *rig.Client) *rig.Client {
		t.Helper()
		c.Want("220 ")
		c.Want("250")
		c.Do("MAIL FROM:<a@sender.example>", "250")
		return c
	}
	c := greeted(hastyClient(h, "192.0.2.1", "EHLO client.example\r\n"))
	refused(c, "EarlyTalker", "before the greeting")
	if reply := c.Data(helloMessage); !strings.HasPrefix(reply, "250 ") { // for who wants it all the same
		t.Errorf("got %q", reply)
	}
	h.WaitFor("the message at the next hop", func() bool { return len(sink.Messages()) == 1 })
	if got := sink.Messages()[0]; len(got.To) != 1 || !strings.Contains(got.To[0], "abuse@example.net") {
		t.Errorf("the next hop got %+v", got)
	}

	slow := hastyClient(h, "192.0.2.2", "")
	slow.Want("220 ")
	slow.Raw("EHLO client.example\r\nNOOP\r\n")
	slow.Want("250")
	slow.Want("250")
	slow.Do("MAIL FROM:<a@sender.example>", "250")
	refused(slow, "PipeliningAbuse", "before 1 replies")

	// Who is on the allow list may, and so may those on this machine; a client that pipelines as it should is in order.
	allowed := greeted(hastyClient(h, "192.0.2.100", "EHLO client.example\r\n"))
	allowed.Do("RCPT TO:<b@example.net>", "250")
	local := greeted(hastyClient(h, "127.0.0.1", "EHLO client.example\r\n"))
	local.Do("RCPT TO:<b@example.net>", "250")
	good := from(h, "192.0.2.3")
	good.Raw("MAIL FROM:<a@sender.example>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n")
	for _, code := range []string{"250", "250", "354"} {
		good.Want(code)
	}
}
