package delivery

import (
	"sync"
	"time"
)

// downFor is how long an address that could not be reached is tried last.
const downFor = time.Minute

// poolKey names connections that are as good as each other.
type poolKey struct {
	connector string
	address   string
	checked   string // whom the certificate was checked for; "" when it was not
}

// pool keeps idle connections.
type pool struct {
	mu     sync.Mutex
	idle   map[poolKey][]*client
	down   map[string]time.Time // address: until
	closed bool
	quits  sync.WaitGroup
}

func newPool() *pool {
	return &pool{idle: map[poolKey][]*client{}, down: map[string]time.Time{}}
}

// take the connection used last; nil when none is idle.
func (p *pool) take(key poolKey) *client {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[key]
	if len(list) == 0 {
		return nil
	}
	cl := list[len(list)-1]
	p.idle[key] = list[:len(list)-1]
	cl.timer.Stop() // if it fires already, expire will not find cl any more
	return cl
}

// put cl back, for at most idle.
func (p *pool) put(key poolKey, cl *client, idle time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		p.quit(cl)
		return
	}
	if cl.timer == nil {
		cl.timer = time.AfterFunc(idle, func() { p.expire(key, cl) })
	} else {
		cl.timer.Reset(idle)
	}
	p.idle[key] = append(p.idle[key], cl)
}

// expire ends cl if it is still idle.
func (p *pool) expire(key poolKey, cl *client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[key]
	for i := range list {
		if list[i] == cl {
			p.idle[key] = append(list[:i:i], list[i+1:]...)
			if len(p.idle[key]) == 0 {
				delete(p.idle, key)
			}
			p.quit(cl)
			return
		}
	}
}

// drop closes the idle connections of key: one of them was dead, and the others are older.
func (p *pool) drop(key poolKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, cl := range p.idle[key] {
		cl.timer.Stop()
		_ = cl.Conn.Close()
	}
	delete(p.idle, key)
}

// quit without keeping the caller.
func (p *pool) quit(cl *client) { p.quits.Go(cl.quit) }

// close ends all connections and waits until they have said QUIT.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	for key, list := range p.idle {
		for _, cl := range list {
			cl.timer.Stop()
			p.quit(cl)
		}
		delete(p.idle, key)
	}
	p.mu.Unlock()
	p.quits.Wait()
}

// markDown remembers that address could not be reached.
func (p *pool) markDown(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for a, until := range p.down {
		if now.After(until) {
			delete(p.down, a)
		}
	}
	p.down[address] = now.Add(downFor)
}

func (p *pool) isDown(address string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	until, ok := p.down[address]
	return ok && time.Now().Before(until)
}
