package host

import (
	"context"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/agent"
)

// trialOrder is a trial as it is remembered.
type trialOrder struct{}

// trial of a candidate beside the generation that it is to follow.
type trial struct {
	candidate *agent.Agent
}

func (f *fleet) try(ctx context.Context, m *member, next *override, t admin.Trial) (admin.Ordered, error) {
	return admin.Ordered{}, nil
}

func (f *fleet) promote(ctx context.Context, m *member) (admin.Ordered, error) {
	return admin.Ordered{}, nil
}

func (f *fleet) takeBack(m *member, why string) {}

// Compare implements admin.OperatorControl.
func (h *Host) Compare(name string) (admin.Comparison, error) { return admin.Comparison{}, nil }
