package pipeline

import (
	"fmt"

	"github.com/posternmail/postern/sdk/agentpb"
)

// How much one answer may ask for. Octets are bounded where it is received; but a few of them can name work without end:
// messages to be committed, rows to be written, recipients to be looked up, all of it while a client waits for its reply.
const (
	maxSpawns   = 1000
	maxSpawned  = maxNewBody // octets of all of them, the original counted in each that includes it
	maxKept     = 100        // copies in quarantine
	maxNewRcpts = 10_000     // recipients added, expanded to and spawned for
	maxWrites   = 10_000
	maxNamed    = 50_000 // recipients named by verdicts and edits

	// Verdicts and edits: a number, and so many for each recipient that the agent was shown.
	maxVerdicts, maxVerdictsEach = 100, 1
	maxEdits, maxEditsEach       = 1000, 4
)

// checkAmounts tests how much an answer asks for.
func (q *question) checkAmounts() (what, part string) {
	a, shown := q.answer, len(q.audience)
	added, named := addedRecipients(a), namedRecipients(a)
	for _, one := range []struct {
		n, most    int
		what, part string
	}{
		{len(a.GetVerdicts()), maxVerdicts + maxVerdictsEach*shown, "verdicts", breachVerdict},
		{named, maxNamed, "recipients named", breachVerdict},
		{len(a.GetEdits()), maxEdits + maxEditsEach*shown, "edits", breachEdit},
		{len(a.GetCopies()), maxKept, "copies to keep", breachEdit},
		{added, maxNewRcpts, "new recipients", breachEdit},
		{len(a.GetSpawns()), maxSpawns, "spawns", breachSpawn},
		{q.spawnedOctets(), maxSpawned, "octets in spawns", breachSpawn},
		{len(a.GetWrites()), maxWrites, "table writes", breachWrite},
	} {
		if one.n > one.most {
			return fmt.Sprintf("%d %s, at most %d", one.n, one.what, one.most), one.part
		}
	}
	return "", ""
}

// namedRecipients counts the recipients that verdicts and edits are for.
func namedRecipients(a *agentpb.Answer) (n int) {
	for _, v := range a.GetVerdicts() {
		n += len(v.GetRecipients())
	}
	for _, e := range a.GetEdits() {
		n += len(e.GetRecipients())
	}
	return n
}

// addedRecipients counts those that an answer makes.
func addedRecipients(a *agentpb.Answer) (n int) {
	for _, e := range a.GetEdits() {
		n += len(e.GetExpand().GetAddresses())
		if e.GetAddRecipient() != nil {
			n++
		}
	}
	for _, s := range a.GetSpawns() {
		n += len(s.GetRecipients())
	}
	return n
}

// spawnedOctets are what the spawned messages take.
func (q *question) spawnedOctets() (n int) {
	original := 0
	if m := q.draft.mail; m != nil {
		original = len(m.Header)
		if m.Body != nil {
			original += int(m.Body.Size())
		}
	}
	for _, s := range q.answer.GetSpawns() {
		n += len(s.GetBefore()) + len(s.GetAfter())
		if s.GetIncludeOriginal() {
			n += original
		}
	}
	return n
}
