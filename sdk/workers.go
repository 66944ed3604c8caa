package sdk

import (
	"context"
	"runtime/debug"
	"sync"
)

// maxHandlers bounds the handlers that run at once in one process. The host bounds what it sends well below
// (256 by default), so this only guards against a host that does not.
const maxHandlers = 1024

// keepWorkers idle goroutines wait for the next event: their stacks have grown already.
const keepWorkers = 32

// workers runs handlers on goroutines, never letting the reader of the stream wait for one.
type workers struct {
	max  int
	next chan func() // idle workers receive here

	mu      sync.Mutex
	running int // goroutines
	idling  int // of them, waiting on next
	busy    int // tasks queued or running
	queue   []func()
	quiet   []chan struct{} // closed when busy falls to 0
}

func newWorkers(max int) *workers {
	return &workers{max: max, next: make(chan func(), keepWorkers)}
}

// start runs task soon and returns at once.
func (w *workers) start(task func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy++
	switch {
	case w.idling > 0:
		w.idling--
		w.next <- task // never blocks: room for each idle worker
	case w.running < w.max:
		w.running++
		go w.run(task)
	default:
		w.queue = append(w.queue, task)
	}
}

func (w *workers) run(task func()) {
	for task != nil {
		task()
		task = w.after()
	}
}

// after finds what the worker does next; nil ends it.
func (w *workers) after() func() {
	w.mu.Lock()
	w.busy--
	if w.busy == 0 {
		for _, c := range w.quiet {
			close(c)
		}
		w.quiet = nil
	}
	if len(w.queue) > 0 {
		task := w.queue[0]
		w.queue = w.queue[1:]
		w.mu.Unlock()
		return task
	}
	if w.idling == keepWorkers {
		w.running--
		w.mu.Unlock()
		return nil
	}
	w.idling++
	w.mu.Unlock()
	return <-w.next
}

// inFlight is how many events are queued or being handled.
func (w *workers) inFlight() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.busy
}

// idle waits until nothing is in flight.
func (w *workers) idle(ctx context.Context) error {
	w.mu.Lock()
	if w.busy == 0 {
		w.mu.Unlock()
		return nil
	}
	c := make(chan struct{})
	w.quiet = append(w.quiet, c)
	w.mu.Unlock()
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stack of the goroutine that panicked.
func stack() string { return string(debug.Stack()) }
