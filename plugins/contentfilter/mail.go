package main

import (
	"context"
	"fmt"

	"github.com/posternmail/postern/plugins/contentfilter/classifier"
	"github.com/posternmail/postern/sdk/mailfile"
)

// stored message of a collection.
type stored struct {
	name string // of its file; with a number in a mbox
	text []byte
}

// maxStored is how large a message of a collection may be; what is larger was never judged either.
const maxStored = 16 << 20

// messages calls use with every message of a mbox file, a Maildir or a folder of files.
func messages(ctx context.Context, path string, use func(stored) error) error {
	return mailfile.Walk(ctx, path, func(name string, text []byte) error {
		if len(text) > maxStored {
			return nil
		}
		return use(stored{name, text})
	})
}

// features of a stored message.
func (s stored) features(ctx context.Context, recipe classifier.Recipe, names bool) (*classifier.Features, error) {
	d, err := classifier.ReadBytes(ctx, s.text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	return d.Features(recipe, names), nil
}
