package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/internal/feedtest"
	"github.com/posternmail/postern/plugins/contentfilter/classifier"
	"github.com/posternmail/postern/sdk/mailfile"
	"github.com/posternmail/postern/sdk/match"
)

// mailOf so many messages about a thing, as a mbox.
func mailOf(thing string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "From s@x.example Mon Jan  5 10:00:00 2026\nFrom: s@x.example\nSubject: %s\n\nsome %[1]s of number %d for %[1]s and you\n\n", thing, i)
	}
	return b.String()
}

// modelOf two kinds of mail, as train writes it.
func modelOf(t *testing.T, spam, ham string) string {
	t.Helper()
	var examples []classifier.Example
	for text, kind := range map[string]bool{spam: true, ham: false} {
		for _, one := range mailfile.Split([]byte(text)) {
			features, err := stored{"mail", one}.features(context.Background(), classifier.Standard, false)
			if err != nil {
				t.Fatal(err)
			}
			examples = append(examples, classifier.Example{Features: features, Spam: kind})
		}
	}
	m, err := classifier.Train(examples, classifier.Settings{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := m.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestBuildKnowledge(t *testing.T) {
	spam, ham := mailOf("casino jackpot", 60), mailOf("meeting agenda", 60)
	model := modelOf(t, spam, ham)
	k, err := buildKnowledge(feedtest.Bundle(t, kindBad, "# comment\nmiracle cure\n", kindGood, "our project\n",
		kindModel, model, kindCheckSpam, mailOf("casino jackpot", 9), kindCheckHam, mailOf("meeting agenda", 9), "ip-block", "of another agent"))
	if err != nil {
		t.Fatal(err)
	}
	if k.bad.find(match.Fold("A Miracle Cure!")) == "" || k.good.find(match.Fold("for our project")) == "" || k.model == nil {
		t.Errorf("%+v", k)
	}
	for name, c := range map[string]struct {
		files []string
		want  string
	}{
		"nothing":         {[]string{"ip-block", "192.0.2.1"}, "no file of the kinds"},
		"no test":         {[]string{kindModel, model, kindCheckSpam, spam}, "a file of the kind model-check-ham"},
		"upside down":     {[]string{kindModel, modelOf(t, ham, spam), kindCheckSpam, spam, kindCheckHam, ham}, "right, not 90 %"},
		"damaged":         {[]string{kindModel, model[:len(model)-9], kindCheckSpam, spam, kindCheckHam, ham}, "damaged or cut off"},
		"ordinary word":   {[]string{kindBad, "casino\nthe\n"}, `the bad phrase "the" is in ordinary mail`},
		"empty phrase":    {[]string{kindBad, "casino\n \u200b\n"}, "0.txt:2: an empty phrase"},
		"too long phrase": {[]string{kindBad, strings.Repeat("x", 300)}, "0.txt:1: phrase of 300 characters"},
	} {
		if _, err := buildKnowledge(feedtest.Bundle(t, c.files...)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want ... %s ...", name, err, c.want)
		}
	}
}
