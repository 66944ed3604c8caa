package sdk

import (
	"testing"

	"github.com/posternmail/postern/sdk/agentpb"
)

// RFC 5322 section 4.5: blanks may stand before the colon. Readers of mail know such a field, so agents must.
func TestFieldNamesWithBlanks(t *testing.T) {
	h := Header{[]*agentpb.HeaderField{
		{Name: []byte("Subject"), Value: []byte(" x")},
		{Name: []byte("From \t"), Value: []byte(" a@x.example"), Index: 1},
		{Name: []byte("from"), Value: []byte(" b@x.example"), Index: 2},
	}}
	if !h.Has("From") || h.Get("FROM") != "a@x.example" {
		t.Errorf("From is %q", h.Get("From"))
	}
	var names []string
	for f := range h.All("From") {
		names = append(names, f.Name)
	}
	if len(names) != 2 || names[0] != "From" {
		t.Errorf("fields %q", names)
	}
	if block := string(h.Block()); block != "Subject: x\r\nFrom \t: a@x.example\r\nfrom: b@x.example\r\n" {
		t.Errorf("the block is %q", block)
	}
}
