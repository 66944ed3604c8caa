package command

import (
	"context"
)

// commands is the tree of everything that can be typed.
func commands(a *app) *command {
	return &command{
		name: "postern", short: "The edge mail transport: one binary for the host and for everything one does to it.",
		subs: []*command{
			serveCommand(a), reloadCommand(a), restartCommand(a), drainCommand(a), checkCommand(a), configCommand(a), statusCommand(a), agentCommand(a), pipelineCommand(a), queueCommand(a),
			trackCommand(a), whyCommand(a), replayCommand(a), verifyCommand(a), quarantineCommand(a), tableCommand(a), userCommand(a),
			versionCommand(a),
		},
	}
}

func versionCommand(a *app) *command {
	return &command{
		name: "version", short: "Print the version of this command.", json: true,
		run: func(context.Context, []string) error {
			if a.json {
				return a.printJSON(map[string]string{"version": a.version})
			}
			a.printf("postern %s\n", a.version)
			return nil
		},
	}
}
