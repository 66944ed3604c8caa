package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/match"
)

//go:generate go run . --options=README.md

// Config is the agent's configuration. Empty, no message is touched.
type Config struct {
	Databases []string `hcl:"databases,optional" format:"path" doc:"Files in MaxMind's format (MMDB) that tell country and autonomous system of a client. Read again when they change." example:"[\"/var/lib/GeoIP/GeoLite2-Country.mmdb\"]"`
	Rules     []Rule   `hcl:"rule,block" doc:"A rule. Those that match act in the order of their priority."`
}

// Rule is one rule.
type Rule struct {
	Name         string      `hcl:"name,label"`
	Priority     int         `hcl:"priority,optional" doc:"The lowest is first. All rules have one, or none: then they stand in their order."`
	When         *Conditions `hcl:"when,block" doc:"All conditions given must hold; of a list, one entry. Without conditions every message matches."`
	Unless       *Conditions `hcl:"unless,block" doc:"Exceptions: none of the conditions given may hold."`
	PerRecipient bool        `hcl:"per_recipient,optional" default:"false" doc:"The actions are for the recipients that conditions on recipients name, and not for those that exceptions name. Otherwise they are for all."`
	Actions
}

// Conditions of a rule.
type Conditions struct {
	FromContains        []string         `hcl:"from_contains,optional" doc:"Words in the address of the envelope sender or in From."`
	FromMatches         []*regexp.Regexp `hcl:"from_matches,optional" doc:"Patterns (RE2) for these addresses."`
	FromScope           string           `hcl:"from_scope,optional" one_of:"inside outside" doc:"inside: the client has authenticated, or is one of our servers."`
	Clients             []netip.Prefix   `hcl:"clients,optional" doc:"Networks of the client." example:"[\"192.0.2.0/24\"]"`
	Countries           []string         `hcl:"countries,optional" doc:"Countries of the client (ISO 3166-1), by databases." example:"[\"DE\", \"AT\"]"`
	Systems             []int            `hcl:"systems,optional" doc:"Numbers of autonomous systems of the client, by databases." example:"[64496]"`
	RecipientContains   []string         `hcl:"recipient_contains,optional" doc:"Words in the address of a recipient."`
	RecipientMatches    []*regexp.Regexp `hcl:"recipient_matches,optional" doc:"Patterns for the address of a recipient."`
	SubjectContains     []string         `hcl:"subject_contains,optional" doc:"Words in the subject."`
	SubjectMatches      []*regexp.Regexp `hcl:"subject_matches,optional" doc:"Patterns for the subject."`
	SubjectBodyContains []string         `hcl:"subject_or_body_contains,optional" doc:"Words in the subject or in the text of the body, decoded."`
	SubjectBodyMatches  []*regexp.Regexp `hcl:"subject_or_body_matches,optional" doc:"Patterns for subject and text."`
	Headers             []HeaderTest     `hcl:"header,block" doc:"A header field."`
	Stamps              []StampTest      `hcl:"stamp,block" doc:"What an earlier agent found: scl, auth.spf, auth.dkim, auth.dmarc, or AGENT.KEY."`
	SCLOver             *int             `hcl:"scl_over,optional" min:"-1" max:"9" doc:"Spam confidence level from which the condition holds. An agent with a lower priority number must have set it."`
	MessageOver         sdk.Size         `hcl:"message_over,optional" doc:"Size of the message from which the condition holds." example:"\"10 MB\""`
	Attachments         bool             `hcl:"has_attachment,optional" doc:"The message has an attachment."`
	AttachmentOver      sdk.Size         `hcl:"attachment_over,optional" doc:"Size of one attachment, decoded, from which the condition holds."`
	AttachmentNames     []string         `hcl:"attachment_names,optional" doc:"File names of attachments, with * and ?." example:"[\"*.exe\"]"`
	AttachmentTypes     []string         `hcl:"attachment_types,optional" doc:"Declared types of attachments, with * and ?." example:"[\"application/x-*\"]"`
}

// HeaderTest looks at the fields of a name.
type HeaderTest struct {
	Name     string           `hcl:"name,label"`
	Contains []string         `hcl:"contains,optional" doc:"Words in its text. Without contains and matches the field must be there."`
	Matches  []*regexp.Regexp `hcl:"matches,optional" doc:"Patterns for its text."`
}

// StampTest looks at a stamp.
type StampTest struct {
	Name string   `hcl:"name,label"`
	Is   []string `hcl:"is,optional" doc:"Values, one of which it has. Without is and at_least it must be there." example:"[\"fail\", \"softfail\"]"`
	Over *int     `hcl:"at_least,optional" doc:"Number from which the condition holds."`
}

// Actions of a rule.
type Actions struct {
	Reject         *Reject           `hcl:"reject,block" doc:"Refuses the message. Ends the rules."`
	Disconnect     bool              `hcl:"disconnect,optional" default:"false" doc:"Refuses the message with 421 and closes the connection. Ends the rules."`
	Delete         bool              `hcl:"delete,optional" default:"false" doc:"Accepts the message and throws it away. Ends the rules."`
	Quarantine     bool              `hcl:"quarantine,optional" default:"false" doc:"Accepts the message and keeps it for the operator. Ends the rules."`
	RedirectTo     []address.Mailbox `hcl:"redirect_to,optional" doc:"Takes the place of the recipients. Ends the rules for them."`
	AddTo          []address.Mailbox `hcl:"add_recipients,optional" doc:"Gets the message, too, and is named in To."`
	CopyTo         []address.Mailbox `hcl:"copy_to,optional" doc:"Gets the message, too, and is named in Cc."`
	BlindCopyTo    []address.Mailbox `hcl:"blind_copy_to,optional" doc:"Gets the message, too, and is not named."`
	PrependSubject string            `hcl:"prepend_subject,optional" doc:"Stands before the subject, once." example:"\"[external] \""`
	SetHeaders     map[string]string `hcl:"set_headers,optional" doc:"Fields with their text, in the place of those of that name." example:"{ X-Source = \"edge\" }"`
	RemoveHeaders  []string          `hcl:"remove_headers,optional" doc:"Fields to take out."`
	SetSCL         *int              `hcl:"set_scl,optional" min:"-1" max:"9" doc:"Spam confidence level for later agents; -1 is trusted."`
	Log            string            `hcl:"log,optional" doc:"Line for the log of the host."`
	Stop           bool              `hcl:"stop,optional" default:"false" doc:"No further rule is looked at."`
}

// Reject is the reply of a refusal.
type Reject struct {
	Code     int    `hcl:"code,optional" default:"550" min:"400" max:"599" doc:"Reply code."`
	Enhanced string `hcl:"enhanced,optional" doc:"Enhanced code of the same class; 5.7.1 or 4.7.1 if left out."`
	Text     string `hcl:"text,optional" default:"Delivery not authorized, message refused" doc:"Text that the sender reads, up to 240 characters of ASCII."`
}

// New checks cfg. It is called for every new configuration.
func New(cfg Config, r *sdk.Registrar) (*Rules, error) {
	a := &Rules{}
	geo, i, err := openGeography(cfg.Databases)
	if err != nil {
		return nil, r.At("databases", i).Error(err)
	}
	a.geo = geo
	var errs []error
	for i, c := range cfg.Rules {
		one, err := newRule(r, i, c)
		errs = append(errs, err, checkPlaces(r, i, c, len(cfg.Databases) > 0))
		a.rules = append(a.rules, one)
	}
	if err := errors.Join(append(errs, checkPriorities(r, cfg.Rules))...); err != nil {
		return nil, err
	}
	slices.SortStableFunc(a.rules, func(x, y *rule) int { return cmp.Compare(x.Priority, y.Priority) })
	a.subscribe(r)
	if !r.Validating() {
		a.stop = match.Follow(r.Logger(), map[string]match.Followed{"databases": geo})
	}
	return a, nil
}

// Close is called when the last event of this configuration was answered.
func (a *Rules) Close() {
	if a.stop != nil {
		a.stop()
	}
}

// checkPlaces: where a client is, only a database can tell.
func checkPlaces(r *sdk.Registrar, i int, c Rule, databases bool) error {
	for name, conditions := range map[string]*Conditions{"when": c.When, "unless": c.Unless} {
		if conditions == nil {
			continue
		}
		if err := checkCountries(r, conditions.Countries, "rule", i, name, "countries"); err != nil {
			return err
		}
		if !databases && len(conditions.Countries)+len(conditions.Systems) > 0 {
			return r.At("rule", i, name).Errorf("countries and systems want a file in databases")
		}
	}
	return nil
}

// checkPriorities: ties are an error, since the order would be a surprise.
func checkPriorities(r *sdk.Registrar, rules []Rule) error {
	seen, none := map[int]string{}, 0
	for i, c := range rules {
		if c.Priority == 0 {
			none++
			continue
		}
		if other, ok := seen[c.Priority]; ok {
			return r.At("rule", i, "priority").Errorf("rule %q has it already", other)
		}
		seen[c.Priority] = c.Name
	}
	if none > 0 && len(seen) > 0 {
		return r.At().Errorf("%d rules have no priority and %d have one: give it to all, or to none", none, len(seen))
	}
	return nil
}

// Bounds of a reply text.
const maxText = 240

func newRule(r *sdk.Registrar, i int, c Rule) (*rule, error) {
	out := &rule{Rule: c}
	if strings.TrimSpace(c.Name) == "" {
		return nil, r.At("rule", i).Errorf("it needs a name, by which the ledger knows it")
	}
	var err error
	if out.when, err = compile(r, c.When, "rule", i, "when"); err != nil {
		return nil, err
	}
	if out.unless, err = compile(r, c.Unless, "rule", i, "unless"); err != nil {
		return nil, err
	}
	if len(c.kinds()) == 0 {
		return nil, r.At("rule", i).Errorf("it has no action")
	}
	if ends := c.endings(); len(ends) > 1 {
		return nil, r.At("rule", i).Errorf("%s and %s exclude each other", ends[0], ends[1])
	}
	if c.Disconnect && c.PerRecipient {
		return nil, r.At("rule", i, "disconnect").Errorf("a connection cannot be closed for one recipient: take out per_recipient")
	}
	return out, errors.Join(checkReply(r, i, c.Reject), checkHeaders(r, i, c))
}

func checkReply(r *sdk.Registrar, i int, c *Reject) error {
	if c == nil {
		return nil
	}
	place := r.At("rule", i, "reject", "text")
	if len(c.Text) > maxText {
		return place.Errorf("text of %d characters, at most %d", len(c.Text), maxText)
	}
	for _, char := range c.Text {
		if char < ' ' || char > '~' {
			return place.Errorf("%q cannot stand in a reply, which is one line of ASCII", char)
		}
	}
	if c.Enhanced == "" {
		c.Enhanced = fmt.Sprintf("%d.7.1", c.Code/100)
	}
	// RFC 3463 section 2: class "." subject "." detail, up to three digits each.
	if !enhancedCode.MatchString(c.Enhanced) || c.Enhanced[0] != byte('0'+c.Code/100) {
		return r.At("rule", i, "reject", "enhanced").Errorf("%q is no enhanced code of class %d", c.Enhanced, c.Code/100)
	}
	return nil
}

var (
	enhancedCode = regexp.MustCompile(`^[45]\.[0-9]{1,3}\.[0-9]{1,3}$`)
	fieldName    = regexp.MustCompile(`^[!-9;-~]+$`) // RFC 5322 section 2.2
)

func checkHeaders(r *sdk.Registrar, i int, c Rule) error {
	var errs []error
	for name, text := range c.SetHeaders {
		place := r.At("rule", i, "set_headers", sdk.MapKey(name))
		if !fieldName.MatchString(name) {
			errs = append(errs, place.Errorf("%q is no name of a header field", name))
		}
		errs = append(errs, checkFieldText(place, text))
	}
	errs = append(errs, checkFieldText(r.At("rule", i, "prepend_subject"), c.PrependSubject))
	for k, name := range c.RemoveHeaders {
		if !fieldName.MatchString(name) {
			errs = append(errs, r.At("rule", i, "remove_headers", k).Errorf("%q is no name of a header field", name))
		}
	}
	return errors.Join(errs...)
}

// checkFieldText: RFC 5322 section 2.2: a line end in the text of a field would begin another field.
func checkFieldText(place sdk.Place, text string) error {
	if i := strings.IndexFunc(text, unicode.IsControl); i >= 0 && text[i] != '\t' {
		return place.Errorf("%q cannot stand in a header field, which is one line", text[i])
	}
	return nil
}

// subscribe asks for what the rules look at, and for no more.
func (a *Rules) subscribe(r *sdk.Registrar) {
	changes := []sdk.Change{sdk.Verdicts}
	for _, one := range a.rules {
		changes = append(changes, one.kinds()...)
		a.content = a.content || one.when.content || one.unless.content
		r.OnEndOfData(sdk.ReadsStamps(slices.Concat(one.when.stamps, one.unless.stamps)...))
	}
	r.OnEndOfData(sdk.ReadsHeaders(), sdk.MayChange(changes...))
	if a.content {
		r.OnEndOfData(sdk.Body(sdk.Whole, sdk.Current))
	}
	if len(a.rules) == 0 {
		r.Warn("no rule: no message is touched")
		r.Skip(sdk.OnEndOfData)
	}
}

func names(r *sdk.Registrar, patterns []string, path ...any) (*match.Names, error) {
	if i, err := match.Check(patterns); err != nil {
		return nil, r.At(append(path, i)...).Error(err)
	}
	return match.NewNames(patterns)
}
