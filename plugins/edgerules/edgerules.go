package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
)

// Rules is the agent.
type Rules struct {
	rules   []*rule // by priority
	content bool    // a rule looks at the body
	geo     *geography
	stop    func() // ends the watching of databases; nil without
}

// OnEndOfData runs the rules.
func (a *Rules) OnEndOfData(ctx context.Context, e *sdk.DataEvent) sdk.Verdict {
	out, err := a.run(a.facts(ctx, e))
	if err != nil {
		return sdk.Undetermined("cannot-judge", err)
	}
	return a.act(e, out)
}

func (a *Rules) facts(ctx context.Context, e *sdk.DataEvent) *facts {
	f := &facts{
		from: []address.Mailbox{e.Sender.Mailbox, e.Message.From}, client: e.Session.Client.Addr, geo: a.geo, subject: e.Message.Subject,
		inside: e.Session.Trust == sdk.User || e.Session.Trust == sdk.OwnServer,
		size:   e.Message.HeaderBytes + e.Message.BodyBytes, stamp: e.LookupStamp,
		load: func() (*content, error) { return readContent(ctx, e.Headers.Block(), e.Body()) },
		header: func(name string) (texts []string) {
			for field := range e.Headers.All(name) {
				texts = append(texts, field.Text())
			}
			return texts
		},
	}
	for _, r := range e.Recipients {
		f.recipients = append(f.recipients, r.Mailbox)
	}
	return f
}

// group of recipients on which the same rules act.
type group struct {
	rules      []int
	recipients []sdk.EnvelopeRecipient
}

func groups(e *sdk.DataEvent, out outcome) []group {
	var all []group
	for i, r := range e.Recipients {
		at := slices.IndexFunc(all, func(g group) bool { return slices.Equal(g.rules, out.rules[i]) })
		if at < 0 {
			at = len(all)
			all = append(all, group{rules: out.rules[i]})
		}
		all[at].recipients = append(all[at].recipients, r)
	}
	return all
}

// act does what the rules say: for all recipients at once if they are treated alike, otherwise for each group.
func (a *Rules) act(e *sdk.DataEvent, out outcome) sdk.Verdict {
	all := groups(e, out)
	added := map[string]bool{}
	var verdicts []sdk.Verdict
	for _, g := range all {
		v := a.verdict(e, out, g, added)
		if a.disconnects(g) || len(all) == 1 {
			return a.note(e, v, out)
		}
		verdicts = append(verdicts, v.ForRecipients(g.recipients...))
	}
	if len(verdicts) == 0 {
		return sdk.Continue()
	}
	return a.note(e, sdk.PerRecipient(verdicts...), out)
}

func (a *Rules) disconnects(g group) bool {
	return slices.ContainsFunc(g.rules, func(n int) bool { return a.rules[n].Disconnect })
}

// note leaves what is for the whole message: SCL, counter, lines of the log.
func (a *Rules) note(e *sdk.DataEvent, v sdk.Verdict, out outcome) sdk.Verdict {
	var scl *int
	matched := 0
	for n, h := range out.hits {
		r := a.rules[n]
		if !h.matched || !slices.ContainsFunc(out.rules, func(rules []int) bool { return slices.Contains(rules, n) }) {
			continue
		}
		matched++
		if r.SetSCL != nil {
			scl = r.SetSCL
		}
		if r.Log != "" {
			e.Logger().Info(r.Log, "rule", r.Name)
		}
	}
	if matched > 0 {
		v = v.Count("matched", matched)
	}
	if scl != nil {
		v = v.Stamp("scl", strconv.Itoa(*scl))
	}
	return v
}

// verdict for a group.
func (a *Rules) verdict(e *sdk.DataEvent, out outcome, g group, added map[string]bool) sdk.Verdict {
	if len(g.rules) == 0 {
		return sdk.Continue()
	}
	var why []string
	for _, n := range g.rules {
		why = append(why, fmt.Sprintf("%s (%s)", a.rules[n].Name, strings.Join(out.hits[n].why, "; ")))
	}
	last := a.rules[g.rules[len(g.rules)-1]]
	v, final := last.ending()
	reason := "matched"
	if ends := last.endings(); len(ends) > 0 {
		reason = ends[0]
	}
	v = v.Because(reason, strings.Join(why, ", "))
	if final {
		return v
	}
	c := changes{event: e, added: added, set: map[string]string{}}
	for _, n := range g.rules {
		c.collect(a.rules[n])
	}
	return v.Edit(c.edits(g)...)
}

// ending is the verdict of a rule that decides; final if no edit matters any more.
func (r *rule) ending() (v sdk.Verdict, final bool) {
	switch {
	case r.Reject != nil && r.Reject.Code < 500:
		return sdk.Defer(r.Reject.Code, r.Reject.Enhanced, r.Reject.Text), true
	case r.Reject != nil:
		return sdk.Reject(r.Reject.Code, r.Reject.Enhanced, r.Reject.Text), true
	case r.Disconnect:
		return sdk.Disconnect(421, "4.7.1", "Delivery not authorized, closing connection"), true
	case r.Delete:
		return sdk.Discard(), true
	case r.Quarantine:
		return sdk.Quarantine(), false
	}
	return sdk.Continue(), false
}

// kinds of change that the actions make; none if there is no action.
func (a *Actions) kinds() []sdk.Change {
	var all []sdk.Change
	add := func(given bool, kind sdk.Change) {
		if given {
			all = append(all, kind)
		}
	}
	add(len(a.endings()) > 0 || a.Stop || a.Log != "", sdk.Verdicts)
	add(len(a.RedirectTo)+len(a.AddTo)+len(a.CopyTo)+len(a.BlindCopyTo) > 0, sdk.Addresses)
	add(len(a.AddTo)+len(a.CopyTo)+len(a.SetHeaders)+len(a.RemoveHeaders) > 0 || a.PrependSubject != "", sdk.Headers)
	add(a.SetSCL != nil, sdk.Stamps("scl"))
	return all
}

// changes that the rules make for a group, together.
type changes struct {
	event      *sdk.DataEvent
	added      map[string]bool // recipients that another group or rule has added
	subject    string          // before the subject
	to, cc     []address.Mailbox
	more       []address.Mailbox // recipients
	redirectTo []address.Mailbox
	set        map[string]string
	remove     []string
}

func (c *changes) collect(r *rule) {
	if !strings.HasPrefix(c.subject+c.event.Message.Subject, r.PrependSubject) {
		c.subject = r.PrependSubject + c.subject
	}
	c.to, c.cc = append(c.to, r.AddTo...), append(c.cc, r.CopyTo...)
	c.more = slices.Concat(c.more, r.AddTo, r.CopyTo, r.BlindCopyTo)
	c.redirectTo = append(c.redirectTo, r.RedirectTo...)
	c.remove = append(c.remove, r.RemoveHeaders...)
	for name, text := range r.SetHeaders {
		c.set[strings.ToLower(name)] = name + ":" + text
	}
}

func (c *changes) edits(g group) []sdk.Edit {
	var all []sdk.Edit
	if c.subject != "" {
		all = append(all, c.subjectEdit())
	}
	all = append(all, c.name("To", c.to)...)
	all = append(all, c.name("Cc", c.cc)...)
	for _, name := range c.remove {
		all = append(all, sdk.RemoveHeader(name))
	}
	keys := make([]string, 0, len(c.set))
	for key := range c.set {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		name, text, _ := strings.Cut(c.set[key], ":")
		all = append(all, sdk.RemoveHeader(name), sdk.AddHeader(name, text))
	}
	for _, m := range c.more {
		all = append(all, c.recipient(m)...)
	}
	return append(all, c.redirect(g)...)
}

func (c *changes) subjectEdit() sdk.Edit {
	for f := range c.event.Headers.All("Subject") {
		return sdk.ReplaceHeader(f, c.subject+c.event.Message.Subject)
	}
	return sdk.AddHeader("Subject", c.subject)
}

// name the new recipients in a field.
func (c *changes) name(field string, list []address.Mailbox) []sdk.Edit {
	var text []string
	for _, m := range list {
		if entry := "<" + m.String() + ">"; !slices.Contains(text, entry) {
			text = append(text, entry)
		}
	}
	if len(text) == 0 {
		return nil
	}
	value := strings.Join(text, ",\r\n ")
	for f := range c.event.Headers.All(field) {
		if old := strings.TrimSpace(string(f.Raw)); old != "" {
			value = old + ",\r\n " + value
		}
		return []sdk.Edit{sdk.ReplaceRawHeader(f, []byte(value))}
	}
	return []sdk.Edit{sdk.AddRawHeader(field, []byte(value))}
}

// recipient m is added once to the message, and not if it has it already.
func (c *changes) recipient(m address.Mailbox) []sdk.Edit {
	has := slices.ContainsFunc(c.event.Recipients, func(r sdk.EnvelopeRecipient) bool { return r.Key() == m.Key() })
	if has || c.added[m.Key()] {
		return nil
	}
	c.added[m.Key()] = true
	return []sdk.Edit{sdk.AddRecipient(m)}
}

// redirect puts new recipients in the place of those of the group. A new one that takes the place of an old one
// keeps what the sender asked for that.
func (c *changes) redirect(g group) []sdk.Edit {
	if len(c.redirectTo) == 0 {
		return nil
	}
	var fresh []address.Mailbox
	for _, m := range c.redirectTo {
		if len(c.recipient(m)) > 0 {
			fresh = append(fresh, m)
		}
	}
	var all []sdk.Edit
	for _, r := range g.recipients {
		switch {
		case contains(c.redirectTo, r.Mailbox): // stays
		case len(fresh) > 0:
			all = append(all, sdk.RewriteRecipient(r, fresh[0]))
			fresh = fresh[1:]
		default:
			all = append(all, sdk.RemoveRecipient(r))
		}
	}
	for _, m := range fresh {
		all = append(all, sdk.AddRecipient(m))
	}
	return all
}

// contains reports whether m is in list.
func contains(list []address.Mailbox, m address.Mailbox) bool {
	return slices.ContainsFunc(list, func(x address.Mailbox) bool { return x.Key() == m.Key() })
}

// errTooLarge: what is not looked at cannot be judged.
var errTooLarge = errors.New("the structure of the message is over the limits")
