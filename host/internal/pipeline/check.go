package pipeline

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// What an answer may hold. An answer that breaks a rule is a breach: nothing of it is applied.
const (
	maxReplyText  = 400
	maxStamp      = 4 << 10
	maxStamps     = 64 << 10 // of a message, and of a session
	maxRow        = 4 << 10
	maxRowKey     = 1 << 10
	maxNeedKeys   = 256
	maxFieldLine  = 998 // RFC 5322 section 2.1.1
	maxFieldValue = 64 << 10
	maxReason     = 200  // of reasons in the ledger, cut beyond
	maxData       = 2000 // of data in the ledger, cut beyond
)

// proposal is an answer that has passed the checks, ready to be applied.
type proposal struct {
	*question
	verdicts []*agentpb.Verdict
	changes  []change
	spawns   []Spawn
	stamps   []stamp
}

// stamp to be written, under its full name.
type stamp struct {
	name      string
	scope     agentpb.Scope
	recipient *envelope.Recipient
	value     []byte
}

// check tests the whole answer of q. The text says what is wrong with it; "" when nothing is.
func (r *run) check(q *question) (p *proposal, what string) {
	p = &proposal{question: q, verdicts: q.answer.GetVerdicts()}
	what, q.broke = q.checkAmounts()
	if what == "" {
		what, q.broke = q.checkVerdicts(), breachVerdict
	}
	if what == "" {
		what, q.broke = r.checkEdits(p), breachEdit
	}
	if what == "" {
		what, q.broke = r.checkSpawns(p), breachSpawn
	}
	if what == "" {
		what, q.broke = r.checkStamps(p), breachStamp
	}
	if what == "" {
		what, q.broke = q.checkWrites(), breachWrite
	}
	return p, what
}

// The parts of an answer that can be a breach, for counts.
const (
	breachVerdict = "verdict"
	breachEdit    = "edit"
	breachSpawn   = "spawn"
	breachStamp   = "stamp"
	breachWrite   = "table write"
	breachNeed    = "need"
)

// checkNeed tests an answer that asks for rows.
func (q *question) checkNeed() string {
	a := q.answer
	if len(a.Verdicts)+len(a.Edits)+len(a.Stamps)+len(a.Writes)+len(a.Spawns)+len(a.Copies) > 0 {
		return "need beside other things"
	}
	if !q.manifest.GetCapabilities().GetNeed() {
		return "need, which the manifest does not list"
	}
	keys := 0
	for _, t := range a.Need.GetTables() {
		if q.use(t.GetTable()) == nil {
			return fmt.Sprintf("need of table %q, which the subscription does not name", t.GetTable())
		}
		keys += len(t.GetKeys())
	}
	if keys > maxNeedKeys {
		return fmt.Sprintf("need of %d keys, at most %d", keys, maxNeedKeys)
	}
	return ""
}

// checkVerdicts tests that there is a verdict, and that no recipient gets two that decide.
func (q *question) checkVerdicts() string {
	if len(q.answer.GetVerdicts()) == 0 {
		return "no verdict"
	}
	var decided map[uint32]bool
	all := false
	for _, v := range q.answer.Verdicts {
		if what := q.checkVerdict(v); what != "" {
			return what
		}
		if !decides(v.GetKind()) {
			continue
		}
		if len(v.GetRecipients()) == 0 {
			if all {
				return "two verdicts for all recipients"
			}
			all = true
		}
		for _, i := range v.GetRecipients() {
			if decided[i] {
				return fmt.Sprintf("two verdicts for recipient %d", i)
			}
			if decided == nil {
				decided = map[uint32]bool{}
			}
			decided[i] = true
		}
	}
	return ""
}

// decides reports whether a verdict of that kind ends the way of its recipients.
func decides(k agentpb.VerdictKind) bool {
	switch k {
	case agentpb.VerdictKind_VERDICT_KIND_CONTINUE, agentpb.VerdictKind_VERDICT_KIND_DONE,
		agentpb.VerdictKind_VERDICT_KIND_TARPIT, agentpb.VerdictKind_VERDICT_KIND_BYPASS:
		return false
	}
	return true
}

func (q *question) checkVerdict(v *agentpb.Verdict) string {
	word := verdictWord(v.GetKind())
	switch {
	case v.GetKind() == agentpb.VerdictKind_VERDICT_KIND_UNSPECIFIED:
		return "a verdict without a kind"
	case !q.rule.verdicts.has(v.GetKind()):
		return fmt.Sprintf("verdict %s is not allowed at %s", word, eventNames[q.kind])
	}
	if what := q.checkMay(v); what != "" {
		return fmt.Sprintf("verdict %s %s", word, what)
	}
	if what := q.checkScope(v); what != "" {
		return fmt.Sprintf("verdict %s %s", word, what)
	}
	if what := q.checkIndexes(v.GetRecipients()); what != "" {
		return fmt.Sprintf("verdict %s %s", word, what)
	}
	if what := checkReply(v); what != "" {
		return fmt.Sprintf("verdict %s %s", word, what)
	}
	return ""
}

// checkMay tests a verdict against the subscription and the operator's grants.
func (q *question) checkMay(v *agentpb.Verdict) string {
	switch v.GetKind() {
	case agentpb.VerdictKind_VERDICT_KIND_BYPASS:
		if !q.may.Bypass {
			return "is not declared in the subscription"
		}
		if _, ok := agentpb.Category_name[int32(v.GetCategory())]; !ok {
			return "has an unknown category"
		}
		if grant := bypassGrant(v.GetCategory()); !q.grants(grant) {
			return "needs the grant " + grant
		}
		return ""
	case agentpb.VerdictKind_VERDICT_KIND_UNDETERMINED:
		return ""
	}
	if !decides(v.GetKind()) || q.rule.fact {
		return ""
	}
	if !q.may.Verdict {
		return "is not declared in the subscription"
	}
	if grant := verdictGrant(v.GetKind()); !q.grants(grant) {
		return "needs the grant " + grant
	}
	return ""
}

// verdictGrant is the grant that a deciding verdict needs; to fail recipients is to reject them later.
func verdictGrant(k agentpb.VerdictKind) string {
	if k == agentpb.VerdictKind_VERDICT_KIND_FAIL {
		k = agentpb.VerdictKind_VERDICT_KIND_REJECT
	}
	return verdictWord(k)
}

func (q *question) checkScope(v *agentpb.Verdict) string {
	scope, mail := v.GetScope(), q.draft.mail
	bypass := v.GetKind() == agentpb.VerdictKind_VERDICT_KIND_BYPASS
	if !bypass && v.GetKind() != agentpb.VerdictKind_VERDICT_KIND_DONE {
		return ""
	}
	switch {
	case scope < 0 || scope > agentpb.Scope_SCOPE_RECIPIENT:
		return "has an unknown scope"
	case scope == agentpb.Scope_SCOPE_SESSION && q.conv.session == nil:
		return "is for a session, and there is none"
	case scope == agentpb.Scope_SCOPE_SESSION && len(v.GetRecipients()) > 0:
		return "is for the session and names recipients"
	case scope != agentpb.Scope_SCOPE_SESSION && mail == nil:
		return "is for a message, and there is none"
	case scope == agentpb.Scope_SCOPE_RECIPIENT && !bypass:
		return "is for recipients; only message and session are possible"
	case scope == agentpb.Scope_SCOPE_RECIPIENT && len(q.audience) == 0:
		return "is for recipients, and there are none"
	case !bypass && len(v.GetRecipients()) > 0:
		return "names recipients"
	}
	return ""
}

// checkIndexes tests that the agent was shown the recipients.
func (q *question) checkIndexes(indexes []uint32) string {
	if len(indexes) > 0 && !q.rule.perRecipient && q.kind != agentpb.EventKind_EVENT_KIND_RCPT {
		return "names recipients, which " + eventNames[q.kind] + " does not have"
	}
	for _, i := range indexes {
		if q.recipient(i) == nil {
			return fmt.Sprintf("names recipient %d, which does not exist", i)
		}
	}
	return ""
}

// recipient finds one of those that the agent was shown; nil when it is not there.
func (q *question) recipient(index uint32) *envelope.Recipient {
	for _, r := range q.audience {
		if r.Index == int(index) {
			return r
		}
	}
	return nil
}

// checkReply tests the reply of a verdict that has one.
func checkReply(v *agentpb.Verdict) string {
	class := 0
	switch v.GetKind() {
	case agentpb.VerdictKind_VERDICT_KIND_REJECT, agentpb.VerdictKind_VERDICT_KIND_FAIL:
		class = 5
	case agentpb.VerdictKind_VERDICT_KIND_DEFER:
		class = 4
	}
	return checkReplyClass(v.GetReply(), class)
}

// checkReplyClass tests a reply; class 0 takes 4 and 5.
func checkReplyClass(reply *agentpb.Reply, class int) string {
	code, enhanced := int(reply.GetCode()), reply.GetEnhanced()
	switch {
	case code != 0 && (code < 400 || code > 599):
		return fmt.Sprintf("has reply code %d, not 400 to 599", code)
	case code != 0 && class != 0 && code/100 != class:
		return fmt.Sprintf("has reply code %d, not %dxx", code, class)
	case enhanced != "" && !isEnhanced(enhanced):
		return fmt.Sprintf("has enhanced code %q", cut(enhanced, 20))
	case enhanced != "" && code != 0 && int(enhanced[0]-'0') != code/100:
		return fmt.Sprintf("has reply code %d with enhanced code %s", code, enhanced)
	case enhanced != "" && class != 0 && int(enhanced[0]-'0') != class:
		return fmt.Sprintf("has enhanced code %s, not %d.x.x", enhanced, class)
	case len(reply.GetText()) > maxReplyText:
		return fmt.Sprintf("has a reply of %d octets, at most %d", len(reply.GetText()), maxReplyText)
	case !isPrintable(reply.GetText()):
		return "has a reply that is not printable"
	}
	return ""
}

// isEnhanced follows status-code of RFC 3463 section 2, for the classes 4 and 5.
func isEnhanced(s string) bool {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || parts[0] != "4" && parts[0] != "5" {
		return false
	}
	for _, p := range parts[1:] {
		if len(p) == 0 || len(p) > 3 || strings.Trim(p, "0123456789") != "" || len(p) > 1 && p[0] == '0' {
			return false
		}
	}
	return true
}

// isPrintable reports whether s is one line of text: UTF-8 without control characters and separators of lines.
func isPrintable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, c := range s {
		if c != ' ' && !unicode.IsGraphic(c) || c == '\u2028' || c == '\u2029' {
			return false
		}
	}
	return true
}

// cut shortens s to at most n octets, at a character's border.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// checkFieldName and checkFieldValue test a header field.
func checkFieldName(name []byte) string {
	if !isName(name) || len(name) > 128 {
		return fmt.Sprintf("header name %q", cut(string(name), 40))
	}
	return ""
}

func checkFieldValue(name, value []byte) string {
	if len(value) > maxFieldValue {
		return fmt.Sprintf("header %s of %d octets, at most %d", name, len(value), maxFieldValue)
	}
	for i, line := range bytes.Split(value, []byte("\r\n")) {
		switch {
		case bytes.ContainsAny(line, "\r\n\x00"):
			return fmt.Sprintf("CR, LF or NUL in header %s", name)
		case i > 0 && (len(line) == 0 || line[0] != ' ' && line[0] != '\t'):
			return fmt.Sprintf("a line in header %s that is not folded", name)
		case i > 0 && len(bytes.TrimLeft(line, " \t")) == 0:
			return fmt.Sprintf("an empty line in header %s", name)
		case len(line)+len(name)+2 > maxFieldLine:
			return fmt.Sprintf("a line of %d octets in header %s", len(line), name)
		}
	}
	return ""
}

// parseAddress reads an address of an answer. The null address is none.
func parseAddress(b []byte) (address.Mailbox, string) {
	m, err := address.Parse(string(b))
	if err != nil || m.IsNull() {
		return m, fmt.Sprintf("address %q", cut(string(b), 80))
	}
	return m, ""
}

// lenientAddress reads an address that the host itself has put into arguments.
func lenientAddress(b []byte) address.Mailbox {
	m, _ := address.Parse(string(b))
	return m
}

// checkStamps tests names, scopes and sizes.
func (r *run) checkStamps(p *proposal) string {
	for _, s := range p.answer.GetStamps() {
		if what := p.stamp(s); what != "" {
			return what
		}
	}
	if len(p.stamps) == 0 {
		return ""
	}
	return r.checkStampsTotal(p)
}

// stamp tests one stamp and finds where it goes.
func (p *proposal) stamp(s *agentpb.Stamp) string {
	full, what := p.checkStamp(s)
	if what == "" {
		what = p.placeStamp(s, full)
	}
	if what != "" {
		what = fmt.Sprintf("stamp %q %s", cut(s.GetName(), 60), what)
	}
	return what
}

func (p *proposal) checkStamp(s *agentpb.Stamp) (full, what string) {
	name := s.GetName()
	full = p.stampName(name)
	switch {
	case !isStampName(name):
		return full, "has a bad name"
	case !patterns(p.may.Stamps).has(name):
		return full, "is not declared in the subscription"
	case full == name && !slices.Contains(p.manifest.GetSharedStamps(), name):
		return full, "is shared and not listed in the manifest"
	case full == name && !p.grants("stamps"):
		return full, "is shared and needs the grant stamps"
	case len(s.GetValue()) > maxStamp:
		return full, fmt.Sprintf("has %d octets, at most %d", len(s.GetValue()), maxStamp)
	}
	return full, ""
}

func isStampName(name string) bool {
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.' && i > 0, c == '_', c == '-':
		default:
			return false
		}
	}
	return len(name) > 0 && len(name) <= 128
}

// placeStamp finds where the stamp goes. A message stamp of an agent that saw only some recipients goes to those.
func (p *proposal) placeStamp(s *agentpb.Stamp, full string) string {
	scope := s.GetScope()
	if scope == agentpb.Scope_SCOPE_UNSPECIFIED {
		scope = agentpb.Scope_SCOPE_MESSAGE
	}
	switch {
	case scope < 0 || scope > agentpb.Scope_SCOPE_RECIPIENT:
		return "has an unknown scope"
	case scope == agentpb.Scope_SCOPE_SESSION && p.conv.session == nil:
		return "is for a session, and there is none"
	case scope == agentpb.Scope_SCOPE_SESSION:
		p.stamps = append(p.stamps, stamp{full, scope, nil, s.GetValue()})
		return ""
	case p.rule.fact:
		return "is not for the session, as those of facts are"
	case p.draft.mail == nil:
		return "is for a message, and there is none"
	case scope == agentpb.Scope_SCOPE_RECIPIENT:
		rcpt := p.recipient(s.GetRecipient())
		if rcpt == nil {
			return fmt.Sprintf("is for recipient %d, which does not exist", s.GetRecipient())
		}
		p.stamps = append(p.stamps, stamp{full, scope, rcpt, s.GetValue()})
		return ""
	case p.partial:
		for _, rcpt := range p.audience {
			p.stamps = append(p.stamps, stamp{full, agentpb.Scope_SCOPE_RECIPIENT, rcpt, s.GetValue()})
		}
		return ""
	}
	p.stamps = append(p.stamps, stamp{full, scope, nil, s.GetValue()})
	return ""
}

// checkStampsTotal bounds what a message and a session carry.
func (r *run) checkStampsTotal(p *proposal) string {
	session, message := stampsSize(r.conv.stamps), 0
	if m := p.draft.mail; m != nil {
		message = stampsSize(m.Stamps)
		for _, rcpt := range m.Recipients {
			message += stampsSize(rcpt.Stamps)
		}
	}
	for _, s := range p.stamps {
		if n := len(s.name) + len(s.value); s.scope == agentpb.Scope_SCOPE_SESSION {
			session += n
		} else {
			message += n
		}
	}
	if max(session, message) > maxStamps {
		return fmt.Sprintf("stamps of more than %d octets", maxStamps)
	}
	return ""
}

func stampsSize(s envelope.Stamps) (n int) {
	for name, value := range s {
		n += len(name) + len(value)
	}
	return n
}

// checkWrites tests table writes.
func (q *question) checkWrites() string {
	for _, w := range q.answer.GetWrites() {
		if what := q.checkWrite(w); what != "" {
			return fmt.Sprintf("write to table %q %s", cut(w.GetTable(), 60), what)
		}
	}
	return ""
}

func (q *question) checkWrite(w *agentpb.TableWrite) string {
	name := w.GetTable()
	writable, shared := sharedTables[name]
	switch {
	case !isStampName(name):
		return "has a bad name"
	case !slices.Contains(q.may.Tables, name):
		return "is not declared in the subscription"
	case shared && !writable:
		return "is not possible: the host fills it"
	case shared && !q.grants("tables"):
		return "needs the grant tables"
	case len(w.GetKey()) == 0 || len(w.GetKey()) > maxRowKey:
		return fmt.Sprintf("has a key of %d octets", len(w.GetKey()))
	}
	return checkRow(w)
}

func checkRow(w *agentpb.TableWrite) string {
	switch w.GetOp() {
	case agentpb.TableOp_TABLE_OP_PUT, agentpb.TableOp_TABLE_OP_PUT_IF_ABSENT:
		switch {
		case len(w.GetValue()) > maxRow:
			return fmt.Sprintf("has a row of %d octets, at most %d", len(w.GetValue()), maxRow)
		case !isObject(w.GetValue()):
			return "has a row that is no JSON object"
		}
		return ""
	case agentpb.TableOp_TABLE_OP_ADD:
		if w.GetField() == "" || len(w.GetField()) > 128 {
			return "adds to no field"
		}
		return ""
	case agentpb.TableOp_TABLE_OP_DELETE:
		return ""
	}
	return "has an unknown operation"
}

func isObject(b []byte) bool {
	b = bytes.TrimLeft(b, " \t\r\n")
	return len(b) > 0 && b[0] == '{' && json.Valid(b)
}
