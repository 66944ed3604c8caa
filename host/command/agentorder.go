package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/fleet"
)

// orderCommand has the running host do something to one agent. fill completes the order.
func orderCommand(a *app, kind, short, long string, flags func(*flag.FlagSet), fill func(*admin.Order) error) *command {
	return &command{
		name: kind, args: "NAME", short: short, long: long, min: 1, max: 1, json: true, host: true, flags: flags,
		run: func(ctx context.Context, args []string) error {
			order := admin.Order{Kind: kind}
			if fill != nil {
				if err := fill(&order); err != nil {
					return err
				}
			}
			var done admin.Ordered
			if err := a.post(ctx, "/v1/agents/"+args[0]+"/order", order, &done); err != nil {
				return a.findings(err)
			}
			if a.json {
				return a.printJSON(done)
			}
			for _, did := range done.Did {
				a.printf("%s\n", printable(did))
			}
			return nil
		},
	}
}

func agentOrderCommands(a *app) []*command {
	const remembered = "It is remembered over restarts of the host and shown as drift until the configuration says the same; postern agent reset\ntakes it back."
	return []*command{
		agentUpgradeCommand(a),
		orderCommand(a, admin.OrderRollback, "Go back to the generation before: its program and its config block.",
			"Takes back a candidate that is being tried. "+remembered, nil, nil),
		orderCommand(a, admin.OrderPromote, "Have the candidate of an agent take over now.", "", nil, nil),
		orderCommand(a, admin.OrderEnable, "Start an agent that is disabled.", remembered, nil, nil),
		orderCommand(a, admin.OrderDisable, "Take an agent out of the plan.",
			"Mail that waits for it, held mail included, goes on without it.\n"+remembered, nil, nil),
		orderCommand(a, admin.OrderReset, "Run what the configuration says again.", "", nil, nil),
		agentCompareCommand(a),
	}
}

func agentUpgradeCommand(a *app) *command {
	var version, program, canary, shadow, duration string
	return orderCommand(a, admin.OrderUpgrade, "Replace an agent by another version of it, between two events.",
		"The new generation starts beside the old one, is configured and probed, and takes over; the old one drains. Without\n"+
			"--version and --command it is the program that is now where the running one came from. With --canary or --shadow it\n"+
			"is tried first, see postern agent compare.",
		func(f *flag.FlagSet) {
			f.StringVar(&version, "version", "", "`VERSION` from the catalog, such as 1.2.3 or \"~> 1.2\"")
			f.StringVar(&program, "command", "", "`PATH` of the program, with arguments behind it")
			f.StringVar(&canary, "canary", "", "first let it judge a `SHARE` of the sessions, such as 10%")
			f.StringVar(&shadow, "shadow", "", "first show it copies of the events of a `SHARE` of the sessions, without effect")
			f.StringVar(&duration, "duration", "", "`TIME` after which the candidate takes over, such as 1h; without, when it is told to")
		},
		func(o *admin.Order) (err error) {
			o.Version = version
			if o.Command, err = programWords(program); err != nil {
				return err
			}
			o.Trial, err = trialOf(canary, shadow, duration)
			if version != "" && program != "" {
				return &misuse{text: "--version and --command: give one of them"}
			}
			return err
		})
}

// programWords makes the program absolute: the host runs in another folder.
func programWords(text string) ([]string, error) {
	words := strings.Fields(text)
	if len(words) == 0 {
		return nil, nil
	}
	path, err := filepath.Abs(words[0])
	if err != nil {
		return nil, err
	}
	return append([]string{path}, words[1:]...), nil
}

func trialOf(canary, shadow, duration string) (*admin.Trial, error) {
	trial, share := &admin.Trial{Kind: config.Canary, Duration: duration}, canary
	switch {
	case canary != "" && shadow != "":
		return nil, &misuse{text: "--canary and --shadow: give one of them"}
	case canary == "" && shadow == "" && duration != "":
		return nil, &misuse{text: "--duration goes with --canary or --shadow"}
	case canary == "" && shadow == "":
		return nil, nil
	case shadow != "":
		trial.Kind, share = config.Shadow, shadow
	}
	var err error
	if trial.Share, err = config.ParseShare(share); err != nil || trial.Share == 0 {
		return nil, &misuse{text: fmt.Sprintf("%q is no share; write one above 0%% and up to 100%%, such as 10%%", share)}
	}
	if duration != "" {
		if _, err := config.ParseDuration(duration); err != nil {
			return nil, &misuse{text: "--duration: " + err.Error()}
		}
	}
	return trial, nil
}

func agentCompareCommand(a *app) *command {
	return &command{
		name: "compare", args: "NAME", short: "Show how a candidate does beside the generation it is to follow.",
		min: 1, max: 1, json: true, host: true,
		run: func(ctx context.Context, args []string) error {
			var c admin.Comparison
			if err := a.get(ctx, "/v1/agents/"+args[0]+"/compare", nil, &c); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(c)
			}
			a.printComparison(&c)
			return nil
		},
	}
}

func (a *app) printComparison(c *admin.Comparison) {
	facts := &table{}
	facts.row("agent", c.Agent)
	facts.row(c.Kind, strings.TrimSpace(c.State+" "+inBrackets(c.Why)))
	facts.row("current", c.Current)
	facts.row("candidate", c.Candidate)
	facts.row("share", fmt.Sprintf("%.4g %% of the sessions, %d so far", c.Share*100, c.Sessions))
	facts.row("since", c.Since)
	facts.row("takes over", orDash(c.Until))
	facts.row("compared", fmt.Sprintf("%d events, %d missed", c.Compared, c.Missed))
	facts.row("mean time", fmt.Sprintf("%s current, %s candidate", micros(int64(c.Latency["current"])), micros(int64(c.Latency["candidate"]))))
	facts.print(a.stdout, a.width)
	events := columns("EVENT", "COMPARED>", "OTHER VERDICT>", "OTHER EDITS>", "CANDIDATE FAILED>", "CURRENT FAILED>")
	for _, e := range c.Events {
		events.row(e.Event, fmt.Sprint(e.Compared), fmt.Sprint(e.Verdict), fmt.Sprint(e.Edits), fmt.Sprint(e.Failed), fmt.Sprint(e.Mended))
	}
	a.printBelow(events)
	examples := columns("TIME", "KIND", "EVENT", "MESSAGE", "CURRENT", "CANDIDATE")
	for _, d := range c.Examples {
		id := d.Message
		if id == "" {
			id = d.Session
		}
		examples.row(d.Time, d.Kind, d.Event, id, d.Current, d.Candidate)
	}
	a.printBelow(examples)
}

func asRemote(err error) (*admin.RemoteError, bool) {
	var remote *admin.RemoteError
	ok := errors.As(err, &remote)
	return remote, ok
}

// drifted is what was ordered by command and is not in the configuration, as warnings.
func (a *app) drifted(c *config.Config) *config.Diagnostics {
	found := &config.Diagnostics{}
	if c == nil {
		return found
	}
	drift, err := fleet.DriftOf(c)
	if err != nil {
		drift = []string{err.Error()}
	}
	for _, text := range drift {
		found.Warn(text)
	}
	return found
}
