package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// TestJournalingBehindRewriting: an agent before journaling rewrites what leaves and so splits a message to both sides. Each copy has
// a set of its own, whose header is known, so that an archive can tell that one is missing or was altered.
func TestJournalingBehindRewriting(t *testing.T) {
	t.Parallel()
	sink := rig.StartSink(t)
	h := rig.Start(t, internal(sink.Addr)+"accepted_domain \"corp.example.org\" {\n  type = \"internal_relay\"\n}\n"+
		rewriting(rewriteEntries)+strings.Replace(journaling("    rule \"all\" {}"), "priority = 70", "priority = 120", 1))
	scheduled(h, "journaling")
	reported(t, h, sink, ownServer, "ann@corp.example.org", []string{"you@far.example", "bob@corp.example.org"},
		"From: ann@corp.example.org\r\nno field\r\n and its fold\r\nSubject: hello\r\n\r\nhello\r\n", 2)
	h.MustPostern("table", "delete", "schedule", "journaling") // its next turn is now
	h.WaitFor("the manifest", func() bool { return len(journals(sink)) == 3 })
	archive := func(without, change string) string {
		t.Helper()
		dir, err := os.MkdirTemp(h.Dir, "archive")
		if err == nil {
			err = os.Chmod(dir, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		for i, m := range journals(sink) {
			if without == "" || !strings.Contains(m.Content, without) {
				name := filepath.Join(dir, fmt.Sprintf("%d.eml", i))
				writeFile(t, name, strings.Replace(m.Content, change, "From: eve@", 1))
				if err := os.Chmod(name, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		out, _ := h.Postern("agent", "run", "journaling", "--", "verify", dir)
		return out
	}
	for _, c := range []struct{ without, change, want string }{
		{"", "nothing", "2 reports of 2 sets, 1 manifests, 0 other messages"},
		{"Recipient: you@far.example", "nothing", "which a manifest lists"},
		{"Recipient: bob@corp.example.org", "nothing", "which a manifest lists"},
		{"", "From: ann.smith@", "altered: header"},
		{"", "From: ann@", "altered: header"},
	} {
		if out := archive(c.without, c.change); !strings.Contains(out, c.want) {
			t.Errorf("without %q, changed %q:\n%s", c.without, c.change, out)
		}
	}
	for _, m := range journals(sink) {
		if strings.Contains(m.Content, "header=none") {
			t.Errorf("the header is not known:\n%s", m.Content)
		}
	}
}
