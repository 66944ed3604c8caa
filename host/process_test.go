package host

import (
	"os/exec"
	"strings"
	"testing"
)

func TestProcessesOfABatchHostAreBatchWork(t *testing.T) {
	beBatchWork()
	policy, err := exec.Command("cut", "-d ", "-f41", "/proc/self/stat").Output() // of cut itself; proc_pid_stat(5)
	if err != nil {
		t.Fatal(err)
	}
	if got, batch := strings.TrimSpace(string(policy)), "3"; got != batch {
		t.Errorf("policy of a child is %s, want %s", got, batch)
	}
}
