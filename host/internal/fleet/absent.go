package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/catalog"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/sdk/agentpb"
)

// This file has a host start without an agent whose process cannot be started: one damaged program does not keep all mail
// away. What such an agent asks for is known from its last good generation; where it never ran the host does not start,
// since mail would pass by an agent that nobody has asked what it wants to see.

// known is what must be known of an agent to make a plan without it.
type known struct {
	Plugin        string            `json:"plugin"`
	Manifest      json.RawMessage   `json:"manifest"`
	Subscriptions []json.RawMessage `json:"subscriptions"`
}

// knownOf is an agent that runs. nil: it cannot be written down.
func knownOf(m *Member) *known {
	k := &known{Plugin: m.Spec.Plugin}
	var err error
	if k.Manifest, err = protojson.Marshal(m.Agent.Manifest()); err != nil {
		return nil
	}
	for _, s := range m.Agent.Subscriptions() {
		raw, err := protojson.Marshal(s)
		if err != nil {
			return nil
		}
		k.Subscriptions = append(k.Subscriptions, raw)
	}
	return k
}

// read is the manifest and the subscriptions. What a later host has written and this one does not know is passed over.
func (k *known) read() (*agentpb.DescribeResponse, []*agentpb.Subscription, error) {
	lenient := protojson.UnmarshalOptions{DiscardUnknown: true}
	manifest := new(agentpb.DescribeResponse)
	if err := lenient.Unmarshal(k.Manifest, manifest); err != nil {
		return nil, nil, fmt.Errorf("the manifest that is remembered: %w", err)
	}
	var subscriptions []*agentpb.Subscription
	for _, raw := range k.Subscriptions {
		s := new(agentpb.Subscription)
		if err := lenient.Unmarshal(raw, s); err != nil {
			return nil, nil, fmt.Errorf("the subscriptions that are remembered: %w", err)
		}
		subscriptions = append(subscriptions, s)
	}
	return manifest, subscriptions, nil
}

// Recall answers with the last good generation of an agent, for config.Options. A file that cannot be read is told by
// Launch.
func Recall() func(config.Host, config.Agent) *config.Recalled {
	record := recorded()
	return func(host config.Host, a config.Agent) *config.Recalled { return record(host, a.Name).recall(&a) }
}

// recall is the last good generation of an agent, nil where none is known.
func (r agentRecord) recall(a *config.Agent) *config.Recalled {
	if r.Current == nil || r.Known == nil || r.Known.Plugin != a.Plugin {
		return nil
	}
	manifest, _, err := r.Known.read()
	if err != nil {
		return nil
	}
	return &config.Recalled{
		Command: slices.Clone(r.Current.Command), SHA256: r.Current.Files, Manifest: manifest,
		Installed: catalog.ContentOf(r.Current.Command) != "" && catalog.Satisfies(r.Current.Version, a.Version),
	}
}

// rescue starts something else where the generation of an agent that is wanted does not start, for the reason why: its last
// good one, or nothing.
func (f *Fleet) rescue(ctx context.Context, s *step, why error) error {
	err := f.orLastGood(ctx, s)
	if s.fresh != nil || f.Strict {
		return err
	}
	return errors.Join(err, f.orAbsent(s, errors.Join(why, err)))
}

// orAbsent goes on without an agent, unless it says itself that its configuration is wrong.
func (f *Fleet) orAbsent(s *step, why error) error {
	var refused *agent.Refused
	if errors.As(why, &refused) {
		return nil
	}
	k := f.records.of(s.name).Known
	if k == nil || k.Plugin != s.spec.Plugin {
		return fmt.Errorf("nothing is known of agent %s from an earlier run, so the host does not start without it: mend it, or write enabled = false", s.name)
	}
	manifest, subscriptions, err := k.read()
	if err != nil {
		return fmt.Errorf("agent %s: %w", s.name, err)
	}
	s.fresh, s.absent = agent.Absent(f.options(s.spec, s.facts), manifest, subscriptions, why), true
	f.Logger.Error("the host starts without an agent: its events follow on_failure until it can be started", "agent", s.name, "error", why)
	return nil
}

// Arrive takes in the agents that the host has started without and that are up by now, see orAbsent.
func (f *Fleet) Arrive() {
	for _, m := range f.Members() {
		if m.absent && m.Agent.Ready() {
			f.arrive(m.Spec.Name)
		}
	}
}

// arrive gives an agent that is up at last its place: the plan is made of what it asks for now, and it is the last good
// generation.
func (f *Fleet) arrive(name string) {
	f.changing.Lock()
	defer f.changing.Unlock()
	m := f.member(name)
	if m == nil || !m.absent || !m.Agent.Ready() || !f.mayEnd() {
		return
	}
	again := *m
	again.absent = false
	f.mu.Lock()
	f.members[name] = &again
	f.mu.Unlock()
	f.replan()
	f.note(&step{action: actStart, name: name, why: "it can be started again"})
	f.lock()
}
