package sdk

import (
	"bytes"
	"crypto/sha256"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// eventFor recipients, as a handler gets it.
func eventFor(kind EventKind, recipients ...string) *Event {
	envelope := &agentpb.Envelope{Id: "S.1"}
	for i, r := range recipients {
		envelope.Recipients = append(envelope.Recipients, &agentpb.Recipient{Index: uint32(i), Address: []byte(r)})
	}
	return eventOf(&agentpb.Event{Kind: kind, Envelope: envelope})
}

// eventOf the protocol, as a handler gets it.
func eventOf(p *agentpb.Event) *Event {
	octets, err := proto.Marshal(p)
	if err != nil {
		panic(err)
	}
	event, err := parseEvent(octets)
	if err != nil {
		panic(err)
	}
	c := &eventContext{event: event, generation: &generation{instance: "label"}}
	e := new(Event)
	e.fill(c)
	return e
}

func answerOf(t *testing.T, v Verdict, e *Event) *agentpb.Answer {
	t.Helper()
	a, err := v.answer(e)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mailbox(s string) address.Mailbox {
	m, err := address.Parse(s)
	if err != nil {
		panic(err)
	}
	return m
}

// kindsFor is the verdict of each recipient, as a host reads the answer.
func kindsFor(a *agentpb.Answer, n int) string {
	var all []string
	for i := range n {
		kind := "none"
		for _, v := range a.GetVerdicts() {
			if len(v.Recipients) == 0 || slices.Contains(v.Recipients, uint32(i)) {
				kind = strings.ToLower(strings.TrimPrefix(v.Kind.String(), "VERDICT_KIND_"))
				break
			}
		}
		all = append(all, kind)
	}
	return strings.Join(all, " ")
}

// Every recipient gets a verdict, and narrowing to nobody never becomes all.
func TestNarrowing(t *testing.T) {
	e := eventFor(OnEndOfData, "A@x.example", "b@x.example", "c@x.example")
	a, b, c := mailbox("a@x.example"), mailbox("b@x.example"), mailbox("c@X.example")
	reject := Reject(550, "5.7.1", "no").Edit(AddHeader("X", "y"))
	for name, test := range map[string]struct {
		v     Verdict
		want  string
		edits int
	}{
		"all":            {reject, "reject reject reject", 1},
		"for":            {reject.For(a, c), "reject continue reject", 1},
		"for nobody":     {reject.For(mailbox("z@x.example")), "continue continue continue", 0},
		"for no mailbox": {reject.For(), "continue continue continue", 0},
		"all but":        {reject.ForAllBut(b), "reject continue reject", 1},
		"all but none":   {reject.ForAllBut(), "reject reject reject", 1},
		"all but all":    {reject.ForAllBut(a, b, c), "continue continue continue", 0},
		"by recipient":   {reject.ForRecipients(EnvelopeRecipient{Index: 1}), "continue reject continue", 1},
		"by none":        {reject.ForRecipients(), "continue continue continue", 0},
		"per recipient":  {PerRecipient(reject.For(a), Quarantine().For(b)), "reject quarantine continue", 1},
		"per, last all":  {PerRecipient(reject.For(a), Quarantine()), "reject quarantine quarantine", 1},
		"per, every one": {PerRecipient(reject.For(a), Quarantine().ForAllBut(a)), "reject quarantine quarantine", 1},
	} {
		got := answerOf(t, test.v, e)
		if kinds := kindsFor(got, 3); kinds != test.want || len(got.Edits) != test.edits {
			t.Errorf("%s: %s with %d edits, want %s with %d", name, kinds, len(got.Edits), test.want, test.edits)
		}
	}
}

// A verdict that is kept and built upon twice stays what it was.
func TestVerdictsAreValues(t *testing.T) {
	base := Continue().Stamp("a", "1").Write()
	one, two := base.Stamp("b", "2"), base.Stamp("c", "3")
	e := eventFor(OnEndOfData, "a@x.example")
	for v, want := range map[*Verdict]int{&base: 1, &one: 2, &two: 2} {
		if got := answerOf(t, *v, e); len(got.Stamps) != want {
			t.Errorf("%d stamps, want %d", len(got.Stamps), want)
		}
	}
	if got := answerOf(t, one, e); got.Stamps[1].Name != "b" {
		t.Errorf("stamps %v", got.Stamps)
	}
}

func TestStampsLastAsLongAsTheyCan(t *testing.T) {
	for kind, want := range map[EventKind]Scope{
		OnConnect: InSession, OnEhlo: InSession, OnReject: InSession, OnMail: InMessage, OnRcpt: InMessage, OnSubmitted: InMessage,
	} {
		if got := answerOf(t, Continue().Stamp("a", "1"), eventFor(kind)); got.Stamps[0].Scope != want {
			t.Errorf("%s: %v", EventName(kind), got.Stamps[0].Scope)
		}
	}
	got := answerOf(t, Continue().StampRecipient(EnvelopeRecipient{Index: 3}, "a", "1").StampSession("b", "2"), eventFor(OnRcpt))
	if got.Stamps[0].Recipient != 3 || got.Stamps[0].Scope != ForRecipient || got.Stamps[1].Scope != InSession {
		t.Errorf("stamps %v", got.Stamps)
	}
}

type count struct {
	N    int64 `json:"n"`
	Text string
}

func TestWrites(t *testing.T) {
	r := &Registrar{}
	table := UseTable[count](r, "t", Key(Recipient))
	r.subscription(OnEndOfData)
	p := proto.CloneOf(eventFor(OnEndOfData, "a@x.example", "b@x.example").Proto())
	p.Rows = []*agentpb.Row{
		{Table: "t", Key: []byte("a@x.example"), Recipient: 0},
		{Table: "t", Key: []byte("b@x.example"), Recipient: 1, Found: true, Value: []byte(`{"n":7}`), CreatedUnixNanos: 1e18},
	}
	e := eventOf(p)
	second := EnvelopeRecipient{Index: 1}
	if _, known := table.Row(e); known {
		t.Error("the first row is known")
	}
	if row, known := table.RowFor(e, second); !known || row.Value.N != 7 || row.Created.UnixNano() != 1e18 || !row.Expires.IsZero() {
		t.Errorf("row %v", row)
	}
	got := answerOf(t, Continue().Write(
		table.PutIfAbsent(count{N: 1}, time.Minute), table.Add("N", 2, 0).For(second), table.Delete().At("k"),
	), e)
	want := []*agentpb.TableWrite{
		{Table: "t", Key: []byte("a@x.example"), Op: agentpb.TableOp_TABLE_OP_PUT_IF_ABSENT, Value: []byte(`{"n":1,"Text":""}`), TtlMillis: 60_000},
		{Table: "t", Key: []byte("b@x.example"), Op: agentpb.TableOp_TABLE_OP_ADD, Field: "n", Amount: 2},
		{Table: "t", Key: []byte("k"), Op: agentpb.TableOp_TABLE_OP_DELETE},
	}
	for i := range want {
		if !proto.Equal(got.Writes[i], want[i]) {
			t.Errorf("write %v, want %v", got.Writes[i], want[i])
		}
	}
	for name, w := range map[string]Write{
		"no number":   table.Add("Text", 1, 0),
		"no field":    table.Add("Nope", 1, 0),
		"needs a key": UseTable[count](r, "other", Key()).Delete(),
	} {
		if _, err := Continue().Write(w).answer(e); err == nil || !strings.Contains(err.Error(), name[:2]) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := answerOf(t, Continue().Stamp("a", "b").Needs(table.Keys("x", "y")), e); len(got.GetNeed().GetTables()[0].GetKeys()) != 2 || len(got.Stamps)+len(got.Verdicts) > 0 {
		t.Errorf("need %v", got)
	}
}

// What a header edit writes is one field, whatever the text.
func TestEncodeText(t *testing.T) {
	long := strings.Repeat("word ", 40) + strings.Repeat("x", 200)
	for _, text := range []string{"plain", "grüße", "a\r\nBcc: b@x.example", "a\x00b", long, strings.Repeat("ü", 300), "", " ", "=?utf-8?q?x?="} {
		value := encodeText("X-Name", text)
		for i, line := range strings.Split(string(value), "\r\n") {
			if i > 0 && !strings.HasPrefix(line, " ") || strings.ContainsAny(line, "\r\n\x00") {
				t.Errorf("%q: line %q", text, line)
			}
		}
		for _, c := range value {
			if c >= 0x80 {
				t.Errorf("%q: octet %x", text, c)
			}
		}
	}
	if got := (Field{Raw: encodeText("Subject", "grüße an "+strings.Repeat("ü", 100))}).Text(); got != "grüße an "+strings.Repeat("ü", 100) {
		t.Errorf("read back: %q", got)
	}
	if got := (Field{Raw: append([]byte(" "), encodeText("Subject", long)...)}).Text(); got != long {
		t.Errorf("read back: %q", got)
	}
}

func FuzzEncodeText(f *testing.F) {
	f.Add("X-Name", "text\r\nmore")
	f.Add("X", strings.Repeat(" a", 100))
	f.Fuzz(func(t *testing.T, name, text string) {
		for i, line := range bytes.Split(encodeText(name, text), []byte("\r\n")) {
			if bytes.ContainsAny(line, "\r\n\x00") || i > 0 && !bytes.HasPrefix(line, []byte(" ")) {
				t.Fatalf("%q becomes %q", text, encodeText(name, text))
			}
		}
	})
}

func bodyOf(s string) *BodyReader {
	return &BodyReader{size: int64(len(s)), have: int64(len(s)), data: []byte(s)}
}

// assemble a body edit as a host does.
func assemble(t *testing.T, original string, edit *agentpb.BodyEdit) string {
	t.Helper()
	var b strings.Builder
	for _, s := range edit.Segments {
		if r := s.GetOriginal(); r != nil {
			b.WriteString(original[r.Offset : r.Offset+r.Length])
		} else {
			b.Write(s.GetData())
		}
	}
	sum := sha256.Sum256([]byte(b.String()))
	if edit.Size != uint64(b.Len()) || !bytes.Equal(edit.Sha256, sum[:]) {
		t.Errorf("size %d or digest wrong for %q", edit.Size, b.String())
	}
	return b.String()
}

func TestPatch(t *testing.T) {
	const original = "0123456789"
	for want, change := range map[string]func(*Patch){
		"01AB56789":     func(p *Patch) { p.Replace(2, 3, []byte("AB")) },
		"X012Y3456789Z": func(p *Patch) { p.Append([]byte("Z")); p.Insert(3, []byte("Y")); p.Insert(0, []byte("X")) },
		"0123489":       func(p *Patch) { p.Replace(5, 3, nil) },
		"":              func(p *Patch) { p.Replace(0, 10, nil) },
		"new":           func(p *Patch) { p.Insert(2, []byte("lost")); p.ReplaceAll([]byte("new")) },
		"01234AB5678":   func(p *Patch) { p.Insert(5, []byte("A")); p.Insert(5, []byte("B")); p.Replace(9, 1, nil) },
	} {
		p := newPatch(bodyOf(original), Header{})
		change(p)
		edits, err := p.protos(nil)
		if err != nil {
			t.Errorf("%q: %v", want, err)
			continue
		}
		if got := assemble(t, original, edits[0].GetBody()); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for name, change := range map[string]func(*Patch){
		"overlap": func(p *Patch) { p.Replace(0, 5, nil); p.Replace(4, 2, nil) },
		"outside": func(p *Patch) { p.Replace(9, 2, nil) },
		"before":  func(p *Patch) { p.Replace(-1, 2, nil) },
		"huge":    func(p *Patch) { p.Append(make([]byte, maxPatchData+1)) },
	} {
		p := newPatch(bodyOf(original), Header{})
		change(p)
		if _, err := p.protos(nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if edits, err := newPatch(bodyOf(original), Header{}).protos(nil); err != nil || len(edits) != 0 {
		t.Errorf("an empty patch: %v, %v", edits, err)
	}
}

// A body ends with its handler; a goroutine that the handler left behind gets an error and no fault.
func TestBodyEnds(t *testing.T) {
	b := bodyOf("0123456789")
	all, err := io.ReadAll(b.Reader())
	if err != nil || string(all) != "0123456789" {
		t.Fatalf("%q, %v", all, err)
	}
	if n, err := b.ReadAt(make([]byte, 4), 8); n != 2 || err != io.EOF {
		t.Errorf("%d, %v at the end", n, err)
	}
	b.end()
	if _, err := b.ReadAt(make([]byte, 4), 0); err != ErrBodyClosed {
		t.Errorf("%v after the handler", err)
	}
	none := (&bodySource{}).open(nil, nil)
	if _, err := none.ReadAt(make([]byte, 1), 0); err != ErrNoBody {
		t.Errorf("%v without a body", err)
	}
}
