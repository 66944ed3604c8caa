package agent

import (
	"context"

	"github.com/posternmail/postern/sdk/agentpb"
)

// protocol that the newest process speaks, 0 when there was none or it is attached.
func (a *Agent) protocol() int {
	if p := a.newest.Load(); p != nil {
		return p.protocol()
	}
	return 0
}

// Examine starts a process for its manifest and the protocol that it speaks, and ends it.
func Examine(ctx context.Context, o Options) (manifest *agentpb.DescribeResponse, protocol int, err error) {
	err = briefly(ctx, o, func(ctx context.Context, p *process) error {
		err := p.describe(ctx)
		manifest, protocol = p.manifest, p.protocol()
		return err
	})
	return manifest, protocol, err
}
