package test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/posternmail/postern/test/rig"
)

const gtube = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"

// filtered is a host that relays to nextHop, does not wait with refusals, and learns from PROXY where a client comes from;
// agents are added behind it.
func filtered(nextHop string) string {
	return fmt.Sprintf(`
host {
  name                  = "edge.example"
  data_dir              = "{dir}/data"
  internal_smtp_servers = ["10.0.0.0/24"]
  on_partial_reject     = "discard"
}
ledger {
  full = true
}
receive_connector "in" {
  listen      = ["{addr}"]
  permissions = ["anonymous"]
  proxy_from  = ["127.0.0.0/8"]
  limits {
    tarpit = "0s"
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

func connfilter(config string) string {
	return "agent \"connfilter\" {\n  priority = 10\n  config {\n" + config + "\n  }\n}\n"
}

func contentfilter(config string) string {
	return "agent \"contentfilter\" {\n  priority = 40\n  config {\n" + config + "\n  }\n}\n"
}

// from is a client at an address that has said EHLO.
func from(h *rig.Host, ip string) *rig.Client {
	c := h.Dial()
	family, local := "TCP4", "192.0.2.25"
	if strings.Contains(ip, ":") {
		family, local = "TCP6", "2001:db8::25"
	}
	c.Send("PROXY %s %s %s 4711 25", family, ip, local)
	c.Want("220 ")
	c.Do("EHLO client.example", "250")
	return c
}

// refusedRcpt sends RCPT and wants this reply with the id of the message behind it, and the ledger to say why.
func refusedRcpt(t *testing.T, h *rig.Host, c *rig.Client, text, reason, data string) {
	t.Helper()
	c.Do("MAIL FROM:<a@sender.example>", "250")
	reply := c.Do("RCPT TO:<b@example.org>", "550 ")
	id := idOf(t, reply)
	if want := "550 5.7.1 " + text + " [" + id + "]"; reply != want {
		t.Errorf("got  %q\nwant %q", reply, want)
	}
	r := waitRecord(h, id, "REJECT")
	if r.Command != "RCPT" || r.Agent != "connfilter" || r.Version != "1.2.0" || r.AgentEvent != "OnRcpt" || r.Reason != reason ||
		len(r.Recipients) != 1 || r.Recipients[0].Address != "b@example.org" {
		t.Errorf("the ledger has %+v", r)
	}
	if steps := r.steps("connfilter", "OnRcpt"); len(steps) != 1 || steps[0].Verdict != "reject" || steps[0].Data != data {
		t.Errorf("the ledger has %+v, want data %q", steps, data)
	}
	if why := h.MustPostern("why", id); !strings.Contains(why, reason+" ("+data+")") {
		t.Errorf("why does not tell %q:\n%s", reason, why)
	}
}

// passed sends a message that must be accepted and answers with what the next hop gets.
func passed(t *testing.T, h *rig.Host, sink *rig.Sink, c *rig.Client, content string) rig.Received {
	t.Helper()
	n := len(sink.Messages())
	accepted(t, c, "a@sender.example", "b@example.org", content)
	h.WaitFor("the message at the next hop", func() bool { return len(sink.Messages()) > n })
	return sink.Messages()[n]
}

// TestConnfilterLists refuses and frees clients by the own lists: in the configuration, in a file that changes, in the
// table.
func TestConnfilterLists(t *testing.T) {
	t.Parallel()
	sink := rig.StartSink(t)
	h := rig.New(t, filtered(sink.Addr)+connfilter(`
    allow_list {
      networks = ["192.0.2.1"]
    }
    block_list {
      files = ["{dir}/blocked"]
      entry "192.0.2.0/24" {
        comment = "sends junk"
      }
    }
    bypassed_recipients = ["abuse@example.org"]`)+contentfilter(""))
	blocked := filepath.Join(h.Dir, "blocked")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(blocked, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("2001:db8::/32 # by file\n")
	h.Start()

	const noPermission = "External client with IP address %s does not have permissions to submit to this server"
	c := from(h, "192.0.2.9")
	refusedRcpt(t, h, c, fmt.Sprintf(noPermission, "192.0.2.9"), "LocalBlockList", "192.0.2.0/24 (sends junk)")
	c.Do("RCPT TO:<abuse@example.org>", "250") // the session goes on, and who wants the mail gets it
	if reply := c.Data(helloMessage); !strings.HasPrefix(reply, "250") {
		t.Errorf("got %q", reply)
	}
	h.WaitFor("the message at the next hop", func() bool { return len(sink.Messages()) == 1 })
	if got := sink.Messages()[0]; len(got.To) != 1 || !strings.HasPrefix(got.To[0], "RCPT TO:<abuse@example.org>") ||
		!strings.Contains(got.Content, "X-Postern-SCL: 0\r\n") {
		t.Errorf("the next hop got %+v", got)
	}
	refusedRcpt(t, h, from(h, "2001:db8::9"), fmt.Sprintf(noPermission, "2001:db8::9"), "LocalBlockList", "2001:db8::/32 (by file)")

	// A client of the allow list is judged by no antispam agent.
	if got := passed(t, h, sink, from(h, "192.0.2.1"), helloMessage+gtube+"\r\n"); strings.Contains(got.Content, "X-Postern-") {
		t.Errorf("somebody judged the message of an allowed client:\n%s", got.Content)
	}

	// The file is followed, the table heard.
	passed(t, h, sink, from(h, "203.0.113.1"), helloMessage)
	write("203.0.113.0/24\n")
	h.WaitFor("the new file in force", func() bool {
		c := from(h, "203.0.113.1")
		defer c.Conn.Close()
		c.Do("MAIL FROM:<a@sender.example>", "250")
		c.Send("RCPT TO:<b@example.org>")
		return strings.HasPrefix(c.Reply(), "550 5.7.1 ")
	})
	passed(t, h, sink, from(h, "2001:db8::9"), helloMessage)
	h.MustPostern("table", "set", "ip-block", "2001:db8:1::/48", `{"reason":"flood","by":"ops"}`)
	refusedRcpt(t, h, from(h, "2001:db8:1::9"), "External client with IP address 2001:db8:1::9 is blocked for a time because of its reputation",
		"MachineBlockList", "2001:db8:1::/48 by ops (flood)")
}

// startDNS serves A records: "1.2.0.192.list.example. 127.0.0.2".
func startDNS(t *testing.T, records ...string) (addr string) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	zone := map[string]dns.RR{}
	for _, r := range records {
		name, ip, _ := strings.Cut(r, " ")
		rr, err := dns.NewRR(name + " 300 A " + ip)
		if err != nil {
			t.Fatal(err)
		}
		zone[name] = rr
	}
	s := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if rr := zone[q.Question[0].Name]; rr != nil {
			m.Answer = []dns.RR{rr}
		} else {
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = s.ActivateAndServe() }()
	t.Cleanup(func() { _ = s.Shutdown() })
	return pc.LocalAddr().String()
}

// TestConnfilterDNSLists asks DNS lists about clients, and about the sources of what our own servers relay.
func TestConnfilterDNSLists(t *testing.T) {
	t.Parallel()
	server := startDNS(t, "1.2.0.192.black.example. 127.0.0.4", "2.2.0.192.black.example. 127.0.0.10",
		"3.2.0.192.black.example. 127.0.0.4", "3.2.0.192.white.example. 127.0.0.2",
		"9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.black.example. 127.0.0.2")
	sink := rig.StartSink(t)
	h := rig.Start(t, filtered(sink.Addr)+connfilter(fmt.Sprintf(`
    dns_servers = [%q]
    dnsbl "black.example" {
      codes    = ["127.0.0.2"]
      bitmask  = "127.0.0.4"
      response = "{ip} is listed by {zone}"
    }
    dnswl "white.example" {}`, server))+contentfilter(""))
	refusedRcpt(t, h, from(h, "192.0.2.1"), "192.0.2.1 is listed by black.example", "BlockListProvider", "black.example 127.0.0.4")
	refusedRcpt(t, h, from(h, "2001:db8::9"), "2001:db8::9 is listed by black.example", "BlockListProvider", "black.example 127.0.0.2")
	passed(t, h, sink, from(h, "192.0.2.2"), helloMessage)
	if got := passed(t, h, sink, from(h, "192.0.2.3"), gtube+": x\r\n\r\n"+gtube); strings.Contains(got.Content, "X-Postern-") {
		t.Errorf("somebody judged the message of an allowed client:\n%s", got.Content)
	}

	received := "Received: from x.example (x.example [%s])\r\n\tby hub.example with ESMTP; Thu, 1 Jan 2026 12:00:00 +0000\r\n" +
		"Received: from y.example ([192.0.2.3]) by x.example; Thu, 1 Jan 2026 12:00:00 +0000\r\n"
	c := from(h, "10.0.0.5")
	c.Do("MAIL FROM:<a@sender.example>", "250")
	c.Do("RCPT TO:<b@example.org>", "250")
	reply := c.Data(fmt.Sprintf(received, "192.0.2.1") + helloMessage)
	if want := "550 5.7.1 192.0.2.1 is listed by black.example [" + idOf(t, reply) + "]"; reply != want {
		t.Errorf("got %q, want %q", reply, want)
	}
	if r := waitRecord(h, idOf(t, reply), "REJECT"); r.AgentEvent != "OnEndOfHeaders" || r.Reason != "BlockListProvider" {
		t.Errorf("the ledger has %+v", r)
	}
	if got := passed(t, h, sink, c, fmt.Sprintf(received, "192.0.2.3")+helloMessage+gtube+"\r\n"); strings.Contains(got.Content, "X-Postern-") {
		t.Errorf("somebody judged the message of an allowed source:\n%s", got.Content)
	}
	if got := passed(t, h, sink, c, fmt.Sprintf(received, "192.0.2.2")+helloMessage); !strings.Contains(got.Content, "X-Postern-SCL: 0\r\n") ||
		strings.Contains(got.Content, "OrigIP") {
		t.Errorf("the next hop got\n%s", got.Content)
	}
}

// TestContentfilter stamps, refuses, and leaves out who is bypassed.
func TestContentfilter(t *testing.T) {
	t.Parallel()
	sink := rig.StartSink(t)
	h := rig.Start(t, filtered(sink.Addr)+contentfilter(`
    bad_phrases         = ["no risk investment"]
    bypassed_recipients = ["raw@example.org"]
    bypassed_senders    = ["friend@sender.example"]`))
	c := from(h, "192.0.2.1")
	got := passed(t, h, sink, c, "X-Postern-SCL: -1\r\nX-Postern-Antispam-Report: forged\r\n"+helloMessage)
	if !strings.Contains(got.Content, "X-Postern-SCL: 0\r\n") || strings.Count(got.Content, "X-Postern-SCL") != 1 ||
		!strings.Contains(got.Content, "X-Postern-Antispam-Report: DV:1.3.0;NoModel;OrigIP:192.0.2.1\r\n") || strings.Contains(got.Content, "forged") {
		t.Errorf("the next hop got\n%s", got.Content)
	}
	if !strings.HasSuffix(got.Content, helloMessage) {
		t.Errorf("what the sender wrote has changed:\n%s", got.Content)
	}

	spam := "From: a@sender.example\r\nSubject: offer\r\nMIME-Version: 1.0\r\nContent-Type: text/html\r\n\r\nno r<b>isk</b>\r\ninvestment\r\n"
	c.Do("MAIL FROM:<a@sender.example>", "250")
	c.Do("RCPT TO:<b@example.org>", "250")
	reply := c.Data(spam)
	id := idOf(t, reply)
	if want := "550 5.7.1 Message rejected due to content restrictions [" + id + "]"; reply != want {
		t.Errorf("got %q, want %q", reply, want)
	}
	r := waitRecord(h, id, "REJECT")
	steps := r.steps("contentfilter", "OnEndOfData")
	if r.Agent != "contentfilter" || r.Version != "1.3.0" || r.Reason != "SclAtOrAboveRejectThreshold" || len(steps) != 1 ||
		steps[0].Data != `9: bad phrase "no risk investment"` {
		t.Errorf("the ledger has %+v", r)
	}
	if why := h.MustPostern("why", id); !strings.Contains(why, "SclAtOrAboveRejectThreshold") {
		t.Errorf("why tells\n%s", why)
	}

	// The session goes on. Of two recipients the one who is bypassed gets the message.
	n := len(sink.Messages())
	c.Do("MAIL FROM:<a@sender.example>", "250")
	c.Do("RCPT TO:<b@example.org>", "250")
	c.Do("RCPT TO:<raw@example.org>", "250")
	if reply := c.Data(spam); !strings.HasPrefix(reply, "250 ") {
		t.Errorf("got %q", reply)
	}
	h.WaitFor("the message of who is bypassed", func() bool { return len(sink.Messages()) > n })
	if got := sink.Messages()[n]; len(got.To) != 1 || !strings.HasPrefix(got.To[0], "RCPT TO:<raw@example.org>") ||
		!strings.Contains(got.Content, "X-Postern-SCL: -1\r\n") || !strings.Contains(got.Content, "RecipientBypassed") || strings.Contains(got.Content, "SCL: 9") {
		t.Errorf("the next hop got %+v", got)
	}

	n = len(sink.Messages())
	accepted(t, c, "friend@sender.example", "b@example.org", spam)
	h.WaitFor("the message of a friend", func() bool { return len(sink.Messages()) > n })
	if got := sink.Messages()[n].Content; !strings.Contains(got, "X-Postern-SCL: -1\r\n") {
		t.Errorf("the next hop got\n%s", got)
	}
}

// TestContentfilterThresholds throws away and quarantines: the client reads success, the next hop gets nothing.
func TestContentfilterThresholds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ config, event, reason string }{
		"delete":     {"delete_at = 9\nreject_at = 8", "DROP", "SclAtOrAboveDeleteThreshold"},
		"quarantine": {"reject_at = 0\nquarantine_at = 9", "QUARANTINE", "SclAtOrAboveQuarantineThreshold"},
	} {
		t.Run(name, func(t *testing.T) {
			sink := rig.StartSink(t)
			h := rig.Start(t, filtered(sink.Addr)+contentfilter(c.config))
			client := from(h, "192.0.2.1")
			id := accepted(t, client, "a@sender.example", "b@example.org", helloMessage+gtube+"\r\n")
			if r := waitRecord(h, id, c.event); r.Agent != "contentfilter" || r.Reason != c.reason {
				t.Errorf("the ledger has %+v", r)
			}
			passed(t, h, sink, client, helloMessage) // overtakes nothing: it is the first at the next hop
			if n := len(sink.Messages()); n != 1 {
				t.Errorf("%d messages at the next hop", n)
			}
			if c.event != "QUARANTINE" {
				return
			}
			var list struct {
				Items []struct{ ID, Agent, Reason string }
			}
			h.JSON(&list, "quarantine", "list")
			if len(list.Items) != 1 || list.Items[0].Agent != "contentfilter" || list.Items[0].Reason != c.reason {
				t.Fatalf("in quarantine: %+v", list.Items)
			}
			h.MustPostern("quarantine", "release", list.Items[0].ID)
			h.WaitFor("the released message", func() bool { return len(sink.Messages()) == 2 })
			if got := sink.Messages()[1].Content; !strings.Contains(got, "X-Postern-SCL: 9\r\n") || !strings.Contains(got, gtube) {
				t.Errorf("the next hop got\n%s", got)
			}
		})
	}
}
