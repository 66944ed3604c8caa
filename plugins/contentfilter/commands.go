package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/posternmail/postern/plugins/contentfilter/classifier"
	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/feed"
)

// commands of the agent.
func commands() []sdk.Command {
	return []sdk.Command{
		feed.Command(func(c Config) []feed.Source { return c.Feeds }, buildKnowledge),
		{Name: "train", Summary: "makes a model of sorted mail: --spam PATH... --ham PATH... (mbox, Maildir or folder)", Run: train},
		{Name: "test", Summary: "judges sorted mail by the model: --spam PATH... --ham PATH...", Run: test},
		{Name: "explain", Summary: "says what the model thinks of messages, and by which tokens: PATH...", Run: explain},
	}
}

// paths of a flag that may be given several times.
type paths []string

func (p *paths) String() string     { return fmt.Sprint([]string(*p)) }
func (p *paths) Set(s string) error { *p = append(*p, s); return nil }

// arguments of a command.
type arguments struct {
	spam, ham paths
	model     string
	tokens    int
	rest      []string
}

// parse the arguments. Without --model the model is that of the configuration.
func parse(name string, c *sdk.Invocation) (arguments, error) {
	var a arguments
	var cfg Config
	if err := c.Config(&cfg); err != nil {
		return a, err
	}
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(c.Err)
	f.StringVar(&a.model, "model", modelPath(cfg, c.StateDir), "`FILE` of the model")
	if name == "explain" {
		f.IntVar(&a.tokens, "tokens", 15, "`NUMBER` of tokens to show of each message")
	} else {
		f.Var(&a.spam, "spam", "`PATH` of spam: mbox, Maildir or folder; may be repeated")
		f.Var(&a.ham, "ham", "`PATH` of wanted mail; may be repeated")
	}
	if err := f.Parse(c.Args); err != nil {
		return a, err
	}
	a.rest = f.Args()
	if name != "explain" && len(a.rest) > 0 {
		return a, fmt.Errorf("%q belongs to no flag: --spam PATH --ham PATH", a.rest[0])
	}
	return a, nil
}

// sorted calls use with every message of both kinds.
func (a arguments) sorted(ctx context.Context, use func(s stored, spam bool) error) error {
	if len(a.spam) == 0 || len(a.ham) == 0 {
		return errors.New("name mail of both kinds: --spam PATH --ham PATH")
	}
	for _, kind := range []struct {
		paths []string
		spam  bool
	}{{a.spam, true}, {a.ham, false}} {
		for _, path := range kind.paths {
			if err := messages(ctx, path, func(s stored) error { return use(s, kind.spam) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// train is the command: it makes a model and puts it in the place of the old one, where running agents find it.
func train(ctx context.Context, c *sdk.Invocation) error {
	a, err := parse("train", c)
	if err != nil {
		return err
	}
	var examples []classifier.Example
	err = a.sorted(ctx, func(s stored, spam bool) error {
		features, err := s.features(ctx, classifier.Standard, false)
		examples = append(examples, classifier.Example{Features: features, Spam: spam})
		return err
	})
	if err != nil {
		return err
	}
	model, err := classifier.Train(examples, classifier.Settings{}, time.Now())
	if err != nil {
		return fmt.Errorf("%w; there were %d messages", err, len(examples))
	}
	// Who trains may be another user than the agent, which must read what is written. The folder lets nobody else in.
	syscall.Umask(0o022)
	if err := model.Save(a.model); err != nil {
		return err
	}
	fmt.Fprintf(c.Out, "trained with %d messages of spam and %d of wanted mail: %s\n", model.Spam, model.Ham, a.model)
	return nil
}

// test is the command: how good the model is on sorted mail.
func test(ctx context.Context, c *sdk.Invocation) error {
	a, err := parse("test", c)
	if err != nil {
		return err
	}
	model, err := classifier.Load(a.model)
	if err != nil {
		return err
	}
	var judged []classifier.Judged
	var levels [2][10]int // how many have each SCL: wanted, spam
	var used time.Duration
	err = a.sorted(ctx, func(s stored, spam bool) error {
		start := time.Now()
		features, err := s.features(ctx, model.Recipe, false)
		if err != nil {
			return err
		}
		score := model.Score(features)
		used += time.Since(start)
		judged = append(judged, classifier.Judged{Score: score, Spam: spam})
		kind := 0
		if spam {
			kind = 1
		}
		levels[kind][classifier.SCL(model.Probability(features))]++
		return nil
	})
	if err != nil {
		return err
	}
	if len(judged) == 0 {
		return errors.New("no messages there")
	}
	tellQuality(c.Out, classifier.Measure(judged), used/time.Duration(len(judged)))
	tellLevels(c.Out, levels)
	return nil
}

func tellQuality(w io.Writer, q classifier.Quality, one time.Duration) {
	fmt.Fprintf(w, "%d messages of spam, %d of wanted mail, %.2f ms each\n", q.Spam, q.Ham, float64(one)/float64(time.Millisecond))
	fmt.Fprintf(w, "area under the ROC curve          %.4f\n", q.Area)
	fmt.Fprintf(w, "caught at 0.1 %% false positives   %.1f %%\n", 100*q.Catch01)
	fmt.Fprintf(w, "caught at 0.5 %% false positives   %.1f %%\n", 100*q.Catch05)
}

func tellLevels(w io.Writer, levels [2][10]int) {
	fmt.Fprintln(w, "SCL     spam  wanted")
	for scl := range levels[0] {
		fmt.Fprintf(w, "%3d %8d %7d\n", scl, levels[1][scl], levels[0][scl])
	}
}

// explain is the command: what the model thinks of each message, and the tokens that weigh most.
func explain(ctx context.Context, c *sdk.Invocation) error {
	a, err := parse("explain", c)
	if err != nil {
		return err
	}
	if len(a.rest) == 0 {
		return errors.New("name the messages: files, mbox files, Maildirs or folders")
	}
	model, err := classifier.Load(a.model)
	if err != nil {
		return err
	}
	for _, path := range a.rest {
		err := messages(ctx, path, func(s stored) error {
			features, err := s.features(ctx, model.Recipe, true)
			if err != nil {
				return err
			}
			p := model.Probability(features)
			fmt.Fprintf(c.Out, "%s: SCL %d, probability %.4f\n", s.name, classifier.SCL(p), p)
			for _, r := range model.Explain(features, a.tokens) {
				fmt.Fprintf(c.Out, "  %+.4f  %s\n", r.Weight, printable(r.Token))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
