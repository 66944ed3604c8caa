package command

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host"
	"github.com/posternmail/postern/host/internal/config"
)

func serveCommand(a *app) *command {
	return &command{
		name: "serve", short: "Run the host until it is told to stop (SIGTERM, Ctrl-C).", file: true,
		long: "The configuration is read once, at the start. Certificates and the files of users, directories and lists are read\n" +
			"again when they change. The log goes to standard error.",
		run: func(ctx context.Context, _ []string) error {
			c, found, err := a.loadWithAgents(ctx)
			if err != nil {
				return err
			}
			found.Print(a.stderr, a.width, a.color && a.terminal)
			if found.Errors() {
				count, _ := found.Count()
				return fmt.Errorf("%s: %s, the host was not started", a.config, plural(count, "error"))
			}
			return a.serve(ctx, c)
		},
	}
}

func (a *app) serve(ctx context.Context, c *config.Config) error {
	logger := hclog.New(&hclog.LoggerOptions{
		Name: "postern", Level: hclog.LevelFromString(c.LogLevel), JSONFormat: c.LogJSON, Output: a.stderr, TimeFormat: "2006-01-02T15:04:05.000Z0700",
	})
	ctx, quit := a.onHangup(ctx, logger)
	defer quit()
	h, err := host.Start(ctx, host.Options{Config: c, Path: a.config, Version: a.version, Logger: logger})
	if err != nil {
		return err
	}
	defer func() {
		h.Stop()
		logger.Info("host has stopped")
	}()
	a.printListening(c)
	err = h.Wait(ctx)
	logger.Info("host is stopping", "why", cmp.Or(err, context.Cause(ctx)), "grace", c.Host.ShutdownGrace.String())
	return err
}

// onHangup decides what SIGHUP means: the end, when it is the terminal that has gone. An operator who sends it wants the
// configuration read again, which takes a restart, and must not be left without a host.
func (a *app) onHangup(ctx context.Context, logger hclog.Logger) (context.Context, func()) {
	if a.terminal {
		return signal.NotifyContext(ctx, syscall.SIGHUP)
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	var listening sync.WaitGroup
	listening.Go(func() {
		for range hangups {
			logger.Warn("SIGHUP: the configuration is read at the start only; restart the host to apply it")
		}
	})
	return ctx, func() {
		signal.Stop(hangups)
		close(hangups)
		listening.Wait()
	}
}

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
