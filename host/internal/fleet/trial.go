package fleet

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/replay"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/agentpb"
)

// This file tries a new generation of an agent beside the one that it is to follow, as a canary or as a shadow,
// compares the two, and ends the trial: the candidate takes over, or is taken back.

// trialOrder is a trial as it is remembered.
type trialOrder struct {
	Trial    config.Trial `json:"trial"`
	Override *override    `json:"override,omitempty"` // in force once the candidate has taken over; nil: the configuration says it
	Since    time.Time    `json:"since"`
}

// maxExamples is how many disagreements are kept with their messages.
const maxExamples = 100

// maxOverlayWrites is after how many rows that a trial has written they are thrown away.
const maxOverlayWrites = 100_000

// trial of a candidate beside the generation that it is to follow.
type trial struct {
	fleet     *Fleet
	name      string
	order     trialOrder
	spec      config.Agent // of the candidate
	candidate *agent.Agent
	plan      *pipeline.Trial
	current   string // version

	mu       sync.Mutex
	ended    string // "", "promoted" or "taken back"
	why      string
	sessions uint64
	missed   uint64
	compared uint64
	events   map[string]*admin.EventComparison
	took     [2]time.Duration // of current and candidate, all compared events that both answered
	timed    uint64
	examples []admin.Disagreement
	timer    *time.Timer
}

// newTrial makes the trial of a candidate that was started, beside m.
func (f *Fleet) newTrial(m *Member, spec config.Agent, candidate *agent.Agent, order trialOrder) *trial {
	t := &trial{
		fleet: f, name: m.Spec.Name, order: order, spec: spec, candidate: candidate,
		current: m.Agent.Manifest().GetVersion(), events: map[string]*admin.EventComparison{},
	}
	options := f.Asking()
	options.Tables, options.DryRun = &overlay{below: options.Tables, rows: replay.NewOverlay(options.Tables)}, true
	options.Breach, options.Failed = nil, nil
	line := agent.NewLine(candidate)
	t.plan = &pipeline.Trial{
		Tag:    fmt.Sprintf("%s %d", candidate.Manifest().GetVersion(), order.Since.UnixNano()),
		Canary: order.Trial.Kind == config.Canary, Takes: t.takes, Copies: pipeline.New(options),
		Current: m.Line, Candidate: line, Compared: t.comparedOne, Missed: t.missedOne,
	}
	if t.plan.Canary {
		t.plan.Candidate = f.Metrics.Caller(&cautious{Line: line, trial: t, instead: m.Line})
	}
	return t
}

// takes reports whether a session is in the share: the same sessions for all trials of one agent.
func (t *trial) takes(session string) bool {
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(t.name + "\x00" + session))
	in := float64(mixed(sum.Sum64()))/math.MaxUint64 < t.order.Trial.Share
	if in {
		t.mu.Lock()
		t.sessions++
		t.mu.Unlock()
	}
	return in
}

// mixed spreads the bits of a hash (the finalizer of SplitMix64): FNV leaves the high ones of short texts alike.
func mixed(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// overlay is the rows that a trial writes, thrown away now and then and at its end.
type overlay struct {
	below tables.Store

	mu     sync.Mutex
	rows   *replay.Overlay
	writes int
}

func (o *overlay) now() *replay.Overlay {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.rows
}

// Get implements tables.Store.
func (o *overlay) Get(table, key string) (tables.Row, bool) { return o.now().Get(table, key) }

// Match implements tables.Store.
func (o *overlay) Match(table string, addr netip.Addr) (tables.Row, bool) {
	return o.now().Match(table, addr)
}

// Apply implements tables.Store.
func (o *overlay) Apply(writes []tables.Write) {
	o.mu.Lock()
	if o.writes += len(writes); o.writes > maxOverlayWrites {
		o.rows, o.writes = replay.NewOverlay(o.below), len(writes)
	}
	o.mu.Unlock()
	o.now().Apply(writes)
}

// List implements tables.Store.
func (o *overlay) List(table, after string, fn func(tables.Row) bool) {
	o.now().List(table, after, fn)
}

// Replace implements tables.Store.
func (o *overlay) Replace(table string, rows []tables.Row) { o.now().Replace(table, rows) }

// Close implements tables.Store.
func (o *overlay) Close() error { return nil }

// Names implements tables.Store.
func (o *overlay) Names() map[string]int { return o.now().Names() }

// cautious is a canary as the plan asks it: what it fails to answer, the generation that it is compared with does.
type cautious struct {
	*agent.Line
	trial   *trial
	instead *agent.Line
}

// Call implements pipeline.Caller. The candidate has half of the time.
func (c *cautious) Call(ctx context.Context, call *agent.Call) (agent.Result, error) {
	started := time.Now()
	first := *call
	first.Timeout = call.Timeout / 2
	first.Extend = max(call.Extend/2, first.Timeout)
	result, err := c.Line.Call(ctx, &first)
	var failure *agent.Failure
	if err == nil || ctx.Err() != nil || call.Fact || !errors.As(err, &failure) {
		return result, err
	}
	c.trial.failedOne(call, failure)
	again := *call
	again.Before = call.Before + len(result.Attempts)
	again.Timeout = max(call.Timeout-time.Since(started), time.Millisecond)
	second, err := c.instead.Call(ctx, &again)
	second.Attempts = append(result.Attempts, second.Attempts...)
	return second, err
}

// event is the comparison at an event. Under mu.
func (t *trial) event(name string) *admin.EventComparison {
	e := t.events[name]
	if e == nil {
		e = &admin.EventComparison{Event: name}
		t.events[name] = e
	}
	return e
}

// failedOne counts an event that a canary did not answer.
func (t *trial) failedOne(call *agent.Call, failure *agent.Failure) {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := pipeline.EventName(call.Kind)
	t.compared++
	e := t.event(name)
	e.Compared++
	e.Failed++
	t.example("failed", pipeline.Comparison{Event: name, Session: call.Session, Message: call.Message,
		Candidate: pipeline.Judgement{Failure: string(failure.Kind) + ": " + failure.Detail}})
	t.judge()
}

func (t *trial) missedOne() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.missed++
}

// comparedOne counts an event that both generations have seen.
func (t *trial) comparedOne(c pipeline.Comparison) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.compared++
	e := t.event(c.Event)
	e.Compared++
	switch {
	case c.Candidate.Failure != "" && c.Current.Failure == "":
		e.Failed++
		t.example("failed", c)
	case c.Candidate.Failure == "" && c.Current.Failure != "":
		e.Mended++
		t.example("mended", c)
	case c.Candidate.Failure != "":
	case c.Candidate.Verdict != c.Current.Verdict:
		e.Verdict++
		t.example("verdict", c)
	case !c.SameEdits:
		e.Edits++
		t.example("edits", c)
	}
	if c.Candidate.Failure == "" && c.Current.Failure == "" {
		t.timed++
		t.took[0] += c.Current.Took
		t.took[1] += c.Candidate.Took
	}
	t.judge()
}

// example keeps a disagreement. Under mu.
func (t *trial) example(kind string, c pipeline.Comparison) {
	words := func(j pipeline.Judgement) string {
		if j.Failure != "" {
			return j.Failure
		}
		return j.Verdict
	}
	if len(t.examples) >= maxExamples {
		t.examples = slices.Delete(t.examples, 0, 1)
	}
	t.examples = append(t.examples, admin.Disagreement{
		Time: time.Now().Format(time.RFC3339), Kind: kind, Event: c.Event, Session: c.Session, Message: c.Message,
		Current: words(c.Current), Candidate: words(c.Candidate),
	})
}

// latencyFloor is how much slower a candidate must be in the mean before its times count.
const latencyFloor = 20 * time.Millisecond

// judge takes the candidate back when it is over a limit. Under mu.
func (t *trial) judge() {
	limits := &t.order.Trial
	if t.ended != "" || t.compared < uint64(limits.MinEvents) {
		return
	}
	var verdicts, failed uint64
	for _, e := range t.events {
		verdicts, failed = verdicts+e.Verdict, failed+e.Failed
	}
	all := float64(t.compared)
	switch current, candidate := t.means(); {
	case float64(failed) > limits.MaxFailures*all:
		t.endSoon(fmt.Sprintf("it failed at %d of %d events, more than %.3g %%", failed, t.compared, limits.MaxFailures*100))
	case float64(verdicts) > limits.MaxDisagreements*all:
		t.endSoon(fmt.Sprintf("it decided otherwise at %d of %d events, more than %.3g %%", verdicts, t.compared, limits.MaxDisagreements*100))
	case t.timed >= uint64(limits.MinEvents) && candidate > current+latencyFloor && float64(candidate) > limits.MaxLatency*float64(current):
		t.endSoon(fmt.Sprintf("it took %s in the mean and the other %s, more than %.3g times as much",
			candidate.Round(time.Microsecond), current.Round(time.Microsecond), limits.MaxLatency))
	}
}

// means of the times of current and candidate. Under mu.
func (t *trial) means() (current, candidate time.Duration) {
	if t.timed == 0 {
		return 0, 0
	}
	return t.took[0] / time.Duration(t.timed), t.took[1] / time.Duration(t.timed)
}

// endSoon takes the candidate back, outside of the event that has led to it. Under mu.
func (t *trial) endSoon(why string) {
	t.ended, t.why = "taken back", why
	t.fleet.leaving.Go(func() { t.fleet.trialOver(t, why) })
}

// trialOver takes a candidate back that is over a limit.
func (f *Fleet) trialOver(t *trial, why string) {
	f.changing.Lock()
	defer f.changing.Unlock()
	if m := f.member(t.name); m != nil && m.trial == t && f.mayEnd() {
		f.takeBack(m, why)
	}
}

// mayEnd reports whether a trial may end by itself: not in a host that ends, or whose place another process has taken.
func (f *Fleet) mayEnd() bool { return f.drain.Err() == nil && f.Queue() != nil }

// Bounds of the duration of a trial, those of its block.
const (
	leastTrial   = time.Second
	longestTrial = 90 * 24 * time.Hour
)

// try starts a trial by order. The caller holds changing.
func (f *Fleet) try(ctx context.Context, m *Member, next *override, o admin.Trial) (admin.Ordered, error) {
	name := m.Spec.Name
	limits := config.DefaultTrial(o.Kind)
	limits.Share = o.Share
	if o.Duration != "" {
		var err error
		if limits.Duration, err = config.ParseDuration(o.Duration); err != nil {
			return admin.Ordered{}, admin.Refuse("", "duration: %v", err)
		}
		if limits.Duration < leastTrial || limits.Duration > longestTrial {
			return admin.Ordered{}, admin.Refuse("", "duration: %s is not between %s and 90d", o.Duration, leastTrial)
		}
	}
	if o.Kind != config.Canary && o.Kind != config.Shadow || o.Share <= 0 || o.Share > 1 {
		return admin.Ordered{}, admin.Refuse("", "a trial is a canary or a shadow with a share above 0 and up to 1")
	}
	if m.trial != nil {
		return admin.Ordered{}, admin.Refuse("End it first: postern agent promote "+name+", or rollback.", "agent %s has a candidate already", name)
	}
	spec, err := f.wanted(ctx, m, next)
	if err != nil {
		return admin.Ordered{}, err
	}
	if err := f.beginTrial(ctx, m, *spec, trialOrder{Trial: limits, Override: next, Since: time.Now()}); err != nil {
		return admin.Ordered{}, admin.Refuse("Nothing was changed.", "%v", err)
	}
	t := f.member(name).trial
	return admin.Ordered{Did: []string{fmt.Sprintf("agent %s %s is tried as a %s", name, t.candidate.Manifest().GetVersion(), t.inWords())}}, nil
}

// beginTrial starts a candidate and puts it beside m.
func (f *Fleet) beginTrial(ctx context.Context, m *Member, spec config.Agent, order trialOrder) error {
	candidate, err := f.startCandidate(ctx, m, spec, f.told())
	if err != nil {
		return err
	}
	if err := f.rememberTrial(m, spec, &order); err != nil {
		candidate.Close(f.drain)
		return err
	}
	f.install(m, f.newTrial(m, spec, candidate, order))
	return nil
}

// startCandidate starts a generation that is to be tried beside m.
func (f *Fleet) startCandidate(ctx context.Context, m *Member, spec config.Agent, facts *agentpb.HostFacts) (*agent.Agent, error) {
	if owned := m.Agent.Manifest().GetExclusiveResources(); len(owned) > 0 {
		return nil, fmt.Errorf("agent %s owns %v, so two generations of it cannot run at once: bring it in without a trial", m.Spec.Name, owned)
	}
	s := &step{name: m.Spec.Name, was: m, spec: spec, facts: facts}
	if err := f.start(ctx, s); err != nil {
		return nil, err
	}
	return s.fresh, nil
}

// rememberTrial keeps a trial for the time after a restart of the host. Where the configuration asks for the candidate,
// the generation that runs is kept as an order in its place.
func (f *Fleet) rememberTrial(m *Member, spec config.Agent, order *trialOrder) error {
	return f.records.change(m.Spec.Name, func(r *agentRecord) {
		r.Trial = order
		if order.Override == nil {
			r.Override = &override{
				Order: order.Trial.Kind, Since: order.Since, Version: m.Agent.Manifest().GetVersion(),
				Command: m.Spec.Command, SHA256: m.Spec.SHA256, Config: m.Spec.Config, Named: m.Spec.Sandbox.Named, Instead: generationOf(&spec, ""),
			}
		}
	})
}

// install puts a trial beside a member and has it take over after its time.
func (f *Fleet) install(m *Member, t *trial) {
	again := *m
	again.trial = t
	f.mu.Lock()
	f.members[m.Spec.Name] = &again
	f.mu.Unlock()
	f.replan()
	if d := t.order.Trial.Duration; d > 0 {
		t.timer = time.AfterFunc(max(d-time.Since(t.order.Since), 0), func() { f.leaving.Go(func() { f.trialPassed(t) }) })
	}
	f.Logger.Info("agent is tried", "agent", m.Spec.Name, "version", t.candidate.Manifest().GetVersion(), "how", t.inWords())
}

// trialPassed has a candidate take over at the end of its time.
func (f *Fleet) trialPassed(t *trial) {
	f.changing.Lock()
	defer f.changing.Unlock()
	m := f.member(t.name)
	if m == nil || m.trial != t || !f.mayEnd() {
		return
	}
	if _, err := f.promote(f.drain, m); err != nil {
		f.Logger.Error("candidate cannot take over", "agent", t.name, "error", err)
	}
}

func (t *trial) inWords() string {
	text := fmt.Sprintf("%s %s, %.4g %% of the sessions", t.order.Trial.Kind, t.candidate.Manifest().GetVersion(), t.order.Trial.Share*100)
	if d := t.order.Trial.Duration; d > 0 {
		text += ", until " + t.order.Since.Add(d).Format(time.RFC3339)
	}
	return text
}

// end notes how a trial has ended.
func (t *trial) end(state, why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended, t.why = state, why
	if t.timer != nil {
		t.timer.Stop()
	}
}

// promote has the candidate take over. The caller holds changing.
func (f *Fleet) promote(ctx context.Context, m *Member) (admin.Ordered, error) {
	name, t := m.Spec.Name, m.trial
	if t == nil {
		return admin.Ordered{}, admin.Refuse("", "agent %s has no candidate", name)
	}
	specs := f.Running()
	for i := range specs {
		if specs[i].Name == name {
			specs[i] = t.spec
		}
	}
	steps := f.steps(specs, f.told())
	for _, s := range steps {
		if s.name == name {
			s.action, s.why, s.fresh = actReplace, "its candidate takes over", t.candidate
		}
	}
	if err := f.rehearse(steps); err != nil {
		return admin.Ordered{}, admin.Refuse("Nothing was changed.", "%v", err)
	}
	t.end("promoted", "")
	f.commit(steps, f.told())
	f.Changed(f.Running())
	f.setTried(t)
	next := t.order.Override
	if err := f.records.change(name, func(r *agentRecord) { r.Trial, r.Override = nil, next }); err != nil {
		return admin.Ordered{}, fmt.Errorf("it was done, and will be forgotten at the next start: %w", err)
	}
	out := admin.Ordered{Did: []string{}}
	for _, s := range steps {
		if s.name == name {
			out.Did = append(out.Did, s.inWords())
		}
	}
	f.Logger.Info("candidate has taken over", "agent", name, "version", t.candidate.Manifest().GetVersion())
	return out, nil
}

// takeBack ends a trial: its sessions go on with the generation that it was compared with. Where the configuration asks
// for the candidate, the other one runs on in its place until the configuration changes or it is reset.
func (f *Fleet) takeBack(m *Member, why string) {
	t := m.trial
	t.end("taken back", why)
	again := *m
	again.trial = nil
	if t.order.Override == nil {
		again.Spec.Drift = fmt.Sprintf("runs %s, since the configured one was taken back at %s: %s",
			t.current, time.Now().Format(time.RFC3339), why)
	}
	f.mu.Lock()
	f.members[m.Spec.Name] = &again
	f.mu.Unlock()
	f.setTried(t)
	before := f.replan()
	err := f.records.change(m.Spec.Name, func(r *agentRecord) {
		r.Trial = nil
		if r.Override != nil && r.Override.Instead != nil {
			o := *r.Override
			o.Why = why
			r.Override = &o
		}
	})
	if err != nil {
		f.Logger.Error("the end of a trial is not remembered", "agent", m.Spec.Name, "error", err)
	}
	f.Logger.Warn("candidate was taken back", "agent", m.Spec.Name, "version", t.candidate.Manifest().GetVersion(), "why", why)
	f.Changed(f.Running())
	f.leaving.Go(func() { f.leaveTrial(t, m.Line, before) })
}

// leaveTrial ends a candidate that was taken back, when no conversation that began with it needs it any more.
func (f *Fleet) leaveTrial(t *trial, line *agent.Line, plans []*pipeline.Plan) {
	f.awaitUnpinned(plans)
	if c, ok := t.plan.Candidate.(*agent.Line); ok {
		c.Forward(line)
	}
	ctx, cancel := context.WithTimeout(f.drain, leaveGrace)
	defer cancel()
	t.candidate.Close(ctx)
}

// setTried keeps the last trial of an agent to be looked at.
func (f *Fleet) setTried(t *trial) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tried == nil {
		f.tried = map[string]*trial{}
	}
	f.tried[t.name] = t
}

// resumeTrials goes on with the trials that a restart of the host has interrupted.
func (f *Fleet) resumeTrials(ctx context.Context, configured []config.Agent) {
	for _, name := range f.records.names() {
		order, m := f.records.of(name).Trial, f.member(name)
		if order == nil || m == nil || m.Line == nil {
			continue
		}
		spec, err := f.candidateSpec(ctx, m, order, configured)
		if err == nil {
			err = f.beginTrial(ctx, m, spec, *order)
		}
		if err != nil {
			f.Logger.Error("a trial cannot be gone on with after the restart", "agent", name, "error", err)
		}
	}
}

// candidateSpec is the agent that a remembered trial was about.
func (f *Fleet) candidateSpec(ctx context.Context, m *Member, order *trialOrder, configured []config.Agent) (config.Agent, error) {
	if order.Override != nil {
		spec, err := f.wanted(ctx, m, order.Override)
		if err != nil {
			return config.Agent{}, err
		}
		return *spec, nil
	}
	for _, a := range configured {
		if a.Name == m.Spec.Name {
			return a, nil
		}
	}
	return config.Agent{}, admin.NotConfigured(m.Spec.Name)
}

// Compare shows how a candidate does beside the agent of a label; one that has ended, as it ended. The error is an
// admin.Refusal.
func (f *Fleet) Compare(name string) (admin.Comparison, error) {
	m := f.member(name)
	if m == nil {
		return admin.Comparison{}, admin.NotConfigured(name)
	}
	t := m.trial
	if t == nil {
		f.mu.Lock()
		t = f.tried[name]
		f.mu.Unlock()
	}
	if t == nil {
		return admin.Comparison{}, admin.Refuse("Start one: postern agent upgrade "+name+" --command PATH --canary 10%", "agent %s has no candidate, and had none since the start", name)
	}
	return t.comparison(), nil
}

func (t *trial) comparison() admin.Comparison {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := admin.Comparison{
		Agent: t.name, Kind: t.order.Trial.Kind, State: "running", Why: t.why, Current: t.current,
		Candidate: t.candidate.Manifest().GetVersion(), Share: t.order.Trial.Share, Since: t.order.Since.Format(time.RFC3339),
		Sessions: t.sessions, Compared: t.compared, Missed: t.missed, Events: []admin.EventComparison{},
		Latency: map[string]float64{}, Examples: slices.Clone(t.examples),
	}
	if t.ended != "" {
		c.State = t.ended
	} else if d := t.order.Trial.Duration; d > 0 {
		c.Until = t.order.Since.Add(d).Format(time.RFC3339)
	}
	for _, name := range slices.Sorted(maps.Keys(t.events)) {
		c.Events = append(c.Events, *t.events[name])
	}
	current, candidate := t.means()
	c.Latency["current"], c.Latency["candidate"] = float64(current.Microseconds()), float64(candidate.Microseconds())
	if c.Examples == nil {
		c.Examples = []admin.Disagreement{}
	}
	return c
}
