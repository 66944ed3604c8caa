package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/catalog"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/fleet"
	"github.com/posternmail/postern/host/internal/tracking"
)

// catalog of the data directory.
func (a *app) catalog() (*catalog.Catalog, string, error) {
	if a.socket != "" {
		dir := filepath.Dir(a.socket)
		return catalog.In(dir), dir, nil
	}
	dir, err := a.dataDir()
	return catalog.In(dir), dir, err
}

func agentInstallCommand(a *app) *command {
	return &command{
		name: "install", args: "PATH", short: "Put a version of an agent into the catalog, for version = \"...\" and agent upgrade --version.",
		long: "PATH is a program, a .tar.gz or .zip archive of one, or a file:, http: or https: URL of either on this machine or a\n" +
			"local network. An archive holds manifest.json at its top, {\"name\": ..., \"version\": ..., \"program\": ...}. The program is\n" +
			"asked for its name and version in a sandbox. A version that is there never changes. The host need not run.",
		min: 1, max: 1, json: true, file: true,
		run: func(ctx context.Context, args []string) error {
			c, dataDir, err := a.catalog()
			if err != nil {
				return err
			}
			if err := os.MkdirAll(dataDir, 0o750); err != nil {
				return fmt.Errorf("data directory: %w", err)
			}
			e, fresh, err := c.Install(ctx, args[0], a.examine)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(installedOf(e, false))
			}
			did := "installed"
			if !fresh {
				did = "is installed already"
			}
			a.printf("agent %s %s %s, protocol %d, SHA-256 %s\n", printable(e.Plugin), printable(e.Version), did, e.Protocol, e.SHA256)
			return nil
		},
	}
}

// examination is what a program may use up that is asked what it is.
func examination() config.Sandbox {
	return config.Sandbox{Memory: 1 << 30, Files: 1024, Disk: 64 << 20, Nice: 5}
}

// examine implements catalog.Describe.
func (a *app) examine(ctx context.Context, words []string, content string) (d catalog.Described, err error) {
	dir, err := os.MkdirTemp("", "postern-")
	if err != nil {
		return d, fmt.Errorf("folder of the agent: %w", err)
	}
	defer os.RemoveAll(dir)
	limits := examination()
	limits.Read = []string{content}
	manifest, protocol, err := agent.Examine(ctx, agent.Options{
		Spec: config.Agent{Name: "installing", Command: words, Sandbox: limits}, RunDir: dir, Logger: a.logger("agent"),
	})
	if err != nil {
		return d, err
	}
	return catalog.Described{
		Name: manifest.GetName(), Version: manifest.GetVersion(), Protocol: protocol,
		Category: admin.CategoryName(manifest.GetCategory()), Summary: manifest.GetSummary(), SDK: manifest.GetSdk(),
	}, nil
}

// installed is an installed version as it is listed.
type installed struct {
	Plugin    string    `json:"plugin"`
	Version   string    `json:"version"`
	Protocol  int       `json:"protocol"`
	Category  string    `json:"category,omitempty"`
	Summary   string    `json:"summary,omitempty"`
	SDK       string    `json:"sdk,omitempty"`
	SHA256    string    `json:"sha256"`
	Size      int64     `json:"size"`
	Installed time.Time `json:"installed"`
	Source    string    `json:"source"`
	Command   []string  `json:"command"`
	Used      bool      `json:"used"` // it runs, or a host can be told to go back to it
}

func installedOf(e *catalog.Entry, used bool) installed {
	one := installed{
		Plugin: e.Plugin, Version: e.Version, Protocol: e.Protocol, Category: e.Category, Summary: e.Summary, SDK: e.SDK,
		SHA256: e.SHA256, Installed: e.Installed, Source: e.Source, Command: e.Command(), Used: used,
	}
	for _, f := range e.Files {
		one.Size += f.Size
	}
	return one
}

// listInstalled lists the catalog, whether a host runs or not.
func (a *app) listInstalled() error {
	c, dataDir, err := a.catalog()
	if err != nil {
		return err
	}
	entries, broken, err := c.List()
	if err != nil {
		return err
	}
	used, err := fleet.InUse(dataDir)
	if err != nil {
		return err
	}
	list := []installed{}
	for _, e := range entries {
		list = append(list, installedOf(e, used[e.Command()[0]]))
	}
	for _, b := range broken {
		a.note("%s cannot be used: %s", printable(b.Dir), printable(b.Err.Error()))
	}
	if a.json {
		return a.printJSON(list)
	}
	t := columns("AGENT", "VERSION", "PROTOCOL>", "CATEGORY", "SIZE>", "INSTALLED", "USED", "SHA-256")
	for _, one := range list {
		t.row(one.Plugin, one.Version, fmt.Sprint(one.Protocol), orDash(one.Category), tracking.Size(one.Size), stamp(one.Installed),
			map[bool]string{true: "yes", false: "-"}[one.Used], one.SHA256)
	}
	a.list(t, "no versions are installed")
	return nil
}

func agentPruneCommand(a *app) *command {
	var dryRun bool
	return &command{
		name: "prune", short: "Remove the installed versions that nothing uses.",
		long: "Kept are those that run, that the configuration comes to, that were ordered, and the generation before each, for\n" +
			"postern agent rollback.",
		json: true, file: true,
		flags: func(f *flag.FlagSet) { f.BoolVar(&dryRun, "dry-run", false, "only say what would be removed") },
		run: func(ctx context.Context, _ []string) error {
			c, dataDir, err := a.catalog()
			if err != nil {
				return err
			}
			used, err := a.inUse(ctx, dataDir)
			if err != nil {
				return err
			}
			gone, broken, err := c.Prune(ctx, dryRun, func(e *catalog.Entry) bool { return !used[e.Command()[0]] })
			if err != nil {
				return err
			}
			return a.printPruned(gone, broken, dryRun)
		},
	}
}

// inUse are the programs that are noted as used, those that the configuration comes to, and those that run. Where one
// of that cannot be known, nothing is removed.
func (a *app) inUse(ctx context.Context, dataDir string) (map[string]bool, error) {
	used, err := fleet.InUse(dataDir)
	if err != nil {
		return nil, err
	}
	c, found := config.Load(a.config, config.Options{Installed: a.programs.Installed, Context: ctx})
	if found.Errors() {
		return nil, &hinted{a.told(found), "What the configuration needs cannot be known, so nothing is removed."}
	}
	for _, one := range c.Agents {
		if len(one.Command) > 0 {
			used[one.Command[0]] = true
		}
	}
	var running []admin.Agent
	if err := a.get(ctx, "/v1/agents", nil, &running); err != nil && !errors.Is(err, admin.ErrNotRunning) {
		return nil, err
	}
	for _, one := range running {
		if len(one.Command) > 0 {
			used[one.Command[0]] = true
		}
	}
	return used, nil
}

func (a *app) printPruned(gone []*catalog.Entry, broken []catalog.Broken, dryRun bool) error {
	list := []installed{}
	for _, e := range gone {
		list = append(list, installedOf(e, false))
	}
	if a.json {
		return a.printJSON(list)
	}
	did := "removed"
	if dryRun {
		did = "would be removed"
	}
	for _, one := range list {
		a.printf("agent %s %s %s (%s)\n", printable(one.Plugin), printable(one.Version), did, tracking.Size(one.Size))
	}
	for _, b := range broken {
		a.printf("%s %s: %s\n", printable(b.Dir), did, printable(b.Err.Error()))
	}
	if len(gone)+len(broken) == 0 {
		a.printf("nothing is unused\n")
	}
	return nil
}

func agentLockCommand(a *app) *command {
	return &command{
		name: "lock", args: "NAME...", short: "Take what was changed of an agent's program while the host did not run for right.",
		long: "The host starts a program only as it was when it was taken in. It runs: postern agent upgrade NAME does the same there,\n" +
			"between two events.",
		min: 1, max: -1, file: true,
		run: func(ctx context.Context, names []string) error {
			dir, err := a.dataDir()
			if err != nil {
				return err
			}
			var version admin.Version
			if err := a.get(ctx, "/v1/version", nil, &version); !errors.Is(err, admin.ErrNotRunning) {
				if err == nil {
					err = &hinted{errors.New("the host is running"), "There: postern agent upgrade NAME"}
				}
				return err
			}
			for _, name := range slices.Compact(names) {
				if err := fleet.Unlock(dir, name); err != nil {
					return err
				}
				a.printf("agent %s runs from its next start what its program is then\n", printable(name))
			}
			return nil
		},
	}
}
