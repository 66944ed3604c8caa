package command

import (
	"context"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host"
	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/handover"
)

func restartCommand(a *app) *command {
	return &command{
		name: "restart", short: "Replace the process of the running host by a new one, without refusing a connection.", json: true, host: true,
		long: "For a new version of the binary, and for changes of the configuration that a reload cannot make. The new process\n" +
			"loads the configuration and starts its agents first; when it cannot, the running host goes on as it was and this command\n" +
			"says why. The old process goes on with its sessions, up to restart_grace. SIGUSR2 does the same.",
		run: func(ctx context.Context, _ []string) error {
			var done admin.Restarted
			if err := a.post(ctx, "/v1/restart", struct{}{}, &done); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(done)
			}
			a.printf("pid %d is the host now, after %d ms, %d of them without deliveries; pid %d goes on with its sessions\n",
				done.PID, done.Millis, done.GapMillis, done.FormerPID)
			return nil
		},
	}
}

func drainCommand(a *app) *command {
	return &command{
		name: "drain", short: "Take no more connections, and go on with sessions and deliveries.", json: true, host: true,
		long: "Before the machine is taken out of service: clients are refused and go to another exchanger. Again: shows what is left.\n" +
			"postern restart takes connections again.",
		run: func(ctx context.Context, _ []string) error {
			var left admin.Drained
			if err := a.post(ctx, "/v1/drain", struct{}{}, &left); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(left)
			}
			a.printf("no more connections are taken; %s open, %s to be delivered\n", plural(left.Sessions, "session"), plural(left.Queued, "message"))
			return nil
		},
	}
}

// inherit finds out what this process has from the one that started it: a host to take over from, or sockets.
func inherit(ctx context.Context) (*handover.Heir, *handover.Listeners, error) {
	heir, err := handover.Inherited(ctx)
	if err != nil {
		return nil, nil, err
	}
	if heir != nil {
		return heir, heir.Listeners, nil
	}
	sockets, err := handover.Activated()
	return nil, sockets, err
}

// described is what was found in a configuration as text.
func described(found *config.Diagnostics) string {
	var text strings.Builder
	found.Print(&text, reportWidth, false)
	return strings.TrimSpace(text.String())
}

// reportWidth is for text whose reader has a terminal elsewhere, in columns.
const reportWidth = 120

// ownCommand starts a process like this one. The path stays what it was: an upgrade puts another program there, or
// has a symbolic link lead to another one.
func ownCommand() []string {
	path, err := exec.LookPath(os.Args[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		path, _ = os.Executable() // of an empty path the start says what is wrong
	}
	return append([]string{path}, os.Args[1:]...)
}

// onUser2 restarts the host at SIGUSR2, until the function it returns is called.
func onUser2(ctx context.Context, h *host.Host, logger hclog.Logger) (stop func()) {
	orders := make(chan os.Signal, 1)
	signal.Notify(orders, syscall.SIGUSR2)
	var listening sync.WaitGroup
	listening.Go(func() {
		for range orders {
			if _, err := h.Restart(ctx); err != nil {
				logger.Error("SIGUSR2: the host was not restarted", "error", err)
			}
		}
	})
	return func() {
		signal.Stop(orders)
		close(orders)
		listening.Wait()
	}
}
