package main

import (
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/match"
)

//go:generate go run . --options=README.md

// Config is the agent's configuration. Empty, nothing is journaled.
type Config struct {
	Mailbox    *address.Mailbox `hcl:"mailbox,optional" doc:"Journal mailbox of the rules that name none."`
	Alternate  *address.Mailbox `hcl:"alternate_mailbox,optional" doc:"Takes the reports for a journal mailbox while that cannot be delivered to, and those that it has refused. Mail to it is never journaled."`
	Sender     *address.Mailbox `hcl:"sender,optional" doc:"Address in From of a report; postmaster at the host's name if left out. The envelope sender is null."`
	Recipients int              `hcl:"recipients_per_report,optional" default:"1000" min:"1" max:"10000" doc:"A message with more recipients makes several reports, numbered i of n."`
	Manifest   time.Duration    `hcl:"manifest_every,optional" default:"24h" min:"1m" max:"168h" doc:"How often a manifest goes to each journal mailbox: a list of the sets of reports since the last one, so that whole sets can be missed."`
	Key        string           `hcl:"key,optional" sensitive:"true" doc:"Seals reports and manifests (HMAC-SHA256), so that verify finds those that were altered with their digests."`
	Rules      []Rule           `hcl:"rule,block" doc:"What is journaled. All conditions of a rule must hold; a rule without any is for every message. Each journal mailbox gets one set of reports, however many rules match."`
}

// Rule says what is journaled.
type Rule struct {
	Name       string           `hcl:"name,label"`
	Addresses  []string         `hcl:"addresses,optional" doc:"Sender or a recipient is one of these (user@domain, domain, *.domain)."`
	Senders    []string         `hcl:"senders,optional" doc:"The sender, in the envelope or in From, is one of these."`
	Recipients []string         `hcl:"recipients,optional" doc:"A recipient, before or after rewriting, is one of these."`
	Groups     []string         `hcl:"groups,optional" doc:"A recipient came from one of these groups, as they were when the message was sent."`
	Direction  string           `hcl:"direction,optional" default:"all" one_of:"all inbound outbound internal" doc:"inbound came from outside; outbound and internal are ours, to a recipient outside or inside."`
	Mailbox    *address.Mailbox `hcl:"mailbox,optional" doc:"Journal mailbox of this rule."`
}

// rule is a Rule, ready for use.
type rule struct {
	name                                   string
	direction                              string
	addresses, senders, recipients, groups *match.Addresses
	mailbox                                address.Mailbox
}

// New checks cfg. It is called for every new configuration.
func New(cfg Config, r *sdk.Registrar) (*Journal, error) {
	j := &Journal{Config: cfg, host: r.Host(), label: r.Instance(), from: address.Mailbox{Local: "postmaster", Domain: r.Host().Name}, own: map[string]bool{}}
	if cfg.Sender != nil {
		j.from = *cfg.Sender
	}
	var errs []error
	if cfg.Key != "" && len(cfg.Key) < minKey {
		r.At("key").Warn("a key of less than " + strconv.Itoa(minKey) + " octets can be guessed")
	}
	for i, rc := range cfg.Rules {
		if slices.ContainsFunc(cfg.Rules[:i], func(other Rule) bool { return other.Name == rc.Name }) {
			errs = append(errs, r.At("rule", i).Errorf("a second rule %q", rc.Name))
		}
		errs = append(errs, j.addRule(r, i, rc))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.Alternate != nil {
		if j.own[cfg.Alternate.Key()] {
			return nil, r.At("alternate_mailbox").Errorf("it is a journal mailbox itself")
		}
		j.own[cfg.Alternate.Key()] = true
	}
	if len(j.rules) == 0 {
		r.Warn("no rule: nothing is journaled")
	}
	j.subscribe(r)
	return j, nil
}

// minKey is the length of a key that cannot be tried out, in octets.
const minKey = 8

// maxSets of a manifest period; more push the oldest out.
const maxSets = 10_000_000

func (j *Journal) subscribe(r *sdk.Registrar) {
	r.OnRouted(sdk.ReadsHeaders(), sdk.ReadsOwnStamps(stampReported), sdk.Body(sdk.Whole, sdk.Current), sdk.MaySpawn,
		sdk.MayChange(sdk.Verdicts, sdk.Addresses, sdk.Stamps(stampReported)))
	r.OnSchedule(sdk.Every(j.Manifest), sdk.MaySpawn)
	r.OnDeferred(sdk.MayChange())
	r.OnDelivered(sdk.MayChange())
	r.OnFailed(sdk.MayChange())
	if len(j.rules) == 0 {
		r.Skip(sdk.OnRouted, sdk.OnSchedule)
	}
	if len(j.rules) == 0 || j.Alternate == nil {
		r.Skip(sdk.OnDeferred, sdk.OnDelivered, sdk.OnFailed)
	}
	// Before sets: the first page of a turn has it.
	j.manifested = sdk.UseTable[turnRow](r, "manifested", sdk.Key(), sdk.OnlyAt(sdk.OnSchedule))
	j.sets = sdk.UseTable[setRow](r, "sets", sdk.Key(), sdk.MaxRows(maxSets), sdk.OnlyAt(sdk.OnRouted, sdk.OnSchedule))
	if j.Alternate != nil {
		j.down = sdk.UseTable[downRow](r, "unreachable", sdk.Key(sdk.Recipient),
			sdk.OnlyAt(sdk.OnRouted, sdk.OnDeferred, sdk.OnDelivered, sdk.OnFailed))
	}
}

func (j *Journal) addRule(r *sdk.Registrar, i int, cfg Rule) error {
	out := rule{name: cfg.Name, direction: cfg.Direction}
	for _, list := range []struct {
		name    string
		entries []string
		into    **match.Addresses
	}{
		{"addresses", cfg.Addresses, &out.addresses}, {"senders", cfg.Senders, &out.senders},
		{"recipients", cfg.Recipients, &out.recipients}, {"groups", cfg.Groups, &out.groups},
	} {
		a, at, err := match.NewAddresses(list.entries)
		if err != nil {
			return r.At("rule", i, list.name, at).Error(err)
		}
		*list.into = a
	}
	mailbox := cfg.Mailbox
	if mailbox == nil {
		mailbox = j.Mailbox
	}
	if mailbox == nil || mailbox.IsNull() {
		return r.At("rule", i).Errorf("no journal mailbox: set mailbox here or for all rules")
	}
	out.mailbox = *mailbox
	j.own[mailbox.Key()] = true
	j.rules = append(j.rules, out)
	return nil
}
