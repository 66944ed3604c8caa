package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hashicorp/go-hclog"
	"github.com/posternmail/postern/sdk"
)

// updates runs the command that updates the signatures of an engine. All processes of the agent share a file, so that one
// of them runs it, once in the interval, whichever is there.
type updates struct {
	command []string
	every   time.Duration
	path    string
	logger  hclog.Logger
	running sync.Mutex
}

// updateTimeout is how long a command may run.
const updateTimeout = 15 * time.Minute

// newUpdates answers with nothing where there is no command.
func newUpdates(e Engine, r *sdk.Registrar) *updates {
	if len(e.Update) == 0 {
		return nil
	}
	return &updates{
		command: e.Update, every: e.UpdateEvery, path: filepath.Join(r.StateDir(), "update-"+e.Name),
		logger: r.Logger().With("engine", e.Name),
	}
}

// run the command if it is time. It reports whether it did.
func (u *updates) run(ctx context.Context) bool {
	if u == nil || !u.running.TryLock() {
		return false
	}
	defer u.running.Unlock()
	file, err := os.OpenFile(u.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		u.logger.Error("cannot update signatures", "error", err)
		return false
	}
	defer file.Close()
	if unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return false // another process is at it
	}
	state, err := file.Stat()
	if err != nil || state.Size() > 0 && time.Since(state.ModTime()) < u.every {
		return false
	}
	result := u.once(ctx)
	if err = file.Truncate(0); err == nil {
		_, err = file.WriteString(result + "\n")
	}
	if err != nil {
		u.logger.Error("cannot note the update", "error", err)
	}
	return true
}

// updated is what is noted of a command that succeeded.
const updated = "ok"

func (u *updates) once(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, updateTimeout)
	defer cancel()
	code, output, err := program{line: u.command}.run(ctx)
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d: %s", code, clip(firstText(output), maxData))
	}
	if err != nil {
		u.logger.Warn("signatures are not updated", "error", err)
		return err.Error()
	}
	u.logger.Info("signatures updated")
	return updated
}

// last time that the command was run, and what went wrong.
func (u *updates) last() (at time.Time, problem string) {
	if u == nil {
		return at, ""
	}
	text, err := os.ReadFile(u.path)
	state, other := os.Stat(u.path)
	if err != nil || other != nil || len(text) == 0 {
		return at, ""
	}
	if problem = strings.TrimSpace(string(text)); problem == updated {
		problem = ""
	}
	return state.ModTime(), problem
}
