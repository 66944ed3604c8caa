package queue

import (
	"container/list"
	"sync"
)

// itemCache keeps the items committed last, so that the queue need not read what was written a moment ago. It holds
// records, not Items: what Load gives out is the caller's own, and the same as after a restart.
type itemCache struct {
	limit int64

	mu    sync.Mutex
	bytes int64
	items map[string]*list.Element // of cachedItem
	order *list.List               // newest first
}

type cachedItem struct {
	id       string
	record   []byte
	contents contents
}

// openFileCost is what an open file counts as, in bytes: it bounds the descriptors that the cache keeps open.
const openFileCost = 256 << 10

func (c *cachedItem) size() int64 {
	n := int64(len(c.record)) + 200 + c.contents.size()
	for _, content := range c.contents {
		if content.body != nil && !content.body.InMemory() {
			n += openFileCost
		}
	}
	return n
}

func newItemCache(limit int64) *itemCache {
	return &itemCache{limit: limit, items: map[string]*list.Element{}, order: list.New()}
}

func (c *itemCache) put(item *cachedItem) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(item.id)
	c.items[item.id] = c.order.PushFront(item)
	c.bytes += item.size()
	for c.bytes > c.limit {
		c.drop(c.order.Back().Value.(*cachedItem).id)
	}
}

func (c *itemCache) get(id string) *cachedItem {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.items[id]; e != nil {
		return e.Value.(*cachedItem)
	}
	return nil
}

func (c *itemCache) remove(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(id)
}

func (c *itemCache) drop(id string) {
	if e := c.items[id]; e != nil {
		c.bytes -= e.Value.(*cachedItem).size()
		c.order.Remove(e)
		delete(c.items, id)
	}
}
