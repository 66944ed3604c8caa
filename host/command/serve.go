package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host"
	"github.com/posternmail/postern/host/internal/cgroup"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/fleet"
	"github.com/posternmail/postern/host/internal/privsep"
)

func serveCommand(a *app) *command {
	return &command{
		name: "serve", short: "Run the host until it is told to stop (SIGTERM, Ctrl-C).", file: true,
		long: "The configuration is read at the start, and again by postern reload and SIGHUP. Certificates and the files of users, directories and lists are read\n" +
			"again when they change. The log goes to standard error.",
		run: func(ctx context.Context, _ []string) error {
			var err error
			if a.parent, err = privsep.Inherited(); err != nil {
				return err
			}
			if a.parent == nil {
				if done, err := a.serveAsUser(); done {
					return err
				}
				a.groups = cgroup.Enter()
				defer a.groups.Close()
			}
			heir, sockets, err := inherit(ctx)
			if err != nil {
				return err
			}
			err = a.loadAndServe(ctx, host.Options{Heir: heir, Sockets: sockets, Command: ownCommand(), Parent: a.parent, Groups: a.groups})
			if err != nil && heir != nil {
				heir.Fail(err)
			}
			return err
		},
	}
}

func (a *app) loadAndServe(ctx context.Context, o host.Options) error {
	how := config.Options{Override: fleet.Overrides()}
	if o.Heir == nil { // a host that runs goes on when its successor would lack an agent
		how.Recall = fleet.Recall()
	}
	c, found, err := a.load(ctx, how)
	if err != nil {
		return err
	}
	found.Print(a.stderr, a.width, a.color && a.terminal)
	if found.Errors() {
		if a.parent != nil {
			a.note("the host reads its files as user %d of group %d: what they name must be readable for it (chgrp, chmod 640)", os.Getuid(), os.Getgid())
		}
		count, _ := found.Count()
		err := fmt.Errorf("%s: %s, the host was not started", a.config, plural(count, "error"))
		if o.Heir != nil {
			err = fmt.Errorf("%w\n%s", err, described(found)) // for the one who has ordered the restart
		}
		return err
	}
	if c.Host.User != "" && os.Geteuid() == 0 {
		return fmt.Errorf("%s was changed while it was read: start the host again", a.config)
	}
	o.Config, o.Path, o.Version, o.Load, o.Programs = c, a.config, a.version, a.load, &a.programs
	return a.serve(ctx, o)
}

func (a *app) serve(ctx context.Context, o host.Options) error {
	c := o.Config
	logger := hclog.New(&hclog.LoggerOptions{
		Name: "postern", Level: hclog.LevelFromString(c.LogLevel), JSONFormat: c.LogJSON, Output: a.stderr, TimeFormat: "2006-01-02T15:04:05.000Z0700",
	})
	if a.terminal { // which has gone
		var quit func()
		ctx, quit = signal.NotifyContext(ctx, syscall.SIGHUP)
		defer quit()
	}
	o.Logger = logger
	if os.Geteuid() == 0 {
		logger.Warn("the host runs as root: " + staysRoot)
	}
	h, err := host.Start(ctx, o)
	if err != nil {
		return err
	}
	if !a.terminal {
		defer onHangup(ctx, h, logger)()
	}
	defer func() {
		h.Stop()
		logger.Info("host has stopped")
	}()
	defer onUser2(ctx, h, logger)()
	a.printListening(c)
	err = h.Wait(ctx)
	logger.Info("host is stopping", "why", cmp.Or(err, context.Cause(ctx), errReplaced), "grace", c.Host.ShutdownGrace.String())
	return err
}

// errReplaced is why a host ends that nobody has told to.
var errReplaced = errors.New("another process has taken over, and its own sessions are over")

// printListening tells a person at a terminal what runs now and what to try.
func (a *app) printListening(c *config.Config) {
	a.printf("postern %s is running as %s\n", a.version, c.Host.Name)
	for _, r := range c.ReceiveConnectors {
		a.printf("  %s listens on %s for %s\n", r.Name, strings.Join(r.Listen, ", "), strings.Join(r.Permissions, ", "))
	}
	for _, one := range c.Agents {
		if one.Enabled {
			a.printf("  agent %s, priority %d\n", one.Name, one.Priority)
		}
	}
	a.printSample(c)
}

// printSample has a command to try first, where there is something to try it with.
func (a *app) printSample(c *config.Config) {
	binary := os.Args[0]
	for _, d := range c.AcceptedDomains {
		if strings.HasPrefix(d.Name, "*") {
			continue
		}
		a.printf("Send a sample, and see what each agent says about it:\n")
		a.printf("  %s verify --config %s --to somebody@%s\n", binary, a.config, d.Name)
		return
	}
}
