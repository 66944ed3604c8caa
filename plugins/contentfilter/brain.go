package main

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/plugins/contentfilter/classifier"
	"github.com/posternmail/postern/sdk/feed"
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
	watched             [4]watched
}

// watched files of one kind.
type watched struct{ read, seen []fileState }

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

// fileState tells one version of a file from another. It is zero for a file that is not there.
type fileState struct {
	modified time.Time
	size     int64
}

func statesOf(paths []string) []fileState {
	states := make([]fileState, len(paths))
	for i, path := range paths {
		if info, err := os.Stat(path); err == nil {
			states[i] = fileState{info.ModTime(), info.Size()}
		}
	}
	return states
}

func (b *brain) states() [4][]fileState {
	var learnt []string
	if b.learnt != "" {
		learnt = []string{b.learnt}
	}
	return [4][]fileState{statesOf([]string{b.modelPath}), statesOf(learnt), statesOf(b.goodFiles), statesOf(b.badFiles)}
}

// mark what there is as read.
func (b *brain) mark() {
	for i, s := range b.states() {
		b.watched[i] = watched{s, s}
	}
}

// lookEvery is how often files are looked at. A change is read at the second look that finds the same file, so
// that one being written is not read half way.
const lookEvery = 2 * time.Second

// watch the files until stop is called.
func (b *brain) watch(logger hclog.Logger) (stop func()) {
	done := make(chan struct{})
	go func() {
		ticker := time.NewTicker(lookEvery)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				b.look(logger)
			}
		}
	}()
	return func() { close(done) }
}

// look at the files once. What is broken is said once, and the old stays.
func (b *brain) look(logger hclog.Logger) {
	b.takeFed()
	for kind, states := range b.states() {
		w := &b.watched[kind]
		settled := slices.Equal(states, w.seen)
		w.seen = states
		if !settled || slices.Equal(states, w.read) {
			continue
		}
		w.read = states
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
