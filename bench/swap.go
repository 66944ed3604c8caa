package main

import (
	"bufio"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// swaps is how many times an agent is replaced in a run.
const swaps = 20

// swapped is the agent that is replaced: it is asked at MAIL and at the end of the headers.
const swapped = "sender-filter"

// reply is when the reply to a command that agents are asked about came, and after how long.
type reply struct {
	at   time.Time
	took time.Duration
}

// swapCost prints what it costs to replace an agent under load: how long the order takes, and how long clients wait for
// replies while a swap is under way and otherwise.
func swapCost() error {
	srv, _, end, err := relaying(cell{server: "postern", agents: len(seedTable), size: 4 << 10})
	if err != nil {
		return err
	}
	defer end()

	senders := &pacedSenders{addr: srv.addr}
	stop := senders.start(4)
	time.Sleep(2 * time.Second) // warm
	var orders []reply
	for range swaps {
		begin := time.Now()
		cmd := exec.Command("bin/postern", "agent", "upgrade", swapped, "--config", filepath.Join(srv.dir, "config.hcl"))
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("upgrade: %w\n%s", err, text)
		}
		orders = append(orders, reply{begin, time.Since(begin)})
		time.Sleep(500 * time.Millisecond)
	}
	if err := stop(); err != nil {
		return err
	}
	printSwaps(orders, senders.replies)
	return nil
}

func printSwaps(orders, replies []reply) {
	var order, during, otherwise []time.Duration
	for _, o := range orders {
		order = append(order, o.took)
	}
	for _, r := range replies {
		if near(r, orders) {
			during = append(during, r.took)
		} else {
			otherwise = append(otherwise, r.took)
		}
	}
	fmt.Printf("| %d swaps of one of %d agents under load | median | 99 %% | longest |\n|---|---|---|---|\n", len(orders), len(seedTable))
	fmt.Printf("| the order, to the exchange | %s |\n", quantiles(order))
	fmt.Printf("| replies to MAIL and DATA while a swap is under way (%d) | %s |\n", len(during), quantiles(during))
	fmt.Printf("| replies otherwise (%d) | %s |\n", len(otherwise), quantiles(otherwise))
}

// near reports whether a reply was waited for while an order was carried out, or shortly after.
func near(r reply, orders []reply) bool {
	const after = 100 * time.Millisecond
	for _, o := range orders {
		if r.at.After(o.at) && r.at.Add(-r.took).Before(o.at.Add(o.took+after)) {
			return true
		}
	}
	return false
}

func quantiles(v []time.Duration) string {
	if len(v) == 0 {
		return "- | - | -"
	}
	sort.Slice(v, func(i, j int) bool { return v[i] < v[j] })
	round := func(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
	return fmt.Sprintf("%s | %s | %s", round(v[len(v)/2]), round(v[len(v)*99/100]), round(v[len(v)-1]))
}

// pacedSenders send at a rate that leaves the processors some room: what is measured is waiting, not queueing.
type pacedSenders struct {
	addr string
	over atomic.Bool

	mu      sync.Mutex
	replies []reply
	failed  error
}

// pace is the pause of a sender between two messages.
const pace = 10 * time.Millisecond

func (p *pacedSenders) start(n int) (stop func() error) {
	var sending sync.WaitGroup
	for i := range n {
		sending.Go(func() {
			if err := p.send(message(i, 4<<10)); err != nil {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.failed = err
			}
		})
	}
	return func() error {
		p.over.Store(true)
		sending.Wait()
		return p.failed
	}
}

func (p *pacedSenders) send(body []byte) error {
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	if err := expect(r, "220"); err != nil {
		return err
	}
	steps := []string{"EHLO load.example\r\n|250"}
	for !p.over.Load() {
		steps = append(steps, "MAIL FROM:<load@sender.example>\r\n|250", "RCPT TO:<sink@example.org>\r\n|250", "DATA\r\n|354", string(body)+"|250")
		for _, step := range steps {
			i := strings.LastIndexByte(step, '|')
			begin := time.Now()
			if _, err := conn.Write([]byte(step[:i])); err != nil {
				return err
			}
			if err := expect(r, step[i+1:]); err != nil {
				return err
			}
			p.note(step[:4], begin)
		}
		steps = steps[:0]
		time.Sleep(pace)
	}
	return nil
}

// note keeps the times of the replies that the swapped agent has a part in.
func (p *pacedSenders) note(verb string, begin time.Time) {
	if verb != "MAIL" && verb != "From" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.replies = append(p.replies, reply{now, now.Sub(begin)})
}
