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
		c, err := a.load()
		if err != nil {
			return nil, &hinted{err, "A host that is running can be reached all the same: --socket DATA_DIR/control.sock"}
		}
		path = admin.SocketPath(c.Host.DataDir)
	}
	a.running = admin.NewClient(path)
	return a.running, nil
}

// load reads the configuration without asking any agent about its block: enough for all commands but check,
// pipeline and replay.
func (a *app) load() (*config.Config, error) {
	c, found := config.Load(a.config, config.Options{})
	if found.Errors() {
		found.Print(a.stderr, a.width, a.color)
		count, _ := found.Count()
		return nil, fmt.Errorf("%s: %s", a.config, plural(count, "error"))
	}
	return c, nil
}

// get asks the running host.
func (a *app) get(ctx context.Context, path string, query url.Values, answer any) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	return explained(c.Get(ctx, path, query, answer))
}

// post has the running host do something.
func (a *app) post(ctx context.Context, path string, body, answer any) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	return explained(c.Post(ctx, path, body, answer))
}

func explained(err error) error {
	if errors.Is(err, admin.ErrNotRunning) {
		return &hinted{err, "Start it with: postern serve --config FILE"}
	}
	return err
}
