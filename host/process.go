package host

import (
	"os"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"
)

// beBatchWork has the kernel count the host, and the agents it will start, as batch work (SCHED_BATCH, sched(7)):
// what arrives for one of them does not take the processor from whoever has it. While there is a processor to
// spare that changes nothing. When there is none, the one at work goes on to its next wait, and meanwhile events
// and answers gather, instead of two switches of process for each. It is only speed: where it is forbidden, or
// the operator has chosen a policy, everything stays as it is.
func beBatchWork() {
	for range 2 { // a thread may be made by one that was not asked yet
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return
		}
		for _, t := range threads {
			if id, err := strconv.Atoi(t.Name()); err == nil {
				becomeBatch(id)
			}
		}
	}
}

func becomeBatch(thread int) {
	attr, err := unix.SchedGetAttr(thread, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL {
		return
	}
	attr.Policy = unix.SCHED_BATCH
	_ = unix.SchedSetAttr(thread, attr, 0)
}

// collectLess halves the number of garbage collections, unless the operator's environment sets GOGC: what a
// message leaves behind is small beside the processors' time that looking for it takes.
func collectLess() {
	const percent = 200
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}
