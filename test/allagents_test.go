package test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// everyNth is the part of the corpora that CI has the time for; `make corpora` takes them whole.
const everyNth = 5

// sample of the corpora: the names in order, and the messages by name.
func sample(t *testing.T) ([]string, map[string][]byte) {
	t.Helper()
	mails := corpusMail(t)
	names := slices.Sorted(maps.Keys(mails))
	if os.Getenv("POSTERN_CORPORA") == "whole" {
		return names, mails
	}
	var some []string
	for i := 0; i < len(names); i += everyNth {
		some = append(some, names[i])
	}
	return some, mails
}

// TestCorporaThroughAllAgents sends the messages of the corpora through all agents of the sample configuration, with
// nothing that they depend on in reach. Each gets a final answer, and the ledger accounts for each: what was taken is
// delivered or in quarantine, what was refused was refused for a reason that is true of it. No agent died, was late,
// was passed over or broke the protocol.
func TestCorporaThroughAllAgents(t *testing.T) {
	t.Parallel()
	names, mails := sample(t)
	h := rig.Start(t, strings.Replace(isolated(t), "  proxy_from", "  limits {\n    tarpit = \"0s\"\n  }\n  proxy_from", 1))
	const clients = 8
	replies := make([]string, len(names))
	var sending sync.WaitGroup
	for client := range clients {
		sending.Go(func() {
			for i := client; i < len(names); i += clients {
				replies[i] = fromItsOwnSource(h, mails[names[i]], i)
			}
		})
	}
	sending.Wait()
	waitEmpty(h)

	told := byMessage(ledger(h, ""))
	ends := map[string]int{}
	for i, reply := range replies {
		if !strings.HasPrefix(reply, "250 ") && !strings.HasPrefix(reply, "5") {
			t.Errorf("%s: %q", filepath.Base(names[i]), reply)
			continue
		}
		end := endOf(told[idOf(t, reply)])
		ends[end]++
		if taken := strings.HasPrefix(reply, "250 "); taken != slices.Contains([]string{"SEND", "QUARANTINE"}, end) {
			t.Errorf("%s: %q, and by the ledger its end is %q", filepath.Base(names[i]), reply, end)
		}
		if strings.HasPrefix(end, "REJECT") && !justified(mails[names[i]], reply, told[idOf(t, reply)]) {
			t.Errorf("%s: %q, which is not true of it: %+v", filepath.Base(names[i]), reply, told[idOf(t, reply)])
		}
	}
	if n, kept := len(h.Dropped()), len(quarantined(h)); n != ends["SEND"] || kept != ends["QUARANTINE"] {
		t.Errorf("%d messages were delivered and %d are in quarantine; by the ledger it should be %v", n, kept, ends)
	}
	nobodyFailed(t, h, told)
	t.Logf("%d messages: %v", len(names), ends)
}

// fromItsOwnSource sends one message from an address that sent no other one, and answers with the last reply.
func fromItsOwnSource(h *rig.Host, message []byte, i int) string {
	c := from(h, fmt.Sprintf("203.0.%d.%d", i/250, 1+i%250))
	defer c.Conn.Close()
	c.Do("MAIL FROM:<a@sender.example> BODY=8BITMIME", "250")
	c.Do("RCPT TO:<b@example.org>", "250")
	return c.Data(string(message))
}

// byMessage sorts records of the ledger.
func byMessage(records []record) map[string][]record {
	sorted := map[string][]record{}
	for _, r := range records {
		sorted[r.Message] = append(sorted[r.Message], r)
	}
	return sorted
}

// endOf a message by the ledger: the one record that says what became of it, a refusal with who refused and why; "" if
// there is none, all of them if there are more.
func endOf(records []record) string {
	var ends []string
	for _, r := range records {
		switch r.Event {
		case "SEND", "QUARANTINE", "DROP", "FAIL":
			ends = append(ends, r.Event)
		case "REJECT":
			by := r.Agent
			if by == "" {
				by = "the host"
			}
			ends = append(ends, "REJECT by "+by+": "+r.Reason)
		}
	}
	return strings.Join(ends, ", ")
}

// justified reports whether the reason of a refusal can be seen in the message.
func justified(m []byte, reply string, records []record) bool {
	for _, r := range records {
		for _, v := range r.Verdicts {
			if v.Verdict == "reject" {
				return evident(strings.ToLower(string(m)), v)
			}
		}
	}
	return mayRefuse(m, reply) // the host's own
}

// evident looks in a message, in lower case, for what an agent says to have found.
func evident(m string, v verdict) bool {
	_, found, _ := strings.Cut(strings.ToLower(v.Data), "(")
	found = strings.Trim(found, "*)")
	switch v.Reason {
	case "SclAtOrAboveRejectThreshold":
		return v.Data == "9: GTUBE" && strings.Contains(m, strings.ToLower(gtube))
	case "AttachmentName", "AttachmentType":
		return found != "" && strings.Contains(m, found)
	case "OverLimit":
		return strings.Count(m, "content-type:") > 20 // deep, or many
	}
	return false
}

// nobodyFailed wants each agent to be the process that was started, with an answer to every event.
func nobodyFailed(t *testing.T, h *rig.Host, told map[string][]record) {
	t.Helper()
	for name, a := range states(h) {
		if a.State != "up" || a.Restarts > 0 || a.Dead > 0 || a.Breaches > 0 || a.Leaked > 0 || len(a.Failures) > 0 {
			t.Errorf("agent %s: %+v", name, a)
		}
	}
	for id, records := range told {
		for _, r := range records {
			for _, v := range r.Verdicts {
				if v.Failure != "" || v.Verdict == "failed" || v.Verdict == "skipped" || v.Verdict == "undetermined" {
					t.Errorf("%s: %+v", id, v)
				}
			}
		}
	}
}
