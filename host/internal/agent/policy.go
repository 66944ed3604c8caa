package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/posternmail/postern/host/internal/catalog"
	"github.com/posternmail/postern/host/internal/sandbox"
)

// dnsPort is where the DNS is asked, unless a resolver is configured at another.
const dnsPort = 53

// policyOf is what the sandbox block of an agent comes to. temp is a folder that it may write in, besides.
func policyOf(o Options, temp string) sandbox.Policy {
	s := o.Spec.Sandbox
	p := sandbox.Policy{
		Program: append(programs(o.Spec.Command), slices.Sorted(maps.Keys(o.Spec.SHA256))...), State: o.StateDir, Temp: temp,
		Read: slices.Concat(s.Read, s.Named), Write: s.Write,
		Connect: slices.Clone(s.Connect), Listen: s.Listen, Sockets: s.Sockets,
		Datagrams: s.DNS, Processes: s.Processes, Memory: s.Memory, Files: s.Files, FileSize: s.Disk, Nice: s.Nice,
		Required: s.Required, Off: s.Off,
	}
	if o.RunDir != "" {
		p.Ways = append(p.Ways, filepath.Dir(o.RunDir), o.RunDir)
	}
	if o.StateDir != "" {
		p.Ways = append(p.Ways, filepath.Dir(filepath.Dir(o.StateDir)), filepath.Dir(o.StateDir))
	}
	if content := catalog.ContentOf(o.Spec.Command); content != "" {
		p.Read = append(p.Read, content)
		entry := filepath.Dir(content)
		p.Ways = append(p.Ways, filepath.Dir(filepath.Dir(entry)), filepath.Dir(entry), entry, content)
	}
	if s.DNS {
		p.DatagramPorts = resolverPorts(o.Host.GetResolvers())
		p.Connect = append(p.Connect, p.DatagramPorts...)
	}
	return p
}

// programs are the files that a command consists of: the program, and what its arguments name, such as a script.
func programs(command []string) []string {
	var files []string
	for _, word := range command {
		info, err := os.Stat(word)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		files = append(files, word)
	}
	return files
}

// resolverPorts are those where the DNS is asked: 53, and what the host's own resolvers are configured with.
func resolverPorts(resolvers []string) []uint16 {
	ports := []uint16{dnsPort}
	for _, address := range resolvers {
		_, text, err := net.SplitHostPort(address)
		if err != nil {
			continue
		}
		if port, err := strconv.ParseUint(text, 10, 16); err == nil {
			ports = append(ports, uint16(port))
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// sealedFiles are those that an agent is made of, held against the digests that they must have.
func sealedFiles(o Options) ([]sandbox.Sealed, error) {
	sealed, err := o.Sums.Verify(o.Spec.SHA256)
	var changed *catalog.Changed
	if errors.As(err, &changed) {
		return nil, fmt.Errorf("%w; to run it as it is now: postern agent upgrade %s, or postern agent lock %s where the host does not run; "+
			"an installed version is mended by postern agent install", err, o.Spec.Name, o.Spec.Name)
	}
	return sealed, err
}

// makeState makes the state folder of an agent, if it has one.
func makeState(o Options) error {
	if o.StateDir == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(o.StateDir), 0o711); err != nil { // each below has a mode of its own
		return fmt.Errorf("making the folder of state folders: %w", err)
	}
	if err := os.Mkdir(o.StateDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the state folder: %w", err)
	}
	return roomLeft(o)
}

// roomLeft fails when a state folder holds more than it may. What belongs to a user of its own, whoever starts it as that
// user looks at.
func roomLeft(o Options) error {
	limit := o.Spec.Sandbox.Disk
	if limit == 0 || o.Parent != nil {
		return nil
	}
	size, err := sandbox.Held(0, o.StateDir)
	if err != nil {
		return fmt.Errorf("the state folder %s cannot be looked at: %w", o.StateDir, err)
	}
	if size > limit {
		return fmt.Errorf("the state folder %s holds %d bytes, and its sandbox allows %s: clear it, or raise disk",
			o.StateDir, size, sandbox.Size(limit))
	}
	return nil
}
