package fleet

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/catalog"
	"github.com/posternmail/postern/host/internal/config"
)

// This file decides which program an agent runs, and what its files must be: nothing is started whose content has
// changed since an operator took it in.

// Programs finds and seals the programs of agents. It remembers digests; a nil one works without. Safe for concurrent
// use.
type Programs struct{ known catalog.Sums }

// Sums are the digests that it remembers.
func (p *Programs) Sums() *catalog.Sums {
	if p == nil {
		return nil
	}
	return &p.known
}

// Installed implements config.Options: of the versions that satisfy the constraint the one that is locked, or else the
// newest.
func (p *Programs) Installed(host config.Host, a config.Agent) ([]string, error) {
	lock, err := catalog.ReadLock(host.DataDir)
	if err != nil {
		return nil, err
	}
	c, locked := catalog.In(host.DataDir), ""
	for path := range lock.Of(a.Name).SHA256 {
		if e, err := c.Of(path); err == nil && e != nil && e.Plugin == a.Plugin {
			locked = e.SHA256
		}
	}
	e, err := c.Resolve(a.Plugin, a.Version, locked)
	if err != nil {
		return nil, err
	}
	return e.Command(), nil
}

// Seal implements config.Options: an installed version must be as it was installed, a program of a command as it was
// locked, and a bundled one, which is replaced with the host, as it is now.
func (p *Programs) Seal(host config.Host, a *config.Agent) error {
	if a.SHA256 != nil {
		return nil // an order has sealed it
	}
	if err := p.take(host, a); err != nil || a.Bundled {
		return err
	}
	lock, err := catalog.ReadLock(host.DataDir)
	if err != nil {
		return err
	}
	for path, sum := range lock.Of(a.Name).SHA256 {
		if _, run := a.SHA256[path]; run {
			a.SHA256[path] = sum
		}
	}
	return nil
}

// take seals the program of an agent as it is.
func (p *Programs) take(host config.Host, a *config.Agent) error {
	e, err := catalog.In(host.DataDir).Of(a.Command[0])
	if err != nil {
		return fmt.Errorf("installed version: %w", err)
	}
	if e != nil {
		a.SHA256 = e.Sums()
		return nil
	}
	a.SHA256 = map[string]string{}
	for _, path := range own(a.Command) {
		sum, _, err := p.Sums().Of(path)
		if err != nil {
			return fmt.Errorf("its program cannot be read: %w", err)
		}
		a.SHA256[path] = sum
	}
	return nil
}

// own are the files of a command that are the agent's: the program, and scripts that stand behind it. An interpreter
// with a script behind it is the system's, and changes with its updates.
func own(command []string) []string {
	var scripts []string
	for _, word := range command[1:] {
		if path, err := filepath.Abs(word); err == nil && executes(path) {
			scripts = append(scripts, path)
		}
	}
	if len(scripts) > 0 && interpreter.MatchString(filepath.Base(command[0])) {
		return scripts
	}
	return append(scripts, command[0])
}

var interpreter = regexp.MustCompile(`^(python|perl|ruby|node|deno|java|php|lua|sh|bash|dash|env|dotnet)[0-9.]*$`)

// executes reports whether a path is that of something to run, and not of data.
func executes(path string) bool {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	switch strings.ToLower(filepath.Ext(path)) {
	case ".py", ".pyz", ".js", ".mjs", ".rb", ".pl", ".lua", ".jar", ".php", ".sh", ".dll":
		return true
	}
	return info.Mode().Perm()&0o111 != 0
}

// lock writes down what runs.
func (f *Fleet) lock() {
	dir := f.Config.Host.DataDir
	before, err := catalog.ReadLock(dir)
	if err != nil {
		f.Logger.Error("what runs is not locked", "error", err)
		return
	}
	now := &catalog.Lock{}
	for _, m := range f.Members() {
		if one := lockedAs(m); one != nil && !m.absent {
			now.Agents = append(now.Agents, *one)
		} else if was := before.Of(m.Spec.Name); was.Name != "" && (m.absent || !m.Spec.Enabled) {
			now.Agents = append(now.Agents, was)
		}
	}
	if now.Same(before) {
		return
	}
	if err := now.Write(dir); err != nil {
		f.Logger.Error("what runs is not locked", "error", err)
	}
}

// lockedAs is a member as the lock file has it; nil when it has no program of its own.
func lockedAs(m *Member) *catalog.Locked {
	if m.Line == nil || m.Spec.SHA256 == nil {
		return nil
	}
	return &catalog.Locked{
		Name: m.Spec.Name, Plugin: m.Spec.Plugin, Version: m.Agent.Manifest().GetVersion(), Source: sourceOf(&m.Spec), SHA256: m.Spec.SHA256,
	}
}

// sourceOf says where the program of an agent comes from: "catalog", "bundled" or "command".
func sourceOf(a *config.Agent) string {
	switch {
	case a.Attach != "":
		return "attach"
	case a.Bundled:
		return "bundled"
	case catalog.ContentOf(a.Command) != "":
		return "catalog"
	}
	return "command"
}

// Listed is list with what the catalog has for each agent.
func (f *Fleet) Listed() []admin.Running {
	entries, _, err := catalog.In(f.Config.Host.DataDir).List()
	if err != nil {
		f.Logger.Error("installed versions cannot be listed", "error", err)
	}
	all := f.list()
	for i := range all {
		spec := &all[i].Spec
		all[i].Source = sourceOf(spec)
		for _, e := range entries {
			if e.Plugin == spec.Plugin {
				all[i].Installed = append(all[i].Installed, admin.Installed{
					Version: e.Version, Protocol: e.Protocol, SHA256: e.SHA256, Runs: slices.Equal(e.Command(), spec.Command),
					Allowed: spec.Version != "" && catalog.Satisfies(e.Version, spec.Version),
				})
			}
		}
	}
	return all
}

// InUse are the programs that a host runs or can be told to go back to, by what it has noted.
func InUse(dataDir string) (map[string]bool, error) {
	used := map[string]bool{}
	lock, err := catalog.ReadLock(dataDir)
	if err != nil {
		return nil, err
	}
	for _, one := range lock.Agents {
		for path := range one.SHA256 {
			used[path] = true
		}
	}
	records, err := openRecords(dataDir)
	if err != nil {
		return nil, err
	}
	for _, name := range records.names() {
		for _, command := range records.of(name).commands() {
			used[command[0]] = true
		}
	}
	return used, nil
}

// commands of a record: what runs, what rollback goes back to, what was ordered and what is being tried.
func (r agentRecord) commands() (list [][]string) {
	for _, g := range []*generation{r.Current, r.Previous} {
		if g != nil {
			list = append(list, g.Command)
		}
	}
	orders := []*override{r.Override}
	if r.Trial != nil {
		orders = append(orders, r.Trial.Override)
	}
	for _, o := range orders {
		if o == nil {
			continue
		}
		list = append(list, o.Command)
		if o.Instead != nil {
			list = append(list, o.Instead.Command)
		}
	}
	return slices.DeleteFunc(list, func(command []string) bool { return len(command) == 0 })
}

// Unlock forgets what is locked of an agent, so that the next start of the host takes its program as it is then. It is
// for a host that does not run. The error says when nothing was locked.
func Unlock(dataDir, name string) error {
	lock, err := catalog.ReadLock(dataDir)
	if err != nil {
		return err
	}
	records, err := openRecords(dataDir)
	if err != nil {
		return err
	}
	known := false
	if lock.Of(name).Name != "" {
		known = true
		if err := lock.Without(name).Write(dataDir); err != nil {
			return err
		}
	}
	if o := records.of(name).Override; o != nil && o.SHA256 != nil {
		known = true
		if err := records.change(name, func(r *agentRecord) { r.Override = o.clone(); r.Override.SHA256 = nil }); err != nil {
			return err
		}
	}
	if !known {
		return fmt.Errorf("nothing is locked of agent %q", name)
	}
	return nil
}
