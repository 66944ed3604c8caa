package command

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/cgroup"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/handover"
	"github.com/posternmail/postern/host/internal/privsep"
)

// staysRoot is how a host that root starts is kept from running as root.
const staysRoot = `host { user = "postern" } in the configuration has it run as that user`

// serveAsUser is all that root does where the configuration names a user: it starts the host as that user, and agents for
// it. done is false where there is none, and this process is to be the host itself.
func (a *app) serveAsUser() (done bool, err error) {
	if os.Geteuid() != 0 {
		return false, nil
	}
	name, dataDir := config.Identity(a.config)
	if name == "" {
		return false, nil
	}
	user, err := config.LookupUser(name)
	if err != nil {
		return true, fmt.Errorf("%s: user: %w", a.config, err)
	}
	if dataDir, err = filepath.Abs(dataDir); err != nil {
		return true, fmt.Errorf("data_dir: %w", err)
	}
	if err := privsep.PrepareDataDir(dataDir, user); err != nil {
		return true, fmt.Errorf("data_dir: %w", err)
	}
	sockets, err := handover.ActivatedFiles()
	if err != nil {
		return true, err
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR2)
	defer signal.Stop(signals)
	status, err := privsep.Run(privsep.Options{
		User: user, DataDir: dataDir, Command: ownCommand(), Sockets: sockets, Groups: cgroup.Enter(),
		Logger: hclog.New(&hclog.LoggerOptions{Name: "postern-parent", Level: hclog.Warn, Output: a.stderr}),
	}, signals)
	if err == nil && status != 0 {
		err = exitCode(status)
	}
	return true, err
}
