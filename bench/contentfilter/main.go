// Command contentfilter compares the classifier of the content filter with bogofilter, which learns the same mail, and
// with SpamAssassin's local rules, on mail that is split by source and by time. `make eval-contentfilter` runs it; it
// needs the corpora beside the repository (../shared/corpora), bogofilter, and SpamAssassin's Perl modules.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/plugins/contentfilter/classifier"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var e eval
	flag.StringVar(&e.corpora, "corpora", "../shared/corpora", "`FOLDER` of the mail corpora")
	flag.BoolVar(&e.labelled, "as-labelled", false, "keep the few list posts that are spam but labelled as wanted")
	flag.BoolVar(&e.choose, "choose", false, "compare kinds of features instead of filters")
	flag.BoolVar(&e.alone, "alone", false, "leave out the other filters")
	flag.IntVar(&e.sample, "sample", 200, "SpamAssassin judges `NUMBER` messages of each kind of a split, as it takes a tenth of a second for one; 0: all")
	flag.Parse()
	if err := e.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "eval-contentfilter:", err)
		os.Exit(1)
	}
}

// eval is one run.
type eval struct {
	corpora                 string
	labelled, choose, alone bool
	sample                  int
	scratch                 string
	all                     []*message
}

func (e *eval) run(ctx context.Context) error {
	if err := e.need(); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "eval-contentfilter")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	e.scratch = scratch
	all, err := load(e.corpora, scratch)
	if err != nil {
		return err
	}
	e.all = all
	if !e.labelled {
		e.all = slices.DeleteFunc(e.all, func(m *message) bool { return strays[m.name] })
		fmt.Printf("%d messages; %d list posts that are spam are left out (-as-labelled keeps them)\n\n", len(e.all), len(strays))
	}
	if e.choose {
		return e.recipes(ctx)
	}
	return e.compare(ctx)
}

// need says what is missing.
func (e *eval) need() error {
	if _, err := os.Stat(e.corpora); err != nil {
		return fmt.Errorf("the corpora are not there: %w", err)
	}
	if e.alone || e.choose {
		return nil
	}
	if _, err := exec.LookPath("bogofilter"); err != nil {
		return errors.New("bogofilter is needed: apt-get install bogofilter")
	}
	if err := exec.Command("perl", "-MMail::SpamAssassin", "-e1").Run(); err != nil {
		return errors.New("SpamAssassin is needed: apt-get install spamassassin")
	}
	return nil
}

// compare the filters on every split.
func (e *eval) compare(ctx context.Context) error {
	features, one, err := e.read(ctx, e.all, classifier.Standard)
	if err != nil {
		return err
	}
	if err := e.sameWithoutLeaks(ctx, features); err != nil {
		return err
	}
	var rules filter
	if !e.alone {
		judged, err := spamassassin(e.scratch, e.sampled())
		if err != nil {
			return err
		}
		rules = filter{"SpamAssassin, local rules", judged}
	}
	for _, s := range splits {
		train, test := pick(e.all, s.train), pick(e.all, s.test)
		fmt.Printf("**%s**: %s. %d messages to learn (%d spam), %d to judge (%d spam).\n\n", s.name, s.about, len(train), spamOf(train), len(test), spamOf(test))
		all, levels, err := e.learners(train, test, features, one)
		if err != nil {
			return err
		}
		e.tables(test, all, rules)
		fmt.Printf("%s\n\n", levels)
	}
	return nil
}

// learners are the filters that learn, taught.
func (e *eval) learners(train, test []*message, features map[*message]*classifier.Features, one map[*message]time.Duration) ([]filter, string, error) {
	own, levels, err := e.own(train, test, features, one)
	if err != nil || e.alone {
		return []filter{own}, levels, err
	}
	all := []filter{own}
	fields := func(m *message) []byte {
		return bytes.Join([][]byte{onlyFields(m.header, classifier.TextFields()), m.body}, []byte("\r\n"))
	}
	for _, way := range []struct {
		name  string
		write func(*message) []byte
	}{{"bogofilter", (*message).whole}, {"bogofilter, given only the fields of which contentfilter learns words", fields}} {
		judged, err := bogofilter(e.scratch, train, test, way.write)
		if err != nil {
			return nil, "", err
		}
		all = append(all, filter{way.name, judged})
	}
	return all, levels, nil
}

// tables of a split: the learners on all of the mail, and all filters on what SpamAssassin has judged.
func (e *eval) tables(test []*message, all []filter, rules filter) {
	some := sampleOf(test, e.sample)
	if !e.alone && len(some) == len(test) {
		all = append(all, rules)
	}
	table(test, all)
	if !e.alone && len(some) < len(test) {
		fmt.Printf("Of these a sample, %d of them spam and %d wanted:\n\n", spamOf(some), len(some)-spamOf(some))
		table(some, append(all, rules))
	}
}

// sampled are the messages that SpamAssassin has to judge.
func (e *eval) sampled() []*message {
	chosen := map[*message]bool{}
	for _, s := range splits {
		for _, m := range sampleOf(pick(e.all, s.test), e.sample) {
			chosen[m] = true
		}
	}
	return pick(e.all, func(m *message) bool { return chosen[m] })
}

// sampleOf takes so many of each kind, evenly; 0: all.
func sampleOf(all []*message, n int) []*message {
	if n == 0 {
		return all
	}
	var out []*message
	for _, spam := range []bool{true, false} {
		kind := pick(all, func(m *message) bool { return m.spam == spam })
		take := min(n, len(kind))
		for i := range take {
			out = append(out, kind[i*len(kind)/take])
		}
	}
	return out
}

// filter and what it thinks of messages.
type filter struct {
	name string
	scores
}

func spamOf(all []*message) int {
	return len(pick(all, func(m *message) bool { return m.spam }))
}

// table of filters on the same mail.
func table(test []*message, all []filter) {
	fmt.Println("| filter | ROC area | caught at 0.1 % FP | at 0.5 % FP | ms a message |")
	fmt.Println("|---|---|---|---|---|")
	for _, f := range all {
		var judged []classifier.Judged
		for _, m := range test {
			judged = append(judged, classifier.Judged{Score: f.of[m], Spam: m.spam})
		}
		q := classifier.Measure(judged)
		fmt.Printf("| %s | %.4f | %.1f %% | %.1f %% | %.2f |\n", f.name, q.Area, 100*q.Catch01, 100*q.Catch05, float64(f.one)/float64(time.Millisecond))
	}
	fmt.Println()
}

// own classifier, and what it would do with its default thresholds.
func (e *eval) own(train, test []*message, features map[*message]*classifier.Features, one map[*message]time.Duration) (filter, string, error) {
	model, err := classifier.Train(examplesOf(train, features), classifier.Settings{}, time.Now())
	if err != nil {
		return filter{}, "", err
	}
	var file bytes.Buffer
	if err := model.Write(&file); err != nil {
		return filter{}, "", err
	}
	f := filter{"contentfilter", scores{of: map[*message]float64{}, one: mean(test, one)}}
	refused := map[bool]int{}
	for _, m := range test {
		f.of[m] = model.Score(features[m])
		if classifier.SCL(model.Probability(features[m])) >= 7 {
			refused[m.spam]++
		}
	}
	spam := spamOf(test)
	return f, fmt.Sprintf("With the default `reject_at = 7` contentfilter refuses %.1f %% of the spam and %d of %d wanted messages. Its median message takes %.2f ms; the model has %.1f MB.",
		100*float64(refused[true])/float64(spam), refused[false], len(test)-spam, float64(median(test, one))/float64(time.Millisecond), float64(file.Len())/1e6), nil
}

// read the features of messages, and how much processor time each takes, with all that comes before: MIME, HTML,
// charsets. Only the sum over the weights comes later, which is a hundredth of it.
func (e *eval) read(ctx context.Context, all []*message, recipe classifier.Recipe) (map[*message]*classifier.Features, map[*message]time.Duration, error) {
	features, one := map[*message]*classifier.Features{}, map[*message]time.Duration{}
	runtime.LockOSThread() // whose clock is read
	defer runtime.UnlockOSThread()
	for _, m := range all {
		start := used()
		f, err := featuresOf(ctx, m, m.header, recipe)
		if err != nil {
			return nil, nil, err
		}
		features[m], one[m] = f, used()-start
	}
	return features, one, nil
}

// used processor time of this thread: other work of the machine does not count.
func used() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

func featuresOf(ctx context.Context, m *message, header []byte, recipe classifier.Recipe) (*classifier.Features, error) {
	d, err := classifier.Read(ctx, header, bytes.NewReader(m.body))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.name, err)
	}
	return d.Features(recipe, false), nil
}

// sameWithoutLeaks shows that no header field that could tell where mail was collected makes a token: without Received,
// Message-ID, Date, To, List-*, X-* and all others the tokens are the same. The signs are the same without all fields but
// those that are said to be looked at for their form.
func (e *eval) sameWithoutLeaks(ctx context.Context, features map[*message]*classifier.Features) error {
	for _, m := range e.all {
		for _, names := range [][]string{classifier.TextFields(), classifier.Fields()} {
			f, err := featuresOf(ctx, m, onlyFields(m.header, names), classifier.Standard)
			if err != nil {
				return err
			}
			signsToo := len(names) > len(classifier.TextFields())
			if !slices.Equal(f.Text, features[m].Text) || !slices.Equal(f.Shape, features[m].Shape) || signsToo && !slices.Equal(f.Signs, features[m].Signs) {
				return fmt.Errorf("%s has other features without the header fields that contentfilter is said not to read", m.name)
			}
		}
	}
	fmt.Printf("Ablation: with all header fields removed but %q, not one token of %d messages changes. With %q besides, no sign changes either.\n\n",
		classifier.TextFields(), len(e.all), classifier.Fields()[len(classifier.TextFields()):])
	return nil
}

func examplesOf(all []*message, features map[*message]*classifier.Features) []classifier.Example {
	out := make([]classifier.Example, len(all))
	for i, m := range all {
		out[i] = classifier.Example{Features: features[m], Spam: m.spam}
	}
	return out
}

func mean(all []*message, one map[*message]time.Duration) time.Duration {
	sum := time.Duration(0)
	for _, m := range all {
		sum += one[m]
	}
	return sum / time.Duration(max(1, len(all)))
}

func median(all []*message, one map[*message]time.Duration) time.Duration {
	var each []time.Duration
	for _, m := range all {
		each = append(each, one[m])
	}
	slices.Sort(each)
	return each[len(each)/2]
}

// recipes compares kinds of features: ROC area and catch at 0.1 % and 0.5 % false positives on every split.
func (e *eval) recipes(ctx context.Context) error {
	fmt.Print("| features |")
	for _, s := range splits {
		fmt.Printf(" %s |", s.name)
	}
	fmt.Println(" ms |\n|---|---|---|---|---|---|---|---|")
	for _, r := range []struct {
		name   string
		recipe classifier.Recipe
	}{
		{"words", classifier.Words},
		{"words, pairs", classifier.Words | classifier.Pairs},
		{"4 characters", classifier.Grams},
		{"shape", classifier.Shape},
		{"signs", classifier.Signs},
		{"words, pairs, shape", classifier.Words | classifier.Pairs | classifier.Shape},
		{"words, pairs, signs", classifier.Words | classifier.Pairs | classifier.Signs},
		{"words, pairs, shape, signs", classifier.Words | classifier.Pairs | classifier.Shape | classifier.Signs},
		{"words, pairs, sparse pairs, shape, signs", classifier.Words | classifier.Pairs | classifier.Skips | classifier.Shape | classifier.Signs},
		{"words, pairs, 4 characters, shape, signs", classifier.Words | classifier.Pairs | classifier.Grams | classifier.Shape | classifier.Signs},
	} {
		features, one, err := e.read(ctx, e.all, r.recipe)
		if err != nil {
			return err
		}
		fmt.Printf("| %s |", r.name)
		for _, s := range splits {
			model, err := classifier.Train(examplesOf(pick(e.all, s.train), features), classifier.Settings{Recipe: r.recipe}, time.Now())
			if err != nil {
				return err
			}
			var judged []classifier.Judged
			for _, m := range pick(e.all, s.test) {
				judged = append(judged, classifier.Judged{Score: model.Score(features[m]), Spam: m.spam})
			}
			q := classifier.Measure(judged)
			fmt.Printf(" %.4f, %.1f, %.1f |", q.Area, 100*q.Catch01, 100*q.Catch05)
		}
		fmt.Printf(" %.2f |\n", float64(mean(e.all, one))/float64(time.Millisecond))
	}
	return nil
}
