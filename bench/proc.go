package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// tree lists a process and all its descendants.
func tree(root int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		if pid, f, ok := stat(path); ok {
			ppid, _ := strconv.Atoi(f[1])
			children[ppid] = append(children[ppid], pid)
		}
	}
	out := []int{root}
	for i := 0; i < len(out); i++ {
		out = append(out, children[out[i]]...)
	}
	return out
}

// stat reads the fields of /proc/PID/stat behind the command's name: state, ppid, ...
func stat(path string) (pid int, fields []string, ok bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, nil, false
	}
	s := string(b)
	open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if open < 0 || end < 0 {
		return 0, nil, false
	}
	pid, err = strconv.Atoi(strings.TrimSpace(s[:open]))
	fields = strings.Fields(s[end+1:])
	return pid, fields, err == nil && len(fields) > 15
}

// cpuTicks is the CPU time of pids and of the children they have waited for, in ticks of 10 ms.
func cpuTicks(pids []int) (ticks int64) {
	for _, pid := range pids {
		_, f, ok := stat(fmt.Sprintf("/proc/%d/stat", pid))
		if !ok {
			continue
		}
		for _, i := range []int{11, 12, 13, 14} { // utime, stime, cutime, cstime
			n, _ := strconv.ParseInt(f[i], 10, 64)
			ticks += n
		}
	}
	return ticks
}

// pssBytes is the memory of a process, with what it shares divided among those that share it.
func pssBytes(pid int) int64 { return memoryLine(pid, "smaps_rollup", "Pss:") }

// residentPeak is the most that a process ever had in memory, shared or not.
func residentPeak(pid int) int64 { return memoryLine(pid, "status", "VmHWM:") }

// memoryLine reads a number of kilobytes from a file of /proc/PID; 0 when the process is gone.
func memoryLine(pid int, file, name string) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, name); ok {
			kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}
