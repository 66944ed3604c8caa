package agent

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestNothingLeaks has processes end in every way, one after the other, and looks at what the host holds afterwards:
// goroutines, threads, descriptors, memory, processes, sockets. POSTERN_CRASHES sets the number; `make crash` does 10,000.
func TestNothingLeaks(t *testing.T) {
	crashes := int64(120)
	if s := os.Getenv("POSTERN_CRASHES"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		crashes = int64(n)
	}
	agents := make([]*Agent, 3)
	dirs := make([]string, len(agents))
	for i := range agents {
		o, _ := options(t, "")
		o.Logger = nil // a log of ten thousand crashes is no leak
		o.Backoff.Attempts = 1 << 30
		agents[i], dirs[i] = launch(t, o), o.RunDir
	}
	crash(t, agents, 24) // what is made once is there now
	before := holdings(t, dirs)
	t.Logf("before: %+v", before)
	for done := int64(0); done < crashes; {
		n := min(crashes-done, 500)
		crash(t, agents, n)
		done += n
		if crashes > 1000 {
			fmt.Printf("%d of %d crashes: %+v\n", done, crashes, holdings(t, dirs))
		}
	}
	var after held
	eventually(t, "all to be given back", func() bool {
		after = holdings(t, dirs)
		return after.goroutines <= before.goroutines+6 && after.descriptors <= before.descriptors+3 &&
			after.threads <= before.threads+8 && after.children <= before.children && after.sockets <= before.sockets &&
			after.heap <= before.heap+4<<20
	})
	t.Logf("after %d crashes: %+v", crashes, after)
}

// crash ends n processes of the agents, in turn in each of several ways, and waits until all are up.
func crash(t *testing.T, agents []*Agent, n int64) {
	t.Helper()
	var next atomic.Int64
	var all sync.WaitGroup
	for _, a := range agents {
		all.Go(func() {
			for i := next.Add(1); i <= n; i = next.Add(1) {
				crashOnce(t, a, i)
			}
		})
	}
	all.Wait()
	for _, a := range agents {
		eventually(t, "the agent", a.Ready)
		mustCall(t, a, event("alive", ""))
	}
}

func crashOnce(t *testing.T, a *Agent, i int64) {
	restarts := a.Status().Instances[0].Restarts
	switch i % 4 {
	case 0: // from outside, with an event in flight
		pid := a.Status().Instances[0].PID
		if pid == 0 || syscall.Kill(pid, syscall.SIGKILL) != nil {
			return
		}
	case 1: // hangs up and lives on
		c := event(fmt.Sprint("hangs up", i), "hang-up")
		c.Fact = true
		_, _ = a.Call(context.Background(), c)
	case 2: // dies of a fact, which is not tried again
		c := event(fmt.Sprint("fact", i), "die")
		c.Fact = true
		_, _ = a.Call(context.Background(), c)
	default: // dies of an event, which is
		mustCall(t, a, event(fmt.Sprint("event", i), "die-once"))
	}
	eventually(t, "the restart", func() bool { return a.Status().Instances[0].Restarts > restarts && a.Ready() })
	mustCall(t, a, event(fmt.Sprint("after", i), ""))
}

// held is what a process of the host holds.
type held struct {
	goroutines, threads, descriptors, children, sockets int
	heap                                                uint64
}

func holdings(t *testing.T, dirs []string) held {
	t.Helper()
	runtime.GC()
	time.Sleep(10 * time.Millisecond) // for finalizers
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	h := held{goroutines: runtime.NumGoroutine(), threads: entries(t, "/proc/self/task"), descriptors: entries(t, "/proc/self/fd"), heap: m.HeapAlloc}
	for _, dir := range dirs {
		h.sockets += entries(t, dir)
	}
	h.children = children(t)
	return h
}

func entries(t *testing.T, dir string) int {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// children counts the processes whose parent we are, those that ended and were not waited for too.
func children(t *testing.T) (n int) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		list, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err == nil { // a thread may have ended
			n += len(strings.Fields(string(list)))
		}
	}
	return n
}
