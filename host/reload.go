package host

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/categorizer"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/connector"
	"github.com/posternmail/postern/host/internal/delivery"
	"github.com/posternmail/postern/host/internal/fleet"
	"github.com/posternmail/postern/host/internal/handover"
	"github.com/posternmail/postern/host/internal/session"
	"github.com/posternmail/postern/host/internal/users"
)

// This file applies a changed configuration to the running host. What can fail happens first and can be taken back;
// then everything is exchanged. What takes a restart keeps its former value and is shown as drift.

// routes are the parts right of the 250 line that belong to one configuration.
type routes struct {
	config      *config.Config
	categorizer *categorizer.Categorizer
	delivery    *delivery.Delivery
}

// common are the parts left of the 250 line that belong to one configuration.
type common struct {
	certificates *connector.Certificates
	authenticate func(user, password string) (bool, error)
	stop         []func(context.Context) // what watches their files
}

// cfg is the configuration in force.
func (h *Host) cfg() *config.Config {
	if c := h.current.Load(); c != nil {
		return c
	}
	return h.Config
}

// setAgents notes the agents as they run in the configuration in force.
func (h *Host) setAgents(agents []config.Agent) {
	c := *h.cfg()
	c.Agents = agents
	h.current.Store(&c)
}

// Reload implements admin.OperatorControl.
func (h *Host) Reload(ctx context.Context, dryRun bool) (admin.Reload, error) {
	defer h.agents.Hold()()
	out := admin.Reload{Changes: []admin.Change{}, Diagnostics: []config.Diagnostic{}}
	if err := h.mayChange(); err != nil {
		return out, err
	}
	read := time.Now()
	c, found, err := h.Load(ctx, config.Options{Override: h.agents.Override})
	if err != nil {
		return out, err
	}
	out.Diagnostics, out.Findings = append(out.Diagnostics, found.All()...), fleet.Rendered(found)
	if found.Errors() {
		return out, nil
	}
	r := &reload{host: h, before: h.cfg(), after: c, agents: h.agents.Change(c.Agents, fleet.Facts(c, h.Version))}
	r.plan()
	out.Changes = r.changes
	if dryRun {
		return out, nil
	}
	if err := r.apply(ctx); err != nil {
		return out, admin.Refuse("Nothing was changed.", "%v", err)
	}
	out.Applied = true
	h.pending.Store(&r.pending)
	h.readAt.Store(&read)
	h.Logger.Info("configuration was read again", "changes", len(r.changes), "need_restart", len(r.pending))
	return out, nil
}

// reload is one change of configuration on its way.
type reload struct {
	host    *Host
	before  *config.Config
	after   *config.Config
	agents  *fleet.Change
	changes []admin.Change
	pending []string // what takes a restart

	delivery   *delivery.Delivery // nil: stays
	common     *common            // nil: stays
	connectors []*connector.Connector
	fresh      []*connector.Connector // of connectors
	sources    bool                   // directories were changed
}

// restartOnly are the arguments that only a restart applies, by block; "*" is all of a block.
var restartOnly = map[string][]string{
	"host":    {"data_dir", "user", "restart_grace"},
	"metrics": {"*"},
	"ledger":  {"*"},
	"log":     {"json"},
	"queue":   {"max_connections", "max_per_hop"},
	"sandbox": {"*"},
}

// plan says what differs and what is done about it.
func (r *reload) plan() {
	for _, d := range config.Compare(r.before, r.after) {
		if d.Type == "agent" {
			continue // the fleet tells more
		}
		c := admin.Change{Block: d.Title(), Change: d.Change, What: d.What, Source: d.Source, How: howOf(d)}
		late := slices.DeleteFunc(slices.Clone(d.What), func(what string) bool { return !needsRestart(d.Type, what) })
		if len(late) > 0 || len(d.What) == 0 && slices.Contains(restartOnly[d.Type], "*") {
			c.Restart = true
			c.How = "takes a restart of the host"
			if n := len(d.What); n > len(late) {
				c.How = fmt.Sprintf("takes a restart of the host: %v; the rest applies at once", late)
			}
			r.pending = append(r.pending, c.Block)
		}
		r.changes = append(r.changes, c)
	}
	r.changes = append(r.changes, r.agents.List()...)
	r.keepTillRestart()
}

func needsRestart(block, what string) bool {
	return slices.Contains(restartOnly[block], what) || slices.Contains(restartOnly[block], "*")
}

// keepTillRestart gives what takes a restart the value that is in force.
func (r *reload) keepTillRestart() {
	c, b := r.after, r.before
	c.Host.DataDir, c.LogJSON, c.Metrics, c.Ledger = b.Host.DataDir, b.LogJSON, b.Metrics, b.Ledger
	c.Host.RestartGrace, c.Host.User = b.Host.RestartGrace, b.Host.User
	c.Queue.MaxConnections, c.Queue.MaxPerHop = b.Queue.MaxConnections, b.Queue.MaxPerHop
}

// howOf says how a change of a block is applied.
func howOf(d config.Difference) string {
	switch {
	case d.Type == "receive_connector" && d.Change == "added":
		return "listens from now on"
	case d.Type == "receive_connector" && d.Change == "removed":
		return "does not listen any more; its sessions go on to their end"
	case d.Type == "receive_connector":
		return "for new connections"
	case d.Type == "tls":
		return "for new connections"
	case d.Type == "send_connector":
		return "for the next deliveries"
	case d.Type == "directory":
		return "its tables are filled anew"
	}
	return "at once; sessions under way with their next MAIL"
}

// apply does all of it or nothing.
func (r *reload) apply(ctx context.Context) error {
	for _, prepare := range []func(context.Context) error{r.prepareDelivery, r.prepareCommon, r.prepareConnectors, r.prepareDirectories} {
		if err := prepare(ctx); err != nil {
			r.undo()
			return err
		}
	}
	if err := r.agents.Prepare(ctx); err != nil {
		r.undo()
		return err
	}
	r.commit()
	return nil
}

// same reports whether parts of a configuration are the same wherever they stand in the files.
func same[T any](a, b []T, at func(*T) *hcl.Range) bool {
	bare := func(list []T) []T {
		list = slices.Clone(list)
		for i := range list {
			*at(&list[i]) = hcl.Range{}
		}
		return list
	}
	return len(a) == len(b) && reflect.DeepEqual(bare(a), bare(b))
}

func (r *reload) prepareDelivery(context.Context) (err error) {
	b, c := r.before, r.after
	unchanged := same(b.SendConnectors, c.SendConnectors, func(s *config.SendConnector) *hcl.Range { return &s.Range }) &&
		reflect.DeepEqual(b.DNS, c.DNS) && reflect.DeepEqual(b.Host, c.Host) &&
		same(b.ReceiveConnectors, c.ReceiveConnectors, func(s *config.ReceiveConnector) *hcl.Range { return &s.Range })
	if unchanged {
		return nil
	}
	r.delivery, err = delivery.New(delivery.Options{Config: c, Logger: r.host.Logger.Named("delivery")})
	return err
}

func (r *reload) tlsChanged(name string) bool {
	b, c := r.before.TLS[name], r.after.TLS[name]
	b.Range, c.Range = hcl.Range{}, hcl.Range{}
	return b != c
}

func (r *reload) prepareCommon(context.Context) (err error) {
	changed := len(r.before.TLS) != len(r.after.TLS) || r.before.Users != r.after.Users
	for name := range r.after.TLS {
		changed = changed || r.tlsChanged(name)
	}
	if changed {
		r.common, err = r.host.newCommon(r.after)
	}
	return err
}

// newCommon loads what receive connectors share, and has its files watched.
func (h *Host) newCommon(c *config.Config) (*common, error) {
	f := &common{}
	var err error
	if f.certificates, err = connector.LoadCertificates(c, h.Logger.Named("tls")); err != nil {
		return nil, err
	}
	users, err := h.authenticator(c)
	if err != nil {
		return nil, err
	}
	f.stop = append(f.stop, background(f.certificates.Watch))
	if users != nil {
		f.authenticate, f.stop = users.Authenticate, append(f.stop, background(users.Watch))
	}
	return f, nil
}

// authenticator knows the users; nil where nobody may authenticate.
func (h *Host) authenticator(c *config.Config) (*users.File, error) {
	if c.Users.File == "" {
		return nil, nil
	}
	return users.Open(c.Users.File, h.Logger.Named("users"))
}

// deps are what the sessions of a configuration share.
func (h *Host) deps(c *config.Config, f *common) session.Deps {
	return session.Deps{
		Pipeline: h.pipeline, Store: &h.front, Ledger: h.counted(), Config: c,
		Authenticate: f.authenticate, Logger: h.Logger.Named("smtp"),
	}
}

// newConnector makes a receive connector; it does not listen yet.
func (h *Host) newConnector(c *config.Config, spec config.ReceiveConnector, f *common, sockets connector.Sockets) (*connector.Connector, error) {
	return connector.New(connector.Options{
		Config: spec, Host: c.Host, TLS: f.certificates.Config(spec.TLS), Session: h.deps(c, f), Logger: h.Logger.Named("smtp"),
		Sockets: sockets, Siblings: h.receivers,
	})
}

// commonInForce is what the receive connectors will share.
func (r *reload) commonInForce() *common {
	if r.common != nil {
		return r.common
	}
	return r.host.shared
}

// prepareConnectors opens what is new. A connector of which something has changed is made anew, on the sockets that it
// has.
func (r *reload) prepareConnectors(context.Context) error {
	old := map[string]*connector.Connector{}
	for _, c := range r.host.receivers() {
		old[c.Config().Name] = c
	}
	for _, spec := range r.after.ReceiveConnectors {
		if was := old[spec.Name]; was != nil && !r.connectorChanged(was.Config(), spec) {
			r.connectors = append(r.connectors, was)
			continue
		}
		c, err := r.host.newConnector(r.after, spec, r.commonInForce(), sharing{r.host.Sockets})
		if err != nil {
			return err
		}
		if err := c.Listen(); err != nil {
			return err
		}
		r.connectors, r.fresh = append(r.connectors, c), append(r.fresh, c)
	}
	return nil
}

func (r *reload) connectorChanged(a, b config.ReceiveConnector) bool {
	a.Range, b.Range = hcl.Range{}, hcl.Range{}
	return !reflect.DeepEqual(a, b) || r.tlsChanged(b.TLS) || r.before.Host.Name != r.after.Host.Name
}

func (r *reload) prepareDirectories(context.Context) error {
	at := func(d *config.Directory) *hcl.Range { return &d.Range }
	if same(r.before.Directories, r.after.Directories, at) {
		return nil
	}
	r.sources = true
	return r.host.directory.SetSources(r.after.Directories)
}

// undo takes back what was prepared.
func (r *reload) undo() {
	if r.delivery != nil {
		r.delivery.Close()
	}
	for _, c := range r.fresh {
		c.Retire()
	}
	if r.common != nil {
		r.common.close()
	}
	if r.sources {
		if err := r.host.directory.SetSources(r.before.Directories); err != nil {
			r.host.Logger.Error("the former directories cannot be read again", "error", err)
		}
	}
}

func (f *common) close() {
	for _, stop := range f.stop {
		stop(context.Background())
	}
}

// commit makes everything effective.
func (r *reload) commit() {
	h, c := r.host, r.after
	h.current.Store(c)
	h.pipeline.SetConfig(c.Host, c.AcceptedDomains)
	r.agents.Commit()
	h.setAgents(h.agents.Running())
	r.commitRoutes()
	r.commitConnectors()
	if q := h.queue.Load(); q != nil {
		q.SetConfig(c.Queue)
	}
	h.Logger.SetLevel(hclog.LevelFromString(c.LogLevel))
}

func (r *reload) commitRoutes() {
	h, before := r.host, r.host.routes.Load()
	now := &routes{config: r.after, categorizer: h.newCategorizer(r.after), delivery: before.delivery}
	if r.delivery != nil {
		now.delivery = r.delivery
	}
	h.routes.Store(now)
	if r.delivery != nil {
		before.delivery.Close()
	}
}

func (h *Host) newCategorizer(c *config.Config) *categorizer.Categorizer {
	return categorizer.New(categorizer.Options{
		Pipeline: h.pipeline, Config: c, Tables: h.directory.Tables(), Ledger: h.counted(), Logger: h.Logger.Named("categorizer"),
	})
}

func (r *reload) commitConnectors() {
	h, before := r.host, r.host.receivers()
	for _, c := range r.fresh {
		h.take(c)
	}
	h.connectors.Store(&r.connectors)
	gone := slices.DeleteFunc(slices.Clone(before), func(c *connector.Connector) bool { return slices.Contains(r.connectors, c) })
	for _, c := range gone {
		c.Retire()
	}
	h.leave(gone)
	old := h.shared
	if r.common != nil {
		h.shared = r.common
	}
	deps := h.deps(r.after, h.shared)
	for _, c := range slices.Concat(r.connectors, h.left()) {
		c.SetSession(deps)
	}
	if r.common != nil && old != nil {
		old.close()
	}
}

// take has a connector take connections.
func (h *Host) take(c *connector.Connector) {
	go func() {
		if err := c.Serve(); err != nil {
			h.broken <- fmt.Errorf("receive connector: %w", err)
		}
	}()
}

// leave keeps connectors that do not listen any more until their sessions are over.
func (h *Host) leave(gone []*connector.Connector) {
	h.leaving.Lock()
	defer h.leaving.Unlock()
	for _, c := range append(slices.Clone(h.retired), gone...) {
		if c.Stats().Current == 0 {
			h.retired = slices.DeleteFunc(h.retired, func(other *connector.Connector) bool { return other == c })
			go func() { _ = c.Shutdown(context.Background()) }()
		} else if !slices.Contains(h.retired, c) {
			h.retired = append(h.retired, c)
		}
	}
}

// left are the connectors that do not listen any more and have sessions.
func (h *Host) left() []*connector.Connector {
	h.leaving.Lock()
	defer h.leaving.Unlock()
	return slices.Clone(h.retired)
}

// sharing gives a connector that follows another one, or has the same address, its sockets.
type sharing struct{ from *handover.Listeners }

// Listen implements connector.Sockets.
func (s sharing) Listen(address string) (net.Listener, error) { return s.from.Share(address) }

// drift says how the host differs from its configuration files.
func (h *Host) drift() (out []string) {
	read := h.started
	if at := h.readAt.Load(); at != nil {
		read = *at
	}
	files := []string{h.Path}
	if info, err := os.Stat(h.Path); err == nil && info.IsDir() {
		files, _ = filepath.Glob(filepath.Join(h.Path, "*.hcl")) // fails for a name with brackets, which costs the notice
	}
	for _, file := range files {
		if info, err := os.Stat(file); err == nil && info.ModTime().After(read) {
			out = append(out, file+" was changed after it was read: postern reload applies it")
		}
	}
	if pending := h.pending.Load(); pending != nil {
		for _, block := range *pending {
			out = append(out, block+" was changed: a restart applies it")
		}
	}
	return append(out, h.agents.Drift()...)
}
