package main

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/posternmail/postern/plugins/contentfilter/classifier"
	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/feed"
	"github.com/posternmail/postern/sdk/match"
)

//go:generate go run . --options=README.md

// Config is the agent's configuration. The defaults are those of Exchange's content filter.
type Config struct {
	GoodPhrases        []string      `hcl:"good_phrases,optional" doc:"Words or phrases; a message with one of them has SCL 0. Up to 800, each of up to 256 characters."`
	BadPhrases         []string      `hcl:"bad_phrases,optional" doc:"Words or phrases; a message with one of them has SCL 9, unless it has a good one too. The same bounds."`
	GoodPhraseFiles    []string      `hcl:"good_phrase_files,optional" format:"path" doc:"Files of more good phrases, one a line, # for comments. Read again when they change."`
	BadPhraseFiles     []string      `hcl:"bad_phrase_files,optional" format:"path" doc:"Files of more bad phrases, likewise."`
	Model              string        `hcl:"model,optional" doc:"Model that the command train has written. Read again when it changes. If not given: the file model in the agent's own folder, where train writes it."`
	Feeds              []feed.Source `hcl:"feed,block" doc:"Signed phrases and models from elsewhere, fetched on a schedule (docs/feeds.md): phrases-good, phrases-bad, model. A model of a feed is used where there is none of model."`
	Learn              bool          `hcl:"learn,optional" default:"true" doc:"Whether a release from quarantine, or what somebody says of a message, changes the ratings of mail like it."`
	BypassedSenders    []string      `hcl:"bypassed_senders,optional" doc:"Senders (user@domain, domain, *.domain), in the envelope or in From, whose mail has SCL -1."`
	BypassedRecipients []string      `hcl:"bypassed_recipients,optional" doc:"Recipients (likewise) whose mail is not judged."`
	ProtectedDomains   []string      `hcl:"protected_domains,optional" doc:"Domains that phishing imitates, beside those of the recipients: a sender or a link whose domain looks like one of them raises the phishing level." example:"[\"bank.example\"]"`
	DeleteAt           int           `hcl:"delete_at,optional" default:"0" min:"0" max:"9" doc:"SCL from which a message is accepted and thrown away; 0 is never."`
	RejectAt           int           `hcl:"reject_at,optional" default:"7" min:"0" max:"9" doc:"SCL from which a message is refused; 0 is never. Below delete_at."`
	QuarantineAt       int           `hcl:"quarantine_at,optional" default:"0" min:"0" max:"9" doc:"SCL from which a message is quarantined; 0 is never. Below reject_at."`
	Response           string        `hcl:"response,optional" default:"Message rejected due to content restrictions" doc:"Text of the refusal, up to 240 characters of ASCII."`
	ReportSenderID     bool          `hcl:"report_sender_id,optional" default:"false" doc:"Whether the report has the result of Sender ID (token SID). The senderauth that finds it must stand before this agent, with a lower priority."`
	MaxSize            sdk.Size      `hcl:"max_size,optional" default:"11MB" doc:"Of messages with larger bodies only the subject is looked at."`
}

// Bounds of Exchange.
const (
	maxPhrases  = 800
	maxPhrase   = 256
	maxResponse = 240
)

// New checks cfg. It is called for every new configuration.
func New(cfg Config, r *sdk.Registrar) (*Filter, error) {
	f := &Filter{Config: cfg, internal: r.Host().InternalSMTPServers}
	var errs [9]error
	f.good, errs[0] = newPhrases(r, "good_phrases", cfg.GoodPhrases)
	f.bad, errs[1] = newPhrases(r, "bad_phrases", cfg.BadPhrases)
	f.senders, errs[2] = addresses(r, "bypassed_senders", cfg.BypassedSenders)
	f.recipients, errs[3] = addresses(r, "bypassed_recipients", cfg.BypassedRecipients)
	errs[4] = checkResponse(r, cfg.Response)
	errs[5] = checkThresholds(r, cfg)
	f.feeds, errs[8] = feed.Open(r, "feed", cfg.Feeds, buildKnowledge)
	f.brain, errs[6] = newBrain(r, cfg, f.feeds)
	f.protected, errs[7] = protected(r, cfg.ProtectedDomains)
	if err := errors.Join(errs[:]...); err != nil {
		f.feeds.Close()
		return nil, err
	}
	f.register(r)
	f.feeds.Subscribe(r)
	if !r.Validating() {
		f.stop = f.brain.watch(r.Logger())
	}
	return f, nil
}

// register says what the events need.
func (f *Filter) register(r *sdk.Registrar) {
	f.safelist = newSafelist(r)
	r.OnEndOfData(sdk.Body(sdk.Whole, sdk.Current), sdk.SkipOver(f.MaxSize), sdk.ReadsHeaders(classifier.Fields()...), sdk.ReadsHeaders("Date"),
		sdk.MayChange(sdk.Verdicts, sdk.Headers, sdk.Stamps("scl", "pcl", stampProbability)))
	if f.ReportSenderID {
		r.OnEndOfData(sdk.ReadsStamps(stampSenderID))
	}
	if !f.Learn {
		r.Skip(sdk.OnReleased, sdk.OnFeedback)
		return
	}
	for _, kind := range []sdk.EventKind{sdk.OnReleased, sdk.OnFeedback} {
		r.On(kind, sdk.Body(sdk.Whole, sdk.Current), sdk.SkipOver(f.MaxSize), sdk.ReadsHeaders(classifier.Fields()...), sdk.MayChange())
	}
}

// Close implements the end of a configuration.
func (f *Filter) Close() {
	if f.stop != nil {
		f.stop()
	}
	f.feeds.Close()
}

// newBrain reads the model and the phrases in files. A model that the configuration names must be whole, if it is there.
// A broken one of the agent's own folder is not worth a mail server that does not start.
func newBrain(r *sdk.Registrar, cfg Config, feeds *feed.Feeds[fedKnowledge]) (*brain, error) {
	b := &brain{feeds: feeds, modelPath: modelPath(cfg, r.StateDir()), goodFiles: cfg.GoodPhraseFiles, badFiles: cfg.BadPhraseFiles}
	if cfg.Learn {
		b.learnt = learntFolder(r.StateDir())
	}
	b.mark()
	if err := readPhrases(&b.good, b.goodFiles); err != nil {
		return nil, r.At("good_phrase_files").Error(err)
	}
	if err := readPhrases(&b.bad, b.badFiles); err != nil {
		return nil, r.At("bad_phrase_files").Error(err)
	}
	err := b.readModel()
	switch {
	case cfg.Model != "" && err == nil && b.base == nil:
		r.At("model").Warn(fmt.Sprintf("there is no file %s yet: messages are rated by rules alone until the command train has made it", cfg.Model))
	case cfg.Model != "" && err != nil:
		return nil, r.At("model").Error(err)
	case err != nil:
		r.Warn(fmt.Sprintf("the model cannot be used; messages are rated by rules alone: %v", err))
	}
	b.takeFed()
	if b.model.Load() == nil && !r.Validating() {
		r.Logger().Warn("no model: messages are rated by rules alone; make one of sorted mail with `postern agent run " + r.Instance() + " -- train --spam PATH --ham PATH`")
	}
	return b, nil
}

// checkThresholds wants delete > reject > quarantine among those that are on.
func checkThresholds(r *sdk.Registrar, cfg Config) error {
	above, name := 10, ""
	for _, t := range []struct {
		name string
		at   int
	}{{"delete_at", cfg.DeleteAt}, {"reject_at", cfg.RejectAt}, {"quarantine_at", cfg.QuarantineAt}} {
		if t.at == 0 {
			continue
		}
		if t.at >= above {
			return r.At(t.name).Errorf("must be below %s, which is %d: delete > reject > quarantine", name, above)
		}
		above, name = t.at, t.name
	}
	return nil
}

// checkResponse: one line of printable ASCII (RFC 5321 section 4.2).
func checkResponse(r *sdk.Registrar, text string) error {
	if len(text) > maxResponse {
		return r.At("response").Errorf("text of %d characters, at most %d", len(text), maxResponse)
	}
	for _, c := range text {
		if c < ' ' || c > '~' {
			return r.At("response").Errorf("%q cannot stand in a reply, which is one line of ASCII", c)
		}
	}
	return nil
}

// newPhrases reads the list of that name.
func newPhrases(r *sdk.Registrar, name string, list []string) (*phrases, error) {
	if len(list) > maxPhrases {
		return nil, r.At(name).Errorf("%d phrases, at most %d", len(list), maxPhrases)
	}
	p := new(phrases)
	for i, text := range list {
		if n := utf8.RuneCountInString(text); n > maxPhrase {
			return nil, r.At(name, i).Errorf("phrase of %d characters, at most %d", n, maxPhrase)
		}
		if !p.add(text) {
			return nil, r.At(name, i).Errorf("an empty phrase is in every message")
		}
	}
	return p, nil
}

// protected reads protected_domains.
func protected(r *sdk.Registrar, list []string) ([]domain, error) {
	var all []domain
	for i, name := range list {
		d := domainOf(name)
		if d.org == "" {
			return nil, r.At("protected_domains", i).Errorf("%q is no registered domain", name)
		}
		all = append(all, d)
	}
	return all, nil
}

func addresses(r *sdk.Registrar, name string, list []string) (*match.Addresses, error) {
	a, i, err := match.NewAddresses(list)
	if err != nil {
		return nil, r.At(name, i).Error(err)
	}
	return a, nil
}
