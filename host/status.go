package host

import (
	"context"
	"net"
	"os"
	"path/filepath"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/pipeline"
)

// adminDeps shows the parts of the host to the control socket.
func (h *Host) adminDeps() admin.Deps {
	agents := admin.Agents(h.agents.list)
	h.metrics.SetSource(admin.MetricsSource{
		Version: h.Version, Queue: h.queue, Agents: agents.List, Dropped: h.ledger.Dropped, Listens: h.listeners,
	})
	return admin.Deps{
		Info:       admin.Info{Version: h.Version, Name: h.Config.Host.Name, Config: h.Path, DataDir: h.Config.Host.DataDir, Started: h.started},
		Queue:      releasing{h.queue, h.agents},
		Agents:     agents,
		Pipeline:   func() []pipeline.EventPlan { return h.pipeline.Plan().Describe() },
		Tables:     h.tables,
		Ledger:     h.ledger,
		Listeners:  h.listeners,
		Effective:  func() any { return h.Config.Effective() },
		Health:     func() (degraded, drift []string) { return h.agents.degraded(), h.drift() },
		Postmaster: h.Config.Host.Postmaster,
		LookupMX: func(ctx context.Context, domain string) ([]*net.MX, error) {
			return net.DefaultResolver.LookupMX(ctx, domain)
		},
		Metrics: h.metrics,
		Logger:  h.Logger,
	}
}

// drift names the files of the configuration that were changed after the host had read them.
func (h *Host) drift() (changed []string) {
	files := []string{h.Path}
	if info, err := os.Stat(h.Path); err == nil && info.IsDir() {
		files, _ = filepath.Glob(filepath.Join(h.Path, "*.hcl")) // fails for a name with brackets, which costs the notice
	}
	for _, file := range files {
		if info, err := os.Stat(file); err == nil && info.ModTime().After(h.started) {
			changed = append(changed, file+" was changed after the start: a restart applies it")
		}
	}
	return changed
}

// listeners lists every address that mail is taken on.
func (h *Host) listeners() (out []admin.Listener) {
	list := h.connectors.Load()
	if list == nil {
		return nil
	}
	for i, c := range *list {
		spec, stats := h.Config.ReceiveConnectors[i], c.Stats()
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
