package main

import (
	"fmt"
	"strings"

	"github.com/posternmail/postern/sdk/arc"
	"github.com/posternmail/postern/sdk/dkim"
)

// resultsField of RFC 8601.
const resultsField = "Authentication-Results"

// results is the value of Authentication-Results, one line for each result.
func (a *Auth) results(f *findings) string {
	lines := []string{f.spf.line("spf", f.spf.property())}
	if f.senderID != nil {
		lines = append(lines, f.senderID.line("sender-id", senderIDProperty(f.purported)))
	}
	for _, v := range f.signatures {
		lines = append(lines, signatureLine(v))
	}
	if len(f.signatures) == 0 {
		lines = append(lines, "dkim=none")
	}
	lines = append(lines, f.dmarc.line(f.sealer), f.chainLine())
	return a.AuthservID + ";\r\n\t" + strings.Join(lines, ";\r\n\t")
}

func withReason(result, reason string) string {
	if reason == "" {
		return result
	}
	return result + " reason=" + alwaysQuoted(reason)
}

func (r *spfResult) line(method, property string) string {
	return strings.TrimSpace(withReason(method+"="+r.result, r.reason) + " " + property)
}

func (r *spfResult) property() string {
	if r.helo {
		return "smtp.helo=" + quoted(r.domain)
	}
	return "smtp.mailfrom=" + quoted(r.sender)
}

func senderIDProperty(p purported) string {
	if p.field == "" {
		return ""
	}
	return "header." + p.field + "=" + quoted(p.String())
}

func signatureLine(v dkim.Verification) string {
	line := "dkim=" + string(v.Result)
	if v.Bits > 0 {
		line += fmt.Sprintf(" (%d-bit key)", v.Bits)
	}
	line = withReason(line, v.Reason)
	if v.Domain != "" {
		line += "\r\n\t header.d=" + quoted(v.Domain) + " header.i=" + quoted(v.Identity) + " header.s=" + quoted(v.Selector)
		line += "\r\n\t header.a=" + quoted(v.Algorithm) + " header.b=" + quoted(v.Signature[:min(len(v.Signature), 8)])
	}
	return line
}

func (d *dmarcResult) line(sealer string) string {
	line := withReason("dmarc="+d.result, d.reason)
	if d.policy != "" {
		line += " policy.dmarc=" + d.policy
	}
	if sealer != "" {
		line += " policy.arc-sealer=" + quoted(sealer)
	}
	if d.domain != "" {
		line += " header.from=" + quoted(d.domain)
	}
	return line
}

func (f *findings) chainLine() string {
	line := withReason("arc="+string(f.chain.Result), f.chain.Reason)
	if n := len(f.chain.Sets); n > 0 && f.chain.Sets[n-1].Sealer != "" {
		line += fmt.Sprintf(" policy.arc-sets=%d policy.arc-newest=%s", n, quoted(f.chain.Sets[n-1].Sealer))
	}
	if f.client.ip.IsValid() {
		line += " smtp.remote-ip=" + quoted(f.client.ip.String())
	}
	return line
}

// receivedSPF is the value of Received-SPF (RFC 7208 section 9.1).
func (a *Auth) receivedSPF(f *findings) string {
	identity := "mailfrom"
	if f.spf.helo {
		identity = "helo"
	}
	name := strings.ToUpper(f.spf.result[:1]) + f.spf.result[1:]
	line := fmt.Sprintf("%s (%s: %s)\r\n\treceiver=%s; identity=%s;", name, a.host, spfComment[f.spf.result], a.host, identity)
	if f.client.ip.IsValid() {
		line += " client-ip=" + alwaysQuoted(f.client.ip.String()) + ";"
	}
	return line + "\r\n\thelo=" + alwaysQuoted(f.client.helo) + "; envelope-from=" + alwaysQuoted(f.spf.sender)
}

// spfComment says a result in words.
var spfComment = map[string]string{
	resultNone:      "the domain says nothing about its senders",
	"neutral":       "the domain does not say whether this is a sender of its own",
	resultPass:      "the client may send for the domain",
	resultFail:      "the client may not send for the domain",
	resultSoftFail:  "the client probably may not send for the domain",
	resultTempError: "DNS did not answer",
	resultPermError: "the record of the domain is wrong",
}

// summary for the ledger.
func (f *findings) summary() string {
	text := fmt.Sprintf("spf=%s dkim=%s dmarc=%s arc=%s", f.spf.result, f.signature().Result, f.dmarc.result, f.chain.Result)
	if f.senderID != nil {
		text += " sender-id=" + f.senderID.result
	}
	if f.sealer != "" {
		text += " override=" + f.sealer
	}
	return text
}

// maxValue of what strangers wrote, in octets.
const maxValue = 200

func clip(s string) string {
	if len(s) <= maxValue {
		return s
	}
	return strings.ToValidUTF8(s[:maxValue], "") + "..."
}

// quoted is s as a value of a result: as it is where that is safe, else as a quoted string.
func quoted(s string) string {
	plain := s != "" && len(s) <= maxValue
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_.@+/=", c) >= 0) {
			plain = false
		}
	}
	if plain {
		return s
	}
	return alwaysQuoted(s)
}

// alwaysQuoted is s as a quoted string of printable ASCII.
func alwaysQuoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range clip(s) {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r > '~':
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// authservID with which the value of an Authentication-Results field begins; not ok if it cannot be read.
func authservID(raw string) (id string, ok bool) {
	rest, ok := skipComments(raw)
	if !ok || rest == "" {
		return "", false
	}
	if rest[0] == '"' {
		return quotedID(rest)
	}
	if end := strings.IndexAny(rest, "; \t\r\n(/"); end >= 0 { // a slash stood before the version in drafts
		rest = rest[:end]
	}
	return strings.TrimSuffix(rest, "."), rest != ""
}

// skipComments and white space at the start (RFC 5322 section 3.2.2).
func skipComments(s string) (rest string, ok bool) {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && depth > 0:
			i++
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case depth == 0 && strings.IndexByte(" \t\r\n", c) < 0:
			return s[i:], true
		}
	}
	return "", depth == 0
}

func quotedID(s string) (id string, ok bool) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), true
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

// resultIn finds the result of a method in what a sealer wrote, "" if there is none.
func resultIn(results, method string) string {
	for part := range strings.SplitSeq(arc.Bare(results), ";") {
		name, value, found := strings.Cut(part, "=")
		if words := strings.Fields(value); found && len(words) > 0 && strings.EqualFold(strings.TrimSpace(name), method) {
			return strings.ToLower(words[0])
		}
	}
	return ""
}
