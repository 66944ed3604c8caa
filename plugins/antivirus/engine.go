package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/posternmail/postern/sdk"
)

// engine is the client of a scanner. It is safe for concurrent use.
type engine interface {
	// scan an object: the name of the malware in it, "" if it is clean. errTooLarge: the engine does not look at it.
	scan(ctx context.Context, o *object) (malware string, err error)
	// version of the engine and its signatures.
	version(ctx context.Context) (version, error)
	// close lets go of connections.
	close()
}

// version of an engine. Results are the same as long as its text is; "" where the engine does not tell.
type version struct {
	text       string
	signatures time.Time // zero: not told
}

// Errors of engines.
var (
	errTooLarge = errors.New("too large for the engine")
	errAbsent   = errors.New("no clamd at the usual places")
)

// answer of an engine about one object.
type answer struct {
	scanned bool   // else it was too large
	malware string // "" clean
	cached  bool
}

// report of an engine about a message: an answer for each object, or why there is none.
type report struct {
	engine  *guarded
	version string
	answers []answer
	err     error
}

// guarded is an engine with what keeps it from holding up mail, and with what is known about it.
type guarded struct {
	Engine
	scanner engine
	health  *sdk.Health
	room    chan struct{} // a token for each scan under way
	updates *updates

	mu      sync.Mutex
	now     version
	asked   time.Time // when the version was
	changed time.Time // when it became what it is, as far as this process knows
	paused  time.Time // not asked before
	last    error     // why not
}

// Times of a guarded engine.
const (
	versionFor = time.Minute     // that an answer counts
	pause      = 5 * time.Second // after a timeout: a dead engine does not cost every message the whole timeout
)

func guard(e Engine, scanner engine, r *sdk.Registrar) *guarded {
	return &guarded{
		Engine: e, scanner: scanner, health: r.Health(), room: make(chan struct{}, e.MaxConnections),
		updates: newUpdates(e, r),
	}
}

// about a message: the engine looks at each object whose result is not known.
func (g *guarded) about(ctx context.Context, objects []*object, known func(*object, version) (answer, bool)) report {
	ctx, cancel := g.within(ctx, g.Timeout)
	defer cancel()
	if err := g.resting(); err != nil {
		return report{engine: g, err: err}
	}
	v, err := g.current(ctx)
	if err != nil {
		return report{engine: g, err: g.failed(ctx, err)}
	}
	answers, err := g.each(ctx, objects, func(ctx context.Context, o *object) (answer, error) { return g.one(ctx, o, v, known) })
	if err != nil {
		return report{engine: g, err: g.failed(ctx, err)}
	}
	g.worked()
	return report{engine: g, version: v.text, answers: answers}
}

// partsAtOnce of one message are with an engine: the message waits for the slowest of its parts and not for all of them one
// after the other, and leaves connections to others.
const partsAtOnce = 4

// each object is looked at by one. The first error ends it.
func (g *guarded) each(ctx context.Context, objects []*object, one func(context.Context, *object) (answer, error)) ([]answer, error) {
	answers := make([]answer, len(objects))
	asking, ctx := errgroup.WithContext(ctx)
	asking.SetLimit(partsAtOnce)
	for i, o := range objects {
		asking.Go(func() (err error) {
			answers[i], err = one(ctx, o)
			return err
		})
	}
	return answers, asking.Wait()
}

// within some time the engine has to answer.
func (g *guarded) within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("no answer within %s", d))
}

// one object.
func (g *guarded) one(ctx context.Context, o *object, v version, known func(*object, version) (answer, bool)) (answer, error) {
	if o.size > int64(g.MaxSize) {
		return answer{}, nil
	}
	if a, ok := known(o, v); ok {
		return a, nil
	}
	select {
	case g.room <- struct{}{}:
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
	defer func() { <-g.room }()
	malware, err := g.scanner.scan(ctx, o)
	switch {
	case errors.Is(err, errTooLarge):
		return answer{}, nil
	case err != nil:
		return answer{}, err
	}
	return answer{scanned: true, malware: clip(malware, maxName)}, nil
}

// current version. An engine that does not tell it may scan all the same.
func (g *guarded) current(ctx context.Context) (version, error) {
	g.mu.Lock()
	v, fresh := g.now, time.Since(g.asked) < versionFor
	g.mu.Unlock()
	if fresh {
		return v, nil
	}
	v, err := g.scanner.version(ctx)
	if err != nil {
		return version{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.changed.IsZero() || g.now.text != v.text {
		g.changed = time.Now()
	}
	g.now, g.asked = v, time.Now()
	return v, nil
}

// tells its version; "" where it does not, or is down.
func (g *guarded) tells(ctx context.Context) string {
	ctx, cancel := g.within(ctx, g.Timeout)
	defer cancel()
	if g.resting() != nil {
		return ""
	}
	v, err := g.current(ctx)
	if err != nil {
		g.failed(ctx, err)
	}
	return v.text
}

// resting says why the engine is not asked at the moment.
func (g *guarded) resting() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Now().Before(g.paused) {
		return g.last
	}
	return nil
}

// failed notes why the engine gave no answer, and answers with words for it.
func (g *guarded) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(err, errAbsent) {
		err = context.Cause(ctx)
	}
	if errors.Is(err, context.Canceled) {
		return err // another engine was faster, or the client has gone: it says nothing about this one
	}
	err = fmt.Errorf("%s: %w", g.Name, plainly(err))
	g.mu.Lock()
	g.last, g.asked = err, time.Time{}
	if ctx.Err() != nil {
		g.paused = time.Now().Add(pause)
	}
	g.mu.Unlock()
	g.health.Report(g.what(), err)
	return err
}

func (g *guarded) worked() { g.health.Report(g.what(), nil) }

// what the operator reads as degraded.
func (g *guarded) what() string { return "virus scanner " + g.Name }

// plainly leaves out of network errors what differs from one connection to the next.
func plainly(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && !errors.Is(err, errAbsent) {
		err = fmt.Errorf("%s: %w", op.Op, op.Err)
	}
	if errors.Is(err, fs.ErrPermission) && !errors.Is(err, errAbsent) {
		return fmt.Errorf("%w; what the agent may reach is said in the sandbox of its block", err)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return errors.New("no answer in time")
	}
	return err
}

// check asks the engine for its version, and raises or ends the alarms about it.
func (g *guarded) check(ctx context.Context) (version, error) {
	ctx, cancel := g.within(ctx, min(g.Timeout, 10*time.Second))
	defer cancel()
	g.mu.Lock()
	g.asked = time.Time{}
	g.mu.Unlock()
	v, err := g.current(ctx)
	if err != nil {
		return v, g.failed(ctx, err)
	}
	g.worked()
	g.health.Report("signatures of "+g.Name, g.stale(v, time.Now()))
	return v, nil
}

// stale says that the signatures are older than they may be.
func (g *guarded) stale(v version, now time.Time) error {
	if g.StaleAfter == 0 {
		return nil
	}
	if !v.signatures.IsZero() {
		if now.Sub(v.signatures) > g.StaleAfter {
			return fmt.Errorf("they are of %s", v.signatures.UTC().Format(time.RFC3339))
		}
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if v.text != "" && now.Sub(g.changed) > g.StaleAfter {
		return fmt.Errorf("they are the same since %s", g.changed.UTC().Format(time.RFC3339))
	}
	return nil
}

// unchangedSince lets the process know what another one has seen.
func (g *guarded) unchangedSince(text string, since time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.now.text == text && since.Before(g.changed) {
		g.changed = since
	}
}

func (g *guarded) close() { g.scanner.close() }
