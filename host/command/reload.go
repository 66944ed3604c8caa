package command

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host"
	"github.com/posternmail/postern/host/internal/admin"
)

func reloadCommand(a *app) *command {
	dryRun := false
	return &command{
		name: "reload", short: "Have the running host read its configuration again and apply what differs.", json: true, host: true,
		long: "What can fail is done first: new agents are started, configured and probed, new addresses are opened. When anything\n" +
			"fails nothing is changed. What only a restart applies is said. SIGHUP does the same.",
		flags: func(f *flag.FlagSet) { f.BoolVar(&dryRun, "dry-run", false, "only show what would change") },
		run: func(ctx context.Context, _ []string) error {
			var r admin.Reload
			if err := a.post(ctx, "/v1/reload", map[string]bool{"dry_run": dryRun}, &r); err != nil {
				return a.findings(err)
			}
			if a.json {
				if err := a.printJSON(r); err != nil {
					return err
				}
			} else {
				a.printReload(&r, dryRun)
			}
			if !r.Applied && !dryRun || hasErrors(&r) {
				return errSilent
			}
			return nil
		},
	}
}

func hasErrors(r *admin.Reload) bool {
	for _, d := range r.Diagnostics {
		if d.Severity == "error" {
			return true
		}
	}
	return false
}

// findings prints what stands in the configuration against an order, and returns the error that is left to say.
func (a *app) findings(err error) error {
	if remote, ok := asRemote(err); ok && remote.Findings != "" {
		a.printLines(remote.Findings)
	}
	return err
}

func (a *app) printLines(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprintln(a.stderr, printable(strings.TrimRight(line, "\n")))
	}
}

func (a *app) printReload(r *admin.Reload, dryRun bool) {
	a.printLines(r.Findings)
	if hasErrors(r) {
		a.note("the configuration has errors; nothing was changed")
		return
	}
	t := columns("BLOCK", "CHANGE", "WHAT", "HOW")
	for _, c := range r.Changes {
		how := c.How
		if c.Restart {
			how = a.paint(red, how)
		}
		t.row(c.Block, c.Change, orDash(strings.Join(c.What, ", ")), how)
	}
	a.list(t, "nothing has changed")
	if dryRun && len(r.Changes) > 0 {
		a.printf("\nnothing was done; without --dry-run it would be\n")
	}
}

// onHangup reads the configuration again at SIGHUP, until the function it returns is called.
func onHangup(ctx context.Context, h *host.Host, logger hclog.Logger) (stop func()) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	var listening sync.WaitGroup
	listening.Go(func() {
		for range hangups {
			reloadAndTell(ctx, h, logger)
		}
	})
	return func() {
		signal.Stop(hangups)
		close(hangups)
		listening.Wait()
	}
}

// reloadAndTell says in the log what a reload comes to, since nobody waits for it.
func reloadAndTell(ctx context.Context, h *host.Host, logger hclog.Logger) {
	r, err := h.Reload(ctx, false)
	if err != nil {
		logger.Error("SIGHUP: nothing was changed", "error", err)
		return
	}
	for _, d := range r.Diagnostics {
		logger.Log(map[bool]hclog.Level{true: hclog.Error, false: hclog.Warn}[d.Severity == "error"], "SIGHUP: configuration", "finding", d.String())
	}
	if !r.Applied {
		logger.Error("SIGHUP: the configuration has errors; nothing was changed")
	}
	for _, c := range r.Changes {
		logger.Info("SIGHUP", "block", c.Block, "change", c.Change, "what", strings.Join(c.What, ", "), "how", c.How)
	}
}
