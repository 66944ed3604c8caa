package host

import (
	"context"

	"github.com/posternmail/postern/host/internal/admin"
)

// This file is what operators may ask of a running host's agents; Reload, Restart and Drain have their own.

// Order implements admin.OperatorControl.
func (h *Host) Order(ctx context.Context, name string, o admin.Order) (admin.Ordered, error) {
	defer h.agents.Hold()()
	if err := h.mayChange(); err != nil {
		return admin.Ordered{}, err
	}
	return h.agents.Order(ctx, name, o)
}

// Compare implements admin.OperatorControl.
func (h *Host) Compare(name string) (admin.Comparison, error) { return h.agents.Compare(name) }

// mayChange says why a host cannot be changed now.
func (h *Host) mayChange() error {
	if h.Load == nil {
		return admin.Refuse("", "this host was started without a way to read its configuration again")
	}
	if h.queue.Load() == nil {
		return admin.Refuse("The commands reach the new process in a moment.", "another process has taken this host's place")
	}
	return nil
}
