package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/posternmail/postern/plugins/contentfilter/classifier"
	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/feed"
	"github.com/posternmail/postern/sdk/mailfile"
	"github.com/posternmail/postern/sdk/match"
)

// Kinds of files in a bundle that this agent uses.
const (
	kindGood      = "phrases-good" // as a file of good_phrase_files
	kindBad       = "phrases-bad"  // as a file of bad_phrase_files
	kindModel     = "model"        // as train writes it
	kindCheckSpam = "model-check-spam"
	kindCheckHam  = "model-check-ham" // mail (mbox or one message) by which a model is tested before it is used
)

// fedKnowledge is what a feed brings.
type fedKnowledge struct {
	good, bad phrases
	model     *classifier.Model // nil without
}

// buildKnowledge reads a bundle. A model must be there with mail of both kinds, and judge it right.
func buildKnowledge(b *feed.Bundle) (*fedKnowledge, error) {
	if !b.Has(kindGood, kindBad, kindModel) {
		return nil, fmt.Errorf("it has no file of the kinds %s, %s and %s", kindGood, kindBad, kindModel)
	}
	k := new(fedKnowledge)
	for kind, list := range map[string]*phrases{kindGood: &k.good, kindBad: &k.bad} {
		for name, content := range b.Files(kind) {
			if number, err := match.ReadLines(bytes.NewReader(content), list.addLine); err != nil {
				return nil, fmt.Errorf("%s:%d: %w", name, number, err)
			}
		}
	}
	if p := k.bad.find(match.Fold(ordinary)); p != "" {
		return nil, fmt.Errorf("the bad phrase %q is in ordinary mail: a mistake", p)
	}
	for name, content := range b.Files(kindModel) {
		var err error
		if k.model, err = classifier.Parse(content); err == nil {
			err = checkModel(k.model, b)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return k, nil
}

// ordinary is in mail that everybody gets: no phrase of it tells spam.
const ordinary = `the a and of to in we you is are for on with this that it as at by from or be have not please thank thanks
dear hello hi regards best sincerely mail e-mail email message subject date re fwd http https www com org net
der die das und ist nicht mit von zu guten tag le la les et est de du un une bonjour merci el los las y es por para hola gracias`

// addLine of a file; # begins a comment.
func (p *phrases) addLine(line string) error {
	if line[0] == '#' {
		return nil
	}
	if n := utf8.RuneCountInString(line); n > maxPhrase {
		return fmt.Errorf("phrase of %d characters, at most %d", n, maxPhrase)
	}
	if !p.add(line) {
		return errors.New("an empty phrase is in every message")
	}
	return nil
}

// A model judges mail of its check right where spam has leastSpamSCL and wanted mail has less. leastRight of each kind must
// be, in percent: with fewer its tokens are not those of this agent, or it was trained upside down.
const (
	leastSpamSCL = 5
	leastRight   = 90
)

func checkModel(m *classifier.Model, b *feed.Bundle) error {
	for kind, spam := range map[string]bool{kindCheckSpam: true, kindCheckHam: false} {
		right, all := 0, 0
		for name, content := range b.Files(kind) {
			for _, text := range mailfile.Split(content) {
				features, err := stored{name, text}.features(context.Background(), m.Recipe, false)
				if err != nil {
					return err
				}
				all++
				if (classifier.SCL(m.Probability(features)) >= leastSpamSCL) == spam {
					right++
				}
			}
		}
		if all == 0 {
			return fmt.Errorf("a model needs mail to test it with: a file of the kind %s", kind)
		}
		if right*100 < all*leastRight {
			return fmt.Errorf("judges %d of %d messages of %s right, not %d %%", right, all, kind, leastRight)
		}
	}
	return nil
}

// OnSchedule looks at the sources of the feeds.
func (f *Filter) OnSchedule(_ context.Context, e *sdk.ScheduleEvent) sdk.Verdict {
	f.feeds.Fetch(e)
	return sdk.Continue()
}

// fedModel is the model of the first feed that has one.
func fedModel(feeds *feed.Feeds[fedKnowledge]) *classifier.Model {
	for v := range feeds.Values() {
		if v.Value.model != nil {
			return v.Value.model
		}
	}
	return nil
}

// fedGood finds a good phrase of a feed, fedBad a bad one.
func (f *Filter) fedGood(text string) string {
	for v := range f.feeds.Values() {
		if p := v.Value.good.find(text); p != "" {
			return p
		}
	}
	return ""
}

func (f *Filter) fedBad(text string) string {
	for v := range f.feeds.Values() {
		if p := v.Value.bad.find(text); p != "" {
			return p
		}
	}
	return ""
}
