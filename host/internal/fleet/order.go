package fleet

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/catalog"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/queue"
)

// This file does what an operator orders of one agent, by command. It is remembered as an override until the
// configuration says the same, or until it is taken back.

// Order carries out what an operator orders of the agent of a label. The caller holds the fleet, see Hold. An error that
// is an admin.Refusal says why nothing was changed.
func (f *Fleet) Order(ctx context.Context, name string, o admin.Order) (admin.Ordered, error) {
	m := f.member(name)
	if m == nil {
		return admin.Ordered{}, admin.NotConfigured(name)
	}
	switch o.Kind {
	case admin.OrderUpgrade:
		return f.upgrade(ctx, m, o)
	case admin.OrderRollback:
		return f.rollback(ctx, m)
	case admin.OrderEnable:
		return f.enable(ctx, m, true)
	case admin.OrderDisable:
		return f.enable(ctx, m, false)
	case admin.OrderReset:
		return f.reset(ctx, m)
	case admin.OrderPromote:
		return f.promote(ctx, m)
	}
	return admin.Ordered{}, admin.Refuse("", "%q is no order", o.Kind)
}

// ordered has an override run. force: a new generation even if nothing differs.
func (f *Fleet) ordered(ctx context.Context, m *Member, o *override, force bool) ([]*step, error) {
	spec, err := f.wanted(ctx, m, o)
	if err != nil {
		return nil, err
	}
	specs := f.Running()
	for i := range specs {
		if specs[i].Name == spec.Name {
			specs[i] = *spec
		}
	}
	if err := f.records.writable(); err != nil && (o.Order == admin.OrderUpgrade || o.Order == admin.OrderRollback) {
		// The others are done all the same: who takes an agent out because it fills the disk must not wait for room on it.
		return nil, admin.Refuse("Nothing was changed.", "%v", err)
	}
	steps := f.steps(specs, f.told())
	for _, s := range steps {
		if force && s.name == spec.Name && s.runs() && s.action != actStop {
			s.action, s.why = s.replacing(), o.Order
		}
	}
	if err := f.carryOut(ctx, steps, f.told(), nil); err != nil {
		return nil, admin.Refuse("Nothing was changed.", "%v", err)
	}
	f.Changed(f.Running())
	return steps, nil
}

// wanted is an agent as an override would have it, with its block checked by the program that would run.
func (f *Fleet) wanted(ctx context.Context, m *Member, o *override) (*config.Agent, error) {
	name := m.Spec.Name
	c, found, err := f.Load(ctx, config.Options{
		Sources: f.InForce().Sources(), Only: name,
		Override: func(_ config.Host, a *config.Agent) {
			if a.Name == name {
				o.apply(a)
			}
		},
		// Whether the program that is ordered starts is seen when it does; that of another agent is no matter of this order.
		Recall: func(_ config.Host, a config.Agent) *config.Recalled { return f.records.of(a.Name).recall(&a) },
	})
	if err != nil {
		return nil, err
	}
	if found.Errors() {
		return nil, admin.RefuseFindings(Rendered(found), "the configuration of agent %s does not fit; nothing was changed", name)
	}
	for i := range c.Agents {
		if c.Agents[i].Name == name {
			return &c.Agents[i], nil
		}
	}
	return nil, admin.NotConfigured(name)
}

// Rendered is findings as they are printed.
func Rendered(found *config.Diagnostics) string {
	var b bytes.Buffer
	found.Print(&b, 0, false)
	return b.String()
}

// Running is the agents as they run, in the order of priority.
func (f *Fleet) Running() (list []config.Agent) {
	for _, m := range f.Members() {
		list = append(list, m.Spec)
	}
	return list
}

// remember keeps an override, or forgets it when the configuration says the same.
func (f *Fleet) remember(name string, o *override) error {
	if m := f.member(name); m != nil && m.Spec.Drift == "" {
		o = nil
	}
	return f.records.change(name, func(r *agentRecord) { r.Override = o })
}

// done is the answer to an order that was carried out.
func (f *Fleet) done(name string, steps []*step, o *override) (admin.Ordered, error) {
	out := admin.Ordered{Did: []string{}}
	for _, s := range steps {
		if s.name == name {
			out.Did = append(out.Did, s.inWords())
		}
	}
	if err := f.remember(name, o); err != nil {
		return out, fmt.Errorf("it was done, and will be forgotten at the next start: %w", err)
	}
	return out, nil
}

// inWords says what a step has done.
func (s *step) inWords() string {
	switch s.action {
	case actStart:
		return fmt.Sprintf("agent %s %s was started", s.name, s.fresh.Manifest().GetVersion())
	case actStop:
		return fmt.Sprintf("agent %s was taken out; mail that waits for it goes on without it", s.name)
	case actReplace, actExchange:
		before, now := s.was.Agent.Manifest().GetVersion(), s.fresh.Manifest().GetVersion()
		return fmt.Sprintf("agent %s %s has followed %s", s.name, now, before)
	case actConfigure:
		return fmt.Sprintf("agent %s has taken its configuration while it runs", s.name)
	case actPlan:
		return fmt.Sprintf("the plan has changed for agent %s: %s", s.name, s.why)
	}
	return fmt.Sprintf("agent %s runs as it did", s.name)
}

// upgrade brings in the program or version that o names, or the one that is now where the running one was started
// from.
func (f *Fleet) upgrade(ctx context.Context, m *Member, o admin.Order) (admin.Ordered, error) {
	name := m.Spec.Name
	if m.Spec.Attach != "" {
		return admin.Ordered{}, admin.Refuse("", "agent %s is attached to: whoever started it replaces it", name)
	}
	next := f.records.of(name).Override.clone()
	next.Order, next.Since, next.Config, next.Named = admin.OrderUpgrade, time.Now(), nil, nil
	if err := f.choose(m, next, o); err != nil {
		return admin.Ordered{}, err
	}
	if m.Line == nil {
		return admin.Ordered{}, admin.Refuse("Enable it first: postern agent enable "+name, "agent %s is disabled", name)
	}
	if o.Trial != nil {
		return f.try(ctx, m, next, *o.Trial)
	}
	steps, err := f.ordered(ctx, m, next, true)
	if err != nil {
		return admin.Ordered{}, err
	}
	return f.done(name, steps, next)
}

// choose fills in the program of an upgrade: the one that was named, the newest of the versions that the configuration
// allows, or what is now where the running one was started from.
func (f *Fleet) choose(m *Member, next *override, o admin.Order) error {
	constraint := o.Version
	if constraint == "" && len(o.Command) == 0 && (len(next.Command) == 0 || catalog.ContentOf(next.Command) != "") {
		constraint = m.Spec.Version
	}
	switch {
	case constraint != "":
		e, err := catalog.In(f.Config.Host.DataDir).Resolve(m.Spec.Plugin, constraint, "")
		if err != nil {
			return admin.Refuse("Install one with postern agent install PATH, or name a program with --command.", "%v", err)
		}
		next.Command, next.Version = e.Command(), e.Version
	case len(o.Command) > 0:
		next.Command, next.Version = o.Command, ""
	}
	spec := m.Spec
	spec.Command, spec.SHA256, spec.Bundled = next.commandOr(m.Spec.Command), nil, false
	if err := f.Programs.take(f.Config.Host, &spec); err != nil {
		return admin.Refuse("", "%v", err)
	}
	next.SHA256 = spec.SHA256
	return nil
}

// clone is a copy to be changed.
func (o *override) clone() *override {
	if o == nil {
		return &override{}
	}
	c := *o
	return &c
}

func (o *override) commandOr(command []string) []string {
	if len(o.Command) > 0 {
		return o.Command
	}
	return command
}

// rollback goes back to the generation before: its program and its config block.
func (f *Fleet) rollback(ctx context.Context, m *Member) (admin.Ordered, error) {
	name := m.Spec.Name
	if m.trial != nil {
		why := "by order"
		f.takeBack(m, why)
		return admin.Ordered{Did: []string{fmt.Sprintf("the candidate of agent %s was taken back", name)}}, nil
	}
	record := f.records.of(name)
	before := record.Previous
	if before == nil {
		return admin.Ordered{}, admin.Refuse("", "no generation of agent %s before this one is known", name)
	}
	if now := programSum(before.Command); now != before.SHA256 {
		return admin.Ordered{}, admin.Refuse("Bring the program back, or name another with postern agent upgrade --command.",
			"the program of the generation before, %s (%s), is not there any more", strings.Join(before.Command, " "), before.Version)
	}
	next := record.Override.clone()
	next.Order, next.Since = admin.OrderRollback, time.Now()
	next.Command, next.Version, next.Config, next.Named = before.Command, before.Version, before.Config, before.Named
	next.SHA256 = before.Files
	steps, err := f.ordered(ctx, m, next, true)
	if err != nil {
		return admin.Ordered{}, err
	}
	return f.done(name, steps, next)
}

// enable puts an agent into the plan, or takes it out.
func (f *Fleet) enable(ctx context.Context, m *Member, on bool) (admin.Ordered, error) {
	name := m.Spec.Name
	if on == (m.Line != nil) {
		return admin.Ordered{Did: []string{fmt.Sprintf("agent %s is %s already", name, map[bool]string{true: "enabled", false: "disabled"}[on])}}, nil
	}
	next := f.records.of(name).Override.clone()
	next.Order, next.Since, next.Enabled = map[bool]string{true: admin.OrderEnable, false: admin.OrderDisable}[on], time.Now(), &on
	waiting := f.waiting(name)
	steps, err := f.ordered(ctx, m, next, false)
	if err != nil {
		return admin.Ordered{}, err
	}
	out, err := f.done(name, steps, next)
	if waiting > 0 && !on {
		out.Did = append(out.Did, fmt.Sprintf("%d messages that waited for it go on without it", waiting))
	}
	return out, err
}

// waiting counts the messages that wait for an agent.
func (f *Fleet) waiting(name string) int {
	q := f.Queue()
	if q == nil {
		return 0
	}
	return len(q.Entries(func(e queue.Entry) bool { return e.State == queue.Waiting && e.WaitingFor == name }))
}

// reset forgets what was ordered: what the configuration says runs.
func (f *Fleet) reset(ctx context.Context, m *Member) (admin.Ordered, error) {
	name := m.Spec.Name
	out := admin.Ordered{Did: []string{}}
	if m.trial != nil {
		f.takeBack(m, "by order")
		out.Did = append(out.Did, fmt.Sprintf("the candidate of agent %s was taken back", name))
		m = f.member(name)
	}
	if f.records.of(name).Override == nil && m.Spec.Drift == "" {
		out.Did = append(out.Did, fmt.Sprintf("agent %s runs what the configuration says", name))
		return out, nil
	}
	steps, err := f.ordered(ctx, m, &override{Order: admin.OrderReset}, false)
	if err != nil {
		return admin.Ordered{}, err
	}
	did, err := f.done(name, steps, nil)
	out.Did = append(out.Did, did.Did...)
	return out, err
}

// Drift says what was ordered and is not in the configuration.
func (f *Fleet) Drift() (out []string) {
	for _, m := range f.Members() {
		if m.Spec.Drift != "" {
			out = append(out, fmt.Sprintf("agent %s %s; postern agent reset %s takes that back", m.Spec.Name, m.Spec.Drift, m.Spec.Name))
		}
	}
	for _, name := range f.records.names() {
		if f.member(name) == nil && f.records.of(name).Override != nil {
			out = append(out, fmt.Sprintf("an order for agent %s is remembered, and it is not configured", name))
		}
	}
	return out
}

// DriftOf says what was ordered by command and is not in a configuration that was loaded without it, for `postern check`.
func DriftOf(c *config.Config) ([]string, error) {
	r, err := openRecords(c.Host.DataDir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, a := range c.Agents {
		a.Command = slices.Clone(a.Command)
		r.of(a.Name).apply(&a)
		if a.Drift != "" {
			out = append(out, fmt.Sprintf("agent %s %s; postern agent reset %s takes that back", a.Name, a.Drift, a.Name))
		}
	}
	return out, nil
}
