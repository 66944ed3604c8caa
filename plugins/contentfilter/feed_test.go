package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"

	"github.com/posternmail/postern/plugins/contentfilter/classifier"
	"github.com/posternmail/postern/sdk/feed"
)

// bundle of files: kind and content in turn.
func bundle(t *testing.T, files ...string) *feed.Bundle {
	t.Helper()
	public, secret, err := minisign.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m := feed.Manifest{Name: "filter", Serial: 1, Created: time.Now()}
	var contents []feed.Content
	for i := 0; i < len(files); i += 2 {
		contents = append(contents, feed.Content{Name: fmt.Sprintf("%d", i/2), Kind: files[i], Octets: []byte(files[i+1])})
	}
	archive, err := feed.Pack(m, contents)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := feed.Sign(archive, secret, m)
	if err != nil {
		t.Fatal(err)
	}
	b, err := feed.Verify(archive, signature, []feed.Key{{PublicKey: public}}, 32<<20)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

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
		err := split("mail", []byte(text), func(s stored) error {
			features, err := s.features(context.Background(), classifier.Standard, false)
			examples = append(examples, classifier.Example{Features: features, Spam: kind})
			return err
		})
		if err != nil {
			t.Fatal(err)
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
	k, err := buildKnowledge(bundle(t, kindBad, "# comment\nmiracle cure\n", kindGood, "our project\n",
		kindModel, model, kindCheckSpam, mailOf("casino jackpot", 9), kindCheckHam, mailOf("meeting agenda", 9), "ip-block", "of another agent"))
	if err != nil {
		t.Fatal(err)
	}
	if k.bad.find(classifier.Fold("A Miracle Cure!")) == "" || k.good.find(classifier.Fold("for our project")) == "" || k.model == nil {
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
		"empty phrase":    {[]string{kindBad, "casino\n \u200b\n"}, "0:2: an empty phrase"},
		"too long phrase": {[]string{kindBad, strings.Repeat("x", 300)}, "0:1: phrase of 300 characters"},
	} {
		if _, err := buildKnowledge(bundle(t, c.files...)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want ... %s ...", name, err, c.want)
		}
	}
}
