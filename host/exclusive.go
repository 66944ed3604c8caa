package host

import (
	"context"
	"sync"
)

// exclusive are the labels of the running agents that own something only one process can have.
func (f *fleet) exclusive() (labels []string) {
	for _, m := range f.all() {
		if m.line != nil && len(m.line.Manifest().GetExclusiveResources()) > 0 {
			labels = append(labels, m.spec.Name)
		}
	}
	return labels
}

// quiesce ends the exclusive agents. Their events wait, see agent.Line.
func (f *fleet) quiesce(ctx context.Context) (ended []*member) {
	var ending sync.WaitGroup
	for _, label := range f.exclusive() {
		m := f.member(label)
		ended = append(ended, m)
		m.line.Vacate()
		ending.Go(func() { m.agent.Close(ctx) })
	}
	ending.Wait()
	return ended
}

// resume starts again what quiesce has ended.
func (f *fleet) resume(ended []*member) {
	for _, m := range ended {
		f.revive(&step{name: m.spec.Name, was: m})
	}
}
