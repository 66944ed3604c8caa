package pipeline

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/agentpb"
)

func TestBreaches(t *testing.T) {
	edits := func(list ...*agentpb.Edit) *agentpb.Answer {
		return &agentpb.Answer{Verdicts: carryOn().Verdicts, Edits: list,
			Stamps: []*agentpb.Stamp{{Name: "mark", Value: []byte("1")}}}
	}
	header := func(name, value string) *agentpb.Answer {
		return edits(&agentpb.Edit{Edit: &agentpb.Edit_AddHeader{AddHeader: &agentpb.AddHeader{Name: []byte(name), Value: []byte(value)}}})
	}
	reply := func(k agentpb.VerdictKind, code uint32, enhanced, text string) *agentpb.Answer {
		return say(&agentpb.Verdict{Kind: k, Reply: &agentpb.Reply{Code: code, Enhanced: enhanced, Text: text}})
	}
	body := func(content string, change func(*agentpb.BodyEdit)) *agentpb.Answer {
		sum := sha256.Sum256([]byte(content))
		e := &agentpb.BodyEdit{Size: uint64(len(content)), Sha256: sum[:], Segments: []*agentpb.Segment{{Source: &agentpb.Segment_Data{Data: []byte(content)}}}}
		if change != nil {
			change(e)
		}
		return edits(&agentpb.Edit{Edit: &agentpb.Edit_Body{Body: e}})
	}
	rewrite := func(index uint32, address string) *agentpb.Answer {
		return edits(&agentpb.Edit{Edit: &agentpb.Edit_RewriteRecipient{RewriteRecipient: &agentpb.RewriteRecipient{Index: index, Address: []byte(address)}}})
	}
	stamp := func(s *agentpb.Stamp) *agentpb.Answer {
		return &agentpb.Answer{Verdicts: carryOn().Verdicts, Stamps: []*agentpb.Stamp{s}}
	}
	write := func(w *agentpb.TableWrite) *agentpb.Answer {
		return &agentpb.Answer{Verdicts: carryOn().Verdicts, Writes: []*agentpb.TableWrite{w}}
	}
	spawn := func(before string, recipients ...string) *agentpb.Answer {
		s := &agentpb.Spawn{Before: []byte(before)}
		for _, r := range recipients {
			s.Recipients = append(s.Recipients, []byte(r))
		}
		return &agentpb.Answer{Verdicts: carryOn().Verdicts, Spawns: []*agentpb.Spawn{s}}
	}
	index := uint32(40)
	unknownEdit := &agentpb.Edit{}
	unknownEdit.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 15, protowire.BytesType), []byte("x")))
	many := &agentpb.Answer{Verdicts: carryOn().Verdicts}
	for i := range 20 {
		many.Stamps = append(many.Stamps, &agentpb.Stamp{Name: strings.Repeat("n", i+1), Value: make([]byte, 4096)})
	}
	for name, test := range map[string]struct {
		answer *agentpb.Answer
		want   string
	}{
		"no verdict":                {&agentpb.Answer{}, "no verdict"},
		"verdict without a kind":    {say(&agentpb.Verdict{}), "a verdict without a kind"},
		"unknown verdict":           {say(&agentpb.Verdict{Kind: 99}), "verdict unknown verdict 99 is not allowed at OnEndOfData"},
		"verdict of other events":   {say(verdict(agentpb.VerdictKind_VERDICT_KIND_FAIL)), "verdict fail is not allowed at OnEndOfData"},
		"two verdicts for all":      {say(verdict(kReject), verdict(kDefer)), "two verdicts for all recipients"},
		"two verdicts for one":      {say(verdict(kReject, 0), verdict(kDefer, 0)), "two verdicts for recipient 0"},
		"unknown recipient":         {say(verdict(kReject, 9)), "verdict reject names recipient 9, which does not exist"},
		"code of another class":     {reply(kReject, 450, "", "x"), "verdict reject has reply code 450, not 5xx"},
		"code out of range":         {reply(kReject, 250, "", "x"), "verdict reject has reply code 250, not 400 to 599"},
		"enhanced code disagrees":   {reply(kReject, 550, "4.7.1", "x"), "verdict reject has reply code 550 with enhanced code 4.7.1"},
		"enhanced code of nonsense": {reply(kReject, 550, "5.7", "x"), `verdict reject has enhanced code "5.7"`},
		"line end in a reply":       {reply(kReject, 550, "5.7.1", "x\r\n250 ok"), "verdict reject has a reply that is not printable"},
		"long reply":                {reply(kReject, 550, "5.7.1", strings.Repeat("x", 401)), "verdict reject has a reply of 401 octets, at most 400"},
		"edit of an unknown kind":   {edits(unknownEdit), "an edit of a kind that is not known"},
		"edit of other events":      {edits(&agentpb.Edit{Edit: &agentpb.Edit_Route{Route: &agentpb.Route{Domain: "x.example"}}}), "edit route is not allowed at OnEndOfData"},
		"line end in a header":      {header("X-A", "a\r\nBcc: x"), "a line in header X-A that is not folded"},
		"lone LF in a header":       {header("X-A", "a\n b"), "CR, LF or NUL in header X-A"},
		"NUL in a header":           {header("X-A", "a\x00"), "CR, LF or NUL in header X-A"},
		"empty folded line":         {header("X-A", "a\r\n  \r\n b"), "an empty line in header X-A"},
		"colon in a header name":    {header("X:A", "a"), `header name "X:A"`},
		"long line in a header":     {header("X-A", strings.Repeat("x", 1000)), "a line of 1000 octets in header X-A"},
		"header index out of range": {edits(&agentpb.Edit{Edit: &agentpb.Edit_RemoveHeader{RemoveHeader: &agentpb.RemoveHeader{Name: []byte("To"), Index: &index}}}), "header index 40 of 7"},
		"header of another name":    {edits(&agentpb.Edit{Edit: &agentpb.Edit_ReplaceHeader{ReplaceHeader: &agentpb.ReplaceHeader{Name: []byte("To"), Index: 3}}}), `header 3 is "Subject", not "To"`},
		"wrong digest":              {body("x\r\n", func(e *agentpb.BodyEdit) { e.Sha256[0] ^= 1 }), "edit body has another SHA-256"},
		"wrong size":                {body("x\r\n", func(e *agentpb.BodyEdit) { e.Size = 7 }), "edit body has 3 octets, not 7"},
		"more than its size":        {body("x\r\n", func(e *agentpb.BodyEdit) { e.Size = 1 }), "edit body has more than 1 octets"},
		"lone LF in a body":         {body("x\n.\n", nil), "edit body has a lone CR or LF"},
		"CR at the end of a body":   {body("x\r", nil), "edit body has a lone CR or LF"},
		"range out of the body": {body("", func(e *agentpb.BodyEdit) {
			e.Segments = []*agentpb.Segment{{Source: &agentpb.Segment_Original{Original: &agentpb.Range{Offset: 5, Length: 1 << 63}}}}
		}), "edit body names 9223372036854775808 octets at 5 of 20"},
		"upload that did not come": {body("", func(e *agentpb.BodyEdit) {
			e.Segments = []*agentpb.Segment{{Source: &agentpb.Segment_Uploaded{Uploaded: &agentpb.Upload{Ticket: "t"}}}}
		}), "edit body: there is no answer to have uploads"},
		"segment of an unknown kind":   {body("", func(e *agentpb.BodyEdit) { e.Segments = []*agentpb.Segment{{}} }), "edit body has a segment of an unknown kind"},
		"rewrite of nobody":            {rewrite(9, "a@b.example"), "edit rewrite_recipient names recipient 9, which does not exist"},
		"invalid address":              {rewrite(0, "a@b.example> SIZE=1"), `address "a@b.example> SIZE=1"`},
		"null address":                 {rewrite(0, ""), `address ""`},
		"foreign stamp":                {stamp(&agentpb.Stamp{Name: "auth.spf", Value: []byte("pass")}), `stamp "auth.spf" is shared and not listed in the manifest`},
		"stamp with a bad name":        {stamp(&agentpb.Stamp{Name: "x y", Value: []byte("1")}), `stamp "x y" has a bad name`},
		"large stamp":                  {stamp(&agentpb.Stamp{Name: "x", Value: make([]byte, 4097)}), `stamp "x" has 4097 octets, at most 4096`},
		"stamps of more than 64 KiB":   {many, "stamps of more than 65536 octets"},
		"stamp of nobody":              {stamp(&agentpb.Stamp{Name: "x", Scope: agentpb.Scope_SCOPE_RECIPIENT, Recipient: 9}), `stamp "x" is for recipient 9, which does not exist`},
		"undeclared table":             {write(&agentpb.TableWrite{Table: "other", Key: []byte("k"), Op: 1, Value: []byte("{}")}), `write to table "other" is not declared in the subscription`},
		"table write of nothing":       {write(&agentpb.TableWrite{Table: "own", Key: []byte("k")}), `write to table "own" has an unknown operation`},
		"large row":                    {write(&agentpb.TableWrite{Table: "own", Key: []byte("k"), Op: 1, Value: make([]byte, 4097)}), `write to table "own" has a row of 4097 octets, at most 4096`},
		"row that is no object":        {write(&agentpb.TableWrite{Table: "own", Key: []byte("k"), Op: 1, Value: []byte("[]")}), `write to table "own" has a row that is no JSON object`},
		"need of an undeclared table":  {&agentpb.Answer{Need: &agentpb.Need{Tables: []*agentpb.NeedKeys{{Table: "own"}}}}, `need of table "own", which the subscription does not name`},
		"need beside a verdict":        {&agentpb.Answer{Verdicts: carryOn().Verdicts, Need: &agentpb.Need{}}, "need beside other things"},
		"spawn for nobody":             {spawn("A: b\r\n\r\n"), "spawn has no recipients"},
		"spawn without a header block": {spawn("text", "a@b.example"), "spawn has no header block that an empty line ends"},
		"spawn with a bad header":      {spawn("A: b\r\nnonsense\r\n\r\n", "a@b.example"), "spawn has a header line that is no field"},
		"spawn with a lone LF":         {spawn("A: b\r\n\r\nx\n", "a@b.example"), "spawn has a lone CR or LF"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newFake("a", 1, test.answer, everything(onData))
			g := newRig(t, a)
			m := mail("r0@here.example", "r1@here.example")
			o := g.raise(t, onData, m)
			if len(g.breaches) != 1 || g.breaches[0] != "a: "+test.want {
				t.Errorf("breaches %q, want %q", g.breaches, test.want)
			}
			if o.Decision != Defer || o.Reply.Code != 451 || strings.Contains(o.Reply.Text, "breach") {
				t.Errorf("outcome %+v", o.Verdict)
			}
			if string(m.Header) != sampleHeader || m.Body != m.OriginalBody || len(m.Stamps) > 0 || len(m.Recipients) != 2 || len(g.store.Names()) > 0 {
				t.Error("something of the answer was applied")
			}
			if n := len(o.Steps); n != 1 || !strings.Contains(o.Steps[0].Failure, test.want) {
				t.Errorf("steps %+v", o.Steps)
			}
		})
	}
}

// What the subscription does not declare or the operator does not grant is a breach too.
func TestUndeclaredAndUngranted(t *testing.T) {
	add := &agentpb.Answer{Verdicts: carryOn().Verdicts, Edits: []*agentpb.Edit{{Edit: &agentpb.Edit_AddHeader{AddHeader: &agentpb.AddHeader{Name: []byte("X"), Value: []byte("1")}}}}}
	for name, test := range map[string]struct {
		answer *agentpb.Answer
		change func(*fake)
		want   string
	}{
		"verdict not declared": {say(verdict(kReject)), func(f *fake) { f.subs[0].MayChange.Verdict = false }, "verdict reject is not declared in the subscription"},
		"verdict not granted":  {say(verdict(kReject)), func(f *fake) { f.spec.Grants = []string{"defer"} }, "verdict reject needs the grant reject"},
		"headers not declared": {add, func(f *fake) { f.subs[0].MayChange.Headers = false }, "edit add_header is not declared in the subscription"},
		"headers not granted":  {add, func(f *fake) { f.spec.Grants = []string{} }, "edit add_header needs the grant headers"},
		"tarpit needs nothing": {say(verdict(agentpb.VerdictKind_VERDICT_KIND_TARPIT)), func(f *fake) { f.spec.Grants, f.subs[0].MayChange = []string{}, nil }, ""},
		"own stamp, no grants": {&agentpb.Answer{Verdicts: carryOn().Verdicts, Stamps: []*agentpb.Stamp{{Name: "x"}}}, func(f *fake) { f.spec.Grants = []string{} }, ""},
		"shared stamp, none":   {&agentpb.Answer{Verdicts: carryOn().Verdicts, Stamps: []*agentpb.Stamp{{Name: "scl"}}}, func(f *fake) { f.spec.Grants = []string{} }, `stamp "scl" is shared and needs the grant stamps`},
	} {
		f := newFake("a", 1, test.answer, everything(onData))
		test.change(f)
		g := newRig(t, f)
		g.raise(t, onData, mail("r0@here.example"))
		if got := strings.TrimPrefix(strings.Join(g.breaches, "; "), "a: "); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// Whatever octets an agent sends as its answer: nothing panics, and the mail is still a mail.
func FuzzAnswer(f *testing.F) {
	kinds := []agentpb.EventKind{onConnect, onMail, onRcpt, onHeaders, onData, onSubmit, onResolve, agentpb.EventKind_EVENT_KIND_CATEGORIZED,
		agentpb.EventKind_EVENT_KIND_SCHEDULE, agentpb.EventKind_EVENT_KIND_RSET}
	add := func(kind uint8, a *agentpb.Answer) {
		wire, err := proto.Marshal(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(kind, wire)
	}
	sum := sha256.Sum256([]byte("line one\r\n"))
	index := uint32(1)
	for kind := range kinds {
		add(uint8(kind), carryOn())
		add(uint8(kind), say(verdict(kReject, 0), verdict(kBypass)))
	}
	add(4, &agentpb.Answer{Verdicts: carryOn().Verdicts, Edits: []*agentpb.Edit{
		{Edit: &agentpb.Edit_AddHeader{AddHeader: &agentpb.AddHeader{Name: []byte("X"), Value: []byte("1\r\n 2")}}, Recipients: []uint32{1}},
		{Edit: &agentpb.Edit_ReplaceHeader{ReplaceHeader: &agentpb.ReplaceHeader{Index: 3, Name: []byte("Subject"), Value: []byte(" v")}}},
		{Edit: &agentpb.Edit_RemoveHeader{RemoveHeader: &agentpb.RemoveHeader{Name: []byte("From"), Index: &index}}},
		{Edit: &agentpb.Edit_Body{Body: &agentpb.BodyEdit{Size: 10, Sha256: sum[:], Segments: []*agentpb.Segment{{Source: &agentpb.Segment_Original{Original: &agentpb.Range{Length: 10}}}}}}},
		{Edit: &agentpb.Edit_AddRecipient{AddRecipient: &agentpb.AddRecipient{Address: []byte(`"a b"@c.example`), Notify: []string{"NEVER"}}}},
		{Edit: &agentpb.Edit_RemoveRecipient{RemoveRecipient: &agentpb.RemoveRecipient{Index: 2, Report: &agentpb.Reply{Code: 550}}}},
		{Edit: &agentpb.Edit_RewriteSender{RewriteSender: &agentpb.RewriteSender{}}},
	}, Stamps: []*agentpb.Stamp{{Name: "x", Value: []byte("1")}}, Copies: []*agentpb.KeepCopy{{Reason: "r"}},
		Spawns: []*agentpb.Spawn{{Recipients: [][]byte{[]byte("a@b.example")}, Before: []byte("A: b\r\n\r\n"), IncludeOriginal: true}}})
	add(6, &agentpb.Answer{Verdicts: carryOn().Verdicts, Edits: []*agentpb.Edit{
		{Edit: &agentpb.Edit_Expand{Expand: &agentpb.Expand{Index: 0, Addresses: [][]byte{[]byte("a@b.example")}}}},
		{Edit: &agentpb.Edit_Route{Route: &agentpb.Route{Domain: "x.example"}}}, {Edit: &agentpb.Edit_Fork{Fork: &agentpb.Fork{}}, Recipients: []uint32{1}}}})
	f.Fuzz(func(t *testing.T, kind uint8, wire []byte) {
		k := kinds[int(kind)%len(kinds)]
		answer := &agentpb.Answer{}
		if proto.Unmarshal(wire, answer) != nil {
			return
		}
		sub := everything(k)
		sub.Tables = []*agentpb.TableUse{{Table: "own"}}
		a := newFake("a", 1, answer, sub)
		reads := everything(k)
		reads.Headers = &agentpb.HeaderNeed{All: true}
		p := New(Options{Tables: newMemory()})
		p.SetPlan(plan(t, a, newFake("b", 2, carryOn(), reads)))
		m := mail("r0@here.example", "r1@here.example", "r2@here.example")
		ev := &Event{Kind: k, ID: "e", Mail: m}
		switch k {
		case onConnect, agentpb.EventKind_EVENT_KIND_SCHEDULE:
			ev.Mail = nil
		case onRcpt:
			ev.Recipient = m.Recipients[2]
		}
		o := p.Open(session(), nil).Raise(context.Background(), ev)
		checkOutcome(t, o)
	})
}

// checkOutcome tests that what leaves the pipeline can be stored and sent.
func checkOutcome(t *testing.T, o *Outcome) {
	t.Helper()
	seen := map[int]bool{}
	for _, m := range o.Mails {
		checkMail(t, m)
		for _, r := range m.Recipients {
			if seen[r.Index] || r.Index >= m.NextIndex || r.Address.IsNull() {
				t.Errorf("recipient %+v", r)
			}
			seen[r.Index] = true
		}
	}
	for _, s := range o.Spawns {
		checkMail(t, &envelope.Mail{Header: s.Header, Body: s.Body})
	}
	for _, v := range append([]Verdict{o.Verdict}, values(o.Recipients)...) {
		if v.Decision >= Defer && (v.Reply.Code < 400 || v.Reply.Code > 599 || v.Reply.Enhanced[0] != byte('0'+v.Reply.Code/100) ||
			!isPrintable(v.Reply.Text) || v.Reply.Text == "") {
			t.Errorf("reply %q", v.Reply)
		}
	}
}

func values[K comparable, V any](m map[K]V) (list []V) {
	for _, v := range m {
		list = append(list, v)
	}
	return list
}

func checkMail(t *testing.T, m *envelope.Mail) {
	t.Helper()
	if len(m.Header) > 0 && !bytes.HasSuffix(m.Header, []byte("\r\n")) || bytes.Contains(m.Header, []byte("\r\n\r\n")) ||
		bytes.HasPrefix(m.Header, []byte("\r\n")) || bytes.ContainsRune(m.Header, 0) ||
		bytes.Count(m.Header, []byte("\r\n")) != bytes.Count(m.Header, []byte("\n")) ||
		bytes.Count(m.Header, []byte("\r\n")) != bytes.Count(m.Header, []byte("\r")) {
		t.Errorf("header %q", m.Header)
	}
	if m.Body == nil {
		return
	}
	b, err := io.ReadAll(m.Body.Reader())
	if err != nil || bytes.Count(b, []byte("\r\n")) != bytes.Count(b, []byte("\n")) || bytes.Count(b, []byte("\r\n")) != bytes.Count(b, []byte("\r")) {
		t.Errorf("body %q, error %v", b, err)
	}
}

func FuzzHeaderBlock(f *testing.F) {
	f.Add([]byte(sampleHeader), "X-New", "value")
	f.Add([]byte(" fold first\r\nno colon\r\n folded\r\nA : b\r\n:empty\r\n"), "A", "")
	f.Add([]byte("From: a, b <c@d.example>; (comment \\) ) \"q\\\"\" <x"), "From", "x")
	f.Fuzz(func(t *testing.T, raw []byte, name, value string) {
		b := parseBlock(raw)
		end := 0
		for i, field := range b.fields {
			if field.start < end || field.colon <= field.start || field.end <= field.colon || field.end > len(raw) {
				t.Fatalf("field %d of %q: %+v", i, raw, field)
			}
			end = field.end
			_, _ = b.name(i), b.value(i)
		}
		if from := b.headerFrom(); !from.IsNull() && strings.ContainsAny(from.String(), "\r\n") {
			t.Errorf("from %q", from)
		}
		if checkFieldName([]byte(name)) != "" || checkFieldValue([]byte(name), []byte(value)) != "" {
			return
		}
		edits := headerEdits{first: [][]byte{makeField([]byte(name), []byte(value))}}
		after := parseBlock(edits.apply(b))
		if len(after.fields) != len(b.fields)+1 || !equalName(after.name(0), name) {
			t.Errorf("%d fields, then %d; first %q", len(b.fields), len(after.fields), after.name(0))
		}
	})
}
