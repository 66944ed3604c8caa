package pipeline

import (
	"maps"
	"slices"
	"strings"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/agentpb"
)

// SharedStamps are the stamps without an agent's prefix. An agent may write them when its manifest lists them.
// docs/protocol.md tells their values.
func SharedStamps() []string { return slices.Clone(sharedStamps[:]) }

// sharedStamps never change.
var sharedStamps = [...]string{
	"scl", "pcl", "srl", "iprl",
	"auth.spf", "auth.dkim", "auth.dmarc", "auth.arc", "auth.senderid", "auth.domain", "auth.results",
	"av.status",
}

// reservedLabel reports whether own stamps of an agent with that label could have the name of a shared stamp or of
// one of the host's.
func reservedLabel(label string) bool {
	start := label + "."
	for _, name := range sharedStamps {
		if strings.HasPrefix(name, start) {
			return true
		}
	}
	return start == stampBypass || start == stampDone
}

func isSharedStamp(name string) bool { return slices.Contains(sharedStamps[:], name) }

// Stamps that the host writes itself. Agents may read them.
const (
	stampBypass  = "bypass." // and a category: the agent whose bypass verdict skips its agents
	stampDone    = "done."   // and an agent: it is not to be called again
	stampSkipped = envelope.StampSkipped
)

// SharedTables are the tables that do not belong to one agent. The value says whether agents may write them; the
// others are filled by the host.
func SharedTables() map[string]bool { return maps.Clone(sharedTables) }

// sharedTables never change.
var sharedTables = map[string]bool{"recipients": false, "groups": false, "safelist": false, "ip-block": true, "reputation": true}

// TableName is the name in the store of a table that the agent calls name.
func TableName(agent, name string) string {
	if _, shared := sharedTables[name]; shared {
		return name
	}
	return agent + "/" + name
}

// Grants an operator may list for an agent. Continue, done, tarpit, own stamps and own tables need none.
// "bypass" is without the categories antivirus and journaling, which have grants of their own.
func Grants() []string {
	return []string{
		"reject", "defer", "disconnect", "discard", "quarantine", "bypass", "bypass_antivirus", "bypass_journaling",
		"headers", "body", "envelope", "stamps", "tables", "keep_copy", "spawn", "route",
	}
}

// categoryName is the word for a category in stamps and texts: "antispam".
func categoryName(c agentpb.Category) string {
	if c == agentpb.Category_CATEGORY_UNSPECIFIED {
		c = agentpb.Category_CATEGORY_OTHER
	}
	return strings.ToLower(strings.TrimPrefix(c.String(), "CATEGORY_"))
}

// bypassGrant is the grant that a bypass of category c needs.
func bypassGrant(c agentpb.Category) string {
	switch c {
	case agentpb.Category_CATEGORY_ANTIVIRUS, agentpb.Category_CATEGORY_JOURNALING:
		return "bypass_" + categoryName(c)
	}
	return "bypass"
}
