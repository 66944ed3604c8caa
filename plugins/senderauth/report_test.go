package main

import (
	"compress/gzip"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk/agenttest"
)

const reporting = `
	report_from      = "dmarc@y.example"
	dmarc_reject     = "reject"
	dmarc_quarantine = "quarantine"
	trusted_sealers  = ["lists.example"]
`

// reportWorld is the world of the tests with domains that want reports.
func reportWorld(t *testing.T) *zone {
	t.Helper()
	return newZone(t,
		`wants.example. 60 IN TXT "v=spf1 ip4:192.0.2.0/24 -all"`,
		`_dmarc.wants.example. 60 IN TXT "v=DMARC1; p=reject; sp=quarantine; fo=1; rua=mailto:Rua@wants.example, mailto:other@far.example!1m,https://x.example/"`,
		`wants.example. 60 IN MX 10 mx.wants.example.`,
		`wants.example._report._dmarc.far.example. 60 IN TXT "v=DMARC1"`,
		`far.example. 60 IN A 192.0.2.1`,
		`_dmarc.silent.example. 60 IN TXT "v=DMARC1; p=none"`,
		`_dmarc.stranger.example. 60 IN TXT "v=DMARC1; p=none; rua=mailto:victim@other.example"`,
		`_dmarc.null.example. 60 IN TXT "v=DMARC1; p=none; rua=mailto:a@null.example"`,
		`null.example. 60 IN MX 0 .`,
		`_dmarc.small.example. 60 IN TXT "v=DMARC1; p=none; rua=mailto:a@small.example!5"`,
		`small.example. 60 IN A 192.0.2.1`,
		`_dmarc.none.example. 60 IN TXT "v=DMARC1; p=reject; pct=0; rua=mailto:a@none.example"`,
		`none.example. 60 IN A 192.0.2.1`,
	)
}

func startReporting(t *testing.T, z *zone) *agenttest.Agent {
	t.Helper()
	return agenttest.Start(t, New, fmt.Sprintf("dns_servers = [%q]\n%s", z.serve(t), reporting), agenttest.WithInfo(info()))
}

// opened is a report as its receiver reads it.
type opened struct {
	to, subject, name string
	text              string
	report            feedback
}

func openReports(t *testing.T, o *agenttest.Outcome) (all []opened) {
	t.Helper()
	for _, p := range o.Answer().GetSpawns() {
		if string(p.GetSender()) != "dmarc@y.example" || len(p.GetRecipients()) != 1 {
			t.Errorf("from %q to %q", p.GetSender(), p.GetRecipients())
		}
		all = append(all, openReport(t, string(p.GetBefore())))
		all[len(all)-1].to = string(p.GetRecipients()[0])
	}
	return all
}

func openReport(t *testing.T, text string) (o opened) {
	t.Helper()
	m, err := mail.ReadMessage(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	o.subject = m.Header.Get("Subject")
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	parts := multipart.NewReader(m.Body, params["boundary"])
	for {
		part, err := parts.NextPart()
		if err != nil {
			break
		}
		if part.Header.Get("Content-Type") == "text/plain; charset=us-ascii" {
			continue
		}
		o.name = part.FileName()
		unpacked, err := gzip.NewReader(base64.NewDecoder(base64.StdEncoding, part))
		if err != nil {
			t.Fatal(err)
		}
		document, err := io.ReadAll(unpacked)
		if err != nil {
			t.Fatal(err)
		}
		o.text = string(document)
	}
	if err := xml.Unmarshal([]byte(o.text), &o.report); err != nil {
		t.Fatalf("%v in %q", err, o.text)
	}
	return o
}

func TestReports(t *testing.T) {
	a := startReporting(t, reportWorld(t))
	for range 3 {
		send(a, "203.0.113.9", "eve@wants.example", plain("eve@wants.example")).Want(550, "5.7.1")
	}
	send(a, "192.0.2.9", "ann@wants.example", plain("ann@wants.example")).WantContinue()
	send(a, "203.0.113.9", "", plain("eve@sub.wants.example")).WantVerdict("quarantine")
	send(a, "203.0.113.9", "b@silent.example", plain("b@silent.example")).WantContinue()
	if rows := a.Rows("aggregate"); len(rows) != 3 || !strings.Contains(rows[0].Key+rows[1].Key, "20260101/wants.example/") {
		t.Fatalf("rows %v", rows)
	}
	if got := openReports(t, a.Schedule()); len(got) != 0 {
		t.Errorf("the day is not over, and %d reports are sent", len(got))
	}
	a.Advance(12*time.Hour + time.Minute)
	o := a.Schedule().WantContinue().WantCount("dmarc_reports", 2)
	got := openReports(t, o)
	if len(got) != 2 || got[0].to != "Rua@wants.example" || got[1].to != "other@far.example" || got[0].text != got[1].text {
		t.Fatalf("%v", got)
	}
	if a.Rows("aggregate") != nil {
		t.Error("what was reported is still counted")
	}
	checkReport(t, got[0])
	if again := openReports(t, a.Schedule()); len(again) != 0 {
		t.Errorf("reported twice: %v", again)
	}
}

func checkReport(t *testing.T, o opened) {
	t.Helper()
	id := o.report.Metadata.ID
	local, _, _ := strings.Cut(id, "@")
	if o.subject != "Report Domain: wants.example Submitter: y.example Report-ID: <"+id+">" {
		t.Errorf("subject %q", o.subject)
	}
	if o.name != "y.example!wants.example!1767225600!1767311999!"+local+".xml.gz" {
		t.Errorf("file %q", o.name)
	}
	p := o.report.Policy
	if p.Domain != "wants.example" || p.Policy != "reject" || p.Subdomains != "quarantine" || p.DKIM != "r" || p.SPF != "r" || p.Percent != 100 || p.Options != "1" {
		t.Errorf("policy %+v", p)
	}
	got := map[string]int64{}
	for _, r := range o.report.Records {
		got[fmt.Sprintf("%s %s %s/%s/%s %s %s %s=%s", r.IP, r.Identifiers.From, r.Evaluated.Disposition, r.Evaluated.DKIM, r.Evaluated.SPF,
			r.Identifiers.MailFrom, r.SPF.Scope, r.SPF.Domain, r.SPF.Result)] = r.Count
	}
	for want, n := range map[string]int64{
		"203.0.113.9 wants.example reject/fail/fail wants.example mfrom wants.example=fail": 3,
		"192.0.2.9 wants.example none/fail/pass wants.example mfrom wants.example=pass":     1,
		"203.0.113.9 sub.wants.example quarantine/fail/fail  helo mx.x.example=none":        1,
	} {
		if got[want] != n {
			t.Errorf("%d of %s in %v", n, want, got)
		}
	}
}

// Who must not get reports, gets none, and the rows leave all the same.
func TestWhereNotToReport(t *testing.T) {
	a := startReporting(t, reportWorld(t))
	for _, domain := range []string{"stranger.example", "null.example", "small.example"} {
		send(a, "203.0.113.9", "b@"+domain, plain("b@"+domain)).WantContinue()
	}
	if n := len(a.Rows("aggregate")); n != 3 {
		t.Fatalf("%d rows", n)
	}
	a.Advance(24 * time.Hour)
	if got := openReports(t, a.Schedule()); len(got) != 0 || a.Rows("aggregate") != nil {
		t.Errorf("%v, rows %v", got, a.Rows("aggregate"))
	}
}

// DNS that does not answer puts a report off.
func TestReportLater(t *testing.T) {
	z := reportWorld(t)
	a := startReporting(t, z)
	a.PutRow("aggregate", "20251231/wants.example/1", `{"owner":"wants.example","ip":"192.0.2.1","from":"wants.example","count":7}`, 0)
	z.mu.Lock()
	z.silent["wants.example."], z.records["wants.example."] = true, nil
	z.mu.Unlock()
	a.Schedule().WantContinue().WantCount("dmarc_reports_later", 1)
	if len(a.Rows("aggregate")) != 1 {
		t.Fatal("the row has left")
	}
	z.mu.Lock()
	delete(z.silent, "wants.example.")
	z.mu.Unlock()
	z.add(t, "wants.example. 60 IN A 192.0.2.1")
	time.Sleep(1100 * time.Millisecond) // what DNS did not answer is asked again after a second
	if got := openReports(t, a.Schedule()); len(got) != 2 || got[0].report.Records[0].Count != 7 {
		t.Errorf("%v", got)
	}
}

func TestOverrides(t *testing.T) {
	a := startReporting(t, reportWorld(t))
	send(a, "203.0.113.9", "b@none.example", plain("b@none.example")).WantVerdict("quarantine")
	a.Advance(24 * time.Hour)
	got := openReports(t, a.Schedule())
	if len(got) != 1 || len(got[0].report.Records[0].Evaluated.Reasons) != 1 || got[0].report.Records[0].Evaluated.Reasons[0].Type != "sampled_out" {
		t.Errorf("%+v", got)
	}
	f := &findings{sealer: "lists.example", dmarc: dmarcResult{result: resultFail, policy: policyReject}}
	if why, comment := f.whyNot(resultNone); why != "local_policy" || comment != "arc=pass as[0].d=lists.example" {
		t.Errorf("%s %s", why, comment)
	}
}

// Without an address to report from nothing is kept.
func TestNoReports(t *testing.T) {
	a := agenttest.Start(t, New, fmt.Sprintf("dns_servers = [%q]", reportWorld(t).serve(t)), agenttest.WithInfo(info()))
	send(a, "203.0.113.9", "b@wants.example", plain("b@wants.example")).WantContinue().WantStamp("auth.dmarc", "fail")
	if rows := a.Rows("aggregate"); rows != nil {
		t.Errorf("rows %v", rows)
	}
}

func TestDestinations(t *testing.T) {
	for _, c := range []struct {
		uris, want string
	}{
		{"mailto:a@x.example", "a@x.example 0"},
		{" MAILTO:a%2Bb@X.example!10k ,mailto:c@x.example!2", "a+b@x.example 10240, c@x.example 2"},
		{"mailto:a@x.example?subject=x", "a@x.example 0"},
		{"mailto:a@x.example!1g!2", ""},
		{"mailto:a@x.example!0, mailto:a@x.example!9999999999t, mailto:a@x.example!k", ""},
		{"https://x.example/, mailto:, mailto:a, mailto:a@[192.0.2.1], mailto:a%zz@x.example, mailto:a%0D%0Ab@x.example", ""},
		{strings.Repeat("mailto:a@x.example,", 9), "a@x.example 0, a@x.example 0, a@x.example 0, a@x.example 0"},
	} {
		var got []string
		for _, d := range parseDestinations(c.uris) {
			got = append(got, fmt.Sprintf("%s %d", d.mailbox, d.limit))
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%q: %q, expected %q", c.uris, got, c.want)
		}
	}
}

func FuzzDestinations(f *testing.F) {
	f.Add("mailto:a@x.example!10m,mailto:b@y.example")
	f.Add("mailto:%41@x.example!")
	f.Fuzz(func(t *testing.T, uris string) {
		for _, d := range parseDestinations(uris) {
			if strings.ContainsAny(d.mailbox.String(), "\r\n\x00") || d.limit < 0 {
				t.Errorf("%q: %v", uris, d)
			}
		}
	})
}
