package main

import (
	"cmp"
	"errors"
	"io/fs"
	"path/filepath"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/plugins/contentfilter/classifier"
	"github.com/posternmail/postern/sdk/feed"
	"github.com/posternmail/postern/sdk/match"
)

// brain is what the filter knows beside its configuration: the model with what was learnt since, and phrases in files.
// It is read again when the files change, beside the events. Each change is a new value; a rating uses one throughout.
type brain struct {
	model atomic.Pointer[classifier.Model] // nil without
	good  atomic.Pointer[phrases]
	bad   atomic.Pointer[phrases]

	feeds *feed.Feeds[fedKnowledge]
	fed   *classifier.Model // that of the feeds which was applied last

	modelPath           string
	learnt              string // folder; empty: nothing is learnt
	goodFiles, badFiles []string
	base                *classifier.Model // without what was learnt
	watched             [4]*match.Watch   // by kind
}

// Kinds of files that are watched.
const (
	ofModel = iota
	ofLearnt
	ofGood
	ofBad
)

// modelPath of a configuration: its own, or where train writes by default.
func modelPath(cfg Config, stateDir string) string {
	if cfg.Model != "" {
		return cfg.Model
	}
	return filepath.Join(stateDir, "model")
}

// learntFolder of an agent.
func learntFolder(stateDir string) string { return filepath.Join(stateDir, "learnt") }

// readModel reads the model and what was learnt. No model is no error.
func (b *brain) readModel() error {
	m, err := classifier.Load(b.modelPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	b.base = m
	b.apply()
	return nil
}

// apply what was learnt to the model.
func (b *brain) apply() {
	m := cmp.Or(b.base, b.fed)
	if m == nil {
		b.model.Store(nil)
		return
	}
	if examples := readLearnt(b.learnt); len(examples) > 0 {
		m = m.Learn(examples)
	}
	b.model.Store(m)
}

// takeFed applies the model of the feeds, if that is another one than before.
func (b *brain) takeFed() {
	if fed := fedModel(b.feeds); fed != b.fed {
		b.fed = fed
		b.apply()
	}
}

// mark what there is as read.
func (b *brain) mark() {
	var learnt []string
	if b.learnt != "" {
		learnt = []string{b.learnt}
	}
	for kind, paths := range [4][]string{ofModel: {b.modelPath}, ofLearnt: learnt, ofGood: b.goodFiles, ofBad: b.badFiles} {
		b.watched[kind] = match.NewWatch(paths...)
	}
}

// watch the files until stop is called.
func (b *brain) watch(logger hclog.Logger) (stop func()) {
	return match.LookEvery(func() { b.look(logger) })
}

// look at the files once. What is broken is said once, and the old stays.
func (b *brain) look(logger hclog.Logger) {
	b.takeFed()
	for kind, w := range b.watched {
		if !w.Changed() {
			continue
		}
		if err := b.readAgain(kind, logger); err != nil {
			logger.Error("not read again; what was read before stays in use", "error", err)
		}
	}
}

func (b *brain) readAgain(kind int, logger hclog.Logger) error {
	switch kind {
	case ofModel:
		if err := b.readModel(); err != nil {
			return err
		}
		if b.base != nil {
			logger.Info("model read", "path", b.modelPath, "trained", b.base.Trained, "spam", b.base.Spam, "wanted", b.base.Ham)
		}
	case ofLearnt:
		b.apply()
	case ofGood:
		return readPhrases(&b.good, b.goodFiles)
	case ofBad:
		return readPhrases(&b.bad, b.badFiles)
	}
	return nil
}

// readPhrases swaps the phrases of files.
func readPhrases(to *atomic.Pointer[phrases], files []string) error {
	p := new(phrases)
	for _, path := range files {
		if err := p.readFile(path); err != nil {
			return err
		}
	}
	to.Store(p)
	return nil
}
