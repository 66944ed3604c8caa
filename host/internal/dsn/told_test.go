package dsn

import (
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/sdk/address"
)

// A sender learns what kind of trouble there is with the next hop, not where inside it stands.
func TestAddressesOfTheInsideStayInside(t *testing.T) {
	rcpt := &envelope.Recipient{
		Address: address.Mailbox{Local: "b", Domain: "example.org"},
		Reply:   envelope.Reply{Code: 451, Enhanced: "4.4.1", Text: "connecting to hub [10.20.30.40]:25: connection refused"},
	}
	item := &queue.Item{ID: "a.1", Mail: &envelope.Mail{
		Sender: envelope.Sender{Address: address.Mailbox{Local: "a", Domain: "sender.example"}}, Recipients: []*envelope.Recipient{rcpt},
		Header: []byte("Subject: x\r\n"), Body: envelope.MemoryBody([]byte("y\r\n")),
	}}
	report := Compose(Request{Item: item, Kind: Delay, Recipients: item.Mail.Recipients, Host: "edge.example",
		Postmaster: "postmaster@example.org", Now: time.Now(), Expires: time.Now().Add(time.Hour)})
	text := string(report.Mail.Body.Bytes())
	if strings.Contains(text, "10.20.30.40") || strings.Contains(text, "hub") {
		t.Errorf("the report tells of the inside:\n%s", text)
	}
	if !strings.Contains(text, "Diagnostic-Code: x-postern; 451 4.4.1 The next hop cannot be reached") {
		t.Errorf("the report does not tell the kind of trouble:\n%s", text)
	}
}
