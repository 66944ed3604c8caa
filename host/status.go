package host

import (
	"context"
	"net"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/pipeline"
)

// adminDeps shows the parts of the host to the control socket.
func (h *Host) adminDeps() admin.Deps {
	agents, q := admin.Agents(h.agents.Listed), h.queue.Load()
	h.metrics.SetSource(admin.MetricsSource{
		Version: h.Version, Queue: q, Agents: agents.List, Dropped: h.ledger.Dropped, Listens: h.listeners,
	})
	return admin.Deps{
		Info:       admin.Info{Version: h.Version, Name: h.Config.Host.Name, Config: h.Path, DataDir: h.Config.Host.DataDir, Started: h.started},
		Queue:      releasing{q, h.occasions},
		Agents:     agents,
		Operator:   h,
		Pipeline:   func() []pipeline.EventPlan { return h.pipeline.Plan().Describe() },
		Tables:     h.tables,
		Ledger:     h.ledger,
		Listeners:  h.listeners,
		Effective:  func() any { return h.cfg().Effective() },
		Health:     func() (degraded, drift []string) { return append(h.degraded(), h.agents.Degraded()...), h.drift() },
		Postmaster: h.Config.Host.Postmaster,
		LookupMX: func(ctx context.Context, domain string) ([]*net.MX, error) {
			return net.DefaultResolver.LookupMX(ctx, domain)
		},
		Metrics: h.metrics,
		Process: h,
		Logger:  h.Logger,
	}
}

// listeners lists every address that mail is taken on.
func (h *Host) listeners() (out []admin.Listener) {
	list := h.connectors.Load()
	if list == nil {
		return nil
	}
	for _, c := range *list {
		spec, stats := c.Config(), c.Stats()
		for _, addr := range c.Addrs() {
			out = append(out, admin.Listener{
				Connector: spec.Name, Address: addr.String(), Permissions: spec.Permissions, TLS: encryption(spec),
				Connections: stats.Current, Accepted: stats.Total, Refused: stats.Refused,
			})
		}
	}
	return out
}

func encryption(c config.ReceiveConnector) string {
	switch {
	case c.ImplicitTLS:
		return "implicit"
	case c.RequireTLS:
		return "required"
	case c.TLS != "":
		return "starttls"
	}
	return "none"
}
