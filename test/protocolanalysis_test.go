package test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/test/rig"
)

// rowOf is the value of a row, "" if there is none.
func rowOf(h *rig.Host, table, key string) string {
	out, err := h.Postern("table", "get", table, key, "--json")
	var row struct{ Value string }
	if err != nil || json.Unmarshal([]byte(out), &row) != nil {
		return ""
	}
	return row.Value
}

func protocolanalysis(config string) string {
	return "agent \"protocolanalysis\" {\n  priority = 80\n  config {\n" + config + "\n  }\n}\n"
}

// TestProtocolanalysis is a source from its first message to the end of its block: it sends spam until its level reaches
// the threshold, its session ends, connfilter refuses it and says why, the block expires, and it starts clean.
func TestProtocolanalysis(t *testing.T) {
	t.Parallel()
	server := startDNS(t)
	sink := rig.StartSink(t)
	h := strangers(t, sink.Addr, connfilter("")+contentfilter("")+protocolanalysis(fmt.Sprintf(`
    dns_servers  = [%q]
    min_messages = 5
    block_period = "20s"`, server)))
	h.Start()

	// Every refusal counts, with the SCL that the content filter gave, and shows what is known so far.
	c := from(h, "192.0.2.7")
	spam := helloMessage + gtube + "\r\n"
	for i := range 4 {
		c.Do("MAIL FROM:<a@sender.example>", "250")
		c.Do("RCPT TO:<b@example.net>", "250")
		if reply := c.Data(spam); !strings.HasPrefix(reply, "550 5.7.1 Message rejected due to content restrictions") {
			t.Fatalf("message %d: %q", i, reply)
		}
	}
	h.WaitFor("four messages counted", func() bool {
		return rowOf(h, "reputation", "192.0.2.7") == `{"high":4,"rejected":4}`
	})
	other := from(h, "192.0.2.7")

	// The fifth reaches the threshold: the block is there with its expiry, and the session ends.
	c.Do("MAIL FROM:<a@sender.example>", "250")
	c.Do("RCPT TO:<b@example.net>", "250")
	if reply := c.Data(spam); !strings.HasPrefix(reply, "550 5.7.1 Message rejected") {
		t.Fatalf("got %q", reply)
	}
	const inputs = "SRL 9 of 5 messages and refusals: spam 6.0 (5 of 5), recent_spam 0.5 (5), rejects 3.0 (5 of 5)"
	var listed struct {
		Rows []struct {
			Key     string
			Value   string
			Expires time.Time
		}
	}
	h.WaitFor("the block", func() bool {
		h.JSON(&listed, "table", "list", "ip-block")
		return len(listed.Rows) == 1
	})
	row := listed.Rows[0]
	if row.Key != "192.0.2.7/32" || row.Value != `{"reason":"`+inputs+`","by":"protocolanalysis","srl":9}` || row.Expires.IsZero() ||
		time.Until(row.Expires) > 20*time.Second {
		t.Errorf("ip-block %+v", row)
	}
	if out := h.MustPostern("table", "list", "ip-block"); !strings.Contains(out, "192.0.2.7/32") || !strings.Contains(out, "SRL 9") {
		t.Errorf("table list ip-block shows\n%s", out)
	}
	if out, err := h.Postern("table", "get", "reputation", "192.0.2.7"); err == nil {
		t.Errorf("the profile stays:\n%s", out)
	}
	const refusal = "550 5.7.1 Mail from your address is refused for a time because of its reputation ["
	reply := other.Do("MAIL FROM:<a@sender.example>", refusal)
	other.WantClosed()
	r := waitRecord(h, idOf(t, reply), "REJECT")
	if steps := r.steps("protocolanalysis", "OnMail"); r.Command != "MAIL" || r.Agent != "protocolanalysis" || r.Reason != "SenderBlocked" || len(steps) != 1 ||
		steps[0].Verdict != "disconnect" || steps[0].Data != inputs {
		t.Errorf("the ledger has %+v", r)
	}
	if why := h.MustPostern("why", idOf(t, reply)); !strings.Contains(why, inputs) {
		t.Errorf("why tells\n%s", why)
	}

	// connfilter refuses the source at RCPT, and why tells the inputs.
	refusedRcpt(t, h, from(h, "192.0.2.7"), "External client with IP address 192.0.2.7 is blocked for a time because of its reputation",
		"MachineBlockList", "192.0.2.7/32 by protocolanalysis ("+inputs+")")
	passed(t, h, sink, from(h, "192.0.2.8"), helloMessage) // a neighbour

	// The block expires, and the source has its twenty (here five) messages again.
	h.WaitFor("the end of the block", func() bool {
		_, err := h.Postern("table", "get", "ip-block", "192.0.2.7/32")
		return err != nil
	})
	c = from(h, "192.0.2.7")
	id := accepted(t, c, "a@sender.example", "b@example.net", helloMessage)
	steps := waitRecord(h, id, "RECEIVE").steps("protocolanalysis", "OnEndOfData")
	if len(steps) != 1 || steps[0].Reason != "SenderNotRated" || steps[0].Data != "1 of 5 messages and refusals" || !slices.Contains(steps[0].Stamps, "srl=0") {
		t.Errorf("the ledger has %+v", steps)
	}
}

// TestProtocolanalysisInputs: what a source does in SMTP is in its profile, of which an accepted message tells.
func TestProtocolanalysisInputs(t *testing.T) {
	t.Parallel()
	server := startDNS(t)
	sink := rig.StartSink(t)
	h := strangers(t, sink.Addr, connfilter(`early_talkers = "note"`)+recipientfilter("harvest_limit = 0\n    tarpit = \"0s\"")+contentfilter("")+
		protocolanalysis(fmt.Sprintf("dns_servers = [%q]\n    min_messages = 3\n    block = false", server)))
	h.Start()
	profile := func(want ...string) {
		t.Helper()
		h.WaitFor(fmt.Sprintf("%q in the profile", want), func() bool {
			row := rowOf(h, "reputation", "192.0.2.7")
			return !slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(row, w) })
		})
	}
	// A session that talks before the greeting, calls itself by our name, and sends on before replies.
	c := hastyClient(h, "192.0.2.7", "EHLO example.org\r\nNOOP\r\n")
	c.Want("220 ")
	c.Want("250")
	c.Want("250")
	c.Do("MAIL FROM:<a@sender.example>", "250")
	c.Do("RCPT TO:<nobody@example.org>", "550 5.1.1 ")
	c.Do("QUIT", "221")
	profile(`"sessions":1`, `"early_talk":1`, `"pipelining":1`, `"own_domain":1`, `"refused":1`, `"no_reverse_dns":1`)

	// One that calls itself by another's address.
	c = hastyClient(h, "192.0.2.7", "")
	c.Want("220 ")
	c.Do("EHLO [192.0.2.99]", "250")
	c.Do("MAIL FROM:<a@sender.example>", "250")
	c.Do("RCPT TO:<nobody@example.org>", "550 5.1.1 ")
	c.Do("QUIT", "221")
	profile(`"sessions":2`, `"literal":1`, `"refused":2`, `"no_reverse_dns":2`)

	const want = "SRL 3 of 3 messages and refusals: rejects 2.0 (2 of 3), helo 0.2 (3), literal 1.0 (1 of 3), own_domain 1.3 (1 of 3), " +
		"no_reverse_dns 0.7 (2 of 3), early_talk 1.3 (1 of 3), pipelining 1.0 (1 of 3), good_mail -3.0 (1 of 1)"
	c = from(h, "192.0.2.7") // client.example is its third name
	id := accepted(t, c, "a@sender.example", "b@example.net", helloMessage)
	steps := waitRecord(h, id, "RECEIVE").steps("protocolanalysis", "OnEndOfData")
	if len(steps) != 1 || steps[0].Verdict != "continue" || steps[0].Reason != "SenderReputation" || !sameInputs(steps[0].Data, want) {
		t.Errorf("the ledger has %+v\nwant %s", steps, want)
	}
	if why := h.MustPostern("why", id); !strings.Contains(why, "own_domain 1.3 (1 of 3)") {
		t.Errorf("why tells\n%s", why)
	}
	h.WaitFor("the message at the next hop", func() bool { return len(sink.Messages()) == 1 })
}

// sameInputs compares what levels are made of.
func sameInputs(got, want string) bool {
	_, got, _ = strings.Cut(got, ": ")
	_, want, _ = strings.Cut(want, ": ")
	return got == want
}
