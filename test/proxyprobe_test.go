package test

import (
	"strings"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// TestOpenProxyTestsThatAreForbidden: who turns the tests for open proxies on and forgets the sandbox is told that none can be made, and
// no source counts as tested.
func TestOpenProxyTestsThatAreForbidden(t *testing.T) {
	t.Parallel()
	sink := rig.StartSink(t)
	h := rig.Start(t, filtered(sink.Addr)+protocolanalysis("    reverse_dns = false\n    open_proxy {}"))
	c := from(h, "192.0.2.7")
	c.Do("NOOP", "250")
	c.Do("QUIT", "221")
	waitStatus(h, "agent protocolanalysis works without tests for open proxies since ", "what the agent may reach is said in the sandbox of its block")
	if rows := h.MustPostern("table", "list", "protocolanalysis/proxies"); strings.Contains(rows, "192.0.2.7") {
		t.Errorf("the source counts as tested:\n%s", rows)
	}
}
