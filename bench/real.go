package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// bundled are the agents of config.hcl in its order, with what they need beside an empty config block.
var bundled = []struct{ label, plugin, block string }{
	{"connfilter", "", ""},
	{"rewrite-in", "addressrewrite", "config {\n  direction = \"inbound\"\n}\n"},
	{"edgerules", "", "config {\n  rule \"external\" {\n    priority = 10\n    when {\n      from_scope = \"outside\"\n    }\n    prepend_subject = \"[external] \"\n  }\n}\n"},
	{"contentfilter", "", "config {\n  bad_phrases = [\"no risk investment opportunity\"]\n}\n"},
	{"senderauth", "", ""},
	{"senderfilter", "", ""},
	{"recipientfilter", "", ""},
	{"protocolanalysis", "", ""},
	{"attachmentfilter", "", ""},
	{"rewrite-out", "addressrewrite", "config {\n  direction = \"outbound\"\n}\n"},
	{"antivirus", "", ""},
	{"journaling", "", ""},
	{"dkimsign", "", ""},
}

// bundledBlocks configures all bundled agents. What instead has of an agent stands in its block in place of its usual text.
func bundledBlocks(instead map[string]string) (string, error) {
	var b strings.Builder
	for i, a := range bundled {
		plugin := a.plugin
		if plugin == "" {
			plugin = a.label
		}
		path, err := filepath.Abs(filepath.Join("bin/agents", plugin))
		if err != nil {
			return "", err
		}
		block := a.block
		if text, ok := instead[a.label]; ok {
			block = text
		}
		fmt.Fprintf(&b, "agent %q {\n  plugin   = %q\n  command  = [%q]\n  priority = %d\n%s}\n", a.label, plugin, path, 10*(i+1), block)
	}
	return b.String(), nil
}

// process is one process of Postern.
type process struct {
	name string
	pid  int
}

// processes of a running host: itself and its agents.
func processes(srv *server, config string) ([]process, error) {
	text, err := exec.Command("bin/postern", "agent", "list", "--json", "--config", config).Output()
	if err != nil {
		return nil, fmt.Errorf("agent list: %w", err)
	}
	var agents []struct {
		Name      string
		Instances []struct{ PID int }
	}
	if err := json.Unmarshal(text, &agents); err != nil {
		return nil, fmt.Errorf("agent list: %w", err)
	}
	list := []process{{"host", srv.pids()[0]}}
	for _, a := range agents {
		for _, i := range a.Instances {
			list = append(list, process{a.Name, i.PID})
		}
	}
	return list, nil
}

// realAgents prints what each bundled agent costs while all of them judge the same messages.
func realAgents(l load) error {
	srv, out, end, err := relaying(cell{server: "postern", bundled: true})
	if err != nil {
		return err
	}
	defer end()
	all, err := processes(srv, filepath.Join(srv.dir, "config.hcl"))
	if err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	idle := memoryOf(all)
	sent := 0
	relay := func(messages, size int) error {
		part := l
		part.messages = messages
		sent += messages
		return errors.Join(part.send(srv.addr, size), out.wait(sent))
	}
	for _, size := range []int{4 << 10, 50 << 10} {
		if err := relay(200, size); err != nil { // warm
			return err
		}
		before, begin := cpuOf(all), time.Now()
		if err := relay(l.messages, size); err != nil {
			return err
		}
		took := time.Since(begin)
		printShares(all, before, cpuOf(all), l.messages, size, took)
	}
	printMemory(all, idle, memoryOf(all))
	return nil
}

func cpuOf(all []process) (ticks []int64) {
	for _, p := range all {
		ticks = append(ticks, cpuTicks([]int{p.pid}))
	}
	return ticks
}

func memoryOf(all []process) (bytes []int64) {
	for _, p := range all {
		bytes = append(bytes, pssBytes(p.pid))
	}
	return bytes
}

// printShares writes what each process took of the CPU.
func printShares(all []process, before, after []int64, messages, size int, took time.Duration) {
	var total int64
	for i := range all {
		total += after[i] - before[i]
	}
	fmt.Printf("\n%d KB: %.0f messages/s, %.3f ms CPU a message\n\n| | CPU ms a message | share |\n|---|---|---|\n",
		size>>10, float64(messages)/took.Seconds(), float64(total)*10/float64(messages))
	for i, p := range all {
		mine := after[i] - before[i]
		fmt.Printf("| %s | %.3f | %.0f %% |\n", p.name, float64(mine)*10/float64(messages), 100*float64(mine)/float64(max(total, 1)))
	}
}

// printMemory writes what each process occupies, idle and after the load.
func printMemory(all []process, idle, now []int64) {
	var idleSum, sum int64
	fmt.Print("\n| | MB idle | MB after the load |\n|---|---|---|\n")
	for i, p := range all {
		idleSum, sum = idleSum+idle[i], sum+now[i]
		fmt.Printf("| %s | %.1f | %.1f |\n", p.name, float64(idle[i])/1e6, float64(now[i])/1e6)
	}
	fmt.Printf("| all | %.1f | %.1f |\n", float64(idleSum)/1e6, float64(sum)/1e6)
}
