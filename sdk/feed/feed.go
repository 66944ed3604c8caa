// Package feed gives an agent signed bundles of lists and models from elsewhere: block lists, IP reputation, phrases,
// classifiers. It fetches them on a schedule from a folder or by HTTPS, verifies them, has the agent make its own value of
// each, and keeps the last good one on disk, so that a restart with every source out of reach changes nothing.
//
//	type Config struct {
//		Feeds []feed.Source `hcl:"feed,block" doc:"Signed lists."`
//	}
//
//	func New(cfg Config, r *sdk.Registrar) (*Agent, error) {
//		feeds, err := feed.Open(r, "feed", cfg.Feeds, buildLists)
//		...
//		feeds.Subscribe(r)
//	}
//
//	func (a *Agent) OnSchedule(_ context.Context, e *sdk.ScheduleEvent) sdk.Verdict { a.feeds.Fetch(e); return sdk.Continue() }
//	func (a *Agent) Close()                                                         { a.feeds.Close() }
//
// Handlers read feeds.Values, which costs next to nothing. What is wrong with a feed is in `postern status` and once in the
// log (sdk.Health). docs/feeds.md is the manual for operators and publishers.
package feed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternmail/postern/sdk"
)

// Build makes the agent's own value of a bundle, or says why it cannot be used: a list that does not parse, a model that
// fails its test. It is called beside the events, and must not keep the octets that it is shown.
type Build[T any] func(b *Bundle) (*T, error)

// Feeds are the feeds of an agent, each with the value made of its bundle in use. It is safe for concurrent use.
type Feeds[T any] struct {
	all    []*one[T]
	health *sdk.Health
	logger logger
	every  time.Duration

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// logger is the part of hclog.Logger that is used here.
type logger interface {
	Info(msg string, args ...any)
	Warn(msg string, args ...any)
}

// one feed.
type one[T any] struct {
	source Source
	keep   store
	build  Build[T]
	value  atomic.Pointer[Value[T]]
	busy   atomic.Bool // its source is being looked at

	mu     sync.Mutex // of what follows
	state  state
	file   os.FileInfo // of the state, when it was read
	failed string      // the bundle that could not be loaded, so that it is not tried again
	told   string      // why the last bundle was refused, as the log has it
	broken error       // why this process could not look at the source for want of the folder
	since  time.Time   // when the source had been looked at last, then
}

// Value is what an agent has made of the bundle in use.
type Value[T any] struct {
	Feed     string // the label of its block
	Manifest Manifest
	Value    *T
}

// How often things are done.
const (
	lookEvery  = 2 * time.Second // other processes of the agent fetch, too: their bundles are looked for
	tick       = time.Minute     // the schedule at least; each feed has its own interval
	retryAfter = 5 * time.Minute // a source that was out of reach, if its interval is longer
)

// Open checks the sources, which are blocks of that name in the agent's configuration, and loads the bundles that are on
// disk. Where the configuration is only validated, it does no more than check.
func Open[T any](r *sdk.Registrar, block string, sources []Source, build Build[T]) (*Feeds[T], error) {
	f := &Feeds[T]{health: r.Health(), logger: r.Logger(), every: tick}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	var errs []error
	seen := map[string]bool{}
	for i, s := range sources {
		errs = append(errs, s.check(r, block, i))
		if seen[s.Name] {
			errs = append(errs, r.At(block, i).Errorf("a second feed %q", s.Name))
		}
		seen[s.Name] = true
		f.every = min(f.every, s.Every)
		f.all = append(f.all, &one[T]{source: s, keep: storeOf(r.StateDir(), s.Name), build: build})
	}
	if err := errors.Join(errs...); err != nil || r.Validating() || len(f.all) == 0 {
		return f, err
	}
	f.look()
	f.running.Go(f.watch)
	return f, nil
}

// Subscribe asks for OnSchedule, or says that there is nothing to do at it. The handler must call Fetch.
func (f *Feeds[T]) Subscribe(r *sdk.Registrar) {
	if len(f.all) == 0 {
		r.Skip(sdk.OnSchedule)
		return
	}
	r.OnSchedule(sdk.Every(f.every), sdk.MayChange())
}

// Values made of the bundles in use, in the order of the blocks. A feed without a bundle is left out; a nil *Feeds has none.
func (f *Feeds[T]) Values() iter.Seq[*Value[T]] {
	return func(yield func(*Value[T]) bool) {
		if f == nil {
			return
		}
		for _, o := range f.all {
			if v := o.value.Load(); v != nil && !yield(v) {
				return
			}
		}
	}
}

// Fetch looks at the sources whose time has come, beside the events: a slow source delays nothing. The host raises
// OnSchedule in one process of the agent; the others find what it fetched on disk.
func (f *Feeds[T]) Fetch(e *sdk.ScheduleEvent) {
	if e.DryRun {
		return
	}
	now := e.Time
	for _, o := range f.all {
		if !o.busy.CompareAndSwap(false, true) {
			continue
		}
		f.running.Go(func() {
			defer o.busy.Store(false)
			o.noteFolder(o.refresh(f.ctx, now))
			f.lookAt(o)
		})
	}
}

// Close ends what goes on beside the events.
func (f *Feeds[T]) Close() {
	f.cancel()
	f.running.Wait()
}

// watch the folders of the feeds for what other processes have fetched.
func (f *Feeds[T]) watch() {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-f.ctx.Done():
			return
		case <-ticker.C:
			f.look()
		}
	}
}

// look at what is on disk once, and tell what is wrong.
func (f *Feeds[T]) look() {
	for _, o := range f.all {
		f.lookAt(o)
	}
}

func (f *Feeds[T]) lookAt(o *one[T]) {
	loaded, loadErr := o.look()
	if loaded != nil {
		f.logger.Info("feed applied", "feed", o.source.Name, "serial", loaded.Manifest.Serial, "created", loaded.Manifest.Created.Format(time.RFC3339))
	}
	unreachable, refused, broken := o.troubles()
	f.health.Report("folder of feed "+o.source.Name, broken)
	f.health.Report("feed "+o.source.Name, unreachable)
	f.health.Report("new bundle of feed "+o.source.Name, refused)
	if o.refusedAnew(refused) { // Health tells the first reason of several in a row
		f.logger.Warn("another bundle is refused", "feed", o.source.Name, "error", refused)
	}
	if loadErr == nil {
		loadErr = o.expired(time.Now())
	}
	f.health.Report("current bundle of feed "+o.source.Name, loadErr)
}

// look loads the bundle that the state names, if that is another one than before. loaded is nil where nothing changed.
func (o *one[T]) look() (loaded *Value[T], err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	info, err := os.Stat(o.keep.statePath())
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil // nothing was ever fetched
	case err != nil:
		return nil, err
	case o.file == nil || !os.SameFile(info, o.file) || !info.ModTime().Equal(o.file.ModTime()):
		if o.state, err = o.keep.read(); err != nil {
			return nil, err
		}
		o.file = info
	}
	return o.load()
}

// load the bundle of the state; where that cannot be used and none is in use, the one before it. Under mu.
func (o *one[T]) load() (loaded *Value[T], err error) {
	current := o.value.Load()
	if o.state.Applied == "" || current != nil && current.Manifest.id() == o.state.Applied {
		o.failed = ""
		return nil, nil
	}
	if o.failed == o.state.Applied {
		return nil, fmt.Errorf("serial %s cannot be loaded; the one before it stays in use", o.failed)
	}
	loaded, err = o.open(o.state.Applied)
	if err != nil {
		o.failed = o.state.Applied
		if current == nil && o.state.Previous != "" {
			loaded, _ = o.open(o.state.Previous)
		}
	}
	if loaded != nil {
		o.value.Store(loaded)
	}
	return loaded, err
}

// open a bundle on disk. It is verified again: the keys may have changed, or the disk.
func (o *one[T]) open(id string) (*Value[T], error) {
	archive, signature, err := o.keep.bundle(id)
	if err != nil {
		return nil, err
	}
	b, err := Verify(archive, signature, o.source.Keys, o.source.MaxSize)
	if err != nil {
		return nil, err
	}
	v, err := o.use(b)
	if err != nil {
		return nil, err
	}
	return &Value[T]{o.source.Name, b.Manifest, v}, nil
}

// use has the agent make its value of a bundle.
func (o *one[T]) use(b *Bundle) (*T, error) {
	if b.Manifest.Name != o.source.Name {
		return nil, fmt.Errorf("the bundle is of the feed %q", b.Manifest.Name)
	}
	v, err := o.build(b)
	if err != nil {
		return nil, fmt.Errorf("serial %d: %w", b.Manifest.Serial, err)
	}
	return v, nil
}

// noteFolder remembers what is wrong with the folder, until this process or another one has looked at the source after all.
func (o *one[T]) noteFolder(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.broken, o.since = err, o.state.Checked
}

// troubles with the source, by the word of the process that looked last, and with the folder.
func (o *one[T]) troubles() (unreachable, refused, broken error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.state.Unreachable != "" {
		unreachable = errors.New(o.state.Unreachable)
	}
	if o.state.Refused != "" {
		refused = errors.New(o.state.Refused)
	}
	if o.state.Checked.Equal(o.since) {
		broken = o.broken
	}
	return unreachable, refused, broken
}

// refusedAnew reports whether a bundle is refused right after one that was refused for another reason.
func (o *one[T]) refusedAnew(refused error) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	before := o.told
	o.told = text(refused)
	return before != "" && o.told != "" && before != o.told
}

// expired says that the bundle in use is. It stays in use.
func (o *one[T]) expired(now time.Time) error {
	v := o.value.Load()
	if v == nil || v.Manifest.Expires.IsZero() || now.Before(v.Manifest.Expires) {
		return nil
	}
	return fmt.Errorf("serial %d has expired on %s and stays in use", v.Manifest.Serial, v.Manifest.Expires.Format(time.RFC3339))
}

// refresh looks at the source, if it is time, and notes in the state what came of it. Its error is one of the folder.
func (o *one[T]) refresh(ctx context.Context, now time.Time) error {
	unlock, err := o.keep.lock()
	if errors.Is(err, errBusy) {
		return nil // another generation of the agent is about to end, or an operator at work
	}
	if err != nil {
		return err
	}
	defer unlock()
	s, err := o.keep.read()
	if err != nil {
		return err
	}
	if digest := o.source.digest(); s.Source != digest { // another source: nothing of the old one is known of it
		s.Source, s.Checked, s.Seen, s.ETag, s.Unreachable, s.Refused = digest, time.Time{}, "", "", "", ""
	}
	if !s.due(o.source.Every, now) {
		return nil
	}
	o.take(ctx, &s)
	if ctx.Err() != nil {
		return nil // the agent ends; nothing is known of the source
	}
	s.Checked = now
	return o.keep.write(s)
}

// take what the source has, if it is new and good.
func (o *one[T]) take(ctx context.Context, s *state) {
	got, err := o.source.fetch(ctx, s.ETag, s.Seen)
	s.Unreachable = text(err)
	if err != nil || got.unchanged {
		return
	}
	s.Refused, s.Seen, s.ETag = "", "", ""
	b, err := Verify(got.archive, got.signature, o.source.Keys, o.source.MaxSize)
	if err != nil { // perhaps the publisher has replaced one file of two: the next look takes both again
		s.Refused = text(err)
		return
	}
	s.Seen, s.ETag = got.seen, got.etag
	if old, _, err := o.keep.bundle(s.Applied); err == nil && bytes.Equal(old, got.archive) { // signed anew, perhaps by a new key
		if err := replace(o.keep.archive(s.Applied)+signatureSuffix, got.signature); err != nil {
			s.Refused, s.Seen, s.ETag = text(err), "", ""
		}
		return
	}
	if b.Manifest.Name == o.source.Name && b.Manifest.Serial <= s.Serial {
		s.Refused = fmt.Sprintf("serial %d is not above %d, the highest so far", b.Manifest.Serial, s.Serial)
		return
	}
	if _, err := o.use(b); err != nil {
		s.Refused = text(err)
		return
	}
	if err := o.keep.put(s, b.Manifest, got.archive, got.signature); err != nil {
		s.Refused, s.Seen, s.ETag = text(err), "", ""
	}
}

// maxText of an error that is kept.
const maxText = 500

func text(err error) string {
	if err == nil {
		return ""
	}
	s := err.Error()
	return s[:min(len(s), maxText)]
}

// folder of a feed below the state folder of its agent.
func folder(stateDir, name string) string { return filepath.Join(stateDir, "feeds", name) }
