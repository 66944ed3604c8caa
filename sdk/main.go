package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/posternmail/postern/sdk/agentpb"
	"github.com/posternmail/postern/sdk/internal/stdout"
)

// Category of an agent. A bypass verdict names the category of agents to skip.
type Category = agentpb.Category

// Categories.
const (
	Other          = agentpb.Category_CATEGORY_OTHER
	Antispam       = agentpb.Category_CATEGORY_ANTISPAM
	Antivirus      = agentpb.Category_CATEGORY_ANTIVIRUS
	Authentication = agentpb.Category_CATEGORY_AUTHENTICATION
	Rewrite        = agentpb.Category_CATEGORY_REWRITE
	Policy         = agentpb.Category_CATEGORY_POLICY
	Journaling     = agentpb.Category_CATEGORY_JOURNALING
)

// Info is what an agent tells about itself.
type Info struct {
	// Name of the agent, [a-z][a-z0-9-]{0,63}.
	Name string
	// Version of the agent: a semantic version without a leading "v".
	Version string
	// Category of the agent; Other if not given.
	Category Category
	// Summary is one line for listings.
	Summary string
	// SharedStamps are the well-known stamps ("scl", "auth.spf") that the agent may write.
	SharedStamps []string
	// ExclusiveResources names what only one process can own (a port, a lock). While it is not empty the host
	// ends the old process before it starts the new one.
	ExclusiveResources []string
	// Commands are offered as `postern agent run NAME -- COMMAND`.
	Commands []Command
}

// Command is a subcommand of an agent: training, importing, looking at its state.
type Command struct {
	// Name as typed.
	Name string
	// Summary is one line of help.
	Summary string
	// Run the command. Its error is printed and makes the exit status 1.
	Run func(ctx context.Context, c *Invocation) error
}

// Invocation of a Command.
type Invocation struct {
	// Args after the name of the command.
	Args []string
	// StateDir is the agent's folder, the same that its handlers get from the Registrar.
	StateDir string
	// In, Out and Err are the terminal's.
	In       io.Reader
	Out, Err io.Writer

	config []byte
}

// Config fills the struct that cfg points to, of the type that New takes, from the configuration of the
// agent. Without a configuration (the binary was started by hand) it holds the defaults.
func (c *Invocation) Config(cfg any) error {
	return decodeConfig(c.config, cfg)
}

// Main runs the agent: it serves the host that started the process, or runs a subcommand, or explains itself
// to whoever started it by hand. It does not return.
func Main[C, A any](info Info, build func(C, *Registrar) (A, error)) {
	os.Exit(run(&definition{info: info, typed: typedBuilder[C, A]{build}}, os.Args[1:]))
}

// definition is an agent without its type parameters.
type definition struct {
	info  Info
	typed builder
}

// builder makes agents out of configurations.
type builder interface {
	// schema of the configuration type.
	schema() (*agentpb.Schema, error)
	// build decodes config and calls New. Findings are in r.
	build(config []byte, r *Registrar) any
}

func run(def *definition, args []string) int {
	_, err := def.manifest()
	switch {
	case err != nil:
		return failed(def, err)
	case len(args) == 1 && slices.Contains([]string{"--help", "-h"}, args[0]):
		explain(os.Stdout, def.info)
		return 0
	case len(args) == 1 && args[0] == "--version":
		fmt.Println(def.info.Name, def.info.Version)
		return 0
	case len(args) == 1 && args[0] == "--describe":
		return describe(def)
	case len(args) == 1 && (args[0] == "--options" || strings.HasPrefix(args[0], "--options=")):
		return failed(def, printOptions(def, strings.TrimPrefix(strings.TrimPrefix(args[0], "--options"), "=")))
	case len(args) == 1 && strings.HasPrefix(args[0], "--listen="):
		return listenForDebugger(def, strings.TrimPrefix(args[0], "--listen="))
	case len(args) > 0 && !startedByHost():
		return runCommand(def, args)
	case !startedByHost():
		explain(os.Stderr, def.info)
		return 1
	}
	return failed(def, newProcess(def).serve(stdout.Handshake))
}

// failed tells err, if there is one, and answers with the exit status.
func failed(def *definition, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", def.info.Name, err)
	return 1
}

func startedByHost() bool { return os.Getenv(stdout.CookieKey) == stdout.CookieValue }

// explain is for the person who typed the name of the binary.
func explain(w io.Writer, info Info) {
	program := filepath.Base(os.Args[0])
	fmt.Fprintf(w, `%s %s is an agent of Postern: it judges mail, and Postern starts it when needed.

Name it in the configuration of Postern

    agent %q {
      priority = 50
      command  = [%q]
    }

and run "postern check".

    %[5]s --options         prints every option of its config block
    %[5]s --describe        prints what it tells the host about itself, as JSON
    %[5]s --version         prints its name and version
    %[5]s --listen=SOCKET   serves at a socket, for attach = "unix:SOCKET" and a debugger
`, info.Name, info.Version, info.Name, os.Args[0], program)
	for _, c := range info.Commands {
		fmt.Fprintf(w, "    postern agent run %s -- %-12s %s\n", info.Name, c.Name, c.Summary)
	}
}

func describe(def *definition) int {
	manifest, err := def.manifest()
	if err == nil {
		var text []byte
		text, err = protojson.MarshalOptions{UseProtoNames: true}.Marshal(manifest)
		if err == nil {
			err = printIndented(os.Stdout, text)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// printIndented lays JSON out the same way each time, which protojson on its own does not.
func printIndented(w io.Writer, text []byte) error {
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		return err
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// errUsage makes the exit status 2.
var errUsage = errors.New("misuse")

func runCommand(def *definition, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := dispatchCommand(ctx, def, args)
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprintf(os.Stderr, "%s: %v\n", def.info.Name, err)
		return 2
	case err != nil:
		fmt.Fprintf(os.Stderr, "%s %s: %v\n", def.info.Name, args[0], err)
		return 1
	}
	return 0
}

func dispatchCommand(ctx context.Context, def *definition, args []string) error {
	var names []string
	for _, c := range def.info.Commands {
		if c.Name == args[0] {
			return c.Run(ctx, &Invocation{
				Args: args[1:], StateDir: os.Getenv("POSTERN_STATE_DIR"), config: []byte(os.Getenv("POSTERN_CONFIG")),
				In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
			})
		}
		names = append(names, c.Name)
	}
	if len(names) == 0 {
		return fmt.Errorf("%w: there is no command %q; this agent has none", errUsage, args[0])
	}
	return fmt.Errorf("%w: there is no command %q; there are: %s", errUsage, args[0], strings.Join(names, ", "))
}

// manifest answers Describe.
func (d *definition) manifest() (*agentpb.DescribeResponse, error) {
	if err := checkInfo(d.info); err != nil {
		return nil, err
	}
	schema, err := d.typed.schema()
	if err != nil {
		return nil, fmt.Errorf("type of the configuration: %w", err)
	}
	m := &agentpb.DescribeResponse{
		Name: d.info.Name, Version: d.info.Version, Category: d.info.Category, Summary: d.info.Summary,
		Schema: schema, SharedStamps: d.info.SharedStamps, ExclusiveResources: d.info.ExclusiveResources,
		Capabilities: &agentpb.Capabilities{
			BodyDescriptor: os.Getenv(sideFDVariable) != "", LiveConfigure: true, Need: true, Progress: true,
		},
		Sdk: "go " + Version,
	}
	if m.Category == agentpb.Category_CATEGORY_UNSPECIFIED {
		m.Category = Other
	}
	for _, c := range d.info.Commands {
		m.Commands = append(m.Commands, &agentpb.Command{Name: c.Name, Summary: c.Summary})
	}
	return m, nil
}

func checkInfo(info Info) error {
	if !isName(info.Name) {
		return fmt.Errorf("sdk.Info.Name %q: want a letter a-z, then up to 63 of a-z, 0-9 and -", info.Name)
	}
	if info.Version == "" || strings.HasPrefix(info.Version, "v") || strings.Count(info.Version, ".") < 2 {
		return fmt.Errorf("sdk.Info.Version %q: want a semantic version such as 1.0.0", info.Version)
	}
	return nil
}

func isName(s string) bool {
	if s == "" || len(s) > 64 || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
