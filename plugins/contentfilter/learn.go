package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/posternmail/postern/plugins/contentfilter/classifier"
	"github.com/posternmail/postern/sdk"
)

// maxLearnt is how many messages are remembered; the oldest leave. A training takes their place.
const maxLearnt = 1000

// Reasons in the ledger.
const (
	reasonLearnt   = "Learnt"
	reasonNoLesson = "NothingToLearn" // without a model, or of a body over max_size
)

// OnReleased learns that a message is wanted.
func (f *Filter) OnReleased(ctx context.Context, e *sdk.ReleasedEvent) sdk.Verdict {
	return f.learn(ctx, e)
}

// OnFeedback learns what somebody says of a message.
func (f *Filter) OnFeedback(ctx context.Context, e *sdk.ReleasedEvent) sdk.Verdict {
	return f.learn(ctx, e)
}

// learn writes down the tokens of the message, as numbers, where all processes of the agent find them.
func (f *Filter) learn(ctx context.Context, e *sdk.ReleasedEvent) sdk.Verdict {
	m := f.brain.model.Load()
	body := e.Body()
	if m == nil || body.Skipped() {
		return sdk.Continue().Because(reasonNoLesson, "")
	}
	d, err := classifier.Read(ctx, e.Headers.Block(), body)
	if err != nil {
		return sdk.Undetermined(reasonUnreadable, err)
	}
	features := d.Features(m.Recipe, false)
	data := fmt.Sprintf("wanted; was %.4f", m.Probability(features))
	if !e.Wanted {
		data = fmt.Sprintf("spam; was %.4f", m.Probability(features))
	}
	if e.DryRun {
		return sdk.Continue().Because(reasonLearnt, data)
	}
	if err := writeLearnt(f.brain.learnt, classifier.Example{Features: features, Spam: !e.Wanted}); err != nil {
		return sdk.Undetermined(reasonUnreadable, err)
	}
	return sdk.Continue().Because(reasonLearnt, data)
}

// writeLearnt adds an example. The same message again takes the place of what was learnt of it before.
func writeLearnt(folder string, e classifier.Example) error {
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return err
	}
	name := e
	name.Spam = false
	sum := sha256.Sum256(name.Marshal())
	temp, err := os.CreateTemp(folder, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(e.Marshal())
	if err := errors.Join(err, temp.Close()); err != nil {
		return fmt.Errorf("writing what was learnt: %w", err)
	}
	if err := os.Rename(temp.Name(), filepath.Join(folder, hex.EncodeToString(sum[:16])+learntSuffix)); err != nil {
		return err
	}
	return prune(folder)
}

const learntSuffix = ".example"

// prune the oldest examples over the limit.
func prune(folder string) error {
	all, err := learntFiles(folder)
	if err != nil {
		return err
	}
	var errs []error
	for len(all) > maxLearnt {
		errs = append(errs, os.Remove(all[0].path))
		all = all[1:]
	}
	return errors.Join(errs...)
}

type learntFile struct {
	path     string
	modified time.Time // zero if it has just gone
}

// learntFiles lists the examples, the oldest first.
func learntFiles(folder string) ([]learntFile, error) {
	paths, err := filepath.Glob(filepath.Join(folder, "*"+learntSuffix))
	if err != nil {
		return nil, err
	}
	all := make([]learntFile, len(paths))
	for i, path := range paths {
		all[i].path = path
		if info, err := os.Stat(path); err == nil {
			all[i].modified = info.ModTime()
		}
	}
	slices.SortFunc(all, func(a, b learntFile) int { return cmp.Or(a.modified.Compare(b.modified), cmp.Compare(a.path, b.path)) })
	return all, nil
}

// readLearnt reads the examples. One that cannot be read is left out: the others are worth no less.
func readLearnt(folder string) []classifier.Example {
	if folder == "" {
		return nil
	}
	files, err := learntFiles(folder)
	if err != nil {
		return nil
	}
	var all []classifier.Example
	for _, f := range files {
		b, err := os.ReadFile(f.path)
		if err != nil {
			continue
		}
		if e, err := classifier.UnmarshalExample(b); err == nil {
			all = append(all, e)
		}
	}
	return all
}
