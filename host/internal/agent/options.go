package agent

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/catalog"
	"github.com/posternmail/postern/host/internal/cgroup"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/privsep"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Options of an agent: what the host gives to Launch, Describe, Validate and RunCommand.
type Options struct {
	// Spec is the agent block. Zero numbers have the defaults of the configuration.
	Spec config.Agent
	// Host facts, sent with Validate and Configure. May be nil.
	Host *agentpb.HostFacts
	// RunDir is an existing folder of mode 0700 with a short path (at most 70 bytes). Each process has a folder
	// of its own below it for its socket, removed when the process has ended.
	RunDir string
	// StateDir is made if it does not exist, with mode 0700, and given to the agent. "": none.
	StateDir string
	// Beside says that the process is one beside those of the host, which says itself what its sandboxes lack.
	Beside bool
	// Sums remembers the digests of programs. nil: they are read at each start.
	Sums *catalog.Sums
	// Parent starts the processes as users of their own, for a host that has given up root. nil: this process does.
	Parent *privsep.Link
	// Groups has the cgroups that this process gives the processes it starts. nil: none.
	Groups *cgroup.Tree
	// Logger gets the lines of the agent and what the host has to say about it. nil: nothing is logged.
	Logger hclog.Logger
	// OnChange, if set, is called in a goroutine of its own after an instance came up, went down or failed.
	OnChange func()
	// HangAfter is how long a process may be silent while a ping waits for its answer, before it counts as hung
	// and is killed. 0: 10 seconds.
	HangAfter time.Duration
	// Backoff between starts of a process that keeps failing. Zero fields have their defaults.
	Backoff Backoff
}

// Defaults of what a Spec and Options leave at zero.
const (
	defaultStartTimeout = 10 * time.Second
	defaultHangAfter    = 10 * time.Second
	defaultMaxInFlight  = 256
)

// withDefaults fills in what is zero.
func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.HangAfter == 0 {
		o.HangAfter = defaultHangAfter
	}
	if o.Spec.StartTimeout == 0 {
		o.Spec.StartTimeout = defaultStartTimeout
	}
	if o.Spec.MaxInFlight == 0 {
		o.Spec.MaxInFlight = defaultMaxInFlight
	}
	if o.Spec.Instances == 0 || o.Spec.Attach != "" {
		o.Spec.Instances = 1
	}
	o.Backoff = o.Backoff.bounded(o.Spec.Restart).withDefaults()
	return o
}

// check says what makes o unusable.
func (o Options) check() error {
	if o.Spec.Attach == "" && len(o.Spec.Command) == 0 {
		return fmt.Errorf("agent %s: neither a command nor attach is given", o.Spec.Name)
	}
	if o.Spec.Attach == "" && !filepath.IsAbs(o.RunDir) {
		return fmt.Errorf("agent %s: the run folder %q is not an absolute path", o.Spec.Name, o.RunDir)
	}
	return nil
}
