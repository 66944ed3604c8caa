package directory

import (
	"bytes"
	"context"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/address"
)

func openTables(t *testing.T) tables.Store {
	t.Helper()
	s, err := tables.Open(t.TempDir(), tables.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, name, text string, hashed bool) (tables.Store, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	write(t, file, text)
	d := New([]config.Directory{{Name: "corp", File: file, Hashed: hashed}}, openTables(t), hclog.NewNullLogger())
	err := d.Load()
	return d.Tables(), err
}

func mailbox(s string) address.Mailbox {
	m, err := address.Parse(s)
	if err != nil {
		panic(err)
	}
	return m
}

const csvText = `address,aliases,members,safe_senders,blocked_senders
# people
ann@x.example,a@x.example; annie@y.example,,friend@f.example news.example,"spam@s.example @bad.example"
"""bob, jr""@x.example"
Carl@X.example,,,,
all@x.example,everyone@x.example,"ann@x.example;carl@x.example other@z.example",,
@z.example
`

const jsonText = `{
  "recipients": [
    {"address": "ann@x.example", "aliases": ["a@x.example", "annie@y.example"],
     "safe_senders": ["friend@f.example", "news.example"], "blocked_senders": ["spam@s.example", "@bad.example"]},
    {"address": "Carl@X.example"},
    {"address": "@z.example"}
  ],
  "groups": [{"address": "all@x.example", "aliases": ["everyone@x.example"],
    "members": ["ann@x.example", "carl@x.example", "other@z.example"]}]
}`

func TestLookups(t *testing.T) {
	for name, text := range map[string]string{"d.csv": csvText, "d.json": jsonText} {
		t.Run(name, func(t *testing.T) {
			s, err := load(t, name, text, false)
			if err != nil {
				t.Fatal(err)
			}
			for in, want := range map[string]string{
				"ann@x.example": "ann@x.example", "ANN@x.example": "ann@x.example", "a@x.example": "ann@x.example",
				"annie@y.example": "ann@x.example", "carl@x.example": "Carl@x.example", "all@x.example": "all@x.example",
				"everyone@x.example": "all@x.example", "nobody@x.example": "",
			} {
				got, ok := Recipient(s, mailbox(in))
				if ok != (want != "") || got.String() != want {
					t.Errorf("%s is %q %v, want %q", in, got, ok, want)
				}
			}
			members, ok := Group(s, mailbox("all@x.example"))
			if !ok || len(members) != 3 || members[2] != mailbox("other@z.example") {
				t.Errorf("members %v", members)
			}
			if _, ok := Group(s, mailbox("ann@x.example")); ok {
				t.Error("ann is a group")
			}
			for domain, want := range map[string]bool{"x.example": true, "X.Example": true, "y.example": true, "z.example": true, "q.example": false} {
				if Covers(s, domain) != want {
					t.Errorf("covers %s: %v", domain, !want)
				}
			}
			for key, want := range map[string]string{
				"ann@x.example|friend@f.example": `{"list":"safe"}`, "a@x.example|news.example": `{"list":"safe"}`,
				"ann@x.example|spam@s.example": `{"list":"blocked"}`, "ann@x.example|bad.example": `{"list":"blocked"}`,
			} {
				if row, _ := s.Get("safelist", key); string(row.Value) != want {
					t.Errorf("%s is %s, want %s", key, row.Value, want)
				}
			}
		})
	}
}

func TestHashed(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 16)
	h := func(s string) string { return Hash(key, 8, s) }
	text := "# hash-key: " + hex.EncodeToString(key) + "\naddress,aliases,members,safe_senders,blocked_senders\n" +
		h("ann@x.example") + "," + h("a@x.example") + ",," + h("ann@x.example|friend@f.example") + ",\n" +
		h("all@x.example") + ",,ann@x.example bob@x.example,,\n@x.example\n"
	file := filepath.Join(t.TempDir(), "d.csv")
	write(t, file, text)
	store := openTables(t)
	sources := []config.Directory{{Name: "corp", File: file, Hashed: true}}
	d := New(sources, store, hclog.NewNullLogger())
	if err := d.Load(); err != nil {
		t.Fatal(err)
	}
	check := func(s tables.Store) {
		t.Helper()
		if m, ok := Recipient(s, mailbox("A@x.example")); !ok || m != mailbox("A@x.example") {
			t.Errorf("%v %v", m, ok)
		}
		if _, ok := Recipient(s, mailbox("eve@x.example")); ok || !Covers(s, "x.example") {
			t.Error("eve is known or the domain is not")
		}
		if m, ok := Group(s, mailbox("all@x.example")); !ok || len(m) != 2 {
			t.Errorf("%v", m)
		}
		if row, ok := s.Get("safelist", "ann@x.example|friend@f.example"); !ok || row.Key != "ann@x.example|friend@f.example" {
			t.Errorf("%+v", row)
		}
	}
	check(d.Tables())
	if _, ok := store.Get("recipients", "ann@x.example"); ok {
		t.Error("the table holds a plain address")
	}
	// After a restart with a broken file the table is still of use.
	write(t, file, "junk")
	d = New(sources, store, hclog.NewNullLogger())
	if d.Load() == nil {
		t.Error("junk was loaded")
	}
	check(d.Tables())
}

func TestBrokenFiles(t *testing.T) {
	key := "# hash-key: " + strings.Repeat("07", 16) + "\n"
	tests := []struct {
		name, text string
		hashed     bool
		want       string // "line:column: text"
	}{
		{"d.csv", "", false, ":1:1: the first line names the columns"},
		{"d.csv", "name\nx", false, ":1:1: unknown column \"name\""},
		{"d.csv", "address,alias\n", false, ":1:9: unknown column \"alias\""},
		{"d.csv", "aliases\n", false, ":1:1: there is no column \"address\""},
		{"d.csv", "address,address\n", false, ":1:9: column \"address\" is there twice"},
		{"d.csv", "address\nann@x.example\nbob\n", false, ":3:1: \"bob\" is no address"},
		{"d.csv", "address,aliases\nann@x.example,a@x.example b@@x c@x.example\n", false, ":2:27: \"b@@x\" is no address"},
		{"d.csv", "address,members\nall@x.example,ann\n", false, ":2:15: member \"ann\" is no address"},
		{"d.csv", "address,safe_senders\nann@x.example,-bad\n", false, ":2:15: \"-bad\" is neither"},
		{"d.csv", "address\nann@x.example\nANN@x.example\n", false, ":3:1: \"ANN@x.example\" is there already, at "},
		{"d.csv", "address\nann@x.example,b\n", false, ":2:15: more fields than columns"},
		{"d.csv", "address\n\"ann\n", false, ":2:6: extraneous or missing \""},
		{"d.csv", "address\n@-x\n", false, ":2:1: "},
		{"d.csv", "address\n0011223344556677\n", true, ":1:1: a hashed directory names its key"},
		{"d.csv", "# hash-key: 12\naddress\n", true, ":1:1: the hash key is at least"},
		{"d.csv", key + "address\nann@x.example\n", true, ":3:1: \"ann@x.example\" is no hash"},
		{"d.csv", key + "address\n00112233445566\n", true, ":3:1: \"00112233445566\" is no hash"},
		{"d.csv", key + "address\n0011223344556677\n001122334455667788\n", true, ":4:1: this hash has 9 octets, others have 8"},
		{"d.json", "", false, ":1:1: the file ends too early"},
		{"d.json", "[]", false, ":1:1: here is to be an object"},
		{"d.json", "{\n \"people\": []}", false, ":2:2: unknown name \"people\""},
		{"d.json", "{\"recipients\": [\n  {\"address\": 7}]}", false, ":2:15: here is to be a string"},
		{"d.json", "{\"recipients\": [\n  {\"address\": \"bob\"}]}", false, ":2:15: \"bob\" is no address"},
		{"d.json", "{\"recipients\": [\n  {\"adress\": \"bob\"}]}", false, ":2:4: unknown name \"adress\""},
		{"d.json", "{\"recipients\": [\n  {\"aliases\": []}]}", false, ":2:3: \"\" is no address"},
		{"d.json", "{\"recipients\": [{\"address\": \"a@x.example\", \"members\": []}]}", false, ":1:44: unknown name \"members\""},
		{"d.json", "{\"recipients\": [\n}", false, ":2:1: "},
		{"d.json", "{\"recipients\": []} x", false, ":1:20: there is more"},
	}
	for _, tt := range tests {
		_, err := load(t, tt.name, tt.text, tt.hashed)
		if err == nil || !strings.Contains(err.Error(), tt.name+tt.want) || !strings.HasPrefix(err.Error(), `directory "corp": `) {
			t.Errorf("%q: got %v, want %s", tt.text, err, tt.want)
		}
	}
}

func TestEveryMistakeIsTold(t *testing.T) {
	_, err := load(t, "d.csv", "address\na\nb@x.example\nc\n", false)
	if err == nil || !strings.Contains(err.Error(), ":2:1:") || !strings.Contains(err.Error(), ":4:1:") {
		t.Error(err)
	}
}

// syncBuffer is a log to look into.
type syncBuffer chan string

func (b syncBuffer) Write(p []byte) (int, error) { b <- string(p); return len(p), nil }

func TestReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "d.csv")
	write(t, file, "address\nann@x.example\n")
	log := make(syncBuffer, 100)
	d := New([]config.Directory{{Name: "corp", File: file}}, openTables(t), hclog.New(&hclog.LoggerOptions{Output: log}))
	if err := d.Load(); err != nil {
		t.Fatal(err)
	}
	<-log
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { d.Watch(ctx); close(done) }()
	wait := func(text string) {
		t.Helper()
		select {
		case line := <-log:
			if !strings.Contains(line, text) {
				t.Errorf("log says %q, want %q", line, text)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("log does not say %q", text)
		}
	}
	write(t, file, "address\nbob\n")
	wait("d.csv:2:1: \\\"bob\\\" is no address")
	if _, ok := Recipient(d.Tables(), mailbox("ann@x.example")); !ok {
		t.Error("a broken file emptied the table")
	}
	write(t, file, "address\nbob@x.example\n")
	wait("directory loaded")
	_, ann := Recipient(d.Tables(), mailbox("ann@x.example"))
	_, bob := Recipient(d.Tables(), mailbox("bob@x.example"))
	if ann || !bob {
		t.Errorf("ann %v, bob %v", ann, bob)
	}
	cancel()
	<-done
	if len(log) > 0 {
		t.Errorf("log says more: %q", <-log)
	}
}

func TestMissingFile(t *testing.T) {
	d := New([]config.Directory{{Name: "corp", File: "/nonexistent/d.csv"}}, openTables(t), hclog.NewNullLogger())
	if err := d.Load(); err == nil || !strings.Contains(err.Error(), "/nonexistent/d.csv") {
		t.Error(err)
	}
}

func FuzzFiles(f *testing.F) {
	f.Add(csvText, true)
	f.Add(jsonText, false)
	f.Add("# hash-key: 00\n", true)
	f.Fuzz(func(t *testing.T, text string, csv bool) {
		doc := &document{file: "f"}
		var err error
		if csv {
			err = doc.parseCSV([]byte(text))
		} else {
			err = doc.parseJSON([]byte(text))
		}
		if err == nil {
			err = newRows().add(doc)
		}
		if err != nil && !strings.Contains(err.Error(), "f:") {
			t.Errorf("error without a place: %v", err)
		}
	})
}

// Places are right whatever was asked before, and found without reading the file anew for each token.
func TestPlaceInJSON(t *testing.T) {
	p := &jsonParser{data: []byte("ab\n\ncd\ne")}
	for offset, want := range map[int]position{0: {1, 1}, 2: {1, 3}, 3: {2, 1}, 4: {3, 1}, 6: {3, 3}, 8: {4, 2}, 99: {4, 2}, -1: {1, 1}} {
		if got := p.positionOf(offset); got != want {
			t.Errorf("octet %d is at %v, want %v", offset, got, want)
		}
	}
}

// One mailbox has several spellings, and one of a file is as good as another.
func TestSpellings(t *testing.T) {
	spellings := []string{"b\u00fccher.example", "B\u00dcCHER.example", "xn--bcher-kva.example", "XN--BCHER-KVA.EXAMPLE"}
	for _, written := range spellings {
		s, err := load(t, "d.csv", "address,aliases,members,safe_senders\n"+
			"Ann@"+written+",a@"+written+",,friend@"+written+" "+written+"\nall@"+written+",,ann@"+written+",\n", false)
		if err != nil {
			t.Fatal(err)
		}
		for _, asked := range spellings {
			m, ok := Recipient(s, mailbox("a@"+asked))
			if !ok || m.Local != "Ann" {
				t.Errorf("%s in the file: a@%s is %v, %v", written, asked, m, ok)
			}
			if _, ok := Group(s, mailbox("all@"+asked)); !ok || !Covers(s, asked) {
				t.Errorf("%s in the file: no group or domain %s", written, asked)
			}
			for _, sender := range []string{mailbox("friend@" + asked).Key(), address.ASCIIDomain(asked)} {
				if _, ok := s.Get("safelist", mailbox("ann@"+asked).Key()+"|"+sender); !ok {
					t.Errorf("%s in the file: %s is no safe sender", written, sender)
				}
			}
		}
	}
}
