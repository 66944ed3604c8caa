package main

import (
	"fmt"
	"strings"
)

// rule is a Rule, ready for use.
type rule struct {
	Rule
	when, unless conditions
}

// hit is what a rule says of a message.
type hit struct {
	matched    bool
	recipients []bool   // that the actions are for, by position
	why        []string // conditions that held, or the one that decided against
}

func miss(why string) hit { return hit{why: []string{why}} }

// match a message. All conditions must hold, for the same recipient where they are about recipients.
func (r *rule) match(f *facts) (hit, error) {
	h := hit{matched: true, recipients: make([]bool, len(f.recipients))}
	for i := range h.recipients {
		h.recipients[i] = true
	}
	for _, c := range r.when.list {
		what, err := c.holds(f, h.recipients)
		switch {
		case err != nil:
			return hit{}, fmt.Errorf("%s of rule %q: %w", c.name, r.Name, err)
		case what == "":
			return miss(c.name + " does not hold"), nil
		}
		h.why = append(h.why, c.name+": "+what)
	}
	if out, err := r.except(f, &h); out != "" || err != nil {
		return miss(out), err
	}
	if !r.PerRecipient {
		for i := range h.recipients {
			h.recipients[i] = true
		}
	}
	if len(r.when.list) == 0 {
		h.why = append(h.why, "it has no conditions")
	}
	return h, nil
}

// except answers with the exception that holds. With per_recipient one about recipients takes out these only.
func (r *rule) except(f *facts, h *hit) (string, error) {
	for _, c := range r.unless.list {
		left := make([]bool, len(h.recipients))
		copy(left, h.recipients)
		if c.to != nil && !r.PerRecipient { // any recipient will do
			for i := range left {
				left[i] = true
			}
		}
		what, err := c.holds(f, left)
		switch {
		case err != nil:
			return "", fmt.Errorf("%s of rule %q: %w", c.name, r.Name, err)
		case what == "":
			continue
		case c.to == nil || !r.PerRecipient:
			return "unless " + c.name + ": " + what, nil
		}
		any := false
		for i := range left {
			h.recipients[i] = h.recipients[i] && !left[i]
			any = any || h.recipients[i]
		}
		if !any {
			return "unless " + c.name + ": " + what, nil
		}
		h.why = append(h.why, "but for recipients with "+c.name+": "+what)
	}
	return "", nil
}

// holds narrows recipients to those for which the condition holds, where it is about recipients.
func (c condition) holds(f *facts, recipients []bool) (string, error) {
	if c.to == nil {
		return c.check(f)
	}
	var found []string
	for i, m := range f.recipients {
		what := ""
		if recipients[i] {
			what = c.to(m)
		}
		recipients[i] = what != ""
		if what != "" {
			found = append(found, what+" in "+m.String())
		}
	}
	return strings.Join(found, ", "), nil
}

// outcome is what all rules say of a message.
type outcome struct {
	hits  []hit   // by rule; those behind the end of the rules for all recipients were not looked at
	rules [][]int // that act on each recipient, by position, in order
}

// run the rules in order. A rule that ends them does so for the recipients that it acts on.
func (a *Rules) run(f *facts) (outcome, error) {
	out := outcome{rules: make([][]int, len(f.recipients))}
	ended := make([]bool, len(f.recipients))
	for n, r := range a.rules {
		if !anyLeft(ended) {
			break
		}
		h, err := r.match(f)
		if err != nil {
			return out, err
		}
		out.hits = append(out.hits, h)
		if !h.matched {
			continue
		}
		for i := range f.recipients {
			if h.recipients[i] && !ended[i] {
				out.rules[i] = append(out.rules[i], n)
				ended[i] = r.ends()
			}
		}
	}
	return out, nil
}

func anyLeft(ended []bool) bool {
	for _, e := range ended {
		if !e {
			return true
		}
	}
	return false
}

// ends reports whether no further rule is looked at.
func (r *rule) ends() bool { return r.Stop || len(r.endings()) > 0 }

// endings are the actions that decide what becomes of the message.
func (a *Actions) endings() []string {
	var all []string
	for _, x := range []struct {
		name  string
		given bool
	}{
		{"reject", a.Reject != nil}, {"disconnect", a.Disconnect}, {"delete", a.Delete},
		{"quarantine", a.Quarantine}, {"redirect_to", len(a.RedirectTo) > 0},
	} {
		if x.given {
			all = append(all, x.name)
		}
	}
	return all
}
