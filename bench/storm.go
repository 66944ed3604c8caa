package main

import (
	"archive/zip"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// storm is a crowd of clients that send large messages with attachments as fast as they are taken.
type storm struct {
	addr   string
	bodies []string // one in four is of 1 MB, the others of 50 KB
	end    time.Time
	next   atomic.Int64

	mu       sync.Mutex
	accepted map[string]bool // Message-ID
	unknown  map[string]bool // the connection ended before the reply
	replies  map[string]int  // refusals, by code and text without the id
	gone     int             // connections that were refused or ended
}

// How long what was accepted may take to arrive once the storm is over, and where memory has to stay below.
const (
	stormDrain = 3 * time.Minute
	stormAim   = 8 << 30
	idleAim    = 600 << 20
)

// stormMemory prints the most that host and agents occupied while a crowd sent messages for a while, and what became of
// them. It fails if one that was accepted does not arrive, or arrives twice, and if memory goes beyond its aim.
func stormMemory(crowd int, long time.Duration) error {
	srv, out, end, err := relaying(cell{server: "postern", bundled: true})
	if err != nil {
		return err
	}
	defer end()
	out.ids = map[string]int{}
	config := filepath.Join(srv.dir, "config.hcl")
	all, err := processes(srv, config)
	if err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	idle := memoryOf(all)
	s := &storm{addr: srv.addr, bodies: stormBodies(), end: time.Now().Add(long), accepted: map[string]bool{}, unknown: map[string]bool{}, replies: map[string]int{}}
	watch := watchMemory(all)
	begin := time.Now()
	s.rage(crowd)
	raged := time.Since(begin)
	lost := s.settle(out)
	drained := time.Since(begin) - raged
	peak, total := watch()
	time.Sleep(5 * time.Second)
	printStorm(all, idle, peak, memoryOf(all), total)
	fmt.Printf("\n%d sessions for %.0f s: %d accepted (%.1f/s), %d connections refused or ended, %d without a reply; all delivered %.1f s later\n",
		crowd, raged.Seconds(), len(s.accepted), float64(len(s.accepted))/raged.Seconds(), s.gone, len(s.unknown), drained.Seconds())
	for _, line := range s.refusals() {
		fmt.Println(line)
	}
	if err := s.reconcile(out, config, lost); err != nil {
		return err
	}
	return checkAims(idle, total, all, config)
}

// stormBodies are four messages' bodies behind the fields that say what they are: text and a zip file.
func stormBodies() (list []string) {
	for i, size := range []int{1 << 20, 50 << 10, 50 << 10, 50 << 10} {
		rnd := rand.New(rand.NewSource(int64(i)))
		var file bytes.Buffer
		z := zip.NewWriter(&file)
		for n := 0; file.Len() < size*3/4-6<<10; n++ {
			w, _ := z.Create(fmt.Sprintf("report-%d.txt", n)) // a buffer takes what it is given
			_, _ = w.Write(prose(rnd, 20<<10))
		}
		_ = z.Close()
		var body strings.Builder
		body.WriteString("--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n")
		body.Write(prose(rnd, 4<<10))
		body.WriteString("\r\n--b\r\nContent-Type: application/zip; name=\"reports.zip\"\r\nContent-Disposition: attachment; filename=\"reports.zip\"\r\nContent-Transfer-Encoding: base64\r\n\r\n")
		for text := base64.StdEncoding.EncodeToString(file.Bytes()); text != ""; {
			n := min(76, len(text))
			body.WriteString(text[:n] + "\r\n")
			text = text[n:]
		}
		body.WriteString("--b--\r\n")
		sum := sha256.Sum256([]byte(body.String()))
		list = append(list, "Content-Type: multipart/mixed; boundary=b\r\nMIME-Version: 1.0\r\nX-Body-SHA256: "+hex.EncodeToString(sum[:])+"\r\n\r\n"+body.String()+".\r\n")
	}
	return list
}

// prose is size octets of made-up words in lines.
func prose(rnd *rand.Rand, size int) []byte {
	var b bytes.Buffer
	for line := 0; b.Len() < size; {
		word := make([]byte, 2+rnd.Intn(8))
		for i := range word {
			word[i] = byte('a' + rnd.Intn(26))
		}
		b.Write(word)
		if line += len(word) + 1; line > 66 {
			b.WriteString("\r\n")
			line = 0
		} else {
			b.WriteByte(' ')
		}
	}
	return b.Bytes()
}

// rage until the end, with so many sessions.
func (s *storm) rage(crowd int) {
	var clients sync.WaitGroup
	for range crowd {
		clients.Go(func() {
			for time.Now().Before(s.end) {
				if err := s.session(); err != nil {
					s.ended(err)
					time.Sleep(200 * time.Millisecond)
				}
			}
		})
	}
	clients.Wait()
}

// ended counts a connection that was refused or did not last.
func (s *storm) ended(err error) {
	if _, said, ok := strings.Cut(err.Error(), "got "); ok {
		s.refused(strings.Trim(said, "\""))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone++
}

// session sends messages over one connection until the storm is over or the connection is.
func (s *storm) session() error {
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	if err := expect(r, "220"); err != nil {
		return err
	}
	if err := say(conn, r, "EHLO storm.example", "250"); err != nil {
		return err
	}
	for time.Now().Before(s.end) {
		if err := s.message(conn, r); err != nil {
			return err
		}
	}
	return say(conn, r, "QUIT", "221")
}

// message sends one; a refusal is counted and no error.
func (s *storm) message(conn net.Conn, r *bufio.Reader) error {
	n := s.next.Add(1)
	id := fmt.Sprintf("<%d@storm.example>", n)
	header := fmt.Sprintf("From: <storm@sender.example>\r\nTo: <sink@example.org>\r\nSubject: storm %d\r\nMessage-ID: %s\r\nDate: Sun, 22 Nov 2026 06:00:00 +0000\r\n", n, id)
	for _, command := range []string{"RSET\r\n", "MAIL FROM:<storm@sender.example>\r\n", "RCPT TO:<sink@example.org>\r\n", "DATA\r\n", header + s.bodies[n%int64(len(s.bodies))]} {
		last := strings.HasPrefix(command, "From:")
		_, err := conn.Write([]byte(command))
		var reply string
		if err == nil {
			reply, err = r.ReadString('\n')
		}
		if err != nil {
			if last {
				s.note(s.unknown, id)
			}
			return err
		}
		if reply[0] > '3' {
			s.refused(reply)
			return nil
		}
		if last {
			s.note(s.accepted, id)
		}
	}
	return nil
}

func (s *storm) note(where map[string]bool, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	where[id] = true
}

func (s *storm) refused(reply string) {
	text, _, _ := strings.Cut(strings.TrimSpace(reply), " [")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replies[text]++
}

func (s *storm) refusals() (lines []string) {
	for text, n := range s.replies {
		lines = append(lines, fmt.Sprintf("%d refused: %s", n, text))
	}
	slices.Sort(lines)
	return lines
}

// settle waits until all that was accepted is at the next hop, and counts what is not there in time.
func (s *storm) settle(out *sink) (lost int) {
	for by := time.Now().Add(stormDrain); ; time.Sleep(100 * time.Millisecond) {
		lost = 0
		arrived := out.arrived()
		for id := range s.accepted {
			if arrived[id] == 0 {
				lost++
			}
		}
		if lost == 0 || time.Now().After(by) {
			return lost
		}
	}
}

// reconcile holds what the clients were told against what the next hop got and what the ledger says.
func (s *storm) reconcile(out *sink, config string, lost int) error {
	twice, strange := 0, 0
	for id, n := range out.arrived() {
		if n > 1 {
			twice++
		}
		if !s.accepted[id] && !s.unknown[id] {
			strange++
		}
	}
	records, err := ledgerCounts(config)
	if err != nil {
		return err
	}
	received, sent := records["RECEIVE"], records["SEND"]
	for _, what := range slices.Sorted(maps.Keys(records)) {
		if strings.HasPrefix(what, "REJECT") {
			fmt.Printf("%d in the ledger: %s\n", records[what], what)
		}
	}
	fmt.Printf("accepted %d, in the ledger %d received and %d sent, at the next hop %d: %d lost, %d twice, %d with a wrong body\n",
		len(s.accepted), received, sent, len(out.arrived()), lost, twice, out.bad)
	if most := len(s.accepted) + len(s.unknown); lost+twice+strange+out.bad > 0 || received < len(s.accepted) || received > most || sent != received {
		return fmt.Errorf("the accounts do not match")
	}
	return nil
}

// number in a reason, which differs from one refusal to the next.
var number = regexp.MustCompile(`[0-9]+(\.[0-9]+)?`)

// ledgerCounts counts the ledger's records by event, those of refusals by who refused and why too.
func ledgerCounts(config string) (map[string]int, error) {
	text, err := exec.Command("bin/postern", "track", "--limit", "0", "--json", "--config", config).Output()
	if err != nil {
		return nil, fmt.Errorf("track: %w", err)
	}
	var found struct {
		Records []struct {
			Event, Agent, Reason string
			AgentEvent           string `json:"agent_event"`
		}
	}
	if err := json.Unmarshal(text, &found); err != nil {
		return nil, fmt.Errorf("track: %w", err)
	}
	counts := map[string]int{}
	for _, r := range found.Records {
		if r.Event == "REJECT" {
			r.Event = strings.Join([]string{r.Event, r.Agent, r.AgentEvent, number.ReplaceAllString(r.Reason, "N")}, " ")
		}
		counts[r.Event]++
	}
	return counts, nil
}

// watchMemory looks at the processes once a second until it is stopped; then it has the most of each, and of all at once.
func watchMemory(all []process) (stop func() (peak []int64, total int64)) {
	peak, total := make([]int64, len(all)), int64(0)
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			var sum int64
			for i, n := range memoryOf(all) {
				peak[i], sum = max(peak[i], n), sum+n
			}
			total = max(total, sum)
			select {
			case <-over:
				return
			case <-time.After(time.Second):
			}
		}
	}()
	return func() ([]int64, int64) {
		close(over)
		<-ended
		return peak, total
	}
}

func printStorm(all []process, idle, peak, after []int64, total int64) {
	mb := func(n int64) float64 { return float64(n) / 1e6 }
	var idleSum, afterSum int64
	fmt.Print("| MB | idle | most (PSS) | most (RSS, by the kernel) | after |\n|---|---|---|---|---|\n")
	for i, p := range all {
		idleSum, afterSum = idleSum+idle[i], afterSum+after[i]
		fmt.Printf("| %s | %.1f | %.1f | %.1f | %.1f |\n", p.name, mb(idle[i]), mb(peak[i]), mb(residentPeak(p.pid)), mb(after[i]))
	}
	fmt.Printf("| all, at one moment | %.1f | %.1f | | %.1f |\n", mb(idleSum), mb(total), mb(afterSum))
}

// checkAims fails when memory went beyond the aims, and when an agent is another process than before: one that had to be
// started anew has lost what it held.
func checkAims(idle []int64, total int64, before []process, config string) error {
	text, err := exec.Command("bin/postern", "agent", "list", "--json", "--config", config).Output()
	if err != nil {
		return fmt.Errorf("agent list: %w", err)
	}
	for _, p := range before[1:] {
		if !strings.Contains(string(text), fmt.Sprint(p.pid)) {
			return fmt.Errorf("%s ended in the storm", p.name)
		}
	}
	var sum int64
	for _, n := range idle {
		sum += n
	}
	if sum > idleAim || total > stormAim {
		return fmt.Errorf("%d MB idle, %d MB in the storm", sum>>20, total>>20)
	}
	return nil
}
