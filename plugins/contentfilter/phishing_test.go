package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/posternmail/postern/plugins/contentfilter/classifier"
)

const htmlMail = "From: s@x.example\nMIME-Version: 1.0\nContent-Type: text/html; charset=utf-8\n\n"

// What deceives the reader raises the phishing level; what wanted mail does too, does not.
func TestPhishing(t *testing.T) {
	a := start(t, `protected_domains = ["paypal.com", "www.bücher-bank.de"]`)
	link := func(target, label string) string { return htmlMail + `<a href="` + target + `">` + label + `</a>` }
	for name, c := range map[string]struct {
		message, pcl, signs string
	}{
		"plain":                    {plain, "1", ""},
		"own address in the name":  {"From: \"s@mail.x.com\" <s@x.com>\n\nx", "1", ""},
		"another address in it":    {"From: \"service@paypal.com\" <s@x.com>\n\nx", "5", "NameAddress"},
		"encoded":                  {"From: =?utf-8?q?service=40paypal.com?= <s@x.com>\n\nx", "5", "NameAddress"},
		"another domain in it":     {"From: \"Node.js at paypal.com\" <s@x.com>\n\nx", "3", "NameDomain"},
		"a file name in it":        {"From: \"Mr. setup.exe v1.2\" <s@x.com>\n\nx", "1", ""},
		"mixed scripts in it":      {"From: =?utf-8?q?P=D0=B0ypal?= <s@x.com>\n\nx", "4", "NameScript"},
		"two scripts, two words":   {"From: =?utf-8?b?0JjQstCw0L0gU21pdGg=?= <s@x.com>\n\nx", "1", ""},
		"text turned around":       {"From: =?utf-8?b?4oCubGFweWFw?= <s@x.com>\n\nx", "4", "NameScript"},
		"look-alike sender":        {"From: a@paypa1.com\n\nx", "6", "Lookalike"},
		"one letter more":          {"From: a@paypall.com\n\nx", "6", "Lookalike"},
		"letters that swap places": {"From: a@paypla.com\n\nx", "6", "Lookalike"},
		"look-alike by IDN":        {"From: a@xn--pypal-4ve.com\n\nx", "8", "MixedScript Lookalike"}, // Cyrillic а
		"IDN of one script":        {"From: a@xn--mnchen-3ya.de\n\nx", "1", ""},
		"all in another script":    {"From: a@xn--80aa0cbo65f.com\n\nx", "8", "MixedScript Lookalike"}, // раураl
		"rn for m":                 {"From: a@rny.org\n\nx", "1", ""},
		"of the recipient":         {"From: a@recipient-cornpany.org\n\nx", "6", "Lookalike"},
		"the same elsewhere":       {"From: a@paypal.de\n\nx", "1", ""},
		"a subdomain":              {"From: a@mail.paypal.com\n\nx", "1", ""},
		"link as it says":          {link("https://www.heise.de/a", "www.heise.de"), "1", ""},
		"link to a subdomain":      {link("https://click.heise.de/a", "https://www.heise.de/"), "1", ""},
		"link elsewhere":           {link("https://evil.com/a", "https://www.heise.de/"), "3", "LinkText"},
		"link elsewhere, a name":   {link("https://evil.com/a", "heise.de/news"), "3", "LinkText"},
		"link of words":            {link("https://evil.com/a", "see heise.de for more"), "1", ""},
		"link that is a file":      {link("https://evil.com/a", "setup.exe"), "1", ""},
		"mail address":             {link("mailto:a@evil.com", "a@heise.de"), "1", ""},
		"link to a number":         {link("http://192.0.2.1/a", "here"), "3", "LinkAddress"},
		"link to an IPv6 number":   {link("http://[2001:db8::1]/a", "here"), "3", "LinkAddress"},
		"user in front":            {link("https://www.heise.de@evil.com/", "x"), "4", "LinkUser"},
		"browser's spelling":       {link(`https:\\www.heise.de@evil.com\`, "x"), "4", "LinkUser"},
		"with tabs":                {link("ht\ttps://ev\til.com/", "heise.de"), "3", "LinkText"},
		"borrowed":                 {link("https://login.paypal.com.evil.com/", "x"), "4", "LinkBorrowed"},
		"look-alike link":          {link("https://paypa1.com/", "x"), "6", "Lookalike"},
		"everything":               {link("https://www.paypal.com@paypa1.com/", "paypal.com"), "8", "LinkUser Lookalike LinkText"},
		"broken links":             {htmlMail + `<a href="http://%zz">x</a><a href="http://[::">x</a><a href="http://` + strings.Repeat("a", 400) + `.com">x</a>`, "1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := a.From("192.0.2.1")
			s.Mail("s@x.example").To("r@recipient-company.org").WantContinue()
			out := s.Data(c.message).WantStamp("pcl", c.pcl).WantHeaderAdded("X-Postern-PCL", c.pcl)
			want := "0"
			if c.signs != "" {
				want = "0; PCL " + c.pcl + ": [" + c.signs + "]"
			}
			if got := data(out); got != want {
				t.Errorf("the ledger has %q, want %q", got, want)
			}
			verdict := map[bool]string{true: "PCL:PhishingLevel SUSPICIOUS;", false: "PCL:PhishingLevel NEUTRAL;"}[c.pcl >= "4"]
			if c.pcl == "1" {
				verdict = ""
			}
			out.WantHeaderAdded("X-Postern-Antispam-Report", "DV:"+version+";NoModel;"+verdict+"OrigIP:192.0.2.1")
		})
	}
}

// The newsletter of an organization may count clicks at its own place.
func TestPhishingOwnLinks(t *testing.T) {
	message := strings.Replace(htmlMail, "s@x.example", "news@shop.com", 1) + `<a href="https://click.shop.com/1">www.heise.de</a>`
	send(start(t, ""), message).WantStamp("pcl", "1")
}

func TestNear(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"paypal", "paypal", false}, {"paypal", "paypa1", true}, {"paypal", "paypall", true}, {"paypal", "apypal", true}, {"paypal", "paypla", true},
		{"paypal", "paypxy", false}, {"paypal", "pyapla", false}, {"short", "shorx", false}, {"", "a", false}, {"größen", "grössen", false}, {"größen", "größer", true},
	} {
		if near(c.a, c.b) != c.want || near(c.b, c.a) != c.want {
			t.Errorf("%s and %s: want %v", c.a, c.b, c.want)
		}
	}
}

// Whatever a name or a link holds, it is looked at to its end.
func FuzzPhishing(f *testing.F) {
	f.Add("From: \"service@paypal.com\" <s@x.com>\r\n", "https://www.paypal.com@evil.com/", "paypal.com")
	f.Add("From: =?utf-8?q?P=D0=B0ypal?= <s@x.com>\r\n", "//xn--pypal-4ve.com\\a", "http://[::1]")
	f.Add("From: \xff@\u202e.com\r\n", "ftp://%zz", "a.b.c.d")
	f.Fuzz(func(t *testing.T, header, target, label string) {
		p := &phish{known: []domain{domainOf("paypal.com")}, from: domainOf(label)}
		p.sender([]byte(header))
		p.link(target, label)
		if len(p.signs) > len(weights) || slices.ContainsFunc(p.signs, func(s sign) bool { return weights[s] == 0 }) {
			t.Errorf("signs %v", p.signs)
		}
	})
}

// Thousands of links are not all looked at.
func TestManyLinks(t *testing.T) {
	message := htmlMail + strings.Repeat(`<p><a href="https://evil.com/a">www.heise.de</a>`, 20_000)
	d, err := classifier.ReadBytes(t.Context(), []byte(message))
	if err != nil {
		t.Fatal(err)
	}
	p := &phish{}
	p.links(d)
	if !slices.Equal(p.signs, []sign{signLinkText}) {
		t.Errorf("signs %v", p.signs)
	}
}
