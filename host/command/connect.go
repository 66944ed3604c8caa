package command

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/config"
)

// client finds the control socket of the running host.
func (a *app) client() (*admin.Client, error) {
	if a.running != nil {
		return a.running, nil
	}
	path := a.socket
	if path == "" {
		dir, err := a.dataDir()
		if err != nil {
			return nil, &hinted{err, "A host that is running can be reached all the same: --socket DATA_DIR/control.sock"}
		}
		path = admin.SocketPath(dir)
	}
	a.running = admin.NewClient(path)
	return a.running, nil
}

// dataDir is that of the configuration. Mistakes elsewhere in it do not keep an operator from the host that runs: the
// file may have been changed since, or an agent's program be gone.
func (a *app) dataDir() (string, error) {
	if a.dir != "" {
		return a.dir, nil
	}
	c, found := config.Load(a.config, config.Options{})
	if !found.Errors() {
		a.dir = c.Host.DataDir
		return a.dir, nil
	}
	if a.dir = config.DataDir(a.config); a.dir == "" {
		return "", a.told(found)
	}
	count, _ := found.Count()
	a.note("%s: %s (see postern check); looking for the host in %s all the same", printable(a.config), plural(count, "error"), printable(a.dir))
	return a.dir, nil
}

// told prints what was found and returns the error that is left to say.
func (a *app) told(found *config.Diagnostics) error {
	found.Print(a.stderr, a.width, a.color)
	count, _ := found.Count()
	return fmt.Errorf("%s: %s", a.config, plural(count, "error"))
}

// get asks the running host.
func (a *app) get(ctx context.Context, path string, query url.Values, answer any) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	return a.explained(c.Get(ctx, path, query, answer))
}

// post has the running host do something.
func (a *app) post(ctx context.Context, path string, body, answer any) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	return a.explained(c.Post(ctx, path, body, answer))
}

func (a *app) explained(err error) error {
	if errors.Is(err, admin.ErrNotRunning) {
		file := a.config
		if a.socket != "" {
			file = "FILE"
		}
		return &hinted{err, "Start it with: postern serve --config " + printable(file)}
	}
	return err
}
