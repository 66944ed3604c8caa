package main

import (
	"errors"
	"fmt"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/match"
)

// Config is the agent's configuration. The defaults are those of Exchange's content filter.
type Config struct {
	GoodPhrases        []string `hcl:"good_phrases,optional" doc:"a message with one of them has SCL 0; up to 800 of fewer than 257 characters, compared without case"`
	BadPhrases         []string `hcl:"bad_phrases,optional" doc:"a message with one of them has SCL 9, unless it has a good phrase; same bounds"`
	BypassedSenders    []string `hcl:"bypassed_senders,optional" doc:"senders (user@domain, domain, *.domain) in the envelope or in From whose mail has SCL -1"`
	BypassedRecipients []string `hcl:"bypassed_recipients,optional" doc:"recipients whose mail is not judged"`
	DeleteAt           int      `hcl:"delete_at,optional" default:"0" min:"0" max:"9" doc:"SCL from which a message is accepted and thrown away; 0 is never"`
	RejectAt           int      `hcl:"reject_at,optional" default:"7" min:"0" max:"9" doc:"SCL from which a message is refused; 0 is never"`
	QuarantineAt       int      `hcl:"quarantine_at,optional" default:"0" min:"0" max:"9" doc:"SCL from which a message is quarantined; 0 is never"`
	Response           string   `hcl:"response,optional" default:"Message rejected due to content restrictions" doc:"text of the refusal, up to 240 characters"`
	MaxSize            sdk.Size `hcl:"max_size,optional" default:"11MB" doc:"larger bodies are not looked at"`
}

// Bounds of Exchange.
const (
	maxPhrases  = 800
	maxPhrase   = 256
	maxResponse = 240
)

// New checks cfg. It is called for every new configuration.
func New(cfg Config, r *sdk.Registrar) (*Filter, error) {
	f := &Filter{Config: cfg}
	var err error
	if f.good, err = phrases(r, "good_phrases", cfg.GoodPhrases); err != nil {
		return nil, err
	}
	if f.bad, err = phrases(r, "bad_phrases", cfg.BadPhrases); err != nil {
		return nil, err
	}
	if f.senders, err = addresses(r, "bypassed_senders", cfg.BypassedSenders); err != nil {
		return nil, err
	}
	if f.recipients, err = addresses(r, "bypassed_recipients", cfg.BypassedRecipients); err != nil {
		return nil, err
	}
	if len(cfg.Response) > maxResponse {
		return nil, r.At("response").Error(fmt.Errorf("text of %d characters, at most %d", len(cfg.Response), maxResponse))
	}
	if err := checkThresholds(r, cfg); err != nil {
		return nil, err
	}
	r.OnEndOfData(sdk.ReadsHeaders(), sdk.Body(sdk.Whole, sdk.Current), sdk.SkipOver(cfg.MaxSize),
		sdk.MayChange(sdk.Verdicts, sdk.Headers, sdk.Stamps("scl")))
	return f, nil
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
			return r.At(t.name).Error(fmt.Errorf("must be below %s, which is %d: delete > reject > quarantine", name, above))
		}
		above, name = t.at, t.name
	}
	return nil
}

func phrases(r *sdk.Registrar, name string, list []string) ([]string, error) {
	if len(list) > maxPhrases {
		return nil, r.At(name).Error(fmt.Errorf("%d phrases, at most %d", len(list), maxPhrases))
	}
	var out []string
	for i, p := range list {
		folded := fold(p)
		if folded == "" {
			return nil, r.At(name, i).Error(errors.New("an empty phrase is in every message"))
		}
		if len([]rune(p)) > maxPhrase {
			return nil, r.At(name, i).Error(fmt.Errorf("phrase of %d characters, at most %d", len([]rune(p)), maxPhrase))
		}
		out = append(out, folded)
	}
	return out, nil
}

func addresses(r *sdk.Registrar, name string, list []string) (*match.Addresses, error) {
	a, i, err := match.NewAddresses(list)
	if err != nil {
		return nil, r.At(name, i).Error(err)
	}
	return a, nil
}
