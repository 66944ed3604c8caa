package admin

import (
	"net/http"
)

// Restarted is the answer to an order to restart: another process is the host now.
type Restarted struct {
	PID       int   `json:"pid"`        // of the new process
	FormerPID int   `json:"former_pid"` // of the one before, which goes on with its sessions
	Millis    int64 `json:"millis"`     // the whole took
	GapMillis int64 `json:"gap_millis"` // nothing was delivered for, and no control socket was there
}

// Drained is the answer to an order to drain.
type Drained struct {
	Sessions int `json:"sessions"` // still open
	Queued   int `json:"queued"`   // messages to be delivered
}

func (a *api) restart(r *http.Request) (any, error) {
	done, err := a.Process.Restart(r.Context())
	if err != nil {
		return nil, &failure{http.StatusConflict, Problem{Error: err.Error(), Hint: "the host goes on as it was; its log may say more"}}
	}
	return done, nil
}

func (a *api) drain(r *http.Request) (any, error) { return a.Process.Drain(r.Context()) }

func (a *api) adopt(*http.Request) (any, error) {
	a.Process.Adopt()
	return struct{}{}, nil
}

func (a *api) adoptRows(*http.Request) (any, error) {
	a.Process.AdoptRows()
	return struct{}{}, nil
}
