package agent

import (
	"context"
	"errors"
	"io"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Agent is one configured agent: its instances and the events they work on. It is safe for concurrent use.
type Agent struct{ o Options }

var errNotYet = errors.New("not built yet")

// Launch starts the agent's instances.
func Launch(ctx context.Context, o Options) (*Agent, error) { return nil, errNotYet }

// Describe starts a process for its manifest alone.
func Describe(ctx context.Context, o Options) (*agentpb.DescribeResponse, error) {
	return nil, errNotYet
}

// Validate starts a process to check a configuration.
func Validate(ctx context.Context, o Options, configJSON []byte) ([]*agentpb.Diagnostic, error) {
	return nil, errNotYet
}

// RunCommand runs a subcommand of the agent's binary and answers with its exit status.
func RunCommand(ctx context.Context, o Options, args []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	return 0, errNotYet
}

// Name is the label of the agent block.
func (a *Agent) Name() string { return a.o.Spec.Name }

// Manifest of the newest running process.
func (a *Agent) Manifest() *agentpb.DescribeResponse { return nil }

// Subscriptions of the effective configuration.
func (a *Agent) Subscriptions() []*agentpb.Subscription { return nil }

// Call asks the agent. The error, if any, is a *Failure.
func (a *Agent) Call(ctx context.Context, c *Call) (Result, error) {
	return Result{}, &Failure{Agent: a.Name(), Kind: Down}
}

// Upload opens the octets that the agent sent over Bodies under a ticket named in Answer.
func (r *Result) Upload(ctx context.Context, ticket string) (*envelope.Body, error) {
	return nil, errNotYet
}

// Status for listings.
func (a *Agent) Status() Status { return Status{} }

// Ready reports whether an instance is up.
func (a *Agent) Ready() bool { return false }

// CountBreach counts an answer that the pipeline refused to apply.
func (a *Agent) CountBreach(reason string) {}

// Restart replaces the process of one instance after another.
func (a *Agent) Restart(ctx context.Context) error { return errNotYet }

// Close drains and ends all processes.
func (a *Agent) Close(ctx context.Context) {}
