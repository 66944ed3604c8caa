package fleet

import (
	"context"
	"sync"
)

// Exclusive are the labels of the running agents that own something only one process can have.
func (f *Fleet) Exclusive() (labels []string) {
	for _, m := range f.Members() {
		if m.Line != nil && len(m.Line.Manifest().GetExclusiveResources()) > 0 {
			labels = append(labels, m.Spec.Name)
		}
	}
	return labels
}

// Quiesce ends the exclusive agents. Their events wait, see agent.Line.
func (f *Fleet) Quiesce(ctx context.Context) (ended []*Member) {
	var ending sync.WaitGroup
	for _, label := range f.Exclusive() {
		m := f.member(label)
		ended = append(ended, m)
		m.Line.Vacate()
		ending.Go(func() { m.Agent.Close(ctx) })
	}
	ending.Wait()
	return ended
}

// Resume starts again what Quiesce has ended.
func (f *Fleet) Resume(ended []*Member) {
	for _, m := range ended {
		f.revive(&step{name: m.Spec.Name, was: m})
	}
}
