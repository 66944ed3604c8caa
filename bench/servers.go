package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// result of one run.
type result struct {
	cpuMillis float64 // server and filters, per message
	hostShare float64 // of cpuMillis: the first process
	rate      float64 // relayed messages a second
}

// server is a mail server under load: the processes to count and how to end them.
type server struct {
	addr   string
	dir    string // of its configuration and data
	pids   func() []int
	stop   func()
	counts func() (counts, error) // nil: it is not Postern
}

// relaying starts the server of a cell, which relays to a sink. end stops both.
func relaying(c cell) (srv *server, out *sink, end func(), err error) {
	dir, err := os.MkdirTemp("/tmp", "bench")
	if err != nil {
		return nil, nil, nil, err
	}
	if out, err = newSink(); err != nil {
		return nil, nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	start := startPostern
	if c.server == "postfix" {
		start = startPostfix
	}
	if srv, err = start(dir, c, out.l.Addr().(*net.TCPAddr).Port); err != nil {
		return nil, nil, nil, errors.Join(err, out.l.Close(), os.RemoveAll(dir))
	}
	srv.dir = dir
	return srv, out, func() {
		srv.stop()
		_ = out.l.Close()
		_ = os.RemoveAll(dir)
	}, nil
}

// measure starts a server, warms it up, and counts its CPU while the load is relayed to the sink.
func measure(c cell, l load) (result, error) { return measureBeside(c, l, func(string) {}) }

// measureBeside calls beside, with the folder of the server's configuration and data, while the load runs.
func measureBeside(c cell, l load, beside func(dir string)) (result, error) {
	srv, out, end, err := relaying(c)
	if err != nil {
		return result{}, err
	}
	defer end()

	warm := l
	warm.messages = min(200, l.messages)
	if err := warm.send(srv.addr, c.size); err != nil {
		return result{}, err
	}
	if err := out.wait(warm.messages); err != nil {
		return result{}, err
	}
	var want counts
	if srv.counts != nil {
		if want, err = srv.settled(); err != nil {
			return result{}, err
		}
		want = want.expected(c.agents, l)
	}
	first := srv.pids()[:1]
	before, firstBefore, begin := cpuTicks(srv.pids()), cpuTicks(first), time.Now()
	var others sync.WaitGroup
	others.Go(func() { beside(srv.dir) })
	defer others.Wait()
	if err := l.send(srv.addr, c.size); err != nil {
		return result{}, err
	}
	if err := out.wait(warm.messages + l.messages); err != nil {
		return result{}, err
	}
	took := time.Since(begin)
	ticks, firstTicks := cpuTicks(srv.pids())-before, cpuTicks(first)-firstBefore
	others.Wait()
	if srv.counts != nil {
		if err := srv.check(want); err != nil {
			return result{}, err
		}
	}
	return result{
		cpuMillis: float64(ticks) * 10 / float64(l.messages),
		hostShare: float64(firstTicks) / float64(max(ticks, 1)),
		rate:      float64(l.messages) / took.Seconds(),
	}, nil
}

// seedTable is which agent of Exchange's Edge Transport takes which events, in its order of priority.
var seedTable = []struct {
	name   string
	events []string
}{
	{"connection-filter", []string{"OnConnect", "OnMail", "OnRcpt", "OnEndOfHeaders"}},
	{"rewrite-inbound", []string{"OnRcpt", "OnEndOfHeaders"}},
	{"edge-rules", []string{"OnEndOfData"}},
	{"content-filter", []string{"OnEndOfData"}},
	{"sender-id", []string{"OnEndOfHeaders"}},
	{"sender-filter", []string{"OnMail", "OnEndOfHeaders"}},
	{"recipient-filter", []string{"OnRcpt"}},
	{"protocol-analysis", []string{"OnConnect", "OnEndOfHeaders", "OnEndOfData", "OnReject", "OnRset", "OnDisconnect"}},
	{"attachment-filter", []string{"OnEndOfData"}},
	{"rewrite-outbound", []string{"OnSubmitted", "OnRouted"}},
	{"antivirus", []string{"OnSubmitted"}},
}

// agentBlocks configures n agents that answer "continue" to the events of the seed's table.
func agentBlocks(n int) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for i, a := range seedTable[:n] {
		fmt.Fprintf(&b, "agent %q {\n  command  = [%q]\n  priority = %d\n  config {\n    events = [\"%s\"]\n  }\n}\n",
			a.name, self, 10*(i+1), strings.Join(a.events, `", "`))
	}
	return b.String(), nil
}

func startPostern(dir string, c cell, sinkPort int) (*server, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	agents, err := agentBlocks(c.agents)
	if c.bundled {
		agents, err = bundledBlocks(c.blocks)
	}
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf(`
host {
  name     = "edge.example"
  data_dir = %q
}
log {
  level = "warn"
}
receive_connector "bench" {
  listen      = [%q]
  permissions = ["anonymous"]
  tls         = "bench"
}
tls "bench" {
}
accepted_domain "example.org" {
  type = "internal_relay"
}
send_connector "sink" {
  address_spaces = ["*"]
  smart_hosts    = ["127.0.0.1:%d"]
}
agent_defaults {
  sandbox {
    enabled = %t
  }
}
%s
%s`, filepath.Join(dir, "data"), addr, sinkPort, !c.free, agents, c.more)
	path := filepath.Join(dir, "config.hcl")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command("bin/postern", "serve", "--config", path)
	logFile, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	if err := waitListening(addr); err != nil {
		stop()
		text, _ := os.ReadFile(logFile.Name())
		return nil, fmt.Errorf("%w\n%s", err, text)
	}
	return &server{
		addr: addr, stop: stop,
		pids:   func() []int { return tree(cmd.Process.Pid) },
		counts: func() (counts, error) { return agentCounts(path, c.agents) },
	}, nil
}

// havePostfix reports whether Postfix can be started here: it is installed, and this is root.
func havePostfix() bool {
	_, err := os.Stat("/usr/sbin/postfix")
	return err == nil && os.Geteuid() == 0
}

// startPostfix starts an instance of its own below dir: Debian's master.cf without chroot, relaying to the sink.
func startPostfix(dir string, c cell, sinkPort int) (*server, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	for _, d := range []string{"etc", "data", "spool"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := chown(filepath.Join(dir, "data"), "postfix"); err != nil {
		return nil, err
	}
	milters, sockets, err := startMilters(dir, c.agents)
	if err != nil {
		return nil, err
	}
	main := fmt.Sprintf(`compatibility_level = 3.6
queue_directory = %[1]s/spool
data_directory = %[1]s/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = edge.example
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
relay_domains = example.org
relay_transport = relay:[127.0.0.1]:%[2]d
disable_dns_lookups = yes
biff = no
maillog_file = %[1]s/maillog
maillog_file_prefixes = %[1]s
smtpd_milters = %[3]s
`, dir, sinkPort, strings.Join(sockets, ","))
	master, err := os.ReadFile("/usr/share/postfix/master.cf.dist")
	if err != nil {
		return nil, err
	}
	master = regexp.MustCompile(`(?m)^smtp(\s+inet\s.*)$`).ReplaceAll(master, []byte(addr+"$1"))
	master = regexp.MustCompile(`(?m)^(\S+\s+(?:inet|unix|unix-dgram|fifo|pass)\s+\S+\s+\S+\s+)y(\s)`).ReplaceAll(master, []byte("${1}n$2"))
	if err := errors.Join(os.WriteFile(dir+"/etc/main.cf", []byte(main), 0o644), os.WriteFile(dir+"/etc/master.cf", master, 0o644)); err != nil {
		return nil, err
	}
	postfix := func(command string) error {
		out, err := exec.Command("/usr/sbin/postfix", "-c", dir+"/etc", command).CombinedOutput()
		if err != nil {
			return fmt.Errorf("postfix %s: %w\n%s", command, err, out)
		}
		return nil
	}
	stop := func() {
		_ = postfix("stop")
		for _, m := range milters {
			_ = m.Process.Kill()
			_ = m.Wait()
		}
	}
	if err := errors.Join(postfix("start"), waitListening(addr)); err != nil {
		stop()
		return nil, err
	}
	pids := func() []int {
		b, _ := os.ReadFile(dir + "/spool/pid/master.pid")
		master, _ := strconv.Atoi(strings.TrimSpace(string(b)))
		all := tree(master)
		for _, m := range milters {
			all = append(all, m.Process.Pid)
		}
		return all
	}
	return &server{addr: addr, stop: stop, pids: pids}, nil
}

func startMilters(dir string, n int) (cmds []*exec.Cmd, sockets []string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	for i := 0; i < n; i++ {
		path := filepath.Join(dir, fmt.Sprintf("m%d.sock", i))
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "BENCH_MILTER="+path)
		if err := cmd.Start(); err != nil {
			return nil, nil, err
		}
		cmds, sockets = append(cmds, cmd), append(sockets, "unix:"+path)
	}
	return cmds, sockets, nil
}

func chown(path, name string) error {
	u, err := user.Lookup(name)
	if err != nil {
		return err
	}
	uid, _ := strconv.Atoi(u.Uid)
	return os.Chown(path, uid, -1)
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func waitListening(addr string) error {
	for i := 0; i < 1000; i++ {
		if c, err := net.Dial("tcp", addr); err == nil {
			return c.Close()
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("nothing listens on %s", addr)
}
