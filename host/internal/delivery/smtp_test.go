package delivery

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
)

func smartHost(h ...*hop) config.SendConnector {
	sc := config.SendConnector{}
	for _, x := range h {
		sc.SmartHosts = append(sc.SmartHosts, x.addr())
	}
	return sc
}

func TestMessageArrivesAsItIs(t *testing.T) {
	for _, pipelining := range []bool{true, false} {
		t.Run(fmt.Sprintf("pipelining=%v", pipelining), func(t *testing.T) {
			h := newHop(t, func(h *hop) {
				if !pipelining {
					h.ext = []string{"8BITMIME", "DSN"}
				}
			})
			d := testDelivery(t, smartHost(h))
			res := one(t, d, testItem("a@x.example"))
			want(t, res, envelope.Delivered, "250 2.0.0 queued")
			if res.Remote != h.addr() {
				t.Errorf("remote is %q, want %q", res.Remote, h.addr())
			}
			if got := h.received(); len(got) != 1 || got[0] != testContent {
				t.Errorf("received %q", got)
			}
		})
	}
}

// Every reply at every stage: what becomes of the recipient.
func TestReplies(t *testing.T) {
	tests := []struct {
		stage, reply string
		state        envelope.RecipientState
		want         string
	}{
		{"GREETING", "421 4.3.2 closing", envelope.Pending, "421"},
		{"GREETING", "450 later", envelope.Pending, "450"},
		{"GREETING", "554 5.7.1 no service", envelope.Pending, "450 4.3.2"},
		{"GREETING", "521 no mail here", envelope.Failed, "521"},
		{"GREETING", "CLOSE", envelope.Pending, "451 4.4.2"},
		{"EHLO", "421 busy", envelope.Pending, "421"},
		{"EHLO", "451 4.3.0 later", envelope.Pending, "451"},
		{"EHLO", "CLOSE", envelope.Pending, "451 4.4.2"},
		{"EHLO", "550 what", envelope.Relayed, "250"}, // HELO does it
		{"EHLO", "502 what", envelope.Relayed, "250"},
		{"MAIL", "250 ok", envelope.Delivered, "250"},
		{"MAIL", "421 4.3.2 closing", envelope.Pending, "421 4.3.2 closing"},
		{"MAIL", "451 4.7.1 greylisted", envelope.Pending, "451 4.7.1 greylisted"},
		{"MAIL", "550 5.7.1 denied", envelope.Failed, "550 5.7.1 denied"},
		{"MAIL", "354 what", envelope.Pending, "451 4.5.0"},
		{"MAIL", "CLOSE", envelope.Pending, "451 4.4.2"},
		{"RCPT", "251 forwarded", envelope.Delivered, "250"},
		{"RCPT", "252 cannot verify", envelope.Delivered, "250"},
		{"RCPT", "421 closing", envelope.Pending, "421"},
		{"RCPT", "450 4.2.1 busy", envelope.Pending, "450 4.2.1 busy"},
		{"RCPT", "452 4.5.3 too many", envelope.Pending, "452"},
		{"RCPT", "550 5.1.1 unknown", envelope.Failed, "550 5.1.1 unknown"},
		{"RCPT", "552 5.2.2 full", envelope.Failed, "552 5.2.2 full"},
		{"RCPT", "354 what", envelope.Pending, "451 4.5.0"},
		{"RCPT", "CLOSE", envelope.Pending, "451 4.4.2"},
		{"DATA", "421 closing", envelope.Pending, "421"},
		{"DATA", "451 4.3.0 later", envelope.Pending, "451 4.3.0 later"},
		{"DATA", "554 5.7.1 no", envelope.Failed, "554 5.7.1 no"},
		{"DATA", "250 what", envelope.Pending, "451 4.5.0"},
		{"DATA", "CLOSE", envelope.Pending, "451 4.4.2"},
		{".", "250 ok", envelope.Delivered, "250 ok"},
		{".", "250-2.0.0 first\r\n250 2.0.0 second", envelope.Delivered, "250 2.0.0 first second"},
		{".", "421 4.3.2 closing", envelope.Pending, "421 4.3.2 closing"},
		{".", "452 4.3.1 disk full", envelope.Pending, "452 4.3.1 disk full"},
		{".", "550 5.7.1 spam", envelope.Failed, "550 5.7.1 spam"},
		{".", "552 5.3.4 too big", envelope.Failed, "552 5.3.4"},
		{"QUIT", "CLOSE", envelope.Delivered, "250"},
	}
	for _, pipelining := range []bool{true, false} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s %s pipelining=%v", tt.stage, tt.reply, pipelining), func(t *testing.T) {
				h := newHop(t, func(h *hop) {
					h.replies[tt.stage] = tt.reply
					if !pipelining {
						h.ext = []string{"DSN"}
					}
				})
				d := testDelivery(t, smartHost(h))
				res := one(t, d, testItem("a@x.example"))
				want(t, res, tt.state, tt.want)
				if res.InDoubt {
					t.Error("in doubt")
				}
				if tt.stage != "." && tt.state != envelope.Delivered && tt.state != envelope.Relayed && len(h.received()) > 0 && h.received()[0] != "" {
					t.Error("the message was sent")
				}
			})
		}
	}
}

func TestResultsPerRecipient(t *testing.T) {
	h := newHop(t, func(h *hop) {
		h.replies["RCPT bad@x.example"] = "550 5.1.1 unknown"
		h.replies["RCPT busy@x.example"] = "450 4.2.1 busy"
	})
	d := testDelivery(t, smartHost(h))
	res := deliver(t, d, testItem("bad@x.example", "good@x.example", "busy@x.example", "fine@x.example"))
	want(t, res[0], envelope.Failed, "550 5.1.1")
	want(t, res[1], envelope.Delivered, "250")
	want(t, res[2], envelope.Pending, "450 4.2.1")
	want(t, res[3], envelope.Delivered, "250")
	for i, r := range res {
		if r.Index != i {
			t.Errorf("result %d is of recipient %d", i, r.Index)
		}
	}
	if got := h.received(); len(got) != 1 {
		t.Errorf("%d messages sent, want one", len(got))
	}
}

func TestAllRecipientsRefusedWhileDataWasTaken(t *testing.T) {
	h := newHop(t, func(h *hop) {
		h.replies["RCPT bad@x.example"] = "550 5.1.1 unknown"
		h.replies["DATA"] = "354 go"
		h.replies["."] = "554 5.5.1 no recipients"
	})
	d := testDelivery(t, smartHost(h))
	want(t, one(t, d, testItem("bad@x.example")), envelope.Failed, "550 5.1.1")
	if got := h.received(); len(got) != 1 || got[0] != "" {
		t.Errorf("sent %q, want the final dot alone", got)
	}
	h.replies["."] = "250 ok"
	want(t, one(t, d, testItem("good@x.example")), envelope.Delivered, "250")
	if h.connections() != 1 {
		t.Errorf("%d connections, want one", h.connections())
	}
}

func TestTooManyRecipientsGoInAnotherTransaction(t *testing.T) {
	for _, refusal := range []string{"452 4.5.3 too many recipients", "552 Too many recipients"} {
		h := newHop(t, nil)
		n := 0
		h.onCommand = func(conn net.Conn, line string) bool {
			switch {
			case strings.HasPrefix(line, "MAIL"):
				n = 0
			case strings.HasPrefix(line, "RCPT"):
				if n++; n > 2 {
					_, _ = io.WriteString(conn, refusal+"\r\n")
					return true
				}
			}
			return false
		}
		d := testDelivery(t, smartHost(h))
		for _, r := range deliver(t, d, testItem("a@x.example", "b@x.example", "c@x.example", "d@x.example", "e@x.example")) {
			want(t, r, envelope.Delivered, "250")
		}
		if got := len(h.received()); got != 3 {
			t.Errorf("%d transactions, want 3", got)
		}
	}
}

func TestLimitsOfTheHop(t *testing.T) {
	h := newHop(t, func(h *hop) { h.ext = append([]string{"LIMITS RCPTMAX=2 MAILMAX=1"}, allExtensions...) })
	d := testDelivery(t, smartHost(h))
	for _, r := range deliver(t, d, testItem("a@x.example", "b@x.example", "c@x.example")) {
		want(t, r, envelope.Delivered, "250")
	}
	if len(h.received()) != 2 || h.connections() != 2 {
		t.Errorf("%d messages on %d connections, want one on each of two", len(h.received()), h.connections())
	}
}

func TestManyRecipients(t *testing.T) {
	h := newHop(t, func(h *hop) { h.replies["RCPT r7@x.example"] = "550 5.1.1 no" })
	d := testDelivery(t, smartHost(h))
	var rcpts []string
	for i := range 230 {
		rcpts = append(rcpts, fmt.Sprintf("r%d@x.example", i))
	}
	for i, r := range deliver(t, d, testItem(rcpts...)) {
		if i == 7 {
			want(t, r, envelope.Failed, "550")
		} else {
			want(t, r, envelope.Delivered, "250")
		}
	}
	if len(h.received()) != 3 {
		t.Errorf("%d transactions, want 3 of at most 100", len(h.received()))
	}
}

func TestConnectionIsReused(t *testing.T) {
	h := newHop(t, nil)
	sc := smartHost(h)
	sc.MaxPerConn = 3
	d := testDelivery(t, sc)
	for range 7 {
		want(t, one(t, d, testItem("a@x.example")), envelope.Delivered, "250")
	}
	if h.connections() != 3 {
		t.Errorf("%d connections for 7 messages at 3 each", h.connections())
	}
}

func TestDeadIdleConnectionIsReplaced(t *testing.T) {
	for _, goodbye := range []string{"", "421 4.4.2 idle too long\r\n"} {
		h := newHop(t, nil)
		d := testDelivery(t, smartHost(h))
		want(t, one(t, d, testItem("a@x.example")), envelope.Delivered, "250")
		h.mu.Lock()
		_, _ = io.WriteString(h.conns[0], goodbye)
		h.mu.Unlock()
		h.closeConns()
		want(t, one(t, d, testItem("a@x.example")), envelope.Delivered, "250")
		if h.connections() != 2 || len(h.received()) != 2 {
			t.Errorf("%d connections, %d messages", h.connections(), len(h.received()))
		}
	}
}

func TestIdleConnectionIsClosed(t *testing.T) {
	h := newHop(t, nil)
	sc := smartHost(h)
	sc.Inactivity = 20 * time.Millisecond
	d := testDelivery(t, sc)
	want(t, one(t, d, testItem("a@x.example")), envelope.Delivered, "250")
	for i := 0; h.command("QUIT") == "" && i < 500; i++ {
		time.Sleep(10 * time.Millisecond)
	}
	if h.command("QUIT") == "" {
		t.Error("no QUIT after the connection was idle")
	}
}

func TestLostReplyToFinalDotIsInDoubt(t *testing.T) {
	for _, reply := range []string{"CLOSE", "HANG", "RAW garbage\r\n", "354 what"} {
		t.Run(reply, func(t *testing.T) {
			bad := newHop(t, func(h *hop) { h.replies["."] = reply })
			spare := newHop(t, nil)
			d := testDelivery(t, smartHost(bad, spare), shortTimeouts)
			item := testItem("a@x.example")
			item.Attempts = firstAttempt(item.ID, 2)
			res := one(t, d, item)
			want(t, res, envelope.Pending, "451 4.4.2")
			if !res.InDoubt {
				t.Error("not in doubt")
			}
			if len(spare.received()) > 0 {
				t.Error("sent to the other smart host too: that would be a duplicate")
			}
		})
	}
}

// firstAttempt is the attempt at which an item starts with the first of n smart hosts.
func firstAttempt(id string, n int) int {
	d := &Delivery{resolver: newResolver(config.DNS{Resolvers: []string{"127.0.0.1:1"}}), pool: newPool()}
	c := &connector{SendConnector: config.SendConnector{SmartHosts: []string{"192.0.2.1"}}}
	for i := 2; i <= n; i++ {
		c.SmartHosts = append(c.SmartHosts, fmt.Sprintf("192.0.2.%d", i))
	}
	for a := range n {
		item := testItem("a@x.example")
		item.ID, item.Attempts = id, a
		list, _ := d.targets(context.Background(), c, item)
		if strings.HasPrefix(list[0].address, "192.0.2.1:") {
			return a
		}
	}
	return 0
}

func TestSmartHostsShareTheLoad(t *testing.T) {
	a, b := newHop(t, nil), newHop(t, nil)
	d := testDelivery(t, smartHost(a, b))
	for i := range 20 {
		item := testItem("a@x.example")
		item.ID = fmt.Sprintf("item%d", i)
		want(t, one(t, d, item), envelope.Delivered, "250")
	}
	if len(a.received()) < 3 || len(b.received()) < 3 {
		t.Errorf("%d and %d messages", len(a.received()), len(b.received()))
	}
}

func TestFailover(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	for name, reply := range map[string]map[string]string{
		"greeting 554":        {"GREETING": "554 no"},
		"greeting 421":        {"GREETING": "421 busy"},
		"closes":              {"GREETING": "CLOSE"},
		"hangs":               {"GREETING": "HANG"},
		"MAIL 421":            {"MAIL": "421 4.3.2 closing"},
		"closes at RCPT":      {"RCPT": "CLOSE"},
		"closes at DATA":      {"DATA": "CLOSE"},
		"garbage at MAIL":     {"MAIL": "RAW lorem ipsum\r\n"},
		"no such code":        {"MAIL": "RAW 999 what\r\n"},
		"endless line":        {"MAIL": "RAW 250 " + strings.Repeat("x", 100_000)},
		"endless lines":       {"EHLO": "RAW " + strings.Repeat("250-X\r\n", 10_000)},
		"endless continuing":  {"MAIL": "RAW " + strings.Repeat("250-x\r\n", 10_000)},
		"more than was asked": {"DATA": "RAW 354 go\r\n250 done\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := newHop(t, func(h *hop) { h.replies = reply })
			good := newHop(t, nil)
			sc := smartHost(bad, good)
			d := testDelivery(t, sc, shortTimeouts)
			item := testItem("a@x.example")
			item.Attempts = firstAttempt(item.ID, 2)
			want(t, one(t, d, item), envelope.Delivered, "250")
			if len(bad.commands())+bad.connections() == 0 {
				t.Error("the first smart host was not tried")
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		good := newHop(t, nil)
		sc := smartHost(good)
		sc.SmartHosts = append([]string{gone.Addr().String()}, sc.SmartHosts...)
		d := testDelivery(t, sc)
		item := testItem("a@x.example")
		item.Attempts = firstAttempt(item.ID, 2)
		want(t, one(t, d, item), envelope.Delivered, "250")
	})
	t.Run("none left", func(t *testing.T) {
		d := testDelivery(t, config.SendConnector{SmartHosts: []string{gone.Addr().String()}})
		want(t, one(t, d, testItem("a@x.example")), envelope.Pending, "451 4.4.1")
	})
}

// Who looks why a message waits learns what became of every host, in the order in which they were tried.
func TestWhyNoHostTookIt(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	busy := newHop(t, func(h *hop) { h.replies["GREETING"] = "421 4.3.2 too busy" })
	closing := newHop(t, func(h *hop) { h.replies["MAIL"] = "421 4.3.2 closing now" })
	sc := smartHost(busy, closing)
	sc.SmartHosts = append(sc.SmartHosts, gone.Addr().String())
	res := one(t, testDelivery(t, sc), testItem("a@x.example"))
	want(t, res, envelope.Pending, "none of 3 hosts took it: ")
	for _, said := range []string{busy.addr(), "too busy", closing.addr(), "closing now", gone.Addr().String(), "connection refused"} {
		if !strings.Contains(res.Reply.Text, said) {
			t.Errorf("%q is not in %q", said, res.Reply.Text)
		}
	}
}

func TestRecipientsLeftByAClosingHopGoToTheNext(t *testing.T) {
	bad := newHop(t, func(h *hop) {
		h.replies["RCPT b@x.example"] = "421 closing"
		h.replies["RCPT a@x.example"] = "550 5.1.1 no"
	})
	good := newHop(t, nil)
	d := testDelivery(t, smartHost(bad, good))
	item := testItem("a@x.example", "b@x.example", "c@x.example")
	item.Attempts = firstAttempt(item.ID, 2)
	res := deliver(t, d, item)
	want(t, res[0], envelope.Failed, "550 5.1.1")
	want(t, res[1], envelope.Delivered, "250")
	want(t, res[2], envelope.Delivered, "250")
}

func TestSlowHopIsBounded(t *testing.T) {
	for _, stage := range []string{"GREETING", "EHLO", "MAIL", "RCPT", "DATA"} {
		h := newHop(t, func(h *hop) { h.replies[stage] = "HANG" })
		d := testDelivery(t, smartHost(h), shortTimeouts)
		res := one(t, d, testItem("a@x.example"))
		want(t, res, envelope.Pending, "timeout")
		if res.InDoubt {
			t.Errorf("%s: in doubt", stage)
		}
	}
}

func TestCancelEndsAnAttempt(t *testing.T) {
	h := newHop(t, func(h *hop) { h.replies["RCPT"] = "HANG" })
	d := testDelivery(t, smartHost(h))
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	res := d.Deliver(ctx, testItem("a@x.example"))
	want(t, res[0], envelope.Pending, "4")
}

func TestLargeMessage(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789 0123456789 0123456789\r\n.leading dot\r\n"), 20_000)
	h := newHop(t, nil)
	d := testDelivery(t, smartHost(h))
	item := testItem("a@x.example")
	item.Mail.Body = envelope.MemoryBody(body)
	want(t, one(t, d, item), envelope.Delivered, "250")
	head := testContent[:strings.Index(testContent, "\r\n\r\n")+4]
	if got := h.received()[0]; got != head+string(body) {
		t.Errorf("%d octets arrived, want %d", len(got), len(head)+len(body))
	}
}

func TestMissingLineEndIsAdded(t *testing.T) {
	h := newHop(t, nil)
	d := testDelivery(t, smartHost(h))
	item := testItem("a@x.example")
	item.Mail.Body = envelope.MemoryBody([]byte("no end"))
	want(t, one(t, d, item), envelope.Delivered, "250")
	if got := h.received()[0]; !strings.HasSuffix(got, "\r\n\r\nno end\r\n") {
		t.Errorf("received %q", got)
	}
}

// A lone CR or LF never leaves: it is how a second message is smuggled into the first.
func TestBareLineEndsAreRefused(t *testing.T) {
	pad := strings.Repeat("x", smallContent-10) // puts the fault on the bounds of blocks too
	for _, body := range []string{"a\n.\r\nMAIL", "a\r.\r\n", "a\r\n.\n", "a\r", "\n", "a\r\r\n", pad + "0123456789\n", pad + strings.Repeat("\r\n", 10) + "\r", pad + "\r\n.\nMAIL FROM:<>\r\n"} {
		h := newHop(t, nil)
		d := testDelivery(t, smartHost(h))
		item := testItem("a@x.example")
		item.Mail.Body = envelope.MemoryBody([]byte(body))
		want(t, one(t, d, item), envelope.Failed, "5.6.0")
		if len(h.received()) > 0 {
			t.Errorf("a message was completed: %q", h.received())
		}
	}
	d := testDelivery(t, config.SendConnector{SmartHosts: []string{"127.0.0.1:1"}})
	item := testItem("a@x.example")
	item.Mail.Header = []byte("Subject: a\nb\r\n")
	want(t, one(t, d, item), envelope.Failed, "5.6.0")
}

func TestHopRefusesDuringBody(t *testing.T) {
	h := newHop(t, func(h *hop) { h.ext = []string{"PIPELINING", "DSN"} })
	h.onCommand = func(conn net.Conn, line string) bool {
		if line != "DATA" {
			return false
		}
		_, _ = io.WriteString(conn, "354 go\r\n")
		_, _ = io.ReadFull(conn, make([]byte, 1000))
		_, _ = io.WriteString(conn, "552 5.3.4 enough\r\n")
		_ = conn.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, io.LimitReader(conn, 4<<20))
		_ = conn.Close()
		return true
	}
	d := testDelivery(t, smartHost(h))
	item := testItem("a@x.example")
	item.Mail.Body = envelope.MemoryBody(bytes.Repeat([]byte("0123456789 0123456789 0123456789\r\n"), 400_000))
	res := one(t, d, item)
	want(t, res, envelope.Failed, "552 5.3.4 enough")
}

func TestParameters(t *testing.T) {
	full := func(item *envelope.Mail) {
		item.Sender.Ret, item.Sender.EnvID, item.Sender.BodyType = "HDRS", "id+1 =", "8BITMIME"
		item.Recipients[0].Notify = envelope.NotifySuccess | envelope.NotifyDelay
		item.Recipients[0].ORCPT = "rfc822;a+b@x.example"
	}
	t.Run("offered", func(t *testing.T) {
		h := newHop(t, nil)
		d := testDelivery(t, smartHost(h))
		item := testItem("a@x.example")
		full(item.Mail)
		want(t, one(t, d, item), envelope.Delivered, "250")
		wantLine(t, h, "MAIL", fmt.Sprintf("MAIL FROM:<sender@source.example> SIZE=%d BODY=8BITMIME RET=HDRS ENVID=id+2B1+20+3D", len(testContent)))
		wantLine(t, h, "RCPT", "RCPT TO:<a@x.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bb@x.example")
	})
	t.Run("not offered", func(t *testing.T) {
		h := newHop(t, func(h *hop) { h.ext = nil })
		d := testDelivery(t, smartHost(h))
		item := testItem("a@x.example")
		full(item.Mail)
		want(t, one(t, d, item), envelope.Relayed, "250")
		wantLine(t, h, "MAIL", "MAIL FROM:<sender@source.example>")
		wantLine(t, h, "RCPT", "RCPT TO:<a@x.example>")
	})
	t.Run("keywords in lower case", func(t *testing.T) {
		h := newHop(t, func(h *hop) { h.ext = []string{"pipelining", "size 1000000", "dsn"} })
		d := testDelivery(t, smartHost(h))
		item := testItem("a@x.example")
		full(item.Mail)
		want(t, one(t, d, item), envelope.Delivered, "250")
	})
	t.Run("null sender and quoted local part", func(t *testing.T) {
		h := newHop(t, nil)
		d := testDelivery(t, smartHost(h))
		item := testItem(`"a> b"@x.example`)
		item.Mail.Sender = envelope.Sender{}
		want(t, one(t, d, item), envelope.Delivered, "250")
		if got := h.command("MAIL"); !strings.HasPrefix(got, "MAIL FROM:<> ") {
			t.Error(got)
		}
		if got := h.command("RCPT"); got != `RCPT TO:<"a> b"@x.example>` {
			t.Error(got)
		}
	})
}

// Where the hop offers DSN, reports are its task from then on.
func TestWhoReportsSuccess(t *testing.T) {
	for _, dsn := range []bool{true, false} {
		h := newHop(t, func(h *hop) {
			if !dsn {
				h.ext = nil
			}
		})
		item := testItem("a@x.example")
		Apply(item, deliver(t, testDelivery(t, smartHost(h)), item))
		if r := item.Mail.Recipients[0]; r.Reported != dsn || (r.State == envelope.Delivered) != dsn {
			t.Errorf("DSN %v: %+v", dsn, r)
		}
	}
}

func wantLine(t *testing.T, h *hop, verb, line string) {
	t.Helper()
	if got := h.command(verb); got != line {
		t.Errorf("got  %q\nwant %q", got, line)
	}
}

func TestAbilitiesOfTheHop(t *testing.T) {
	latin := func(m *envelope.Mail) { m.Body = envelope.MemoryBody([]byte("gr\xfc\xdfe\r\n")) }
	utf8 := func(m *envelope.Mail) {
		m.Sender.SMTPUTF8 = true
		m.Header = []byte("Subject: grüße\r\n")
	}
	unicodeLocal := func(m *envelope.Mail) {
		m.Sender.SMTPUTF8 = true
		m.Recipients[0].Address = mailbox("grüße@x.example")
	}
	unicodeDomain := func(m *envelope.Mail) {
		m.Sender.SMTPUTF8 = true
		m.Recipients[0].Address = mailbox("a@bücher.example")
	}
	big := func(m *envelope.Mail) { m.Body = envelope.MemoryBody(bytes.Repeat([]byte("0123456\r\n"), 1000)) }
	tests := []struct {
		name   string
		change func(*envelope.Mail)
		ext    []string
		state  envelope.RecipientState
		want   string
		line   string // expected in some command
	}{
		{"8 bits", latin, []string{"8BITMIME"}, envelope.Relayed, "250", "BODY=8BITMIME"},
		{"8 bits, not offered", latin, nil, envelope.Failed, "550 5.6.3", ""},
		{"UTF-8 header", utf8, []string{"8BITMIME", "SMTPUTF8"}, envelope.Relayed, "250", "SMTPUTF8"},
		{"UTF-8 header, not offered", utf8, []string{"8BITMIME"}, envelope.Failed, "550 5.6.7", ""},
		{"UTF-8 recipient", unicodeLocal, []string{"8BITMIME", "SMTPUTF8"}, envelope.Relayed, "250", "RCPT TO:<grüße@x.example>"},
		{"UTF-8 recipient, not offered", unicodeLocal, []string{"8BITMIME"}, envelope.Failed, "550 5.6.7", ""},
		{"UTF-8 domain, not offered", unicodeDomain, []string{"8BITMIME"}, envelope.Relayed, "250", "RCPT TO:<a@xn--bcher-kva.example>"},
		{"declared but not needed", func(m *envelope.Mail) { m.Sender.SMTPUTF8 = true }, nil, envelope.Relayed, "250", "MAIL FROM:<sender@source.example>"},
		{"too big", big, []string{"SIZE 5000"}, envelope.Failed, "552 5.3.4", ""},
		{"no limit", big, []string{"SIZE 0"}, envelope.Relayed, "250", "SIZE="},
		{"no limit told", big, []string{"SIZE"}, envelope.Relayed, "250", "SIZE="},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHop(t, func(h *hop) { h.ext = tt.ext })
			d := testDelivery(t, smartHost(h))
			item := testItem("a@x.example")
			tt.change(item.Mail)
			want(t, one(t, d, item), tt.state, tt.want)
			if !strings.Contains(strings.Join(h.commands(), "\n"), tt.line) {
				t.Errorf("%q is not in %q", tt.line, h.commands())
			}
			if tt.state == envelope.Failed && h.command("MAIL") != "" {
				t.Errorf("sent %q", h.command("MAIL"))
			}
		})
	}
}

func TestCommandsOfATransaction(t *testing.T) {
	h := newHop(t, nil)
	d := testDelivery(t, smartHost(h))
	want(t, one(t, d, testItem("a@x.example")), envelope.Delivered, "250")
	got := strings.Join(h.commands(), "|")
	if !strings.HasPrefix(got, "EHLO edge.test.example|MAIL FROM:<sender@source.example> SIZE=") || !strings.HasSuffix(got, "|RCPT TO:<a@x.example>|DATA") {
		t.Error(got)
	}
}

func TestForceHELO(t *testing.T) {
	h := newHop(t, nil)
	sc := smartHost(h)
	sc.ForceHELO, sc.Fqdn = true, "other.test.example"
	d := testDelivery(t, sc)
	want(t, one(t, d, testItem("a@x.example")), envelope.Relayed, "250")
	if h.commands()[0] != "HELO other.test.example" {
		t.Errorf("greeted with %q", h.commands()[0])
	}
}
