package sandbox

import (
	"os"
	"strconv"
	"strings"
)

// OutOfMemoryKills is how many processes of this machine the kernel has ended for want of memory since it started,
// in whatever control group; -1 where it does not tell (before Linux 4.13). Whose end it was is not told: who looks
// before and after knows whether it can have been that.
func OutOfMemoryKills() int {
	text, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "oom_kill "); found {
			if n, err := strconv.Atoi(strings.TrimSpace(value)); err == nil {
				return n
			}
		}
	}
	return -1
}
