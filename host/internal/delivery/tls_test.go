package delivery

import (
	"crypto/tls"
	"encoding/base64"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
)

func TestTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	right := ca.serverTLS(t, "localhost", "127.0.0.1")
	tests := []struct {
		name   string
		server *tls.Config // nil: STARTTLS is not offered
		change func(*config.SendConnector)
		state  envelope.RecipientState
		want   string
		tls    bool
	}{
		{"opportunistic", right, nil, envelope.Delivered, "250", true},
		{"opportunistic, not offered", nil, nil, envelope.Delivered, "250", false},
		{"opportunistic, any certificate", other.serverTLS(t, "other.example"), nil, envelope.Delivered, "250", true},
		{"opportunistic, no TLS in common", &tls.Config{}, nil, envelope.Delivered, "250", false},
		{"ignored", right, func(c *config.SendConnector) { c.IgnoreSTARTTLS = true }, envelope.Delivered, "250", false},
		{"required", right, func(c *config.SendConnector) { c.RequireTLS = true }, envelope.Delivered, "250", true},
		{"required, not offered", nil, func(c *config.SendConnector) { c.RequireTLS = true }, envelope.Pending, "4.7.4", false},
		{"required, no TLS in common", &tls.Config{}, func(c *config.SendConnector) { c.RequireTLS = true }, envelope.Pending, "4.7.5", false},
		{"encryption", other.serverTLS(t, "x"), func(c *config.SendConnector) { c.TLSAuth = "encryption" }, envelope.Delivered, "250", true},
		{"certificate", ca.serverTLS(t, "another.example"), func(c *config.SendConnector) { c.TLSAuth = "certificate" }, envelope.Delivered, "250", true},
		{"certificate of a stranger", other.serverTLS(t, "localhost"), func(c *config.SendConnector) { c.TLSAuth = "certificate" }, envelope.Pending, "4.7.5", false},
		{"domain", right, func(c *config.SendConnector) { c.TLSAuth = "domain" }, envelope.Delivered, "250", true},
		{"domain of another", ca.serverTLS(t, "another.example"), func(c *config.SendConnector) { c.TLSAuth = "domain" }, envelope.Pending, "4.7.5", false},
		{"domain given", ca.serverTLS(t, "given.example"), func(c *config.SendConnector) { c.TLSAuth, c.TLSDomain = "domain", "given.example" }, envelope.Delivered, "250", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHop(t, func(h *hop) { h.tls = tt.server })
			sc := smartHost(h)
			sc.TLSCAFile = ca.file
			if tt.change != nil {
				tt.change(&sc)
			}
			d := testDelivery(t, sc)
			res := one(t, d, testItem("a@x.example"))
			want(t, res, tt.state, tt.want)
			if tt.tls != strings.HasPrefix(res.TLS, "TLS 1.3 TLS_") {
				t.Errorf("TLS is %q", res.TLS)
			}
			if tt.tls && h.received()[0] != testContent {
				t.Errorf("received %q", h.received())
			}
			if tt.state == envelope.Pending && h.command("MAIL") != "" {
				t.Error("MAIL was sent")
			}
		})
	}
}

func TestSTARTTLSRefused(t *testing.T) {
	ca := newAuthority(t)
	for _, required := range []bool{false, true} {
		h := newHop(t, func(h *hop) { h.tls = ca.serverTLS(t, "localhost"); h.replies["STARTTLS"] = "454 4.7.0 not now" })
		sc := smartHost(h)
		sc.RequireTLS = required
		d := testDelivery(t, sc)
		res := one(t, d, testItem("a@x.example"))
		if required {
			want(t, res, envelope.Pending, "4.7.4")
		} else {
			want(t, res, envelope.Delivered, "250")
		}
	}
}

// What a man in the middle puts behind the 220 must not be taken for what the server says inside TLS.
func TestPlaintextBehindSTARTTLS(t *testing.T) {
	ca := newAuthority(t)
	h := newHop(t, func(h *hop) {
		h.tls = ca.serverTLS(t, "localhost")
		h.onCommand = func(conn net.Conn, line string) bool {
			if line != "STARTTLS" {
				return false
			}
			_, _ = io.WriteString(conn, "220 go\r\n250-injected\r\n250 8BITMIME\r\n")
			return true
		}
	})
	d := testDelivery(t, smartHost(h), shortTimeouts)
	want(t, one(t, d, testItem("a@x.example")), envelope.Pending, "4.7.5")
}

func TestRequireTLS(t *testing.T) {
	ca := newAuthority(t)
	right := ca.serverTLS(t, "localhost", "127.0.0.1")
	with := append([]string{"REQUIRETLS"}, allExtensions...)
	tests := []struct {
		name   string
		server *tls.Config
		ext    []string
		state  envelope.RecipientState
		want   string
	}{
		{"offered", right, with, envelope.Delivered, "250"},
		{"not offered", right, allExtensions, envelope.Failed, "550 5.7.30"},
		{"no TLS", nil, with, envelope.Failed, "550 5.7.30"},
		{"wrong name", ca.serverTLS(t, "another.example"), with, envelope.Failed, "550 5.7.30"},
		{"unknown authority", newAuthority(t).serverTLS(t, "127.0.0.1"), with, envelope.Failed, "550 5.7.30"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHop(t, func(h *hop) { h.tls = tt.server; h.ext = tt.ext })
			sc := smartHost(h)
			sc.TLSCAFile = ca.file
			d := testDelivery(t, sc)
			plain := testItem("a@x.example") // leaves a connection that was not checked
			want(t, one(t, d, plain), envelope.Delivered, "250")
			item := testItem("a@x.example")
			item.Mail.Sender.RequireTLS = true
			want(t, one(t, d, item), tt.state, tt.want)
			n := 0
			for _, l := range h.commands() {
				if strings.HasPrefix(l, "MAIL") && strings.Contains(l, " REQUIRETLS") {
					n++
				}
			}
			if delivered := tt.state == envelope.Delivered; delivered != (n == 1) || delivered != (len(h.received()) == 2) {
				t.Errorf("REQUIRETLS %d times, %d messages", n, len(h.received()))
			}
		})
	}
}

func TestAuth(t *testing.T) {
	ca := newAuthority(t)
	b64 := base64.StdEncoding.EncodeToString
	secure := func(h *hop) { h.tls = ca.serverTLS(t, "localhost") }
	auth := func(h *hop) config.SendConnector {
		sc := smartHost(h)
		sc.Username, sc.Password = "edge", "s3cret"
		return sc
	}
	t.Run("PLAIN", func(t *testing.T) {
		h := newHop(t, secure)
		d := testDelivery(t, auth(h))
		want(t, one(t, d, testItem("a@x.example")), envelope.Delivered, "250")
		wantLine(t, h, "AUTH", "AUTH PLAIN "+b64([]byte("\x00edge\x00s3cret")))
	})
	t.Run("refused", func(t *testing.T) {
		h := newHop(t, func(h *hop) { secure(h); h.replies["AUTH"] = "535 5.7.8 wrong" })
		d := testDelivery(t, auth(h))
		want(t, one(t, d, testItem("a@x.example")), envelope.Pending, "4.7.8")
	})
	t.Run("never without TLS", func(t *testing.T) {
		h := newHop(t, func(h *hop) { h.ext = []string{"AUTH PLAIN LOGIN"} })
		d := testDelivery(t, auth(h))
		want(t, one(t, d, testItem("a@x.example")), envelope.Pending, "4.7.0")
		if h.command("AUTH") != "" {
			t.Error("the password was sent in the clear")
		}
	})
	t.Run("LOGIN", func(t *testing.T) {
		h := newHop(t, func(h *hop) { secure(h); h.replies["EHLO"] = "250-hop\r\n250-STARTTLS\r\n250 AUTH LOGIN" })
		d := testDelivery(t, auth(h))
		want(t, one(t, d, testItem("a@x.example")), envelope.Relayed, "250")
		lines := strings.Join(h.commands(), " ")
		if !strings.Contains(lines, "AUTH LOGIN "+b64([]byte("edge"))+" "+b64([]byte("s3cret"))) {
			t.Error(lines)
		}
	})
}
