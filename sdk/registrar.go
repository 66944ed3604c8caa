package sdk

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/sdk/agentpb"
)

// Registrar is what New gets beside its configuration: the host's facts, a place to say what is wrong with the
// configuration, and what each event needs.
type Registrar struct {
	host        *Host
	logger      hclog.Logger
	instance    string
	stateDir    string
	health      *Health
	validating  bool
	diagnostics []*agentpb.Diagnostic
	tables      []*tableUse
	asked       [kinds][]Option
	said        [kinds]bool
	skipped     [kinds]bool
	narrowed    [kinds]bool // MayChange was given
}

func newRegistrar(def *definition, host *agentpb.HostFacts, instance, stateDir string, logger hclog.Logger) *Registrar {
	if instance == "" {
		instance = def.info.Name
	}
	return &Registrar{host: hostOf(host), logger: logger, instance: instance, stateDir: stateDir, health: newHealth(logger)}
}

// Host facts.
func (r *Registrar) Host() *Host { return r.host }

// Logger that names agent and version. In handlers use that of the event.
func (r *Registrar) Logger() hclog.Logger { return r.logger }

// Instance is the label of the agent's block in the configuration ("rewrite-in"). It may differ from the
// agent's name, and own stamps and tables are named after it.
func (r *Registrar) Instance() string { return r.instance }

// StateDir is a folder that the agent may write and that outlives its processes. All of them share it.
func (r *Registrar) StateDir() string { return r.stateDir }

// Health is where the agent says what it has to work without.
func (r *Registrar) Health() *Health { return r.health }

// Validating reports whether the result of New will be thrown away: nothing may be started or written.
func (r *Registrar) Validating() bool { return r.validating }

// On is the method of that event's name (OnRcpt, ...) for those who have the event in a variable.
func (r *Registrar) On(kind EventKind, options ...Option) { r.on(kind, options) }

// on remembers the options of an event until its handlers are known.
func (r *Registrar) on(kind EventKind, options []Option) {
	r.said[kind] = true
	r.asked[kind] = append(r.asked[kind], options...)
}

// Skip events whose handlers have nothing to do under this configuration: the host does not send them. The
// cheapest event is the one not sent.
func (r *Registrar) Skip(events ...EventKind) {
	for _, kind := range events {
		r.skipped[kind] = true
	}
}

// Warn tells the operator of a surprise; the configuration is used all the same.
func (r *Registrar) Warn(summary string) { r.At().Warn(summary) }

// At points a diagnostic at a place in the configuration: names of attributes and blocks, and indexes into
// lists and repeated blocks: At("resolver", 1, "port"). A key of a map is a MapKey.
func (r *Registrar) At(path ...any) Place {
	var steps []*agentpb.PathStep
	for _, p := range path {
		steps = append(steps, pathStep(p))
	}
	return Place{r, steps}
}

// MapKey is a key of a map in a path.
type MapKey string

func pathStep(p any) *agentpb.PathStep {
	switch p := p.(type) {
	case int:
		return &agentpb.PathStep{Step: &agentpb.PathStep_Index{Index: uint32(p)}}
	case MapKey:
		return &agentpb.PathStep{Step: &agentpb.PathStep_Key{Key: string(p)}}
	}
	return &agentpb.PathStep{Step: &agentpb.PathStep_Name{Name: fmt.Sprint(p)}}
}

// Place in the configuration.
type Place struct {
	r    *Registrar
	path []*agentpb.PathStep
}

// diagnosticError is a diagnostic that New may return as its error.
type diagnosticError struct{ d *agentpb.Diagnostic }

func (e *diagnosticError) Error() string {
	if len(e.d.Path) == 0 {
		return e.d.Summary
	}
	return pathText(e.d.Path) + ": " + e.d.Summary
}

// Error says that the value at this place cannot be used, and why. New may return it; if it goes on instead,
// further errors are shown in the same run.
func (p Place) Error(err error) error {
	return p.add(agentpb.Severity_SEVERITY_ERROR, err.Error(), "")
}

// Errorf is Error with a format.
func (p Place) Errorf(format string, args ...any) error { return p.Error(fmt.Errorf(format, args...)) }

// Warn says that the value at this place surprises.
func (p Place) Warn(summary string) { p.add(agentpb.Severity_SEVERITY_WARNING, summary, "") }

func (p Place) add(severity agentpb.Severity, summary, detail string) error {
	d := &agentpb.Diagnostic{Severity: severity, Summary: summary, Detail: detail, Path: p.path}
	p.r.diagnostics = append(p.r.diagnostics, d)
	return &diagnosticError{d}
}

// fail records an error of New, unless it is a diagnostic that was recorded already.
func (r *Registrar) fail(err error) {
	var known *diagnosticError
	if errors.As(err, &known) && slices.Contains(r.diagnostics, known.d) {
		return
	}
	r.At().Error(err)
}

func (r *Registrar) failed() bool {
	return slices.ContainsFunc(r.diagnostics, func(d *agentpb.Diagnostic) bool {
		return d.Severity != agentpb.Severity_SEVERITY_WARNING
	})
}

// pathText writes a path for people: resolver[1].port.
func pathText(path []*agentpb.PathStep) string {
	var b strings.Builder
	for i, s := range path {
		switch s := s.Step.(type) {
		case *agentpb.PathStep_Name:
			if i > 0 {
				b.WriteByte('.')
			}
			b.WriteString(s.Name)
		case *agentpb.PathStep_Index:
			fmt.Fprintf(&b, "[%d]", s.Index)
		case *agentpb.PathStep_Key:
			fmt.Fprintf(&b, "[%q]", s.Key)
		}
	}
	return b.String()
}

// subscriptions of the agent: one for each handler, with what New asked for.
func (r *Registrar) subscriptions(agent any, have *handlers) []*agentpb.Subscription {
	r.checkMethods(agent, have)
	if !slices.ContainsFunc(have[:], func(h handler) bool { return h != nil }) {
		r.At().Errorf("a bug in the agent: %T has no handler (a method such as OnRcpt)", agent)
	}
	var all []*agentpb.Subscription
	for kind := range EventKind(kinds) {
		if r.skipped[kind] {
			continue
		}
		if have[kind] == nil {
			if r.said[kind] {
				r.At().Errorf("a bug in the agent: New calls %s of the Registrar, but %T has no such handler", EventName(kind), agent)
			}
			continue
		}
		all = append(all, r.subscription(kind))
	}
	return all
}

// subscription of one event.
func (r *Registrar) subscription(kind EventKind) *agentpb.Subscription {
	s := &agentpb.Subscription{Event: kind, MayChange: &agentpb.Changes{Verdict: verdictExpected(kind)}}
	for _, o := range r.asked[kind] {
		o.apply(s, r)
	}
	for _, u := range r.tables {
		if !u.available(kind) {
			continue
		}
		s.Tables = append(s.Tables, u.proto())
		u.index[kind] = len(s.Tables)
		if !slices.Contains(s.MayChange.Tables, u.name) {
			s.MayChange.Tables = append(s.MayChange.Tables, u.name)
		}
	}
	if s.Body.GetMode() != agentpb.BodyMode_BODY_MODE_UNSPECIFIED && !hasBody(kind) {
		r.At().Errorf("a bug in the agent: %s has no body", EventName(kind))
	}
	if kind == OnSchedule && s.Every == "" {
		r.At().Errorf("a bug in the agent: OnSchedule needs an interval: r.OnSchedule(sdk.Every(24 * time.Hour))")
	}
	return s
}

func hasBody(kind EventKind) bool {
	return kind == OnEndOfData || kind >= OnSubmitted && kind <= OnCategorized || kind == OnReleased || kind == OnFeedback
}

// verdictExpected is false for facts, whose answers hold no judgement; OnReject may disconnect.
func verdictExpected(kind EventKind) bool {
	switch kind {
	case OnDisconnect, OnDelivered, OnDeferred, OnFailed, OnReported, OnSchedule, OnReleased, OnFeedback:
		return false
	}
	return true
}

// checkMethods finds handlers that would never be called: a method that looks like one and is none.
func (r *Registrar) checkMethods(agent any, have *handlers) {
	t := reflect.TypeOf(agent)
	if t == nil {
		r.At().Errorf("a bug in the agent: New returned nothing")
		return
	}
	for i := range t.NumMethod() {
		name := t.Method(i).Name
		if len(name) < 3 || !strings.HasPrefix(name, "On") || name[2] < 'A' || name[2] > 'Z' {
			continue
		}
		kind := EventKind(slices.Index(eventNames[:], name))
		switch {
		case kind < 0:
			r.Warn(fmt.Sprintf("%s has a method %s, but there is no such event", t, name))
		case have[kind] == nil:
			r.At().Errorf("a bug in the agent: %s.%s is %s; see sdk.%sHandler for what it must be",
				t, name, t.Method(i).Type, name[2:])
		}
	}
}
