// Command bench measures the whole of Postern from outside: messages relayed over real SMTP through the real
// host and real agent processes to a sink that checks every body, with durability on. `make bench` runs it;
// docs/performance.md explains the figures.
package main

import (
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"time"
)

// row is one line of the table.
type row struct {
	name string
	cell cell
	cpu  []float64 // ms a message, host and agents
	rate []float64 // relayed messages a second
}

// cell is what is measured.
type cell struct {
	server  string // "postern", "postfix", "postfix-milter"
	agents  int
	size    int
	free    bool // the agents have no sandbox
	bundled bool // all bundled agents instead of no-op ones

	blocks map[string]string // instead of what a bundled agent's block holds, by its label
	more   string            // at the end of the configuration
}

func main() {
	if os.Getenv("POSTERN_AGENT") != "" { // started by the host, as an agent
		serveNoop()
	}
	var (
		n       = flag.Int("n", 3000, "messages a run")
		clients = flag.Int("c", 32, "concurrent sessions")
		runs    = flag.Int("runs", 3, "runs of each cell; medians are printed")
		reuse   = flag.Int("per-connection", 1, "messages a connection")
		only    = flag.String("only", "", "run the cells whose name contains this")
		idle    = flag.Bool("idle", false, "measure memory of idle connections instead")
		swap    = flag.Bool("swap", false, "measure the replacing of agents under load instead")
		real    = flag.Bool("agents", false, "measure the bundled agents, all together, instead")
		cost    = flag.Bool("supervision", false, "measure what sandbox, ledger and supervision add instead")
		wait    = flag.Bool("latency", false, "measure how long a message takes beside its slowest stage instead")
		storm   = flag.Bool("storm", false, "measure memory in a storm of large messages through the bundled agents instead")
		crowd   = flag.Int("crowd", 500, "concurrent sessions of the storm")
		long    = flag.Duration("for", 40*time.Second, "how long the storm lasts")
		watch   = flag.Bool("memory", false, "measure memory over 100,000 messages instead")
	)
	flag.Parse()
	if path := os.Getenv("BENCH_MILTER"); path != "" {
		exit(serveMilter(path))
	}
	if *idle {
		exit(idleMemory())
	}
	if *swap {
		exit(swapCost())
	}
	if *wait {
		exit(latency())
	}
	if *storm {
		exit(stormMemory(*crowd, *long))
	}
	load := load{messages: *n, clients: *clients, perConnection: *reuse}
	if *real {
		exit(realAgents(load))
	}
	if *cost {
		exit(supervision(load))
	}
	if *watch {
		exit(memory(load))
	}
	rows := []*row{
		{name: "postern, 0 agents, 4 KB", cell: cell{server: "postern", agents: 0, size: 4 << 10}},
		{name: "postern, 2 agents, 4 KB", cell: cell{server: "postern", agents: 2, size: 4 << 10}},
		{name: "postern, 11 agents, 4 KB", cell: cell{server: "postern", agents: 11, size: 4 << 10}},
		{name: "postern, 11 agents without sandbox, 4 KB", cell: cell{server: "postern", agents: 11, size: 4 << 10, free: true}},
		{name: "postern, 0 agents, 50 KB", cell: cell{server: "postern", agents: 0, size: 50 << 10}},
		{name: "postern, 11 agents, 50 KB", cell: cell{server: "postern", agents: 11, size: 50 << 10}},
	}
	if havePostfix() {
		rows = append(rows,
			&row{name: "postfix, bare, 4 KB", cell: cell{server: "postfix", agents: 0, size: 4 << 10}},
			&row{name: "postfix, 11 milters, 4 KB", cell: cell{server: "postfix", agents: 11, size: 4 << 10}},
			&row{name: "postfix, bare, 50 KB", cell: cell{server: "postfix", agents: 0, size: 50 << 10}},
		)
	} else {
		fmt.Println("Postfix is not installed (or this is not root): its rows are left out.")
	}
	rows = selected(rows, *only)
	for run := 1; run <= *runs; run++ {
		for _, r := range rows { // in turn, so that a drift of the machine hits all alike
			fmt.Fprintf(os.Stderr, "run %d of %d: %s\n", run, *runs, r.name)
			res, err := measure(r.cell, load)
			if err != nil {
				exit(fmt.Errorf("%s: %w", r.name, err))
			}
			r.cpu = append(r.cpu, res.cpuMillis)
			r.rate = append(r.rate, res.rate)
		}
	}
	print(rows)
}

func selected(rows []*row, only string) []*row {
	var out []*row
	for _, r := range rows {
		if strings.Contains(r.name, only) {
			out = append(out, r)
		}
	}
	return out
}

// print writes the table: medians, and each row's ratio to bare Postfix of the same size where that was run.
func print(rows []*row) {
	base := map[int]*row{}
	for _, r := range rows {
		if r.cell.server == "postfix" && r.cell.agents == 0 {
			base[r.cell.size] = r
		}
	}
	fmt.Printf("\n| %s | CPU ms/message | relayed/s | relayed against bare Postfix |\n|---|---|---|---|\n", time.Now().Format("2006-01-02"))
	for _, r := range rows {
		ratio := "-"
		if b := base[r.cell.size]; b != nil {
			ratio = fmt.Sprintf("%.2fx", median(r.rate)/median(b.rate))
		}
		fmt.Printf("| %s | %.3f (%.3f-%.3f) | %.0f | %s |\n", r.name, median(r.cpu), minimum(r.cpu), maximum(r.cpu), median(r.rate), ratio)
	}
}

func median(v []float64) float64 {
	s := append([]float64{}, v...)
	sort.Float64s(s)
	return s[len(s)/2]
}

func minimum(v []float64) float64 {
	s := append([]float64{}, v...)
	sort.Float64s(s)
	return s[0]
}

func maximum(v []float64) float64 {
	s := append([]float64{}, v...)
	sort.Float64s(s)
	return s[len(s)-1]
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
