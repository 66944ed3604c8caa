package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/posternmail/postern/sdk/agentpb"
)

// defaultTimeout of an agent at any event.
const defaultTimeout = 5 * time.Second

var agentName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}$`)

// buildAgents makes the agents, in the order of priority.
func (l *loader) buildAgents() {
	defaults := l.root.one("agent_defaults")
	l.spread(defaults)
	l.buildTimeouts(defaults.one("timeout")) // for their mistakes, wherever agents say otherwise
	l.buildOnFailure(defaults.one("on_failure"))
	var agents []*agentNode
	for _, n := range l.root.all("agent") {
		l.spread(n)
		inherit(n, defaults)
		agents = append(agents, &agentNode{node: n, agent: l.buildAgent(n)})
	}
	l.checkPriorities()
	l.configureAgents(agents)
	sort.SliceStable(agents, func(i, j int) bool { return agents[i].agent.Priority < agents[j].agent.Priority })
	for _, a := range agents {
		l.config.Agents = append(l.config.Agents, a.agent)
	}
}

// agentNode is an agent block with what was made of it.
type agentNode struct {
	node  *node
	agent Agent
	mute  bool // its program cannot be asked
}

// spread turns `timeout = "5s"` into the same for every group of events, and so for on_failure. A group that the
// block form leaves out gets its "default".
func (l *loader) spread(n *node) {
	for _, name := range []string{"timeout", "on_failure"} {
		whole, groups := n.values[name], n.one(name)
		if whole.set && groups.present {
			l.diags.errorf(groups.at, "%s is there twice, as an argument at %s and as a block", name, short(whole.nameAt))
		}
		if whole.set && whole.raw == "hold" && !whole.bad {
			l.diags.errorf(whole.at, `hold is possible only at the end of data; write on_failure { message = "hold" }`)
			whole.bad = true
		}
		if !whole.set && name == "on_failure" {
			whole = groups.values["default"]
		}
		if whole.set {
			fill(groups, whole)
		}
	}
}

// fill gives all groups of events a value that have none.
func fill(groups *node, whole *value) {
	for _, group := range []string{"default", groupConnect, groupCommand, groupMessage, groupSubmitted} {
		if v := groups.values[group]; v != nil && !v.set {
			copied := *whole
			copied.spread = true
			groups.values[group] = &copied
		}
	}
}

// inherit takes over from agent_defaults what the agent does not say.
func inherit(n, defaults *node) {
	for _, name := range []string{"timeout", "on_failure", "when", "sandbox"} {
		own := n.one(name)
		for option, v := range defaults.one(name).values {
			if v.set && !own.values[option].set {
				own.values[option] = v
			}
		}
	}
}

func (l *loader) buildAgent(n *node) Agent {
	l.checkAgentName(n.label(), n.labelAt())
	n.derive("plugin", n.label(), "the label")
	if n.set("plugin") {
		l.checkAgentName(n.str("plugin"), n.rangeOf("plugin"))
	}
	agent := Agent{
		Name:         n.label(),
		Plugin:       n.str("plugin"),
		Enabled:      n.flag("enabled"),
		Priority:     int(n.number("priority")),
		Attach:       n.str("attach"),
		When:         l.buildWhen(n.one("when")),
		Timeout:      l.buildTimeouts(n.one("timeout")),
		OnFailure:    l.buildOnFailure(n.one("on_failure")),
		Instances:    int(n.number("instances")),
		Grants:       buildGrants(n),
		MaxInFlight:  int(n.number("max_in_flight")),
		StartTimeout: n.duration("start_timeout"),
		Restart:      buildRestart(n.one("restart")),
		Range:        n.at,
	}
	agent.Sandbox = l.buildSandbox(n)
	agent.Command = l.buildCommand(n, &agent)
	agent.Env, agent.Sensitive = l.buildEnvironment(n)
	if config := n.one("config"); config.present {
		agent.ConfigBody = config.body
	}
	agent.Trial = l.buildTrial(n)
	if l.opts.Override != nil {
		l.opts.Override(l.config.Host, &agent)
		l.found(&agent)
	}
	l.seal(n, &agent)
	return agent
}

// seal has the digests of an agent's files set. Those of a disabled one may be missing.
func (l *loader) seal(n *node, agent *Agent) {
	if l.opts.Seal == nil || len(agent.Command) == 0 || !agent.Enabled {
		return
	}
	if err := l.opts.Seal(l.config.Host, agent); err != nil {
		if known := l.recall(*agent); known != nil && slices.Equal(known.Command, agent.Command) {
			l.gone(agent, known, n.at, fmt.Sprintf("%s: %v", n.title(), err))
			return
		}
		l.diags.errorf(n.at, "%s: %v", n.title(), err)
		agent.Command = nil // it is not asked for its options
	}
}

func (l *loader) checkAgentName(name string, at hcl.Range) {
	if !agentName.MatchString(name) {
		l.diags.errorf(at, "%q is no name of an agent: a small letter, then small letters, digits and hyphens, at most 64", name)
	}
}

// buildGrants tells an empty list, which grants nothing, from none, which grants the usual.
func buildGrants(n *node) []string {
	if !n.set("grants") {
		return nil
	}
	return append([]string{}, n.strs("grants")...)
}

func buildRestart(n *node) Restart {
	return Restart{Attempts: int(n.number("attempts")), RetryFailed: n.duration("retry_failed")}
}

func (l *loader) buildWhen(n *node) When {
	when := When{Connectors: n.strs("connectors"), Traffic: n.strs("traffic"), MaxSize: n.number("max_size")}
	if n.set("authenticated") {
		authenticated := n.flag("authenticated")
		when.Authenticated = &authenticated
	}
	var names []string
	for _, connector := range l.root.all("receive_connector") {
		names = append(names, connector.label())
	}
	n.each("connectors", func(_ int, s string, at hcl.Range) {
		if !slices.Contains(names, s) && !l.broken {
			l.diags.errorf(at, "there is no receive_connector %q%s", s, Suggestion(s, names))
		}
	})
	return when
}

// buildTimeouts bounds each group by the event's budget: a value meant for all groups silently, one written for
// the group with an error.
func (l *loader) buildTimeouts(n *node) Timeouts {
	budget := l.config.Host.EventBudget
	return Timeouts{
		Connect:   l.timeout(n, groupConnect, budget.Connect),
		Command:   l.timeout(n, groupCommand, budget.Command),
		Message:   l.timeout(n, groupMessage, budget.Message),
		Submitted: l.timeout(n, groupSubmitted, budget.Routing),
		Max:       n.duration("max"),
	}
}

func (l *loader) timeout(n *node, group string, budget time.Duration) time.Duration {
	v := n.values[group]
	if !v.set {
		n.derive(group, FormatDuration(defaultTimeout), "default")
	}
	d := n.duration(group)
	if budget == 0 || d <= budget {
		return d
	}
	switch {
	case v.set && v.spread:
		l.cut(v, group, budget)
	case v.set:
		l.diags.errorf(v.at, "%s exceeds the event budget of %s for %s", v.raw, FormatDuration(budget), budgetName(group))
	}
	capped := *v
	capped.raw = FormatDuration(budget)
	n.values[group] = &capped
	return budget
}

// cut warns, once for a value, that one timeout for all groups of events is more than the budget of the first.
func (l *loader) cut(v *value, group string, budget time.Duration) {
	if l.wasCut[v.at] {
		return
	}
	if l.wasCut == nil {
		l.wasCut = map[hcl.Range]bool{}
	}
	l.wasCut[v.at] = true
	l.diags.warnf(v.at, "timeout %s is longer than the event budget: it is cut, to %s for %s and likewise for other events; "+
		"write timeout { message = %q } for the end of the message alone", v.raw, FormatDuration(budget), budgetName(group), v.raw)
}

// budgetName is the argument of event_budget that bounds a group.
func budgetName(group string) string {
	if group == groupSubmitted {
		return "routing"
	}
	return group
}

// groupEvents are the decisions of each group. Facts are not awaited and have no on_failure.
func groupEvents(group string) []agentpb.EventKind {
	switch group {
	case groupConnect:
		return []agentpb.EventKind{agentpb.EventKind_EVENT_KIND_CONNECT}
	case groupCommand:
		return []agentpb.EventKind{
			agentpb.EventKind_EVENT_KIND_HELO, agentpb.EventKind_EVENT_KIND_EHLO, agentpb.EventKind_EVENT_KIND_START_TLS,
			agentpb.EventKind_EVENT_KIND_AUTH, agentpb.EventKind_EVENT_KIND_END_OF_AUTHENTICATION,
			agentpb.EventKind_EVENT_KIND_MAIL, agentpb.EventKind_EVENT_KIND_RCPT, agentpb.EventKind_EVENT_KIND_DATA,
			agentpb.EventKind_EVENT_KIND_NOOP, agentpb.EventKind_EVENT_KIND_HELP, agentpb.EventKind_EVENT_KIND_RSET,
		}
	case groupMessage:
		return []agentpb.EventKind{
			agentpb.EventKind_EVENT_KIND_END_OF_HEADERS, agentpb.EventKind_EVENT_KIND_END_OF_DATA,
		}
	}
	return []agentpb.EventKind{
		agentpb.EventKind_EVENT_KIND_SUBMITTED, agentpb.EventKind_EVENT_KIND_RESOLVED,
		agentpb.EventKind_EVENT_KIND_ROUTED, agentpb.EventKind_EVENT_KIND_CATEGORIZED,
	}
}

// buildOnFailure leaves out the events for which nobody said anything: whether the agent declares a verdict there
// is known only from its subscription.
func (l *loader) buildOnFailure(n *node) map[agentpb.EventKind]string {
	policy := map[agentpb.EventKind]string{}
	for _, group := range []string{"default", groupConnect, groupCommand, groupMessage, groupSubmitted} {
		l.checkHold(n, group)
		if group == "default" || !n.set(group) {
			continue
		}
		for _, kind := range groupEvents(group) {
			policy[kind] = n.str(group)
		}
	}
	if policy[agentpb.EventKind_EVENT_KIND_END_OF_HEADERS] == "hold" {
		// There is no message yet that could be held.
		delete(policy, agentpb.EventKind_EVENT_KIND_END_OF_HEADERS)
	}
	return policy
}

// checkHold refuses "hold" where there is no message to hold, and "reject" where the message was accepted.
func (l *loader) checkHold(n *node, group string) {
	v := n.values[group]
	if v.bad || v.spread && group != "default" {
		return
	}
	if v.raw == "hold" && group != groupMessage {
		l.diags.errorf(v.at, `hold is possible only at the end of data; write message = "hold"`)
	}
	if v.raw == "reject" && group == groupSubmitted {
		l.diags.errorf(v.at, "reject is not possible after the message was accepted; use defer or skip")
	}
}

// buildCommand finds the program; nil when it cannot be run. The program of a disabled agent may be missing.
func (l *loader) buildCommand(n *node, agent *Agent) []string {
	l.checkOneProgram(n)
	if n.set("attach") && n.number("instances") > 1 {
		l.diags.errorf(n.rangeOf("instances"), "an attached agent is one process")
	}
	words := n.strs("command")
	switch {
	case n.value("command").bad || n.value("attach").bad || n.value("plugin").bad || n.value("version").bad, n.set("attach"):
		return nil
	case len(words) > 0:
		return l.givenCommand(n, agent, words)
	case n.set("version"):
		agent.Version = n.str("version")
		return l.installedCommand(n, agent)
	}
	agent.Bundled = true
	return l.bundledCommand(n, agent)
}

// checkOneProgram wants one answer to what is run.
func (l *loader) checkOneProgram(n *node) {
	var first string
	for _, name := range []string{"attach", "command", "version"} {
		switch {
		case !n.set(name):
		case first == "":
			first = name
		default:
			l.diags.errorf(n.value(name).nameAt, "%s beside %s at %s; give one of them", name, first, short(n.value(first).nameAt))
		}
	}
}

// installedCommand is the program of an installed version. That of a disabled agent may be missing.
func (l *loader) installedCommand(n *node, agent *Agent) []string {
	if l.opts.Installed == nil {
		return nil
	}
	command, err := l.opts.Installed(l.config.Host, *agent)
	known := l.recall(*agent)
	switch {
	case err == nil || !n.flag("enabled"):
	case known != nil && known.Installed:
		command = l.gone(agent, known, n.rangeOf("version"), err.Error())
	default:
		l.diags.add(SeverityError, n.rangeOf("version"), err.Error(), "Versions are installed with postern agent install PATH; postern agent list --installed shows those there are.")
	}
	words := []any{}
	for _, word := range command {
		words = append(words, word)
	}
	n.derive("command", words, "the version")
	return command
}

func (l *loader) givenCommand(n *node, agent *Agent, words []string) []string {
	at := n.value("command").place.elem(0).at
	program, err := findProgram(l.dir(n), words[0])
	command := append([]string{program}, words[1:]...)
	if err == nil || !n.flag("enabled") {
		return command
	}
	summary := fmt.Sprintf("the agent's program cannot be run: %v", err)
	if known := l.recall(*agent); known != nil && (slices.Equal(known.Command, command) || wasFound(known.Command, words)) {
		return l.gone(agent, known, at, summary)
	}
	l.diags.errorf(at, "%s", summary)
	return nil
}

// wasFound reports whether a command is what the words were found to be in PATH.
func wasFound(command, words []string) bool {
	return len(command) > 0 && !strings.Contains(words[0], "/") && filepath.Base(command[0]) == words[0] && slices.Equal(command[1:], words[1:])
}

// recall is what is known of an agent that has run before; nil where nothing is, or where that does not matter.
func (l *loader) recall(a Agent) *Recalled {
	if l.opts.Recall == nil {
		return nil
	}
	return l.opts.Recall(l.config.Host, a)
}

// gone warns that the program of an agent is not there which has run before by the same words: that is no mistake in the
// file, and the program may come back.
func (l *loader) gone(agent *Agent, known *Recalled, at hcl.Range, summary string) []string {
	agent.SHA256 = maps.Clone(known.SHA256)
	l.unable(at, summary, true)
	l.missing[agent.Name] = known
	return slices.Clone(known.Command)
}

// found forgets that the program of an agent is missing when an order has it run another one.
func (l *loader) found(agent *Agent) {
	known := l.missing[agent.Name]
	if known == nil || slices.Equal(known.Command, agent.Command) {
		return
	}
	delete(l.missing, agent.Name)
	if maps.Equal(agent.SHA256, known.SHA256) {
		agent.SHA256 = nil
	}
}

// unable files what keeps an agent from being started or asked: a warning where it is known from before.
func (l *loader) unable(at hcl.Range, summary string, known bool) {
	switch {
	case known:
		l.diags.add(SeverityWarning, at, summary, "The host starts without the agent, which ran before: its events follow on_failure until it can be started.")
	case l.opts.Recall != nil:
		l.diags.add(SeverityError, at, summary, "Nothing is known of this agent from an earlier run, so the host does not start without it: mend it, or write enabled = false.")
	default:
		l.diags.add(SeverityError, at, summary, "")
	}
}

func findProgram(dir, word string) (string, error) {
	if !strings.Contains(word, "/") {
		found, err := exec.LookPath(word)
		if err != nil {
			return word, fmt.Errorf("%s is not in PATH; a program beside this file is ./%s", word, word)
		}
		return filepath.Abs(found)
	}
	path := absolute(dir, word)
	return path, checkProgram(path)
}

func checkProgram(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s does not exist", path)
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a file", path)
	case info.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("%s is not executable; make it chmod +x", path)
	}
	return nil
}

// bundledCommand is the program that came with the host.
func (l *loader) bundledCommand(n *node, agent *Agent) []string {
	plugin, dir := n.str("plugin"), l.opts.AgentDir
	path := filepath.Join(dir, plugin)
	n.derive("command", []any{path}, sourceDefault)
	err := checkProgram(path)
	if err == nil || !n.flag("enabled") || !agentName.MatchString(plugin) {
		return []string{path}
	}
	at := n.labelAt()
	if n.set("plugin") {
		at = n.rangeOf("plugin")
	}
	if known := l.recall(*agent); known != nil && slices.Equal(known.Command, []string{path}) {
		return l.gone(agent, known, at, fmt.Sprintf("the program of bundled agent %q cannot be run: %v", plugin, err))
	}
	if near := Suggestion(plugin, programs(dir)); near != "" {
		l.diags.errorf(at, "there is no bundled agent %q%s", plugin, near)
	} else {
		l.diags.add(SeverityError, at, fmt.Sprintf("there is no bundled agent %q: %v", plugin, err), `Name another with plugin = "...", or its program with command = ["..."].`)
	}
	return nil
}

func programs(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// bundledAgents is the folder beside the host's binary.
func bundledAgents() string {
	binary, err := os.Executable()
	if err != nil {
		return "agents"
	}
	if real, err := filepath.EvalSymlinks(binary); err == nil {
		binary = real
	}
	return filepath.Join(filepath.Dir(binary), "agents")
}

var environmentName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// buildEnvironment returns the variables and which of them are secret.
func (l *loader) buildEnvironment(n *node) (map[string]string, map[string]bool) {
	v := n.value("environment")
	variables, _ := v.raw.(map[string]any)
	env, secret := map[string]string{}, map[string]bool{}
	for name, raw := range variables {
		l.checkVariable(v, name, raw)
		env[name], _ = raw.(string)
		if v.sensitive || v.secrets[name] {
			secret[name] = true
		}
	}
	return env, secret
}

func (l *loader) checkVariable(v *value, name string, raw any) {
	at := v.place.keyName(name)
	if !environmentName.MatchString(name) {
		l.diags.errorf(at, "%q is no name of an environment variable", name)
	}
	if strings.HasPrefix(name, "POSTERN_") || strings.HasPrefix(name, "PLUGIN_") {
		l.diags.errorf(at, "%s is set by the host; names beginning with POSTERN_ and PLUGIN_ are its own", name)
	}
	if s, _ := raw.(string); strings.ContainsRune(s, 0) {
		l.diags.errorf(v.place.key(name).at, "the value of %s holds a NUL", name)
	}
}

// checkPriorities wants an order without ties.
func (l *loader) checkPriorities() {
	first := map[int64]*node{}
	for _, n := range l.root.all("agent") {
		if !n.set("priority") {
			continue
		}
		priority := n.number("priority")
		if other := first[priority]; other != nil {
			l.diags.errorf(n.rangeOf("priority"), "agents %q and %q have the same priority %d; the other is at %s",
				n.label(), other.label(), priority, other.rangeOf("priority"))
			continue
		}
		first[priority] = n
	}
}
