package pipeline

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/agentpb"
)

// No event is larger than the cap, however many recipients and rows there are; each recipient is shown once to each
// agent, alone and in a stage, and its verdict is heeded.
func TestLargeEventsComeInParts(t *testing.T) {
	const recipients = 3000
	for _, waits := range []bool{false, true} {
		var fakes []*fake
		for i := range 2 {
			sub := everything(onSubmit)
			sub.Waits = waits
			sub.MayChange.Headers, sub.MayChange.Body, sub.MayChange.Envelope, sub.MayChange.Bypass, sub.MayChange.Route = false, false, false, false, false
			sub.MayChange.Tables = nil
			sub.Tables = []*agentpb.TableUse{{Table: "reputation", Key: []*agentpb.KeyPart{{Fact: agentpb.Fact_FACT_RECIPIENT}}}}
			f := newFake(fmt.Sprintf("a%d", i), i, nil, sub)
			f.answer = func(_ context.Context, e *shown) *agentpb.Answer {
				for _, r := range e.Envelope.Recipients {
					if strings.HasPrefix(string(r.Address), "r2999@") && f.name == "a1" {
						return say(&agentpb.Verdict{Kind: agentpb.VerdictKind_VERDICT_KIND_QUARANTINE, Recipients: []uint32{r.Index}})
					}
				}
				return carryOn()
			}
			fakes = append(fakes, f)
		}
		g := newRig(t, fakes...)
		var to []string
		var rows []tables.Row
		for i := range recipients {
			to = append(to, fmt.Sprintf("r%d@here.example", i))
			rows = append(rows, tables.Row{Key: to[i], Value: fmt.Appendf(nil, `{"x":%q}`, strings.Repeat("x", 4000))})
		}
		g.store.Replace("reputation", rows)
		o := g.raise(t, onSubmit, mail(to...))
		total := 0
		for _, m := range o.Mails {
			total += len(m.Recipients)
		}
		if len(g.breaches) > 0 || o.Decision != Continue || total != recipients || len(o.Recipients) != 1 || o.Recipients[2999].Decision != Quarantine {
			t.Errorf("waits %v: %s, %d recipients in %d copies, settled %v, %v", waits, o.Decision, total, len(o.Mails), o.Recipients, g.breaches)
		}
		for _, f := range fakes {
			f.wasShownEach(t, recipients)
		}
	}
}

func (f *fake) wasShownEach(t *testing.T, recipients int) {
	t.Helper()
	seen := map[uint32]int{}
	for _, e := range f.seen {
		if n := proto.Size(e.Event); n > 4<<20 {
			t.Errorf("%s: an event of %d octets", f.name, n)
		}
		if len(e.Rows) != len(e.Envelope.Recipients) {
			t.Errorf("%s: %d rows, %d recipients", f.name, len(e.Rows), len(e.Envelope.Recipients))
		}
		for _, r := range e.Envelope.Recipients {
			seen[r.Index]++
		}
	}
	if len(seen) != recipients {
		t.Errorf("%s was shown %d of %d recipients in %d events", f.name, len(seen), recipients, len(f.seen))
	}
	for i, n := range seen {
		if n != 1 {
			t.Fatalf("%s was shown recipient %d %d times", f.name, i, n)
		}
	}
}

// What agents add to a header block has an end: the next event must have room for it.
func TestHeaderBlockHasABound(t *testing.T) {
	var edits []*agentpb.Edit
	for range 25 {
		edits = append(edits, &agentpb.Edit{Edit: &agentpb.Edit_AddHeader{AddHeader: &agentpb.AddHeader{
			Name: []byte("X-Long"), Value: append(bytes.Repeat([]byte("xxxxxxxx\r\n "), 5000), 'x')}}})
	}
	spawn := &agentpb.Spawn{Recipients: [][]byte{[]byte("j@here.example")},
		Before: []byte("Subject: " + strings.Repeat("x", 1200<<10) + "\r\n\r\n")}
	for name, answer := range map[string]*agentpb.Answer{
		"edits": {Verdicts: carryOn().Verdicts, Edits: edits},
		"spawn": {Verdicts: carryOn().Verdicts, Spawns: []*agentpb.Spawn{spawn}},
	} {
		g := newRig(t, newFake("long", 1, answer, everything(onData)))
		m := mail("r0@here.example")
		o := g.raise(t, onData, m)
		if len(g.breaches) != 1 || o.Decision != Defer || !strings.Contains(g.breaches[0], "header block of more than") || len(m.Header) > 1<<20 {
			t.Errorf("%s: %s, %v", name, o.Decision, g.breaches)
		}
	}
}

// A few octets of an answer can ask for work without end, while a client waits. There is a bound to each kind of it, and
// one less than that is no breach.
func TestAnswersAskForSoMuch(t *testing.T) {
	many := func(n int, add func(a *agentpb.Answer, i int)) *agentpb.Answer {
		a := carryOn()
		for i := range n {
			add(a, i)
		}
		return a
	}
	spawn := func(a *agentpb.Answer, _ int) {
		a.Spawns = append(a.Spawns, &agentpb.Spawn{Recipients: [][]byte{[]byte("a@b.example")}, Before: []byte("A: b\r\n\r\n")})
	}
	original := func(a *agentpb.Answer, i int) {
		spawn(a, i)
		a.Spawns[i].IncludeOriginal = true
	}
	keep := func(a *agentpb.Answer, _ int) { a.Copies = append(a.Copies, &agentpb.KeepCopy{}) }
	write := func(a *agentpb.Answer, _ int) {
		a.Writes = append(a.Writes, &agentpb.TableWrite{Table: "own", Key: []byte("k"), Op: agentpb.TableOp_TABLE_OP_ADD, Field: "n"})
	}
	edit := func(a *agentpb.Answer, _ int) {
		a.Edits = append(a.Edits, &agentpb.Edit{Edit: &agentpb.Edit_RemoveHeader{RemoveHeader: &agentpb.RemoveHeader{Name: []byte("X")}}})
	}
	decide := func(a *agentpb.Answer, _ int) { a.Verdicts = append(a.Verdicts, verdict(kContinue)) }
	name := func(a *agentpb.Answer, _ int) { a.Verdicts[0].Recipients = append(a.Verdicts[0].Recipients, 0) }
	add := func(a *agentpb.Answer, i int) {
		if i == 0 {
			a.Edits = []*agentpb.Edit{{Edit: &agentpb.Edit_Expand{Expand: &agentpb.Expand{}}}}
		}
		e := a.Edits[0].GetExpand()
		e.Addresses = append(e.Addresses, []byte("a@b.example"))
	}
	for what, test := range map[string]struct {
		add  func(a *agentpb.Answer, i int)
		most int
		want string
	}{
		"spawns":    {spawn, 1000, "1001 spawns, at most 1000"},
		"originals": {original, 511, "536957952 octets in spawns, at most 536870912"},
		"copies":    {keep, 100, "101 copies to keep, at most 100"},
		"writes":    {write, 10_000, "10001 table writes, at most 10000"},
		"edits":     {edit, 1008, "1009 edits, at most 1008"},
		"verdicts":  {decide, 101, "103 verdicts, at most 102"},
		"named":     {name, 50_000, "50001 recipients named, at most 50000"},
		"new":       {add, 10_000, "10001 new recipients, at most 10000"},
	} {
		t.Run(what, func(t *testing.T) {
			for more := range 2 {
				if what == "originals" && more == 0 {
					continue // half a gigabyte of files
				}
				f := newFake("a", 1, many(test.most+more, test.add), everything(onSubmit))
				g := newRig(t, f)
				m := mail("r0@here.example", "r1@here.example")
				m.Body = envelope.MemoryBody(bytes.Repeat([]byte("x\r\n"), 1<<20/3))
				g.raise(t, onSubmit, m)
				if got := strings.Join(g.breaches, "; "); more == 1 && got != "a: "+test.want || more == 0 && got != "" {
					t.Errorf("%d: %q, want %q", test.most+more, got, test.want)
				}
			}
		})
	}
}
