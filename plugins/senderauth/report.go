package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
)

// This file reports to domains what became of mail in their name: DMARC aggregate reports (RFC 7489 section 7.2), a
// day at a time.

// Bounds of a turn of the schedule. What does not fit waits for the next one.
const (
	reportTurn      = time.Hour
	reportsAtOnce   = 16      // domains that DNS is asked about
	maxReportOctets = 2 << 20 // of the reports of a page, all together
)

// account is what one report tells: a day of a domain.
type account struct {
	domain string
	day    time.Time
	rows   []sdk.Row[aggregate]

	reports []sdk.Spawn
	err     error // DNS did not say where to; another turn may
}

// OnSchedule reports the days that are over.
func (a *Auth) OnSchedule(ctx context.Context, e *sdk.ScheduleEvent) sdk.Verdict {
	ctx, cancel := context.WithTimeout(ctx, a.turnTime(ctx))
	defer cancel()
	accounts := a.accounts(e)
	a.settle(ctx, e, accounts)
	v, total, later := sdk.Continue(), 0, 0
	for _, c := range accounts {
		size := 0
		for _, s := range c.reports {
			size += len(s.Before)
		}
		if c.err != nil || total > 0 && total+size > maxReportOctets {
			later++
			continue
		}
		total += size
		v = v.Spawn(c.reports...).Count("dmarc_reports", len(c.reports))
		for _, row := range c.rows {
			v = v.Write(a.counts.Delete().At(row.Key))
		}
	}
	return v.Count("dmarc_reports_later", later)
}

// turnTime leaves time for the answer.
func (a *Auth) turnTime(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return time.Minute
	}
	return time.Until(deadline) * 3 / 4
}

// accounts of the days that are over, in the order of their rows. A row that cannot be read leaves.
func (a *Auth) accounts(e *sdk.ScheduleEvent) []*account {
	var all []*account
	for row := range a.counts.Rows(e) {
		day, domain, ok := dayOf(row.Key)
		if !ok || e.Time.Before(day.AddDate(0, 0, 1)) {
			continue
		}
		if n := len(all); n == 0 || all[n-1].domain != domain || !all[n-1].day.Equal(day) {
			all = append(all, &account{domain: domain, day: day})
		}
		last := all[len(all)-1]
		last.rows = append(last.rows, row)
	}
	return all
}

// settle all accounts: find out where they go to and write the reports.
func (a *Auth) settle(ctx context.Context, e *sdk.ScheduleEvent, accounts []*account) {
	room := make(chan struct{}, reportsAtOnce)
	var all sync.WaitGroup
	for _, c := range accounts {
		room <- struct{}{}
		all.Go(func() {
			defer func() { <-room }()
			c.reports, c.err = a.reportsOf(ctx, e, c)
		})
	}
	all.Wait()
}

// reportsOf an account, one for each place that its domain names. None: the domain wants none any more, or names no place
// that may be reported to.
func (a *Auth) reportsOf(ctx context.Context, e *sdk.ScheduleEvent, c *account) ([]sdk.Spawn, error) {
	record, owner, err := a.policy(ctx, c.domain)
	if err != nil {
		return nil, fmt.Errorf("policy of %s: %w", c.domain, err)
	}
	if record == nil || owner != c.domain {
		return nil, nil
	}
	places, err := a.destinations(ctx, c.domain, record.reports)
	if err != nil || len(places) == 0 {
		return nil, err
	}
	f := a.newFeedback(c, record)
	packed, err := f.packed()
	if err != nil {
		return nil, err
	}
	var out []sdk.Spawn
	for _, p := range places {
		if p.limit == 0 || int64(len(packed)) <= p.limit {
			out = append(out, a.mail(e.Time, c, f.Metadata.ID, packed, p.mailbox))
		}
	}
	return out, nil
}

// mail with a report (RFC 7489 section 7.2.1.1). That it passes DMARC itself is up to the domain of report_from: SPF, or
// a key of dkimsign.
func (a *Auth) mail(now time.Time, c *account, id string, packed []byte, to address.Mailbox) sdk.Spawn {
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\r\n", args...) }
	begin, end := c.period()
	name := fmt.Sprintf("%s!%s!%d!%d!%s.xml.gz", a.ReportFrom.Domain, c.domain, begin, end, localPart(id))
	boundary := "=_dmarc_" + localPart(id)
	line("From: <%s>", a.ReportFrom)
	line("To: <%s>", to)
	line("Subject: Report Domain: %s\r\n Submitter: %s\r\n Report-ID: <%s>", c.domain, a.ReportFrom.Domain, id)
	line("Date: %s", now.UTC().Format("Mon, 2 Jan 2006 15:04:05 -0700"))
	line("Message-ID: <%s.%s>", hexOf(to.Key())[:8], id)
	line("Auto-Submitted: auto-generated")
	line("MIME-Version: 1.0")
	line("Content-Type: multipart/mixed; boundary=\"%s\"", boundary)
	line("")
	line("--%s\r\nContent-Type: text/plain; charset=us-ascii\r\n", boundary)
	line("This is a DMARC aggregate report (RFC 7489) of %s\r\nabout mail in the name of %s\r\non %s (UTC).\r\n",
		a.ReportFrom.Domain, c.domain, c.day.Format(time.DateOnly))
	line("--%s\r\nContent-Type: application/gzip; name=\"%s\"\r\nContent-Transfer-Encoding: base64", boundary, name)
	line("Content-Disposition: attachment;\r\n filename=\"%s\"\r\n", name)
	for text := base64.StdEncoding.EncodeToString(packed); text != ""; {
		n := min(len(text), 76) // RFC 2045 section 6.8
		line("%s", text[:n])
		text = text[n:]
	}
	line("--%s--", boundary)
	return sdk.Spawn{Sender: *a.ReportFrom, Recipients: []address.Mailbox{to}, Before: b.Bytes()}
}

func localPart(id string) string {
	local, _, _ := strings.Cut(id, "@")
	return local
}

func hexOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// period in seconds since 1970: the first and the last of the day.
func (c *account) period() (begin, end int64) {
	return c.day.Unix(), c.day.AddDate(0, 0, 1).Unix() - 1
}

// feedback is the report (RFC 7489 appendix C).
type feedback struct {
	XMLName  xml.Name `xml:"feedback"`
	Version  string   `xml:"version"`
	Metadata struct {
		Organization string `xml:"org_name"`
		Email        string `xml:"email"`
		ID           string `xml:"report_id"`
		Begin        int64  `xml:"date_range>begin"`
		End          int64  `xml:"date_range>end"`
	} `xml:"report_metadata"`
	Policy struct {
		Domain     string `xml:"domain"`
		DKIM       string `xml:"adkim"`
		SPF        string `xml:"aspf"`
		Policy     string `xml:"p"`
		Subdomains string `xml:"sp"`
		Percent    int    `xml:"pct"`
		Options    string `xml:"fo,omitempty"`
	} `xml:"policy_published"`
	Records []feedbackRecord `xml:"record"`
}

type feedbackRecord struct {
	IP          string          `xml:"row>source_ip"`
	Count       int64           `xml:"row>count"`
	Evaluated   feedbackOutcome `xml:"row>policy_evaluated"`
	Identifiers struct {
		MailFrom string `xml:"envelope_from"`
		From     string `xml:"header_from"`
	} `xml:"identifiers"`
	Signatures []feedbackSignature `xml:"auth_results>dkim"`
	SPF        feedbackSPF         `xml:"auth_results>spf"`
}

type feedbackOutcome struct {
	Disposition string           `xml:"disposition"`
	DKIM        string           `xml:"dkim"`
	SPF         string           `xml:"spf"`
	Reasons     []feedbackReason `xml:"reason"`
}

type feedbackReason struct {
	Type    string `xml:"type"`
	Comment string `xml:"comment"`
}

type feedbackSignature struct {
	Domain   string `xml:"domain"`
	Selector string `xml:"selector"`
	Result   string `xml:"result"`
}

type feedbackSPF struct {
	Domain string `xml:"domain"`
	Scope  string `xml:"scope"`
	Result string `xml:"result"`
}

// newFeedback has an id that is the same if the event comes again.
func (a *Auth) newFeedback(c *account, record *dmarcRecord) *feedback {
	f := &feedback{Version: "1.0"}
	keys := ""
	for _, row := range c.rows {
		keys += row.Key + "\n"
		f.Records = append(f.Records, newRecord(row.Value))
	}
	f.Metadata.Organization, f.Metadata.Email = a.ReportFrom.Domain, a.ReportFrom.String()
	f.Metadata.ID = hexOf(a.host + "\n" + keys)[:24] + "@" + a.ReportFrom.Domain
	f.Metadata.Begin, f.Metadata.End = c.period()
	p := &f.Policy
	p.Domain, p.Policy, p.Subdomains, p.Percent, p.Options = c.domain, record.policy, record.subdomains, record.percent, clip(record.options)
	p.DKIM, p.SPF = mode(record.strictDKIM), mode(record.strictSPF)
	return f
}

// mode of alignment.
func mode(strict bool) string {
	if strict {
		return "s"
	}
	return "r"
}

func newRecord(r aggregate) feedbackRecord {
	out := feedbackRecord{
		IP: r.IP, Count: r.Count, Evaluated: feedbackOutcome{Disposition: r.Disposition, DKIM: r.DKIM, SPF: r.SPF},
		SPF: feedbackSPF{r.SPFDomain, r.SPFScope, r.SPFResult},
	}
	out.Identifiers.MailFrom, out.Identifiers.From = r.MailFrom, r.From
	if r.Override != "" {
		out.Evaluated.Reasons = []feedbackReason{{r.Override, r.Comment}}
	}
	for _, s := range r.Signatures {
		out.Signatures = append(out.Signatures, feedbackSignature(s))
	}
	return out
}

// packed is the XML document in gzip.
func (f *feedback) packed() ([]byte, error) {
	text, err := xml.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("writing a DMARC report: %w", err)
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(append([]byte(xml.Header), text...)); err != nil {
		return nil, fmt.Errorf("packing a DMARC report: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("packing a DMARC report: %w", err)
	}
	return b.Bytes(), nil
}
