package agenttest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/posternmail/postern/sdk/agentpb"
)

// breaches are the reasons for which a host would refuse an answer.
func breaches(sub *agentpb.Subscription, event *agentpb.Event, a *agentpb.Answer, shared []string) []string {
	if a.GetFault() != "" {
		return nil
	}
	c := sub.GetMayChange()
	var all []string
	report := func(bad bool, format string, args ...any) {
		if bad {
			all = append(all, fmt.Sprintf(format, args...))
		}
	}
	report(len(a.GetVerdicts()) == 0, "no verdict")
	for _, v := range a.GetVerdicts() {
		all = append(all, verdictBreaches(c, v)...)
	}
	for _, e := range a.GetEdits() {
		all = append(all, editBreaches(c, e)...)
	}
	for _, s := range a.GetStamps() {
		name := s.GetName()
		report(!slices.Contains(c.GetStamps(), name), "stamp %q is not declared: sdk.MayChange(sdk.Stamps(%q))", name, name)
		report(isShared(name) && !slices.Contains(shared, name), "stamp %q is shared: list it in sdk.Info.SharedStamps", name)
		report(len(s.GetValue()) > 4<<10, "stamp %q is larger than 4 KiB", name)
	}
	for _, w := range a.GetWrites() {
		report(!slices.Contains(c.GetTables(), w.GetTable()), "table %q is not in use at this event", w.GetTable())
		report(len(w.GetValue()) > 4<<10, "a row of table %q is larger than 4 KiB", w.GetTable())
	}
	report(len(a.GetCopies()) > 0 && !c.GetKeepCopy(), "a copy to keep is not declared: sdk.MayKeepCopy")
	report(len(a.GetSpawns()) > 0 && !c.GetSpawn(), "a new message is not declared: sdk.MaySpawn")
	return all
}

// isShared reports whether a stamp has a name of the well-known ones.
func isShared(name string) bool {
	switch name {
	case "scl", "pcl", "srl", "av.status":
		return true
	}
	return strings.HasPrefix(name, "auth.")
}

func verdictBreaches(c *agentpb.Changes, v *agentpb.Verdict) []string {
	var all []string
	switch v.GetKind() {
	case agentpb.VerdictKind_VERDICT_KIND_CONTINUE, agentpb.VerdictKind_VERDICT_KIND_DONE,
		agentpb.VerdictKind_VERDICT_KIND_TARPIT, agentpb.VerdictKind_VERDICT_KIND_UNDETERMINED:
	case agentpb.VerdictKind_VERDICT_KIND_BYPASS:
		if !c.GetBypass() {
			all = append(all, "bypass is not declared: sdk.MayBypass")
		}
	default:
		if !c.GetVerdict() {
			all = append(all, fmt.Sprintf("%s is not declared: sdk.MayChange(sdk.Verdicts)", verdictName(v)))
		}
	}
	return append(all, replyBreaches(v)...)
}

// replyBreaches: the class of the code is that of the verdict, and that of the enhanced code (RFC 3463 section 3).
func replyBreaches(v *agentpb.Verdict) []string {
	r := v.GetReply()
	if r == nil {
		return nil
	}
	var all []string
	class := r.GetCode() / 100
	want := map[agentpb.VerdictKind]uint32{
		agentpb.VerdictKind_VERDICT_KIND_REJECT: 5, agentpb.VerdictKind_VERDICT_KIND_DEFER: 4,
		agentpb.VerdictKind_VERDICT_KIND_FAIL: 5,
	}[v.GetKind()]
	if want != 0 && class != want {
		all = append(all, fmt.Sprintf("code %d of a %s", r.GetCode(), verdictName(v)))
	}
	if e := r.GetEnhanced(); e != "" && !strings.HasPrefix(e, fmt.Sprintf("%d.", class)) {
		all = append(all, fmt.Sprintf("enhanced code %s does not fit code %d", e, r.GetCode()))
	}
	if strings.ContainsAny(r.GetText(), "\r\n\x00") || len(r.GetText()) > 400 {
		all = append(all, "the text of the reply is not one line of at most 400 octets")
	}
	return all
}

func editBreaches(c *agentpb.Changes, e *agentpb.Edit) []string {
	allowed, option, value := true, "", []byte(nil)
	switch e := e.GetEdit().(type) {
	case *agentpb.Edit_AddHeader:
		allowed, option, value = c.GetHeaders(), "sdk.Headers", e.AddHeader.GetValue()
	case *agentpb.Edit_ReplaceHeader:
		allowed, option, value = c.GetHeaders(), "sdk.Headers", e.ReplaceHeader.GetValue()
	case *agentpb.Edit_RemoveHeader:
		allowed, option = c.GetHeaders(), "sdk.Headers"
	case *agentpb.Edit_Body:
		allowed, option = c.GetBody(), "sdk.BodyParts"
	case *agentpb.Edit_Route:
		allowed, option = c.GetRoute(), "sdk.Routes"
	case nil:
		return []string{"an edit that is none"}
	default:
		allowed, option = c.GetEnvelope(), "sdk.Addresses"
	}
	var all []string
	if !allowed {
		all = append(all, fmt.Sprintf("an edit (%T) is not declared: sdk.MayChange(%s)", e.GetEdit(), option))
	}
	if !onlyFolds(value) {
		all = append(all, "a header value with a line end that is no fold, or with NUL")
	}
	return all
}

// onlyFolds: each line end is CRLF followed by a space or tab.
func onlyFolds(value []byte) bool {
	rest := value
	for {
		i := bytes.IndexAny(rest, "\r\n\x00")
		if i < 0 {
			return true
		}
		if !bytes.HasPrefix(rest[i:], []byte("\r\n ")) && !bytes.HasPrefix(rest[i:], []byte("\r\n\t")) {
			return false
		}
		rest = rest[i+2:]
	}
}
