package config

import (
	"errors"
	"strconv"
	"strings"
)

// buildTrial makes the trial of a canary or shadow block; nil without.
func (l *loader) buildTrial(n *node) *Trial {
	canary, shadow := n.one(Canary), n.one(Shadow)
	if canary.present && shadow.present {
		l.diags.errorf(shadow.at, "a canary stands at %s: one of them is enough", short(canary.at))
	}
	for _, block := range []*node{canary, shadow} {
		if block.present {
			t := DefaultTrial(block.typ.name)
			t.Share = l.percent(block, "share", true)
			t.Duration = block.duration("duration")
			t.MaxDisagreements, t.MaxFailures = l.percent(block, "max_disagreements", false), l.percent(block, "max_failures", false)
			t.MaxLatency, t.MinEvents = float64(block.number("max_latency")), int(block.number("min_events"))
			return &t
		}
	}
	return nil
}

// percent reads an option such as "10%" as a share of 1.
func (l *loader) percent(n *node, name string, some bool) float64 {
	share, err := ParseShare(n.str(name))
	if err == nil && some && share == 0 {
		err = errors.New("nothing would be tried")
	}
	if v := n.value(name); err != nil && !v.bad {
		l.diags.errorf(v.at, "%s: %v", name, err)
		v.bad = true
	}
	return share
}

// ParseShare reads a share in percent, from "0%" to "100%", as a number from 0 to 1.
func ParseShare(text string) (float64, error) {
	number, ok := strings.CutSuffix(text, "%")
	percent, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if !ok || err != nil || !(percent >= 0 && percent <= 100) {
		return 0, errors.New(`write a share as "10%", from 0% to 100%`)
	}
	return percent / 100, nil
}
