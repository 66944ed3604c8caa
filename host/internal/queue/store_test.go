package queue_test

import (
	"testing"

	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/queue/storetest"
)

func TestConformance(t *testing.T) {
	t.Run("cached", func(t *testing.T) { storetest.Run(t, opener(queue.StoreOptions{})) })
	t.Run("uncached", func(t *testing.T) { storetest.Run(t, opener(queue.StoreOptions{CacheBytes: 1})) })
}

func opener(o queue.StoreOptions) storetest.Open {
	return func(t *testing.T, dir string) queue.Store {
		t.Helper()
		store, err := queue.OpenStore(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		return store
	}
}
