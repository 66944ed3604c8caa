package pipeline

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Member is one agent of a plan.
type Member struct {
	Caller Caller
	Spec   *config.Agent
	Trial  *Trial // a candidate beside it; nil: none

	copies Caller // that is shown copies of its events, in a variant
}

// Plan says which agents are asked at each event, in which order and which of them at once. It never changes.
type Plan struct {
	events [kinds][]stage
	pins   atomic.Int64 // conversations that go on under it

	members  []Member
	trials   bool     // some members have one
	variants sync.Map // plans for sessions that candidates take, by who takes them
	root     *Plan    // of a variant
}

// stage is agents that are asked at once; one agent where they run one after another.
type stage struct {
	asks  []*ask
	apart string // why it is not one stage with the one before it
}

// member is an agent of the plan with what does not depend on the event.
type member struct {
	name     string
	caller   Caller
	spec     *config.Agent
	manifest *agentpb.DescribeResponse
	category agentpb.Category
	bypassed string // stamp that skips it
	done     string // stamp that says it is not to be called again
	maxRows  map[string]int
}

// ask is one agent at one event: its subscription, ready for use.
type ask struct {
	*member
	kind      agentpb.EventKind
	rule      *rule
	sub       *agentpb.Subscription
	may       *agentpb.Changes
	header    headerNeed
	reads     patterns // stamps
	uses      []use
	onFailure string
	timeout   time.Duration
	touches   touches

	readsItself bool // it reads stamps that it may change

	copy  *ask   // of the generation that is compared with it; nil: none
	trial *Trial // with copy
}

// NewPlan sorts members by priority. Equal priorities are an error that names both agents, and so is a label that
// would make an agent's own stamps look like shared ones or the host's.
func NewPlan(members []Member) (*Plan, error) {
	sorted := slices.Clone(members)
	slices.SortStableFunc(sorted, func(a, b Member) int { return a.Spec.Priority - b.Spec.Priority })
	for i := 1; i < len(sorted); i++ {
		a, b := sorted[i-1].Spec, sorted[i].Spec
		if a.Priority == b.Priority {
			return nil, fmt.Errorf("agents %q and %q both have priority %d", a.Name, b.Name, a.Priority)
		}
	}
	for _, m := range sorted {
		if reservedLabel(m.Caller.Name()) {
			return nil, fmt.Errorf("the label %q of an agent is the beginning of shared stamps; give it another one", m.Caller.Name())
		}
	}
	p := &Plan{members: sorted}
	var asks [kinds][]*ask
	for _, m := range sorted {
		own := newMember(m).asks(m.Caller.Subscriptions())
		copyAsks(own, m)
		for _, a := range own {
			asks[a.kind] = append(asks[a.kind], a)
		}
		p.trials = p.trials || m.Trial != nil
	}
	for kind := range asks {
		p.events[kind] = stages(asks[kind])
	}
	return p, nil
}

func newMember(m Member) *member {
	manifest := m.Caller.Manifest()
	if manifest == nil {
		manifest = &agentpb.DescribeResponse{}
	}
	category := manifest.Category
	if category == agentpb.Category_CATEGORY_UNSPECIFIED {
		category = agentpb.Category_CATEGORY_OTHER
	}
	return &member{
		name: m.Caller.Name(), caller: m.Caller, spec: m.Spec, manifest: manifest, category: category,
		bypassed: stampBypass + categoryName(category), done: stampDone + m.Caller.Name(), maxRows: map[string]int{},
	}
}

// asks makes the asks of all subscriptions of m. The first subscription to an event counts.
func (m *member) asks(subs []*agentpb.Subscription) (list []*ask) {
	var seen [kinds]bool
	for _, sub := range subs {
		if !known(sub.GetEvent()) || seen[sub.GetEvent()] {
			continue
		}
		seen[sub.GetEvent()] = true
		list = append(list, m.ask(sub))
	}
	return list
}

func (m *member) ask(sub *agentpb.Subscription) *ask {
	r := &rules[sub.Event]
	a := &ask{
		member: m, kind: sub.Event, rule: r, sub: sub, may: sub.GetMayChange(), header: newHeaderNeed(sub.GetHeaders()),
		reads: sub.GetReadsStamps(), timeout: r.group.timeout(m.spec.Timeout),
	}
	if a.may == nil {
		a.may = &agentpb.Changes{}
	}
	for i, t := range sub.GetTables() {
		u := newUse(m.name, i, t)
		a.uses = append(a.uses, u)
		if n := int(min(t.GetMaxRows(), 1<<31)); n > 0 {
			m.maxRows[u.table] = n
		}
	}
	a.onFailure = m.failure(a)
	a.touches = newTouches(a)
	a.readsItself = a.touches.changeStamps.meet(a.touches.readStamps) != ""
	return a
}

// failure is what follows a failure at the event of a: the operator's word, or skip for an agent that declares no
// verdict there and defer for the others.
func (m *member) failure(a *ask) string {
	if f := m.spec.OnFailure[a.kind]; f != "" {
		return f
	}
	if a.may.Verdict {
		return "defer"
	}
	return "skip"
}

// grants reports whether the operator lets m do name. Without a list everything is granted but the bypass of
// antivirus and journaling.
func (m *member) grants(name string) bool {
	if m.spec.Grants != nil {
		return slices.Contains(m.spec.Grants, name)
	}
	return name != "bypass_antivirus" && name != "bypass_journaling"
}

// version of the agent as it described itself.
func (m *member) version() string { return m.manifest.GetVersion() }

// stages groups neighbours that can be asked at once: none reads what an earlier one may change, and at least two
// of them wait. A stage begins and ends with an agent that waits, since a cheap one gains nothing from company
// and, asked alone in front, can spare the others.
func stages(asks []*ask) (list []stage) {
	reason := ""
	for len(asks) > 0 {
		n, conflict := together(asks)
		first, last := waiters(asks[:n])
		if first == last { // fewer than two wait
			list, asks = single(list, asks, reason), asks[1:]
			reason = conflict
			if n > 1 {
				reason = "at most one of them waits"
			}
			continue
		}
		for range first {
			list, asks = single(list, asks, reason), asks[1:]
			reason = "the agent before it does not wait"
		}
		size := last - first + 1
		list, asks = append(list, stage{asks[:size], reason}), asks[size:]
		reason = conflict
		if last < n-1 {
			reason = "it does not wait"
		}
	}
	if len(list) > 0 {
		list[0].apart = ""
	}
	return list
}

func single(list []stage, asks []*ask, reason string) []stage {
	return append(list, stage{asks[:1], reason})
}

// together counts the agents from the first on of which none reads what an earlier one may change, and says why
// the next one does.
func together(asks []*ask) (n int, conflict string) {
	for n = 1; n < len(asks); n++ {
		for _, earlier := range asks[:n] {
			if what := asks[n].touches.reads(&earlier.touches); what != "" {
				return n, fmt.Sprintf("%s reads %s, which %s may change", asks[n].name, what, earlier.name)
			}
		}
	}
	return n, ""
}

// waiters finds the first and the last agent that waits; both are -1 when none does.
func waiters(asks []*ask) (first, last int) {
	first, last = -1, -1
	for i, a := range asks {
		if a.sub.GetWaits() {
			if first < 0 {
				first = i
			}
			last = i
		}
	}
	return first, last
}

// Subscribed reports whether any agent wants events of kind.
func (p *Plan) Subscribed(kind agentpb.EventKind) bool { return known(kind) && len(p.events[kind]) > 0 }

// EventPlan is the plan of one event, for `postern pipeline`.
type EventPlan struct {
	Event  string      `json:"event"`
	Stages []StagePlan `json:"stages"`
}

// StagePlan is a stage: agents that are asked at once.
type StagePlan struct {
	Agents []AgentPlan `json:"agents"`
	Apart  string      `json:"apart,omitempty"` // why it is not one stage with the one before it
}

// AgentPlan is an agent in a stage.
type AgentPlan struct {
	Agent     string   `json:"agent"`
	Version   string   `json:"version"`
	Priority  int      `json:"priority"`
	Reads     []string `json:"reads,omitempty"`
	Changes   []string `json:"changes,omitempty"`
	Waits     bool     `json:"waits,omitempty"`
	OnFailure string   `json:"on_failure,omitempty"`
	Timeout   string   `json:"timeout,omitempty"`
}

// Describe tells the plan event by event, in the order events happen in. Events without agents are left out.
func (p *Plan) Describe() (list []EventPlan) {
	for kind, stages := range p.events {
		if len(stages) == 0 {
			continue
		}
		e := EventPlan{Event: eventNames[kind]}
		for _, s := range stages {
			sp := StagePlan{Apart: s.apart}
			for _, a := range s.asks {
				sp.Agents = append(sp.Agents, a.describe())
			}
			e.Stages = append(e.Stages, sp)
		}
		list = append(list, e)
	}
	return list
}

func (a *ask) describe() AgentPlan {
	d := AgentPlan{
		Agent: a.name, Version: a.version(), Priority: a.spec.Priority, Waits: a.sub.GetWaits(),
		Reads: a.readsInWords(), Changes: a.changesInWords(), Timeout: a.timeout.String(),
	}
	if !a.rule.fact {
		d.OnFailure = a.onFailure
	}
	return d
}

func (a *ask) readsInWords() (list []string) {
	view := ""
	if a.sub.GetView() == agentpb.View_VIEW_ORIGINAL {
		view = " as received"
	}
	if a.header.any() {
		list = append(list, "headers"+view)
	}
	if a.sub.GetBody().GetMode() != agentpb.BodyMode_BODY_MODE_UNSPECIFIED {
		list = append(list, "body"+view)
	}
	for _, s := range a.reads {
		list = append(list, "stamp "+s)
	}
	for _, u := range a.uses {
		if word := "table " + u.table; !slices.Contains(list, word) { // one table may be read by several keys
			list = append(list, word)
		}
	}
	return list
}

func (a *ask) changesInWords() (list []string) {
	for _, c := range []struct {
		may  bool
		word string
	}{
		{a.may.Verdict, "verdict"}, {a.may.Headers, "headers"}, {a.may.Body, "body"}, {a.may.Envelope, "envelope"},
		{a.may.Bypass, "bypass"}, {a.may.KeepCopy, "keep_copy"}, {a.may.Spawn, "spawn"}, {a.may.Route, "route"},
	} {
		if c.may {
			list = append(list, c.word)
		}
	}
	for _, s := range a.may.Stamps {
		list = append(list, "stamp "+a.stampName(s))
	}
	for _, t := range a.may.Tables {
		list = append(list, "table "+TableName(a.name, t))
	}
	return list
}

// stampName is the full name of a stamp that the agent calls name.
func (m *member) stampName(name string) string {
	if isSharedStamp(name) {
		return name
	}
	return m.name + "." + name
}

// patterns are names, or beginnings of names followed by "*".
type patterns []string

// has reports whether a pattern covers name.
func (p patterns) has(name string) bool {
	for _, pattern := range p {
		if start, open := strings.CutSuffix(pattern, "*"); pattern == name || open && strings.HasPrefix(name, start) {
			return true
		}
	}
	return false
}

// meet finds a name that both a and b may cover, "" when there is none.
func (p patterns) meet(other patterns) string {
	for _, a := range p {
		for _, b := range other {
			as, aOpen := strings.CutSuffix(a, "*")
			bs, bOpen := strings.CutSuffix(b, "*")
			switch {
			case a == b, aOpen && strings.HasPrefix(bs, as):
				return b
			case bOpen && strings.HasPrefix(as, bs):
				return a
			}
		}
	}
	return ""
}

// touches is what an agent reads and may change at an event, as far as it orders agents.
type touches struct {
	readHeaders, readBody               bool
	changeHeaders, changeBody, envelope bool
	readStamps, changeStamps            patterns
	readTables, changeTables            patterns
}

func newTouches(a *ask) touches {
	current := a.sub.GetView() != agentpb.View_VIEW_ORIGINAL
	t := touches{
		readHeaders:   current && a.header.any(),
		readBody:      current && a.sub.GetBody().GetMode() != agentpb.BodyMode_BODY_MODE_UNSPECIFIED,
		changeHeaders: a.mayEdit(editHeaders),
		changeBody:    a.mayEdit(editBody),
		envelope:      a.mayEdit(editEnvelope | editExpand | editRoute),
		readStamps:    append(slices.Clone(a.reads), a.bypassed),
	}
	for _, u := range a.uses {
		t.readTables = append(t.readTables, u.table)
	}
	for _, s := range a.may.Stamps {
		t.changeStamps = append(t.changeStamps, a.stampName(s))
	}
	for _, name := range a.may.Tables {
		t.changeTables = append(t.changeTables, TableName(a.name, name))
	}
	for c := range agentpb.Category_name {
		if c := agentpb.Category(c); c != 0 && a.mayBypass(c) {
			t.changeStamps = append(t.changeStamps, stampBypass+categoryName(c))
		}
	}
	if a.onFailure == "skip" {
		t.changeStamps = append(t.changeStamps, stampSkipped)
	}
	return t
}

// reads names what t reads of what earlier may change. Every agent reads the envelope.
func (t *touches) reads(earlier *touches) string {
	switch {
	case earlier.envelope:
		return "the envelope"
	case t.readHeaders && earlier.changeHeaders:
		return "headers"
	case t.readBody && earlier.changeBody:
		return "the body"
	}
	if name := earlier.changeStamps.meet(t.readStamps); name != "" {
		return "stamp " + name
	}
	if name := earlier.changeTables.meet(t.readTables); name != "" {
		return "table " + name
	}
	return ""
}

// mayEdit reports whether the agent may make any edit of set: the event allows it, the agent declared it and the
// operator grants it.
func (a *ask) mayEdit(set edits) bool {
	for bit := edits(1); bit <= editCopy; bit <<= 1 {
		if set&bit != 0 && a.refuses(bit) == "" {
			return true
		}
	}
	return false
}

// refuses says why an edit of kind may not stand in an answer; "" when it may.
func (a *ask) refuses(kind edits) string {
	declared, grant := a.declares(kind)
	switch {
	case a.rule.edits&kind == 0:
		return "is not allowed at " + eventNames[a.kind]
	case !declared:
		return "is not declared in the subscription"
	case !a.grants(grant):
		return "needs the grant " + grant
	}
	return ""
}

// declares reports whether the subscription lists edits of kind, and names the grant they need.
func (a *ask) declares(kind edits) (declared bool, grant string) {
	switch kind {
	case editHeaders:
		return a.may.Headers, "headers"
	case editBody:
		return a.may.Body, "body"
	case editRoute:
		return a.may.Route, "route"
	case editSpawn:
		return a.may.Spawn, "spawn"
	case editCopy:
		return a.may.KeepCopy, "keep_copy"
	}
	return a.may.Envelope, "envelope"
}

// mayBypass reports whether the agent may skip the agents of category c.
func (a *ask) mayBypass(c agentpb.Category) bool {
	return a.may.Bypass && a.rule.verdicts.has(agentpb.VerdictKind_VERDICT_KIND_BYPASS) && a.grants(bypassGrant(c))
}
