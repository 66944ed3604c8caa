package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/test/rig"
)

// TestLargeGroup: a message to a group of 50,000 members is shown to agents in parts that fit into an event, and reaches
// every member once.
func TestLargeGroup(t *testing.T) {
	t.Parallel()
	const members = 50_000
	h := rig.New(t, plain+`
directory "all" {
  file = "{dir}/directory.json"
}
`+mockAgent("witness", 10, `
    events = ["OnSubmitted", "OnResolved", "OnRouted", "OnCategorized", "OnDelivered"]
    on "OnRouted" {
      stamp = { "seen" = "yes" }
    }`))
	type group struct {
		Address string   `json:"address"`
		Members []string `json:"members"`
	}
	g := group{Address: "everybody@example.org"}
	for i := range members {
		g.Members = append(g.Members, fmt.Sprintf("%s-%05d@members-of-a-long-domain.example", strings.Repeat("n", 40), i))
	}
	text, err := json.Marshal(map[string]any{"groups": []group{g}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.Dir, "directory.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	h.Start()
	reply := h.Greeted().Message("a@sender.example", g.Address, "Subject: to all\r\n\r\nhello\r\n")
	if !strings.HasPrefix(reply, "250 ") {
		t.Fatal(reply)
	}
	got := map[string]int{}
	for deadline := time.Now().Add(3 * time.Minute); len(queued(h)) > 0 && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
	}
	for _, m := range h.Dropped() {
		for line := range strings.SplitSeq(m, "\r\n") {
			if to, found := strings.CutPrefix(line, "X-Receiver: "); found {
				got[to]++
			}
		}
	}
	if len(got) != members {
		t.Errorf("%d of %d members got it", len(got), members)
	}
	for to, n := range got {
		if n != 1 {
			t.Errorf("%s got it %d times", to, n)
		}
	}
	if why := h.MustPostern("why", idOf(t, reply)); !strings.Contains(why, "delivered to 50000 recipients") {
		t.Error(why[:min(len(why), 2000)])
	}
}
