package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// waiting is a case of the latency table: the bundled agents and what they, or agents beside them, wait for.
type waiting struct {
	name              string
	resolver, scanner time.Duration // no scanner: 0
	onlookers         []string
}

// Messages of each size in each case, and those before that are not looked at.
const (
	latencyMessages = 100
	latencyWarm     = 20
)

// latency prints how long one client waits for the reply to the end of data, and how that compares with what the ledger
// says of the agents: with the slowest stage, and with the sum of all agents. Agents of a stage are asked at once, stages
// one after the other, so a message should take as long as its stages together and less than its agents together.
func latency() error {
	cases := []waiting{
		{name: "bundled agents, nothing to wait for"},
		{name: "and two that look on, 50 and 20 ms", onlookers: []string{"50ms", "20ms"}},
		{name: "bundled agents, DNS 15 ms, scanner 50 ms", resolver: 15 * time.Millisecond, scanner: 50 * time.Millisecond},
	}
	var table []string
	for _, w := range cases {
		rows, err := w.measure()
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		table = append(table, rows...)
	}
	fmt.Printf("\n| one client, %d messages each, p50 / p95 in ms | reply to the end of data | whole transaction | slowest stage | stages together | agents together | message / slowest stage | agents / message |\n|---|---|---|---|---|---|---|---|\n%s\n",
		latencyMessages, strings.Join(table, "\n"))
	return nil
}

// lookOn makes agents for the end of data that give a verdict, change nothing, and take so long.
func lookOn(sleeps []string) (string, error) {
	path, err := filepath.Abs("bin/agents/mock")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for i, sleep := range sleeps {
		fmt.Fprintf(&b, "agent \"onlooker-%s\" {\n  plugin   = \"mock\"\n  command  = [%q]\n  priority = %d\n  config {\n    on \"OnEndOfData\" {\n"+
			"      waits   = true\n      declare = [\"verdict\"]\n      sleep   = %q\n    }\n  }\n}\n", sleep, path, 200+i, sleep)
	}
	return b.String(), nil
}

// cell has senderauth wait for a resolver, antivirus for a scanner if there is one, and a full ledger.
func (w *waiting) cell() (c cell, err error) {
	c = cell{server: "postern", bundled: true, blocks: map[string]string{}}
	ask, err := slowResolver(w.resolver)
	if err != nil {
		return c, err
	}
	beside, err := lookOn(w.onlookers)
	if err != nil {
		return c, err
	}
	c.more = fmt.Sprintf("ledger {\n  full = true\n}\ndns {\n  resolvers = [%q]\n}\n%s", ask, beside)
	if w.scanner == 0 {
		return c, nil
	}
	scan, err := slowScanner(w.scanner)
	if err != nil {
		return c, err
	}
	_, port, err := net.SplitHostPort(scan)
	c.blocks["antivirus"] = fmt.Sprintf("sandbox {\n  connect = [\"tcp:%s\"]\n}\nconfig {\n  engine \"scanner\" {\n    clamd {\n      address = %q\n    }\n  }\n}\n", port, scan)
	return c, err
}

// measure runs one case with both sizes and answers with its rows.
func (w *waiting) measure() (rows []string, err error) {
	c, err := w.cell()
	if err != nil {
		return nil, err
	}
	srv, out, end, err := relaying(c)
	if err != nil {
		return nil, err
	}
	defer end()
	config := filepath.Join(srv.dir, "config.hcl")
	stages, err := stagesOf(config)
	if err != nil {
		return nil, err
	}
	sent := 0
	for _, size := range []int{4 << 10, 50 << 10} {
		var timed []transaction
		for range latencyWarm + latencyMessages {
			sent++
			t, err := timedMessage(srv.addr, sent, size)
			if err != nil {
				return nil, err
			}
			timed = append(timed, t)
		}
		if err := out.wait(sent); err != nil {
			return nil, err
		}
		row, plan, err := compare(config, stages, timed[latencyWarm:])
		if err != nil {
			return nil, err
		}
		fmt.Printf("%s, %d KB: DATA in stages, ms: %s\n", w.name, size>>10, plan)
		rows = append(rows, fmt.Sprintf("| %s, %d KB | %s |", w.name, size>>10, row))
	}
	return rows, nil
}

// transaction is what the client saw of one message.
type transaction struct {
	id          string
	data, whole time.Duration // from the first octet of the message, and from MAIL, to the last reply
}

// timedMessage sends the nth message over a connection of its own, from a domain that nobody has been asked about yet.
func timedMessage(addr string, n, size int) (t transaction, err error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return t, err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	if err := expect(r, "220"); err != nil {
		return t, err
	}
	domain := fmt.Sprintf("n%d.example", n)
	text := strings.Replace(string(message(n, size)), "sender.example", domain, 1)
	if err := say(conn, r, "EHLO load.example", "250"); err != nil {
		return t, err
	}
	begin := time.Now()
	for _, step := range [][2]string{{"MAIL FROM:<load@" + domain + ">", "250"}, {"RCPT TO:<sink@example.org>", "250"}, {"DATA", "354"}} {
		if err := say(conn, r, step[0], step[1]); err != nil {
			return t, err
		}
	}
	data := time.Now()
	if _, err := conn.Write([]byte(text)); err != nil {
		return t, err
	}
	reply, err := r.ReadString('\n')
	if err != nil {
		return t, err
	}
	t.data, t.whole = time.Since(data), time.Since(begin)
	_, rest, _ := strings.Cut(reply, "[")
	id, _, ok := strings.Cut(rest, "]")
	if !ok || !strings.HasPrefix(reply, "250") {
		return t, fmt.Errorf("got %q, want 250 with an id", reply)
	}
	t.id = id
	return t, say(conn, r, "QUIT", "221")
}

// say writes a line and reads a reply that must have the code.
func say(conn net.Conn, r *bufio.Reader, line, code string) error {
	if _, err := conn.Write([]byte(line + "\r\n")); err != nil {
		return err
	}
	return expect(r, code)
}

// plan is the stages of each event: the names of the agents that are asked at once.
type plan map[string][][]string

// stagesOf asks the running host.
func stagesOf(config string) (plan, error) {
	text, err := exec.Command("bin/postern", "pipeline", "--json", "--config", config).Output()
	if err != nil {
		return nil, fmt.Errorf("pipeline: %w", err)
	}
	var shown struct {
		Events []struct {
			Event  string
			Stages []struct{ Agents []struct{ Agent string } }
		}
	}
	if err := json.Unmarshal(text, &shown); err != nil {
		return nil, fmt.Errorf("pipeline: %w", err)
	}
	p := plan{}
	for _, e := range shown.Events {
		for _, s := range e.Stages {
			var names []string
			for _, a := range s.Agents {
				names = append(names, a.Agent)
			}
			p[e.Event] = append(p[e.Event], names)
		}
	}
	return p, nil
}

// atData are the events between DATA and the reply to the message.
var atData = []string{"OnEndOfHeaders", "OnEndOfData"}

// taken is how long agents took for one message, as the ledger has it.
type taken struct{ slowest, stages, agents time.Duration }

// add a stage whose agents took as long as times say.
func (t *taken) add(times []time.Duration) {
	stage := slices.Max(times)
	t.slowest, t.stages = max(t.slowest, stage), t.stages+stage
	for _, d := range times {
		t.agents += d
	}
}

// agentTimes reads the ledger: for each message, how long each agent took at each event ("agent event").
func agentTimes(config string) (map[string]map[string]time.Duration, error) {
	text, err := exec.Command("bin/postern", "track", "--limit", "0", "--json", "--config", config).Output()
	if err != nil {
		return nil, fmt.Errorf("track: %w", err)
	}
	var found struct {
		Records []struct {
			Event, Message string
			Verdicts       []struct {
				Agent, Event string
				Micros       int64
			}
		}
	}
	if err := json.Unmarshal(text, &found); err != nil {
		return nil, fmt.Errorf("track: %w", err)
	}
	all := map[string]map[string]time.Duration{}
	for _, r := range found.Records {
		if r.Event != "RECEIVE" {
			continue
		}
		all[r.Message] = map[string]time.Duration{}
		for _, v := range r.Verdicts { // an answer with several verdicts has a step for each, of one time
			all[r.Message][v.Agent+" "+v.Event] = time.Duration(v.Micros) * time.Microsecond
		}
	}
	return all, nil
}

// compare makes a row of what the client saw and what the ledger says, and shows the stages with the median of each.
func compare(config string, stages plan, timed []transaction) (row, shown string, err error) {
	times, err := timesWith(config, timed[len(timed)-1].id)
	if err != nil {
		return "", "", err
	}
	var reply, whole, slowest, together, agents []time.Duration
	var over, under []float64
	byStage, order := map[string][]time.Duration{}, []string{}
	for _, t := range timed {
		byAgent := times[t.id]
		if byAgent == nil {
			return "", "", fmt.Errorf("the ledger does not know message %s", t.id)
		}
		var sum taken
		for _, event := range atData {
			for _, s := range stages[event] {
				own := timesOf(s, event, byAgent)
				if len(own) == 0 {
					continue
				}
				name := strings.Join(s, " + ")
				if event == atData[0] {
					name += " (headers)"
				}
				if byStage[name] == nil {
					order = append(order, name)
				}
				byStage[name] = append(byStage[name], slices.Max(own))
				sum.add(own)
			}
		}
		reply, whole = append(reply, t.data), append(whole, t.whole)
		slowest, together, agents = append(slowest, sum.slowest), append(together, sum.stages), append(agents, sum.agents)
		over = append(over, float64(t.data)/float64(sum.slowest))
		under = append(under, float64(sum.agents)/float64(t.data))
	}
	var words []string
	for _, name := range order {
		words = append(words, name+" "+middle(byStage[name]))
	}
	return fmt.Sprintf("%s | %s | %s | %s | %s | %.2f | %.2f", middle(reply), middle(whole), middle(slowest), middle(together), middle(agents), median(over), median(under)), strings.Join(words, "; "), nil
}

// timesWith reads the ledger until it has a message: it is written a moment later.
func timesWith(config, id string) (times map[string]map[string]time.Duration, err error) {
	for range 100 {
		if times, err = agentTimes(config); err != nil || times[id] != nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return times, err
}

func timesOf(stage []string, event string, byAgent map[string]time.Duration) (times []time.Duration) {
	for _, name := range stage {
		if d, ok := byAgent[name+" "+event]; ok {
			times = append(times, d)
		}
	}
	return times
}

// middle shows the median and the 95th percentile in milliseconds.
func middle(v []time.Duration) string {
	slices.Sort(v)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fmt.Sprintf("%.1f / %.1f", ms(v[len(v)/2]), ms(v[len(v)*95/100]))
}
