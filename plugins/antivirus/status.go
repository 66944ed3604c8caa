package main

import (
	"context"
	"time"

	"github.com/posternmail/postern/sdk"
)

// stateRow is what `postern table list antivirus/engines` shows of an engine; its key is the engine's name.
type stateRow struct {
	State       string `json:"state"` // "ok", "stale" or "down"
	Since       string `json:"since"` // when it became that
	Version     string `json:"version,omitempty"`
	Signatures  string `json:"signatures,omitempty"` // their time, where the engine tells
	Changed     string `json:"changed,omitempty"`    // when the version did
	Detail      string `json:"detail,omitempty"`     // what is wrong
	Updated     string `json:"updated,omitempty"`    // when the update command was last run
	UpdateError string `json:"update_error,omitempty"`
}

// States of an engine.
const (
	stateOK    = "ok"
	stateStale = "stale"
	stateDown  = "down"
)

// foundFor is how long an engine that was found counts as the machine's: while it is away its mail is not let pass as if
// there had never been one.
const foundFor = 7 * 24 * time.Hour

// OnSchedule notes the state of each engine in the table.
func (s *Scanner) OnSchedule(ctx context.Context, e *sdk.ScheduleEvent) sdk.Verdict {
	if e.Page > 0 {
		return sdk.Continue()
	}
	ctx, cancel := hurry(ctx)
	defer cancel()
	old := map[string]sdk.Row[stateRow]{}
	for row := range s.states.Rows(e) {
		old[row.Key] = row
	}
	v := sdk.Continue()
	for _, g := range s.engines {
		if write, ok := s.noted(ctx, e, g, old[g.Name]); ok {
			v = v.Write(write)
		}
	}
	return v
}

// noted state of an engine. Of one that was looked for and never found there is nothing to note.
func (s *Scanner) noted(ctx context.Context, e *sdk.ScheduleEvent, g *guarded, old sdk.Row[stateRow]) (sdk.Write, bool) {
	row := s.state(ctx, e, g, old.Value)
	keep := time.Duration(0)
	if s.found {
		keep = foundFor
		if row.State == stateDown {
			keep = old.Expires.Sub(e.Time)
			if keep <= 0 {
				return sdk.Write{}, false
			}
		}
	}
	return s.states.Put(row, keep).At(g.Name), true
}

// state of an engine now.
func (s *Scanner) state(ctx context.Context, e *sdk.ScheduleEvent, g *guarded, old stateRow) stateRow {
	v, err := g.check(ctx)
	now := e.Time.UTC().Format(time.RFC3339)
	row := stateRow{State: stateOK, Since: now, Version: v.text, Changed: now}
	if at, problem := g.updates.last(); !at.IsZero() {
		row.Updated, row.UpdateError = at.UTC().Format(time.RFC3339), problem
	}
	if !v.signatures.IsZero() {
		row.Signatures = v.signatures.UTC().Format(time.RFC3339)
	}
	if err != nil || old.Version == v.text && old.Changed != "" {
		row.Changed = old.Changed
	}
	if since, parseErr := time.Parse(time.RFC3339, row.Changed); parseErr == nil {
		g.unchangedSince(v.text, since)
	}
	switch stale := g.stale(v, e.Time); {
	case err != nil:
		row.State, row.Detail, row.Version, row.Signatures = stateDown, err.Error(), old.Version, old.Signatures
	case stale != nil:
		row.State, row.Detail = stateStale, stale.Error()
	}
	if row.State == old.State {
		row.Since = old.Since
	}
	return row
}

// watch the engines, so that the alarms are raised and end without mail, and run the updates.
func (s *Scanner) watch(ctx context.Context) {
	tick := time.NewTicker(s.CheckEvery)
	defer tick.Stop()
	for {
		for _, g := range s.engines {
			g.updates.run(ctx)
			if ctx.Err() == nil {
				g.check(ctx) // what it finds is told by the alarms
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
