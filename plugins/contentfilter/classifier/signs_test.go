package classifier

import (
	"slices"
	"strings"
	"testing"
)

// ordinary letter as a person writes it, which has no sign.
var ordinary = []string{
	"Received: from mx.one.example (mx.one.example [192.0.2.1]) by in.two.example (Postfix) with ESMTP id 9589711410E for <b@two.example>; Thu, 2 Apr 2026 10:00:10 +0200",
	"Received: from [198.51.100.7] (helo=desk.one.example) by mx.one.example with esmtp (Exim 4.92) id 1hdGbK-0001wL-Dl; Thu, 02 Apr 2026 10:00:05 +0200",
	"From: Joan Doe <joan@one.example>",
	"To: Berta <berta@two.example>",
	"Subject: Lunch",
	"Date: Thu, 2 Apr 2026 10:00:00 +0200",
	"Message-ID: <4711.abc@one.example>",
	"MIME-Version: 1.0",
	"Content-Type: text/plain; charset=utf-8",
	"",
	"Shall we have lunch at one, near the river?",
}

// changed letter: each line that begins with a name and a colon takes the place of those fields, or leaves if nothing stands
// behind; the text behind an empty line is the body.
func changed(change string) string {
	head, body, hasBody := strings.Cut(change, "\n\n")
	lines := slices.Clone(ordinary)
	for line := range strings.SplitSeq(head, "\n") {
		name, value, _ := strings.Cut(line, ":")
		isField := func(l string) bool { return strings.HasPrefix(l, name+":") }
		at := max(0, slices.IndexFunc(lines, isField))
		if name != "" {
			lines = slices.DeleteFunc(lines, isField)
		}
		if strings.TrimSpace(value) != "" {
			lines = slices.Insert(lines, at, line)
		}
	}
	text := strings.Join(lines, "\r\n")
	if hasBody {
		text = text[:strings.Index(text, "\r\n\r\n")+4] + strings.ReplaceAll(body, "\n", "\r\n")
	}
	return text + "\r\n"
}

const inHTML = "Content-Type: text/html; charset=utf-8\n\n"

// Each sign is found where it is, and nothing else with it.
func TestSigns(t *testing.T) {
	for _, c := range []struct{ change, want string }{
		{"", ""},
		{"Subject: Re: Lunch\nIn-Reply-To: <1@two.example>", "answers a message"},
		{"Subject: Re: Lunch", "answers nothing"},

		{"Subject: Lunch\nReceived:\nX-Loop: x", ""}, // no trace is no sign: the message comes from here
		{"Received: from x.example (x.example [192.0.2.1]) by two.example", "Received malformed"},
		{"Received: from 192.0.2.9 (x.example [192.0.2.9]) by two.example; Thu, 2 Apr 2026 10:00:10 +0200", "HELO is an address"},
		{"Received: from x.example (unknown [192.0.2.9]) by two.example; Thu, 2 Apr 2026 10:00:10 +0200", "host without a name"},
		{"Received: from x.example ([192.0.2.9]) by two.example; Thu, 2 Apr 2026 10:00:10 +0200", "host without a name"},
		{"Received: from unknown (HELO x.example) (192.0.2.9) by two.example with SMTP; 2 Apr 2026 10:00:10 +0200", "host without a name"},
		{"Received: from x.example (dsl-192-0-2-9.isp.example [192.0.2.9]) by two.example; Thu, 2 Apr 2026 10:00:10 +0200", "straight from a dynamic host"},
		{"Received: from x.example (10.0.0.1) by y.example; Thu, 2 Apr 2026 10:00:10 +0200", ""},
		{"Received: from x.example by y.example; Thu, 2 Apr 2026 10:00:10 +0200\nReceived-SPF: x", ""},

		{"Date:", "Date missing"},
		{"Date: yesterday", "Date malformed"},
		{"Date: Thu, 2 Apr 2026 10:07:00 +0207", "Date in no zone"},
		{"Date: Mon, 2 Apr 2026 10:00:00 +0200", "Date on another weekday"},
		{"Date: Thu, 2 Apr 2026 15:00:00 +0200", "Date hours ahead"},
		{"Date: Sun, 5 Apr 2026 15:00:00 +0200", "Date days ahead, Date hours ahead"},
		{"Date: Thu, 26 Mar 2026 10:00:00 +0200", "Date days behind"},

		{"Message-ID:", "Message-ID missing"},
		{"Message-ID: 4711", "Message-ID malformed"},
		{"Message-ID: <20260402.9589711410E@in.two.example>", "Message-ID made by a relay"},

		{"From:", "From missing"},
		{"From: Joan <joan@one.example> Doe", "From malformed"},
		{"From: joan@one.example", "From without a name"},
		{"From: \"service@bank.example\" <joan@one.example>", "From named as another address"},
		{"From: \"joan@one.example\" <joan@one.example>", ""},
		{"From: \"'Joan'\" <joan@one.example>", "From quoted twice"},
		{"From: \xe4\xf6 <joan@one.example>", "From of 8 bits"},
		{"Reply-To: joan@one.example", "Reply-To is From"},
		{"To:", "To missing"},
		{"To: undisclosed-recipients:;", "To nobody"},
		{"To: joan@one.example", "To is From"},
		{"To: joe@a.example, joe@b.example, joe@c.example", "To a series"},
		{"To: abel@a.example, abe@b.example, abner@c.example, zoe@d.example", "To a series"},

		{"Subject:", "Subject missing"},
		{"Subject: LUNCH NEAR THE RIVER", "Subject in capitals"},
		{"Subject: Lunch                 wz", "Subject with a gap"},
		{"Subject: Lunch [wz6lo]", "Subject ends at random"},
		{"Subject: Lunch!", "Subject exclaims"},
		{"Subject: Lunch for 5 €", "Subject of 8 bits, Subject of money or percent"},
		{"Subject: =?utf-8?q?Lunch_for_5_=E2=82=AC?=", "Subject of money or percent"},
		{"Subject: l.u.n.c.h now", "Subject s p r e a d"},
		{"Subject: =?utf-8?q?Lunch?=", "Subject encoded for nothing"},
		{"Subject: Berta, lunch", "Subject names the recipient"},
		{"Subject: Bertanian lunch", ""},

		{"Subject: Lunch\nsubject: Dinner", "Received below the author's fields, field twice"},
		{"MIME-Version:", "MIME-Version missing"},
		{"Content-Type: text/plain; charset", "Content-Type malformed, part defective"},
		{"Content-Type: text/plain\n\nMahlzeit, schön", "charset not told, text missing"},
		{"Content-Type: text/plain; charset=default", "charset unknown"},
		{"Content-Transfer-Encoding: base64\n\nU2hhbGwgd2UgaGF2ZSBsdW5jaCBhdCBvbmUsIG5lYXIgdGhlIHJpdmVyPw==", "text encoded for nothing"},
		{"Content-Type: multipart/mixed; boundary=b\n\n--b\n\nShall we have lunch at one?\n--b--\n", "multipart of one"},
		{"Content-Type: multipart/alternative; boundary=b\n\n--b\n\n \n--b\nContent-Type: text/html\n\n<p>Shall we have lunch at one?\n--b--\n", "alternative empty"},

		{"X-Mailer: Microsoft Outlook Express 6.00\nMessage-ID: <000001c1f0f0$12345678$0100a8c0@one.example>\nX-Priority: 3\nX-MimeOLE: Produced by", ""},
		{"X-Mailer: Microsoft Outlook Express 6.00\nMessage-ID: <000001c1f0f0$12345678$0100a8c0@one.example>\nX-Priority: 3", "program without its fields"},
		{"X-Mailer: Microsoft Outlook Express 6.00\nX-Priority: 3\nX-MimeOLE: Produced by", "program with another's Message-ID"},
		{"X-Mailer: The Bat! (v1.53)", "program with another's Message-ID"},
		{"X-Mailer: Mailer 1\nX-MSMail-Priority: 3", "program with another's fields"},
		{"X-MimeOLE: Produced by", "program unnamed"},
		{"X-Mailer: Mailer 1\nContent-Type: multipart/mixed; boundary=\"----=_NextPart_0\"\n\n------=_NextPart_0\n\nShall we have lunch at one?\n------=_NextPart_0\n\nBring Joe\n------=_NextPart_0--\n",
			"program with another's boundary"},
		{"X-Priority: 1", "priority high"},

		{inHTML + "<p style='display: none'>Shall we have lunch at one?", "text hidden"},
		{inHTML + "Shall we have lu<!-- x -->nch at one?", "word cut by a comment"},
		{inHTML + "Shall we <!-- x -->have <b>lu</b><!-- x -->nch at one?", ""},
		{inHTML + "<lunch>Shall we have <river>lunch at one?", "elements unknown"},
		{inHTML + "<o:p>Shall we have </o:p>lunch at one?", ""},
		{inHTML + "<meta http-equiv=Refresh content=0>Shall we have lunch at one?", "page leads elsewhere by itself"},
		{inHTML + "<a href='https://www.one.example/'>Shall we have lunch at one?</a>", "links to the sender"},
		{inHTML + "<a href='https://www.other.example/'>Shall we have lunch at one?</a>", "links only elsewhere"},
		{inHTML + "<a href='https://www.other.example/'>Shall</a> we have lunch at <a href='http://one.example'>one</a>?", "links to the sender"},
		{inHTML + "<a href='http://www.one.example/'>www.bank.example</a> Shall we have lunch at one?", "link shows another target, links to the sender"},
		{"Subject: Lunch\n\nShall we have lunch at http://192.0.2.4/x soon", "link to an address"},
		{"Subject: Lunch\n\nShall we have lunch at http://0x7f000001/x soon", "link to a number"},
		{"Subject: Lunch\n\nShall we have lunch at http://a.example:8443/x soon", "link to a port"},
		{"Subject: Lunch\n\nShall we have lunch at http://bank@a.example/x soon", "link with a user"},
		{"Subject: Lunch\n\nShall we have lunch at http://a.example/%41%42 soon", "link escapes for nothing"},
		{"Subject: Lunch\n\nShall we have lunch at http://a1b22c3.example/ soon", "link to a random host"},

		{"Subject: Lunch\n\nLunch", "text missing"},
		{"Subject: Lunch\n\n" + strings.Repeat("SHALL WE HAVE LUNCH ", 10), "text in capitals"},
		{"Subject: Lunch\n\nShall we have lunch at one!!", "text exclaims"},
		{"Subject: Lunch\n\nShall we have l u n c h at one?", "text s p r e a d"},
		{"Subject: Lunch\n\nShall we have lunch at one?\nxkzqwtvb\n", "text ends at random"},
		{"Subject: Lunch\n\nSh\u200ball w\u200be ha\u200bve lun\u200bch at one?", "text with invisible characters"},
		{"Subject: Lunch\n\nShall we have lunсh at one?", "words of several scripts"},
		{"Subject: Lunch\n\nShall we have 𝐥𝐮𝐧𝐜𝐡 at one?", "letters in disguise"},
	} {
		var got []string
		for _, id := range featuresOf(t, []byte(changed(c.change)), false).Signs {
			got = append(got, signs[id].name)
		}
		slices.Sort(got)
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%q has %q, want %q", c.change, strings.Join(got, ", "), c.want)
		}
	}
}

// A trace field is written in front of all that was there before, later than those below it.
func TestTraceOrder(t *testing.T) {
	top, below := ordinary[0], ordinary[1]
	rest := strings.Join(ordinary[2:], "\r\n")
	late := strings.Replace(below, "10:00:05 +0200", "18:00:05 +0200", 1)
	for message, want := range map[string]signID{
		top + "\r\nFrom: x@one.example\r\n" + below + "\r\n" + strings.Join(ordinary[3:], "\r\n"): receivedBelow,
		top + "\r\n" + late + "\r\n" + rest: receivedOrder,
	} {
		if got := featuresOf(t, []byte(message), false).Signs; !slices.Contains(got, want) {
			t.Errorf("%q is not among %v", signs[want].name, got)
		}
	}
}

// Every sign has a name of its own, and a weight.
func TestSignTable(t *testing.T) {
	names := map[string]bool{}
	for id, s := range signs {
		if s.name == "" || s.weight == 0 || names[s.name] {
			t.Errorf("sign %d: %+v", id, s)
		}
		names[s.name] = true
	}
}

// What is believed of a sign holds until mail speaks against it, and never turns into its contrary.
func TestSignWeights(t *testing.T) {
	with := func(n int, spam bool, found ...signID) (out []Example) {
		for range n {
			out = append(out, Example{&Features{Signs: found}, spam})
		}
		return out
	}
	few := fitSigns(slices.Concat(with(20, true, subjectGap), with(20, false)))
	if got := few.each[subjectGap]; got < signs[subjectGap].weight || got > 1.1 {
		t.Errorf("after 20 messages that fit it weighs %g", got)
	}
	many := fitSigns(slices.Concat(with(3000, true, subjectGap), with(3000, false), with(3000, true, priorityHigh), with(3000, false, priorityHigh, versionMissing)))
	if many.each[subjectGap] < 1.5 {
		t.Errorf("after 3000 messages that fit it weighs %g", many.each[subjectGap])
	}
	if many.each[versionMissing] != 0 {
		t.Errorf("what only wanted mail has weighs %g", many.each[versionMissing])
	}
	if many.each[linksHome] != signs[linksHome].weight {
		t.Errorf("what no mail has weighs %g", many.each[linksHome])
	}
}

// Words that leave no doubt count in part, so that signs can speak against them.
func TestDoubted(t *testing.T) {
	for odds, want := range map[float64]float64{0: 0, 2: 2, -3: -3, 7: 4, -11: -5} {
		if got := doubted(odds); got != want || undoubted(got) != odds {
			t.Errorf("%g is doubted as %g, and back %g", odds, got, undoubted(got))
		}
	}
}
