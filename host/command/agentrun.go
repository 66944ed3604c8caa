package command

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/sdk/scaffold"
)

// exitCode is the exit status of a command of an agent, which has said itself what was wrong.
type exitCode int

// Error implements error.
func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func agentRunCommand(a *app) *command {
	return &command{
		name: "run", args: "NAME -- COMMAND...", short: "Run a command of an agent, such as a training, with its configuration and state.",
		min: 1, max: -1, file: true,
		run: func(ctx context.Context, args []string) error {
			c, err := a.loadOrExplain(ctx)
			if err != nil {
				return err
			}
			spec, err := agentNamed(c, args[0])
			if err != nil {
				return err
			}
			o := agent.Options{Spec: spec, StateDir: stateDir(c, spec.Name), Logger: a.logger("agent")}
			code, err := agent.RunCommand(ctx, o, args[1:], a.stdin, a.stdout, a.stderr)
			if err != nil {
				return err
			}
			if code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
}

func agentNamed(c *config.Config, name string) (config.Agent, error) {
	var names []string
	for _, one := range c.Agents {
		if one.Name == name {
			return one, nil
		}
		names = append(names, one.Name)
	}
	return config.Agent{}, fmt.Errorf("no agent %q is configured%s", name, suggest(name, names))
}

func agentNewCommand(a *app) *command {
	var dir, module, source string
	return &command{
		name: "new", args: "NAME", short: "Make a new agent: a module of its own that builds and passes its test.", min: 1, max: 1,
		flags: func(f *flag.FlagSet) {
			f.StringVar(&dir, "dir", "", "`FOLDER` to make; default: NAME")
			f.StringVar(&module, "module", "", "`PATH` of the module; default: agents.example/NAME")
			f.StringVar(&source, "sdk", "", "`FOLDER` of Postern's source, until its SDK is published; default: where this command or folder is in it")
		},
		run: func(_ context.Context, args []string) error {
			name := args[0]
			if dir == "" {
				dir = name
			}
			if source == "" {
				source = findSource()
			}
			if err := scaffold.New(dir, name, module, source); err != nil {
				return err
			}
			fetch := ""
			if source == "" {
				a.note("Postern's source is neither above this command nor above this folder: the SDK comes from the network, or use --sdk FOLDER")
				fetch = "go mod tidy && "
			}
			a.printf("made %s. Try it:\n  cd %s && %sgo test ./... && go build -o %s .\n", printable(name), printable(dir), fetch, printable(name))
			a.printf("and let the host run it:\n  agent %q {\n    priority = 50\n    command  = [%q]\n  }\n", name, filepath.Join(absolute(dir), name))
			return nil
		},
	}
}

// absolute is path from the root, as far as that can be known.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// findSource looks for Postern's own module above this binary (bin/postern after make) and above the current
// folder; "" without.
func findSource() string {
	var starts []string
	if binary, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(binary))
	}
	if folder, err := os.Getwd(); err == nil {
		starts = append(starts, folder)
	}
	for _, start := range starts {
		for folder := start; folder != filepath.Dir(folder); folder = filepath.Dir(folder) {
			content, err := os.ReadFile(filepath.Join(folder, "go.mod"))
			if err == nil && strings.HasPrefix(string(content), "module github.com/posternmail/postern\n") {
				return folder
			}
		}
	}
	return ""
}
