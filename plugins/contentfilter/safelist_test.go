package main

import "testing"

// Who trusts a sender gets its mail unjudged; who does not, does not.
func TestSafeSenders(t *testing.T) {
	a := start(t, "")
	for key, list := range map[string]string{
		"ann@y.example|friend@x.example": "safe", "ann@y.example|news.example": "safe", "ann@y.example|bad@news.example": "blocked",
		"bob@y.example|friend@x.example": "safe", "carl@y.example|friend@x.example": "safe", "carl@y.example|x.example": "blocked",
		"dora@y.example|friend@x.example": "safe", "dora@y.example|boss@z.example": "blocked",
	} {
		a.PutRow("safelist", key, `{"list":"`+list+`"}`, 0)
	}
	for name, c := range map[string]struct{ from, header, to, entry string }{
		"the envelope's sender":      {"Friend@X.example", "a@b.example", "ann@y.example", "ann@y.example|friend@x.example"},
		"its domain":                 {"any@news.example", "a@b.example", "ann@y.example", "ann@y.example|news.example"},
		"the header's sender":        {"bounce@b.example", "friend@x.example", "ann@y.example", "ann@y.example|friend@x.example"},
		"the domain of the header":   {"", "any@news.example", "ann@y.example", "ann@y.example|news.example"},
		"blocked in a safe domain":   {"bad@news.example", "bad@news.example", "ann@y.example", ""},
		"safe in a blocked domain":   {"friend@x.example", "friend@x.example", "carl@y.example", "carl@y.example|friend@x.example"},
		"safe, but who writes not":   {"friend@x.example", "boss@z.example", "dora@y.example", ""},
		"safe for somebody else":     {"any@news.example", "any@news.example", "bob@y.example", ""},
		"stranger":                   {"s@b.example", "s@b.example", "ann@y.example", ""},
		"recipient without any list": {"friend@x.example", "friend@x.example", "eve@y.example", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := a.From("192.0.2.1")
			s.Mail(c.from).To(c.to).WantContinue()
			out := s.Data("From: " + c.header + "\n\n" + gtubeText)
			if c.entry == "" {
				out.Want(550, "5.7.1").WantStamp("scl", "9")
				return
			}
			out.WantContinue().WantReason("AllRecipientsBypassed").WantStamp("scl", "-1").WantHeaderAdded("X-Postern-SCL", "-1").
				WantHeaderAdded("X-Postern-Antispam-Report", "DV:"+version+";AllRecipientsBypassed;OrigIP:192.0.2.1")
			if got := data(out); got != c.entry {
				t.Errorf("the ledger has %q, want %q", got, c.entry)
			}
		})
	}
	s := a.From("192.0.2.1")
	s.Mail("friend@x.example").To("eve@y.example").To("ann@y.example").WantContinue()
	s.Data("From: friend@x.example\n\n"+gtubeText).WantFor("eve@y.example", 550, "5.7.1").
		WantVerdictFor("ann@y.example", "continue").WantReason("RecipientBypassed").WantStamp("scl", "9").WantStamp("scl", "-1")
}
