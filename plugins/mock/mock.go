package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
)

// Mock follows rules.
type Mock struct {
	Config
	stateDir string
	rules    map[sdk.EventKind][]*Rule
	tables   map[string]sdk.Table[map[string]int64]
	needs    map[*Rule]sdk.Table[map[string]int64]
	leak     leak
}

// New checks the rules and asks for what they need.
func New(cfg Config, r *sdk.Registrar) (*Mock, error) {
	if cfg.Invalid != "" {
		return nil, r.At("invalid").Errorf("%s", cfg.Invalid)
	}
	if cfg.NeverReady && !r.Validating() {
		time.Sleep(time.Hour)
	}
	m := &Mock{
		Config: cfg, stateDir: r.StateDir(), rules: map[sdk.EventKind][]*Rule{},
		tables: map[string]sdk.Table[map[string]int64]{}, needs: map[*Rule]sdk.Table[map[string]int64]{},
	}
	for i := range m.Rules {
		rule := &m.Rules[i]
		kind, ok := kindOf(rule.Event)
		if !ok {
			return nil, r.At("on", i).Errorf("there is no event %q", rule.Event)
		}
		m.rules[kind] = append(m.rules[kind], rule)
	}
	return m, m.subscribe(r)
}

func kindOf(name string) (sdk.EventKind, bool) {
	for kind := sdk.OnConnect; kind <= sdk.OnFeedback; kind++ {
		if sdk.EventName(kind) == name {
			return kind, true
		}
	}
	return 0, false
}

// subscribe to the events of the rules and to those named beside them.
func (m *Mock) subscribe(r *sdk.Registrar) error {
	every, err := sdk.ParseDuration(m.Every)
	if err != nil {
		return r.At("every").Error(err)
	}
	for kind := sdk.OnConnect; kind <= sdk.OnFeedback; kind++ {
		rules := m.rules[kind]
		if len(rules) == 0 && !slices.Contains(m.Events, sdk.EventName(kind)) && !slices.Contains(m.Events, "all") {
			r.Skip(kind)
			continue
		}
		var options []sdk.Option
		if len(rules) == 0 {
			options = append(options, sdk.MayChange())
		}
		for _, rule := range rules {
			options = append(options, rule.options()...)
			m.useTables(r, kind, rule)
		}
		if kind == sdk.OnSchedule {
			options = append(options, sdk.Every(every))
		}
		r.On(kind, options...)
	}
	return nil
}

// useTables of the writes of a rule, without a row for each event.
func (m *Mock) useTables(r *sdk.Registrar, kind sdk.EventKind, rule *Rule) {
	for _, w := range rule.Writes {
		if _, known := m.tables[w.Table]; !known {
			m.tables[w.Table] = sdk.UseTable[map[string]int64](r, w.Table, sdk.Key())
		}
	}
	if rule.Need != nil {
		m.needs[rule] = sdk.UseTable[map[string]int64](r, rule.Need.Table, sdk.Key(), sdk.OnlyAt(kind))
	}
}

// options that a rule needs.
func (rule *Rule) options() []sdk.Option {
	view := sdk.Current
	if rule.Original {
		view = sdk.Original
	}
	options := []sdk.Option{view, sdk.MayChange(rule.changes()...)}
	switch {
	case rule.Body:
		options = append(options, sdk.Body(sdk.Whole, view))
	case rule.Prefix > 0:
		options = append(options, sdk.Body(sdk.Prefix(rule.Prefix), view))
	}
	if rule.SkipOver > 0 {
		options = append(options, sdk.SkipOver(rule.SkipOver))
	}
	if slices.Contains(rule.Headers, "*") {
		options = append(options, sdk.ReadsHeaders())
	} else if len(rule.Headers) > 0 {
		options = append(options, sdk.ReadsHeaders(rule.Headers...))
	}
	if rule.Waits {
		options = append(options, sdk.Waits)
	}
	return append(append(options, sdk.ReadsStamps(rule.ReadStamps...)), rule.abilities()...)
}

// declares reports whether an ability is declared; all are if the rule does not say.
func (rule *Rule) declares(what string) bool {
	return rule.Declare == nil || slices.Contains(*rule.Declare, what)
}

func (rule *Rule) changes() []sdk.Change {
	var list []sdk.Change
	for _, c := range []struct {
		name   string
		change sdk.Change
	}{
		{"verdict", sdk.Verdicts}, {"headers", sdk.Headers}, {"body", sdk.BodyParts}, {"envelope", sdk.Addresses},
		{"route", sdk.Routes},
	} {
		if rule.declares(c.name) {
			list = append(list, c.change)
		}
	}
	for name := range rule.Stamp {
		if rule.declares("stamp:" + name) {
			list = append(list, sdk.Stamps(name))
		}
	}
	return list
}

func (rule *Rule) abilities() []sdk.Option {
	var list []sdk.Option
	for _, c := range []struct {
		name   string
		option sdk.Option
	}{{"copies", sdk.MayKeepCopy}, {"spawn", sdk.MaySpawn}, {"bypass", sdk.MayBypass}} {
		if rule.declares(c.name) {
			list = append(list, c.option)
		}
	}
	return list
}

// follow the first rule that matches.
func (m *Mock) follow(ctx context.Context, e sdk.Subject) sdk.Verdict {
	c := e.Common()
	if err := m.record(c); err != nil {
		return sdk.Fault(err)
	}
	for _, rule := range m.rules[c.Kind] {
		if m.matches(rule, e) {
			return m.obey(ctx, rule, e)
		}
	}
	return sdk.Continue()
}

// record the event in one write, so that lines of several processes do not mix.
func (m *Mock) record(c *sdk.Event) error {
	if m.Record == "" {
		return nil
	}
	arguments, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(c.Proto().GetArguments())
	if err != nil {
		return err
	}
	return appendLine(m.path(m.Record), fmt.Sprintf("%s %s %d %d %s", sdk.EventName(c.Kind), c.ID, c.Attempt, os.Getpid(), arguments))
}

// path of a file, in the state folder unless it begins with a slash.
func (m *Mock) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(m.stateDir, name)
}

func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(line + "\n")
	return err
}

func (m *Mock) matches(rule *Rule, e sdk.Subject) bool {
	c := e.Common()
	p := c.Proto()
	switch {
	case rule.Sender != nil && !rule.Sender.Match(p.GetEnvelope().GetSender().GetAddress()):
		return false
	case rule.Recipient != nil && !slices.ContainsFunc(recipients(c), func(r sdk.EnvelopeRecipient) bool {
		return rule.Recipient.MatchString(r.String())
	}):
		return false
	case rule.Subject != nil && !rule.Subject.MatchString(subject(e)):
		return false
	case len(rule.Client) > 0 && !c.Session.Client.In(rule.Client):
		return false
	case rule.Attempt > 0 && c.Attempt != rule.Attempt:
		return false
	case rule.Stamped != "" && c.Stamp(rule.Stamped) == "":
		return false
	}
	return rule.Times == 0 || rule.Misbehave != "" || m.firstTimes(rule, c)
}

// recipients of any event: the one of OnRcpt, or those of the envelope.
func recipients(c *sdk.Event) []sdk.EnvelopeRecipient {
	list := c.Proto().GetEnvelope().GetRecipients()
	if r := c.Proto().GetArguments().GetRcpt().GetRecipient(); r != nil {
		list = append(slices.Clip(list), r)
	}
	var all []sdk.EnvelopeRecipient
	for _, r := range list {
		m, _ := address.Parse(string(r.GetAddress()))
		all = append(all, sdk.EnvelopeRecipient{Mailbox: m, Index: int(r.GetIndex())})
	}
	return all
}

func subject(e sdk.Subject) string {
	switch e := e.(type) {
	case *sdk.HeadersEvent:
		return e.Message.Subject
	case *sdk.DataEvent:
		return e.Message.Subject
	case *sdk.RoutingEvent:
		return e.Message.Subject
	}
	return ""
}

// firstTimes claims one of the times of the rule: a file each, which only one process can create.
func (m *Mock) firstTimes(rule *Rule, c *sdk.Event) bool {
	scope := map[string]string{
		"event": c.ID, "message": c.Proto().GetEnvelope().GetId(), "session": c.Session.ID,
	}[rule.Per]
	number := slices.IndexFunc(m.Rules, func(r Rule) bool {
		return r.Event == rule.Event && r.Times == rule.Times && r.Misbehave == rule.Misbehave
	})
	for i := range rule.Times {
		name := strings.ReplaceAll(fmt.Sprintf("%s-%d-%s-%d", rule.Event, number, scope, i), "/", "_")
		f, err := os.OpenFile(filepath.Join(m.stateDir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err == nil {
			f.Close()
			return true
		}
	}
	return false
}

// obey the rule: read, wait, misbehave, answer.
func (m *Mock) obey(ctx context.Context, rule *Rule, e sdk.Subject) sdk.Verdict {
	if err := readBody(rule, e); err != nil {
		return sdk.Fault(err)
	}
	if rule.Progress > 0 {
		e.Common().Progress(rule.Progress)
	}
	if rule.Sleep > 0 && !sleep(ctx, rule.Sleep) {
		return sdk.Fault(ctx.Err())
	}
	if err := m.meet(ctx, rule.Barrier, e.Common().ID); err != nil {
		return sdk.Fault(err)
	}
	if v, done := m.misbehave(rule, e); done {
		return v
	}
	return m.verdict(rule, e)
}

// sleep answers false if the event was over first.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// readBody reads what the rule asked for, as an agent that looks at it would.
func readBody(rule *Rule, e sdk.Subject) error {
	with, ok := e.(interface{ Body() *sdk.BodyReader })
	if !ok || !rule.Body && rule.Prefix == 0 {
		return nil
	}
	body := with.Body()
	n, err := io.Copy(io.Discard, body.Reader())
	if err != nil || body.Skipped() {
		return err
	}
	if rule.Body && n != body.Size() {
		return fmt.Errorf("read %d of %d octets", n, body.Size())
	}
	return nil
}

// meet waits until as many handlers as the barrier counts have come for this event.
func (m *Mock) meet(ctx context.Context, b *Barrier, event string) error {
	if b == nil {
		return nil
	}
	file := m.path(b.File)
	if err := appendLine(file, event); err != nil {
		return err
	}
	for {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if countLines(string(text), event) >= b.Count {
			return nil
		}
		if !sleep(ctx, 2*time.Millisecond) {
			return errors.New("the others did not come to the barrier")
		}
	}
}

func countLines(text, line string) int {
	n := 0
	for l := range strings.Lines(text) {
		if strings.TrimSuffix(l, "\n") == line {
			n++
		}
	}
	return n
}

// verdict and all that rides on it.
func (m *Mock) verdict(rule *Rule, e sdk.Subject) sdk.Verdict {
	c := e.Common()
	if need, ok := m.needs[rule]; ok && !c.Needed {
		return sdk.Continue().Needs(need.Keys(rule.Need.Keys...))
	}
	v, err := rule.narrow(rule.judge())
	if err != nil {
		return sdk.Fault(err)
	}
	if rule.Reason != "" || rule.Data != "" {
		v = v.Because(cmp.Or(rule.Reason, "mock"), rule.Data)
	}
	edits, err := rule.edits(e)
	if err != nil {
		return sdk.Fault(err)
	}
	v = rule.stamp(v.Edit(edits...), c)
	for _, w := range rule.Writes {
		v = v.Write(m.write(w, c))
	}
	if rule.KeepCopy != "" {
		v = v.KeepCopy(rule.KeepCopy)
	}
	for _, name := range slices.Sorted(maps.Keys(rule.Count)) {
		v = v.Count(name, rule.Count[name])
	}
	return rule.spawn(v)
}

// judge makes the verdict alone.
func (rule *Rule) judge() sdk.Verdict {
	reply := func(code int, enhanced string) (int, string, string) {
		return cmp.Or(rule.Code, code), cmp.Or(rule.Enhanced, enhanced), rule.Text
	}
	switch rule.Action {
	case "done":
		return sdk.Done(scopes[rule.Scope])
	case "reject":
		return sdk.Reject(reply(550, "5.7.1"))
	case "defer":
		return sdk.Defer(reply(451, "4.7.1"))
	case "disconnect":
		return sdk.Disconnect(rule.Code, rule.Enhanced, rule.Text)
	case "discard":
		return sdk.Discard()
	case "quarantine":
		return sdk.Quarantine()
	case "tarpit":
		return sdk.Tarpit(rule.Delay)
	case "bypass":
		return sdk.Bypass(categories[rule.Category], scopes[rule.Scope])
	case "fail":
		return sdk.Fail(reply(550, "5.7.1"))
	case "wait":
		return sdk.Wait(rule.Delay)
	case "undetermined":
		return sdk.Undetermined("mock", errors.New(rule.Text))
	case "fault":
		return sdk.Fault(errors.New(rule.Text))
	case "nothing":
		return sdk.Verdict{}
	}
	return sdk.Continue()
}

var scopes = map[string]sdk.Scope{
	"session": sdk.InSession, "message": sdk.InMessage, "recipient": sdk.ForRecipient,
}

var categories = map[string]sdk.Category{
	"other": sdk.Other, "antispam": sdk.Antispam, "antivirus": sdk.Antivirus, "authentication": sdk.Authentication,
	"rewrite": sdk.Rewrite, "policy": sdk.Policy, "journaling": sdk.Journaling,
}

// narrow the verdict to recipients.
func (rule *Rule) narrow(v sdk.Verdict) (sdk.Verdict, error) {
	switch {
	case len(rule.Recipients) > 0:
		list, err := mailboxes(rule.Recipients)
		return v.For(list...), err
	case len(rule.AllBut) > 0:
		list, err := mailboxes(rule.AllBut)
		return v.ForAllBut(list...), err
	}
	return v, nil
}

func mailboxes(texts []string) ([]address.Mailbox, error) {
	var list []address.Mailbox
	for _, text := range texts {
		m, err := address.Parse(text)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, nil
}

func (rule *Rule) stamp(v sdk.Verdict, c *sdk.Event) sdk.Verdict {
	for _, name := range slices.Sorted(maps.Keys(rule.Stamp)) {
		switch rule.Scope {
		case "session":
			v = v.StampSession(name, rule.Stamp[name])
		case "recipient":
			for _, r := range rule.chosen(c) {
				v = v.StampRecipient(r, name, rule.Stamp[name])
			}
		default:
			v = v.Stamp(name, rule.Stamp[name])
		}
	}
	return v
}

// chosen recipients: those that match recipient, all without it.
func (rule *Rule) chosen(c *sdk.Event) []sdk.EnvelopeRecipient {
	return slices.DeleteFunc(recipients(c), func(r sdk.EnvelopeRecipient) bool {
		return rule.Recipient != nil && !rule.Recipient.MatchString(r.String())
	})
}

func (m *Mock) write(w Write, c *sdk.Event) sdk.Write {
	t := m.tables[w.Table]
	var op sdk.Write
	switch w.Op {
	case "put_if_absent":
		op = t.PutIfAbsent(map[string]int64{w.Field: w.Amount}, w.TTL)
	case "add":
		op = t.Add(w.Field, w.Amount, w.TTL)
	case "delete":
		op = t.Delete()
	default:
		op = t.Put(map[string]int64{w.Field: w.Amount}, w.TTL)
	}
	return op.At(fill(w.Key, c))
}

// fill facts into a key.
func fill(key string, c *sdk.Event) string {
	p := c.Proto()
	recipient := ""
	if list := recipients(c); len(list) > 0 {
		recipient = list[len(list)-1].Key()
	}
	return strings.NewReplacer(
		"{sender}", strings.ToLower(string(p.GetEnvelope().GetSender().GetAddress())),
		"{recipient}", recipient, "{client}", c.Session.Client.String(), "{event}", c.ID,
	).Replace(key)
}

func (rule *Rule) spawn(v sdk.Verdict) sdk.Verdict {
	for _, s := range rule.Spawns {
		to, err := mailboxes(s.Recipients)
		if err != nil {
			return sdk.Fault(err)
		}
		from, err := address.Parse(s.Sender)
		if err != nil {
			return sdk.Fault(err)
		}
		v = v.Spawn(sdk.Spawn{
			Sender: from, Recipients: to, Before: []byte(s.Text), IncludeOriginal: s.Original, Durable: s.Durable,
		})
	}
	return v
}

// edits of the message.
func (rule *Rule) edits(e sdk.Subject) ([]sdk.Edit, error) {
	var list []sdk.Edit
	for _, name := range slices.Sorted(maps.Keys(rule.AddHeader)) {
		list = append(list, sdk.AddHeader(name, rule.AddHeader[name]))
	}
	for _, name := range slices.Sorted(maps.Keys(rule.AppendHeader)) {
		list = append(list, sdk.AppendHeader(name, rule.AppendHeader[name]))
	}
	for _, name := range slices.Sorted(maps.Keys(rule.ReplaceHeader)) {
		for f := range header(e).All(name) {
			list = append(list, sdk.ReplaceHeader(f, rule.ReplaceHeader[name]))
		}
	}
	for _, name := range rule.RemoveHeader {
		list = append(list, sdk.RemoveHeader(name))
	}
	if patcher, ok := e.(interface{ Patch() *sdk.Patch }); ok && (rule.ReplaceBody != nil || rule.AppendBody != "") {
		patch := patcher.Patch()
		if rule.ReplaceBody != nil {
			patch.ReplaceAll([]byte(*rule.ReplaceBody))
		} else {
			patch.Append([]byte(rule.AppendBody))
		}
		list = append(list, patch)
	}
	return rule.addresses(list, e.Common())
}

func header(e sdk.Subject) sdk.Header {
	switch e := e.(type) {
	case *sdk.HeadersEvent:
		return e.Headers
	case *sdk.DataEvent:
		return e.Headers
	case *sdk.RoutingEvent:
		return e.Headers
	}
	return sdk.Header{}
}

// addresses adds the edits of the envelope.
func (rule *Rule) addresses(list []sdk.Edit, c *sdk.Event) ([]sdk.Edit, error) {
	if rule.RewriteFrom != nil {
		m, err := address.Parse(*rule.RewriteFrom)
		if err != nil {
			return nil, err
		}
		list = append(list, sdk.RewriteSender(m))
	}
	added, err := mailboxes(rule.AddRecipient)
	if err != nil {
		return nil, err
	}
	for _, m := range added {
		list = append(list, sdk.AddRecipient(m))
	}
	members, err := mailboxes(rule.Expand)
	if err != nil {
		return nil, err
	}
	for _, r := range recipients(c) {
		if slices.Contains(rule.RemoveRecipient, r.String()) {
			list = append(list, sdk.RemoveRecipient(r))
		}
	}
	for _, r := range rule.chosen(c) {
		if rule.RewriteTo != "" {
			m, err := address.Parse(rule.RewriteTo)
			if err != nil {
				return nil, err
			}
			list = append(list, sdk.RewriteRecipient(r, m))
		}
		if len(members) > 0 {
			list = append(list, sdk.Expand(r, members...))
		}
	}
	if rule.Route != "" {
		list = append(list, sdk.Route(rule.Route))
	}
	if rule.Fork {
		list = append(list, sdk.Fork())
	}
	return list, nil
}

// echo is a subcommand: it shows that arguments, configuration and state arrive.
func echo(_ context.Context, c *sdk.Invocation) error {
	var cfg Config
	if err := c.Config(&cfg); err != nil {
		return err
	}
	fmt.Fprintf(c.Out, "args %q, %d rules, state in %s\n", c.Args, len(cfg.Rules), c.StateDir)
	if slices.Contains(c.Args, "fail") {
		return errors.New("told to fail")
	}
	return nil
}
