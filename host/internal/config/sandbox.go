package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Sandbox block: what the processes of an agent may reach and use up, beside what every program needs to run. The
// zero value is the narrowest, without limits.
type Sandbox struct {
	Off       bool // nothing is kept from it but what its user may not
	Required  bool // it does not start where the kernel lacks a part
	Read      []string
	Write     []string
	Connect   []uint16 // TCP ports
	Sockets   []string // paths of Unix sockets
	Listen    []uint16 // TCP ports
	DNS       bool
	Processes int   // that it may start
	Memory    int64 // bytes, 0: no limit
	Files     int   // descriptors of a process, 0: as the host
	Disk      int64 // bytes of its state and temporary files, 0: no limit
	Nice      int   // added to the host's
	Exclusive bool  // its state folder is for one process at a time

	// Named are the files and folders that the agent's own config block names: what it may read goes without saying.
	Named []string
}

func sandboxBlock() *blockType {
	read := list("read", formatPath, "Files and folders it may read, with all below, beside its program and what every program needs.")
	write := list("write", formatPath, "Files and folders it may change, with all below, beside its state folder. They must exist.")
	connect := list("connect", formatAny, "What it may connect to: `\"tcp:443\"`, a port at any address, and `\"unix:/path\"`.")
	listen := list("listen", formatAny, "Ports it may listen at, as `\"tcp:8080\"`.")
	return &blockType{
		name: "sandbox", max: 1,
		doc: "What the processes of an agent may reach and use up; `docs/operations.md` says how it is done and where it ends. Without the block all of it holds too.",
		options: []option{
			truth("enabled", "true", "`false` leaves only the clean environment, the user and the limits: for a debugger, or a program that the rest does not fit."),
			truth("required", "false", "Do not start the agent where the kernel lacks a part of this. Otherwise what is lacking is logged."),
			read, write, connect, listen,
			truth("dns", "true", "It may ask the DNS, by UDP and TCP. Most kernels cannot tell a question to the DNS from another datagram, so this is leave to send any; `false` means no UDP at all."),
			integer("processes", "0", "0", "10000", "Processes it may start. They end with it."),
			size("memory", "1 GB", "16 MB", "1 TB", "Of the agent with all that it starts, where the host has a cgroup for it; else of each process."),
			integer("files", "4096", "64", "1000000", "Descriptors that each process may have open."),
			size("disk", "1 GB", "1 MB", "100 TB", "Of its state folder, and of each file that it writes. A process that finds more there is ended."),
			integer("nice", "5", "0", "19", "Added to the host's nice value: when there is too much to do, the host goes first."),
			truth("exclusive", "false", "Its state folder is for one process at a time: `instances` is 1, and a new generation starts when the old one has ended."),
		},
	}
}

// buildSandbox makes the sandbox of an agent and judges what its options alone cannot show.
func (l *loader) buildSandbox(agent *node) Sandbox {
	n := agent.one("sandbox")
	s := Sandbox{
		Off: !n.flag("enabled"), Required: n.flag("required"),
		Read: n.strs("read"), Write: n.strs("write"), DNS: n.flag("dns"),
		Processes: int(n.number("processes")), Memory: n.number("memory"), Files: int(n.number("files")),
		Disk: n.number("disk"), Nice: int(n.number("nice")), Exclusive: n.flag("exclusive"),
	}
	s.Connect, s.Sockets = l.endpoints(n, "connect")
	listen, sockets := l.endpoints(n, "listen")
	s.Listen = listen
	if len(sockets) > 0 {
		l.diags.errorf(n.rangeOf("listen"), `only ports are listened at here; for a socket, write its folder in "write"`)
	}
	if s.Off && s.Required {
		l.diags.errorf(n.rangeOf("required"), "required, beside enabled = false at %s", short(n.value("enabled").nameAt))
	}
	if s.Exclusive && agent.number("instances") > 1 {
		l.diags.errorf(agent.rangeOf("instances"), "a state folder for one process at a time, and %d instances", agent.number("instances"))
	}
	return s
}

// paths are the files and folders that a config block names, in options of that format.
func (n *node) paths() []string {
	var list []string
	for i := range n.typ.options {
		o := &n.typ.options[i]
		if o.format != formatPath {
			continue
		}
		if s := n.str(o.name); s != "" {
			list = append(list, s)
		}
		list = append(list, n.strs(o.name)...)
	}
	for _, nested := range n.blocks {
		for _, inner := range nested {
			list = append(list, inner.paths()...)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// endpoints are the ports and the paths of a list such as ["tcp:443", "unix:/run/clamd.ctl"].
func (l *loader) endpoints(n *node, name string) (ports []uint16, sockets []string) {
	v := n.value(name)
	for i, s := range n.strs(name) {
		port, path, err := endpoint(s)
		switch {
		case err != nil && v.bad:
		case err != nil:
			l.diags.errorf(v.place.elem(i).at, "%v", err)
		case path != "":
			sockets = append(sockets, path)
		default:
			ports = append(ports, port)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports), sockets
}

func endpoint(s string) (port uint16, path string, err error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if !filepath.IsAbs(path) {
			return 0, "", fmt.Errorf("%q: the path of a socket begins with a slash", s)
		}
		return 0, filepath.Clean(path), nil
	}
	digits, ok := strings.CutPrefix(s, "tcp:")
	number, bad := strconv.ParseUint(digits, 10, 16)
	switch {
	case ok && bad == nil && number > 0:
		return uint16(number), "", nil
	case ok && strings.Contains(digits, ":"):
		return 0, "", fmt.Errorf(`%q: the kernel tells ports apart, not addresses; write "tcp:%s"`, s, digits[strings.LastIndex(digits, ":")+1:])
	}
	return 0, "", fmt.Errorf(`%q is neither "tcp:PORT" nor "unix:/path"`, s)
}
