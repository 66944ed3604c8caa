package session_test

import (
	"testing"
	"time"
)

// TestClientsThatDoNotWait: what a client sends before it may is noted in the session, and costs it nothing here.
func TestClientsThatDoNotWait(t *testing.T) {
	tests := map[string]struct {
		delay          time.Duration // 0: unset, as on loopback
		early          string        // sent at once
		wait           time.Duration // before the rest
		rest           string
		talks          bool
		unsynchronized int
	}{
		"a good client":            {rest: "EHLO x\r\n"},
		"before the banner":        {delay: 10 * time.Second, early: "EHLO x\r\n", talks: true},
		"within the delay":         {delay: 10 * time.Second, wait: 50 * time.Millisecond, rest: "EHLO x\r\n", talks: true},
		"all behind HELO":          {rest: "HELO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<b@ours.test>\r\nDATA\r\n", unsynchronized: 3},
		"all behind EHLO":          {rest: "EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<b@ours.test>\r\nDATA\r\n", unsynchronized: 1},
		"the message behind DATA":  {rest: "EHLO x\r\n", unsynchronized: 1},
		"RSET before the greeting": {rest: "RSET\r\nEHLO x\r\n", unsynchronized: 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := usual()
			s.receive.Limits.BannerDelay, s.receive.Limits.BannerDelaySet = test.delay, test.delay > 0
			h := start(t, s)
			c := h.dial()
			if test.early != "" {
				c.send(test.early)
			}
			if test.wait == 0 {
				c.expect("220 edge.test ESMTP Postern")
			} else {
				time.Sleep(test.wait)
			}
			c.send(test.rest)
			if test.wait != 0 {
				c.expect("220 edge.test ESMTP Postern")
			}
			finish(c, name)
			got := h.spool.all()[0].Session
			if got.EarlyTalk != test.talks || got.Unsynchronized != test.unsynchronized {
				t.Errorf("early talk %v, unsynchronized %d", got.EarlyTalk, got.Unsynchronized)
			}
		})
	}
}

// finish sends what a client of that name has not sent yet, in good order or not.
func finish(c *client, name string) {
	c.t.Helper()
	c.reply()
	switch name {
	case "RSET before the greeting":
		c.reply()
		fallthrough
	case "a good client", "before the banner", "within the delay":
		c.envelope("b@ours.test")
		c.message(simple)
	case "the message behind DATA":
		c.envelope("b@ours.test")
		c.send("DATA\r\n" + simple + ".\r\n")
		c.expect(s354[3:])
	default:
		c.reply()
		c.reply()
		c.expect(s354[3:])
		c.send(simple + ".\r\n")
	}
	c.expect(queuedSimple)
}
